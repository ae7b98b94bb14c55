"""The thermodynamic objective: against its integral and its gradient by enumeration."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer import (
    ELBO,
    IWAE,
    LeftRule,
    MonteCarloKL,
    RightRule,
    ThermodynamicELBO,
    TrapezoidRule,
)
from tests.infer.gradient_cases import CASES as ELBO_CASES
from tests.infer.gradient_cases import DTYPE, bernoulli, normal
from tests.infer.multi_sample_cases import CASES, SCALE, Case, Parameters, Preset, importance
from tests.infer.test_gradients import assert_mean, exact_gradient, flat
from tests.infer.test_multi_sample import gradient
from tests.unchecked import unchecked

RULES: list[Any] = [LeftRule(), RightRule(), TrapezoidRule()]
PARTICLES, RUNS = 4000, 60


def outcomes(name: str) -> dict[str, Tensor]:
    """All values of the latents: of the discrete ones, and on a fine grid of the normal ones."""
    flags, grid = torch.tensor([0.0, 1.0], dtype=DTYPE), torch.linspace(-7, 8, 300, dtype=DTYPE)
    if name == "discrete":
        return {"c": flags}
    if name == "conjugate":
        return {"z": grid}
    return {"c": flags.repeat_interleave(len(grid)), "z": grid.repeat(2)}


def both(case: Case, p: Parameters, kl_weight: float, z: dict[str, Tensor]) -> Any:
    """log w and log q at values of the latents."""
    log_q = torch.stack([*case.log_q(p, z).values()]).sum(0)
    return case.log_likelihood(p, z) + kl_weight * (case.log_prior(p, z) - log_q), log_q


def rule_sum(objective: ThermodynamicELBO, log_w: Tensor, log_q: Tensor) -> Tensor:
    """The rule's sum, its expectations over all rows, of which log q is the density."""
    values = [((log_q + b * log_w).softmax(0) * log_w).sum() for b in objective.betas]
    widths = [b - a for a, b in zip(objective.betas, objective.betas[1:], strict=False)]
    ends = {
        "LeftRule": values[:-1],
        "RightRule": values[1:],
        "TrapezoidRule": [(a + b) / 2 for a, b in pairwise(values)],
    }[type(objective.rule).__name__]
    return torch.stack([w * v for w, v in zip(widths, ends, strict=True)]).sum()


def exact(
    case: Case,
    p: Parameters,
    objective: ThermodynamicELBO,
    kl_weight: float = 1.0,
    name: str = "discrete",
) -> Tensor:
    """The objective with exact expectations, for one datum."""
    return rule_sum(objective, *both(case, p, kl_weight, outcomes(name)))


def log_p(case: Case, p: Parameters) -> Tensor:
    log_w, log_q = both(case, p, 1.0, outcomes("discrete"))
    return (log_w + log_q).logsumexp(0)


