r"""Draws from a guide with their weights, apart for each datum and for the latents of all."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.enumeration import remembered_hidden, remembered_marginal
from pyro_models.infer.inspection import (
    data_size,
    footprint,
    human_bytes,
    latent_sites,
    sample_sites,
)
from pyro_models.infer.record import LogWeights
from pyro_models.infer.sites import is_point_mass
from pyro_models.infer.weights import Program, log_weights


@dataclass(frozen=True)
class Latents:
    """Names of the latents that a guide samples, by kind."""

    spread: tuple[str, ...]
    """Outside the data plate, with a density."""
    points: tuple[str, ...]
    """Outside the data plate, fixed at a point."""
    continuous: tuple[str, ...]
    """Each datum's own."""
    discrete: tuple[str, ...]
    """Each datum's own, with values that can be counted."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Outside the data plate."""
        return self.spread + self.points


def latents_of(guide: Program, args: tuple[Tensor, ...]) -> Latents:
    """See which latents a guide samples, by one run.

    Args:
        guide: A Pyro program.
        args: Its arguments.
    """
    with dry_run(guide, guide, args):
        trace = poutine.trace(guide).get_trace(*args)
    found: dict[str, list[str]] = {"spread": [], "points": [], "continuous": [], "discrete": []}
    # An autoguide draws what it calls auxiliary, and gives the latents computed from it as points.
    blurred = any(
        node["infer"].get("is_auxiliary") and not is_point_mass(node["fn"])
        for node in sample_sites(trace).values()
    )
    for name, node in latent_sites(trace).items():
        if data_size(node) is None:
            fixed = is_point_mass(node["fn"]) and not blurred
            found["points" if fixed else "spread"].append(name)
        else:
            found["discrete" if node["fn"].support.is_discrete else "continuous"].append(name)
    return Latents(**{kind: tuple(names) for kind, names in found.items()})


@dataclass(frozen=True)
class Draws:
    r"""S draws :math:`\theta_s` of the latents that all data share, in float64 on the CPU."""

    local: Float[Tensor, "S N"]
    r""":math:`\log p(x_n \mid \theta_s)`; with continuous latents of a datum's own, the log-weight
    of one draw of them."""
    shared: Float[Tensor, " S"]
    r""":math:`\log p(\theta_s) - \log q(\theta_s)`."""

    @property
    def joint(self) -> Float[Tensor, " S"]:
        r""":math:`\log p(X, \theta_s) - \log q(\theta_s)`."""
        return self.shared + self.local.sum(-1)


def draw(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    num_samples: int,
    max_memory: int,
) -> Draws:
    """Draw from a guide with global latents; discrete latents of the data's own are summed out.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        args: The data.
        num_samples: S.
        max_memory: Bytes for the result and for the tensors of a chunk, each.

    Raises:
        OptionError: If the result would not fit.
        SiteMismatchError: If model and guide do not fit together.
    """
    size = 8 * num_samples * len(args[0])
    if size > max_memory:
        raise OptionError(
            f"{num_samples} draws for {len(args[0])} data take {human_bytes(size)}, more than "
            f"max_memory={max_memory} ({human_bytes(max_memory)}); ask for fewer draws"
        )
    latents = latents_of(guide, args)
    if latents.discrete and not latents.continuous:
        guide = remembered_hidden(guide, latents.discrete)
    summed = remembered_marginal(model)

    def run(count: int) -> LogWeights:
        with torch.no_grad():
            return log_weights(summed, guide, *args, num_particles=count)

    run(1)
    chunk = max(1, min(num_samples, max_memory // max(1, footprint(lambda: run(1)))))
    local, shared = [], []
    for start in range(0, num_samples, chunk):
        weights = run(min(chunk, num_samples - start))
        local.append(weights.local.double().cpu())
        shared.append(weights.global_.double().cpu())
    return Draws(torch.cat(local), torch.cat(shared))


@dataclass(frozen=True)
class LogMean:
    """The logarithm of a mean of weights, column by column."""

    value: Float[Tensor, "*columns"]
    """log of the mean."""
    standard_error: Float[Tensor, "*columns"]
    """By the delta method; infinite for one draw."""
    effective_sample_size: Float[Tensor, "*columns"]
    """Kish's."""


def log_mean(log_weights: Float[Tensor, "S *columns"]) -> LogMean:
    """The logarithm of the mean of S weights, with its error.

    Args:
        log_weights: Logarithms of the weights.

    Example:
        >>> found = log_mean(torch.tensor([[0.0], [0.0]], dtype=torch.float64))
        >>> found.value.item(), found.standard_error.item(), found.effective_sample_size.item()
        (0.0, 0.0, 2.0)
    """
    count = len(log_weights)
    first, second = log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)
    # 1 + the squared coefficient of variation, up to rounding
    ratio = (count * (second - 2 * first).exp()).clamp(min=1.0)
    error = ((ratio - 1) / (count - 1)).sqrt() if count > 1 else torch.full_like(ratio, math.inf)
    return LogMean(first - math.log(count), error, count / ratio)
