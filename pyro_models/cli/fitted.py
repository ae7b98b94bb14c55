"""A pair as a run has it: made for the data, trained or read from a checkpoint."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyro_models import pairs
from pyro_models.cli import defaults, exact
from pyro_models.cli.recipe import Prepared
from pyro_models.cli.runs import Config, RunFolder
from pyro_models.errors import CheckpointError
from pyro_models.infer import Objective, Step, checkpoint
from pyro_models.infer.random_state import isolated


@dataclass(frozen=True, eq=False)
class Fitted:
    """Model and guide on one device, ready to be judged and drawn from."""

    model: nn.Module
    """p(x, z)."""
    guide: nn.Module
    """q(z | x)."""
    device: torch.device
    """Where their parameters are."""
    seconds: float
    """Wall time of the fit."""
    objective: Objective
    """What was maximised, where it was fitted by gradients."""


def make(config: Config, prepared: Prepared) -> pairs.Pair:
    """Make the pair of a run, untrained; the same at every call.

    Raises:
        OptionError: If an option cannot work.
        DataError: If the pair cannot explain the data.
    """
    known = pairs.options(config.pair)
    wanted: dict[str, Any] = {
        "latent_dim": config.latent_dim,
        "num_components": config.num_components,
        "truncation": config.num_components,
        "num_classes": prepared.num_classes,
        "likelihood": prepared.likelihood(),
    }
    of_kinds = defaults.of(config.pair)
    if of_kinds.labels or of_kinds.clustered:
        wanted["preprocess"] = prepared.shown_to_guide()
    chosen = {name: value for name, value in wanted.items() if name in known and value is not None}
    with isolated(torch.device("cpu"), config.seed):
        pair = pairs.build(config.pair, prepared.made_for(), **chosen)
    return pairs.with_belief(pair)


def read(folder: RunFolder, config: Config, prepared: Prepared, device: torch.device) -> Fitted:
    """Read the pair of a run from its newest checkpoint, as the fit would have left it.

    Raises:
        CheckpointError: If there is none, or it is damaged, or of another pair.
    """
    if not folder.has_checkpoint:
        raise CheckpointError(
            f"the run in {folder.path} has no checkpoint yet; fit it with pyro-models fit --resume "
            f"{folder.path}"
        )
    saved = checkpoint.read(folder.checkpoints)
    pair = make(config, prepared)
    for module in (pair.model, pair.guide):
        module.to(device)
        module.eval()
    if exact.is_saved(saved):
        exact.load(saved, pair.model, pair.guide)
    else:
        step = _step(pair.model, pair.guide, pair.objective)
        x = prepared.seen(prepared.parts.train)
        step.initialize(x[: config.batch_size].to(device), num_data=len(x))
        # The parameters of the best held-out bound, if that is where the fit went back to.
        step.load_state_dict(saved.group("best") or saved.group("step"))
    seconds = float(saved.record["seconds"])
    return Fitted(pair.model, pair.guide, device, seconds, pair.objective)


def _step(model: nn.Module, guide: nn.Module, objective: Objective) -> Step:
    """A step that is never taken: it knows how a checkpoint's tensors go into a pair."""
    return Step(model, guide, objective, functools.partial(torch.optim.SGD, lr=0.0), compiled=False)
