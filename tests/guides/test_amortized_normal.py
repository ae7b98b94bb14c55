"""The posterior against its formula, its divergence against a second route, and refusals."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from guides import AmortizedNormal, Covariance, Diagonal, Full
from pyro_models.errors import DataError, OptionError
from pyro_models.networks import ConvEncoder, Standardize
from pyro_models.priors import StandardNormal
from tests.unchecked import unchecked

COVARIANCES = [Diagonal(), Full()]
each = pytest.mark.parametrize("covariance", COVARIANCES)
LATENT = 3


def random_outputs(covariance: Covariance, *lead: int) -> Tensor:
    return torch.randn(*lead, covariance.num_outputs(LATENT), dtype=torch.float64)


def test_a_diagonal_reads_means_then_scales() -> None:
    outputs = random_outputs(Diagonal(), 5)
    p = Diagonal().normal(outputs, LATENT)
    assert torch.equal(p.mean, outputs[:, :LATENT])
    wanted = nn.functional.softplus(outputs[:, LATENT:])
    assert torch.allclose(p.stddev, wanted, atol=1e-3)


def test_a_full_one_reads_means_then_a_cholesky_factor() -> None:
    outputs = random_outputs(Full(), 2, 5)
    p = Full().normal(outputs, LATENT)
    tril = p.scale_tril
    assert torch.equal(p.mean, outputs[..., :LATENT])
    assert torch.equal(tril, tril.tril())
    assert torch.allclose(
        tril.diagonal(dim1=-2, dim2=-1),
        nn.functional.softplus(outputs[..., LATENT : 2 * LATENT]),
        atol=1e-3,
    )
    below = torch.stack([tril[..., 1, 0], tril[..., 2, 0], tril[..., 2, 1]], -1)
    assert torch.equal(below, outputs[..., 2 * LATENT :])
    assert torch.allclose(p.covariance_matrix, tril @ tril.mT)


@each
def test_one_latent_dimension_works(covariance: Covariance) -> None:
    p = covariance.normal(torch.zeros(4, covariance.num_outputs(1)), 1)
    assert p.event_shape == (1,)
    assert p.rsample().shape == (4, 1)


@each
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_extreme_outputs_give_finite_densities(covariance: Covariance, size: float) -> None:
    outputs = torch.zeros(4, covariance.num_outputs(LATENT))
    outputs[0, LATENT : 2 * LATENT], outputs[1, LATENT : 2 * LATENT] = size, -size
    outputs.requires_grad_()
    p = covariance.normal(outputs, LATENT)
    z = p.rsample()
    divergence = kl_divergence(p, StandardNormal(LATENT)())
    (gradient,) = torch.autograd.grad((p.log_prob(z) + divergence).sum(), outputs)
    assert z.isfinite().all()
    assert divergence.isfinite().all()
    assert gradient.isfinite().all()
    assert (p.stddev >= 1e-4).all()


@each
def test_the_divergence_from_the_prior_is_that_of_full_normals(covariance: Covariance) -> None:
    p = covariance.normal(random_outputs(covariance, 4), LATENT)
    second = MultivariateNormal(p.mean, getattr(p, "covariance_matrix", p.variance.diag_embed()))
    first = MultivariateNormal(torch.zeros(LATENT).double(), torch.eye(LATENT).double())
    prior = StandardNormal(LATENT).double()()
    assert torch.allclose(kl_divergence(p, prior), kl_divergence(second, first), atol=1e-9)


@each
def test_the_divergence_from_the_prior_is_its_monte_carlo_mean(covariance: Covariance) -> None:
    p = covariance.normal(random_outputs(covariance, 4), LATENT)
    prior = StandardNormal(LATENT).double()()
    z = p.sample(torch.Size((20_000,)))
    terms = p.log_prob(z) - prior.log_prob(z)
    error = terms.std(0) / len(z) ** 0.5
    assert ((terms.mean(0) - kl_divergence(p, prior)).abs() < 4 * error).all()


@each
def test_it_starts_near_the_prior_and_without_correlations(covariance: Covariance) -> None:
    guide = AmortizedNormal(20, 10, covariance=covariance)
    x = torch.randn(100, 20)
    p = guide.posterior(x)
    assert 0.05 < p.stddev.min() <= p.stddev.max() < 3
    if isinstance(covariance, Full):
        assert not p.scale_tril.tril(-1).any()
    assert kl_divergence(p, StandardNormal(10)()).mean() < 20


@each
def test_correlations_learn(covariance: Covariance) -> None:
    if isinstance(covariance, Diagonal):
        return
    guide = AmortizedNormal(4, LATENT, covariance=covariance)
    guide.posterior(torch.randn(5, 4)).log_prob(torch.randn(5, LATENT)).sum().backward()
    gradient = guide.encoder.output.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, Tensor)
    assert gradient[2 * LATENT :].abs().min() > 0


@each
def test_the_program_draws_one_code_a_datum(covariance: Covariance) -> None:
    guide = AmortizedNormal(12, LATENT, hidden=(5,), covariance=covariance)
    images = torch.randint(2, (6, 3, 2, 2), dtype=torch.uint8)
    trace: Any = poutine.trace(guide).get_trace(images, num_data=60)
    site = trace.nodes["z"]
    assert site["value"].shape == (6, LATENT)
    assert site["scale"] == 10
    assert site["fn"].has_rsample
    particles = pyro.plate("particles", 7, dim=-2)
    assert particles(guide)(images).shape == (7, 6, LATENT)


def test_a_convolutional_encoder_takes_the_place_of_the_perceptron() -> None:
    encoder = ConvEncoder((1, 8, 8), Full().num_outputs(LATENT), channels=(4, 4))
    guide = AmortizedNormal(64, LATENT, covariance=Full(), encoder=encoder)
    assert guide(torch.randn(5, 1, 8, 8)).shape == (5, LATENT)


def test_preprocessing_stands_before_the_encoder() -> None:
    x = torch.randn(50, 4) * 1e4 + 1e5
    torch.manual_seed(0)
    plain = AmortizedNormal(4, LATENT)
    torch.manual_seed(0)
    standardised = AmortizedNormal(4, LATENT, preprocess=Standardize(x))
    seen = (x - x.mean(0)) / x.std(0, correction=0)
    assert torch.allclose(standardised.posterior(x).mean, plain.posterior(seen).mean, atol=1e-4)


def test_a_given_loc_is_what_the_encoder_says() -> None:
    guide = AmortizedNormal(4, LATENT, hidden=())
    x = torch.randn(5, 4)
    output = guide.encoder.output
    assert isinstance(output, nn.Linear)
    wanted = x @ output.weight[:LATENT].T
    assert torch.allclose(guide.posterior(x).mean, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AmortizedNormal(0, 2), "data_dim=0"),
        (lambda: AmortizedNormal(3, 0), "latent_dim=0"),
        (lambda: AmortizedNormal(3, 2, hidden=(0,)), r"hidden\[0\]=0"),
        (lambda: AmortizedNormal(3, 2, covariance="full"), r"guides.Full\(\)"),  # type: ignore[arg-type]
        (lambda: AmortizedNormal(3, 2, (4,), encoder=nn.Linear(3, 4)), "not both"),
        (lambda: Diagonal(floor=0.0), "floor=0.0"),
        (lambda: Diagonal(floor=2.0, ceiling=1.0), "not below ceiling"),
        (lambda: Full(ceiling=math.inf), "ceiling=inf"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


def test_an_encoder_with_other_outputs_is_refused() -> None:
    guide = AmortizedNormal(3, 2, encoder=nn.Linear(3, 5))
    with pytest.raises(OptionError, match=r"\(2, 5\).*Diagonal.*\(2, 4\)"):
        guide(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "give x"),
        (torch.zeros(2, 4), r"\(batch, 3\)"),
        (torch.zeros(2, 3).double(), "torch.float64"),
        (torch.zeros(0, 3), "empty"),
    ],
)
def test_data_it_cannot_see_are_refused(x: Tensor | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        AmortizedNormal(3, 2)(x)
