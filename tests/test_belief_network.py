"""Belief networks of a few units, where every configuration can be counted by hand."""

import contextlib
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_models import pairs
from pyro_models.belief_network import SigmoidBeliefNetwork
from pyro_models.cli import main
from pyro_models.data import DynamicBinarization
from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.infer import (
    ELBO,
    VIMCO,
    MonteCarloKL,
    embed,
    fit,
    log_likelihood,
    log_weights,
    reconstruct,
    sample,
    variations,
)
from pyro_models.infer.diagnostics import active_units
from pyro_models.likelihoods import LearnedScale, Normal
from pyro_models.networks import Standardize
from pyro_models.programs import data_plate
from tests.unchecked import unchecked

PIXELS = 4
# Latent layers from the data up, and deterministic ones between them.
SHAPES = {
    "one": ((3,), ()),
    "nonlinear": ((3,), (5, 4)),
    "two": ((3, 2), ()),
    "both": ((2, 2), (3,)),
}
each = pytest.mark.parametrize("shape", SHAPES)
GREY = torch.tensor([[0.0, 0.2, 1.0], [0.5, 1.0, 0.0]])


def configurations(size: int) -> Tensor:
    """All of them, ``(2**size, size)``."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=torch.float64)


X = configurations(PIXELS)


def make(shape: str) -> pairs.Pair:
    """A pair of no particular weights, in double precision."""
    dims, hidden = SHAPES[shape]
    pair = pairs.belief_network(PIXELS, dims, hidden, objective=ELBO(kl=MonteCarloKL()))
    # The guide is the vaguer one, so that a few draws cover every posterior.
    for module, scale in ((pair.model, 1.0), (pair.guide, 0.5)):
        module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0.0, scale)
    pair.guide.center.copy_(torch.tensor([0.1, 0.5, 0.3, 0.9]))  # type: ignore[operator]
    return pair


def bits(z: Tensor, logits: Tensor) -> Tensor:
    """Log-probability of independent bits."""
    return torch.where(z == 1, logsigmoid(logits), logsigmoid(-logits)).sum(-1)


def function(module: nn.Module, layer: int, inputs: Tensor) -> Tensor:
    """What a layer's network makes of its inputs, from its weights alone."""
    weights = dict(module.named_parameters())
    depth = sum(f"layers.{layer}.body.{2 * place}.weight" in weights for place in range(9))
    names = [f"body.{2 * place}" for place in range(depth)] + ["output"]
    for name in names:
        prefix = f"layers.{layer}.{name}"
        inputs = inputs @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]
        inputs = inputs if name == "output" else inputs.tanh()
    return inputs


def log_p(model: nn.Module, zs: tuple[Tensor, ...], x: Tensor) -> dict[str, Tensor]:
    """Log-density of each site."""
    terms = {f"z_{len(zs)}": bits(zs[-1], model.get_parameter("prior_logits"))}
    for number in range(len(zs), 1, -1):
        below = zs[number - 2]
        terms[f"z_{number - 1}"] = bits(below, function(model, number - 1, 2 * zs[number - 1] - 1))
    return terms | {"x": bits(x, function(model, 0, 2 * zs[0] - 1))}


def log_q(guide: nn.Module, zs: tuple[Tensor, ...], x: Tensor) -> dict[str, Tensor]:
    terms = {"z_1": bits(zs[0], function(guide, 0, x - guide.get_buffer("center")))}
    for number in range(2, len(zs) + 1):
        logits = function(guide, number - 1, 2 * zs[number - 2] - 1)
        terms[f"z_{number}"] = bits(zs[number - 1], logits)
    return terms


def states(model: nn.Module) -> tuple[Tensor, ...]:
    """Every configuration of all latents, ``(count, 1, units)`` by layer."""
    dims: tuple[int, ...] = model.latent_dims  # type: ignore[assignment]
    every = configurations(sum(dims)).unsqueeze(1)
    return every.split(list(dims), dim=-1)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*terms.values())).sum(0)


def evidence(model: nn.Module, x: Tensor = X) -> Tensor:
    """Log p(x) by summing over all latents."""
    return total(log_p(model, states(model), x)).logsumexp(0)


def exact_elbo(pair: pairs.Pair, x: Tensor) -> Tensor:
    """For the whole of x, by summing over all latents."""
    zs = states(pair.model)
    q = total(log_q(pair.guide, zs, x))
    return (q.exp() * (total(log_p(pair.model, zs, x)) - q)).sum()


def parameters(pair: pairs.Pair) -> list[Tensor]:
    return [*pair.model.parameters(), *pair.guide.parameters()]


# --- densities -----------------------------------------------------------------------------------


