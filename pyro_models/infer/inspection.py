"""Pyro programs seen from outside: arguments, latents, plates, and the memory that a run takes."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution, Unit
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions import Independent
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_models.errors import DataError
from pyro_models.infer.arrays import as_tensors
from pyro_models.infer.scope import BoundProgram
from pyro_models.infer.sites import frames_of, samples
from pyro_models.infer.weights import Program
from pyro_models.programs import DATA_PLATE


def as_arguments(x: Any, *programs: Program) -> tuple[Tensor, ...]:
    """Check data and give it as the positional arguments of a program.

    Args:
        x: What ``fit`` takes too: a tensor or array ``(N, ...)``, a tuple of them, or a record
            with the attribute ``x``.
        *programs: Those of them that are modules say the floating type and the device.

    Raises:
        DataError: If it is empty or not finite, holds no numbers, or the lengths differ.

    Example:
        >>> as_arguments([[1, 2]], torch.nn.Linear(2, 1).double())
        (tensor([[1., 2.]], dtype=torch.float64),)
    """
    like = _first_parameter(programs)
    if like is None:
        given = [t for t in tree_leaves(x) if isinstance(t, Tensor) and t.is_floating_point()]
        like = given[0] if given else torch.empty(0)
    tensors = as_tensors(x, like.dtype, missing=any(map(accepts_missing, programs)))
    if tensors is None:
        raise DataError("the dataset is read item by item; give its data as tensors here")
    return tuple(tensor.to(like.device) for tensor in tensors)


def accepts_missing(program: Program) -> bool:
    """Whether a program says that NaN in its data stands for a value that is missing.

    It says so by an attribute ``accepts_missing`` that is true.
    """
    return bool(getattr(unwrapped(program), "accepts_missing", False))


def _first_parameter(programs: tuple[Program, ...]) -> Tensor | None:
    modules = [p for p in map(unwrapped, programs) if isinstance(p, nn.Module)]
    parameters = (parameter for module in modules for parameter in module.parameters())
    return next((p for p in parameters if p.is_floating_point()), None)


def unwrapped(program: Program) -> Program:
    """The program itself, freed of the parameter store that a fit bound it to."""
    while isinstance(program, BoundProgram):
        program = program.program
    return program


def signature(program: Program) -> inspect.Signature:
    """The arguments of a program; of ``forward``, if it is a module.

    Example:
        >>> str(signature(torch.nn.Linear(1, 1)))
        '(input: torch.Tensor) -> torch.Tensor'
    """
    program = unwrapped(program)
    return inspect.signature(program.forward if isinstance(program, nn.Module) else program)


def sample_sites(trace: Any) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace by name, without the indices that plates draw."""
    return {node["name"]: node for node in samples(trace)}


def latent_sites(trace: Any) -> dict[str, dict[str, Any]]:
    """The unobserved sites of a trace, without the auxiliary ones of an autoguide."""
    return {
        name: node
        for name, node in sample_sites(trace).items()
        if not node["is_observed"] and not node["infer"].get("is_auxiliary")
    }


def is_data(node: dict[str, Any]) -> bool:
    """Whether a sample site holds data: observed, and neither a factor nor deterministic.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("twice", 2 * z)
        ...     pyro.factor("penalty", -z.abs())
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        >>> trace = poutine.trace(model).get_trace()
        >>> [name for name, node in sample_sites(trace).items() if is_data(node)]
        ['x']
    """
    if not node["is_observed"] or node["infer"].get("_deterministic"):
        return False
    return not isinstance(base_distribution(node["fn"]), Unit)


def base_distribution(fn: Any) -> Any:
    """A distribution without the wrappers that only declare event dimensions or mask."""
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn


def data_size(node: dict[str, Any]) -> int | None:
    """Length of a site's data plate: the one named "data", else the rightmost; or ``None``."""
    frames = [frame for frame in frames_of(node) if frame.dim is not None]
    named = [frame for frame in frames if frame.name == DATA_PLATE]
    chosen = max(named or frames, key=lambda frame: frame.dim or 0, default=None)
    return None if chosen is None else chosen.size


def is_amortized(guide: Program, args: tuple[Tensor, ...]) -> bool:
    """Whether the guide treats each datum by itself, so that it may be run on parts of the data.

    True where every latent lies in the data plate and follows the length of the data. False for
    global latents, and for guides with parameters of their own for each datum, as autoguides have.

    Args:
        guide: A Pyro program.
        args: Its arguments, each ``(N, ...)``.
    """
    if isinstance(unwrapped(guide), AutoGuide):
        return False
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(*(part[:1] for part in args))
    return all(data_size(node) == 1 for node in latent_sites(trace).values())


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of every tensor that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            # Views and results written in place take no new memory.
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.bytes += leaf.untyped_storage().nbytes()
        return result


def footprint(run: Callable[[], object]) -> int:
    """Bytes of all tensors that a run without gradients makes: no less than its peak memory.

    Example:
        >>> footprint(lambda: torch.zeros(100) + 1.0)
        800
    """
    with torch.no_grad(), _Allocations() as allocations:
        run()
    return allocations.bytes


def human_bytes(count: float) -> str:
    """A number of bytes for persons.

    Example:
        >>> human_bytes(3 * 2**29)
        '1.5 GiB'
    """
    power = 0 if count < 1 else min(4, int(math.log(count, 1024)))
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
