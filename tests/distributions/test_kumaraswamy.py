"""The Kumaraswamy against quadrature in many digits, at both ends and in both types."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import betaln, digamma
from torch import Tensor
from torch.distributions import Beta, kl_divergence

from pyro_models.distributions.kumaraswamy import Kumaraswamy, Logs
from pyro_models.distributions.log_space import complement, log1mexp, log_complement, loglog_of

GRID = [0.01, 0.05, 0.3, 1.0, 2.5, 30.0, 1000.0]
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    a = torch.tensor(GRID, dtype=dtype).repeat_interleave(len(GRID)).requires_grad_()
    b = torch.tensor(GRID, dtype=dtype).repeat(len(GRID)).requires_grad_()
    return a, b


def finite(value: Tensor, *inputs: Tensor) -> bool:
    gradients = torch.autograd.grad(value.sum(), inputs, retain_graph=True)
    return all(bool(tensor.isfinite().all()) for tensor in (value, *gradients))


@types
def test_nothing_is_lost_from_one_end_of_the_parameters_to_the_other(dtype: torch.dtype) -> None:
    a, b = grid(dtype)
    q = Kumaraswamy(a, b)
    logs = q.rsample_logs(torch.Size((2000,)))
    assert finite(logs.log_v, a, b)
    assert finite(logs.log1m_v, a, b)
    assert finite(q.log_prob_of_logs(logs), a, b)
    # One of the two may round to 0, when the other is beyond the type's smallest number.
    limit = math.log(torch.finfo(dtype).tiny)
    assert (logs.log1m_v[logs.log_v == 0] < limit).all()
    assert (logs.log_v[logs.log1m_v == 0] < limit).all()


@types
def test_values_and_gradients_of_everything_else_are_finite(dtype: torch.dtype) -> None:
    a, b = grid(dtype)
    q = Kumaraswamy(a, b)
    v = q.rsample(torch.Size((500,)))
    assert ((v > 0) & (v < 1)).all()
    levels = torch.tensor([0.0, 1e-30, 0.5, 1.0], dtype=dtype).unsqueeze(-1)
    prior = Beta(torch.tensor(1.0, dtype=dtype), torch.tensor(5.0, dtype=dtype))
    for value in (v, q.log_prob(v), q.log_prob(levels), q.cdf(levels), q.icdf(levels)):
        assert finite(value, a, b)
    for value in (q.mean, q.variance, q.entropy(), *q.mean_logs(), kl_divergence(q, prior)):
        assert finite(value, a, b)


def test_torch_loses_what_is_kept_here() -> None:
    a = torch.full((10_000,), 0.05, requires_grad=True)
    theirs = torch.distributions.Kumaraswamy(a, a, validate_args=False).rsample()
    assert (theirs == 1).float().mean() == pytest.approx(0.42, abs=0.02)
    their_density = torch.distributions.Kumaraswamy(a, a, validate_args=False).log_prob(theirs)
    (gradient,) = torch.autograd.grad(their_density.sum() + theirs.sum(), a)
    assert gradient.isnan().any()
    ours = Kumaraswamy(a, a).rsample_logs()
    assert (ours.log1m_v < -17).float().mean() > 0.3  # those that round to 1
    assert finite(ours.log_v + ours.log1m_v, a)


Function = Callable[[np.ndarray, np.ndarray], np.ndarray]


def integral(a: float, b: float, f: Function) -> float:
    """E[f(log v, log(1 - v))] over log E, by another rule and in other formulas."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    y = (np.arange(-45, 6, 0.25)[:, None] + 0.125 * (nodes + 1)).ravel()
    t = np.exp(y) / b
    s = np.where(
        t < 1, -np.log(-np.expm1(-np.minimum(t, 1))), -np.log1p(-np.exp(-np.clip(t, 1, 30)))
    )
    log_s = np.where(t < 30, np.log(s), -t) - np.log(a)
    s = np.exp(log_s)
    log1m = np.where(s < 1e-12, log_s, np.log(-np.expm1(-np.clip(s, 1e-12, None))))
    terms = np.tile(0.125 * weights, len(y) // 16) * np.exp(y - np.exp(y)) * f(-s, log1m)
    return math.fsum(terms)


@pytest.mark.parametrize("a", GRID)
@pytest.mark.parametrize("b", GRID)
def test_moments_entropy_and_divergence_are_their_integrals(a: float, b: float) -> None:
    q = Kumaraswamy(torch.tensor(a).double(), torch.tensor(b).double())
    a, b = q.concentration1.item(), q.concentration0.item()

    def log_q(log_v: np.ndarray, log1m: np.ndarray) -> np.ndarray:
        s = -log_v * a
        rest = np.where(s < 1e-12, math.log(a) + log1m, np.log(-np.expm1(-np.clip(s, 1e-12, None))))
        return math.log(a * b) + (a - 1) * log_v + (b - 1) * rest

    mean = integral(a, b, lambda log_v, _: np.exp(log_v))
    assert q.mean.item() == pytest.approx(mean, rel=1e-7, abs=1e-12)
    spread = integral(a, b, lambda log_v, _: (np.exp(log_v) - mean) ** 2)
    assert q.variance.item() == pytest.approx(spread, rel=1e-5, abs=1e-12)
    log_v = integral(a, b, lambda log_v, _: log_v)
    log1m_v = integral(a, b, lambda _, log1m_v: log1m_v)
    assert q.mean_logs().log_v.item() == pytest.approx(log_v, rel=1e-7)
    assert q.mean_logs().log1m_v.item() == pytest.approx(log1m_v, rel=1e-7, abs=1e-12)
    negative = integral(a, b, log_q)
    assert q.entropy().item() == pytest.approx(-negative, rel=1e-6, abs=1e-7)
    normaliser = math.lgamma(5.7) - math.lgamma(0.7) - math.lgamma(5)
    wanted = negative - normaliser + 0.3 * log_v - 4 * log1m_v
    prior = Beta(torch.tensor(0.7).double(), torch.tensor(5.0).double())
    assert kl_divergence(q, prior).item() == pytest.approx(wanted, rel=1e-5)


def test_the_divergence_is_right_where_the_series_is_not() -> None:
    q = Kumaraswamy(torch.tensor(0.03).double(), torch.tensor(0.03).double())
    assert kl_divergence(q, Beta(1.0, 5.0)).item() == pytest.approx(145.37, abs=0.005)
    single = Kumaraswamy(torch.tensor(0.03), torch.tensor(0.03))
    assert kl_divergence(single, Beta(1.0, 5.0)).item() == pytest.approx(145.37, rel=1e-4)


def series(a: float, b: float, terms: int) -> tuple[float, float]:
    """Nalisnick and Smyth's sum for -E[log(1 - v)], and the most that it leaves out."""
    m = np.arange(1, terms + 1)
    log_moments = math.log(b) + betaln(1 + m / a, b)  # log E[v^m]
    left_out = math.exp(math.lgamma(b) + b * math.log(a / terms))
    return math.fsum(np.exp(log_moments) / m), left_out


@pytest.mark.parametrize("a", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("b", [1.0, 1.5, 3.0, 20.0])
def test_the_series_agrees_within_its_error_bound(a: float, b: float) -> None:
    q = Kumaraswamy(torch.tensor(a).double(), torch.tensor(b).double())
    found = -q.mean_logs().log1m_v.item()
    for terms in (10, 1000, 100_000):
        total, left_out = series(a, b, terms)
        # The quadrature's error counts beside 1 nat; in the moments log-gammas of m / a cancel.
        rounding = 2e-10 + 3e-8 * found
        assert total - rounding <= found <= total + left_out + rounding
    assert left_out < 1e-4 * found or b == 1.0


def test_the_series_bound_says_where_it_is_of_no_use() -> None:
    total, left_out = series(0.03, 0.03, 200_000)
    q = Kumaraswamy(torch.tensor(0.03).double(), torch.tensor(0.03).double())
    found = -q.mean_logs().log1m_v.item()
    assert total < 0.7 * found < found < total + left_out


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.0), (0.7, 0.3), (1.0, 300.0)])
def test_the_divergence_on_a_dense_grid(
    dtype: torch.dtype, limit: float, alpha: float, beta: float
) -> None:
    """Relative to the divergence or, where that is small, to one nat."""
    line = torch.logspace(-2, 3, 26, dtype=dtype)
    a, b = line.repeat_interleave(26).requires_grad_(), line.repeat(26).requires_grad_()
    prior = Beta(torch.tensor(alpha, dtype=dtype), torch.tensor(beta, dtype=dtype))
    ours = kl_divergence(Kumaraswamy(a, b), prior)
    assert finite(ours, a, b)
    x, y = a.detach().double().numpy(), b.detach().double().numpy()
    log1m = np.array([integral(p, q, lambda _, m: m) for p, q in zip(x, y, strict=True)])
    alpha, beta = (c.double().item() for c in (prior.concentration1, prior.concentration0))
    wanted = (
        np.log(x * y)
        - 1
        + 1 / y
        + (alpha / x - 1) * (digamma(y + 1) + np.euler_gamma)
        + math.lgamma(alpha)
        + math.lgamma(beta)
        - math.lgamma(alpha + beta)
        - (beta - 1) * log1m
    )
    error = np.abs(ours.detach().double().numpy() - wanted) / np.maximum(np.abs(wanted), 1)
    assert error.max() < limit
    if dtype == torch.float64:
        assert (error[wanted > 1e-4] < 1e-3 * wanted[wanted > 1e-4]).all()


