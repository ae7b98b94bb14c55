"""Gradient noise against closed forms, and what the measurement must leave alone."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_models.errors import DataError, NonFiniteError, OptionError, SiteMismatchError
from pyro_models.infer import (
    ELBO,
    IWAE,
    DoublyReparameterized,
    Enumerated,
    MonteCarloKL,
    StickingTheLanding,
    diagnostics,
    fit,
)
from pyro_models.infer.diagnostics import GradientNoise, MeanGradient, gradient_draws
from pyro_models.infer.diagnostics import gradient_noise as measure
from pyro_models.infer.objectives import Estimate, Objective
from pyro_models.infer.random_state import Stream, derive_seed
from pyro_models.infer.record import KLWeight
from pyro_models.infer.weights import LogWeights
from pyro_models.programs import announce, data_plate
from tests.infer.multi_sample_cases import CASES
from tests.unchecked import unchecked

QUICK = MeanGradient(draws=20)
DTYPE = torch.float64
LOC, SCALE = 0.7, 0.8
X = torch.tensor([0.4, 1.9, -0.8], dtype=DTYPE)


def gradient_noise(*args: Any, **options: Any) -> GradientNoise:
    """The function, with a reference that costs little."""
    return measure(*args, **({"reference": QUICK} | options))


class Draw(dist.Normal):
    """A normal that has no path, so that its gradient is by the score function."""

    has_rsample = False


class Score(Objective):
    """The plain score-function estimator of the guide's gradient, nothing else."""

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        log_q = sum(weights.log_q.values())
        cost = weights.local.detach()
        return Estimate(cost.mean(0).sum(), (log_q * cost).mean(0).sum())


def conjugate(normal: Any = dist.Normal, loc: float = LOC) -> tuple[Any, Any]:
    """z ~ N(0, 1), x ~ N(z + b, 1); q(z) = N(loc, SCALE²), the same for every datum."""

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.3, dtype=DTYPE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        mean = pyro.param("loc", torch.tensor(loc, dtype=DTYPE))
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(mean.expand(len(x)), torch.tensor(SCALE, dtype=DTYPE)))

    return model, guide


def assert_near(value: float, expected: float, error: float) -> None:
    assert abs(value - expected) <= 4 * error, f"{value} is not {expected} ± {error}"


