"""Runs of a program that leave no trace: generators and buffers are put back afterwards."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyro_models.infer.random_state import RandomState


def modules_of(program: Any) -> dict[str, nn.Module]:
    """The modules that a program runs, as far as can be seen from outside, by name.

    They are the program itself, or the object that it is a method of, or the modules among the
    variables that a function takes from around it.
    """
    owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    if isinstance(owner, nn.Module):
        return {"": owner}
    if not inspect.isfunction(program):
        return {}
    around = inspect.getclosurevars(program)
    variables = {**around.globals, **around.nonlocals}
    return {name: value for name, value in variables.items() if isinstance(value, nn.Module)}


@contextmanager
def preserved_rng(*holders: Any) -> Iterator[None]:
    """Restore torch's generators afterwards: the CPU's, and of each CUDA device in ``holders``."""
    tensors: list[Tensor] = []
    for leaf in tree_leaves(holders):
        tensors += [leaf] if isinstance(leaf, Tensor) else []
        for module in modules_of(leaf).values():
            tensors += module.parameters()
    devices = {t.device for t in tensors if t.is_cuda} or {torch.device("cpu")}
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(RandomState(device, {}).preserved())
        yield


@contextmanager
def preserved_buffers(*programs: Any) -> Iterator[None]:
    """Keep the programs' buffers, such as running means, and what they hold.

    The modules get clones to work on meanwhile: no graph that was made before can be differentiated
    through an original that is written to, be it with what it held. A program that holds the
    original elsewhere too may still write to it; then, and only then, it is put back.
    """
    places = _buffers(programs)
    originals = {id(buffer): buffer for _, _, buffer in places}
    clones = {key: buffer.clone() for key, buffer in originals.items()}
    values = {key: buffer.detach().clone() for key, buffer in originals.items()}
    versions = {key: _version(buffer) for key, buffer in originals.items()}
    try:
        for module, name, buffer in places:
            setattr(module, name, clones[id(buffer)])
        yield
    finally:
        for module, name, buffer in places:
            setattr(module, name, buffer)
        for key, buffer in originals.items():
            version, value = versions[key], values[key]
            same = torch.equal(buffer, value) if version is None else buffer._version == version
            if not same:
                with torch.inference_mode(version is None), torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def same_buffers(*programs: Any) -> Iterator[None]:
    """Put the programs' buffers themselves back where others took their places."""
    kept = _buffers(programs)
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def _buffers(programs: tuple[Any, ...]) -> list[tuple[nn.Module, str, Tensor]]:
    """Every place of a buffer: tied ones have several."""
    modules = {part: None for p in programs for m in modules_of(p).values() for part in m.modules()}
    return [
        (module, name, buffer)
        for module in modules
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]


def _version(buffer: Tensor) -> int | None:
    """How often a tensor was written to; ``None`` for inference tensors, which do not count."""
    return None if buffer.is_inference() else buffer._version


@contextmanager
def dry_run(model: Any, guide: Any, *holders: Any) -> Iterator[None]:
    """Run a pair without gradients and as if it had not been run."""
    with ExitStack() as stack:
        stack.enter_context(preserved_rng(model, guide, *holders))
        stack.enter_context(preserved_buffers(model, guide))
        stack.enter_context(torch.no_grad())
        yield
