"""The folder of a run: what was asked for, checkpoints, history, and what was made of them.

============================ ==========================================================
``config.json``              what was asked for; enough to run it again
``checkpoint/``              checkpoints of the fit, see ``pyro_models.infer.checkpoint``
``history.json``             one record an epoch
``report.json``              the table
``posterior.nc``             draws for ArviZ
``*.png``                    pictures
============================ ==========================================================

Every file is written whole or not at all.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_models.cli.catalogue import Source
from pyro_models.errors import CheckpointError, OptionError
from pyro_models.infer import checkpoint
from pyro_models.plots import Picture

FORMAT = 1
CONFIG = "config.json"
PARENT = Path("runs")


@dataclass(frozen=True)
class Config:
    """What was asked for."""

    pair: str
    """Name of the pair."""
    source: Source
    """Where the data are."""
    epochs: int
    """Passes through the training data."""
    batch_size: int
    """Data in a minibatch."""
    every: int
    """Epochs between two looks at the held-out data, and between two checkpoints."""
    latent_dim: int | None
    """Dimension of z; None for a pair that does not ask."""
    seed: int
    """Of all randomness."""
    device: str
    """Where the fit runs."""
    num_components: int | None = None
    """K of a mixture; None for a pair that does not ask."""
    labelled: float | None = None
    """Share of the known labels that the pair learns from; None for a pair that sees none."""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(record: Any) -> "Config":
        """The record that `as_json` made.

        Raises:
            ValueError: If it is of another format, or incomplete.

        Example:
            >>> config = Config("vae", Source("digits"), 10, 64, 1, 16, 0, "cpu")
            >>> Config.from_json(json.loads(json.dumps(config.as_json()))) == config
            True
        """
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"it is not a record of format {FORMAT}")
        given = {name: value for name, value in record.items() if name != "format"}
        try:
            source = dict(given.pop("source"))
            if source.get("image_shape") is not None:
                channels, height, width = source["image_shape"]
                source["image_shape"] = (channels, height, width)
            return Config(source=Source(**source), **given)
        except (TypeError, KeyError) as error:
            raise ValueError(f"its entries are not those of a run ({error})") from error


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the fit's checkpoints are."""
        return self.path / "checkpoint"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the fit has written one."""
        return checkpoint.exists(self.checkpoints)

    def config(self) -> Config:
        """What was asked for.

        Raises:
            CheckpointError: If this is not the folder of a run, or its record is damaged.
        """
        path = self.path / CONFIG
        try:
            return Config.from_json(json.loads(path.read_bytes()))
        except OSError as error:
            raise CheckpointError(
                f"{self.path} is not the folder of a run: {CONFIG} cannot be read "
                f"({error.strerror}); give a folder that pyro-models fit has written"
            ) from error
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged: {error}; start a new run with pyro-models fit"
            ) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file, replacing one of the same name.

        Raises:
            CheckpointError: If it cannot be written, as on a full disk.
        """
        partial = self.path / f".{name}.partial"
        with self.writing(name):
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self.path / name)
            finally:
                partial.unlink(missing_ok=True)

    def write_json(self, name: str, content: Any) -> None:
        """Write a record as JSON; see `write`."""
        self.write(name, json.dumps(content, indent=1).encode() + b"\n")

    def write_picture(self, name: str, picture: Picture) -> None:
        """Write a picture as PNG; see `write`."""
        self.write(name, picture.png(dpi=150))

    def reserve(self, name: str, size: int) -> None:
        """Make sure that a file of ``size`` bytes could be written now.

        Raises:
            CheckpointError: If not.
        """
        trial = self.path / f".{name}.reserved"
        with self.writing(name):
            try:
                with trial.open("wb") as file:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                    else:
                        file.truncate(size)
            finally:
                trial.unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Say which file could not be written, and how to go on.

        Raises:
            CheckpointError: If anything inside raises an ``OSError``.
        """
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path / name}: {error.strerror or error}; make room there, "
                f"then continue with pyro-models fit --resume {self.path}"
            ) from error


def create(out: Path | None, config: Config) -> RunFolder:
    """Make the folder of a new run.

    Args:
        out: Where; by default ``runs/<pair>-<time>``.
        config: What was asked for.

    Raises:
        OptionError: If the folder holds something already, or cannot be made.
        CheckpointError: If nothing can be written there.
    """
    path = _unused(config.pair) if out is None else out
    try:
        if path.is_dir() and any(path.iterdir()):
            raise OptionError(
                f"{path} is not empty; give another folder with --out, or continue its run with "
                f"pyro-models fit --resume {path}"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"the folder {path} cannot be made: {error.strerror}; give another one with --out"
        ) from error
    folder = RunFolder(path)
    folder.write_json(CONFIG, config.as_json())
    return folder


def _unused(pair: str) -> Path:
    """A folder of this second that is not there yet."""
    stem = f"{pair}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = PARENT / stem, 1
    while path.exists():
        number += 1
        path = PARENT / f"{stem}-{number}"
    return path
