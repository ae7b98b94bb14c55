"""Bounds of several particles: exact, by sampling, in order, and under every way to run them.

Two kinds of test of a gradient. The exact ones run the estimator at everything that K particles can
draw and weigh it by its probability: its mean is then a sum, and must agree to rounding. The others
draw, 30,000 times, and ask for four standard errors.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_models.errors import OptionError
from pyro_models.infer import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    DecayingAverage,
    DoublyReparameterized,
    LeaveOneOut,
    MonteCarloKL,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    ThermodynamicELBO,
    WakeAndSleep,
)
from tests.infer.gradient_cases import DTYPE, normal
from tests.infer.multi_sample_cases import (
    CASES,
    DREG,
    SCALE,
    STL,
    Case,
    Draws,
    Follows,
    Function,
    Parameters,
    Preset,
    every_draw,
    expectation,
    followers,
    importance,
    means_of_pairs,
    path_followers,
    renyi,
)
from tests.infer.step_cases import adam, latent_guide, latent_model, make
from tests.infer.test_compiled import assert_same_trajectory
from tests.infer.test_gradients import assert_mean, flat
from tests.unchecked import unchecked

DRAWS = 30_000


@functools.cache
def targets(name: str, particles: int, nodes: int) -> tuple[Case, Draws, Tensor]:
    case = CASES[name]()
    return case, *every_draw(case, particles, nodes)


def gradient(value: Tensor, p: Parameters) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(p.values()), allow_unused=True)
    return {n: torch.zeros_like(p[n]) if g is None else g for n, g in zip(p, found, strict=True)}


def exact(name: str, follows: Follows, nodes: int, kl_weight: float = 1.0) -> dict[str, Tensor]:
    """The gradient that each side's bound has, by its own parameters."""
    case, noise, mass = targets(name, follows.particles, nodes)
    p, weight = case.start(), kl_weight
    model = gradient(expectation(case, p, follows.bound, noise, mass, weight), p)
    bound, score = follows.guide_bound, follows.score
    guide = gradient(expectation(case, p, bound, noise, mass, weight, score), p)
    return {n: SCALE * (model if n in case.model_parameters else guide)[n] for n in p}