def draws(
    objective: ThermodynamicELBO, case: Case, kl_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Bounds and gradients for one datum, a row a run."""
    p = case.start()
    bounds, gradients = [], []
    for _ in range(RUNS):
        weights = objective.weights(case.model, case.guide, (p,), {})
        bound, surrogate = objective.estimate(weights, kl_weight)
        bounds.append(bound / SCALE)
        gradients.append(torch.stack([*gradient(surrogate, p).values()]) / SCALE)
    return torch.stack(bounds), torch.stack(gradients)


@pytest.mark.parametrize("intervals", [1, 2, 5])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_value_and_gradient_are_those_of_the_sum(rule: Any, intervals: int) -> None:
    """With 4000 particles the bias, of order 1/4000, is far below the standard errors."""
    case = CASES["discrete"]()
    objective = ThermodynamicELBO(PARTICLES, intervals, first=0.1, rule=rule)
    p = case.start()
    value = exact(case, p, objective)
    wanted = torch.stack([*gradient(value, p).values()])
    bounds, gradients = draws(objective, case)
    assert_mean(bounds, value.detach())
    assert_mean(gradients, wanted)
    error = gradients.std(0) / RUNS**0.5
    assert (0.2 * wanted.abs() / error).max() > 4, "a fifth of the gradient would not be missed"


def test_the_weight_of_the_divergence() -> None:
    """The surrogate follows the tempered sum; what is reported is not tempered."""
    case, objective = CASES["discrete"](), ThermodynamicELBO(PARTICLES, 2, first=0.1)
    p = case.start()
    bounds, gradients = draws(objective, case, 0.3)
    assert_mean(bounds, exact(case, p, objective).detach())
    tempered = gradient(exact(case, p, objective, 0.3), p)
    assert_mean(gradients, torch.stack([*tempered.values()]))


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("name", ["conjugate", "mixed"])
def test_latents_with_a_path(name: str, kl_weight: float) -> None:
    """Their draws are constants all the same."""
    case, objective = CASES[name](), ThermodynamicELBO(PARTICLES, 3, first=0.1)
    p = case.start()
    bounds, gradients = draws(objective, case, kl_weight)
    assert_mean(bounds, exact(case, p, objective, name=name).detach())
    wanted = gradient(exact(case, p, objective, kl_weight, name), p)
    assert_mean(gradients, torch.stack([*wanted.values()]))


# In the others a latent lies outside the data plate, of which a minibatch has no such bound.
LOCAL = ["path", "score, local", "score, local, sequential plate", "path below score"]
LOCAL += ["score below path", "masked and tempered", "normal by score", "scaled alike"]


@pytest.mark.parametrize("name", LOCAL)
def test_one_interval_has_the_gradient_of_the_elbo(name: str) -> None:
    case, objective = ELBO_CASES[name](), ThermodynamicELBO(1000, num_intervals=1)
    bound, wanted = exact_gradient(case, 1.0)
    bounds, gradients = [], []
    for _ in range(20):
        p = case.start()
        estimate = objective.estimate(objective.weights(case.model, case.guide, (p,), {}))
        bounds.append(estimate.bound)
        gradients.append(flat(torch.autograd.grad(estimate.surrogate, list(p.values()))))
    assert_mean(torch.stack(bounds), torch.tensor(bound, dtype=DTYPE))
    assert_mean(torch.stack(gradients), wanted)


X = torch.tensor([0.4, 1.9], dtype=DTYPE)
MASK: Any = torch.tensor([True, False])
# What is around the latents, and what their densities count at either datum.
AROUND: dict[str, tuple[Callable[[], AbstractContextManager], list[float]]] = {
    "scale": (lambda: poutine.scale(scale=0.3), [0.3, 0.3]),
    "mask": (lambda: poutine.mask(mask=MASK), [1.0, 0.0]),
}


@pytest.mark.parametrize("name", AROUND)
def test_masks_and_scales_change_the_weights_and_not_the_draws(name: str) -> None:
    around, counts = AROUND[name]
    start = {"mean": [0.9], "logit": [0.3, -0.5]}

    def model(p: Parameters) -> None:
        with pyro.plate("data", 2):
            with around():
                k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4, dtype=DTYPE)))
            pyro.sample("x", dist.Normal(p["mean"] * k, 1.0), obs=X)

    def guide(p: Parameters) -> None:
        with pyro.plate("data", 2), around():
            pyro.sample("k", dist.Bernoulli(logits=p["logit"]))

    def made() -> Parameters:
        return {n: torch.tensor(v, dtype=DTYPE, requires_grad=True) for n, v in start.items()}

    objective, p, value = ThermodynamicELBO(PARTICLES, 3, first=0.1), made(), torch.zeros(())
    for i, count in enumerate(counts):
        log_q = torch.stack([bernoulli(k, p["logit"][i]) for k in (0.0, 1.0)])
        log_p = torch.tensor([0.6, 0.4], dtype=DTYPE).log()
        fit = normal(X[i], p["mean"] * torch.tensor([0.0, 1.0]), 1.0)
        value = value + rule_sum(objective, fit + count * (log_p - log_q), log_q)
    wanted = flat(torch.autograd.grad(value, list(p.values())))
    bounds, gradients = [], []
    for _ in range(RUNS):
        p = made()
        estimate = objective.estimate(objective.weights(model, guide, (p,), {}))
        bounds.append(estimate.bound)
        gradients.append(flat(torch.autograd.grad(estimate.surrogate, list(p.values()))))
    assert_mean(torch.stack(bounds), value.detach())
    assert_mean(torch.stack(gradients), wanted)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_each_datum_has_weights_of_its_own(rule: Any) -> None:
    """Three data at once are three data one by one, at the same draws."""
    case, objective = CASES["discrete"](), ThermodynamicELBO(4, 3, rule=rule)
    c = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=DTYPE)
    shift = torch.tensor([0.0, 0.9, -0.7], dtype=DTYPE)

    def run(columns: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        p = {n: (v.detach() + shift[columns]).requires_grad_() for n, v in case.start().items()}
        with Preset({"c": c[:, columns]}):
            weights = objective.weights(case.model, case.guide, (p,), {})
        bound, surrogate = objective.estimate(weights)
        return bound, gradient(surrogate, p)

    bound, found = run([0, 1, 2])
    alone = [run([i]) for i in range(3)]
    torch.testing.assert_close(bound, torch.stack([b for b, _ in alone]).sum())
    for name, value in found.items():
        torch.testing.assert_close(value, torch.cat([g[name] for _, g in alone]))


def test_the_rules_enclose_log_p_and_close_in() -> None:
    case = CASES["discrete"]()
    p = case.start()
    truth = log_p(case, p).item()
    gaps = []
    for intervals in (1, 2, 5, 20):
        left, right = (
            exact(case, p, ThermodynamicELBO(2, intervals, first=0.05, rule=rule)).item()
            for rule in RULES[:2]
        )
        assert left < truth < right
        gaps.append(truth - left)
    assert gaps == sorted(gaps, reverse=True)


def test_the_rules_enclose_the_importance_weighted_bound_of_their_draws() -> None:
    case, particles = CASES["mixed"](), 5
    found: dict[str, list[float]] = {"left": [], "importance": [], "right": []}
    for run in range(30):
        for name, objective in (
            ("left", ThermodynamicELBO(particles, 3, first=0.1)),
            ("importance", IWAE(particles)),
            ("right", ThermodynamicELBO(particles, 3, first=0.1, rule=RightRule())),
        ):
            pyro.set_rng_seed(run)
            found[name].append(-objective.loss(case.model, case.guide, case.start()) / SCALE)
        assert found["left"][-1] < found["importance"][-1] < found["right"][-1]


def test_the_right_rule_may_lie_below_the_evidence_with_few_draws() -> None:
    """Of a guide that is far off, few draws see little of the posterior."""

    def model() -> None:
        with pyro.plate("data", 4000):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full((4000,), 4.0, dtype=DTYPE))

    def guide() -> None:
        with pyro.plate("data", 4000):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 0.5))

    objective = ThermodynamicELBO(2, 5, rule=RightRule())
    weights = objective.weights(model, guide, (), {})
    bound = objective.estimate(weights).bound / 4000
    assert importance(weights.importance()).mean() < bound < normal(4.0, 0.0, 2**0.5) - 0.5


def test_one_interval_by_its_left_end_is_the_elbo() -> None:
    case = CASES["discrete"]()
    p = case.start()
    objective = ThermodynamicELBO(7, num_intervals=1)
    weights = objective.weights(case.model, case.guide, (p,), {})
    elbo = ELBO(7, kl=MonteCarloKL()).estimate(weights).bound
    torch.testing.assert_close(objective.estimate(weights).bound, elbo)


def test_nodes_are_log_uniform() -> None:
    assert ThermodynamicELBO(2, 3, first=0.01).betas == pytest.approx((0.0, 0.01, 0.1, 1.0))
    assert ThermodynamicELBO(2, 1).betas == (0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "at least 2 draws"),
        ({"num_particles": 2, "num_intervals": 0}, "num_intervals is 0"),
        ({"num_particles": 2, "first": 1.0}, "between 0 and 1"),
        ({"num_particles": 2, "rule": "left"}, "rule is 'left'"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(OptionError, match=message):
        ThermodynamicELBO(**options)
