"""Runs of a program that leave no trace: generators and buffers are put back afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def module_of(program: Any) -> nn.Module | None:
    """The module that a program is, or a method of which it is."""
    owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def preserved_rng(*holders: Any) -> Iterator[None]:
    """Restore torch's generators afterwards: the CPU's, and of each CUDA device in ``holders``."""
    tensors = []
    for leaf in tree_leaves(holders):
        module = module_of(leaf)
        tensors += [leaf] if isinstance(leaf, Tensor) else []
        tensors += list(module.parameters()) if module is not None else []
    devices = {t.device.index or 0 for t in tensors if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


@contextmanager
def preserved_buffers(*programs: Any) -> Iterator[None]:
    """Put back the programs' buffers, such as running means, and what they held."""
    modules = {m for p in programs if (owner := module_of(p)) is not None for m in owner.modules()}
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