def mean_of_estimator(
    name: str, follows: Follows, nodes: int, kl_weight: float = 1.0
) -> dict[str, Tensor]:
    """The mean of an objective's gradient over all that it can draw; its bound is checked too."""
    case, noise, mass = targets(name, follows.particles, nodes)
    p = case.start(len(mass))
    with Preset(noise):
        weights = follows.objective.weights(case.model, case.guide, (p,), {})
    bound, surrogate = follows.objective.estimate(weights, kl_weight)
    with torch.no_grad():
        values = follows.bound(case.log_weights(p, noise))
        probability = mass * case.log_outcome(p, noise).exp()
    torch.testing.assert_close(bound, SCALE * values.sum(), rtol=1e-8, atol=1e-8)
    return {n: (probability * g).sum() for n, g in gradient(surrogate, p).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert max(g.abs().item() for g in expected.values()) > 0.05, "nothing was tested"


EVERY = [(k, name) for k in (2, 3) for name in followers(k)]


@pytest.fixture(autouse=True)
def _stock_store() -> Iterator[None]:
    """Autoguides that no ``Step`` runs keep their parameters in Pyro's own store."""
    yield
    pyro.clear_param_store()


class TestEveryDraw:
    """Bound and mean gradient at fixed K, with nothing left to chance."""

    @pytest.mark.parametrize(("particles", "objective"), EVERY)
    @pytest.mark.parametrize("case", ["discrete", "conjugate", "mixed", "chosen"])
    def test_gradient(self, case: str, particles: int, objective: str) -> None:
        follows = followers(particles)[objective]
        # The formula's sum over a grid is differentiated term by term: any grid will do.
        nodes = 8 if follows.particles < 4 else 4
        found = mean_of_estimator(case, follows, nodes)
        # Two ways to take the logarithm of powers near to 1 differ by digits lost.
        assert_same(
            found, exact(case, follows, nodes), 1e-5 if objective == "Renyi(0.99999)" else 1e-9
        )

    @pytest.mark.parametrize("objective", followers(2))
    @pytest.mark.parametrize("case", ["discrete", "mixed"])
    def test_the_weight_of_the_divergence(self, case: str, objective: str) -> None:
        """The surrogate follows the tempered bound; the bound that is reported is not tempered."""
        follows = followers(2)[objective]
        found = mean_of_estimator(case, follows, 4, kl_weight=0.3)
        expected = exact(case, follows, 4, kl_weight=0.3)
        assert_same(found, expected, 1e-5 if objective == "Renyi(0.99999)" else 1e-9)

    def test_the_two_sides_of_piwae_differ(self) -> None:
        """Or else it would not matter which side follows which bound."""
        follows = followers(2)["PIWAE"]
        case, noise, mass = targets("conjugate", 4, 8)
        p = case.start()
        one, other = (
            gradient(expectation(case, p, f, noise, mass), p)
            for f in (follows.bound, follows.guide_bound)
        )
        for name in p:
            assert (one[name] - other[name]).abs() > 1e-3

    outcomes = torch.tensor([1.0, 0, 0, 1], dtype=DTYPE)

    def logit_gradient(self, objective: Objective, weight: Function) -> tuple[float, float]:
        """At given draws: as it is, and with a weight for each particle's score as it should be."""
        case = CASES["discrete"]()
        p = case.start()
        noise = {"c": self.outcomes[: objective.num_particles].unsqueeze(-1)}
        with Preset(noise):
            weights = objective.weights(case.model, case.guide, (p,), {})
        found = gradient(objective.estimate(weights).surrogate, p)["logit"].item() / SCALE
        log_w = case.log_weights(p, noise).detach()[:, 0]
        scores = noise["c"][:, 0] - p["logit"].detach().sigmoid()
        return found, (scores * weight(log_w)).sum().item()

    def test_the_baseline_of_vimco_particle_by_particle(self) -> None:
        """Another one would leave the mean as it is, and more noise."""

        def weight(log_w: Tensor) -> Tensor:
            values, rest = log_w.tolist(), []
            total = sum(math.exp(v) for v in values)
            for k, value in enumerate(values):
                others = values[:k] + values[k + 1 :]
                without = sum(math.exp(v) for v in others) + math.exp(sum(others) / len(others))
                rest.append(math.log(total / without) - math.exp(value) / total)
            return torch.tensor(rest, dtype=DTYPE)

        for particles in (2, 3, 4):
            found, expected = self.logit_gradient(VIMCO(particles), weight)
            assert found == pytest.approx(expected)

    @pytest.mark.parametrize("objective", [MIWAE(2, 2), PIWAE(2, 2)])
    def test_a_score_is_weighed_by_its_own_bound_alone(self, objective: Objective) -> None:
        """Whichever two of the four particles share one."""

        def weight(pairs: tuple[list[int], ...], log_w: Tensor) -> Tensor:
            result = torch.zeros(4, dtype=DTYPE)
            for pair in pairs:
                result[pair] = (importance(log_w[pair]) - log_w[pair].softmax(0)) / 2
            return result

        matches = []
        for pairs in (([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])):
            found, expected = self.logit_gradient(objective, functools.partial(weight, pairs))
            matches.append(found == pytest.approx(expected))
        assert any(matches)

    @pytest.mark.parametrize("case", ["discrete", "conjugate", "mixed"])
    def test_miwae_has_the_gradient_of_iwae(self, case: str) -> None:
        """Its own, run at every draw, beside the formula of one bound alone."""
        found = mean_of_estimator(case, Follows(MIWAE(2, 2), means_of_pairs), 4)
        # One bound has half the particles, on the same grid.
        assert_same(found, exact(case, Follows(IWAE(2), importance), 4), 1e-9)


class TestDrawn:
    """The same by sampling: the mean of 30,000 draws, a column of the data plate each."""

    @pytest.mark.parametrize("objective", [*followers(2), *path_followers(2)])
    @pytest.mark.parametrize("name", ["discrete", "conjugate", "mixed"])
    def test_bound_and_gradient(self, name: str, objective: str) -> None:
        if objective in path_followers(2) and name != "conjugate":
            pytest.skip("a discrete latent has no path")
        follows = (followers(2) | path_followers(2))[objective]
        # Minimum and maximum have kinks, for which the grid must be fine.
        nodes = 140 if objective in ("Renyi(inf)", "Renyi(-inf)") else 31
        nodes = 11 if follows.particles == 4 else nodes
        case, noise, mass = targets(name, follows.particles, nodes)
        with torch.no_grad():
            bound, square = (
                expectation(case, case.start(), f, noise, mass)
                for f in (follows.bound, lambda log_w: follows.bound(log_w) ** 2)
            )
        p = case.start(DRAWS)
        weights = follows.objective.weights(case.model, case.guide, (p,), {})
        estimate = follows.objective.estimate(weights)
        error = ((square - bound**2) / DRAWS).sqrt()
        assert (estimate.bound / SCALE / DRAWS - bound).abs() < 4 * error
        draws = torch.stack([*gradient(estimate.surrogate, p).values()], 1)
        assert_mean(draws, torch.stack([*exact(name, follows, nodes).values()]))


class TestGlobalLatents:
    """One weight for all data: every outcome in turn, a run each."""

    x = torch.tensor([0.4, 1.3], dtype=DTYPE)
    values = {"mean": 0.8, "prior": 0.3, "logit": -0.4, "a": 0.6, "b": -0.2}  # noqa: RUF012

    def model(self, p: Parameters, local: bool) -> None:
        c = pyro.sample("c", dist.Bernoulli(logits=p["prior"]))
        with pyro.plate("data", 2):
            k = pyro.sample("k", dist.Bernoulli(logits=p["mean"] - c)) if local else 0.0
            pyro.sample("x", dist.Normal(p["mean"] * c + k, 1.0), obs=self.x)

    def guide(self, p: Parameters, local: bool) -> None:
        c = pyro.sample("c", dist.Bernoulli(logits=p["logit"]))
        with pyro.plate("data", 2):
            if local:
                pyro.sample("k", dist.Bernoulli(logits=p["a"] * c + p["b"]))

    def log_terms(self, p: Parameters, c: Tensor, k: Tensor, local: bool) -> tuple[Tensor, Tensor]:
        """log p and log q of each particle."""

        def outcome(value: Tensor, logit: Tensor) -> Tensor:
            return dist.Bernoulli(logits=logit).log_prob(value)

        log_p, log_q = outcome(c, p["prior"]), outcome(c, p["logit"])
        c = c.unsqueeze(-1)
        log_p = log_p + normal(self.x, p["mean"] * c + k * local, 1.0).sum(-1)
        if local:
            log_p = log_p + outcome(k, (p["mean"] - c).expand_as(k)).sum(-1)
            log_q = log_q + outcome(k, (p["a"] * c + p["b"]).expand_as(k)).sum(-1)
        return log_p, log_q

    @pytest.mark.parametrize(
        ("objective", "local"),
        [(n, False) for n in followers(2)] + [("IWAE", True), ("VIMCO", True), ("CIWAE", True)],
    )
    def test_gradient(self, objective: str, local: bool) -> None:
        follows = followers(2)[objective]
        p = {
            n: torch.tensor(v, dtype=DTYPE, requires_grad=True)
            for n, v in self.values.items()
            if local or n not in "ab"
        }
        sums = [{n: torch.zeros((), dtype=DTYPE) for n in p} for _ in range(3)]
        flags = torch.tensor([0.0, 1.0], dtype=DTYPE)
        size = follows.particles * (3 if local else 1)
        for outcome in itertools.product(flags, repeat=size):
            drawn = torch.stack(outcome).reshape(follows.particles, -1)
            c, k = drawn[:, 0], drawn[:, 1:] if local else torch.zeros(1, dtype=DTYPE)

            def mean(bound: Function, c: Tensor = c, k: Tensor = k) -> Tensor:
                log_p, log_q = self.log_terms(p, c, k, local)
                return log_q.sum().exp() * bound(log_p - log_q)

            with torch.no_grad():
                probability = mean(lambda log_w: torch.ones(()))
                expected_bound = mean(follows.bound) / probability
            with Preset({"c": c, "k": k}):
                weights = follows.objective.weights(self.model, self.guide, (p, local), {})
            bound, surrogate = follows.objective.estimate(weights)
            torch.testing.assert_close(bound, expected_bound, rtol=1e-6, atol=1e-6)
            rows = (
                gradient(probability * surrogate, p),
                gradient(mean(follows.bound), p),
                gradient(mean(follows.guide_bound), p),
            )
            for total, row in zip(sums, rows, strict=True):
                for name, value in row.items():
                    total[name] += value
        found, model, guide = sums
        expected = {n: (model if n in ("mean", "prior") else guide)[n] for n in p}
        assert_same(found, expected, 1e-5 if objective == "Renyi(0.99999)" else 1e-9)


class TestBounds:
    def estimates(self, case: Case, objective: Objective, runs: int = 20) -> Tensor:
        p = case.start(500)
        with torch.no_grad():
            found = [
                objective.estimate(objective.weights(case.model, case.guide, (p,), {})).bound
                for _ in range(runs)
            ]
        return torch.stack(found) / SCALE / 500

    def log_evidence(self) -> float:
        """x ~ N(shift, 1 + noise²)."""
        p = CASES["conjugate"]().start()
        scale = (1 + (2 * p["log_noise"]).exp()).sqrt()
        return normal(0.9, p["shift"], scale).item()

    def test_grows_with_particles_up_to_the_evidence(self) -> None:
        case = CASES["conjugate"]()
        means, errors = [], []
        for particles in (1, 2, 5, 20, 100):
            draws = self.estimates(case, IWAE(particles))
            means.append(draws.mean().item())
            errors.append(draws.std().item() / math.sqrt(len(draws)))
        for (low, high), both in zip(
            itertools.pairwise(means), itertools.pairwise(errors), strict=True
        ):
            assert high - low > 4 * math.hypot(*both)
        for mean, error in zip(means, errors, strict=True):
            assert mean < self.log_evidence() + 4 * error
        assert self.log_evidence() - means[-1] < 0.02
        _, noise, mass = targets("conjugate", 1, 60)
        elbo = expectation(case, case.start(), renyi(1.0), noise, mass).item()
        assert abs(means[0] - elbo) < 4 * errors[0]

    @pytest.mark.parametrize("name", ["conjugate", "discrete"])
    def test_one_particle_is_the_elbo(self, name: str) -> None:
        case = CASES[name]()
        objectives = [IWAE(1), RenyiELBO(-2.0, 1), RenyiELBO(1.0, 1), MIWAE(1, 1), CIWAE(0.4, 1)]
        found = []
        for objective in [ELBO(kl=MonteCarloKL()), *objectives]:
            pyro.set_rng_seed(1)
            p = case.start(50)
            weights = objective.weights(case.model, case.guide, (p,), {})
            bound, surrogate = objective.estimate(weights)
            found.append((bound, flat(gradient(surrogate, p).values())))
        for bound, row in found[1:]:
            torch.testing.assert_close(bound, found[0][0])
            if name == "conjugate":  # by the score, only the mean is the same
                torch.testing.assert_close(row, found[0][1])

    def test_falls_with_the_order_on_the_same_draws(self) -> None:
        case = CASES["mixed"]()
        orders = [-math.inf, -20.0, -1.0, 0.0, 0.5, 1 - 1e-3, 1 - 1e-5, 1.0, 1 + 1e-5, 1.2, 2.0]
        orders += [30.0, math.inf]
        found = []
        for order in orders:
            pyro.set_rng_seed(1)
            found.append(self.estimates(case, RenyiELBO(order, 7), runs=1).item())
        assert all(a > b for a, b in itertools.pairwise(found))
        assert found[6] - found[8] == pytest.approx(0, abs=1e-3)

    def test_extreme_orders_are_extreme_weights(self) -> None:
        case = CASES["conjugate"]()
        p = case.start(9)
        weights = RenyiELBO(math.inf, 5).weights(case.model, case.guide, (p,), {})
        log_w = weights.local.detach()
        for order, expected in ((math.inf, log_w.min(0)), (-math.inf, log_w.max(0))):
            bound = RenyiELBO(order, 5).estimate(weights).bound
            torch.testing.assert_close(bound, SCALE * expected.values.sum())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("order", [1e15, 1e19, 1e30, 1e37, 1e39, 1e300, math.inf])
    def test_orders_that_no_product_can_have(self, order: float, dtype: torch.dtype) -> None:
        log_w = torch.tensor([[-900.0, 3.0], [-905.0, 0.0], [-901.0, 2e4]], dtype=dtype)
        for sign, expected in ((1, log_w.amin(0)), (-1, log_w.amax(0))):
            given = log_w.clone().requires_grad_()
            value = RenyiELBO(sign * order, 3).value(given)
            torch.testing.assert_close(value, expected)
            (found,) = torch.autograd.grad(value.sum(), given)
            torch.testing.assert_close(found, (log_w == expected).to(dtype))

    @pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
    def test_no_jump_between_formulas_near_order_one(self, spread: float) -> None:
        log_w = torch.linspace(-1, 1, 8, dtype=torch.float64).square().unsqueeze(-1) * spread - 80
        orders = [1 + s * e for s in (-1, 1) for e in (0.99e-4, 1.01e-4, 1e-6, 1e-2)]
        for order in orders:
            power = 1 - order
            centred = log_w - log_w.mean(0)
            expected = log_w.mean(0) + (centred * power).expm1().mean(0).log1p() / power
            value = RenyiELBO(order, 8).value(log_w)
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-5)

    @pytest.mark.parametrize("name", [*followers(2), *path_followers(2)])
    def test_an_exact_guide(self, name: str) -> None:
        """Every weight is p(x), so every bound is log p(x); and paths carry no noise."""
        follows = (followers(2) | path_followers(2))[name]
        case = CASES["conjugate"]()
        p = case.start(40)
        with torch.no_grad():
            precision = 1 + (-2 * p["log_noise"]).exp()
            p["log_scale"].copy_(-precision.log() / 2)
            p["loc"].copy_((0.9 - p["shift"]) * (-2 * p["log_noise"]).exp() / precision)
        weights = follows.objective.weights(case.model, case.guide, (p,), {})
        bound, surrogate = follows.objective.estimate(weights)
        assert bound.item() / SCALE / 40 == pytest.approx(self.log_evidence(), abs=1e-5)
        found = gradient(surrogate, p)
        if name in path_followers(2):
            for part in ("loc", "log_scale"):
                torch.testing.assert_close(found[part], torch.zeros_like(found[part]))


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "Renyi 0.5": lambda: RenyiELBO(0.5, 3),
    "Renyi 1": lambda: RenyiELBO(1.0, 3),
    "VR-max": lambda: RenyiELBO(-math.inf, 3),
    "IWAE": lambda: IWAE(3),
    "STL": lambda: IWAE(3, STL),
    "DReG": lambda: IWAE(3, DREG),
    "MIWAE": lambda: MIWAE(2, 2),
    "PIWAE": lambda: PIWAE(2, 2),
    "CIWAE": lambda: CIWAE(0.5, 3),
    "VIMCO": lambda: VIMCO(3),
    "score, leave one out": lambda: ScoreFunction(3, LeaveOneOut()),
    "score, decaying": lambda: ScoreFunction(3, DecayingAverage()),
    "wake": lambda: ReweightedWakeSleep(3),
    "wake and sleep": lambda: ReweightedWakeSleep(3, WakeAndSleep(0.5)),
    "TVO": lambda: ThermodynamicELBO(3),
}
DATA = 2 * torch.linspace(-2, 2, 40)