@pytest.mark.parametrize("b", [0.3, 0.1, 0.05])
def test_clipped_draws_cost_what_the_docstring_says(b: float) -> None:
    q = Kumaraswamy(torch.tensor(1.0), torch.tensor(b))
    prior = Beta(torch.tensor(1.0), torch.tensor(5.0))
    v = q.sample(torch.Size((100_000,)))
    clipped = (prior.log_prob(v) - q.log_prob(v)).double()
    logs = q.rsample_logs(torch.Size((100_000,)))
    kept = (math.log(5) + 4 * logs.log1m_v - q.log_prob_of_logs(logs)).double()
    truth = -kl_divergence(q, prior).item()
    cost = (5 - b) * (torch.finfo(torch.float32).eps / 2) ** b / b

    def near(weights: Tensor, wanted: float) -> bool:
        return abs(weights.mean().item() - wanted) < 4.5 * weights.std().item() / 100_000**0.5

    assert near(kept, truth)
    assert near(clipped, truth + cost)


def test_the_divergence_from_itself_as_a_beta_is_zero() -> None:
    # Kumaraswamy(1, b) = Beta(1, b), Kumaraswamy(a, 1) = Beta(a, 1).
    c = torch.tensor([0.02, 0.5, 3.0, 200.0], dtype=torch.float64)
    one = torch.ones_like(c)
    assert torch.allclose(kl_divergence(Kumaraswamy(one, c), Beta(one, c)), 0 * c, atol=1e-9)
    assert torch.allclose(kl_divergence(Kumaraswamy(c, one), Beta(c, one)), 0 * c, atol=1e-9)


