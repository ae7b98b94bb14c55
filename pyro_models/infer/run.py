"""The loop of a fit: epochs of steps, and what is done at the end of each."""

import functools
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pyro_models.errors import PyroModelsError
from pyro_models.infer import checkpoint as files
from pyro_models.infer.arrays import Tensors
from pyro_models.infer.checkpoint import Checkpoint, Saved
from pyro_models.infer.history import EpochRecord
from pyro_models.infer.nonfinite import COMPLAINTS, Watch
from pyro_models.infer.optimizer_probe import OptimizerProbe
from pyro_models.infer.progress import Display, Glance, LossMeter
from pyro_models.infer.random_state import Stream, derive_seed, isolated
from pyro_models.infer.step import Step
from pyro_models.infer.stopping import Best, EarlyStopping, Interrupt, StopFit, StopReason
from pyro_models.infer.trainer import Position, Snapshot, Trainer
from pyro_models.infer.validation import HeldOut, Judgement


@dataclass(frozen=True)
class EpochEnd:
    """What a callback is given at the end of each epoch.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_models.infer import EpochEnd, StopFit, fit
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> def good_enough(end: EpochEnd) -> None:
        ...     loc = end.step.parameters()["loc"].item()
        ...     if end.record.elbo > -1.0:
        ...         raise StopFit(f"loc is {loc:.1f}")
        >>> adam = functools.partial(torch.optim.Adam, lr=0.1)
        >>> result = fit(
        ...     model, lambda x: None, torch.ones(4), optimizer=adam, epochs=99,
        ...     callbacks=[good_enough], progress=False,
        ... )
        >>> result.stop_reason.value, result.stop_message, len(result.history)
        ('a callback asked for it', 'loc is 0.8', 8)
    """

    record: EpochRecord
    """The epoch: its number, bounds, learning rate and time."""
    step: Step
    """The optimisation step, with ``step.model``, ``step.guide`` and ``step.parameters()``."""


Callback = Callable[[EpochEnd], None]


