"""What a program may look at besides its arguments, and what of it tells its runs apart."""

import dis
import functools
import weakref
from collections.abc import Hashable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_PLAIN = frozenset((bool, int, float, str, type(None)))


def kind_of_program(program: Any) -> Hashable:
    """The plain values that a program may branch on: bools, numbers, strings and ``None``.

    They are attributes of its modules, submodules included, or of an object that it is a method of,
    and for functions variables from around them. This runs at every step, and so has to be quick.
    """
    found: list[Any] = []
    for part in _around(program):
        if type(part) in _PLAIN:
            found.append(part)
        elif isinstance(part, nn.Module):
            _describe(part, found)
    return tuple(found)


def tensors_of_program(program: Any) -> list[Tensor]:
    """The tensors that a program may look at: parameters, buffers, variables from around it."""
    found: list[Tensor] = []
    for part in _around(program):
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, nn.Module):
            found += [*part.parameters(), *part.buffers()]
    return found


def _describe(module: nn.Module, found: list[Any]) -> None:
    """Add types, names and values of all plain attributes of a module and its submodules."""
    seen, todo = set(), [module]
    while todo:
        part = todo.pop()
        if part in seen:
            continue
        seen.add(part)
        found.append(type(part))
        for name, value in part.__dict__.items():
            if type(value) in _PLAIN:
                found += (name, value)
        todo += [child for child in part._modules.values() if child is not None]


def _around(program: Any) -> Iterator[Any]:
    """Modules and variables that a program has hold of, through methods and wrappers too."""
    todo = [program]
    while todo:
        part = todo.pop()
        yield part
        if isinstance(part, nn.Module):
            todo.append(getattr(type(part), "forward", None))
        elif isinstance(part, FunctionType):
            yield from _variables(part)
        elif isinstance(part, MethodType):
            todo.append(part.__func__)
            if isinstance(part.__self__, nn.Module):
                todo.append(part.__self__)
            else:
                yield from getattr(part.__self__, "__dict__", {}).values()
        elif isinstance(part, functools.partial):  # which Pyro's handlers around a program are
            todo += [part.func, *part.args, *part.keywords.values()]
        elif callable(part):
            yield from getattr(part, "__dict__", {}).values()
        # Asked of the type: there are objects that make up any attribute that they are asked for.
        if "__wrapped__" in getattr(part, "__dict__", ()) or hasattr(type(part), "__wrapped__"):
            todo.append(part.__wrapped__)


def _variables(function: FunctionType) -> Iterator[Any]:
    """The values of what a function uses from around it."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    around = function.__globals__
    names = _names.get(function)
    if names is None:
        names = _names[function] = tuple(_names_in(function.__code__))
    for name in names:
        if name in around:
            yield around[name]


_names: "weakref.WeakKeyDictionary[FunctionType, tuple[str, ...]]" = weakref.WeakKeyDictionary()


def _names_in(code: CodeType) -> Iterator[str]:
    """The names of globals in a function and those inside it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
