"""Fits by exact E- and M-steps, kept in a run's folder as a fit by gradients is.

A pair is fitted so where its model has both steps and its guide follows from the model. Where EM
can be had it is taken: it needs no learning rate, never falls, and ends by itself, and restarts
guard against the local optima that a mixture has. It runs on all data at once and on one draw of a
random transform (the one that ``evaluate`` uses), as exact steps need the same data each time.
"""

import copy
import dataclasses
import inspect
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_models.cli.recipe import Prepared
from pyro_models.cli.runs import Config, RunFolder
from pyro_models.errors import CheckpointError
from pyro_models.infer import EpochRecord, Fit, StopReason, SupportsEM, checkpoint, em
from pyro_models.infer.checkpoint import Saved, decode, encode
from pyro_models.infer.random_state import isolated
from pyro_models.pairs import Pair
from pyro_models.selection.criteria import HasLogProb

EPOCHS = 1000
"""The most M-steps from each start, unless told otherwise."""

_STARTS = 10
_METHOD = "em"
_KEPT = 2


@runtime_checkable
class Follows(Protocol):
    """A guide that can be set to the exact posterior of a model."""

    def match(self, model: nn.Module) -> None:
        """Set the guide's parameters from the model's."""


def suits(pair: Pair) -> bool:
    """Whether a pair is fitted by exact steps.

    Args:
        pair: The pair.
    """
    if not isinstance(pair.model, SupportsEM):
        return False
    known = {id(parameter) for parameter in pair.model.parameters()}
    own = [p for p in pair.guide.parameters() if id(p) not in known]
    return not own or isinstance(pair.guide, Follows)


def is_saved(saved: Saved) -> bool:
    """Whether a checkpoint comes from such a fit."""
    return saved.record.get("method") == _METHOD


def load(saved: Saved, model: nn.Module, guide: nn.Module) -> None:
    """Put a checkpoint's parameters into a pair.

    Args:
        saved: The checkpoint, for which ``is_saved`` is true.
        model: The pair's model.
        guide: The pair's guide.

    Raises:
        CheckpointError: If it is of another pair.
    """
    try:
        model.load_state_dict(saved.group("model"))
        guide.load_state_dict(saved.group("guide"))
    except RuntimeError as error:
        raise CheckpointError(
            f"{saved.path} is of another pair: {error}; start a new run with pyro-models fit"
        ) from error


def train(
    pair: Pair,
    config: Config,
    folder: RunFolder,
    prepared: Prepared,
    device: torch.device,
    progress: bool,
) -> Fit:
    """Fit a pair by EM, on from its checkpoint if there is one.

    The first fit takes the best of several starts; one that is resumed goes on from the parameters
    it had, if it had not ended.

    Args:
        pair: The pair, for which ``suits`` is true.
        config: What was asked for.
        folder: Where the checkpoint is written.
        prepared: The data.
        device: Where to fit.
        progress: Whether to show how far it has come.

    Raises:
        NonFiniteError: If the bound becomes NaN or infinite.
        CheckpointError: If a checkpoint cannot be written or read.
    """
    model, guide = pair.model.to(device), pair.guide.to(device)
    x = prepared.seen(prepared.parts.train).to(device)
    earlier: list[EpochRecord] = []
    seconds = 0.0
    if folder.has_checkpoint:
        saved = checkpoint.read(folder.checkpoints)
        load(saved, model, guide)
        earlier, seconds = _history(saved), float(saved.record["seconds"])
        if saved.record["converged"] or len(earlier) >= config.epochs:
            return _as_it_was(model, guide, earlier, saved, len(x))
    begun = time.perf_counter()
    result = em(
        model,
        x,
        guide=guide,
        epochs=config.epochs - len(earlier),
        restarts=None if earlier else _starts(model, x),
        seed=config.seed,
        progress=progress,
    )
    if isinstance(guide, Follows):
        guide.match(model)
    with isolated(device, prepared.seed):
        validation = _validation(model, prepared, device)
    seconds += time.perf_counter() - begun
    history = (*earlier, *(_after(record, earlier) for record in result.history))
    if history:
        history = (*history[:-1], dataclasses.replace(history[-1], validation=validation))
    result = dataclasses.replace(result, history=history, steps=len(history), wall_time=seconds)
    _save(result, model, guide, folder.checkpoints)
    return result


def _starts(model: nn.Module, x: Tensor) -> int | None:
    """How many starts are worth making: several only where they differ."""
    start: Any = getattr(model, "initialize", None)
    if start is None or "generator" not in inspect.signature(start).parameters:
        return None
    first: dict[str, Tensor] | None = None
    for seed in range(_STARTS):
        trial: Any = copy.deepcopy(model)
        trial.initialize(x, generator=torch.Generator().manual_seed(seed))
        found = trial.state_dict()
        first = first or found
        if any(not torch.equal(value, first[name]) for name, value in found.items()):
            return _STARTS
    return 1


def _validation(model: nn.Module, prepared: Prepared, device: torch.device) -> float | None:
    """Mean log p(x) of the validation part, where it is exact."""
    if not isinstance(model, HasLogProb):
        return None
    with torch.no_grad():
        return float(model.log_prob(prepared.seen(prepared.parts.validation).to(device)).mean())


def _after(record: EpochRecord, earlier: list[EpochRecord]) -> EpochRecord:
    """The record of an epoch that came after earlier ones."""
    if not earlier:
        return record
    last = earlier[-1]
    return dataclasses.replace(
        record,
        step=last.step + record.step,
        epoch=last.epoch + record.epoch,
        seconds=last.seconds + record.seconds,
    )


def _save(result: Fit, model: nn.Module, guide: nn.Module, directory: Path) -> None:
    groups = {"model": model.state_dict(), "guide": guide.state_dict()}
    tensors = {f"{g}/{name}": t.clone() for g, group in groups.items() for name, t in group.items()}
    rows = [_plain(dataclasses.asdict(record)) for record in result.history]
    record = {
        "method": _METHOD,
        "converged": result.stop_reason is StopReason.CONVERGED,
        "message": result.stop_message,
        "seed": result.seed,
        "seconds": result.wall_time,
        "position": {"epoch": len(rows), "batch": 0, "step": len(rows)},
        "history": rows,
    }
    checkpoint.write(directory, len(rows), tensors, record, _KEPT)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it, which knows neither NaN nor infinity."""
    return {name: encode(v) for name, v in row.items()}


def _history(saved: Saved) -> list[EpochRecord]:
    return [EpochRecord(**_as_numbers(row)) for row in saved.record["history"]]


def _as_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """What `_plain` was given."""
    return {n: v if n in ("step", "epoch") else decode(v) for n, v in row.items()}


def _as_it_was(
    model: nn.Module, guide: nn.Module, history: list[EpochRecord], saved: Saved, num_data: int
) -> Fit:
    """The record of a fit that has nothing left to do."""
    return Fit(
        model=model,
        guide=guide,
        parameters={f"model.{name}": p.detach() for name, p in model.named_parameters()},
        history=tuple(history),
        steps=len(history),
        num_data=num_data,
        best_step=None,
        best_validation=None,
        restored_best=False,
        wall_time=float(saved.record["seconds"]),
        stop_reason=StopReason.CONVERGED if saved.record["converged"] else StopReason.EPOCHS,
        stop_message=saved.record["message"],
        seed=saved.record["seed"],
        compiled=False,
        fallback_reason=None,
    )