@pytest.mark.parametrize("name", OBJECTIVES)
class TestEveryObjective:
    """What all of them can do."""

    def test_stock_svi(self, name: str) -> None:
        optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 0.05})
        svi = SVI(latent_model, latent_guide, optimizer, OBJECTIVES[name]())
        losses = [svi.step(DATA) for _ in range(40)]
        pyro.clear_param_store()
        assert all(math.isfinite(loss) for loss in losses)
        assert sum(losses[-5:]) < sum(losses[:5]) - 50

    def test_called_as_a_module(self, name: str) -> None:
        model, guide = nn.Module(), nn.Module()
        model.forward, guide.forward = latent_model, latent_guide
        loss = OBJECTIVES[name]()(model, guide)(DATA)
        assert loss.requires_grad
        assert loss.shape == ()
        pyro.clear_param_store()

    def test_one_instance_many_pairs(self, name: str) -> None:
        """Row 7 of TRAPS: nothing is remembered of the plates of the last pair."""
        objective = OBJECTIVES[name]()
        row, square = DATA[:6], DATA[:12].reshape(2, 6)

        def program(two: bool, guide: bool) -> Callable[[Tensor], None]:
            def run(x: Tensor) -> None:
                outer: Any = pyro.plate("b", 2, dim=-2) if two else poutine.scale(scale=1.0)
                with outer, pyro.plate("data", 6, dim=-1):
                    z = pyro.sample("z", dist.Normal(0.4, 0.8) if guide else dist.Normal(0.0, 1.0))
                    if not guide:
                        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

            return run

        for two in (False, True, False):
            pair = program(two, False), program(two, True)
            assert math.isfinite(objective.loss(*pair, square if two else row))
        fresh = OBJECTIVES[name]()
        for one in (objective, fresh):
            pyro.set_rng_seed(5)
            last = one.loss(program(True, False), program(True, True), square)
        pyro.set_rng_seed(5)
        assert objective.loss(program(True, False), program(True, True), square) == last


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("DReG", "VIMCO") else [pytest.mark.slow])
        for name in OBJECTIVES
    ],
)
@inductor.patch(fallback_random=True)
def test_compiled_as_eager(name: str) -> None:
    made = [OBJECTIVES[name]() for _ in range(2)]
    steps = [
        make(latent_model, latent_guide, adam, objective, compiled)
        for objective, compiled in zip(made, (False, True), strict=True)
    ]
    losses = []
    for step in steps:
        pyro.set_rng_seed(2)
        losses.append(torch.stack([step(DATA) for _ in range(20)]))
    assert_same_trajectory(steps[0], steps[1])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def scaled(scale: Any) -> Any:
    """A model and a guide under ``poutine.scale``, the guide far from exact."""

    def program(x: Tensor, guide: bool, scale: Any) -> None:
        with pyro.plate("data", 9, subsample=torch.arange(len(x))), poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(-0.4, 0.8) if guide else dist.Normal(0.0, 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return [functools.partial(program, guide=flag, scale=scale) for flag in (False, True)]


class TestTensorScales:
    """A scale on all sites is outside the logarithm, whether it is a number or a tensor."""

    x = torch.tensor([0.3, -1.2, 2.0])

    def loss(self, objective: Objective, scale: Any) -> float:
        pyro.set_rng_seed(4)
        return objective.loss(*scaled(scale), self.x)

    @pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "wake and sleep"])
    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_one_number(self, name: str, shape: tuple[int, ...]) -> None:
        plain = self.loss(OBJECTIVES[name](), 1.0)
        found = self.loss(OBJECTIVES[name](), torch.full(shape, 2.3))
        assert found == pytest.approx(2.3 * plain, rel=1e-5)

    @pytest.mark.parametrize("name", ["IWAE", "DReG", "STL"])
    def test_gradients_are_scaled(self, name: str) -> None:
        found = []
        for scale in (2.3, torch.tensor(2.3)):
            loc = torch.tensor(-0.4, requires_grad=True)

            def program(x: Tensor, guide: bool, loc: Tensor = loc, scale: Any = scale) -> None:
                with poutine.scale(scale=scale), pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(loc, 0.8) if guide else dist.Normal(0.0, 1.0))
                    if not guide:
                        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

            pair = [functools.partial(program, guide=flag) for flag in (False, True)]
            pyro.set_rng_seed(4)
            loss = OBJECTIVES[name]().differentiable_loss(*pair, self.x)
            found.append(torch.autograd.grad(loss, loc)[0])
        torch.testing.assert_close(*found)

    def test_one_graph_for_scales_that_agree_and_differ(self) -> None:
        scales: list[Any] = []

        def model(x: Tensor) -> None:
            scaled(scales[0])[0](x)

        def guide(x: Tensor) -> None:
            scaled(scales[1])[1](x)

        def loss(*given: Tensor) -> Tensor:
            scales[:] = given
            return IWAE(3).differentiable_loss(model, guide, self.x)

        def by_numbers(*given: float) -> float:
            scales[:] = given
            pyro.set_rng_seed(4)
            return IWAE(3).loss(model, guide, self.x)

        by_numbers(1.0, 1.0)  # finds the depth of plates by a run, which must not be in the graph
        with pyro.validation_enabled(False):
            graph = make_fx(loss)(torch.tensor(2.0), torch.tensor(2.0))
        for outer, inner in ((2.0, 2.0), (0.7, 0.7), (2.0, 0.7)):
            pyro.set_rng_seed(4)
            found = graph(torch.tensor(outer), torch.tensor(inner))
            assert found.item() == pytest.approx(by_numbers(outer, inner), rel=1e-5)
        assert by_numbers(2.0, 0.7) != pytest.approx(2.0 * by_numbers(1.0, 1.0), rel=0.01)

    def test_a_number_beside_a_tensor(self) -> None:
        weights = [
            IWAE(3).weights(scaled(outer)[0], scaled(torch.tensor(2.0))[1], (self.x,), {})
            for outer in (2.0, 1.0)
        ]
        assert [float(w.common_scale) for w in weights] == [2.0, 1.0]

    def test_latents_of_which_the_doubly_reparameterised_gradient_knows_too_little(self) -> None:
        def program(x: Tensor, guide: bool) -> None:
            with poutine.scale(scale=torch.tensor(2.0)), pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                w = pyro.sample("w", dist.Normal(z, 1.0))
                if not guide:
                    pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        pair = [functools.partial(program, guide=flag) for flag in (False, True)]
        with pytest.raises(OptionError, match=r"'z' has a scale that is a tensor.*by a number"):
            IWAE(2, DREG).loss(*pair, self.x)
        assert math.isfinite(IWAE(2, STL).loss(*pair, self.x))

    @pytest.mark.parametrize("name", [n for n in OBJECTIVES if not n.startswith("score")])
    def test_a_scale_for_each_datum_is_refused(self, name: str) -> None:
        if name == "wake and sleep":
            pytest.skip("it wants data that are as many as the plate has")
        with pytest.raises(OptionError, match=r"'z' has a scale.* shape \(3,\).*ELBO\(\)"):
            self.loss(OBJECTIVES[name](), torch.tensor([1.0, 2.0, 3.0]))

    def test_where_terms_add_up_it_is_not(self) -> None:
        scale = torch.tensor([1.0, 2.0, 3.0])
        # The guide's divergence from the prior, and the expected log-likelihood under it.
        kl = -math.log(0.8) + (0.64 + 0.16 - 1) / 2
        fit = normal(self.x, -0.4, 1.0) - 0.32
        exact = -3 * (scale * (fit - kl)).sum().item()
        assert self.loss(ELBO(20_000), scale) == pytest.approx(exact, rel=0.02)
        assert math.isfinite(self.loss(IWAE(1), scale))