class TestClosedForms:
    """q(z) = N(m, s²) and a quadratic log-density: polynomials in eps ~ N(0, 1)."""

    draws = 500

    def variance_error(self, variance: float, kurtosis: float = 3.0) -> float:
        """Standard error of a variance estimated from the draws."""
        return variance * math.sqrt((kurtosis - 1) / self.draws)

    def test_pathwise(self) -> None:
        """Of data i the gradient in m is -2z + x - b, z = m + s eps; in b it is x - b - z."""
        noise = gradient_noise(*conjugate(), X, ELBO(kl=MonteCarloKL()), self.draws)
        (found,) = noise.parameters.values()
        mean, shift, n = float(X.mean()), 0.3, len(X)
        expected = {
            "loc": (mean - shift - 2 * LOC, 4 * SCALE**2 / n),
            "shift": (mean - shift - LOC, SCALE**2 / n),
        }
        for name, (center, variance) in expected.items():
            assert_near(float(found[name].mean), center, math.sqrt(variance / self.draws))
            assert_near(float(found[name].variance), variance, self.variance_error(variance))
            ratio = abs(float(found[name].mean)) / math.sqrt(variance)
            assert found[name].snr == pytest.approx(ratio, rel=0.2)
            assert found[name].standard_error == pytest.approx(
                math.sqrt(variance / self.draws), rel=0.15
            )

    def test_analytic_divergence(self) -> None:
        """With the closed form the gradient in m is -m + x - b - z."""
        noise = gradient_noise(*conjugate(), X, ELBO(), self.draws)
        variance = SCALE**2 / len(X)
        assert_near(
            float(noise.parameters[repr(ELBO())]["loc"].variance),
            variance,
            self.variance_error(variance),
        )

    def test_score_function(self) -> None:
        """The gradient in m is (eps / s) f(z), f(z) = log p(x, z) - log q(z), a polynomial."""
        model, guide = conjugate(Draw)
        noise = gradient_noise(model, guide, X[:1], {"score": Score()}, self.draws)
        found = noise.parameters["score"]["loc"]
        x, shift = float(X[0]), 0.3
        # Gauss-Hermite sums are exact for polynomials.
        eps, weight = hermite()
        z = LOC + SCALE * eps
        f = (-(z**2) - (x - shift - z) ** 2 + eps**2) / 2
        f = f - math.log(2 * math.pi) / 2 + math.log(SCALE)
        g = eps / SCALE * f
        mean = float(weight @ g)
        variance = float(weight @ (g - mean) ** 2)
        kurtosis = float(weight @ (g - mean) ** 4) / variance**2
        assert mean == pytest.approx(x - shift - 2 * LOC, abs=1e-9)
        assert_near(float(found.mean), mean, math.sqrt(variance / self.draws))
        assert_near(float(found.variance), variance, self.variance_error(variance, kurtosis))
        # The pathwise estimator of the same thing has less noise.
        path = gradient_noise(*conjugate(), X[:1], ELBO(kl=MonteCarloKL()), self.draws)
        assert variance > 2 * path.side(repr(ELBO(kl=MonteCarloKL())), "guide").variance

    def test_particles_divide_the_variance(self) -> None:
        kl = MonteCarloKL()
        objectives = {count: ELBO(count, kl=kl) for count in (1, 16)}
        named = {str(count): objective for count, objective in objectives.items()}
        noise = gradient_noise(*conjugate(), X, named, self.draws)
        for count in objectives:
            variance = 4 * SCALE**2 / len(X) / count
            row = noise.side(str(count), "guide")
            assert_near(row.variance, variance, self.variance_error(variance))
        ratio = noise.side("16", "guide").snr / noise.side("1", "guide").snr
        assert ratio == pytest.approx(4, rel=0.25)

    def test_cosine_of_one_number_is_its_sign(self) -> None:
        """P(g > 0) for a normal g: the mean cosine is 2 P(g > 0) - 1 where the reference is > 0."""
        noise = gradient_noise(
            *conjugate(loc=0.0),
            X,
            ELBO(kl=MonteCarloKL()),
            self.draws,
            reference={"loc": torch.tensor(1.0), "shift": torch.tensor(-2.0)},
        )
        (found,) = noise.parameters.values()
        mean, deviation = float(X.mean()) - 0.3, 2 * SCALE / math.sqrt(len(X))
        expected = math.erf(mean / deviation / math.sqrt(2))
        assert_near(found["loc"].cosine, expected, 1 / math.sqrt(self.draws))
        assert noise.reference_error == {"model": 0.0, "guide": 0.0}

    def test_a_draw_without_noise(self) -> None:
        """A guide that the bound sees by its closed divergence alone."""

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0))
                pyro.sample("x", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0), obs=x)

        _, guide = conjugate()
        noise = gradient_noise(model, guide, X, ELBO(), 20)
        row = noise.side(repr(ELBO()), "guide")
        assert row.mean_norm == pytest.approx(LOC)
        assert (row.variance, row.snr, row.cosine) == (0.0, math.inf, pytest.approx(1.0))
        assert noise.reference_error == {"guide": 0.0}
        assert noise.parameters[repr(ELBO())]["loc"].mean == pytest.approx(-LOC)

    def test_per_datum_whatever_the_minibatch(self) -> None:
        """The mean is per datum of the set; a plate of N with B of them counts each N/B times."""

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.shift = nn.Parameter(torch.tensor(0.3, dtype=DTYPE))

            def forward(self, x: Tensor | None = None, num_data: int | None = None) -> None:
                announce(self, "model")
                batch = 1 if x is None else len(x)
                with data_plate(batch, num_data):
                    pyro.sample("x", dist.Normal(self.shift.expand(batch), 1.0), obs=x)

        class Guide(nn.Module):
            def forward(self, x: Tensor, num_data: int | None = None) -> None:
                pass

        for num_data in (None, 3, 3000):
            noise = gradient_noise(Model(), Guide(), X, ELBO(), 2, num_data=num_data)
            found = noise.parameters[repr(ELBO())]["model.shift"]
            assert float(found.mean) == pytest.approx(float(X.mean()) - 0.3)


def hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights for expectations under N(0, 1), by Golub and Welsch."""
    nodes, weights = torch.linalg.eigh(
        torch.diag(torch.arange(1, 20, dtype=DTYPE).sqrt(), 1)
        + torch.diag(torch.arange(1, 20, dtype=DTYPE).sqrt(), -1)
    )
    return nodes, weights[0] ** 2


def slope(counts: list[int], ratios: list[float], draws: int) -> tuple[float, float]:
    """Exponent of ratio ~ count^slope by weighted least squares, and its standard error."""
    at = torch.tensor(counts, dtype=DTYPE).log()
    ratio = torch.tensor(ratios, dtype=DTYPE)
    # Of a log |mean| / deviation, each estimated from the draws.
    weight = 1 / ((1 / ratio**2 + 0.5) / draws)
    center = (weight * at).sum() / weight.sum()
    spread = (weight * (at - center) ** 2).sum()
    found = (weight * (at - center) * ratio.log()).sum() / spread
    return float(found), float(spread**-0.5)


class TestTighterBoundsQuickly:
    """The same as below for one datum, each draw of the gradient a column of the data plate."""

    draws = 20_000
    counts = [4, 16, 64]  # noqa: RUF012

    def gradients(self, kind: str) -> list[dict[str, Tensor]]:
        """By parameter and number of particles, each draw by itself."""
        case, found = CASES["conjugate"](), []
        for count in self.counts:
            chosen = {"gradient": DoublyReparameterized()} if kind == "dreg" else {}
            objective, p = IWAE(count, **chosen), case.start(self.draws)
            weights = objective.weights(case.model, case.guide, (p,), {})
            surrogate = objective.estimate(weights).surrogate
            rows = torch.autograd.grad(surrogate, list(p.values()))
            found.append(dict(zip(p, rows, strict=True)))
        return found

    def exponent(self, found: list[dict[str, Tensor]], name: str) -> tuple[float, float]:
        ratios = [float(row[name].mean().abs() / row[name].std()) for row in found]
        return slope(self.counts, ratios, self.draws)

    def test_signal_to_noise(self) -> None:
        pyro.set_rng_seed(0)
        standard, dreg = self.gradients("standard"), self.gradients("dreg")
        found, error = self.exponent(standard, "loc")
        assert error < 0.06
        assert_near(found, -0.5, error)
        for row, other, count in zip(standard, dreg, self.counts, strict=True):
            one, two = row["loc"], other["loc"]
            error = float(((one.var() + two.var()) / self.draws).sqrt())
            assert_near(float(one.mean()), float(two.mean()), error)
            assert float(two.mean().abs() / two.std()) > count**0.5
        for rising, name in ((dreg, "loc"), (dreg, "log_scale"), (standard, "shift")):
            found, error = self.exponent(rising, name)
            assert found - 4 * error > 0.2


@pytest.mark.slow
class TestTighterBounds:
    """Rainforth et al. 2018 and Tucker et al. 2018, on a linear normal model and encoder."""

    draws = 200
    counts = [4, 16, 64, 256]  # noqa: RUF012

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def measured(cls) -> GradientNoise:
        def model(x: Tensor) -> None:
            shift = pyro.param("shift", torch.tensor(0.2, dtype=DTYPE))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0))
                pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            gain = pyro.param("gain", torch.tensor(0.35, dtype=DTYPE))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(gain * x, 0.8))

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(100, dtype=DTYPE, generator=generator) * 2**0.5
        named: dict[str, Objective] = {}
        for count in (1, *cls.counts):
            named[f"standard {count}"] = IWAE(count)
            named[f"dreg {count}"] = IWAE(count, gradient=DoublyReparameterized())
        named["landing 64"] = IWAE(64, gradient=StickingTheLanding())
        return gradient_noise(model, guide, x, named, cls.draws)

    def ratios(self, measured: GradientNoise, kind: str, side: str) -> list[float]:
        return [measured.side(f"{kind} {count}", side).snr for count in self.counts]

    def test_the_guides_signal_drowns_as_the_bound_tightens(self, measured: Any) -> None:
        found, error = slope(self.counts, self.ratios(measured, "standard", "guide"), self.draws)
        assert error < 0.1
        assert_near(found, -0.5, error)

    def test_not_with_doubly_reparameterized_gradients(self, measured: Any) -> None:
        one, many = (measured.side(f"dreg {count}", "guide").snr for count in (1, 256))
        assert many > one
        found, error = slope(self.counts, self.ratios(measured, "dreg", "guide"), self.draws)
        assert found > 4 * error
        # It is the gradient of the same bound.
        for count in self.counts:
            standard = measured.parameters[f"standard {count}"]["gain"]
            dreg = measured.parameters[f"dreg {count}"]["gain"]
            error = float((standard.standard_error**2 + dreg.standard_error**2).sqrt())
            assert_near(float(dreg.mean), float(standard.mean), error)

    def test_the_models_signal_rises(self, measured: Any) -> None:
        found, error = slope(self.counts, self.ratios(measured, "standard", "model"), self.draws)
        assert found > 4 * error

    def test_a_biased_gradient_is_seen_by_its_mean(self, measured: Any) -> None:
        landing = measured.parameters["landing 64"]["gain"]
        standard = measured.parameters["standard 64"]["gain"]
        error = float((standard.standard_error**2 + landing.standard_error**2).sqrt())
        assert abs(float(landing.mean - standard.mean)) > 20 * error


def test_latents_that_an_objective_sums_out() -> None:
    """The guide need not sample them; what is summed exactly has no noise."""

    def model(x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.4, dtype=DTYPE))
        with pyro.plate("data", len(x)):
            component = pyro.sample("component", dist.Bernoulli(logits=logit))
            pyro.sample("x", dist.Normal(2 * component - 1, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pass

    noise = gradient_noise(model, guide, X, {"exact": Enumerated(ELBO())}, 5)
    row = noise.side("exact", "model")
    # Mean over data of the posterior minus the prior probability of the component.
    expected = float(((0.4 + 2 * X).sigmoid() - torch.tensor(0.4).sigmoid()).mean())
    assert row.mean_norm == pytest.approx(abs(expected))
    assert row.variance == pytest.approx(0, abs=1e-24)
    assert row.cosine == pytest.approx(1)


class Decoder(nn.Module):
    """A small model: two latents, a linear decoder, batch norm as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 3)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.runs: Tensor
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor | None = None, num_data: int | None = None) -> Tensor:
        announce(self, "model")
        self.runs += 1
        batch = (num_data or 1) if x is None else len(x)
        with data_plate(batch, num_data):
            z = pyro.sample("z", dist.Normal(torch.zeros(batch, 2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.map(z) + self.frozen, 1.0).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 2)

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "guide")
        with data_plate(len(x), num_data):
            pyro.sample("z", dist.Normal(self.map(x), 0.5).to_event(1))


