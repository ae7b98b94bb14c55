"""Schedules of the learning rate and of the KL weight: pure functions of how far a fit has come.

A schedule holds no state, so that a resumed fit meets the same values as an uninterrupted one.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from pyro_models.errors import OptionError


@dataclass(frozen=True)
class Progress:
    """How far a fit has come, just before a step."""

    step: int
    """Optimisation steps taken so far; 0 before the first."""
    epoch: int
    """Epochs completed so far; 0 throughout the first."""
    total_epochs: int
    """Epochs that the fit is to take."""
    total_steps: int | None = None
    """Steps that the fit is to take; ``None`` where a loader does not tell its length."""

    @property
    def fraction(self) -> float:
        """Share of the fit that is done, from 0 to 1; in whole epochs if the steps are unknown."""
        if self.total_steps is None:
            return min(self.epoch / self.total_epochs, 1.0)
        return min(self.step / self.total_steps, 1.0)


class Schedule(ABC):
    """A factor on the optimiser's own learning rate."""

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The factor for the step that comes next."""


class KLSchedule(ABC):
    """A weight on the KL divergence in what is optimised; the reported bound has weight 1."""

    @abstractmethod
    def weight(self, progress: Progress) -> float:
        """The weight for the step that comes next."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimiser's learning rate as it is: factor 1.

    Example:
        >>> Constant().factor(Progress(step=7, epoch=3, total_epochs=10))
        1.0
    """

    def factor(self, progress: Progress) -> float:
        """Always 1."""
        return 1.0


@dataclass(frozen=True)
class InverseEpoch(Schedule):
    r"""The lecture notes' schedule, :math:`1 / (1 + e)` in epoch :math:`e = 0, 1, \dots`.

    Example:
        >>> InverseEpoch().factor(Progress(step=70, epoch=3, total_epochs=10))
        0.25
    """

    def factor(self, progress: Progress) -> float:
        """1 / (1 + epochs completed)."""
        return 1.0 / (1 + progress.epoch)


@dataclass(frozen=True)
class Exponential(Schedule):
    r"""Geometric decay, :math:`d^e` in epoch :math:`e = 0, 1, \dots`.

    Args:
        decay: d, the factor from one epoch to the next, in (0, 1].

    Raises:
        OptionError: If ``decay`` is not in (0, 1].

    Example:
        >>> Exponential(decay=0.5).factor(Progress(step=70, epoch=3, total_epochs=10))
        0.125
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0.0 < self.decay <= 1.0:
            raise OptionError(f"Exponential decay is {self.decay}; give a number in (0, 1]")

    def factor(self, progress: Progress) -> float:
        """Decay to the power of the epochs completed."""
        return self.decay**progress.epoch


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine over the whole fit, from 1 down to ``floor``.

    .. math:: f + (1 - f) \, \tfrac12 (1 + \cos \pi t), \qquad t = \text{share of the fit done}

    Loshchilov and Hutter (2017), https://arxiv.org/abs/1608.03983, without restarts.

    Args:
        floor: f, the factor at the end, in [0, 1].

    Raises:
        OptionError: If ``floor`` is not in [0, 1].

    Example:
        >>> half = Progress(step=50, epoch=5, total_epochs=10, total_steps=100)
        >>> round(Cosine(floor=0.2).factor(half), 6)
        0.6
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise OptionError(f"Cosine floor is {self.floor}; give a number in [0, 1]")

    def factor(self, progress: Progress) -> float:
        """The point of the half cosine that the fit has reached."""
        share = 0.5 * (1.0 + math.cos(math.pi * progress.fraction))
        return self.floor + (1.0 - self.floor) * share


@dataclass(frozen=True)
class Burda(Schedule):
    r"""Stages :math:`i = 0, \dots, 7` of :math:`3^i` epochs each, with factor :math:`10^{-i/7}`.

    The schedule of Burda, Grosse and Salakhutdinov (2015), https://arxiv.org/abs/1509.00519, over
    3280 epochs, with Adam at a rate of 1e-3. A longer fit stays in the last stage.

    Args:
        epochs: What the stages are stretched or shortened to fill, in proportion.

    Raises:
        OptionError: If ``epochs`` is less than 1.

    Example:
        >>> moments = [Progress(step=0, epoch=e, total_epochs=3280) for e in (0, 1, 4)]
        >>> [round(Burda().factor(moment), 4) for moment in moments]
        [1.0, 0.7197, 0.5179]
        >>> round(Burda(epochs=100).factor(Progress(step=0, epoch=99, total_epochs=100)), 4)
        0.1
    """

    epochs: int = 3280

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise OptionError(f"epochs is {self.epochs}; it must be at least 1")

    def factor(self, progress: Progress) -> float:
        """Factor of the stage that the epoch lies in."""
        epoch = progress.epoch * 3280 / self.epochs
        stage, end = 0, 1  # stage i ends after 1 + 3 + ... + 3^i epochs
        while stage < 7 and epoch >= end:
            stage += 1
            end += 3**stage
        return 10.0 ** (-stage / 7)