class TestOtherPlates:
    """A minibatch of a plate beside the data plate counts more inside the logarithm: no bound."""

    x = torch.linspace(-1.0, 2.0, 3)

    def pixels(self, size: int, subsample: int, guide: bool) -> None:
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.2, 1.2) if guide else dist.Normal(0.0, 1.0))
            if not guide:
                with pyro.plate("pixels", size, subsample=torch.arange(subsample), dim=-2):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=self.x.expand(subsample, 3))

    def crossing(self, size: int, subsample: int, guide: bool) -> None:
        t = pyro.sample("t", dist.Normal(0.0, 0.9 if guide else 1.0))
        if not guide:
            with pyro.plate("first", size, subsample=torch.arange(subsample)):
                pyro.sample("x", dist.Normal(t, 1.0), obs=self.x[:subsample])
            with pyro.plate("second", 3):
                pyro.sample("y", dist.Normal(t, 1.0), obs=self.x)

    @pytest.mark.parametrize(
        "name", [n for n in OBJECTIVES if not n.startswith("score") and n != "wake and sleep"]
    )
    @pytest.mark.parametrize(("kind", "plate"), [("pixels", "pixels"), ("crossing", "first")])
    def test_they_are_named(self, name: str, kind: str, plate: str) -> None:
        objective, program = OBJECTIVES[name](), getattr(self, kind)
        part = [functools.partial(program, 8, 2, flag) for flag in (False, True)]
        with pytest.raises(OptionError, match=f"'x' sees a part of plate '{plate}'.*ELBO"):
            objective.loss(*part)
        whole = [functools.partial(program, 2, 2, flag) for flag in (False, True)]
        assert math.isfinite(objective.loss(*whole))

    @pytest.mark.parametrize("objective", [ELBO(3), IWAE(1)], ids=repr)
    def test_where_terms_add_up_they_are_welcome(self, objective: Objective) -> None:
        for program in (self.pixels, self.crossing):
            pair = [functools.partial(program, 8, 2, flag) for flag in (False, True)]
            assert math.isfinite(objective.loss(*pair))

    def groups(self, size: int, guide: bool, scale: Any = 1.0) -> None:
        """All sites see the same part, which then counts outside; a named value may lie outside."""
        if not guide:
            pyro.deterministic("name", torch.ones(()))
        groups = pyro.plate("groups", size, subsample=torch.arange(2), dim=-2)
        with poutine.scale(scale=scale), groups, pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.2, 1.2) if guide else dist.Normal(0.0, 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.x.expand(2, 3))

    def test_a_part_that_all_sites_see_counts_outside(self) -> None:
        found = []
        for size in (2, 10):
            pyro.set_rng_seed(1)
            pair = [functools.partial(self.groups, size, flag) for flag in (False, True)]
            found.append(IWAE(4).loss(*pair))
        assert found[1] == pytest.approx(5 * found[0], rel=1e-5)

    @pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
    def test_unless_another_scale_may_keep_it_inside(self, scale: Any) -> None:
        model = functools.partial(self.groups, 10, False, scale)
        with pytest.raises(OptionError, match="part of plate 'groups'"):
            IWAE(4).loss(model, functools.partial(self.groups, 10, True))


