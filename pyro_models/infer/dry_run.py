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
    """Put back the programs' buffers, such as running means, and what they held."""
    modules = {part for p in programs for m in modules_of(p).values() for part in m.modules()}
    kept = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)
                setattr(module, name, buffer)


@contextmanager
def dry_run(model: Any, guide: Any, *holders: Any) -> Iterator[None]:
    """Run a pair without gradients and as if it had not been run."""
    with ExitStack() as stack:
        stack.enter_context(preserved_rng(model, guide, *holders))
        stack.enter_context(preserved_buffers(model, guide))
        stack.enter_context(torch.no_grad())
        yield