@types
def test_where_it_is_a_beta_it_has_the_betas_density(dtype: torch.dtype) -> None:
    v = torch.linspace(0.001, 0.999, 50, dtype=dtype).unsqueeze(-1)
    c = torch.tensor([0.3, 1.0, 4.0], dtype=dtype)
    one = torch.ones_like(c)
    for a, b in ((one, c), (c, one)):
        wanted = Beta(a, b).log_prob(v)
        assert torch.allclose(Kumaraswamy(a, b).log_prob(v), wanted, rtol=1e-4, atol=2e-5)


def test_the_density_is_the_slope_of_the_distribution_function() -> None:
    a, b = (torch.tensor(c, dtype=torch.float64) for c in ([0.2, 2.0, 5.0], [0.6, 3.0, 40.0]))
    q = Kumaraswamy(a, b)
    v = torch.linspace(0.02, 0.98, 30, dtype=torch.float64).unsqueeze(-1).expand(-1, 3)
    v = v.clone().requires_grad_()
    (slope,) = torch.autograd.grad(q.cdf(v).sum(), v)
    assert torch.allclose(slope, q.log_prob(v).exp(), rtol=1e-6, atol=1e-12)
    levels = q.cdf(v).detach()
    inside = levels < 1 - 1e-9
    assert torch.allclose(q.icdf(levels)[inside], v.detach()[inside], rtol=1e-6)
    ends = q.cdf(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert torch.equal(ends, torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64))


