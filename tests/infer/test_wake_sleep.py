"""Reweighted wake-sleep: each phase's mean gradient by enumeration of all that can be drawn."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_models import pairs
from pyro_models.errors import OptionError
from pyro_models.infer import (
    IWAE,
    ReweightedWakeSleep,
    SleepPhase,
    Step,
    WakeAndSleep,
    WakePhase,
)
from tests.infer.gradient_cases import DTYPE
from tests.infer.multi_sample_cases import CASES, SCALE, Parameters, Preset, every_draw, importance
from tests.infer.test_gradients import assert_mean
from tests.infer.test_multi_sample import expectation, gradient
from tests.unchecked import unchecked

UNTYPED: Any = "wake"
ADAM = partial(torch.optim.Adam, lr=0.02)


def mean_gradient(
    name: str, objective: ReweightedWakeSleep, nodes: int, kl_weight: float
) -> dict[str, Tensor]:
    case = CASES[name]()
    noise, mass = every_draw(case, objective.num_particles, nodes)
    p = case.start(len(mass))
    with Preset(noise):
        weights = objective.weights(case.model, case.guide, (p,), {})
    bound, surrogate = objective.estimate(weights, kl_weight)
    with torch.no_grad():
        probability = mass * case.log_outcome(p, noise).exp()
        torch.testing.assert_close(bound, SCALE * importance(case.log_weights(p, noise)).sum())
    return {n: (probability * g).sum() for n, g in gradient(surrogate, p).items()}


@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize("name", ["discrete", "conjugate", "mixed"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_awake_both_sides_have_their_gradients(name: str, particles: int, kl_weight: float) -> None:
    """The model IWAE's, draws being constants; the guide that of its log-density, weighted."""
    found = mean_gradient(name, ReweightedWakeSleep(particles), nodes := 6, kl_weight)
    case = CASES[name]()
    noise, mass = every_draw(case, particles, nodes)
    p = case.start()
    bound = gradient(expectation(case, p, importance, noise, mass, kl_weight), p)
    with torch.no_grad():
        z = case.path(p, noise)
        weights = case.log_weights(p, noise, kl_weight).softmax(0)
        probability = mass * case.log_outcome(p, noise).exp()
    log_q = torch.stack([*case.log_q(p, z).values()]).sum(0)
    guide = gradient((probability * (weights * log_q).sum(0)).sum(), p)
    for parameter in case.model_parameters:
        torch.testing.assert_close(found[parameter], SCALE * bound[parameter])
    for parameter in case.guide_parameters:
        torch.testing.assert_close(found[parameter], SCALE * guide[parameter])
        assert abs(guide[parameter].item()) > 1e-3


