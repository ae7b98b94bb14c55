"""Checkpoints are whole or absent; damaged and foreign ones are refused by name."""

import errno
import functools
import json
import math
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_models.errors import CheckpointError, OptionError
from pyro_models.infer import checkpoint as files
from pyro_models.infer.checkpoint import Checkpoint
from pyro_models.infer.run import EpochEnd
from pyro_models.infer.schedules import InverseEpoch
from tests.infer.fit_cases import fit, local_guide, local_model, network_pair, normal_data

X = normal_data(20)


def write(directory: Path, step: int, keep: int = 2) -> Path:
    tensors = {"a": torch.arange(3.0), "b": torch.tensor(2, dtype=torch.uint8)}
    return files.write(directory, step, tensors, {"step": step, "config": {"seed": 1}}, keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder", 7)
    saved = files.read(tmp_path / "new" / "folder")
    assert saved.path == path
    assert saved.record["step"] == 7
    assert torch.equal(saved.tensors["a"], torch.arange(3.0))
    assert saved.tensors["b"].dtype == torch.uint8


def test_the_newest_is_read_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (9, 10, 1000, 99):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-000000099", "step-000001000"]
    assert files.read(tmp_path).record["step"] == 1000


def test_a_step_is_written_once(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    before = (path / "state.json").stat().st_mtime_ns
    assert write(tmp_path, 3) == path
    assert (path / "state.json").stat().st_mtime_ns == before


def test_what_a_killed_process_left_is_ignored_and_removed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    half = tmp_path / ".unfinished-step-000000002"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert files.read(tmp_path).record["step"] == 1
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            files.read(directory)
        assert not files.exists(directory)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-3])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*fall back to step-000000001"):
        files.read(tmp_path)


