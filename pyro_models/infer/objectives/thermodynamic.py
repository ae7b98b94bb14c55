"""The thermodynamic variational objective: log p(x) as an integral from guide to posterior."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.draws import Detached, Draws
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.multi_sample import require_all_data, require_densities
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.weights import Program


@dataclass(frozen=True)
class LeftRule:
    """Each interval by its left end: a lower bound, for the integrand grows.

    With K draws it is at most the bound of ``IWAE(K)`` on the same draws.
    """


@dataclass(frozen=True)
class RightRule:
    """Each interval by its right end: an upper bound, were expectations exact.

    With K draws it is at least the bound of ``IWAE(K)`` on the same draws, which is all that is
    sure: its mean may lie below log p(x).
    """


@dataclass(frozen=True)
class TrapezoidRule:
    """Each interval by the mean of its ends: nearest to log p(x), and no bound."""


Rule = LeftRule | RightRule | TrapezoidRule


class ThermodynamicELBO(Objective):
    r"""The thermodynamic variational objective,

    .. math::
        \log p(x) = \int_0^1 E_{\pi_\beta}[\log w]\, d\beta, \qquad
        \pi_\beta(z) \propto q(z \mid x)^{1 - \beta}\, p(x, z)^\beta, \quad
        w = \frac{p(x, z)}{q(z \mid x)},

    its integrand taken at :math:`0 = \beta_0 < \dots < \beta_J = 1`. With the left rule and J = 1
    it is the ELBO, and with more intervals a tighter lower bound. Expectations are self-normalised
    over K draws of q with weights :math:`w^\beta`, biased by O(1/K). The integrand is then the
    slope of :math:`\log \frac1K \sum_k w_k^\beta`, which is convex in :math:`\beta`, 0 at its start
    and the bound of ``IWAE(K)`` at its end, and so on the same draws

    .. math::
        \text{left rule} \le \log \frac1K \sum_k w_k \le \text{right rule}.

    The left rule's mean is a lower bound of log p(x) at any K, therefore; the right rule's is an
    upper bound only in the limit of many draws. The gradient of each expectation is

    .. math::
        E_{\pi_\beta}[\nabla \log w] +
        \mathrm{Cov}_{\pi_\beta}[\nabla \log q + \beta \nabla \log w, \log w],

    for which draws are constants: latents need not be reparameterised. Masks and scales of latents
    are in w; the :math:`\log q` beside it is that of the draws, which neither changes.

    Args:
        num_particles: K, at least 2.
        num_intervals: J.
        first: :math:`\beta_1`; the others are log-uniform from it to 1. Not used for J = 1.
        rule: ``LeftRule()``, ``RightRule()`` or ``TrapezoidRule()``.

    Raises:
        OptionError: If an argument cannot work.

    References:
        Masrani, Le and Wood 2019, "The Thermodynamic Variational Objective",
        https://arxiv.org/abs/1907.00031

    Example:
        >>> ThermodynamicELBO(50).betas
        (0.0, 0.025, 1.0)
    """

    def __init__(
        self,
        num_particles: int,
        num_intervals: int = 2,
        first: float = 0.025,
        rule: Rule = LeftRule(),
    ):
        super().__init__(num_particles)
        if num_particles < 2:
            raise OptionError(
                f"num_particles is {num_particles}; a covariance takes at least 2 draws"
            )
        if num_intervals < 1:
            raise OptionError(f"num_intervals is {num_intervals}; it must be at least 1")
        if not 0.0 < first < 1.0:
            raise OptionError(f"first is {first}; it must lie between 0 and 1")
        if not isinstance(rule, Rule):
            raise OptionError(f"rule is {rule!r}; give LeftRule(), RightRule() or TrapezoidRule()")
        self.rule = rule
        steps = num_intervals - 1
        inner = [first ** (1 - j / steps) for j in range(steps)] if steps else []
        self.betas: tuple[float, ...] = (0.0, *inner, 1.0)
        """The nodes, in rising order."""

    def __repr__(self) -> str:
        first = f", first={self.betas[1]:g}" if len(self.betas) > 2 else ""
        return (
            f"ThermodynamicELBO(num_particles={self.num_particles}, "
            f"num_intervals={len(self.betas) - 1}{first}, rule={self.rule})"
        )

    @property
    def draws(self) -> Draws:
        """Constants."""
        return Detached()

    def weights(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        """Run the pair; see ``Objective.weights``."""
        weights = super().weights(model, guide, args, kwargs)
        require_densities(weights, "ELBO()")
        return weights

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the objective from one run; see ``Objective.estimate``."""
        require_all_data(weights)
        plain = weights.importance().detach()
        log_w = weights.importance(kl_weight)
        # What the draws come from: no mask or scale on a latent changes it.
        log_q = weights.scores()
        log_q = torch.zeros_like(plain) if log_q is None else log_q
        bound, surrogate = plain.new_zeros(()), plain.new_zeros(())
        for beta, share in zip(self.betas, self._shares(), strict=True):
            if share:
                bound = bound + share * (_normalized(plain, beta) * plain).sum()
                surrogate = surrogate + share * _expectation(log_w, log_q, beta)
        scale = weights.importance_scale
        return Estimate(scale * bound, scale * surrogate)

    def _shares(self) -> list[float]:
        """Weight of the integrand at each node."""
        widths = [b - a for a, b in zip(self.betas, self.betas[1:], strict=False)]
        left, right = [*widths, 0.0], [0.0, *widths]
        if isinstance(self.rule, LeftRule):
            return left
        if isinstance(self.rule, RightRule):
            return right
        return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def _normalized(log_w: Float[Tensor, "K M"], beta: float) -> Float[Tensor, "K M"]:
    return (beta * log_w.detach()).softmax(0)


def _expectation(
    log_w: Float[Tensor, "K M"], log_q: Float[Tensor, "K M"], beta: float
) -> Float[Tensor, ""]:
    """What the gradient of the expectation of log w at a node is the gradient of."""
    share = _normalized(log_w, beta)
    value = log_w.detach()
    centred = value - (share * value).sum(0)
    # log q + beta log w is the log of what the draws and their weights stand for.
    return (share * (log_w + centred * (log_q + beta * log_w))).sum()
