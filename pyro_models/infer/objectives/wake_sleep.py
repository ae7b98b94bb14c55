"""Reweighted wake-sleep, with one set of normalised weights a datum."""

from dataclasses import dataclass
from typing import Any

from pyro_models.errors import OptionError
from pyro_models.infer.draws import Detached, Draws
from pyro_models.infer.dreams import dream
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.multi_sample import (
    importance_bound,
    require_all_data,
    require_densities,
)
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.weights import Program


@dataclass(frozen=True)
class WakePhase:
    """The guide learns the posterior of real data: its draws, weighted."""


@dataclass(frozen=True)
class SleepPhase:
    """The guide learns the posterior of data simulated from the model, whose latents are known."""


@dataclass(frozen=True)
class WakeAndSleep:
    """A mixture of both."""

    wake: float = 0.5
    """Share of the wake phase, from 0 to 1."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.wake <= 1.0:
            raise OptionError(f"wake is {self.wake}; it must lie between 0 and 1")


GuidePhase = WakePhase | SleepPhase | WakeAndSleep


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep: no gradient passes through a draw, so every latent will do.

    With :math:`z_k \sim q(z \mid x)` and normalised weights
    :math:`\tilde w_k \propto p(x, z_k) / q(z_k \mid x)`, a set for each datum, the model ascends

    .. math::
        \sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k),

    the gradient of the importance-weighted bound, which is the bound reported. The guide ascends
    :math:`\sum_k \tilde w_k \nabla_\phi \log q_\phi(z_k \mid x)` awake, which lowers
    :math:`KL(p(z \mid x) \| q(z \mid x))`, and :math:`\nabla_\phi \log q_\phi(z \mid x)` at
    :math:`(x, z) \sim p_\theta` asleep. The wake phase's gradient is self-normalised: it is biased
    by O(1/K).

    Args:
        num_particles: K, at least 2 for the wake phase.
        guide_phase: ``WakePhase()``, ``SleepPhase()`` or ``WakeAndSleep(wake)``. Asleep, the model
            must be able to simulate: what it observes is one of its arguments, and the guide gets
            the simulated data in its place.

    Raises:
        OptionError: If an argument cannot work.

    References:
        Bornschein and Bengio 2015, "Reweighted Wake-Sleep", https://arxiv.org/abs/1406.2751
        Le et al. 2019, "Revisiting Reweighted Wake-Sleep", https://arxiv.org/abs/1805.10469

    Example:
        >>> ReweightedWakeSleep(10)
        ReweightedWakeSleep(num_particles=10, guide_phase=WakePhase())
    """

    def __init__(self, num_particles: int, guide_phase: GuidePhase = WakePhase()):
        super().__init__(num_particles)
        if not isinstance(guide_phase, GuidePhase):
            raise OptionError(
                f"guide_phase is {guide_phase!r}; give WakePhase(), SleepPhase() or "
                "WakeAndSleep(wake)"
            )
        self.guide_phase = guide_phase
        if self._wake > 0 and num_particles < 2:
            raise OptionError(
                f"num_particles is {num_particles}; one draw has weight 1 and teaches the guide "
                "awake nothing: give at least 2, or SleepPhase()"
            )

    def __repr__(self) -> str:
        return (
            f"ReweightedWakeSleep(num_particles={self.num_particles}, "
            f"guide_phase={self.guide_phase})"
        )

    @property
    def _wake(self) -> float:
        if isinstance(self.guide_phase, WakeAndSleep):
            return self.guide_phase.wake
        return float(isinstance(self.guide_phase, WakePhase))

    @property
    def sleeps(self) -> bool:
        """Whether the guide learns from simulated data too."""
        return self._wake < 1

    @property
    def draws(self) -> Draws:
        """Constants."""
        return Detached()

    def weights(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        """Run the pair, and for the sleep phase the guide on simulated data."""
        awake = super().weights(model, guide, args, kwargs)
        require_densities(awake, "ELBO()")
        if self.sleeps:
            awake.notes["dream"] = dream(model, guide, args, kwargs, awake)
        return awake

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the bound from one run; see ``Objective.estimate``."""
        require_all_data(weights)
        scale = weights.importance_scale
        bound = importance_bound(weights.importance().detach()).sum()
        log_q = weights.log_q_all()
        log_w = weights.importance(kl_weight)
        log_p = log_w + weights.log_q_all(kl_weight)
        normalized = log_w.detach().softmax(0)
        surrogate = (normalized * log_p).sum()
        if self._wake > 0:
            surrogate = surrogate + self._wake * (normalized * log_q).sum()
        surrogate = scale * surrogate
        if self.sleeps:
            asleep = weights.notes["dream"]
            dreamt = asleep.importance_scale * asleep.log_q_all().sum()
            surrogate = surrogate + (1 - self._wake) * dreamt
        return Estimate(scale * bound, surrogate)
