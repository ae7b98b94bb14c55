"""The Kumaraswamy distribution, sampled and evaluated without loss near 0 and near 1."""

from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Beta, constraints, register_kl
from torch.distributions.utils import broadcast_all

from pyro_models.distributions.beta_functions import log_beta, mean_logs
from pyro_models.distributions.log_space import complement, inside, log_complement, loglog_of


class Logs(NamedTuple):
    """A number v in (0, 1) by two logarithms, of which at least one has kept it."""

    log_v: Tensor
    """log v; it rounds to 0 where v is within the type's smallest number of 1."""
    log1m_v: Tensor
    """log(1 - v); it rounds to 0 where v is that near to 0."""


@final
class Kumaraswamy(TorchDistribution):
    r"""A distribution on (0, 1) that is like a Beta and has an explicit inverse.

    .. math::
        p(v) = a b\, v^{a - 1} (1 - v^a)^{b - 1}, \qquad
        F(v) = 1 - (1 - v^a)^b, \qquad
        v = \big(1 - e^{-E / b}\big)^{1/a}, \quad E \sim \mathrm{Exponential}(1)

    ``torch.distributions.Kumaraswamy`` rounds draws to exactly 1 (42 % of them at a = b = 0.05 in
    float32), where gradients are NaN. Here a draw is made as :math:`\log(-\log v)`, from which
    both :math:`\log v` and :math:`\log(1 - v)` follow to rounding: ``rsample_logs`` gives them and
    ``log_prob_of_logs`` takes them. Only ``rsample``, whose result is v itself, must clip it to
    the numbers strictly between 0 and 1.

    Args:
        concentration1: a > 0, the exponent near 0.
        concentration0: b > 0, the exponent near 1.

    References:
        Kumaraswamy 1980, https://doi.org/10.1016/0022-1694(80)90036-0
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197

    Example:
        >>> q = Kumaraswamy(torch.tensor([0.05, 2.0]), torch.tensor([0.05, 3.0]))
        >>> q.log_prob(torch.tensor([0.5, 0.5]))
        tensor([-2.1224,  0.5232])
        >>> q.mean
        tensor([0.8370, 0.4571])
        >>> draws = q.rsample_logs(torch.Size([1000]))
        >>> bool(draws.log1m_v[:, 0].isfinite().all()), bool((draws.log1m_v[:, 0] < -80).any())
        (True, True)
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

    def expand(self, batch_shape: Any, _instance: "Kumaraswamy | None" = None) -> "Kumaraswamy":
        """The same distribution with its parameters expanded to another batch shape."""
        return Kumaraswamy(
            self.concentration1.expand(batch_shape),
            self.concentration0.expand(batch_shape),
            self._validate_args,
        )

    def rsample_logs(self, sample_shape: Any = ()) -> Logs:
        r"""Draw v as (log v, log(1 - v)), through which gradients flow to a and b.

        .. math::
            \log(-\log v) = \log\big(-\log(1 - e^{-E/b})\big) - \log a

        Args:
            sample_shape: Leading shape of the draws.
        """
        shape = self.shape(sample_shape)
        like = self.concentration1
        uniform = torch.rand(shape, dtype=like.dtype, device=like.device)
        # torch's uniform draws are multiples of eps / 2, and may be 0.
        uniform = uniform.clamp_min(torch.finfo(like.dtype).eps / 4)
        return self._logs_at(torch.log(-torch.log(uniform)))

    def _logs_at(self, log_noise: Tensor) -> Logs:
        """Where the survival function is exp(-E), for log E."""
        loglog = complement(log_noise - self.concentration0.log()) - self.concentration1.log()
        return Logs(-torch.exp(loglog), log_complement(loglog))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        r"""Draw v, clipped to what lies strictly between 0 and 1; see ``rsample_logs``.

        The share :math:`(a \delta)^b` of draws that are nearer to 1 than
        :math:`\delta = \mathrm{eps} / 2` stays at :math:`1 - \delta`. In a log-weight
        :math:`\log p(v) - \log q(v)` against a Beta(:math:`\alpha, \beta`) it therefore costs

        .. math:: (\beta - b)\, (a \delta)^b / b

        nats of bias: with a = 1 against Beta(1, 5) in float32 0.1 at b = 0.3, 9.3 at b = 0.1 and 43
        at b = 0.05, all upwards, as a bound must not err. ``rsample_logs`` has none of it.
        """
        return inside(self.rsample_logs(sample_shape).log_v.exp())

    def log_prob_of_logs(self, logs: Logs) -> Float[Tensor, "..."]:
        r"""Log-density in nats, with respect to v, at v given by its logarithms.

        .. math:: \log a + \log b + (a - 1) \log v + (b - 1) \log(1 - v^a)

        Args:
            logs: :math:`\log v` and :math:`\log(1 - v)`, broadcastable to the parameters.

        Example:
            >>> q = Kumaraswamy(torch.tensor(0.05), torch.tensor(0.05))
            >>> q.log_prob_of_logs(Logs(torch.tensor(0.0), torch.tensor(-300.0)))
            tensor(281.8545)
        """
        a, b = self.concentration1, self.concentration0
        return a.log() + b.log() + (a - 1) * logs.log_v + (b - 1) * self._log_rest(logs)

    def _log_rest(self, logs: Logs) -> Tensor:
        """log(1 - v^a)."""
        return log_complement(loglog_of(*logs) + self.concentration1.log())

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log-density in nats at v; at exactly 0 and 1, that of the nearest number inside."""
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_logs(_logs_of(value))

    def cdf(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """P(V <= v)."""
        if self._validate_args:
            self._validate_sample(value)
        inner = -torch.expm1(self.concentration0 * self._log_rest(_logs_of(value)))
        return torch.where(value <= 0, 0.0, torch.where(value >= 1, 1.0, inner))

    def icdf(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The v at which the distribution function is ``value``, strictly between 0 and 1."""
        noise = -torch.log1p(-inside(value))
        return inside(self._logs_at(noise.log()).log_v.exp())

    def _log_moment(self, power: int) -> Tensor:
        """log E[v^power] in float64: differences of large log-gammas would lose a float32."""
        a, b = self.concentration1.double(), self.concentration0.double()
        first = 1 + power / a
        return b.log() + torch.lgamma(first) + torch.lgamma(b) - torch.lgamma(first + b)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        r""":math:`b\, \mathrm B(1 + 1/a, b)`."""
        return self._log_moment(1).exp().to(self.concentration1.dtype)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var[v], from the first two moments in a way that does not cancel."""
        first, second = self._log_moment(1), self._log_moment(2)
        # Rounding may make the difference of logarithms positive where the variance vanishes.
        spread = -torch.expm1((2 * first - second).clamp_max(0.0))
        return (second.exp() * spread).to(self.concentration1.dtype)

    def entropy(self) -> Float[Tensor, "*batch"]:
        r"""Differential entropy in nats, with H the harmonic number.

        .. math:: 1 - 1/b + (1 - 1/a) H_b - \log(ab)
        """
        a, b = self.concentration1, self.concentration0
        harmonic, _ = mean_logs(a, b)
        return 1 - 1 / b + (1 - 1 / a) * harmonic - a.log() - b.log()

    def mean_logs(self) -> Logs:
        r"""E[log v] and E[log(1 - v)], both differentiable, by one quadrature.

        .. math::
            E[\log v] = -H_b / a, \qquad
            E[\log(1 - v)] = \int_0^\infty \log\big(1 - v(E)\big)\, e^{-E}\, dE

        with H the harmonic number. ``beta_functions.mean_logs`` has the quadrature: 41 nodes in
        float32, with gradients, for every a and b. The series of Nalisnick and Smyth,

        .. math::
            -E[\log(1 - v)] = \sum_{m=1}^M \frac{E[v^m]}{m} + R_M, \qquad
            E[v^m] = b\, \mathrm B(1 + m / a, b), \qquad
            0 \le R_M \le \Gamma(b)\, (a / M)^b,

        is no second route here, for a term of it costs three log-gammas: from b = 1 on it serves
        the tests as an oracle, with its bound. Below, it takes too many terms.

        Example:
            >>> Kumaraswamy(torch.tensor(1.0), torch.tensor(2.0)).mean_logs().log1m_v
            tensor(-0.5000)
        """
        a, b = self.concentration1, self.concentration0
        harmonic, minus_log1m = mean_logs(a, b)
        return Logs(-harmonic / a, -minus_log1m)


def _logs_of(value: Tensor) -> Logs:
    kept = inside(value)
    return Logs(kept.log(), torch.log1p(-kept))


@register_kl(Kumaraswamy, Beta)
def kl_kumaraswamy_beta(p: Kumaraswamy, q: Beta) -> Tensor:
    r"""KL of a Kumaraswamy from a Beta, in nats.

    .. math::
        \mathrm{KL} = \log(a b) - 1 + \frac1b + \Big(\frac{\alpha}{a} - 1\Big) H_b
                      + \log \mathrm B(\alpha, \beta) - (\beta - 1)\, E[\log(1 - v)]

    which is the negative entropy and the prior's terms, with those in the harmonic number
    :math:`H_b = -a\, E[\log v]` put together.

    Args:
        p: The Kumaraswamy.
        q: Beta(:math:`\alpha, \beta`), which broadcasts against ``p``.

    Example:
        >>> p = Kumaraswamy(torch.tensor(0.03).double(), torch.tensor(0.03).double())
        >>> round(torch.distributions.kl_divergence(p, Beta(1.0, 5.0)).item(), 2)  # not 63.5
        145.37
    """
    a, b = p.concentration1, p.concentration0
    alpha, beta = q.concentration1, q.concentration0
    harmonic, minus_log1m = mean_logs(a, b)
    constants = (a * b).log() - 1 + 1 / b + log_beta(alpha, beta)
    return constants + (alpha - a) / a * harmonic + (beta - 1) * minus_log1m