@dataclass(frozen=True)
class Warmup(Schedule):
    r"""A linear rise over the first steps, times another schedule.

    Step :math:`t = 0, 1, \dots` has the factor :math:`\min(1, (t + 1) / T)` times ``then``'s.

    Args:
        steps: T, the steps until the full rate, at least 1.
        then: The schedule that is multiplied.

    Raises:
        OptionError: If ``steps`` is less than 1.

    Example:
        >>> Warmup(steps=10, then=InverseEpoch()).factor(Progress(step=4, epoch=1, total_epochs=3))
        0.25
    """

    steps: int
    then: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"Warmup takes {self.steps} steps; give at least 1")

    def factor(self, progress: Progress) -> float:
        """The rise, times the factor of ``then``."""
        return min(1.0, (progress.step + 1) / self.steps) * self.then.factor(progress)


@dataclass(frozen=True)
class LinearWarmup(KLSchedule):
    r"""KL weight :math:`s + (e - s) \min(1, t / T)` at step :math:`t = 0, 1, \dots`.

    Bowman et al. (2016), https://arxiv.org/abs/1511.06349; Sønderby et al. (2016),
    https://arxiv.org/abs/1602.02282.

    Args:
        steps: T, the steps until weight e, at least 1. In steps, not epochs: how long latents need
            to be of use does not depend on the size of the set.
        start: s, the weight of the first step.
        end: e, the weight in the end; 1 for the bound itself, another for that of a ``Beta``.

    Raises:
        OptionError: If ``steps`` is less than 1, or a weight is negative or not finite.

    Example:
        >>> LinearWarmup(steps=100).weight(Progress(step=25, epoch=0, total_epochs=1))
        0.25
        >>> LinearWarmup(100, end=4.0).weight(Progress(step=900, epoch=0, total_epochs=1))
        4.0
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"LinearWarmup takes {self.steps} steps; give at least 1")
        _check_weight("LinearWarmup start", self.start)
        _check_weight("LinearWarmup end", self.end)

    def weight(self, progress: Progress) -> float:
        """The point of the rise that the fit has reached."""
        if progress.step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * progress.step / self.steps


@dataclass(frozen=True)
class CyclicalWarmup(KLSchedule):
    """KL weight that rises from 0 to the top and stays there, over and over, at last for good.

    Fu et al. (2019), https://aclanthology.org/N19-1021.

    Args:
        period: Steps of one cycle, at least 1.
        cycles: How many cycles; the weight is at the top after the last.
        rise: Share of a cycle in which the weight rises, in (0, 1].
        top: The highest weight.

    Raises:
        OptionError: If an argument is out of its range.

    Example:
        >>> schedule = CyclicalWarmup(period=100, cycles=2)
        >>> [schedule.weight(Progress(t, epoch=0, total_epochs=1)) for t in (0, 25, 60, 100, 300)]
        [0.0, 0.5, 1.0, 0.0, 1.0]
    """

    period: int
    cycles: int = 4
    rise: float = 0.5
    top: float = 1.0

    def __post_init__(self) -> None:
        if self.period < 1 or self.cycles < 1:
            raise OptionError(
                f"CyclicalWarmup has period={self.period} and cycles={self.cycles}; "
                "give at least 1 of each"
            )
        if not 0.0 < self.rise <= 1.0:
            raise OptionError(f"CyclicalWarmup rise is {self.rise}; give a share in (0, 1]")
        _check_weight("CyclicalWarmup top", self.top)

    def weight(self, progress: Progress) -> float:
        """The point of the cycle that the fit has reached; the top after the last cycle."""
        if progress.step >= self.period * self.cycles:
            return self.top
        return self.top * min(1.0, progress.step % self.period / (self.period * self.rise))


@dataclass(frozen=True)
class Beta(KLSchedule):
    r"""A constant KL weight :math:`\beta`.

    Above 1 it asks for a simpler code than the bound does (Higgins et al. 2017, the beta-VAE,
    https://openreview.net/forum?id=Sy2fzU9gl), below 1 for one that says more of the data: a point
    of the curve of rate and distortion (Alemi et al. 2018, "Fixing a Broken ELBO",
    https://arxiv.org/abs/1711.00464).

    Args:
        beta: The weight.

    Raises:
        OptionError: If it is negative or not finite.

    Example:
        >>> Beta(4.0).weight(Progress(step=7, epoch=0, total_epochs=1))
        4.0
    """

    beta: float

    def __post_init__(self) -> None:
        _check_weight("Beta", self.beta)

    def weight(self, progress: Progress) -> float:
        """Always the same."""
        return self.beta


def _check_weight(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0.0):
        raise OptionError(f"{name} is {value}; give a weight of zero or more")
