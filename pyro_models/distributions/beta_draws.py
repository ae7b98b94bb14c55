r"""The Beta distribution with draws that stay inside (0, 1), by two kinds of gradient.

.. math:: p(v) = \frac{v^{a - 1} (1 - v)^{b - 1}}{\mathrm B(a, b)}
"""

from abc import abstractmethod
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Beta, Dirichlet, constraints, kl_divergence, register_kl
from torch.distributions.utils import broadcast_all
from torch.nn import functional

from pyro_models.distributions.beta_functions import log_beta
from pyro_models.distributions.kumaraswamy import Logs
from pyro_models.distributions.stick_fractions import inside, logs_inside


class BetaDraws(TorchDistribution):
    """Parent of the two: the Beta's density and moments, whatever the draws' path.

    Args:
        concentration1: a > 0, the exponent of v.
        concentration0: b > 0, the exponent of 1 - v.
    """

    arg_constraints: ClassVar = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self,
        concentration1: Float[Tensor, "..."] | float,
        concentration0: Float[Tensor, "..."] | float,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration1, self.concentration0 = broadcast_all(concentration1, concentration0)
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: "BetaDraws | None" = None) -> "BetaDraws":
        """The same distribution with its parameters expanded to another batch shape."""
        a, b = self.concentration1, self.concentration0
        return type(self)(a.expand(batch_shape), b.expand(batch_shape), self._validate_args)

    @abstractmethod
    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draw v strictly between 0 and 1; gradients flow through the draw to a and b."""

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log-density in nats at v; at exactly 0 and 1, that of the nearest number inside."""
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_logs(logs_inside(value))

    def log_prob_of_logs(self, logs: Logs) -> Float[Tensor, "..."]:
        """Log-density in nats, with respect to v, at v given by its logarithms.

        Args:
            logs: log v and log(1 - v), broadcastable to the parameters.
        """
        a, b = self.concentration1, self.concentration0
        return (a - 1) * logs.log_v + (b - 1) * logs.log1m_v - log_beta(a, b)

    def as_beta(self) -> Beta:
        """The torch distribution of the same density."""
        return Beta(self.concentration1, self.concentration0, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """a / (a + b)."""
        return self.as_beta().mean

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """a b / ((a + b)² (a + b + 1))."""
        return self.as_beta().variance

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Differential entropy in nats."""
        return self.as_beta().entropy()


@final
class ImplicitBeta(BetaDraws):
    r"""A Beta whose draws are differentiated implicitly, through the distribution function.

    .. math:: \frac{\partial v}{\partial a} = -\frac{\partial F(v; a, b) / \partial a}{p(v; a, b)}

    It is torch's path for the Beta, with draws that rounding would put at exactly 0 or 1, where
    densities are infinite, moved to the nearest number inside.

    References:
        Figurnov, Mohamed and Mnih 2018, https://arxiv.org/abs/1805.08498

    Example:
        >>> v = ImplicitBeta(torch.tensor(0.05), torch.tensor(0.05)).rsample(torch.Size([10_000]))
        >>> bool((v > 0).all() and (v < 1).all())
        True
    """

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draw v strictly between 0 and 1; gradients flow through the draw to a and b."""
        both = torch.stack([self.concentration1, self.concentration0], -1)
        return inside(Dirichlet(both, validate_args=False).rsample(sample_shape)[..., 0])


@final
class GammaRatio(BetaDraws):
    r"""A Beta whose draws are a gamma's share of two, made in log space.

    .. math::
        v = \frac{g_1}{g_1 + g_2}, \quad g_1 \sim \mathrm{Gamma}(a), \; g_2 \sim \mathrm{Gamma}(b),
        \qquad \log g = \log g' + \frac{\log u}{a}, \quad g' \sim \mathrm{Gamma}(a + 1), \;
        u \sim \mathrm{Uniform}(0, 1)

    A gamma of a small shape underflows; the boosted one, of a shape above 1, does not, and the rest
    is a logarithm. ``rsample_logs`` gives log v and log(1 - v) of which neither is lost. The path
    is implicit in g' and explicit in u.

    References:
        Marsaglia and Tsang 2000, section 6 (boosting), https://doi.org/10.1145/358407.358414
        Figurnov, Mohamed and Mnih 2018, https://arxiv.org/abs/1805.08498

    Example:
        >>> q = GammaRatio(torch.tensor(0.01), torch.tensor(0.01))
        >>> draws = q.rsample_logs(torch.Size([1000]))
        >>> bool(draws.log1m_v.isfinite().all()), bool((draws.log1m_v < -80).any())
        (True, True)
    """

    def rsample_logs(self, sample_shape: Any = ()) -> Logs:
        """Draw v as (log v, log(1 - v)), through which gradients flow to a and b.

        Args:
            sample_shape: Leading shape of the draws.
        """
        shape = self.shape(sample_shape)
        logit = _log_gamma(self.concentration1, shape) - _log_gamma(self.concentration0, shape)
        return Logs(functional.logsigmoid(logit), functional.logsigmoid(-logit))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draw v, clipped to what lies strictly between 0 and 1; see ``rsample_logs``."""
        return inside(self.rsample_logs(sample_shape).log_v.exp())


def _log_gamma(concentration: Tensor, shape: torch.Size) -> Tensor:
    """The logarithm of a draw from a standard gamma."""
    boosted = torch._standard_gamma((concentration + 1).expand(shape))
    uniform = torch.rand(shape, dtype=boosted.dtype, device=boosted.device)
    # torch's uniform draws are multiples of eps / 2, and may be 0.
    uniform = uniform.clamp_min(torch.finfo(uniform.dtype).eps / 4)
    return boosted.log() + uniform.log() / concentration


@register_kl(BetaDraws, Beta)
def kl_beta_draws_beta(p: BetaDraws, q: Beta) -> Tensor:
    """KL from a Beta, in nats: that of two Betas, for the path of the draws is no part of it.

    Args:
        p: The distribution.
        q: The Beta, which broadcasts against ``p``.

    Example:
        >>> p = GammaRatio(torch.tensor(2.0), torch.tensor(3.0))
        >>> torch.distributions.kl_divergence(p, Beta(2.0, 3.0))
        tensor(0.)
    """
    return kl_divergence(p.as_beta(), q)