class TestErrors:
    @pytest.mark.parametrize(
        ("make_objective", "words"),
        [
            (lambda: VIMCO(1), "at least 2"),
            (lambda: IWAE(0), "at least 1"),
            (lambda: RenyiELBO(0.5, 0), "at least 1"),
            (lambda: RenyiELBO(math.nan, 2), "alpha is NaN"),
            (lambda: MIWAE(0, 2), "num_bounds is 0"),
            (lambda: PIWAE(2, 0), "num_particles is 0"),
            (lambda: CIWAE(1.5, 2), "beta is 1.5"),
            (lambda: CIWAE(math.nan, 2), "beta is nan"),
        ],
    )
    def test_options(self, make_objective: Callable[[], Objective], words: str) -> None:
        with pytest.raises(OptionError, match=words):
            make_objective()

    def test_a_gradient_of_another_kind(self) -> None:
        with unchecked(), pytest.raises(OptionError, match="StickingTheLanding"):
            IWAE(2, gradient="stl")  # type: ignore[arg-type]

    def model(self, x: Tensor, size: int) -> None:
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(t, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor, size: int) -> None:
        pyro.sample("t", dist.Normal(0.2, 0.5))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(0.5 * x, 0.5))

    @pytest.mark.parametrize("name", [n for n in OBJECTIVES if not n.startswith("score")])
    def test_one_weight_for_all_data_and_a_minibatch(self, name: str) -> None:
        """It is the site outside the plate that is named; all data at once are welcome."""
        objective = OBJECTIVES[name]()
        if name != "wake and sleep":  # whose guide would see the observed argument
            assert math.isfinite(objective.loss(self.model, self.guide, DATA[:5], 5))
        with pytest.raises(OptionError, match="site 't' lies outside the data plate"):
            objective.loss(self.model, self.guide, DATA[:5], 50)

    def test_one_particle_has_no_mean_of_weights(self) -> None:
        assert math.isfinite(IWAE(1).loss(self.model, self.guide, DATA[:5], 50))

    @pytest.mark.parametrize("name", ["IWAE", "DReG", "STL", "PIWAE", "VIMCO", "VR-max"])
    def test_a_fixed_parameter_is_no_latent(self, name: str) -> None:
        """AutoDelta's global parameter is the same in all particles: weights stay one a datum."""
        guide = AutoGuideList(self.model)
        guide.append(AutoDelta(poutine.block(self.model, hide=["z"])))
        guide.append(AutoNormal(poutine.block(self.model, hide=["t"])))
        objective = OBJECTIVES[name]()
        weights = objective.weights(self.model, guide, (DATA[:5], 50), {})
        assert not weights.is_joint
        assert weights.importance().shape == (objective.num_particles, 5)
        objective.estimate(weights).surrogate.backward()
        assert all(p.grad is not None for p in guide.parameters())


def test_a_tensor_on_the_likelihood_leaves_the_latents_as_they_are() -> None:
    """As a number does: their KL stays closed, and DReG has its formula."""

    def pair(scale: Any) -> tuple[Any, Any]:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
            with poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(z + w, 1.0), obs=torch.tensor(0.7))

        def guide() -> None:
            pyro.sample("z", dist.Normal(torch.tensor(0.2), 0.8))
            pyro.sample("w", dist.Normal(torch.tensor(0.1), 0.9))

        return model, guide

    assert ELBO().terms(*pair(torch.tensor(0.7))).analytic == ("z", "w")
    losses = []
    for scale in (0.7, torch.tensor(0.7)):
        pyro.set_rng_seed(0)
        losses.append(IWAE(4, DoublyReparameterized()).loss(*pair(scale)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
