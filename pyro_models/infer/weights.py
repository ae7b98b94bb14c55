"""Run a pair with K particles and record log p and log q by site: see ``LogWeights``."""

import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer.draws import (
    ON_PATHS,
    Detach,
    Detached,
    Draws,
    OnPaths,
    PathFactor,
    PathsOnly,
    constants_of,
    paths_only,
    rerun,
    without_score,
)
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.record import LogWeights
from pyro_models.infer.scales import shared_scale
from pyro_models.infer.sites import (
    PARTICLES,
    Layout,
    Site,
    columns_of,
    data_frame,
    frames_of,
    plate_depth,
    samples,
)
from pyro_models.infer.sums import NO_SUMS, SideBySide, Sums

Program = Callable[..., Any]


def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any
) -> LogWeights:
    r"""Run a pair once with K vectorised particles and record log p and log q by site.

    The guide runs, then the model is replayed against its draws. The data plate is the one named
    ``"data"``; without one of that name, the rightmost plate shared by every observed site. Works
    for any Pyro pair, autoguides included.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments, which samples the model's latents.
        *args: Given to both.
        num_particles: K, draws from the guide.
        **kwargs: Given to both.

    Returns:
        The record; gradients flow through it.

    Raises:
        OptionError: If ``num_particles`` is less than 1.
        SiteMismatchError: If the guide misses a latent of the model or samples something else, or
            a site has dimensions that no plate and no event accounts for.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", 10, subsample=torch.arange(len(x))):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", 10, subsample=torch.arange(len(x))):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> weights = log_weights(model, guide, torch.zeros(2), num_particles=3)
        >>> weights.local.shape, weights.plate_scale
        (torch.Size([3, 2]), 5.0)
        >>> weights.local[0, 0]  # the guide is exact, so each weight is log p(x)
        tensor(-1.2655)
    """
    return run_pair(model, guide, args, kwargs, num_particles=num_particles)


def run_pair(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    num_particles: int = 1,
    draws: Draws = ON_PATHS,
    summed: tuple[str, ...] = (),
) -> LogWeights:
    """What ``log_weights`` does, for objectives that differentiate draws in their own way.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        args: Given to both.
        kwargs: Given to both.
        num_particles: K.
        draws: How densities see the draws.
        summed: Discrete latents of the guide that are summed over instead of drawn: densities in
            the record are expectations over them. Draws must be ``OnPaths``.

    Raises:
        OptionError: If ``num_particles`` is less than 1, or ``draws`` needs paths where there are
            none, or a latent cannot be summed over.
        SiteMismatchError: As ``log_weights``.
    """
    if num_particles < 1:
        raise OptionError(f"num_particles is {num_particles}; it must be at least 1")
    nesting = None
    if num_particles > 1 or summed:
        nesting = _plate_nesting(model, guide, args, kwargs)
    if num_particles > 1:
        particles = pyro.plate(PARTICLES, num_particles, dim=-(nesting or 0) - 1)
        model, guide = particles(model), particles(guide)
    factor = PathFactor()
    fixed: dict[str, Tensor] = {}
    side_by_side = SideBySide(summed, -(nesting or 0) - 2)
    with Detach(draws) if isinstance(draws, Detached) else side_by_side:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    sums = side_by_side.sums(guide_trace)
    if isinstance(draws, PathsOnly):
        guide_trace, fixed = paths_only(guide, guide_trace, factor, (args, kwargs))
    model_trace = rerun(model, guide_trace, {}, (args, kwargs))
    weights, factor.layout = record_run(
        guide_trace, model_trace, num_particles, nesting, draws, fixed, sums
    )
    weights = replace(weights, paths=factor)
    if isinstance(draws, OnPaths) and draws.and_constants:
        model_trace = rerun(model, guide_trace, constants_of(guide_trace), (args, kwargs))
        constant, _ = record_run(guide_trace, model_trace, num_particles, nesting)
        fixed_guide = {
            name: replace(site, log_prob=site.log_prob.detach())
            for name, site in constant.guide_sites.items()
        }
        weights.notes["constant"] = replace(constant, guide_sites=fixed_guide)
    return weights


_Depths = dict[Hashable, int]
REMEMBERED = 256
"""Kinds of arguments whose depth of plates is kept for a pair."""
_nesting: "weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, _Depths]]" = (
    weakref.WeakKeyDictionary()
)


def _plate_nesting(model: Program, guide: Program, args: tuple, kwargs: dict) -> int:
    """Depth of plates, found by one run without particles and remembered for the pair."""
    # A program may open other plates for other arguments, such as observations or none.
    kind = kind_of(args, kwargs)
    known: _Depths = {}
    with suppress(TypeError):  # for callables that cannot be keys: nothing is remembered of them
        known = _nesting.setdefault(model, weakref.WeakKeyDictionary()).setdefault(guide, known)
    if kind not in known:
        with dry_run(model, guide, args, kwargs):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = rerun(model, guide_trace, {}, (args, kwargs))
            # Among K particles, a dimension of size K that is not theirs would pass unseen.
            record_run(guide_trace, model_trace, particles=1, nesting=None)
        remember(known, kind, plate_depth(guide_trace, model_trace))
    return known[kind]


