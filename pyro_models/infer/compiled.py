"""One whole optimisation step as one flat graph, traced through Pyro and compiled.

``make_fx`` records every tensor operation while the step runs once in Python: the guide, the
replayed model, the objective, ``torch.autograd.grad`` and the optimiser's own ``step``. Pyro's
handlers act at that time only and vanish from the graph. It tells inputs by identity, so the real
parameters, buffers and optimiser moments are its inputs wherever a program keeps them, and the
graph updates them in place.
"""

import subprocess
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
import torch.compiler
from torch import Tensor
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from pyro_models.infer.dry_run import preserved_rng
from pyro_models.infer.scalars import split_scalars
from pyro_models.infer.scope import restore


class UntraceableError(RuntimeError):
    """A step that cannot become one static graph; the message names why."""


class MissingStateError(RuntimeError):
    """The optimiser made state while it was traced: it must do an eager step first."""


# What is raised where a program cannot be traced or a machine cannot compile. Whether it says
# something of the tracing or of the program, an eager run of the same step tells.
CANNOT_COMPILE = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    OSError,
    subprocess.SubprocessError,
)

_LEAVES_TORCH = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__)


class _RefuseEscapes(TorchFunctionMode):
    """Refuse to turn a traced tensor into plain numbers, which would freeze them in the graph."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _LEAVES_TORCH:
            raise UntraceableError(f"Tensor.{func.__name__} turns a tensor into plain numbers")
        return func(*args, **(kwargs or {}))


@contextmanager
def _distributions_still_check() -> Iterator[None]:
    """The first ``torch.compile`` of a process switches argument checks off for all; keep them."""
    checks = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)


class CompiledStep:
    """One compiled optimisation step for batches of one shape.

    Args:
        step: Computes the loss and updates all state in place, given the batch's tensors.
        batch: Tensors of a first batch, to trace with.
        state: Every tensor that the step reads or updates, besides the batch.

    Raises:
        UntraceableError: If the step cannot become one static graph.
    """

    def __init__(
        self, step: Callable[[Sequence[Tensor]], Tensor], batch: list[Tensor], state: list[Tensor]
    ):
        self._step = step
        # The tensors themselves and no aliases of them, so that ``parameter.data = ...`` is seen.
        self._state = state
        self._prepare(batch)

    def __call__(self, batch: list[Tensor]) -> Tensor:
        """Do one step and return the loss."""
        if _kinds(self._state) != self._compiled_for:
            self._prepare(batch)
        with torch.no_grad():
            (loss,) = self._run(*batch, *self._state)
        # The next replay of a CUDA graph overwrites what this one returned.
        return loss.clone() if loss.is_cuda else loss

    def _prepare(self, batch: list[Tensor]) -> None:
        graph = _trace(self._step, batch, self._state)
        self._compiled_for = _kinds(self._state)
        with _distributions_still_check():
            self._run = compile_graph(graph, batch, self._state)


def _kinds(state: list[Tensor]) -> list[tuple[torch.dtype, bool]]:
    """What the compiled code takes for granted and does not look at: ``model.double()``."""
    return [(tensor.dtype, tensor.is_cuda) for tensor in state]


# Inductor would first try each kind of vector instructions in a program of its own, for seconds.
# What there is, torch knows from the processor; a compiler that cannot make use of it says so.
_CPU_OPTIONS = {"cpp.vec_isa_ok": True}


def compile_graph(
    graph: GraphModule, batch: list[Tensor], state: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph of batch and state that changes the state in place.

    A graph needs none of what ``torch.compile`` is for, finding one in Python code and guarding
    what it depends on: without it compiling takes two thirds of the time and a small step is a
    fifth faster. For CUDA graphs it is needed, because it says which inputs stay where they are.
    """
    if any(tensor.is_cuda for tensor in state):
        for tensor in state:
            torch._dynamo.mark_static_address(tensor)
        # Not the module itself: calling one costs several microseconds more.
        return torch.compile(graph.forward, dynamic=False, mode="reduce-overhead")
    inputs = [*batch, *state]
    halves = split_scalars(graph, inputs, _compile_on_cpu)
    return _compile_on_cpu(graph, inputs) if halves is None else halves


