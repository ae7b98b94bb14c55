"""Time several contenders in interleaved rounds: A B C A B C ...

A slow minute of a shared machine then falls on all of them, and ratios are taken within a round,
so that it cancels.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Protocol

from torch import Tensor


class Runner(Protocol):
    """Takes optimisation steps; waits until they are done; returns the last loss."""

    def __call__(self, steps: int) -> float:
        """Take ``steps`` steps; return the last one's loss in nats per datum."""
        ...


def repeat(
    step: Callable[[Any], Tensor | float], batches: Iterable[Any], data_per_loss: int = 1
) -> Runner:
    """The loop of every contender that takes one step a call.

    Nothing but the last loss is read, so a device is waited for once a chunk.

    Args:
        step: Takes one step on a minibatch and returns its loss.
        batches: Minibatches, already on their device, taken in turn for ever.
        data_per_loss: What to divide a loss by to have it per datum.
    """
    batch: Iterator[Any] = cycle(batches)

    def run(steps: int) -> float:
        loss: Tensor | float = float("nan")
        for _ in range(steps):
            loss = step(next(batch))
        return float(loss) / data_per_loss

    return run


@dataclass(frozen=True)
class Contender:
    """One way to do the same optimisation step.

    Args:
        name: What it is called in tables.
        start: Builds it; compilation may happen here or in the first steps.
        block: It can only take multiples of so many steps.
        note: What a reader should know about it.
    """

    name: str
    start: Callable[[], Runner]
    block: int = 1
    note: str = ""


@dataclass
class Timings:
    """Seconds a step, one number a round, and what it took to get going.

    Start-up is a rough figure: a compiler finds again what it compiled for an earlier contender.
    """

    name: str
    note: str
    startup_seconds: float
    steps_per_round: int
    first_loss: float
    last_loss: float = float("nan")
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Minimum, quartiles and median of the seconds a step."""
        return spread(self.seconds)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles, median."""
    if len(values) == 1:
        low = middle = high = values[0]
    else:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "q1": low, "median": middle, "q3": high}


def ratios(numerator: Timings, denominator: Timings) -> dict[str, float]:
    """How many times longer one takes than the other, round by round, then the spread."""
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    return spread([above / below for above, below in pairs])


def _timed(runner: Runner, steps: int) -> tuple[float, float]:
    start = time.perf_counter()
    loss = runner(steps)
    return time.perf_counter() - start, loss


def _whole_blocks(steps: float, block: int) -> int:
    return max(1, round(steps / block)) * block


def race(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    chunk_seconds: float,
    say: Callable[[str], None] = print,
) -> list[Timings]:
    """Start every contender, find how many steps fill a chunk, then time them in turn.

    Args:
        contenders: Who takes part, in the order of each round.
        rounds: How many times each is timed.
        chunk_seconds: About how long each is timed a round; 0 takes the fewest steps it can.
        say: Where progress goes.
    """
    runners: list[Runner] = []
    timings: list[Timings] = []
    for contender in contenders:
        start = time.perf_counter()
        runner = contender.start()
        first_loss = runner(contender.block)
        runner(contender.block)  # some compile only when they see their own state come back
        startup = time.perf_counter() - start
        warm_up = _whole_blocks(20 if chunk_seconds else 1, contender.block)
        runner(warm_up)
        seconds, _ = _timed(runner, warm_up)
        steps = _whole_blocks(chunk_seconds * warm_up / seconds, contender.block)
        runners.append(runner)
        timings.append(Timings(contender.name, contender.note, startup, steps, first_loss))
        say(f"  {contender.name}: ready after {startup:.1f} s, {steps} steps a round")
    for index in range(rounds):
        for runner, timing in zip(runners, timings, strict=True):
            gc.collect()  # one contender's rubbish is not collected in another's time
            seconds, timing.last_loss = _timed(runner, timing.steps_per_round)
            timing.seconds.append(seconds / timing.steps_per_round)
        say(f"  round {index + 1} of {rounds}")
    return timings
