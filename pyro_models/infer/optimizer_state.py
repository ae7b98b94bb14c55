"""What an optimiser keeps, as flat named tensors and back."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_models.errors import CheckpointError

_TENSORS, _NUMBERS = "optimizer/", "number/"


def is_optimizer_entry(name: str) -> bool:
    """Whether an entry of a state dictionary is the optimiser's."""
    return name.startswith((_TENSORS, _NUMBERS))


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step`` must be given a function that evaluates the loss, as LBFGS's."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def writable(gradient: Tensor | None) -> Tensor | None:
    """The gradient, apart from itself where one element stands for many; optimisers write to it."""
    if gradient is None or gradient.layout is not torch.strided or 0 not in gradient.stride():
        return gradient
    return gradient.clone()


def tensors(optimizer: Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that an optimiser keeps, by name; the tensors themselves."""
    return {
        f"{_TENSORS}{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, Tensor)
    }


def numbers(optimizer: Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain numbers that an optimiser keeps, such as a count of steps, as tensors by name.

    Empty for an optimiser that keeps something else besides, which would not fit to them.
    """
    kept = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    values = [value for entries in kept.values() for value in entries.values()]
    if not all(isinstance(value, Tensor | int | float | None) for value in values):
        return {}
    return {
        f"{_NUMBERS}{name}/{key}": torch.tensor(
            value, dtype=torch.float64 if isinstance(value, float) else None
        )
        for name, entries in kept.items()
        for key, value in sorted(entries.items())
        if isinstance(value, int | float)
    }


def load(optimizer: Optimizer, parameters: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Give an optimiser back what ``tensors`` and ``numbers`` said.

    Returns:
        Whether it has kept its tensors and only their values are new.
    """
    own = tensors(optimizer, parameters)
    given = {name: value for name, value in state.items() if name.startswith(_TENSORS)}
    in_place = {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in given.items()}
    if not in_place:
        optimizer.state.clear()
    for name, parameter in parameters.items():
        for key, value in _of(state, f"{_TENSORS}{name}/").items():
            if in_place:
                own[f"{_TENSORS}{name}/{key}"].copy_(value)
            else:
                optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
        for key, value in _of(state, f"{_NUMBERS}{name}/").items():
            optimizer.state[parameter][key] = value.item()
    return in_place


def _of(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def check_same(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Make sure that a saved state has the tensors of a pair, whatever its optimisers keep.

    Args:
        own: The pair's tensors by name.
        state: The saved ones, with the optimisers' and the number of steps.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    given = {name for name in state if name != "steps" and not is_optimizer_entry(name)}
    if given != set(own):
        raise CheckpointError(
            f"the state has other tensors than this pair: missing {sorted(set(own) - given)}, "
            f"unknown {sorted(given - set(own))}; load it into the pair it was saved from"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(state[name].shape)} in the state and "
                f"{tuple(tensor.shape)} here; load it into the pair it was saved from"
            )
