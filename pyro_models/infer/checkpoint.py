"""Checkpoints of a fit: safetensors and JSON, each written whole or not at all.

A checkpoint is a folder ``step-<number>`` with ``tensors.safetensors`` and ``state.json``. It is
written under another name and renamed when all of it is on the disk, which is atomic: a process
killed at any moment leaves the earlier checkpoints as they were. The newest is the one with the
highest number. Nothing is pickled, so that reading a checkpoint runs no code.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_models.errors import CheckpointError, OptionError

FORMAT = 1

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a fit writes checkpoints; one more is written when it ends.

    Args:
        directory: A folder for this fit alone; made if it does not exist.
        every_epochs: Write at the end of each ``every_epochs``-th epoch; ``None`` for never.
        every_steps: Write after each ``every_steps``-th step as well; ``None`` for never.
        keep: How many of the newest checkpoints stay, at least 1.

    Raises:
        OptionError: If a number is less than 1.

    Example:
        >>> Checkpoint("runs/first", every_steps=1000).keep
        2
    """

    directory: str | os.PathLike[str]
    every_epochs: int | None = 1
    every_steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("every_epochs", "every_steps", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"Checkpoint {name}={value}; give at least 1")

    @property
    def path(self) -> Path:
        """The directory as a path."""
        return Path(self.directory)


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read from the disk."""

    path: Path
    """Its folder."""
    tensors: dict[str, Tensor]
    """All tensors, on the CPU."""
    record: dict[str, Any]
    """All else: position, history, configuration, versions."""

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named ``prefix/...``, by the rest of their names."""
        start = f"{prefix}/"
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}


def exists(directory: Path) -> bool:
    """Whether a directory holds a checkpoint."""
    return bool(_folders(directory))


def write(directory: Path, step: int, tensors: dict[str, Tensor], record: dict, keep: int) -> Path:
    """Write a checkpoint, then drop all but the newest ``keep``.

    Args:
        directory: Folder of the run.
        step: Number of the checkpoint; nothing is written if it is there already.
        tensors: What is stored as safetensors.
        record: What is stored as JSON.
        keep: How many checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk; earlier ones stay as they are.
    """
    target = directory / f"step-{step:09d}"
    if target.exists():
        return target
    unfinished = directory / f"{_UNFINISHED}{target.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(directory)
        unfinished.mkdir()
        data = safetensors.torch.save({n: _stored(t) for n, t in tensors.items()})
        _write_file(unfinished / _TENSORS, data)
        state = {**record, "format": FORMAT, "tensors": _digest(data)}
        _write_file(unfinished / _STATE, _sealed(state))
        _flush_folder(unfinished)
        unfinished.rename(target)
        _flush_folder(directory)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = "; the earlier checkpoint is whole" if exists(directory) else ""
        raise CheckpointError(
            f"cannot write a checkpoint of step {step} to {directory}: {error}{kept}. Make room or "
            "choose another directory, then resume"
        ) from error
    for folder in _folders(directory)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def read(directory: str | os.PathLike[str]) -> Saved:
    """Read and check the newest checkpoint of a directory.

    Args:
        directory: Folder of the run.

    Raises:
        CheckpointError: If there is none, or it is damaged, or of another format.
    """
    folders = _folders(Path(directory))
    if not folders:
        raise CheckpointError(
            f"no checkpoint in {directory}; give the directory of an earlier fit, or start anew "
            "with resume=False"
        )
    path = folders[-1]
    hint = "remove this folder" + (f" to fall back to {folders[-2].name}" if folders[1:] else "")
    record = _read_state(path / _STATE, hint)
    data = _read_file(path / _TENSORS, hint)
    if _digest(data) != record.get("tensors"):
        raise CheckpointError(f"{path / _TENSORS} is damaged: its checksum differs; {hint}")
    try:
        return Saved(path, safetensors.torch.load(data), record)
    except SafetensorError as error:
        raise CheckpointError(f"{path / _TENSORS} is damaged: {error}; {hint}") from error


def compare(saved: Saved, config: dict[str, Any]) -> None:
    """Make sure that a checkpoint comes from a fit with the same configuration.

    Args:
        saved: The checkpoint.
        config: Configuration of the fit that is to be resumed.

    Raises:
        CheckpointError: Naming each entry that differs, with both values.
    """
    before = saved.record.get("config", {})
    now = json.loads(json.dumps(config))
    differences = [
        f"{name} was {_brief(before.get(name))} and is {_brief(value)}"
        for name, value in now.items()
        if name != "parameters" and before.get(name) != value
    ]
    differences += _compare_parameters(before.get("parameters", {}), now.get("parameters", {}))
    if differences:
        raise CheckpointError(
            f"{saved.path} belongs to another fit: {'; '.join(differences)}. Resume with the same "
            "model, data and options, or start anew in another directory"
        )


def encode(value: Any) -> Any:
    """Numbers, or tuples or dictionaries of them, as JSON has them: no NaN, infinity or tuple."""
    if isinstance(value, Mapping):
        return {name: encode(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [encode(one) for one in value]
    return value if value is None or math.isfinite(value) else repr(value)


def decode(value: Any) -> Any:
    """What ``encode`` was given, whole numbers as floats.

    Example:
        >>> [decode(encode(v)) for v in (0.1, None, -math.inf, {"z": (0.5, math.nan)})]
        [0.1, None, -inf, {'z': (0.5, nan)}]
    """
    if isinstance(value, Mapping):
        return {name: decode(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return tuple(decode(one) for one in value)
    return None if value is None else float(value)


def _folders(directory: Path) -> list[Path]:
    """Folders of checkpoints, the oldest first."""
    if not directory.is_dir():
        return []
    found = [(m, path) for path in directory.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted((int(m[1]), path) for m, path in found)]


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}


def _sealed(state: dict[str, Any]) -> bytes:
    """JSON with a digest of itself."""
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    return json.dumps({"seal": _digest(text.encode()), "state": state}, allow_nan=False).encode()


def _read_state(path: Path, hint: str) -> dict[str, Any]:
    data = _read_file(path, hint)
    try:
        sealed = json.loads(data)
        state, seal = sealed["state"], sealed["seal"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; {hint}") from error
    text = json.dumps(state, sort_keys=True)
    if _digest(text.encode()) != seal:
        raise CheckpointError(f"{path} is damaged: its checksum differs; {hint}")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')} and this version reads format {FORMAT}; "
            "resume with the version of pyro-models that wrote it"
        )
    return state


def _read_file(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}; {hint}") from error


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Put a folder's entries on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_unfinished(directory: Path) -> None:
    """Remove what a killed process left half written."""
    for path in directory.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def _compare_parameters(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    differences = []
    if missing := sorted(set(now) - set(before)):
        differences.append(f"it lacks the parameters {missing}")
    if unknown := sorted(set(before) - set(now)):
        differences.append(f"it has the parameters {unknown}, which this pair has not")
    for name in sorted(set(before) & set(now)):
        if before[name] != now[name]:
            differences.append(f"parameter {name} was {before[name]} and is {now[name]}")
    return differences


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