def modules() -> tuple[Decoder, Encoder, Tensor]:
    torch.manual_seed(0)
    return Decoder(), Encoder(), torch.randn(5, 3)


OBJECTIVES = {"one": ELBO(), "sampled": ELBO(kl=MonteCarloKL())}


class TestParameters:
    def test_modules(self) -> None:
        model, guide, x = modules()
        noise = gradient_noise(model, guide, x, OBJECTIVES, 10)
        assert noise.objectives == ("one", "sampled")
        shapes = {n: tuple(p.mean.shape) for n, p in noise.parameters["one"].items()}
        assert shapes == {
            "model.map.weight": (3, 2),
            "model.map.bias": (3,),
            "guide.map.weight": (2, 3),
            "guide.map.bias": (2,),
        }
        assert [(r.objective, r.side, r.numbers) for r in noise.sides] == [
            ("one", "model", 9),
            ("one", "guide", 8),
            ("sampled", "model", 9),
            ("sampled", "guide", 8),
        ]
        for row in noise.sides:
            own = [p for p in noise.parameters[row.objective].values() if p.side == row.side]
            assert row.variance == pytest.approx(sum(float(p.variance.sum()) for p in own))
            lengths = [float(p.mean.square().sum()) for p in own]
            assert row.mean_norm == pytest.approx(math.sqrt(sum(lengths)))
            weights = [p.mean.numel() for p in own]
            snr = sum(w * p.snr for w, p in zip(weights, own, strict=True)) / sum(weights)
            assert row.snr == pytest.approx(snr)
            assert 0 < row.cosine <= 1

    def test_against_a_loop_by_hand(self) -> None:
        """The same draws by ``torch.func``-free means: two passes over stacked gradients."""
        model, guide, x = modules()
        noise = gradient_noise(model, guide, x, OBJECTIVES["sampled"], 130, warm_up=0, seed=3)
        (found,) = noise.parameters.values()
        leaves = {n: dict(model.named_parameters())[n] for n in ("map.weight", "map.bias")}
        again = gradient_noise(
            model,
            guide,
            x,
            OBJECTIVES["sampled"],
            130,
            warm_up=0,
            seed=3,
            reference=noise.reference,
        )
        torch.testing.assert_close(
            again.parameters[noise.objectives[0]]["model.map.bias"].variance,
            found["model.map.bias"].variance,
        )
        torch.manual_seed(derive_seed(3, Stream.TRAINING))
        rows = []
        for _ in range(130):
            loss = OBJECTIVES["sampled"].differentiable_loss(model, guide, x, num_data=len(x))
            grads = torch.autograd.grad(-loss / len(x), list(leaves.values()))
            rows.append(torch.cat([g.reshape(-1) for g in grads]).double())
        stacked = torch.stack(rows)
        reference = torch.cat(
            [noise.reference[f"model.{n}"].reshape(-1) for n in ("map.weight", "map.bias")]
        )
        mean = torch.cat([found[f"model.{n}"].mean.reshape(-1) for n in leaves])
        variance = torch.cat([found[f"model.{n}"].variance.reshape(-1) for n in leaves])
        torch.testing.assert_close(mean, stacked.mean(0))
        torch.testing.assert_close(variance, stacked.var(0))
        cosine = torch.cosine_similarity(stacked, reference[None], dim=1).mean()
        assert noise.side(noise.objectives[0], "model").cosine == pytest.approx(float(cosine))

    def test_pyro_params_have_their_sides(self) -> None:
        noise = gradient_noise(*conjugate(), X, ELBO(), 5)
        assert {n: p.side for n, p in noise.parameters[repr(ELBO())].items()} == {
            "loc": "guide",
            "shift": "model",
        }

    def test_shared_parameters(self) -> None:
        def guide(x: Tensor) -> None:
            shift = pyro.param("shift", torch.tensor(0.3, dtype=DTYPE))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x - shift) / 2, 0.5**0.5))

        noise = gradient_noise(conjugate()[0], guide, X, ELBO(), 5)
        (row,) = noise.sides
        assert (row.side, row.numbers) == ("both", 1)

    def test_constrained_parameters_are_differentiated_unconstrained(self) -> None:
        def guide(x: Tensor) -> None:
            scale = pyro.param(
                "scale", torch.tensor(0.5, dtype=DTYPE), constraint=dist.constraints.positive
            )
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=DTYPE), scale))

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0))
                pyro.sample("x", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0), obs=x)

        noise = gradient_noise(model, guide, X, ELBO(), 3)
        # d/dlog s of -KL(N(0, s²) || N(0, 1)) = 1 - s²
        assert float(noise.parameters[repr(ELBO())]["scale"].mean) == pytest.approx(1 - 0.25)

    def test_values_in_pyros_store_are_used(self) -> None:
        pyro.clear_param_store()
        model, guide = conjugate()
        try:
            pyro.param("loc", torch.tensor(2.5, dtype=DTYPE))
            stored = pyro.get_param_store()._params["loc"]
            noise = gradient_noise(model, guide, X, ELBO(), 400)
            mean = float(X.mean()) - 0.3 - 2 * 2.5
            found = noise.parameters[repr(ELBO())]["loc"]
            assert_near(float(found.mean), mean, float(found.standard_error))
            assert list(pyro.get_param_store().keys()) == ["loc"]
            assert pyro.get_param_store()._params["loc"] is stored
            assert stored.grad is None
        finally:
            pyro.clear_param_store()

    def test_a_stale_store_changes_no_module(self) -> None:
        """Pyro's store remembers an earlier module of that name, and would write it into ours."""
        pyro.clear_param_store()
        x = torch.randn(4, 3)

        def pair() -> tuple[Any, Any, nn.Linear]:
            layer = nn.Linear(3, 3)

            def model(x: Tensor) -> None:
                pyro.module("layer", layer)
                with pyro.plate("data", len(x)):
                    pyro.sample("x", dist.Normal(layer(x), 1.0).to_event(1), obs=x)

            return model, lambda x: None, layer

        try:
            old = pair()
            old[0](x)
            model, guide, layer = pair()
            before = layer.weight.detach().clone()
            gradient_noise(model, guide, x, ELBO(), 2)
            torch.testing.assert_close(layer.weight.detach(), before)
        finally:
            pyro.clear_param_store()

    def test_the_pair_of_a_fit(self) -> None:
        model, guide = conjugate()
        done = fit(model, guide, X, epochs=20, compiled=False, seed=0)
        noise = gradient_noise(done.model, done.guide, X, ELBO(100), 50)
        found = noise.parameters[repr(ELBO(100))]
        assert set(found) == {"loc", "shift"}
        at = float(done.parameters["loc"]), float(done.parameters["shift"])
        expected = float(X.mean()) - at[1] - 2 * at[0]
        assert_near(float(found["loc"].mean), expected, float(found["loc"].standard_error))
        assert "loc" not in pyro.get_param_store()

    def test_autoguides(self) -> None:
        model, _ = conjugate()
        guide = AutoNormal(model)
        noise = gradient_noise(model, guide, X, ELBO(), 5)
        sides = {n: p.side for n, p in noise.parameters[repr(ELBO())].items()}
        assert sides["shift"] == "model"
        assert set(sides.values()) == {"model", "guide"}
        pyro.clear_param_store()


