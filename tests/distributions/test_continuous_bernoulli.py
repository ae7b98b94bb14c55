"""Against closed forms in 50 digits, quadrature and torch's own where that is accurate."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_models.distributions.continuous_bernoulli import ContinuousBernoulli

LOGITS = [1e-30, 1e-8, 1e-4, 0.0039, 0.0041, 0.1, 0.5999, 0.6001, 1.0, 5.0, 15.9, 17.0, 40.0, 200.0]
BOTH = [0.0, *LOGITS, *(-logit for logit in LOGITS)]
TYPES = [torch.float32, torch.float64]


def exact(logit: float) -> tuple[float, float, float]:
    """log C, mean and variance in 50 digits; the limits where 50 digits are too few."""
    if abs(logit) < 1e-12:
        return logit / 2, 0.5 + logit / 12, 1 / 12
    with localcontext() as context:
        context.prec = 50
        eta = Decimal(logit)
        odds = eta.exp()
        log_normaliser = ((odds - 1) / eta).ln()
        mean = odds / (odds - 1) - 1 / eta
        variance = 1 / eta**2 - odds / (odds - 1) ** 2
        return float(log_normaliser), float(mean), float(variance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("logit", BOTH)
def test_density_mean_and_variance_are_exact_to_rounding(logit: float, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    eta = torch.tensor(logit, dtype=dtype)
    log_normaliser, mean, variance = exact(eta.item())
    p = ContinuousBernoulli(eta)
    for x in (0.0, 0.3, 1.0):
        value = torch.tensor(x, dtype=dtype)
        wanted = eta.item() * value.item() - log_normaliser
        scale = max(abs(logit), 1.0)
        assert p.log_prob(value).item() == pytest.approx(wanted, abs=8 * eps * scale)
    assert p.mean.item() == pytest.approx(mean, abs=8 * eps)
    # Next to the border of the series 1/h² and 1/sinh(h)² are near 11, and cancel to 1/3.
    assert p.variance.item() == pytest.approx(variance, abs=16 * eps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("logit", BOTH)
def test_the_gradient_of_the_density_is_x_minus_the_mean(logit: float, dtype: torch.dtype) -> None:
    eta = torch.tensor(logit, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(ContinuousBernoulli(eta).log_prob(torch.tensor(0.3)), eta)
    eps = torch.finfo(dtype).eps
    wanted = torch.tensor(0.3).item() - exact(eta.item())[1]
    assert gradient.item() == pytest.approx(wanted, abs=16 * eps)


@pytest.mark.parametrize("logit", [-30.0, -1.0, 1e-3, 0.7, 12.0])
def test_the_density_integrates_to_one(logit: float) -> None:
    p = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))

    def density(x: float) -> float:
        return p.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item()

    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("logit", [-10.0, -1.0, 0.5, 3.0])
def test_it_agrees_with_torch_where_torch_is_accurate(logit: float) -> None:
    eta = torch.tensor(logit, dtype=torch.float64)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    ours, theirs = ContinuousBernoulli(eta), torch.distributions.ContinuousBernoulli(logits=eta)
    assert torch.allclose(ours.log_prob(x), theirs.log_prob(x), atol=1e-10)
    assert torch.allclose(ours.mean, theirs.mean, atol=1e-10)


def test_torch_is_still_wrong_where_this_one_is_needed() -> None:
    # If this fails, torch was repaired, and our own distribution may go.
    far = torch.distributions.ContinuousBernoulli(logits=torch.tensor(40.0))
    near = torch.distributions.ContinuousBernoulli(logits=torch.tensor(0.0041))
    assert abs(far.log_prob(torch.tensor(0.3)).item() - (40 * 0.3 - exact(40.0)[0])) > 0.5
    assert abs(near.variance.item() - 1 / 12) > 0.1


@pytest.mark.parametrize("logit", [-200.0, -40.0, -2.0, -1e-20, 0.0, 1e-4, 2.0, 40.0, 200.0])
def test_draws_follow_the_distribution(logit: float) -> None:
    draws = ContinuousBernoulli(torch.tensor(logit)).sample((4000,)).double().numpy()
    assert draws.min() >= 0
    assert draws.max() <= 1

    def cdf(x: np.ndarray) -> np.ndarray:
        if abs(logit) < 1e-12:
            return x
        if logit > 0:  # e^logit may overflow
            return (np.exp(logit * (x - 1)) - math.exp(-logit)) / -math.expm1(-logit)
        return np.expm1(logit * x) / math.expm1(logit)

    assert stats.kstest(draws, cdf).pvalue > 1e-4


def test_shapes_expand_and_validate() -> None:
    p = ContinuousBernoulli(torch.zeros(3)).expand((2, 3)).to_event(1)
    assert p.batch_shape == (2,)
    assert p.event_shape == (3,)
    assert p.sample((5,)).shape == (5, 2, 3)
    assert p.mean.shape == (2, 3)
    with pytest.raises(ValueError, match="support"):
        ContinuousBernoulli(torch.zeros(1), validate_args=True).log_prob(torch.tensor([1.5]))
