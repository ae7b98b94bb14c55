"""The continuous Bernoulli distribution, accurate for every logit and in float32."""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

# Below this |logit| / 2 the closed forms cancel and power series are used instead. At the border
# both are good to float64's rounding.
_SMALL = 0.3

# log(sinh(h) / h) = sum over n of these times h^(2n), n = 1, 2, ...
_LOG_SINHC = (
    1 / 6,
    -1 / 180,
    1 / 2835,
    -1 / 37800,
    1 / 467775,
    -691 / 3831077250,
    2 / 127702575,
    -3617 / 2605132530000,
)
_LANGEVIN = tuple(2 * n * c for n, c in enumerate(_LOG_SINHC, 1))  # its derivative
_LANGEVIN_SLOPE = tuple((2 * n - 1) * c for n, c in enumerate(_LANGEVIN, 1))  # and the next


def _split(half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where ``half`` is small; it and its size, made safe for the gradient of each branch."""
    size = half.abs()
    small = size < _SMALL
    fill = torch.full_like(size, _SMALL)
    return small, torch.where(small, half, fill), torch.where(small, fill, size)


def _series(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """A polynomial with its lowest coefficient first."""
    total = torch.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * t + coefficient
    return total


def _log_sinhc(half: Tensor) -> Tensor:
    """log(sinh(h) / h), even in h."""
    small, near, far = _split(half)
    t = near * near
    series = t * _series(t, _LOG_SINHC)
    closed = far + torch.log(-torch.expm1(-2 * far)) - torch.log(2 * far)
    return torch.where(small, series, closed)


def _langevin(half: Tensor) -> Tensor:
    """coth(h) - 1/h, the derivative of log(sinh(h) / h), odd in h."""
    small, near, far = _split(half)
    t = near * near
    series = near * _series(t, _LANGEVIN)
    closed = 1 - 2 * torch.exp(-2 * far) / torch.expm1(-2 * far) - 1 / far
    return torch.where(small, series, closed * torch.sign(half))


def _langevin_slope(half: Tensor) -> Tensor:
    """1/h² - 1/sinh(h)², the derivative of the Langevin function, even in h."""
    small, near, far = _split(half)
    t = near * near
    series = _series(t, _LANGEVIN_SLOPE)
    closed = 1 / far.square() - 4 * torch.exp(-2 * far) / torch.expm1(-2 * far).square()
    return torch.where(small, series, closed)


@final
class ContinuousBernoulli(TorchDistribution):
    r"""The density on [0, 1] that is proportional to a Bernoulli's likelihood.

    .. math::
        p(x) = C(\lambda)\, \lambda^x (1 - \lambda)^{1 - x}
             = \frac{\eta\, e^{\eta x}}{e^\eta - 1}, \qquad \eta = \log\frac{\lambda}{1 - \lambda}

    ``torch.distributions.ContinuousBernoulli`` clamps :math:`\lambda`, so that in float32 its
    density and gradient are those of :math:`|\eta| = 15.9` for every larger logit, and cuts out
    the neighbourhood of :math:`\lambda = 1/2` in a way that leaves a variance of 0.25 next to it
    where 1/12 is right. Here everything is a function of the logit, and exact to rounding.

    Args:
        logits: :math:`\eta`, any real numbers; they are not log-odds of anything.

    References:
        Loaiza-Ganem and Cunningham 2019, https://arxiv.org/abs/1907.06845

    Example:
        >>> p = ContinuousBernoulli(torch.tensor([1.0, 100.0]))
        >>> p.log_prob(torch.tensor([0.5, 1.0]))
        tensor([-0.0413,  4.6052])
        >>> p.mean
        tensor([0.5820, 0.9900])
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = False

    def __init__(self, logits: Float[Tensor, "*batch"], validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: Any, _instance: "ContinuousBernoulli | None" = None
    ) -> "ContinuousBernoulli":
        """The same distribution with its logits expanded to another batch shape."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log-density in nats at ``value`` in [0, 1], which broadcasts against the logits."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - _log_sinhc(self.logits / 2)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[x], in (0, 1)."""
        return 0.5 + 0.5 * _langevin(self.logits / 2)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var[x], at most 1/12."""
        return 0.25 * _langevin_slope(self.logits / 2)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draw by inverting the distribution function; no gradient flows through the draw."""
        shape = self.shape(sample_shape)
        logits = self.logits.expand(shape)
        uniform = torch.rand(shape, dtype=logits.dtype, device=logits.device)
        # Draw for the logit's negative size, where the density falls with x, and mirror.
        size = logits.abs().clamp_min(torch.finfo(logits.dtype).eps ** 2)  # never 0 / 0
        fallen = (-torch.log1p(uniform * torch.expm1(-size)) / size).clamp(0.0, 1.0)
        return torch.where(logits > 0, 1 - fallen, fallen)