class Recording(Objective):
    """An objective with a state of its own: how often it was asked."""

    def __init__(self) -> None:
        super().__init__(1)
        self.calls = 0
        self.baseline = nn.Parameter(torch.tensor(0.1))

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        self.calls += 1
        bound, surrogate = ELBO().estimate(weights, kl_weight)
        return Estimate(bound, surrogate + self.baseline)


class TestNothingIsLeftBehind:
    def test_state_gradients_buffers_and_generator(self) -> None:
        model, guide, x = modules()
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter.grad = torch.ones_like(parameter)
        before = {n: v.clone() for n, v in model.state_dict().items()}
        objective = Recording()
        state = torch.get_rng_state()
        with torch.no_grad():
            gradient_noise(model, guide, x, objective, 5)
            assert not torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        for parameter in [*model.parameters(), *guide.parameters()]:
            assert parameter.grad is not None
            assert bool((parameter.grad == 1).all())
        assert not model.frozen.requires_grad
        assert objective.calls == 0
        assert objective.baseline.grad is None

    def test_after_an_error_too(self) -> None:
        model, guide, x = modules()
        state = torch.get_rng_state()

        class Failing(Recording):
            def estimate(self, weights: LogWeights, kl_weight: Any = 1.0) -> Estimate:
                raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            gradient_noise(model, guide, x, Failing(), 5)
        assert torch.equal(torch.get_rng_state(), state)
        assert float(model.get_buffer("runs")) == 0

    def test_one_seed_one_result(self) -> None:
        model, guide, x = modules()

        def run(seed: int, objectives: Any = OBJECTIVES) -> Any:
            return gradient_noise(model, guide, x, objectives, 70, seed=seed)

        torch.manual_seed(1)
        one = run(0)
        torch.manual_seed(2)
        two, other = run(0), run(1)
        alone = run(0, {"sampled": OBJECTIVES["sampled"]})
        for name, noise in one.parameters["sampled"].items():
            for attribute in ("mean", "variance"):
                value = getattr(noise, attribute)
                assert torch.equal(value, getattr(two.parameters["sampled"][name], attribute))
                assert not torch.equal(value, getattr(other.parameters["sampled"][name], attribute))
                # What an objective is compared with does not change its draws.
                assert torch.equal(value, getattr(alone.parameters["sampled"][name], attribute))
            assert noise.cosine == two.parameters["sampled"][name].cosine

    def test_cost_is_the_time_of_one_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By a clock that only the objective turns: a second a particle."""
        now = 0.0

        def weights(self: ELBO, *args: Any) -> Any:
            nonlocal now
            now += self.num_particles
            return true_weights(self, *args)

        true_weights = ELBO.weights
        monkeypatch.setattr(ELBO, "weights", weights)
        clock = SimpleNamespace(perf_counter=lambda: now)
        monkeypatch.setattr(gradient_draws, "time", clock)
        model, guide, x = modules()
        noise = gradient_noise(model, guide, x, {"one": ELBO(1), "seven": ELBO(7)}, 5)
        assert noise.seconds == {"one": 1.0, "seven": 7.0}
        row = noise.side("seven", "guide")
        assert row.variance_cost == row.variance * 7.0


class TestReference:
    def test_another_objective(self) -> None:
        model, guide, x = modules()
        near = MeanGradient(ELBO(1000), draws=50)
        noise = gradient_noise(model, guide, x, ELBO(), 300, reference=near)
        default = gradient_noise(model, guide, x, ELBO(), 300)
        assert noise.reference_error["guide"] < 0.3 * default.reference_error["guide"]
        for side in ("model", "guide"):
            gap = noise.side(repr(ELBO()), side).cosine - default.side(repr(ELBO()), side).cosine
            assert abs(gap) < 0.05

    def test_the_error_of_the_reference_shrinks_cosines_as_stated(self) -> None:
        """c * cos with c = 1 / sqrt(1 + error²), for a reference that is itself noisy."""
        torch.manual_seed(0)
        signal = torch.randn(4000, dtype=DTYPE)
        ratio = 1.5
        noisy = signal + ratio * torch.randn(4000, dtype=DTYPE)
        found = torch.cosine_similarity(signal, noisy, dim=0)
        assert float(found) == pytest.approx(1 / math.sqrt(1 + ratio**2), rel=0.05)

    def test_a_reference_of_zero_has_no_direction(self) -> None:
        noise = gradient_noise(
            *conjugate(), X, ELBO(), 5, reference={"loc": torch.zeros(()), "shift": torch.ones(())}
        )
        assert math.isnan(noise.side(repr(ELBO()), "guide").cosine)
        assert not math.isnan(noise.side(repr(ELBO()), "model").cosine)
        assert "-" in repr(noise)

    @pytest.mark.parametrize(
        ("reference", "words"),
        [
            ({"loc": torch.ones(())}, "one gradient for each parameter"),
            ({"loc": torch.ones(2), "shift": torch.ones(())}, "one gradient for each parameter"),
            ({"loc": torch.tensor(math.nan), "shift": torch.ones(())}, "NaN or infinite"),
            (ELBO(), r"give MeanGradient\(...\)"),
            ("first", r"give MeanGradient\(...\)"),
        ],
    )
    def test_what_is_none(self, reference: Any, words: str) -> None:
        with unchecked(), pytest.raises(OptionError, match=words):
            gradient_noise(*conjugate(), X, ELBO(), 5, reference=reference)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"of": "elbo"}, "is no objective"),
            ({"draws": 1}, "at least 2"),
            ({"draws": 2.5}, "whole number"),
        ],
    )
    def test_options(self, values: Any, words: str) -> None:
        with unchecked(), pytest.raises(OptionError, match=words):
            MeanGradient(**values)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"draws": 1}, "at least 2"),
            ({"draws": 0}, "at least 1"),
            ({"draws": 2.0}, "whole number"),
            ({"warm_up": -1}, "at least 0"),
            ({"warm_up": True}, "at least 0"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": None}, "whole number"),
            ({"objectives": []}, "at least one"),
            ({"objectives": {}}, "at least one"),
            ({"objectives": "elbo"}, "mapping or sequence"),
            ({"objectives": [ELBO(), ELBO()]}, "same name"),
            ({"objectives": {"stock": pyro.infer.Trace_ELBO()}}, "'stock' is a Trace_ELBO"),
            ({"objectives": [None]}, "is a NoneType"),
            ({"num_data": 10}, "takes no such argument"),
            ({"num_data": 0}, "at least 1"),
        ],
    )
    def test_options(self, options: dict[str, Any], words: str) -> None:
        with unchecked(), pytest.raises(OptionError, match=words):
            gradient_noise(*conjugate(), X, **({"objectives": ELBO()} | options))

    def test_nothing_to_differentiate(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(torch.zeros(len(x), dtype=DTYPE), 1.0), obs=x)

        with pytest.raises(OptionError, match="nor guide has a parameter"):
            gradient_noise(model, lambda x: None, X, ELBO(), 5)

        class Nowhere(Recording):
            def estimate(self, weights: LogWeights, kl_weight: Any = 1.0) -> Estimate:
                return Estimate(torch.zeros(()), torch.zeros(()))

        with pytest.raises(OptionError, match="does not depend on any parameter"):
            gradient_noise(*conjugate(), X, {"nowhere": Nowhere()}, 5)

    def test_data_and_sites(self) -> None:
        model, guide = conjugate()
        with pytest.raises(DataError, match="is not finite"):
            gradient_noise(model, guide, torch.tensor([math.nan]), ELBO(), 5)
        with pytest.raises(SiteMismatchError, match="does not sample"):
            gradient_noise(model, lambda x: None, X, ELBO(), 5)

    def test_a_parameter_that_is_not_finite(self) -> None:
        model, guide, x = modules()
        with torch.no_grad():
            guide.map.weight[0, 0] = math.nan
        with pytest.raises(NonFiniteError, match=r"guide\.map\.weight") as caught:
            gradient_noise(model, guide, x, ELBO(), 5)
        assert caught.value.sites == ("guide.map.weight",)

    def test_a_gradient_that_is_not_finite(self) -> None:
        def model(x: Tensor) -> None:
            root = pyro.param("root", torch.tensor(0.0, dtype=DTYPE))
            with pyro.plate("data", len(x)):
                mean = (root - 1e-300).abs().sqrt() * 0 + root.sqrt()
                pyro.sample("x", dist.Normal(mean.expand(len(x)), 1.0), obs=x)

        with pytest.raises(NonFiniteError, match="the gradient of") as caught:
            gradient_noise(model, lambda x: None, X, {"bad": ELBO()}, 5)
        assert "'bad'" in str(caught.value)
        assert caught.value.sites == ("root",)

    def test_a_density_that_is_not_finite_names_its_site(self) -> None:
        def model(x: Tensor) -> None:
            scale = pyro.param("scale", torch.tensor(1.0, dtype=DTYPE))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Delta(x + 1, log_density=scale * math.inf), obs=x)

        with pytest.raises(NonFiniteError, match=r"site\(s\) \['x'\]"):
            gradient_noise(model, lambda x: None, X, ELBO(), 5)


@pytest.fixture(scope="module")
def noise() -> GradientNoise:
    model, guide, x = modules()
    return gradient_noise(model, guide, x, OBJECTIVES, 20)


class TestRecord:
    def test_rows(self, noise: Any) -> None:
        rows = noise.to_rows()
        assert [r["parameter"] for r in rows if r["objective"] == "one"] == list(
            noise.parameters["one"]
        )
        assert len(rows) == 8
        first = noise.parameters["one"][rows[0]["parameter"]]
        assert rows[0]["variance"] == float(first.variance.sum())
        assert rows[0]["variance_cost"] == rows[0]["variance"] * noise.seconds["one"]
        assert [r["side"] for r in noise.side_rows()] == ["model", "guide"] * 2
        assert {r["numbers"] for r in noise.side_rows()} == {8, 9}

    def test_table(self, noise: Any) -> None:
        text = str(noise)
        lines = text.splitlines()
        assert lines[0] == "GradientNoise"
        assert len({len(line) for line in lines[1:6]}) == 1
        assert lines[2].split()[:3] == ["one", "model", "9"]
        assert "20 draws, seed 0" in lines[-1]

    def test_notebook(self, noise: Any) -> None:
        page = noise._repr_html_()
        assert page.count("<tr>") == 5
        assert "data:image/png;base64," in page

    def test_plot(self, noise: Any) -> None:
        figure = noise.plot()
        assert isinstance(figure, Figure)
        labels = [axes.get_ylabel() for axes in figure.axes]
        assert labels[2] == "cosine to the reference"
        variance, _, cosine, _ = figure.axes
        heights = {y for line in variance.lines for y in np.asarray(line.get_ydata())}
        assert heights == {row.variance for row in noise.sides}
        assert variance.get_yscale() == "log"
        assert cosine.get_yscale() == "linear"

    def test_plot_without_noise(self) -> None:
        """Infinite ratios and zero variances are left out or drawn linearly."""

        def model(x: Tensor) -> None:
            mean = pyro.param("mean", torch.tensor(0.0, dtype=DTYPE))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean.expand(len(x)), 1.0), obs=x)

        noise = gradient_noise(model, lambda x: None, X, ELBO(), 3)
        assert "inf" in str(noise)
        assert noise.plot().axes[0].get_yscale() == "linear"

    def test_an_unknown_row(self, noise: Any) -> None:
        with pytest.raises(KeyError, match="no row"):
            noise.side("one", "both")

    def test_where_it_is_found(self) -> None:
        assert diagnostics.gradient_noise is measure

    def test_progress(self, capsys: Any) -> None:
        model, guide, x = modules()
        gradient_noise(model, guide, x, ELBO(), 5, progress=True)
        assert "45/45" in capsys.readouterr().err


def test_memory_does_not_grow_with_draws() -> None:
    """Rows are folded into running sums in chunks, and the last chunk may be short."""
    model, guide, x = modules()
    sizes: list[int] = []

    class Watching(Recording):
        def estimate(self, weights: LogWeights, kl_weight: Any = 1.0) -> Estimate:
            sizes.append(1)
            return super().estimate(weights, kl_weight)

    reference: dict[str, Tensor] = {
        f"{side}.{name}": torch.ones_like(parameter)
        for side, module in (("model", model), ("guide", guide))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    counts: Callable[[int], int] = lambda draws: draws + 3  # noqa: E731
    for draws in (2, 64, 65, 131):
        sizes.clear()
        noise = gradient_noise(model, guide, x, Watching(), draws, warm_up=3, reference=reference)
        assert len(sizes) == counts(draws)
        assert noise.draws == draws