def remember(known: _Depths, kind: Hashable, depth: int) -> None:
    """Keep a depth; what is known is forgotten before it grows without end."""
    if len(known) >= REMEMBERED:
        known.clear()
    known[kind] = depth


def kind_of(args: tuple, kwargs: dict[str, Any]) -> Hashable:
    """What tells arguments apart for which a program may open other plates."""
    return (*map(_kind, args), *((name, _kind(value)) for name, value in kwargs.items()))


def _kind(argument: Any) -> Hashable:
    # A program branches on flags, counts and names; a float may be another at each step.
    if isinstance(argument, bool | int | str):
        return type(argument), argument
    return type(argument), argument.dim() if isinstance(argument, Tensor) else 0


def _check_sites(model_trace: Any, guide_trace: Any) -> None:
    model = {n["name"]: n for n in samples(model_trace)}
    guide = {n["name"]: n for n in samples(guide_trace) if not n["is_observed"]}
    missing = [n for n, node in model.items() if not node["is_observed"] and n not in guide]
    if missing:
        raise SiteMismatchError(
            f"the guide does not sample {missing}, which the model leaves unobserved; "
            "sample these sites in the guide, or observe them in the model"
        )
    for name, node in guide.items():
        if node["infer"].get("is_auxiliary"):
            continue
        if name not in model:
            raise SiteMismatchError(
                f"the guide samples {name!r}, which is no site of the model; rename it, or mark it "
                'with infer={"is_auxiliary": True}'
            )
        if model[name]["is_observed"]:
            raise SiteMismatchError(
                f"the guide samples {name!r}, which the model observes; remove it from the guide"
            )
        ours, theirs = node["fn"].event_shape, model[name]["fn"].event_shape
        if ours != theirs:
            raise SiteMismatchError(
                f"site {name!r} has event shape {tuple(theirs)} in the model and {tuple(ours)} in "
                "the guide; give both the same, with .to_event where dimensions are dependent"
            )


def _check_plates(model_trace: Any, guide_trace: Any) -> None:
    model = {n["name"]: frames_of(n) for n in samples(model_trace)}
    everywhere = [f for frames in model.values() for f in frames]
    for node in samples(guide_trace):
        theirs = {f.name: f for f in model.get(node["name"], everywhere)}
        for ours in frames_of(node):
            other = theirs.get(ours.name, ours)
            sizes = [(f.size, f.full_size or f.size) for f in (ours, other)]
            if sizes[0] != sizes[1]:
                (b, n), (size, full) = sizes
                raise SiteMismatchError(
                    f"site {node['name']!r} lies in plate {ours.name!r}, of which there are {size} "
                    f"of {full} in the model and {b} of {n} in the guide; give the plate the same "
                    "size and the same subsample in both, so that both densities count alike"
                )


def record_run(
    guide_trace: Any,
    model_trace: Any,
    particles: int,
    nesting: int | None,
    draws: Draws = ON_PATHS,
    fixed: dict[str, Tensor] = {},  # noqa: B006 (never changed)
    sums: Sums = NO_SUMS,
) -> tuple[LogWeights, Layout]:
    """The record of two traces, the model's at the guide's draws, and where things lie in it."""
    _check_sites(model_trace, guide_trace)
    _check_plates(model_trace, guide_trace)
    depth = plate_depth(model_trace, guide_trace) if nesting is None else nesting
    frame = data_frame(model_trace)
    batch = frame.size if frame is not None else 0
    total = frame.full_size or frame.size if frame is not None else 1
    columns = columns_of(frame, model_trace, guide_trace)
    layout = Layout(depth, particles, frame, total / batch if batch else 1.0, columns, sums)
    model = {n["name"]: layout.site(n, drawn=False) for n in samples(model_trace)}
    guide = {}
    for node in samples(guide_trace):
        name = node["name"]
        drawn = not node["is_observed"]
        detached = drawn and isinstance(draws, Detached) and not draws.keeps(name, node["fn"])
        site = layout.site(node, drawn=True, detached=detached)
        guide[name] = without_score(site, fixed)
    _check_places(model, guide)
    common = _common_factor([*model.values(), *guide.values()])
    weights = LogWeights(
        {name: layout.fill(site, common) for name, site in model.items()},
        {name: layout.fill(site, common) for name, site in guide.items()},
        num_particles=particles,
        batch_size=batch,
        num_data=total,
        common_scale=common,
        sums=sums,
    )
    return weights, layout


def _check_places(model: dict[str, Site], guide: dict[str, Site]) -> None:
    for name, site in guide.items():
        if name in model and not model[name].observed and model[name].local != site.local:
            where = "the model" if model[name].local else "the guide"
            raise SiteMismatchError(
                f"site {name!r} is inside the data plate in {where} only; run it in a plate of the "
                "same name in both, or outside in both"
            )


def _common_factor(sites: list[Site]) -> float | Tensor:
    """The scale that all sites share: it belongs outside every logarithm, not in the weights."""
    common = shared_scale([site.factor for site in sites if not site.deterministic])
    return 1.0 if common is None else common
