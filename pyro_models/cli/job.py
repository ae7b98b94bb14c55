"""What the commands do: fit a pair into a folder, judge a run, draw from it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_models import plots
from pyro_models.cli import defaults, exact, fitted, pictures
from pyro_models.cli.fitted import Fitted
from pyro_models.cli.latents import new_data
from pyro_models.cli.recipe import Prepared
from pyro_models.cli.report import Report, judge
from pyro_models.cli.runs import Config, RunFolder
from pyro_models.errors import OptionError
from pyro_models.infer import (
    Checkpoint,
    Cosine,
    EarlyStopping,
    Fit,
    LinearWarmup,
    Remedies,
    StopReason,
    Validation,
    fit,
)
from pyro_models.infer.checkpoint import encode
from pyro_models.infer.random_state import isolated
from pyro_models.pairs import LatentStart, Pair, start_clusters
from pyro_models.posterior import to_arviz, write_netcdf

LEARNING_RATE = 2e-3
# Looks at the held-out data that are borne without an improvement, of about 50 in a fit.
_PATIENCE = 10
_POSTERIOR_DATA, _POSTERIOR_DRAWS, _POSTERIOR_BYTES = 100, 200, 32 * 2**20

SAMPLE_KINDS = (".npy", ".csv", ".png")
GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
)
# The share of a fit in which the divergence from the prior is weighted in.
_WARM_UP = 0.2
# Numbers in a minibatch from which its work is shared between threads.
_SHARED = 32_768
Tell = Callable[[str], None]


def train(
    config: Config, folder: RunFolder, prepared: Prepared, device: torch.device, progress: bool
) -> Fit:
    """Fit the pair of a run, from its newest checkpoint if there is one.

    By exact E- and M-steps where the model has them (see ``exact``), else by gradients.

    Args:
        config: What was asked for.
        folder: Where it is written.
        prepared: The data.
        device: Where to fit.
        progress: Whether to show how far it has come.

    Raises:
        NonFiniteError: If the fit diverges.
        CheckpointError: If a checkpoint cannot be written or read.
    """
    pair = fitted.make(config, prepared)
    by = exact.train if exact.suits(pair) else _fit
    with _threads(config, prepared):
        result = by(pair, config, folder, prepared, device, progress)
    if result.history:
        rows = [dataclasses.asdict(record) for record in result.history]
        folder.write_json("history.json", [encode(row) for row in rows])
        folder.write_picture("loss.png", pictures.history(result.history))
    return result


def _fit(
    pair: Pair,
    config: Config,
    folder: RunFolder,
    prepared: Prepared,
    device: torch.device,
    progress: bool,
) -> Fit:
    data, held_out, transform = prepared.training()
    if defaults.of(config.pair).clustered and not folder.has_checkpoint:
        start_clusters(
            pair,
            data,
            LatentStart(max(1, config.epochs // 2), config.batch_size, LEARNING_RATE),
            transform=transform,
            device=device,
            seed=config.seed,
            progress=progress,
        )
    return fit(
        pair.model,
        pair.guide,
        data,
        objective=pair.objective,
        optimizer=functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=transform,
        schedule=Cosine(),
        kl=_warm_up(pair, config, len(prepared.parts.train)),
        validation=Validation(held_out, every=config.every),
        early_stopping=EarlyStopping(_PATIENCE),
        device=device,
        seed=config.seed,
        progress=progress,
        checkpoint=Checkpoint(folder.checkpoints, every_epochs=config.every),
        resume=folder.has_checkpoint,
    )


def _warm_up(pair: Pair, config: Config, num_data: int) -> LinearWarmup | Remedies | None:
    """The weight of the codes' divergence over the first part of the fit."""
    known = defaults.of(config.pair)
    if not known.warm_up:
        return None
    steps = config.epochs * math.ceil(num_data / config.batch_size)
    weight = LinearWarmup(max(1, int(_WARM_UP * steps)))
    if not known.labels:
        return weight
    model: Any = pair.model  # of a class and a code, one of which must not be forgotten
    return Remedies(weight={model.code.site: weight})


