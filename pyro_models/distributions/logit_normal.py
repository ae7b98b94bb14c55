"""The logit-normal distribution, with its moments and its divergence from a Beta."""

import math
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Beta, constraints, register_kl
from torch.distributions.utils import broadcast_all
from torch.nn import functional

from pyro_models.distributions.beta_functions import log_beta
from pyro_models.distributions.kumaraswamy import Logs
from pyro_models.distributions.stick_fractions import inside, logs_inside

# The trapezoidal rule over log k for Kolmogorov's distribution: beyond these k its density is
# under float64's rounding, and the rule converges exponentially.
_FROM, _TO, _NODES = 0.14, 4.4, 24


def _kolmogorov(k: float) -> float:
    """Density of Kolmogorov's distribution, by whichever of its two series converges fast."""
    if k < 1:
        odd = ((2 * j - 1) * math.pi / (2 * k) for j in range(1, 6))
        return math.sqrt(2 * math.pi) * sum((t * t - 1) * math.exp(-t * t / 2) for t in odd) / k**2
    terms = (j * j * math.exp(-2 * (j * k) ** 2) * (-1) ** (j + 1) for j in range(1, 6))
    return 8 * k * sum(terms)


_STEP = math.log(_TO / _FROM) / (_NODES - 1)
_K = tuple(_FROM * math.exp(_STEP * node) for node in range(_NODES))
_WEIGHTS = tuple(_STEP * k * _kolmogorov(k) for k in _K)


@final
class LogitNormal(TorchDistribution):
    r"""A number in (0, 1) whose log-odds are normal.

    .. math::
        v = \sigma(y), \quad y \sim \mathcal N(m, s^2), \qquad
        p(v) = \frac{\mathcal N(\mathrm{logit}\, v; m, s^2)}{v (1 - v)}

    Its moments have no closed form, but an integral over one number that converges fast for every
    m and s: the logistic distribution, which the sigmoid is the distribution function of, is a
    normal with a random scale 2k, k being Kolmogorov's (Andrews and Mallows). Hence

    .. math::
        E[\sigma(y)] = E_k\Big[\Phi\Big(\frac{m}{t}\Big)\Big], \qquad
        E[\log(1 + e^y)] = E_k\Big[t\, \varphi\Big(\frac{m}{t}\Big)
            + m\, \Phi\Big(\frac{m}{t}\Big)\Big], \qquad t = \sqrt{s^2 + 4 k^2}

    Args:
        loc: m, the mean of the log-odds.
        scale: s > 0, their standard deviation.

    References:
        Atchison and Shen 1980, https://doi.org/10.1093/biomet/67.2.261
        Andrews and Mallows 1974, https://doi.org/10.1111/j.2517-6161.1974.tb00989.x

    Example:
        >>> q = LogitNormal(torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 3.0]))
        >>> q.mean
        tensor([0.1555, 0.5000])
        >>> q.log_prob(torch.tensor([0.5, 0.5]))
        tensor([-1.5326, -0.6313])
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "..."] | float,
        scale: Float[Tensor, "..."] | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: "LogitNormal | None" = None) -> "LogitNormal":
        """The same distribution with its parameters expanded to another batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return LogitNormal(loc, scale, self._validate_args)

    def rsample_logs(self, sample_shape: Any = ()) -> Logs:
        """Draw v as (log v, log(1 - v)), of which neither is lost.

        Args:
            sample_shape: Leading shape of the draws.
        """
        shape = self.shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        logit = self.loc + self.scale * noise
        return Logs(functional.logsigmoid(logit), functional.logsigmoid(-logit))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Draw v, clipped to what lies strictly between 0 and 1; see ``rsample_logs``."""
        return inside(self.rsample_logs(sample_shape).log_v.exp())

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
        standard = (logs.log_v - logs.log1m_v - self.loc) / self.scale
        normal = -0.5 * standard.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return normal - logs.log_v - logs.log1m_v

    def _mixture(self) -> tuple[Tensor, Tensor]:
        """Weights of the nodes, and the scale t at each of them, ``(nodes, *batch)``."""
        shape = (-1, *(1,) * self.loc.dim())
        weights, k = self.loc.new_tensor([_WEIGHTS, _K]).reshape(2, *shape)
        return weights, (self.scale.square() + 4 * k.square()).sqrt()

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[v]."""
        weights, t = self._mixture()
        return (weights * torch.special.ndtr(self.loc / t)).sum(0)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        r"""Var[v] = E[v] (1 - E[v]) - E[v (1 - v)], whose last term is E[v]'s derivative by m."""
        double = LogitNormal(self.loc.double(), self.scale.double(), validate_args=False)
        weights, t = double._mixture()
        between = (weights * _normal_density(double.loc / t) / t).sum(0)
        mean = double.mean
        return (mean * (1 - mean) - between).clamp_min(0.0).to(self.loc.dtype)

    def mean_logs(self) -> Logs:
        """E[log v] and E[log(1 - v)], both differentiable.

        Example:
            >>> LogitNormal(torch.tensor(0.0), torch.tensor(1e-3)).mean_logs()  # log(1/2)
            Logs(log_v=tensor(-0.6931), log1m_v=tensor(-0.6931))
        """
        weights, t = self._mixture()
        u = self.loc / t
        softplus = (weights * (t * _normal_density(u) + self.loc * torch.special.ndtr(u))).sum(0)
        return Logs(self.loc - softplus, -softplus)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Differential entropy in nats: the normal's, plus E[log v + log(1 - v)]."""
        mean = self.mean_logs()
        return 0.5 * math.log(2 * math.pi * math.e) + self.scale.log() + mean.log_v + mean.log1m_v


def _normal_density(u: Tensor) -> Tensor:
    return torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)


@register_kl(LogitNormal, Beta)
def kl_logit_normal_beta(p: LogitNormal, q: Beta) -> Tensor:
    r"""KL of a logit-normal from a Beta, in nats.

    .. math::
        \mathrm{KL} = -H[p] + \log \mathrm B(\alpha, \beta)
                      - (\alpha - 1) E[\log v] - (\beta - 1) E[\log(1 - v)]

    The expectations are the integrals of ``LogitNormal``, exact to float64's rounding or nearly.

    Args:
        p: The logit-normal.
        q: Beta(:math:`\alpha, \beta`), which broadcasts against ``p``.

    Example:
        >>> p = LogitNormal(torch.tensor(0.0), torch.tensor(1.7))
        >>> torch.distributions.kl_divergence(p, Beta(torch.tensor(1.0), torch.tensor(1.0)))
        tensor(0.0101)
    """
    alpha, beta = q.concentration1, q.concentration0
    mean = p.mean_logs()
    # Of -H the parts in E[log v] and E[log(1 - v)] are taken together with the Beta's.
    normal = -p.scale.log() - 0.5 * math.log(2 * math.pi * math.e)
    return normal + log_beta(alpha, beta) - alpha * mean.log_v - beta * mean.log1m_v
