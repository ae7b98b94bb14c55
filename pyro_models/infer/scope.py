"""A private parameter store, so that two fits with the same names never touch each other."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_models.infer.dry_run import modules_of
from pyro_models.infer.weights import Program


class Scope:
    """The parameters that a pair makes with ``pyro.param``, kept apart from Pyro's global store.

    Parameters of ``torch.nn.Module`` models and guides stay where they are; those of functions,
    and the lazily made ones of autoguides, live here instead of in the global store.
    """

    def __init__(self) -> None:
        self._contents = vars(ParamStoreDict())

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Swap this store in for the global one, and back again, also on the way of an error."""
        # ParamStoreDict.scope would do, but it copies everything at each step and, on leaving,
        # takes from parameters the link to their unconstrained values that SVI still needs.
        store = vars(pyro.get_param_store())
        outside = dict(store)
        store.update(self._contents)
        try:
            yield
        finally:
            self._contents = dict(store)
            store.update(outside)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Unconstrained parameters by name."""
        return self._contents["_params"]

    def bind(self, program: Program) -> Program:
        """A callable that runs the program with these parameters; itself if it needs none."""
        return BoundProgram(program, self) if self.parameters else program

    def collect(self, programs: dict[str, Program], run: Callable[[], object]) -> dict[str, Tensor]:
        """Run a pair once and list the tensors it trains, by name, each once.

        Args:
            programs: The model and guide by prefix of their parameters' names.
            run: Runs both, so that lazily made parameters come to exist.
        """
        with self(), poutine.trace(param_only=True) as seen, _KeepFrozen():
            run()
        found = {
            f"{prefix}.{path}": parameter
            for prefix, program in programs.items()
            if isinstance(program, nn.Module)
            for path, parameter in program.named_parameters()
        }
        for name, site in seen.trace.nodes.items():
            value: Any = site["value"]
            found.setdefault(name, value.unconstrained())
        return _distinct({n: p for n, p in found.items() if p.requires_grad})


class _KeepFrozen(Messenger):
    """Keeps frozen parameters frozen, which Pyro's store thaws when they are shown to it.

    ``PyroModule`` shows it every parameter that it has.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Parameter] = []

    def _pyro_param(self, msg: Any) -> None:
        given = [a for a in msg["args"] if isinstance(a, nn.Parameter)]
        self._frozen += [parameter for parameter in given if not parameter.requires_grad]

    def __exit__(self, *error: Any) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        super().__exit__(*error)


def _distinct(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the second name of a tensor that has two, such as tied weights."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


class BoundProgram:
    """A model or guide that finds its ``pyro.param`` parameters in the store of one fit.

    Call it like the program itself, also through ``pyro.infer.Predictive`` or ``SVI``; other
    attributes are the program's own, and its methods (an autoguide's ``median``) bound likewise.
    """

    def __init__(self, program: Program, scope: Scope):
        self.program = program
        self.scope = scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program inside the fit's parameter store."""
        with self.scope():
            return self.program(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Delegate to the program."""
        if name in ("program", "scope"):
            raise AttributeError(name)
        value = getattr(self.program, name)
        return BoundProgram(value, self.scope) if inspect.ismethod(value) else value

    def __repr__(self) -> str:
        return f"BoundProgram({self.program!r})"


def buffers(programs: dict[str, Program]) -> dict[str, Tensor]:
    """The buffers of the programs' modules, by name, each once."""
    return _distinct(
        {
            ".".join(part for part in (prefix, name, path) if part): buffer
            for prefix, program in programs.items()
            for name, module in modules_of(program).items()
            for path, buffer in module.named_buffers()
        }
    )


def restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Copy values back into tensors, in place."""
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