def finish(
    config: Config, folder: RunFolder, prepared: Prepared, device: torch.device, tell: Tell
) -> Report:
    """Make pictures, posterior draws and the table of a run from its checkpoint.

    Args:
        config: What was asked for.
        folder: The run.
        prepared: The data.
        device: Where to work.
        tell: Shows a line.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or something cannot be written.
    """
    pair = fitted.read(folder, config, prepared, device)
    tell("drawing pictures")
    for name, picture in pictures.draw(pair, prepared):
        folder.write_picture(name, picture)
    tell("drawing from the posterior")
    _write_posterior(pair, folder, prepared)
    tell("estimating log p(x)")
    with _threads(config, prepared):
        report = judge(pair, config.pair, prepared)
    folder.write_json("report.json", report.as_json())
    return report


def evaluate(config: Config, folder: RunFolder, prepared: Prepared, device: torch.device) -> Report:
    """Make the table of a run anew from its checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
    """
    pair = fitted.read(folder, config, prepared, device)
    with _threads(config, prepared):
        return judge(pair, config.pair, prepared)


def draw(
    config: Config,
    folder: RunFolder,
    prepared: Prepared,
    device: torch.device,
    count: int,
    seed: int,
) -> Tensor:
    """Draw new data from the model of a run, in the data's own units, ``(count, data_dim)``.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
    """
    pair = fitted.read(folder, config, prepared, device)
    train = prepared.seen(prepared.parts.train).to(device)
    with isolated(device, seed):
        return prepared.shown(new_data(pair, train, count))


def save_samples(x: Tensor, path: Path, prepared: Prepared) -> None:
    """Write samples to a .npy, .csv or .png file.

    Raises:
        OptionError: If the file is of another kind, or cannot be written.
    """
    test = prepared.parts.test
    try:
        if path.suffix == ".npy":
            np.save(path, x.numpy(), allow_pickle=False)
        elif path.suffix == ".csv":
            names = test.feature_names or [f"x{place}" for place in range(x.shape[1])]
            np.savetxt(
                path, x.numpy(), fmt="%.7g", delimiter=",", header=",".join(names), comments=""
            )
        else:
            picture = plots.samples(
                x, test.x, image_shape=test.image_shape, names=test.feature_names
            )
            path.write_bytes(picture.png(dpi=150))
    except OSError as error:
        raise OptionError(
            f"cannot write {path}: {error.strerror or error}; give another file with --out"
        ) from error


def _write_posterior(pair: Fitted, folder: RunFolder, prepared: Prepared) -> None:
    test = prepared.parts.test
    fitting = _POSTERIOR_BYTES // (2 * 4 * _POSTERIOR_DRAWS * test.data_dim)
    some = test.subset(slice(max(1, min(_POSTERIOR_DATA, fitting))))
    with isolated(pair.device, prepared.seed):
        draws = to_arviz(
            pair.model,
            pair.guide,
            prepared.seen(some).to(pair.device),
            _POSTERIOR_DRAWS,
            coords={} if some.feature_names is None else {"x_dim": some.feature_names},
            labels=some.labels,
        )
    # HDF5 may crash on a full disk, where nothing could be caught.
    size = sum(draws[group].nbytes for group in GROUPS if group in draws)
    folder.reserve("posterior.nc", size + size // 10 + 2**20)
    with folder.writing("posterior.nc"):
        write_netcdf(draws, folder.path / "posterior.nc")


@contextmanager
def _threads(config: Config, prepared: Prepared) -> Iterator[None]:
    """One thread where minibatches are too small to share out.

    On a busy machine the threads of one small operation wait for each other ten times longer than
    they work. The rule depends on the run alone, so that a resumed one adds up in the same order.
    """
    before = torch.get_num_threads()
    if config.batch_size * prepared.parts.train.data_dim < _SHARED:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interrupted(result: Fit) -> bool:
    """Whether a fit was ended by Ctrl-C."""
    return result.stop_reason is StopReason.INTERRUPTED
