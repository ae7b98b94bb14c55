"""The model's joint density against a formula, its two uses, and what it refuses."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    FixedScale,
    LearnedScale,
    Normal,
    Poisson,
)
from pyro_models.networks import ConvDecoder, Folded
from pyro_models.priors import StandardNormal
from pyro_models.vae import VAE
from tests.unchecked import unchecked


def joint(model: VAE, z: Tensor, x: Tensor, num_data: int | None = None) -> Tensor:
    trace: Any = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x, num_data)
    return torch.as_tensor(trace.log_prob_sum())


def test_the_joint_density_is_its_formula() -> None:
    model = VAE(data_dim=3, latent_dim=2, hidden=(4,), activation=nn.ReLU)
    weights = dict(model.decoder.named_parameters())
    z, x = torch.randn(5, 2), torch.randint(2, (5, 3)).float()
    hidden = (z @ weights["body.0.weight"].T + weights["body.0.bias"]).clamp_min(0)
    logits = hidden @ weights["output.weight"].T + weights["output.bias"]
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum()
    log_likelihood = (x * logits - nn.functional.softplus(logits)).sum()
    assert torch.allclose(joint(model, z, x), log_prior + log_likelihood, atol=1e-4)


def test_a_minibatch_counts_for_the_whole_set() -> None:
    model = VAE(data_dim=3, latent_dim=2)
    z, x = torch.randn(5, 2), torch.randint(2, (5, 3)).float()
    assert torch.allclose(joint(model, z, x, num_data=50), 10 * joint(model, z, x))


def test_without_data_it_simulates() -> None:
    model = VAE(data_dim=3, latent_dim=2)
    assert model().shape == (1, 3)
    x = model(num_data=7)
    model.check(x)
    trace: Any = poutine.trace(model).get_trace(num_data=7)
    assert trace.nodes["z"]["value"].shape == (7, 2)
    assert not trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["cond_indep_stack"][0].name == "data"


def test_simulated_data_follow_the_model() -> None:
    # A linear decoder with normal noise has a normal marginal: x ~ N(b, W W' + s² I).
    model = VAE(2, 3, hidden=(), likelihood=Normal(FixedScale(0.5)))
    weight = dict(model.decoder.named_parameters())["output.weight"]
    with torch.no_grad():
        x = model(num_data=20_000)
    covariance = weight @ weight.T + 0.25 * torch.eye(2)
    # The variance of a sample covariance's entry: (C_ii C_jj + C_ij²) / N.
    diagonal = covariance.diagonal()
    error = ((diagonal.outer(diagonal) + covariance.square()) / len(x)).sqrt()
    assert ((x.T.cov() - covariance).abs() < 4 * error).all()


def test_images_are_flattened_and_whole_numbers_converted() -> None:
    model = VAE(data_dim=12, latent_dim=2)
    images = torch.randint(2, (5, 3, 2, 2), dtype=torch.uint8)
    model.check(images)
    model.initialize(images)
    trace: Any = poutine.trace(model).get_trace(images)
    assert torch.equal(trace.nodes["x"]["value"], images.flatten(1).float())


@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        (Bernoulli(), torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])),
        (ContinuousBernoulli(), torch.tensor([[0.1, 0.9], [0.3, 0.5]])),
        (Normal(), torch.tensor([[-5.0, 900.0], [3.0, 100.0]])),
        (Poisson(), torch.tensor([[0.0, 900.0], [3.0, 100.0]])),
    ],
)
def test_initialised_it_starts_at_the_training_mean(likelihood: Bernoulli, x: Tensor) -> None:
    model = VAE(2, 4, likelihood=likelihood)
    model.initialize(x)
    with torch.no_grad():
        start = model.decode(torch.zeros(1, 4)).mean  # tanh(0) = 0: only the bias is left
    wanted = x.mean(0).clamp(0.001, 0.999) if isinstance(likelihood, Bernoulli) else x.mean(0)
    assert torch.allclose(start[0], wanted, rtol=1e-4)
    assert model.decoder.output_bias.requires_grad


def test_a_convolutional_decoder_takes_the_place_of_the_perceptron() -> None:
    likelihood = Categorical(3)
    decoder = ConvDecoder(4, (1, 8, 8), likelihood.outputs_per_dim, channels=(4, 4))
    model = VAE(64, 4, likelihood=likelihood, decoder=decoder)
    x = torch.randint(3, (5, 1, 8, 8)).float()
    model.initialize(x)
    assert model.decode(torch.zeros(6, 5, 4)).log_prob(x.flatten(1)).shape == (6, 5)


def test_a_folded_network_serves_particles() -> None:
    decoder = Folded(nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3)), nn.Flatten()), 1)
    model = VAE(6, 2, decoder=decoder)
    particles = pyro.plate("particles", 4, dim=-2)
    assert particles(model)(torch.zeros(5, 6)).shape == (5, 6)
    with pytest.raises(OptionError, match="no output_bias"):
        model.initialize(torch.zeros(5, 6))


def test_a_network_that_knows_one_batch_dimension_is_pointed_to_the_wrapper() -> None:
    model = VAE(6, 2, decoder=nn.Sequential(nn.Linear(2, 6), nn.Flatten()))
    model(torch.zeros(5, 6))
    with pytest.raises(OptionError, match="Folded"):
        pyro.plate("particles", 4, dim=-2)(model)(torch.zeros(5, 6))


def test_a_prior_of_ones_own_is_used() -> None:
    class Shifted(nn.Module):
        def forward(self) -> pyro.distributions.torch_distribution.TorchDistributionMixin:
            return pyro.distributions.Normal(torch.full((2,), 100.0), 1.0).to_event(1)

    trace: Any = poutine.trace(VAE(3, 2, prior=Shifted())).get_trace(num_data=4)
    assert (trace.nodes["z"]["value"] > 90).all()


def test_the_prior_is_no_part_of_the_state() -> None:
    assert set(VAE(3, 2, hidden=()).state_dict()) == {
        "decoder.output.weight",
        "decoder.output.bias",
    }


def test_the_standard_normal_prior_is_standard_normal() -> None:
    z = torch.randn(5, 3)
    wanted = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    assert torch.allclose(StandardNormal(3)().log_prob(z), wanted)
    assert StandardNormal(3).double()().sample().dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VAE(0, 2), "data_dim=0"),
        (lambda: VAE(3, -1), "latent_dim=-1"),
        (lambda: VAE(3, 2, hidden=(0,)), r"hidden\[0\]=0"),
        (lambda: VAE(3, 2, likelihood="bernoulli"), r"likelihoods.Bernoulli\(\)"),  # type: ignore[arg-type]
        (
            lambda: VAE(3, 2, likelihood=Normal(LearnedScale(data_dim=4))),
            "4 dimensions.*data_dim=3",
        ),
        (lambda: VAE(3, 2, prior=StandardNormal(5)), r"\(5,\).*latent_dim=2"),
        (lambda: VAE(3, 2, hidden=(4,), decoder=nn.Linear(2, 3)), "not both"),
        (lambda: VAE(3, 2, activation=nn.ReLU, decoder=nn.Linear(2, 3)), "not both"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], VAE], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 4), DataError, r"\(batch, 3\)"),
        (torch.zeros(3), DataError, "unsqueeze"),
        (torch.zeros(2, 3).double(), DataError, "torch.float64"),
        (torch.zeros(0, 3), DataError, "shape"),
        (torch.full((2, 3), 0.5), SupportError, "DynamicBinarization"),
        (torch.full((2, 3), math.nan), DataError, "not finite"),
    ],
)
def test_data_it_cannot_explain_are_refused(x: Tensor, error: type, words: str) -> None:
    with pytest.raises(error, match=words), unchecked():
        VAE(3, 2).check(x)


@pytest.mark.parametrize("x", [torch.zeros(2, 4), torch.zeros(2, 3).double(), torch.zeros(0, 3)])
def test_the_program_refuses_what_it_can_see_for_free(x: Tensor) -> None:
    with pytest.raises(DataError):
        VAE(3, 2)(x)


def test_a_minibatch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(DataError, match="num_data=1"):
        VAE(3, 2)(torch.zeros(2, 3), num_data=1)
    with pytest.raises(DataError, match="empty"):
        VAE(3, 2)(num_data=0)