class TestSleep:
    """k ~ Bernoulli(prior), x ~ N(mean_k, 1): the guide's logit at x is a + b x."""

    x = torch.tensor([0.3, -1.0, 2.0], dtype=DTYPE)

    def parameters(self) -> Parameters:
        values = {"prior": 0.4, "mean": 1.3, "a": -0.2, "b": 0.5}
        return {n: torch.tensor(v, dtype=DTYPE, requires_grad=True) for n, v in values.items()}

    def model(self, p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", 12, subsample=torch.arange(len(x))):
            k = pyro.sample("k", dist.Bernoulli(logits=p["prior"]))
            pyro.sample("x", dist.Normal(p["mean"] * k, 1.0), obs=x)

    def guide(self, p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", 12, subsample=torch.arange(len(x))):
            pyro.sample("k", dist.Bernoulli(logits=p["a"] + p["b"] * x))

    def exact(self, p: Parameters) -> Tensor:
        """12 E over the joint of log q(k | x), by quadrature of x."""
        grid = torch.linspace(-8, 10, 4001, dtype=DTYPE)
        total = torch.zeros((), dtype=DTYPE)
        for k in (0.0, 1.0):
            density = dist.Normal(p["mean"].detach() * k, 1.0).log_prob(grid).exp()
            prior = dist.Bernoulli(logits=p["prior"].detach()).log_prob(torch.tensor(k)).exp()
            log_q = dist.Bernoulli(logits=p["a"] + p["b"] * grid).log_prob(torch.tensor(k))
            total = total + prior * torch.trapezoid(density * log_q, grid)
        return 12 * total

    @pytest.mark.parametrize("wake", [0.0, 0.3])
    def test_the_guide_learns_from_the_joint(self, wake: float) -> None:
        objective = ReweightedWakeSleep(2, WakeAndSleep(wake))
        awake = ReweightedWakeSleep(2, WakePhase())
        p = self.parameters()
        expected = gradient(self.exact(p), p)
        x = self.x.repeat(500)  # many dreams a run; the scale N / B makes up for it
        rows = []
        for _ in range(60):
            total = gradient(self.surrogate(objective, p, x), p)
            alone = gradient(self.surrogate(awake, p, x), p)
            rows.append([(total[n] - wake * alone[n]).item() for n in ("a", "b")])
        wanted = torch.stack([(1 - wake) * expected[n] for n in ("a", "b")])
        assert_mean(torch.tensor(rows, dtype=DTYPE), wanted)

    def surrogate(self, objective: ReweightedWakeSleep, p: Parameters, x: Tensor) -> Tensor:
        return objective.estimate(objective.weights(self.model, self.guide, (p, x), {})).surrogate

    def test_the_model_learns_nothing_asleep(self) -> None:
        p = self.parameters()
        torch.manual_seed(0)
        asleep = gradient(self.surrogate(ReweightedWakeSleep(3, SleepPhase()), p, self.x), p)
        torch.manual_seed(0)
        awake = gradient(self.surrogate(ReweightedWakeSleep(3), p, self.x), p)
        assert asleep["prior"] == awake["prior"]
        assert asleep["mean"] == awake["mean"]

    def test_what_is_observed_must_be_an_argument(self) -> None:
        def model(p: Parameters, x: Tensor) -> None:
            self.model(p, 2 * x)

        with pytest.raises(OptionError, match="observes at site 'x' is none of its arguments"):
            ReweightedWakeSleep(2, SleepPhase()).weights(
                model, self.guide, (self.parameters(), self.x), {}
            )

    def test_a_factor_cannot_be_dreamt(self) -> None:
        def model(p: Parameters, x: Tensor) -> None:
            self.model(p, x)
            pyro.factor("penalty", -p["mean"].square())

        with pytest.raises(OptionError, match="'penalty'"):
            ReweightedWakeSleep(2, SleepPhase()).weights(
                model, self.guide, (self.parameters(), self.x), {}
            )

    def test_a_transpose_is_not_taken_for_what_was_observed(self) -> None:
        y = torch.randn(3, 3, dtype=DTYPE)

        def model(y: Tensor) -> None:
            with pyro.plate("data", 3):
                k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4, dtype=DTYPE)))
                pyro.sample("y", dist.Normal(k.unsqueeze(-1), 1.0).to_event(1), obs=y.T)

        def guide(y: Tensor) -> None:
            with pyro.plate("data", 3):
                pyro.sample("k", dist.Bernoulli(torch.tensor(0.4, dtype=DTYPE)))

        with pytest.raises(OptionError, match="none of its arguments"):
            ReweightedWakeSleep(2, SleepPhase()).weights(model, guide, (y,), {})


@pytest.mark.parametrize("phase", [WakePhase(), SleepPhase(), WakeAndSleep()])
@pytest.mark.parametrize("name", ["vae", "belief_network"])
def test_ready_pairs_learn_by_it(name: str, phase: Any) -> None:
    torch.manual_seed(0)
    x = (torch.rand(60, 6) < torch.linspace(0.1, 0.9, 6)).float()
    pair = pairs.build(name, x, latent_dim=3)
    objective = ReweightedWakeSleep(4, phase)
    step = Step(pair.model, pair.guide, objective, ADAM, compiled=False)
    with torch.no_grad():
        # Away from the start that the data have given it, so that there is something to learn.
        for parameter in pair.model.parameters():
            parameter.add_(0.5)

    def bound() -> float:
        return IWAE(200).loss(pair.model, pair.guide, x) / len(x)

    before = bound()
    for _ in range(80):
        step(x)
    assert bound() < before - 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReweightedWakeSleep(1), "at least 2"),
        (lambda: WakeAndSleep(1.5), "between 0 and 1"),
        (lambda: ReweightedWakeSleep(2, UNTYPED), "guide_phase is 'wake'"),
    ],
)
def test_options(make: Any, message: str) -> None:
    with unchecked(), pytest.raises(OptionError, match=message):
        make()