def test_another_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FORMAT", 99)
    write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        files.read(tmp_path)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = write(tmp_path, 1)
    (path / "tensors.safetensors").write_bytes(pickle.dumps(Trap()))
    (path / "state.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        files.read(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = os if call == "fsync" else Path
    monkeypatch.setattr(owner, call, full)
    with pytest.raises(CheckpointError, match=r"No space left.*earlier checkpoint is whole"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000000001"]
    assert files.read(tmp_path).record["step"] == 1


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    # The system itself refuses the write halfway, as a full disk does.
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(CheckpointError, match="cannot write a checkpoint of step 2"):
            files.write(tmp_path, 2, {"a": torch.zeros(10_000)}, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert files.read(tmp_path).record["step"] == 1


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        fit(local_model, local_guide, X, epochs=1, checkpoint=Checkpoint(tmp_path / "file"))


@pytest.mark.parametrize(
    "options", [{"every_epochs": 0}, {"every_steps": -1}, {"keep": 0}], ids=str
)
def test_options_that_cannot_work(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        Checkpoint("runs", **options)


# --- what a fit writes ---------------------------------------------------------------------------


def test_a_fit_writes_as_often_as_told(tmp_path: Path) -> None:
    told = Checkpoint(tmp_path, every_epochs=2, every_steps=5, keep=99)
    fit(local_model, local_guide, X, epochs=5, batch_size=8, checkpoint=told)  # 3 steps an epoch
    steps = [int(name.removeprefix("step-")) for name in names(tmp_path)]
    assert steps == [0, 5, 6, 10, 12, 15]


def test_a_checkpoint_is_readable_by_others(tmp_path: Path) -> None:
    result = fit(local_model, local_guide, X, epochs=2, checkpoint=Checkpoint(tmp_path))
    saved = files.read(tmp_path)
    assert torch.equal(saved.tensors["step/parameter/slope"], result.parameters["slope"])
    state = json.loads((saved.path / "state.json").read_text())["state"]
    assert state["position"] == {"epoch": 2, "batch": 0, "step": 2}
    assert state["history"]["elbo"] == [e.elbo for e in result.history]
    assert {"torch", "pyro-ppl", "pyro-models", "python"} <= set(state["versions"])


def test_a_new_fit_does_not_write_among_old_checkpoints(tmp_path: Path) -> None:
    fit(local_model, local_guide, X, epochs=1, checkpoint=Checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match="resume=True"):
        fit(local_model, local_guide, X, epochs=1, checkpoint=Checkpoint(tmp_path))


def test_resuming_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        fit(local_model, local_guide, X, checkpoint=Checkpoint(tmp_path), resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": X + 1}, "data was"),
        ({"batch_size": 3}, "batch_size was '4' and is '3'"),
        ({"seed": 5}, "seed was 0 and is 5"),
        ({"schedule": InverseEpoch()}, "schedule"),
        ({"optimizer": functools.partial(torch.optim.Adam, lr=0.1)}, "optimizer.*lr=0.05.*lr=0.1"),
        ({"precision": torch.float64}, "precision"),
        ({"compiled": True}, "compiled was False and is True"),
        ({"validation": X}, "validation"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_foreign_checkpoint_is_refused_with_what_differs(
    tmp_path: Path, change: dict, words: str
) -> None:
    usual = {"data": X, "epochs": 1, "batch_size": 4}
    fit(local_model, local_guide, checkpoint=Checkpoint(tmp_path), **usual)
    with pytest.raises(CheckpointError, match=words):
        fit(
            local_model,
            local_guide,
            checkpoint=Checkpoint(tmp_path),
            resume=True,
            **{**usual, **change},
        )


def test_other_parameters_are_named(tmp_path: Path) -> None:
    x = normal_data(20, 3)
    fit(*network_pair(), x, epochs=1, checkpoint=Checkpoint(tmp_path))
    decoder, encoder = network_pair()
    encoder.register_module("centre", nn.Identity())
    with pytest.raises(CheckpointError, match=r"guide\.centre\.shift.*has not"):
        fit(decoder, encoder, x, epochs=1, checkpoint=Checkpoint(tmp_path), resume=True)
    decoder, encoder = network_pair()
    decoder.net[0] = nn.Linear(2, 9)
    decoder.net[3] = nn.Linear(9, 3)
    with pytest.raises(CheckpointError, match=r"model\.net\.0\.bias was \(8,\)"):
        fit(decoder, encoder, x, epochs=1, checkpoint=Checkpoint(tmp_path), resume=True)


def test_an_optimiser_that_hides_its_state_is_refused(tmp_path: Path) -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["seen"] = [1]
            return super().step(closure)

    hidden = functools.partial(Counting, lr=0.1)
    with pytest.raises(CheckpointError, match="Counting keeps \\['seen'\\]"):
        fit(
            local_model,
            local_guide,
            X,
            epochs=1,
            optimizer=hidden,
            checkpoint=Checkpoint(tmp_path),
        )


def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path: Path) -> None:
    def poison(event: EpochEnd) -> None:
        if event.record.epoch == 2:
            with torch.no_grad():
                event.step.parameters()["slope"].fill_(torch.nan)

    with pytest.raises(FloatingPointError):
        fit(
            local_model,
            local_guide,
            X,
            epochs=5,
            checkpoint=Checkpoint(tmp_path, keep=9),
            callbacks=[poison],
        )
    assert names(tmp_path) == ["step-000000000", "step-000000001"]


def test_an_infinite_held_out_bound_is_recorded(tmp_path: Path) -> None:
    far = torch.full((3,), 1e30)
    options = {"epochs": 2, "validation": far, "checkpoint": Checkpoint(tmp_path)}
    result = fit(local_model, local_guide, X, **options)
    assert result.best_step is None
    assert files.read(tmp_path).record["history"]["validation"] == ["-inf", "-inf"]
    resumed = fit(local_model, local_guide, X, resume=True, **options)
    assert [e.validation for e in resumed.history] == [-math.inf, -math.inf]
