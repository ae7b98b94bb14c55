"""Stepwise EM: M-steps from running averages of minibatches' statistics."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.stopping import Interrupt
from pyro_models.options import positive_int


@runtime_checkable
class SupportsStepwise(Protocol):
    """A model whose M-step needs the data only through averages."""

    def posterior(self, x: Tensor) -> Any:
        """The E-step: p(z | x) under the present parameters."""

    def statistics(self, x: Tensor, posterior: Any) -> Any:
        """A named tuple of tensors: means over the data of what the M-step needs."""

    def maximize_statistics(self, statistics: Any) -> None:
        """The M-step from such means."""


@dataclass(frozen=True)
class Stepwise:
    r"""Minibatches for ``em``: each moves the averages that the next M-step maximises for.

    .. math::
        \bar s \leftarrow (1 - \gamma_t) \bar s + \gamma_t s(\text{batch}_t), \qquad
        \gamma_t = (t + t_0)^{-\kappa}

    for t = 0, 1, ...; before the first, one pass through the data makes the average under the
    starting values. One step costs as much whatever the number of data.

    Args:
        batch_size: Data in a minibatch.
        power: The :math:`\kappa`, above 1/2 and at most 1: how fast the past is forgotten less.
        delay: The :math:`t_0`, at least 1: how careful the first steps are.

    Raises:
        OptionError: If an argument is out of its range.

    References:
        Cappé and Moulines 2009, https://arxiv.org/abs/0712.4273
        Liang and Klein 2009, https://aclanthology.org/N09-1069

    Example:
        >>> [round(Stepwise(100, power=0.5001, delay=4).weight(step), 3) for step in (0, 5)]
        [0.5, 0.333]
    """

    batch_size: int
    power: float = 0.7
    delay: float = 2.0

    def __post_init__(self) -> None:
        positive_int("batch_size", self.batch_size)
        if not 0.5 < self.power <= 1.0:
            raise OptionError(f"power={self.power}; give a number above 1/2, at most 1")
        if not 1.0 <= self.delay < math.inf:
            raise OptionError(f"delay={self.delay}; give a finite number of at least 1")

    def weight(self, step: int) -> float:
        """The weight of new statistics at a step, counted from 0."""
        return (step + self.delay) ** -self.power


class Averaging:
    """Stepwise EM under way.

    Args:
        model: Has posterior, statistics and maximize_statistics.
        x: All data.
        options: Size and weight of minibatches.
        seed: Of their order.
        bound: Of a posterior, nats per datum.
        interrupt: Ends an epoch early.
    """

    def __init__(
        self,
        model: SupportsStepwise,
        x: Tensor,
        options: Stepwise,
        seed: int,
        bound: Callable[[Any], float],
        interrupt: Interrupt,
    ):
        self._model = model
        self._x = x
        self._options = options
        self._generator = torch.Generator().manual_seed(seed)
        self._bound = bound
        self._interrupt = interrupt
        self._average: Any = None
        self._step = 0

    def begin(self) -> float:
        """Average over all data under the starting values; returns their bound."""
        total = 0.0
        for batch in self._x.split(self._options.batch_size):
            posterior = self._model.posterior(batch)
            share = len(batch) / len(self._x)
            total += share * self._bound(posterior)
            new = (share, self._model.statistics(batch, posterior))
            self._average = _sum([new] if self._average is None else [(1.0, self._average), new])
        self._model.maximize_statistics(self._average)
        return total

    def epoch(self) -> tuple[float, float]:
        """One pass in a new order; returns the mean bound and the last weight."""
        order = torch.randperm(len(self._x), generator=self._generator).to(self._x.device)
        total, weight, seen = 0.0, math.nan, 0
        for index in order.split(self._options.batch_size):
            batch = self._x.index_select(0, index)
            posterior = self._model.posterior(batch)
            total += len(batch) * self._bound(posterior)
            seen += len(batch)
            # A smaller last batch counts for what it is.
            weight = self._options.weight(self._step) * len(batch) / self._options.batch_size
            new = self._model.statistics(batch, posterior)
            self._average = _sum([(1 - weight, self._average), (weight, new)])
            self._model.maximize_statistics(self._average)
            self._step += 1
            if self._interrupt.requested:
                break
        return total / seen, weight


def _sum(parts: list[tuple[float, Any]]) -> Any:
    """A weighted sum of named tuples of tensors."""
    kind = type(parts[0][1])
    columns = zip(*(statistics for _, statistics in parts), strict=True)
    weights = [weight for weight, _ in parts]
    return kind(
        *(sum(w * value for w, value in zip(weights, column, strict=True)) for column in columns)
    )
