"""What a fit asks of a pair before it starts: arguments, modules, support, scale."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import _bound_partial
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.infer.arrays import Tensors
from pyro_models.infer.objectives import Objective
from pyro_models.infer.weights import Program


def modules_of(*programs: Program) -> tuple[nn.Module, ...]:
    """The modules that programs are, or are methods of; each once."""
    found: list[nn.Module] = []
    for program in programs:
        inner = _innermost(program)
        owner = inner if isinstance(inner, nn.Module) else getattr(inner, "__self__", None)
        if isinstance(owner, nn.Module) and all(owner is not other for other in found):
            found.append(owner)
    return tuple(found)


def device_of(modules: tuple[nn.Module, ...], data: Any) -> torch.device:
    """Where the pair's parameters are; else where the data are; else the CPU."""
    for module in modules:
        for parameter in module.parameters():
            return parameter.device
    first = data[0] if isinstance(data, tuple) and data else getattr(data, "x", data)
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def keywords(model: Program, guide: Program, num_data: int | None) -> dict[str, Any]:
    """``{"num_data": N}`` if the model takes it, else nothing.

    Raises:
        DataError: If the model takes it and N is not known.
        OptionError: If the guide does not take it.
    """
    if not _takes(model, "num_data"):
        return {}
    if num_data is None:
        raise DataError(
            "the model takes num_data, the size of the whole set, and the DataLoader does not tell "
            "it; give its dataset a __len__"
        )
    if not _takes(guide, "num_data", or_any=True):
        raise OptionError(
            "the model takes num_data and the guide does not, and both get the same arguments; "
            "add num_data=None to the guide's parameters and give its data plate the same size"
        )
    return {"num_data": num_data}


def check_arguments(program: Program, what: str, batch: Tensors, kwargs: Mapping[str, Any]) -> None:
    """Make sure that a program can be called with a batch.

    Raises:
        DataError: If it takes another number of arguments.
    """
    signature = _signature(program)
    if signature is None:
        return
    try:
        signature.bind(*batch, **kwargs)
    except TypeError as error:
        raise DataError(
            f"the data are {len(batch)} tensor(s), and the {what}{signature} cannot be called with "
            f"that many positional arguments ({error}); give the data as a tuple with one tensor "
            "for each argument, or a dataset whose items are such tuples"
        ) from error


def check_scale(
    objective: Objective,
    model: Program,
    guide: Program,
    batch: Tensors,
    kwargs: Mapping[str, Any],
    num_data: int | None,
) -> None:
    """Refuse minibatches where latents outside the data plate would be weighed against one batch.

    Raises:
        OptionError: If the pair has such latents and its plate is no larger than the minibatch.
    """
    size = len(batch[0])
    if kwargs or num_data == size:
        return
    with torch.no_grad():
        weights = objective.weights(model, guide, tuple(batch), dict(kwargs))
    if weights.has_global_latents and weights.num_data <= size:
        raise OptionError(
            f"the pair has latents outside the data plate, and its plate holds {weights.num_data} "
            f"data, as many as the minibatch: each batch would be taken for all "
            f"{num_data or 'the'} data. Give model and guide a parameter num_data and the plate "
            'pyro.plate("data", num_data, subsample=torch.arange(len(x))), or fit with '
            "batch_size=None"
        )


def _innermost(program: Program) -> Any:
    """What is left when Pyro's handlers and partial applications are taken off."""
    while isinstance(program, functools.partial):
        program = _handled(program) if isinstance(program, _bound_partial) else program.func
    return program


def _handled(program: Any) -> Program:
    """What a Pyro handler was put around."""
    return program.func.args[1]


def _unwrapped(program: Program) -> Callable[..., Any]:
    """The callable whose signature counts: a module's ``forward``, what a handler wraps."""
    while isinstance(program, _bound_partial):
        program = _handled(program)
    return program.forward if isinstance(program, nn.Module) else program


def _signature(program: Program) -> inspect.Signature | None:
    try:
        return inspect.signature(_unwrapped(program))
    except (TypeError, ValueError):  # built-in callables have none
        return None


def _takes(program: Program, name: str, or_any: bool = False) -> bool:
    signature = _signature(program)
    if signature is None:
        return or_any
    kinds = {p.kind for p in signature.parameters.values()}
    return name in signature.parameters or (or_any and inspect.Parameter.VAR_KEYWORD in kinds)
