"""Which densities depend on which draws of a pair: the costs that a score function must see."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from pyro import poutine
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_models.infer.draws import latents_of, rerun
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.sites import samples
from pyro_models.infer.weights import Program, kind_of

Dependents = dict[str, frozenset[str]]

# What turns a tensor into plain values, which no longer tell where they come from.
_LOSES_TRACK = (
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__array__,
)


class _LostTrackError(RuntimeError):
    """A draw became a plain value: what depends on it cannot be told."""


class _Watch(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _LOSES_TRACK and get_provenance(args[0]):
            raise _LostTrackError
        return func(*args, **(kwargs or {}))


class _Track(Messenger):
    """Marks every draw with the name of its site."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))


_known: "weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, dict[Any, Any]]]" = (
    weakref.WeakKeyDictionary()
)


def dependents(model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Dependents:
    """The sites whose density, in model or guide, depends on the draw of each latent, by latent.

    Found in one run with marked tensors and remembered for the pair. Where marks are lost (a draw
    becomes a Python number, or an operation does not carry them), every site depends on every
    latent: that is never wrong, only noisier.
    """
    kind = kind_of(args, kwargs)
    known: dict[Any, Dependents] = {}
    with suppress(TypeError):  # for callables that cannot be keys: nothing is remembered of them
        known = _known.setdefault(model, weakref.WeakKeyDictionary()).setdefault(guide, known)
    if kind not in known:
        with dry_run(model, guide, args, kwargs), _unchecked():
            known[kind] = _survey(model, guide, args, kwargs)
    return known[kind]


def _survey(model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Dependents:
    try:
        with _Watch():
            with _Track():
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = rerun(model, guide_trace, {}, (args, kwargs))
            marks = [
                (node["name"], _marks(node))
                for trace in (guide_trace, model_trace)
                for node in samples(trace)
            ]
    except (_LostTrackError, RuntimeError, TypeError, NotImplementedError, AttributeError):
        plain = poutine.trace(guide).get_trace(*args, **kwargs)
        sites = {n["name"] for n in samples(plain)}
        sites |= {n["name"] for n in samples(rerun(model, plain, {}, (args, kwargs)))}
        return {node["name"]: frozenset(sites) for node in latents_of(plain)}
    return {
        node["name"]: frozenset(site for site, origins in marks if node["name"] in origins)
        for node in latents_of(guide_trace)
    }


def _marks(node: dict[str, Any]) -> frozenset[str]:
    density = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    origins: frozenset[str] = get_provenance(density) | {node["name"]}
    return origins


@contextmanager
def _unchecked() -> Iterator[None]:
    """Validation asks marked tensors for plain truth values."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
