"""Training as a machine with a state: it advances a batch, is photographed, and goes back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyro_models.errors import CheckpointError
from pyro_models.infer.alternation import Turns
from pyro_models.infer.arrays import Tensors
from pyro_models.infer.batches import Batches
from pyro_models.infer.random_state import RandomState
from pyro_models.infer.remedies import Remedies
from pyro_models.infer.schedules import Progress, Schedule
from pyro_models.infer.step import Step


@dataclass(frozen=True)
class Position:
    """Where in the fit the next step is."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches of the running epoch that are done."""
    step: int = 0
    """Steps done in all."""


@dataclass(frozen=True)
class Snapshot:
    """All that the rest of the training depends on."""

    position: Position
    """Where the next step is."""
    step: dict[str, Tensor]
    """Parameters, buffers and optimiser, as ``Step.state_dict`` gives them."""
    random: dict[str, Tensor]
    """State of the generators."""
    epoch_random: dict[str, Tensor]
    """State of the generators as the running epoch began, from which a loader's order follows."""
    mark: str = ""
    """Digest of the running epoch's first batch, where the order may fail to repeat."""


@dataclass(frozen=True)
class Course:
    """What a fit does at each step, all of it decided beforehand."""

    epochs: int
    """Epochs that there will be."""
    total_steps: int | None
    """Steps that there will be, if known."""
    schedule: Schedule | None
    """Factor on the learning rate."""
    remedies: Remedies
    """What is done against collapse."""
    compiled: bool
    """Whether steps run as a compiled graph."""
    odd: int
    """Size of the odd last batch, 0 if there is none."""
    odd_compiled: bool
    """Whether the odd last batch gets a graph too; a rare shape is not worth compiling for."""

    def progress(self, step: int, epoch: int) -> Progress:
        """How far the fit has come."""
        return Progress(step, epoch, self.epochs, self.total_steps)


class Trainer:
    """Advances a pair batch by batch, reproducibly from any snapshot.

    Args:
        step: One optimisation step.
        batches: The data.
        course: What to do at each step.
        random: The generators.
        kwargs: Keyword arguments of the programs.
        turns: Freezes model and guide by turns, if they take turns.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        course: Course,
        random: RandomState,
        kwargs: Mapping[str, Any],
        turns: Turns | None = None,
    ):
        self.step = step
        self.batches = batches
        self.course = course
        self.random = random
        self.kwargs = kwargs
        self.turns = turns
        self.position = Position()
        self._epoch_random = random.capture()
        self._mark = ""

    def epoch(self) -> Iterator[Tensors]:
        """The batches of the running epoch that are still to come.

        Raises:
            CheckpointError: If a loader does not give again what it gave before.
        """
        at = self.position
        if at.batch == 0:
            self._epoch_random = self.random.capture()
            return self.batches.epoch(at.epoch)
        # A loader's order follows from the generators as the epoch began: go there, read past what
        # is done, and come back.
        with self.random.preserved():
            self.random.restore(self._epoch_random)
            batches = self.batches.epoch(at.epoch, skip=at.batch)
        if self.batches.mark() != self._mark:
            raise CheckpointError(
                "the DataLoader gives other batches than before, so that the epoch cannot be taken "
                "up again; give its sampler an order that depends on torch's generators alone, or "
                "write checkpoints at the end of epochs only"
            )
        return batches

    def advance(self, batch: Tensors) -> Tensor:
        """Do one step and return the loss in nats per datum."""
        at, course, step = self.position, self.course, self.step
        self._follow_schedules(at.step)
        if self.turns is not None:
            self.turns.take(at.step)
        if course.odd:
            is_odd = len(batch[0]) == course.odd
            step.compiled = course.odd_compiled if is_odd else course.compiled
        loss = step(*batch, **self.kwargs)
        self.position = Position(at.epoch, at.batch + 1, at.step + 1)
        return loss

    def _follow_schedules(self, step: int) -> None:
        course = self.course
        if course.schedule is None and course.remedies.weight is None:
            return
        progress = course.progress(step, self.position.epoch)
        if course.schedule is not None:
            self.step.lr_factor = course.schedule.factor(progress)
        if course.remedies.weight is not None:
            self.step.kl_weight = course.remedies.weights_at(progress)

    def end_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.position = replace(self.position, epoch=self.position.epoch + 1, batch=0)

    def snapshot(self) -> Snapshot:
        """A copy of the state."""
        mark = self.batches.mark() if self.position.batch else ""
        state = self.step.state_dict()
        return Snapshot(self.position, state, self.random.capture(), self._epoch_random, mark)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        self.position = snapshot.position
        self._epoch_random = snapshot.epoch_random
        self._mark = snapshot.mark
        self.step.load_state_dict(snapshot.step)
        self.random.restore(snapshot.random)
        if self.position.batch:
            # An epoch whose last step was done is recorded with the rates of that step.
            self._follow_schedules(self.position.step - 1)
