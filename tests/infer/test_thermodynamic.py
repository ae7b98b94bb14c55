"""The thermodynamic objective: against its integral and its gradient by enumeration."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer import (
    ELBO,
    LeftRule,
    MonteCarloKL,
    RightRule,
    ThermodynamicELBO,
    TrapezoidRule,
)
from tests.infer.gradient_cases import DTYPE
from tests.infer.multi_sample_cases import CASES, SCALE, Case, Parameters, Preset
from tests.infer.test_gradients import assert_mean
from tests.infer.test_multi_sample import gradient
from tests.unchecked import unchecked

RULES: list[Any] = [LeftRule(), RightRule(), TrapezoidRule()]
PARTICLES, RUNS = 4000, 60


def both(case: Case, p: Parameters, kl_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """log w and log q at both values of the only latent."""
    z = {"c": torch.tensor([[0.0, 1.0]], dtype=DTYPE)}
    return case.log_weights(p, z, kl_weight)[0], case.log_q(p, z)["c"][0]


def exact(
    case: Case, p: Parameters, objective: ThermodynamicELBO, kl_weight: float = 1.0
) -> Tensor:
    """The rule's sum, its expectations over both values."""
    log_w, log_q = both(case, p, kl_weight)
    values = [((log_q + b * log_w).softmax(0) * log_w).sum() for b in objective.betas]
    widths = [b - a for a, b in zip(objective.betas, objective.betas[1:], strict=False)]
    ends = {
        "LeftRule": values[:-1],
        "RightRule": values[1:],
        "TrapezoidRule": [(a + b) / 2 for a, b in pairwise(values)],
    }[type(objective.rule).__name__]
    return torch.stack([w * v for w, v in zip(widths, ends, strict=True)]).sum()


def log_p(case: Case, p: Parameters) -> Tensor:
    log_w, log_q = both(case, p)
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