def _compile_on_cpu(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    known = torch._inductor.list_options()
    options = {key: value for key, value in _CPU_OPTIONS.items() if key in known}
    with torch.no_grad(), warnings.catch_warnings():
        # Of what the compiler itself still uses in torch: there is nothing that a user should do.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
        return torch._inductor.compile(graph, [*inputs], options)


def _trace(
    step: Callable[[Sequence[Tensor]], Tensor], batch: list[Tensor], state: list[Tensor]
) -> GraphModule:
    """Record a step as a graph, leaving all state and the generators as they were."""

    def flat(*tensors: Tensor) -> tuple[Tensor]:
        return (step(tensors[: len(batch)]),)

    before = [tensor.detach().clone() for tensor in state]
    try:
        with preserved_rng(batch, state), _unvalidated(), _RefuseEscapes():
            # Inputs are told by identity: a tensor given twice needs an alias for each.
            graph = make_fx(flat)(*(tensor.detach() for tensor in batch), *state)
    finally:
        restore(state, before)
    return _cleaned(graph)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Validation reads values in Python, which no graph can; the eager first step did it."""
    before = Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        # Pyro puts its own switch back and sets torch's to the same.
        Distribution.set_default_validate_args(before)


def _cleaned(graph: GraphModule) -> GraphModule:
    """Drop profiler marks and dead code; refuse operations whose result depends on the data."""
    for node in reversed(graph.graph.nodes):
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if target.namespace == "profiler":
            graph.graph.erase_node(node)
        elif _is_dynamic(node):
            raise UntraceableError(f"{target} has a result whose shape or value depends on data")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _is_dynamic(node: torch.fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target is torch.ops.aten.index.Tensor:
        return any(_is_mask(index) for index in node.args[1] if index is not None)  # type: ignore[union-attr]
    dynamic = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in target.tags for tag in dynamic)


def _is_mask(index: Any) -> bool:
    value = index.meta.get("val", index.meta.get("tensor_meta"))
    return getattr(value, "dtype", None) in (torch.bool, torch.uint8)


@contextmanager
def traceable(optimizer: Optimizer, learning_rates: list[Tensor]) -> Iterator[None]:
    """Let ``optimizer.step()`` be traced: learning rates and step counts stay tensors.

    torch's optimisers do so while ``torch.compile`` traces them, which they learn from
    ``torch.compiler.is_compiling()``; here they are told the same for one ``make_fx`` trace.

    Raises:
        MissingStateError: If the optimiser made state for a parameter that had none.
        UntraceableError: If the optimiser keeps changing numbers outside tensors.
    """
    groups = [dict(group) for group in optimizer.param_groups]
    state = {parameter: dict(values) for parameter, values in optimizer.state.items()}
    numbers, tensors = _numbers(optimizer), _tensors(optimizer)
    overrides = {"capturable": True, "foreach": True, "fused": None}
    for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group.update({key: value for key, value in overrides.items() if key in group})
        group["lr"] = rate
    flag = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
        if _tensors(optimizer).keys() != tensors.keys():
            raise MissingStateError
        if _numbers(optimizer) != numbers or _tensors(optimizer) != tensors:
            raise UntraceableError(f"{type(optimizer).__name__} keeps its state outside tensors")
    finally:
        torch.compiler._is_compiling_flag = flag
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)
        optimizer.state.clear()
        optimizer.state.update(state)


def _numbers(optimizer: Optimizer) -> list[Any]:
    """All plain values that an optimiser keeps, learning rates and our overrides aside."""
    kept = ("lr", "params", "capturable", "foreach", "fused")
    groups = [{k: v for k, v in g.items() if k not in kept} for g in optimizer.param_groups]
    state = [
        {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        for values in optimizer.state.values()
    ]
    return [*groups, *(values for values in state if values)]


def _tensors(optimizer: Optimizer) -> dict[tuple[int, str], int]:
    """Identities of the tensors that an optimiser keeps, by parameter and name."""
    return {
        (id(parameter), key): id(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def signature(args: tuple, kwargs: dict) -> tuple[Hashable, list[Tensor]]:
    """What must be the same for a graph to serve again, and the tensors it is given.

    Raises:
        UntraceableError: If an argument is neither tensor nor hashable.
    """
    leaves: list[Any] = [*args, *kwargs.values()]
    structure: Hashable = (len(args), *kwargs)
    if any(isinstance(leaf, list | tuple | dict) for leaf in leaves):
        # Flattening costs as much as a small graph: only nested arguments pay for it.
        leaves, spec = tree_flatten((args, kwargs))
        structure = repr(spec)  # older versions of torch cannot hash it
    # The compiled code is for this number of threads.
    key = (torch.get_num_threads(), structure, *(_describe(leaf) for leaf in leaves))
    return key, [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _describe(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        strides = leaf.stride() if leaf.layout is torch.strided else leaf.layout
        return leaf.shape, strides, leaf.dtype, leaf.device
    if not isinstance(leaf, Hashable):
        raise UntraceableError(
            f"an argument is a {type(leaf).__name__}, whose contents a graph would not see; "
            "give tensors"
        )
    return type(leaf), leaf


def reason(error: BaseException) -> str:
    """One line that says why a step cannot be compiled."""
    text = str(error)
    if "_local_scalar_dense" in text:
        return "a tensor's value is asked for in Python: .item(), float(), or a branch on it"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Compilers put a headline such as "backend='inductor' raised:" before what they mean.
    said = next((line for line in lines if not line.endswith(":")), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