@types
def test_draws_follow_the_distribution_function(dtype: torch.dtype) -> None:
    a, b = torch.tensor([0.3, 2.0], dtype=dtype), torch.tensor([0.7, 5.0], dtype=dtype)
    q = Kumaraswamy(a, b)
    levels = q.cdf(q.sample(torch.Size((4000,)))).sort(0).values
    uniform = (torch.arange(4000, dtype=dtype) + 0.5).unsqueeze(-1) / 4000
    assert (levels - uniform).abs().max() < 1.63 / 4000**0.5  # Kolmogorov, 1 %


def test_paths_have_the_gradient_of_the_mean() -> None:
    a, b = (torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in (0.7, 0.4))
    q = Kumaraswamy(a.expand(20_000), b.expand(20_000))
    draws = q.rsample_logs()
    wanted = torch.autograd.grad(Kumaraswamy(a, b).mean_logs().log1m_v, (a, b))
    each = [
        torch.autograd.grad(draws.log1m_v.sum(), q_parameter, retain_graph=True)[0]
        for q_parameter in (q.concentration1, q.concentration0)
    ]
    for gradient, truth in zip(each, wanted, strict=True):
        error = gradient.std() / len(gradient) ** 0.5
        assert (gradient.mean() - truth).abs() < 4 * error


def test_expanding_changes_the_shape_only() -> None:
    q = Kumaraswamy(torch.tensor(2.0), 3.0).expand(torch.Size((4, 2)))
    assert q.batch_shape == (4, 2)
    assert q.rsample(torch.Size((5,))).shape == (5, 4, 2)
    assert torch.allclose(q.mean, torch.tensor(16 / 35))
    assert q.to_event(1).log_prob(torch.full((4, 2), 0.5)).shape == (4,)
    with pytest.raises(ValueError, match="concentration1"):
        Kumaraswamy(torch.tensor(-1.0), 1.0, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        Kumaraswamy(torch.tensor(1.0), 1.0, validate_args=True).log_prob(torch.tensor(1.5))


def test_logs_of_a_number_that_rounds_to_one_keep_its_density() -> None:
    # v = 1 - exp(-40): 1 in float32, not in the pair.
    q = Kumaraswamy(torch.tensor(0.5), torch.tensor(0.2))
    wanted = math.log(0.1) - 0.8 * (math.log(0.5) - 40)  # 1 - v^a = a (1 - v)
    logs = Logs(torch.tensor(-math.exp(-40)), torch.tensor(-40.0))
    assert q.log_prob_of_logs(logs).item() == pytest.approx(wanted, rel=1e-6)


@types
def test_complements_are_those_of_probabilities(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    p = torch.tensor([1e-30, 1e-5, 0.1, 0.4999, 0.5001, 0.9, 0.995], dtype=torch.float64)
    loglog = (-p.log()).log()

    def close(ours: Tensor, truth: Tensor) -> bool:
        return torch.allclose(ours, truth.to(dtype), rtol=30 * eps, atol=30 * eps)

    assert close(log_complement(loglog.to(dtype)), (-p).log1p())
    wanted = (-((-p).log1p())).log()
    assert close(complement(loglog.to(dtype)), wanted)
    assert close(log1mexp(-p.log().to(dtype)), (-p).log1p())
    logs = (p.log().to(dtype), (-p).log1p().to(dtype))
    assert close(loglog_of(*logs), loglog)


@types
def test_complement_is_its_own_inverse_and_has_the_gradient_of_one(dtype: torch.dtype) -> None:
    loglog = torch.linspace(-60, 4, 200, dtype=dtype, requires_grad=True)
    there = complement(loglog)
    assert finite(there, loglog)
    assert torch.allclose(complement(there), loglog, rtol=1e-3 if dtype == torch.float32 else 1e-9)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(complement, loglog)
        assert torch.autograd.gradcheck(log_complement, loglog)
