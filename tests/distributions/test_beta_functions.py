"""Beta functions against many digits, and what they cost in rounding."""

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_models.distributions.beta_functions import log_beta, mean_logs

types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
GRID = torch.logspace(-2, 3, 9, dtype=torch.float64)


def slope(value: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value.sum(), at, retain_graph=True)
    return gradient


@types
def test_harmonic_numbers_and_their_slopes_keep_their_digits(dtype: torch.dtype) -> None:
    """Relative to the number, however small its index: psi(b + 1) + gamma would lose those."""
    b = torch.logspace(-6, 3, 50, dtype=dtype).requires_grad_()
    value, _ = mean_logs(torch.ones_like(b), b)
    wanted = [float(mpmath.harmonic(x)) for x in b.tolist()]
    slopes = [float(mpmath.polygamma(1, x + 1)) for x in b.tolist()]
    limit = 5e-7 if dtype == torch.float32 else 1e-11
    assert torch.allclose(
        value.double(), torch.tensor(wanted, dtype=torch.float64), rtol=limit, atol=0
    )
    exact = torch.tensor(slopes, dtype=torch.float64)
    assert torch.allclose(slope(value, b).double(), exact, rtol=5 * limit, atol=0)


@types
def test_log_beta_keeps_what_a_float32_would_lose(dtype: torch.dtype) -> None:
    grid = torch.logspace(-3, 5, 17, dtype=dtype)
    x = grid.repeat(len(grid)).requires_grad_()
    y = grid.repeat_interleave(len(grid)).requires_grad_()
    value = log_beta(x, y)
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    with mpmath.workdps(30):
        wanted = torch.tensor(
            [float(mpmath.log(mpmath.beta(mpmath.mpf(p), mpmath.mpf(q)))) for p, q in pairs],
            dtype=torch.float64,
        )
        slopes = torch.tensor(
            [float(mpmath.digamma(p) - mpmath.digamma(mpmath.mpf(p) + q)) for p, q in pairs],
            dtype=torch.float64,
        )
    eps = torch.finfo(dtype).eps
    assert torch.allclose(value.double(), wanted, rtol=2 * eps, atol=1e-9)
    assert torch.allclose(slope(value, x).double(), slopes, rtol=2 * eps, atol=1e-12)


def test_slopes_have_slopes() -> None:
    """In the plain program, and through torch's transforms of functions."""
    a, b = (c.requires_grad_() for c in (cells(3)[0].clamp(0.1, 20.0), cells(3)[1].clamp(0.1, 20)))
    assert torch.autograd.gradcheck(mean_logs, (a, b))
    assert torch.autograd.gradgradcheck(mean_logs, (a, b))

    def second(a: Tensor, b: Tensor) -> Tensor:
        return mean_logs(a, b)[1]

    by_row = torch.func.vmap(torch.func.grad(second, argnums=(0, 1)))(a.detach(), b.detach())
    _, value = mean_logs(a, b)
    assert torch.allclose(by_row[0], slope(value, a))
    assert torch.allclose(by_row[1], slope(value, b))


def by_noise(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-E[log(1 - v)] and its slopes in log a and log b: by Gauss's rule, over the noise log E."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(16))
    y = (
        torch.arange(-45, 6, 0.25, dtype=torch.float64).unsqueeze(-1) + 0.125 * (nodes + 1)
    ).ravel()
    density = 0.125 * weights.repeat(len(y) // 16) * torch.exp(y - y.exp())
    scaled = torch.exp(y) / b.unsqueeze(-1)  # -log P(V > v) / b
    w = -torch.expm1(-scaled)
    minus_log_w = torch.where(
        scaled < 1, -w.log(), -torch.log1p(-torch.exp(-scaled))
    )  # too small to tell from 0 where v rounds to 1
    log_s = torch.where(scaled < 30, minus_log_w.log(), -scaled) - a.log().unsqueeze(-1)
    s = log_s.exp()  # -log v
    minus_log1m = torch.where(s < 1e-12, -log_s, -torch.log(-torch.expm1(-s)))
    slope_a = torch.where(s < 1e-12, 1.0, s / torch.expm1(s))
    # d(-log w) / d(log b) over -log w, whose limit where w is 1 is the first
    ratio = torch.where(scaled < 30, scaled / torch.expm1(scaled) / minus_log_w, scaled)
    return (
        (density * minus_log1m).sum(-1),
        (density * slope_a).sum(-1),
        -(density * slope_a * ratio).sum(-1),
    )


def cells(count: int) -> tuple[Tensor, Tensor]:
    grid = torch.logspace(-2, 3, count, dtype=torch.float64)
    return grid.repeat_interleave(count), grid.repeat(count)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-6), (torch.float64, 1e-9)])
def test_the_quadrature_on_a_dense_grid(dtype: torch.dtype, limit: float) -> None:
    """Errors as a divergence from a Beta(., b) has them: of b times the mean above b = 1."""
    a, b = (c.to(dtype).requires_grad_() for c in cells(51))
    _, value = mean_logs(a, b)
    wanted, slope_a, slope_b = by_noise(a.detach().double(), b.detach().double())
    factor = b.detach().double().clamp_min(1.0)

    def error(ours: Tensor, truth: Tensor, size: Tensor) -> float:
        return (factor * (ours.double() - truth).abs() / (1 + factor * size.abs())).max().item()

    assert error(value, wanted, wanted) < limit
    assert error(slope(value, a) * a, slope_a, wanted) < 10 * limit
    assert error(slope(value, b) * b, slope_b, wanted) < 10 * limit
