"""Why and how a fit stops: early stopping, callbacks, Ctrl-C."""

import math
import signal
import threading
from dataclasses import dataclass
from enum import Enum
from types import FrameType, TracebackType
from typing import Any

from pyro_models.errors import OptionError


class StopReason(Enum):
    """Why a fit ended."""

    EPOCHS = "all epochs are done"
    EARLY_STOPPING = "the held-out bound no longer improved"
    CALLBACK = "a callback asked for it"
    INTERRUPTED = "interrupted from the keyboard"
    CONVERGED = "the bound rose by less than the tolerance"


class StopFit(Exception):
    """Raised by a callback to end the fit after this epoch; the message goes into the record."""


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the held-out bound has not improved for a while, and go back to the best.

    Args:
        patience: How many evaluations without an improvement are borne, at least 1.
        min_delta: What counts as an improvement, in nats per datum, at least 0.

    Raises:
        OptionError: If an argument is out of its range.
    """

    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise OptionError(f"patience is {self.patience}; give at least 1 evaluation")
        if not 0.0 <= self.min_delta < math.inf:
            raise OptionError(f"min_delta is {self.min_delta}; give nats per datum, 0 or more")


class Best:
    """The best held-out bound so far, and how long ago the last improvement was.

    Args:
        stopping: When to stop; ``None`` never does.

    Example:
        >>> best = Best(EarlyStopping(patience=2))
        >>> [best.update(step, value) for step, value in enumerate([-3.0, -2.0, -2.5])]
        [True, True, False]
        >>> best.step, best.value, best.exhausted, best.update(3, -2.1), best.exhausted
        (1, -2.0, False, False, True)
    """

    def __init__(self, stopping: EarlyStopping | None):
        self.stopping = stopping
        self.step: int | None = None
        self.value = -math.inf
        self._reference = -math.inf
        self._since = 0

    def update(self, step: int, value: float) -> bool:
        """Take in an evaluation; tell whether it is the best so far, which NaN never is."""
        delta = self.stopping.min_delta if self.stopping else 0.0
        self._since += 1
        if value > self._reference + delta:
            self._reference, self._since = value, 0
        if not value > self.value:
            return False
        self.step, self.value = step, value
        return True

    @property
    def exhausted(self) -> bool:
        """Whether patience is at an end."""
        return self.stopping is not None and self._since >= self.stopping.patience


class Interrupt:
    """Turn the first Ctrl-C into a flag that is read between steps; a second one raises at once.

    A ``KeyboardInterrupt`` may come anywhere, also halfway through the optimiser's update of the
    parameters, where no state is consistent; a flag leaves each step whole. Only Python's own
    handler is replaced, and only in the main thread, where alone signals arrive: a program that
    handles Ctrl-C itself, or ignores it, keeps doing so.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._give_back()

    def _give_back(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
