"""A guide on data that its model made up, for the sleep phase of wake-sleep."""

from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_models.errors import OptionError
from pyro_models.infer.draws import rerun
from pyro_models.infer.record import LogWeights
from pyro_models.infer.weights import Program, record_run


def dream(
    model: Program, guide: Program, args: tuple, kwargs: dict[str, Any], awake: LogWeights
) -> LogWeights:
    """Simulate latents and data from a model, and record the guide's densities of those latents.

    As many data as the minibatch has. Each simulated tensor takes the place of the argument that
    the model observed.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        args: Given to the model.
        kwargs: Given to the model.
        awake: A run of the pair on the same arguments, for what the model observes.

    Raises:
        OptionError: If what the model observes is not among the arguments, or the pair has what
            cannot be simulated: factors, or auxiliary latents of the guide.
    """
    _require_simulable(awake)
    observed = {
        name: site.value
        for name, site in awake.model_sites.items()
        if site.observed and not site.deterministic and site.value.numel()
    }
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    flat, structure = tree_flatten((args, kwargs))
    leaves: list[Any] = list(flat)
    for name, value in observed.items():
        places = [i for i, leaf in enumerate(leaves) if _holds(leaf, value)]
        if not places:
            raise OptionError(
                f"what the model observes at site {name!r} is none of its arguments, so the guide "
                "cannot be shown simulated data in its place; give the data as an argument, or "
                "take WakePhase()"
            )
        node: Any = trace.nodes[name].copy()
        node["is_observed"] = True
        trace.nodes[name] = node
        for place in places:
            leaves[place] = node["value"].view_as(leaves[place])
    simulated = tree_unflatten(leaves, structure)
    return record_run(rerun(guide, trace, {}, simulated), trace, 1, None)[0]


def _require_simulable(awake: LogWeights) -> None:
    for name, site in awake.model_sites.items():
        if site.observed and isinstance(site.fn, Unit):
            raise OptionError(
                f"the model weighs its runs by the factor {name!r}, and cannot simulate data of "
                "that weight; take WakePhase()"
            )
    for name in awake.guide_sites:
        if name not in awake.model_sites:
            raise OptionError(
                f"the guide's site {name!r} is none of the model's, which has no draw of it to "
                "show; take WakePhase()"
            )


def _holds(leaf: Any, value: Tensor) -> bool:
    """Whether an argument is what was observed, perhaps in another shape."""
    if not isinstance(leaf, Tensor) or leaf.numel() != value.numel():
        return False
    if leaf.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
        return False
    # Two arguments may be parts of one tensor, and a transpose holds the same in another order.
    where = leaf.storage_offset() == value.storage_offset()
    alike = leaf.shape == value.shape and leaf.stride() == value.stride()
    return bool(where and (alike or (leaf.is_contiguous() and value.is_contiguous())))