class Run:
    """A training under way.

    Args:
        trainer: Does the steps.
        held_out: Evaluates the held-out bound, if there are held-out data.
        early_stopping: When to stop before the last epoch.
        checkpoint: Where and when to write checkpoints.
        callbacks: Called at the end of each epoch.
        config: What a resumed fit must have in common with this one.
        seed: The fit's seed.
        probe: Knows the optimiser.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        held_out: HeldOut | None,
        early_stopping: EarlyStopping | None,
        checkpoint: Checkpoint | None,
        callbacks: tuple[Callback, ...],
        config: dict[str, Any],
        seed: int,
        probe: OptimizerProbe,
    ):
        self.trainer = trainer
        self.history: list[EpochRecord] = []
        self.best = Best(early_stopping)
        self.message = ""
        self._held_out = held_out
        self._checkpoint = checkpoint
        self._callbacks = callbacks
        self._config = config
        self._seed = seed
        self._probe = probe
        self._best_state: dict[str, Tensor] | None = None
        self._latest: float | None = None
        self._meter = LossMeter()
        self._watch = Watch(trainer)
        self._seconds_before = 0.0
        self._start = time.perf_counter()
        self._data_seen = 0
        self._batch_size = 1

    @property
    def seconds(self) -> float:
        """Wall time so far, earlier parts included."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def has_best(self) -> bool:
        """Whether the parameters of the best held-out bound are at hand."""
        return self._best_state is not None

    def go(self, display: Display, interrupt: Interrupt) -> StopReason:
        """Train until something ends it, and leave the best or last parameters in place.

        Raises:
            NonFiniteError: If a loss, gradient or parameter is NaN or infinite.
            CheckpointError: If a checkpoint cannot be written.
        """
        if self._checkpoint is not None:
            self._save()
        reason = self._epochs(display, interrupt)
        self._check()
        display.show(self._glance())
        if self._checkpoint is not None:
            self._save()
        if self._best_state is not None:
            self.trainer.step.load_state_dict(self._best_state)
        return reason

    def _epochs(self, display: Display, interrupt: Interrupt) -> StopReason:
        trainer = self.trainer
        while trainer.position.epoch < trainer.course.epochs:
            if interrupt.requested:
                return StopReason.INTERRUPTED
            if self.best.exhausted:
                return StopReason.EARLY_STOPPING
            for batch in self._batches(interrupt):
                self._advance(batch)
                if display.due():
                    display.show(self._glance())
                if interrupt.requested:
                    break
            if interrupt.requested:
                return StopReason.INTERRUPTED
            asked = self._end_epoch()
            if asked:
                return StopReason.CALLBACK
        return StopReason.EARLY_STOPPING if self.best.exhausted else StopReason.EPOCHS

    def _batches(self, interrupt: Interrupt) -> Iterator[Tensors]:
        batches = self.trainer.epoch()
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError:
                if interrupt.requested:  # Ctrl-C reached the loader's worker processes too
                    return
                raise
            if batch is None:
                return
            yield batch

    def _advance(self, batch: Tensors) -> None:
        try:
            loss = self.trainer.advance(batch)
        except PyroModelsError:
            raise
        except COMPLAINTS as error:
            found = self._watch.explain(error)
            if found is error:
                raise
            raise found from error
        size = len(batch[0])
        self._data_seen += size
        self._batch_size = max(self._batch_size, size)
        if not self._meter.add(loss, size):
            raise self._watch.explain()
        if self._watch.due:
            self._check()
            self._watch.keep()
        every = self._checkpoint.every_steps if self._checkpoint is not None else None
        if every is not None and self.trainer.position.step % every == 0:
            self._save()

    def _check(self) -> None:
        """Make sure that losses and parameters are finite; waits for the device."""
        if not math.isfinite(self._meter.total):
            raise self._watch.explain()
        self._watch.verify()

    def _end_epoch(self) -> bool:
        """Evaluate, record, call back, save; tell whether a callback asked to stop."""
        if not math.isfinite(self._meter.total):
            raise self._watch.explain()
        elbo = self._meter.end_epoch(self._batch_size)
        self.trainer.end_epoch()
        at = self.trainer.position
        validation = self._validate(at)
        rate, weight = self._probe.learning_rate, self.trainer.step.kl_weight
        value, kl = (None, None) if validation is None else validation
        record = EpochRecord(at.step, at.epoch, elbo, value, rate, weight, self.seconds, kl)
        self.history.append(record)
        asked = self._call_back(record)
        every = self._checkpoint.every_epochs if self._checkpoint is not None else None
        if every is not None and at.epoch % every == 0:
            self._save()
        return asked

    def _validate(self, at: Position) -> Judgement | None:
        held_out = self._held_out
        if held_out is None or at.epoch % held_out.every:
            return None
        self._watch.verify()
        judgement = held_out()
        self._latest = judgement.bound
        if self.best.update(at.step, judgement.bound) and self.best.stopping is not None:
            self._best_state = self.trainer.step.state_dict()
        return judgement

    def _call_back(self, record: EpochRecord) -> bool:
        if not self._callbacks:
            return False
        seed = derive_seed(self._seed, Stream.CALLBACKS, record.epoch)
        asked = False
        with isolated(self.trainer.random.device, seed):
            for callback in self._callbacks:
                try:
                    callback(EpochEnd(record, self.trainer.step))
                except StopFit as request:
                    asked, self.message = True, str(request)
        # A callback may have changed parameters, which a replay from before could not know.
        self._watch.keep()
        return asked

    def _glance(self) -> Glance:
        at = self.trainer.position
        epochs = self.trainer.course.epochs
        return Glance(
            step=at.step,
            epoch=min(at.epoch + 1, epochs),
            epochs=epochs,
            data=self._data_seen,
            elbo=self._meter.look(self._batch_size),
            validation=self._latest,
        )

    def _save(self) -> None:
        """Write a checkpoint of this moment, unless there is one."""
        options = self._checkpoint
        if options is None:
            return
        self._check()
        self._probe.check_saved()
        snapshot = self.trainer.snapshot()
        groups = {
            "step": snapshot.step,
            "random": snapshot.random,
            "epoch_random": snapshot.epoch_random,
            "best": self._best_state or {},
        }
        tensors = {f"{g}/{name}": t for g, group in groups.items() for name, t in group.items()}
        course = self.trainer.course
        record = {
            "position": asdict(snapshot.position),
            "mark": snapshot.mark,
            "seed": self._seed,
            "compiled": course.compiled,
            "odd_compiled": course.odd_compiled,
            "loss_total": self._meter.total,
            "loss_weight": self._meter.weight,
            "seconds": self.seconds,
            "history": _columns(self.history),
            "on_device": sorted(n for n, t in tensors.items() if t.device.type != "cpu"),
            "config": self._config,
            "versions": _versions(),
        }
        files.write(options.path, snapshot.position.step, tensors, record, options.keep)

    def load(self, saved: Saved) -> None:
        """Go to where a checkpoint was written.

        Raises:
            CheckpointError: If it belongs to another fit.
        """
        files.compare(saved, self._config)
        record = saved.record
        device = self.trainer.random.device
        moved = set(record["on_device"])
        placed = {n: t.to(device) if n in moved else t for n, t in saved.tensors.items()}
        saved = Saved(saved.path, placed, record)
        self.trainer.restore(
            Snapshot(
                Position(**record["position"]),
                saved.group("step"),
                saved.group("random"),
                saved.group("epoch_random"),
                record["mark"],
            )
        )
        self._meter = LossMeter(record["loss_total"], record["loss_weight"])
        self._seconds_before = record["seconds"]
        self._best_state = saved.group("best") or None
        self.history = _records(record["history"])
        for epoch in self.history:
            if epoch.validation is not None:
                self._latest = epoch.validation
                self.best.update(epoch.step, epoch.validation)
        self._watch = Watch(self.trainer)


def _columns(history: list[EpochRecord]) -> dict[str, list[Any]]:
    names = [f.name for f in fields(EpochRecord)]
    return {name: [files.encode(getattr(r, name)) for r in history] for name in names}


def _records(columns: dict[str, list[Any]]) -> list[EpochRecord]:
    whole = ("step", "epoch")
    decoded = {n: c if n in whole else [files.decode(v) for v in c] for n, c in columns.items()}
    rows = zip(*decoded.values(), strict=True)
    return [EpochRecord(**dict(zip(decoded, row, strict=True))) for row in rows]


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("pyro-models", "torch", "pyro-ppl", "numpy", "safetensors")
    found = {name: importlib.metadata.version(name) for name in packages}
    return found | {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