@each
def test_each_site_has_the_density_of_its_formula(shape: str) -> None:
    pair = make(shape)
    weights = log_weights(pair.model, pair.guide, X, num_particles=5)
    names = [f"z_{number}" for number in range(1, len(SHAPES[shape][0]) + 1)]
    assert list(weights.guide_sites) == names
    assert list(weights.model_sites) == [*names[::-1], "x"]
    zs = tuple(weights.guide_sites[name].value for name in names)
    assert all(z.shape == (5, len(X), n) for z, n in zip(zs, SHAPES[shape][0], strict=True))
    for found, wanted in (
        (weights.log_p, log_p(pair.model, zs, X)),
        (weights.log_q, log_q(pair.guide, zs, X)),
    ):
        assert found.keys() == wanted.keys()
        for site, value in found.items():
            assert torch.allclose(value, wanted[site]), site


@each
def test_the_evidence_of_all_data_sums_to_one(shape: str) -> None:
    assert evidence(make(shape).model).exp().sum().item() == pytest.approx(1.0)


@each
def test_log_likelihood_is_the_sum_over_all_latents(shape: str) -> None:
    pair = make(shape)
    found = log_likelihood(pair.model, pair.guide, X, 20_000)
    exact = evidence(pair.model)
    assert ((found.value - exact).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.1


class Table(TorchDistribution):
    """A configuration of bits drawn from a list of all, ``probs`` giving one row a datum."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch declares it)
    has_rsample = False

    def __init__(self, log_probs: Tensor, values: Tensor) -> None:
        self.log_probs, self.values = log_probs, values
        super().__init__(log_probs.shape[:-1], values.shape[-1:], validate_args=False)

    @property
    def support(self) -> Any:
        return dist.constraints.independent(dist.constraints.boolean, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Table":
        return Table(self.log_probs.expand(*batch_shape, -1), self.values)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (as torch's)
        return self.values[dist.Categorical(logits=self.log_probs).sample(sample_shape)]

    def log_prob(self, value: Tensor) -> Tensor:
        place = (value.unsqueeze(-2) == self.values).all(-1).double().argmax(-1, keepdim=True)
        log_probs = self.log_probs.expand(*place.shape[:-1], -1)
        return log_probs.gather(-1, place).squeeze(-1)


@pytest.mark.parametrize("shape", ["one", "nonlinear"])
def test_with_the_exact_posterior_every_draw_weighs_the_evidence(shape: str) -> None:
    model = make(shape).model
    (z,) = states(model)
    joint = total(log_p(model, (z,), X))  # (8, 16)
    posterior = (joint - joint.logsumexp(0)).T.detach()

    def guide(x: Tensor, num_data: int | None = None) -> None:
        with data_plate(len(x), num_data):
            pyro.sample("z_1", Table(posterior, z.squeeze(1)))

    weights = log_weights(model, guide, X, num_particles=7)
    assert torch.allclose(weights.local, evidence(model).expand(7, -1))
    loss = ELBO().differentiable_loss(model, guide, X)
    assert loss.item() == pytest.approx(-evidence(model).sum().item())


@each
def test_the_elbo_and_its_gradient_are_those_of_the_sum_over_all_latents(shape: str) -> None:
    pair = make(shape)
    x = X[[1, 6, 15]]
    exact = exact_elbo(pair, x)
    wanted = torch.autograd.grad(-exact, parameters(pair))
    objective = ELBO(num_particles=200, kl=MonteCarloKL())
    losses, gradients = [], []
    for _ in range(150):
        loss = objective.differentiable_loss(pair.model, pair.guide, x)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, parameters(pair)))
    value = torch.stack(losses)
    assert abs(value.mean() + exact) < 4 * value.std() / len(value) ** 0.5
    for draws, gradient in zip(zip(*gradients, strict=True), wanted, strict=True):
        draw = torch.stack(draws)
        error = draw.std(0) / len(draw) ** 0.5
        assert gradient.any()
        assert ((draw.mean(0) - gradient).abs() < 4 * error + 1e-9).all()


@each
def test_simulated_data_follow_the_model(shape: str) -> None:
    model = make(shape).model
    with torch.no_grad():
        x = model(num_data=20_000)
    places = (x @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    found = torch.bincount(places, minlength=len(X)) / len(x)
    p = evidence(model).exp()
    assert ((found - p).abs() < 4 * (p * (1 - p) / len(x)).sqrt()).all()


# --- the program ---------------------------------------------------------------------------------


def test_without_data_it_simulates_layer_by_layer() -> None:
    model = SigmoidBeliefNetwork(3, (2, 4))
    assert model().shape == (1, 3)
    model.check(model(num_data=7))
    trace: Any = poutine.trace(model).get_trace(num_data=7)
    assert trace.nodes["z_2"]["value"].shape == (7, 4)
    assert trace.nodes["z_1"]["value"].shape == (7, 2)
    assert not trace.nodes["x"]["is_observed"]


def test_images_are_flattened_and_whole_numbers_converted() -> None:
    model = SigmoidBeliefNetwork(12, (2,))
    images = torch.randint(2, (5, 3, 2, 2), dtype=torch.uint8)
    model.check(images)
    model.initialize(images)
    trace: Any = poutine.trace(model).get_trace(images, num_data=50)
    assert torch.equal(trace.nodes["x"]["value"], images.flatten(1).float())
    assert trace.nodes["z_1"]["scale"] == 10


def test_initialised_it_starts_at_the_training_mean() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    model = SigmoidBeliefNetwork(3, (5, 2), hidden=(4,))
    model.initialize(x)
    bias = model.get_parameter("layers.0.output.bias")
    assert torch.allclose(bias, torch.logit(torch.tensor([0.25, 0.999, 0.5])))
    assert torch.equal(model.prior_logits, torch.zeros(2))
    # Where the units are even, their centred inputs are zero, and only the bias is left.
    with torch.no_grad():
        assert torch.allclose(model.decode(torch.full((1, 5), 0.5)).mean[0], bias.sigmoid())


def test_weights_start_as_glorot_has_them() -> None:
    model = SigmoidBeliefNetwork(100, (200, 300), hidden=(50,))
    for layer, (inputs, outputs) in enumerate([(200, 100), (300, 200)]):
        first = model.get_parameter(f"layers.{layer}.body.0.weight")
        last = model.get_parameter(f"layers.{layer}.output.weight")
        assert first.detach().abs().max() == pytest.approx(math.sqrt(6 / (inputs + 50)), rel=0.01)
        assert last.detach().abs().max() == pytest.approx(math.sqrt(6 / (50 + outputs)), rel=0.01)
        assert not model.get_parameter(f"layers.{layer}.output.bias").any()


def test_real_data_may_have_a_normal_likelihood() -> None:
    model = SigmoidBeliefNetwork(3, (2,), likelihood=Normal(LearnedScale(data_dim=3)))
    x = torch.randn(50, 3) + 5
    model.initialize(x)
    assert torch.allclose(model.decode(torch.full((1, 2), 0.5)).mean[0], x.mean(0))


@pytest.mark.parametrize(
    ("make_model", "words"),
    [
        (lambda: SigmoidBeliefNetwork(0, (2,)), "data_dim=0"),
        (lambda: SigmoidBeliefNetwork(3, ()), r"latent_dims=\(\).*at least one"),
        (lambda: SigmoidBeliefNetwork(3, (2, 0)), r"latent_dims\[1\]=0"),
        (lambda: SigmoidBeliefNetwork(3, 2), r"write \(2,\)"),  # type: ignore[arg-type]
        (lambda: SigmoidBeliefNetwork(3, (2,), hidden=(0,)), r"hidden\[0\]=0"),
        (lambda: SigmoidBeliefNetwork(3, (2,), likelihood="b"), "Bernoulli"),  # type: ignore[arg-type]
        (
            lambda: SigmoidBeliefNetwork(3, (2,), likelihood=Normal(LearnedScale(data_dim=4))),
            "4 dimensions.*data_dim=3",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(
    make_model: Callable[[], SigmoidBeliefNetwork], words: str
) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make_model()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 4), DataError, r"\(batch, 3\)"),
        (torch.zeros(2, 3).double(), DataError, "torch.float64"),
        (torch.full((2, 3), 0.5), SupportError, "transform=.*DynamicBinarization.*binarise"),
        (torch.full((2, 3), math.nan), DataError, "not finite"),
    ],
)
def test_data_it_cannot_explain_are_refused(x: Tensor, error: type, words: str) -> None:
    with pytest.raises(error, match=words), unchecked():
        SigmoidBeliefNetwork(3, (2,)).check(x)


# --- the pair ------------------------------------------------------------------------------------


def test_model_and_guide_mirror_each_other() -> None:
    pair = pairs.belief_network(30, latent_dim=(20, 10), hidden=(9, 8))

    def shapes(module: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(w.shape) for name, w in module.named_parameters() if "weight" in name]

    assert shapes(pair.guide) == [(9, 30), (8, 9), (20, 8), (9, 20), (8, 9), (10, 8)]
    assert shapes(pair.model) == [(8, 20), (9, 8), (30, 9), (8, 10), (9, 8), (20, 9)]
    assert pairs.belief_network(30, latent_dim=7).model.latent_dims == (7,)


def test_without_a_choice_it_is_fitted_by_vimco() -> None:
    for pair in (pairs.belief_network(3), pairs.build("belief_network", X)):
        assert isinstance(pair.objective, VIMCO)
        assert pair.objective.num_particles == 5


def test_a_pair_for_binary_data_starts_centred_on_them() -> None:
    x = torch.randint(2, (40, 3)).double()
    pair = pairs.build("belief_network", x, latent_dim=2)
    bias = pair.model.get_parameter("layers.0.output.bias")
    assert torch.allclose(bias.sigmoid(), x.mean(0))
    assert torch.allclose(pair.guide.get_buffer("center"), x.mean(0))
    assert bias.dtype == pair.guide.get_buffer("center").dtype == torch.float64


def test_grey_levels_are_for_fit_to_binarise() -> None:
    pair = pairs.build("belief_network", GREY, latent_dim=2)
    assert torch.allclose(pair.guide.get_buffer("center"), GREY.mean(0))
    with pytest.raises(SupportError, match=r"transform=.*DynamicBinarization"):
        fit(pair.model, pair.guide, GREY, epochs=1, progress=False)
    result = fit(
        pair.model, pair.guide, GREY, transform=DynamicBinarization(), epochs=1, progress=False
    )
    assert math.isfinite(result.history[-1].elbo)


def test_real_data_need_another_likelihood_and_are_shown_standardised() -> None:
    x = torch.randn(30, 3) * 10 + 50
    with pytest.raises(SupportError, match=r"likelihoods.Normal\(\)"):
        pairs.build("belief_network", x)
    pair = pairs.build("belief_network", x, likelihood=Normal())
    assert isinstance(pair.guide.preprocess, Standardize)
    assert torch.allclose(pair.guide.get_buffer("center"), torch.zeros(3), atol=1e-5)


def test_widths_that_are_none_are_refused() -> None:
    for latent_dim, words in [(0, r"latent_dims\[0\]=0"), ("2", r"latent_dim='2'")]:
        with pytest.raises(OptionError, match=words), unchecked():
            pairs.build("belief_network", X, latent_dim=latent_dim)
    with pytest.raises(OptionError, match=r"ELBO\(\)"), unchecked():
        pairs.build("belief_network", X, objective="elbo")


# --- what the engine makes of discrete latents ---------------------------------------------------


def test_an_embedding_gives_probabilities() -> None:
    pair = make("two")
    found = embed(pair.guide, X, num_samples=4000)
    zs = states(pair.model)
    q = total(log_q(pair.guide, zs, X)).exp()
    for number, z in enumerate(zs, start=1):
        moments = found[f"z_{number}"]
        wanted = (q.unsqueeze(-1) * z).sum(0)
        assert moments.exact == (number == 1)
        assert ((moments.mean - wanted).abs() <= 4 * moments.monte_carlo_error + 1e-9).all()
        assert torch.allclose(moments.scale, (wanted * (1 - wanted)).sqrt(), atol=0.05)


def test_reconstructions_and_variations_decode_bits() -> None:
    pair = make("one")
    mode = (pair.guide.posterior(X).mean > 0.5).double()  # type: ignore[operator]
    wanted = pair.model.decode(mode).mean  # type: ignore[operator]
    assert torch.allclose(reconstruct(pair.model, pair.guide, X), wanted)
    assert torch.allclose(variations(pair.model, pair.guide, X, 0.0, 2)[1], wanted)
    varied = variations(pair.model, pair.guide, X, 1.0, 50)
    every = pair.model.decode(configurations(3)).mean  # type: ignore[operator]
    assert ((varied.unsqueeze(-2) - every).abs().amax(-1).amin(-1) < 1e-12).all()


def test_samples_and_active_units_count_bits() -> None:
    pair = make("two")
    assert set(sample(pair.model, 100).unique().tolist()) == {0.0, 1.0}
    assert sample(pair.model, 100, site="z_2").shape == (100, 2)
    with torch.no_grad():
        weight = pair.guide.get_parameter("layers.0.output.weight").mul_(5)
        weight[1] = 0  # z_1[1] sees no data
    units = active_units(pair.guide, X)
    assert units.total == 5
    assert units.variances["z_1"][1].item() == 0
    p = pair.guide.posterior(X).mean  # type: ignore[operator]
    assert torch.allclose(units.variances["z_1"], p.var(0, correction=0))
    assert units.count >= 2


@pytest.mark.parametrize(
    "options",
    [pytest.param((), marks=pytest.mark.slow), ("--data", "bits.npy", "--latent-dim", "3")],
)
def test_the_command_fits_it(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("bits.npy", np.random.default_rng(0).integers(2, size=(60, 6)))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(
            ["fit", "belief_network", "--epochs", "2", "--out", "run", "--quiet", *options]
        )
        again = main(["evaluate", "run"])
    assert (status, again) == (0, 0), err.getvalue()
    assert out.getvalue().count("belief_network ") >= 2
    names = {"samples.png", "reconstructions.png", "latent.png", "traversal.png", "posterior.nc"}
    assert names <= {path.name for path in Path("run").iterdir()}
