"""A run killed at any moment and resumed ends bit for bit where an uninterrupted one ends."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_models.errors import CheckpointError
from pyro_models.infer import checkpoint as files
from pyro_models.infer.checkpoint import Checkpoint
from pyro_models.infer.history import Fit
from pyro_models.infer.run import EpochEnd
from pyro_models.infer.schedules import InverseEpoch
from pyro_models.infer.stopping import EarlyStopping, StopFit, StopReason
from tests.infer import resume_worker
from tests.infer.fit_cases import fit, mean_model, network_pair, no_guide, normal_data
from tests.source import ROOT


def worker(directory: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.infer.resume_worker", str(directory), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def resume(directory: Path, how: str) -> None:
    process = worker(directory, "resume", how)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_killed_at_a_random_step(tmp_path: Path, how: str) -> None:
    step = random.Random(f"{how} 1").randrange(2, resume_worker.STEPS)
    process = worker(tmp_path, "die", how, str(step))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, output
    assert 0 < files.read(tmp_path).record["position"]["step"] < resume_worker.STEPS
    resume(tmp_path, how)


def test_killed_at_a_random_moment_while_it_writes_all_the_time(tmp_path: Path) -> None:
    # It writes a checkpoint after each step, so that the kill may come in the middle of one.
    process = worker(tmp_path, "busy", "eager")
    deadline = time.monotonic() + 120
    while not files.exists(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.Random(2).uniform(0.02, 0.1))
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    resume(tmp_path, "eager")


def same(one: Fit, other: Fit) -> bool:
    rows = [
        [(e.step, e.epoch, e.elbo, e.validation, e.lr) for e in f.history] for f in (one, other)
    ]
    tensors = (one.parameters, other.parameters)
    return rows[0] == rows[1] and all(torch.equal(tensors[0][n], tensors[1][n]) for n in tensors[0])


class Kill(BaseException):
    """Ends a fit as abruptly as can be done inside one process."""


class DyingTransform:
    """Leaves batches as they are, and ends the fit at one of them."""

    def __init__(self, after: int | None):
        self.after = after
        self.calls = 0

    def __call__(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        if self.after is not None and self.calls > self.after:
            raise Kill
        return batch


def interrupted(directory: Path, after: int, **options: object) -> Fit:
    """Fit a pair of networks, die after a number of batches, resume."""

    def run(dies: int | None, resume: bool) -> Fit:
        told = {"checkpoint": Checkpoint(directory, every_steps=3), "resume": resume, **options}
        return fit(*network_pair(), transform=DyingTransform(dies), **told)

    with pytest.raises(Kill):
        run(after, resume=False)
    return run(None, resume=True)


@pytest.mark.parametrize(
    ("optimizer", "after"),
    [
        (functools.partial(torch.optim.AdamW, lr=1e-2, amsgrad=True), 2),
        (functools.partial(torch.optim.SGD, lr=1e-2), 9),
        (functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True), 17),
        (functools.partial(torch.optim.RMSprop, lr=1e-2, momentum=0.5), 8),
        (functools.partial(torch.optim.Adagrad, lr=1e-2), 15),
    ],
    ids=lambda value: value.func.__name__ if isinstance(value, functools.partial) else str(value),
)
def test_each_kind_of_optimiser(
    tmp_path: Path, optimizer: Callable[..., torch.optim.Optimizer], after: int
) -> None:
    options = {"data": normal_data(50, 3), "epochs": 3, "batch_size": 9, "optimizer": optimizer}
    resumed = interrupted(tmp_path, after, **options)
    assert same(resumed, fit(*network_pair(), transform=DyingTransform(None), **options))


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader(tmp_path: Path, own_generator: bool, workers: int) -> None:
    def loader() -> DataLoader:  # 8 batches
        generator = torch.Generator().manual_seed(5) if own_generator else None
        data = TensorDataset(normal_data(30, 3))
        return DataLoader(
            data, batch_size=4, shuffle=True, generator=generator, num_workers=workers
        )

    resumed = interrupted(tmp_path, 14, data=loader(), epochs=2)
    whole = fit(*network_pair(), data=loader(), epochs=2, transform=DyingTransform(None))
    assert same(resumed, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_augments_its_items(tmp_path: Path, workers: int) -> None:
    class Augmented(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> torch.Tensor:
            return index / 30 + 0.1 * torch.randn(3)

    def run(directory: Path, after: int | None) -> Fit:
        loader = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=workers)
        if after is None:
            whole = {"data": loader, "epochs": 2, "transform": DyingTransform(None)}
            return fit(*network_pair(), **whole)
        return interrupted(directory, after, data=loader, epochs=2)

    assert same(run(tmp_path, 14), run(tmp_path, None))


def test_a_loader_that_gives_other_batches_is_found_out(tmp_path: Path) -> None:
    class Unseeded(torch.utils.data.Sampler):
        def __iter__(self):
            order = list(range(30))
            random.SystemRandom().shuffle(order)
            return iter(order)

        def __len__(self) -> int:
            return 30

    loader = DataLoader(TensorDataset(normal_data(30, 3)), batch_size=4, sampler=Unseeded())
    with (
        pytest.warns(UserWarning, match="Unseeded"),
        pytest.raises(CheckpointError, match="other batches"),
    ):
        interrupted(tmp_path, 21, data=loader, epochs=4)


def test_early_stopping_and_the_best_parameters(tmp_path: Path) -> None:
    options = {
        "data": normal_data(50, 3),
        "epochs": 40,
        "batch_size": 9,
        "validation": normal_data(20, 3, seed=1) + 0.5,
        "early_stopping": EarlyStopping(patience=3),
    }
    whole = fit(*network_pair(), transform=DyingTransform(None), **options)
    assert whole.stop_reason is StopReason.EARLY_STOPPING
    assert whole.best_step is not None
    # Die after the best evaluation and before the end; an epoch is 6 steps and an evaluation.
    after = whole.best_step // 6 * 7 + 12
    resumed = interrupted(tmp_path, after, **options)
    assert same(resumed, whole)
    assert (resumed.best_step, resumed.best_validation) == (
        whole.best_step,
        whole.best_validation,
    )
    again = fit(
        *network_pair(),
        transform=DyingTransform(None),
        checkpoint=Checkpoint(tmp_path, every_steps=3),
        resume=True,
        **options,
    )
    assert again.stop_reason is StopReason.EARLY_STOPPING
    assert same(again, whole)


def test_a_finished_fit_resumes_to_itself_and_to_more_epochs(tmp_path: Path) -> None:
    options = {"data": normal_data(50, 3), "batch_size": 9, "schedule": InverseEpoch()}
    at = Checkpoint(tmp_path)
    short = fit(*network_pair(), epochs=2, checkpoint=at, **options)
    again = fit(*network_pair(), epochs=2, checkpoint=at, resume=True, **options)
    assert same(again, short)
    assert again.history == short.history
    longer = fit(*network_pair(), epochs=5, checkpoint=at, resume=True, **options)
    assert same(longer, fit(*network_pair(), epochs=5, **options))


def test_a_drawn_seed_is_taken_up_again(tmp_path: Path) -> None:
    options = {"data": normal_data(50, 3), "batch_size": 9, "seed": None}
    at = Checkpoint(tmp_path)
    short = fit(*network_pair(), epochs=1, checkpoint=at, **options)
    longer = fit(*network_pair(), epochs=3, checkpoint=at, resume=True, **options)
    assert longer.seed == short.seed
    assert same(longer, fit(*network_pair(), epochs=3, **{**options, "seed": short.seed}))


def test_the_end_by_ctrl_c_or_callback_can_be_resumed(tmp_path: Path) -> None:
    def press(event: EpochEnd) -> None:
        if event.record.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    def stop(event: EpochEnd) -> None:
        if event.record.epoch == 2:
            raise StopFit

    options = {"data": normal_data(20), "epochs": 4, "batch_size": 8}
    at = Checkpoint(tmp_path, every_epochs=None)
    one = fit(mean_model, no_guide, checkpoint=at, callbacks=[press], **options)
    assert (one.stop_reason, one.steps) == (StopReason.INTERRUPTED, 3)
    two = fit(mean_model, no_guide, checkpoint=at, callbacks=[stop], resume=True, **options)
    assert (two.stop_reason, two.steps) == (StopReason.CALLBACK, 6)
    three = fit(mean_model, no_guide, checkpoint=at, resume=True, **options)
    assert three.stop_reason is StopReason.EPOCHS
    assert same(three, fit(mean_model, no_guide, **options))


def test_resumed_after_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    every = Checkpoint(tmp_path / "all", every_steps=1, keep=100)
    whole = resume_worker.train(False, checkpoint=every)
    name = f"step-{resume_worker.STEPS_AN_EPOCH:09d}"
    shutil.copytree(tmp_path / "all" / name, tmp_path / "one" / name)
    one = Checkpoint(tmp_path / "one", every_steps=1)
    assert resume_worker.equal(resume_worker.train(False, checkpoint=one, resume=True), whole)
