r"""The few integrals that densities on (0, 1) need, in arithmetic that compilers vectorise.

``torch.lgamma`` and ``torch.digamma`` are called a number at a time in a compiled step on a CPU,
and lose digits where their results cancel. Here they are logarithms and rational functions, whose
derivatives, taken by autograd, are as accurate as they are.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# digamma(x + 1/2) = log x + the sum of these times x^(-2j), j = 1, 2, ...
_DIGAMMA = (1 / 24, -7 / 960, 31 / 8064, -127 / 30720, 511 / 67584)
_DIGAMMA_SHIFT = 6  # where the next term is under 4e-12

# log Γ(z) = (z - 1/2) log z - z + log(2π)/2 + the sum of these times z^(1-2j), j = 1, 2, ...
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
_STIRLING_SHIFT = 8  # where the next term is under 2e-14

# Nodes of the trapezoidal rule over u: the spacing, the first u, how many. At float32's the
# quadrature's error is a little above that type's rounding.
_SPACING = {torch.float32: (0.58, -6.6, 40)}
_SPACING_FINE = (0.29, -8.0, 86)


def harmonic(b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The harmonic number of a real index, small where the index is small.

    .. math::
        H_b = \psi(b + 1) + \gamma
            = \sum_{k=1}^{n} \frac{b}{k (b + k)} + \psi(b + n + 1) - \psi(n + 1)

    Its relative error is a few roundings for every index above 0; that of the left side as it
    stands grows like 1/b.

    Args:
        b: Indices above 0.

    Example:
        >>> harmonic(torch.tensor([1.0, 2.0, 1e-6]))
        tensor([1.0000e+00, 1.5000e+00, 1.6449e-06])
    """
    first = _DIGAMMA_SHIFT + 0.5
    x = b + first
    inverse, limit = 1 / (x * x), 1 / first**2
    # The difference of the polynomial at the two, by the difference of the two: Horner's rule.
    at_limit, slope = _DIGAMMA[-1], torch.zeros_like(b)
    for coefficient in (*reversed(_DIGAMMA[:-1]), 0.0):
        slope = slope * inverse + at_limit
        at_limit = at_limit * limit + coefficient
    total = torch.log1p(b / first) - slope * b * (x + first) * inverse * limit
    for k in range(1, _DIGAMMA_SHIFT + 1):
        total = total + b / (k * (b + k))
    return total


def log_beta(x: Float[Tensor, "*left"], y: Float[Tensor, "*right"]) -> Float[Tensor, "*broadcast"]:
    r"""The logarithm of the Beta function, without the difference of two large log-gammas.

    .. math::
        \log \mathrm B(x, y) = \log\Gamma(x) + \big[\log\Gamma(y) - \log\Gamma(x + y)\big],
        \qquad x \le y

    with the bracket as one expression in :math:`\log(1 + x / y)`.

    Args:
        x: Numbers above 0.
        y: Numbers above 0, which broadcast against ``x``.

    Example:
        >>> log_beta(torch.tensor(2.0), torch.tensor([3.0, 1e5])).exp()
        tensor([8.3333e-02, 9.9999e-11])
    """
    small, large = torch.minimum(x, y), torch.maximum(x, y)
    both = small + large
    # Γ(z) = Γ(z + n) / (z (z + 1) ... (z + n - 1)), all three at once, in products that stay small
    n = _STIRLING_SHIFT
    low, high = torch.ones_like(both), torch.ones_like(both)
    for k in range(n // 2):
        j = k + n // 2
        low = low * ((both + k) / ((small + k) * (large + k)))
        high = high * ((both + j) / ((small + j) * (large + j)))
    constant = 0.5 * math.log(2 * math.pi) - n
    powers = _odd_powers(small + n) + _odd_powers(large + n) - _odd_powers(both + n)
    main = (small + (n - 0.5)) * (small + n).log() - small * (both + n).log()
    ratio = (large + (n - 0.5)) * torch.log1p(small / (large + n))
    return low.log() + high.log() + main - ratio + constant + powers


def _odd_powers(z: Tensor) -> Tensor:
    inverse = 1 / z
    square = inverse * inverse
    total = torch.full_like(z, _STIRLING[-1])
    for coefficient in reversed(_STIRLING[:-1]):
        total = total * square + coefficient
    return total * inverse


def minus_mean_log1m(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""-E[log(1 - v)] of v ~ Kumaraswamy(a, b), by a quadrature of few nodes.

    .. math::
        -E[\log(1 - v)] = \int_0^1 \frac{P(V > v)}{1 - v}\, dv
        = \int_0^\infty (1 - e^{-t})^b\, \frac{c}{e^{ct} - 1}\, dt, \qquad
        c = 1/a, \quad t = -a \log v

    The integrand is positive, so that nothing cancels. In :math:`y = \log(e^t - 1)` it is analytic
    for :math:`|\mathrm{Im}\, y| < \pi / 2` whatever a and b are, falls like :math:`e^{by}` on the
    left and like :math:`e^{-cy}` on the right, and has all else between :math:`\log a` and
    :math:`\log b`. The trapezoidal rule over u, with y(u) straight in the middle and exponential at
    both ends, therefore converges exponentially, at nodes that are the same for all a and b: each
    costs two exponentials. Below b = 1, where the left side falls slowly,
    :math:`\int (1 - e^{-t})^b / (e^t - 1)\, dt = 1/b` is taken out of it.

    Args:
        a: The exponent near 0.
        b: The exponent near 1.

    Example:
        >>> one = torch.tensor(1.0)
        >>> minus_mean_log1m(one, 4 * one)
        tensor(0.2500)
    """
    t, s, far, weight = (_column(values, a) for values in _nodes(a.dtype))
    c = 1 / a
    below = torch.where(b < 1, 1.0, 0.0).to(b.dtype)
    # beyond the clamp its inverse is no longer a normal number
    growth = torch.expm1((c * t).clamp_max(-math.log(torch.finfo(a.dtype).tiny) - 2))
    terms = weight * (torch.exp(-b * s) * (c / growth - below * far))
    return below / b + terms.sum(0)


def _column(values: list[float], like: Tensor) -> Tensor:
    nodes = torch.tensor(values, dtype=like.dtype, device=like.device)
    return nodes.reshape(-1, *(1,) * like.dim())


def _nodes(dtype: torch.dtype) -> tuple[list[float], ...]:
    """t, -log(1 - exp(-t)), 1 / (exp(t) - 1) and the weight at the nodes."""
    step, start, count = _SPACING.get(dtype, _SPACING_FINE)
    rows = []
    for u in (start + step * i for i in range(count)):
        left, right = math.exp(-0.75 * (u + 4.1)), math.exp(0.955 * (u - 6.43))
        y = u - left + right
        t = max(y, 0.0) + math.log1p(math.exp(-abs(y)))
        slope = (1 + 0.75 * left + 0.955 * right) * math.exp(y - t)  # dt/du
        rows.append((t, t - y, math.exp(-y), step * slope))
    return tuple(list(column) for column in zip(*rows, strict=True))
