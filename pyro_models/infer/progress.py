"""What a person sees while a fit runs: a bar in a terminal or notebook, sparse lines elsewhere."""

import math
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm

_BAR_SECONDS = 0.25
_FIRST_LINE_SECONDS = 2.0
_LONGEST_SILENCE_SECONDS = 120.0
# The shown bound is averaged over about this many batches.
_SMOOTHING_BATCHES = 50


class LossMeter:
    """Adds up losses over an epoch, and smooths them for display, without waiting for a device.

    On the CPU each loss is read at once, which costs a fraction of a microsecond; elsewhere the sum
    stays on the device until somebody asks.

    Args:
        total: Sum of loss times data in the epoch so far.
        weight: Data in the epoch so far.
    """

    def __init__(self, total: float = 0.0, weight: int = 0):
        self._total: float | Tensor = total
        self.weight = weight
        self.smoothed = math.nan
        self._seen = (total, weight)

    def add(self, loss: Tensor, data: int) -> bool:
        """Take in the loss of a batch; False if it is known not to be finite."""
        self.weight += data
        if loss.device.type != "cpu":
            self._total = loss.double() * data + self._total
            return True
        value = loss.item()
        self._total += value * data
        return math.isfinite(value)

    @property
    def total(self) -> float:
        """Sum of loss times data in the epoch so far; waits for the device."""
        return float(self._total)

    def look(self, batch: int) -> float:
        """The smoothed bound in nats per datum, batches up to now included.

        Args:
            batch: Usual size of a batch.
        """
        total, weight = self.total, self.weight
        new = weight - self._seen[1]
        if new > 0:
            mean = -(total - self._seen[0]) / new
            kept = math.exp(-new / (_SMOOTHING_BATCHES * max(batch, 1)))
            started = math.isfinite(self.smoothed)
            self.smoothed = kept * self.smoothed + (1 - kept) * mean if started else mean
        self._seen = (total, weight)
        return self.smoothed

    def end_epoch(self, batch: int) -> float:
        """Mean bound over the epoch in nats per datum; the next epoch starts from nothing."""
        self.look(batch)
        mean = -self.total / self.weight if self.weight else math.nan
        self._total, self.weight, self._seen = 0.0, 0, (0.0, 0)
        return mean


@dataclass(frozen=True)
class Glance:
    """What is shown at one moment."""

    step: int
    """Steps done."""
    epoch: int
    """Number of the running epoch, from 1."""
    epochs: int
    """Epochs that there will be."""
    data: int
    """Data seen by this run so far."""
    elbo: float
    """Smoothed bound, nats per datum."""
    validation: float | None
    """Latest held-out bound, nats per datum."""

    @property
    def bounds(self) -> str:
        """The bounds in a few words."""
        shown = f"elbo {self.elbo:.4g}"
        return shown if self.validation is None else f"{shown}, held-out {self.validation:.4g}"


class Display(ABC):
    """Shows how far a fit has come."""

    @abstractmethod
    def due(self) -> bool:
        """Whether it is time to show something; asked after each step."""

    @abstractmethod
    def show(self, glance: Glance) -> None:
        """Show it."""

    @abstractmethod
    def close(self) -> None:
        """Leave the screen in order."""


class Silent(Display):
    """Shows nothing."""

    def due(self) -> bool:
        """Never."""
        return False

    def show(self, glance: Glance) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Rate:
    """Steps and data a second since the fit, or this part of it, began."""

    def __init__(self, step: int):
        self._start = time.monotonic()
        self._step = step

    def __call__(self, glance: Glance) -> tuple[float, float]:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return (glance.step - self._step) / seconds, glance.data / seconds


class Bar(Display):
    """A bar in a terminal, or in a notebook.

    Args:
        step: Steps done before.
        total: Steps that there will be, if known.
    """

    def __init__(self, step: int, total: int | None):
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True)
        self._rate = _Rate(step)
        self._next = 0.0

    def due(self) -> bool:
        """A few times a second."""
        return time.monotonic() >= self._next

    def show(self, glance: Glance) -> None:
        """Move the bar and rewrite its text."""
        self._next = time.monotonic() + _BAR_SECONDS
        self._bar.set_description(f"epoch {glance.epoch}/{glance.epochs}", refresh=False)
        _, data = self._rate(glance)  # the bar itself tells steps a second
        self._bar.set_postfix_str(f"{glance.bounds}, {_short(data)} data/s", refresh=False)
        self._bar.update(glance.step - self._bar.n)

    def close(self) -> None:
        """End the bar's line."""
        self._bar.refresh()
        self._bar.close()


class Lines(Display):
    """Lines on stderr, ever less often: for logs, pipes and batch jobs.

    Args:
        step: Steps done before.
        total: Steps that there will be, if known.
    """

    def __init__(self, step: int, total: int | None):
        self._total = total
        self._rate = _Rate(step)
        self._pause = _FIRST_LINE_SECONDS
        self._next = time.monotonic() + self._pause
        self._last: Glance | None = None

    def due(self) -> bool:
        """After 2 seconds, then after twice as long each time, up to 2 minutes."""
        return time.monotonic() >= self._next

    def show(self, glance: Glance) -> None:
        """Write a line if it is time; remember it for the end otherwise."""
        self._last = glance
        if self.due():
            self._write(glance)
            self._pause = min(2 * self._pause, _LONGEST_SILENCE_SECONDS)
            self._next = time.monotonic() + self._pause

    def close(self) -> None:
        """Write the last line."""
        if self._last is not None:
            self._write(self._last)

    def _write(self, glance: Glance) -> None:
        of = f"/{self._total}" if self._total is not None else ""
        where = f"epoch {glance.epoch}/{glance.epochs}, step {glance.step}{of}"
        steps, data = self._rate(glance)
        rates = f"{_short(steps)} steps/s, {_short(data)} data/s"
        print(f"{where}: {glance.bounds}, {rates}", file=sys.stderr, flush=True)


def make_display(enabled: bool, step: int, total: int | None) -> Display:
    """The display that suits where stderr goes.

    Args:
        enabled: Whether to show anything.
        step: Steps done before.
        total: Steps that there will be, if known.
    """
    if not enabled:
        return Silent()
    in_notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    if in_notebook or sys.stderr.isatty():
        return Bar(step, total)
    return Lines(step, total)


def _short(rate: float) -> str:
    """A rate in few characters.

    Example:
        >>> _short(0.123), _short(456.7), _short(45600.0), _short(2e6)
        ('0.12', '457', '45.6k', '2M')
    """
    if rate >= 1e6:
        return f"{rate / 1e6:.3g}M"
    if rate >= 1000:
        return f"{rate / 1000:.3g}k"
    return f"{rate:.2g}" if rate < 100 else f"{rate:.0f}"
