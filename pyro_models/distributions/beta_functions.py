r"""The few integrals that densities on (0, 1) need, exact where sums of large numbers cancel."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Nodes of the trapezoidal rule over u: the spacing, the first u, how many. At float32's the
# quadrature's error is a little above that type's rounding.
_SPACING = {torch.float32: (0.58, -7.18, 41)}
_SPACING_FINE = (0.29, -8.29, 87)


def log_beta(x: Float[Tensor, "*left"], y: Float[Tensor, "*right"]) -> Float[Tensor, "*broadcast"]:
    r"""The logarithm of the Beta function.

    .. math:: \log \mathrm B(x, y) = \log\Gamma(x) + \log\Gamma(y) - \log\Gamma(x + y)

    The difference is taken in float64: in float32 at y = 50,000 it is off by tenths of a nat. Of
    numbers that ``expand`` repeats, as a plate does a prior's, it is taken once.

    Args:
        x: Numbers above 0.
        y: Numbers above 0, which broadcast against ``x``.

    Example:
        >>> log_beta(torch.tensor(2.0), torch.tensor([3.0, 1e5])).exp()
        tensor([8.3333e-02, 9.9999e-11])
    """
    shape, dtype = torch.broadcast_shapes(x.shape, y.shape), torch.result_type(x, y)
    # once each, so that the two parts of a gradient meet in float64 too
    x, y = _distinct(x).double(), _distinct(y).double()
    total = torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)
    return total.to(dtype).expand(shape)


def _distinct(x: Tensor) -> Tensor:
    return x[tuple(slice(None, None if stride else 1) for stride in x.stride())]


def mean_logs(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""-a E[log v] and -E[log(1 - v)] of v ~ Kumaraswamy(a, b), by a quadrature of few nodes.

    .. math::
        -a E[\log v] = H_b = \int_0^\infty \big[1 - (1 - e^{-t})^b\big]\, dt

        -E[\log(1 - v)] = \int_0^1 \frac{P(V > v)}{1 - v}\, dv
        = \int_0^\infty (1 - e^{-t})^b\, \frac{c}{e^{ct} - 1}\, dt, \qquad
        c = 1/a, \quad t = -a \log v

    H is the harmonic number of a real index. Both integrands are positive, so that nothing
    cancels; :math:`\psi(b + 1) + \gamma` loses the digits of a small b. In
    :math:`y = \log(e^t - 1)` they are analytic for :math:`|\mathrm{Im}\, y| < \pi / 2` whatever a
    and b are. The second falls like :math:`e^{by}` on the left and like :math:`e^{-cy}` on the
    right, and has all else between :math:`\log a` and :math:`\log b`. The trapezoidal rule over u,
    with y(u) straight in the middle and exponential at both ends, therefore converges
    exponentially, at nodes that are the same for all a and b up to 1000: each costs three
    exponentials, where :math:`\log\Gamma` and :math:`\psi` are called a number at a time in a
    compiled step on a CPU. Beyond 1000 errors grow, in float32 to 5 % at 100,000. Below b = 1,
    where the left side falls slowly, :math:`\int (1 - e^{-t})^b / (e^t - 1)\, dt = 1/b` is taken
    out of the second.

    Args:
        a: The exponent near 0.
        b: The exponent near 1, of the same shape.

    Example:
        >>> one = torch.tensor(1.0)
        >>> mean_logs(one, 4 * one)  # 1 + 1/2 + 1/3 + 1/4, and 1/4
        (tensor(2.0833), tensor(0.2500))
    """
    harmonic, minus_log1m, *_ = _MeanLogs.apply(a, b)
    return harmonic, minus_log1m


class _MeanLogs(torch.autograd.Function):
    """Values and slopes by one pass over the nodes, where autograd would take two more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return _integrals(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, _, *slopes = output
        ctx.mark_non_differentiable(*slopes)
        ctx.save_for_backward(*inputs, *slopes)

    @staticmethod
    def backward(ctx: Any, harmonic: Tensor, minus_log1m: Tensor, *slopes_of_slopes: Any) -> Any:
        a, b, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # the slopes will be differentiated too
            _, _, *slopes = _integrals(a, b)
        harmonic_by_b, by_a, by_b = slopes
        return minus_log1m * by_a, harmonic * harmonic_by_b + minus_log1m * by_b


def _integrals(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """H, -E[log(1 - v)], the slope of the first in b, those of the second in a and in b."""
    t, s, far, weight = (_column(values, a) for values in _nodes(a.dtype))
    c = 1 / a
    below = torch.where(b < 1, 1.0, 0.0).to(b.dtype)
    ct, exponent = c * t, -b * s
    # beyond the clamp its inverse is no longer a normal number
    inverse = _inverse_expm1(ct.clamp_max(-math.log(torch.finfo(a.dtype).tiny) - 2))
    power, one_minus_power = _exp_and_rest(exponent)  # (1 - exp(-t))^b
    kept = weight * power
    beside = c * inverse - below * far
    beside_by_c = inverse - ct * (inverse + inverse * inverse)
    return (
        (weight * one_minus_power).sum(0),
        below / b + (kept * beside).sum(0),
        (kept * s).sum(0),
        -c * c * (kept * beside_by_c).sum(0),
        -below / b**2 - (kept * (s * beside)).sum(0),
    )


# Below it two series, above it an exponential: in float32 as exact as expm1, which on a CPU costs
# several times as much as exp.
_SMALL = 0.35


def _inverse_expm1(x: Tensor) -> Tensor:
    """1 / (exp(x) - 1) of positive numbers."""
    if x.dtype != torch.float32:
        return 1 / torch.expm1(x)
    square = x * x
    series = 1 / x - 0.5 + x * (1 / 12 - square * (1 / 720 - square * (1 / 30240)))
    return torch.where(x < _SMALL, series, 1 / (torch.exp(x) - 1))


def _exp_and_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    """exp(x) and 1 - exp(x) of numbers that are not positive."""
    power = torch.exp(x)
    if x.dtype != torch.float32:
        return power, -torch.expm1(x)
    series = torch.full_like(x, 1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0):
        series = series * x + factor
    return power, torch.where(x > -_SMALL, -x * series, 1 - power)


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
