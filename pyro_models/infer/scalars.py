"""Numbers that a graph computes from numbers alone, kept apart from what it does to every element.

Adam's bias corrections are powers of the step count. Left in one graph, the compiler writes them
into the loop over a parameter's elements, where the powers cost several times all the rest.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.split_module import split_module

# Fewer elements than this do not repay the call of a graph of its own.
_WORTH_A_CALL = 20_000


@dataclass(frozen=True, eq=False)
class Halves:
    """A graph in two parts, run one after the other."""

    scalars: Callable[..., Sequence[Tensor]]
    """Computes 0-dim tensors from 0-dim inputs, and updates these in place."""
    rest: Callable[..., Tensor]
    """Everything else; its result is the whole graph's only one."""
    scalars_take: tuple[int, ...]
    """Which inputs of the whole graph the first part takes."""
    rest_takes: tuple[int, ...]
    """Which the second takes: inputs of the whole graph, after those the first part's results, and
    after those the constants."""
    constants: tuple[Tensor, ...] = ()
    """Tensors that the whole graph holds itself."""

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Do what the whole graph does."""
        numbers = self.scalars(*[inputs[place] for place in self.scalars_take])
        known = [*inputs, *numbers, *self.constants]
        return (self.rest(*[known[place] for place in self.rest_takes]),)


Compile = Callable[[GraphModule, list[Tensor]], Callable[..., Any]]


def split_scalars(graph: GraphModule, inputs: list[Tensor], compiler: Compile) -> Halves | None:
    """Cut a graph in two and compile both parts, if it takes powers for the sake of many elements.

    Args:
        graph: A flat graph of one result, whose nodes carry the shapes of their values.
        inputs: What it is given.
        compiler: Compiles a graph for inputs of these kinds, which it does not change.

    Returns:
        The two parts; ``None`` where cutting is not worth it, or would change the result.
    """
    scalars = _scalar_nodes(graph)
    if not any("pow" in str(node.target) for node in scalars):
        return None
    if sum(tensor.numel() for tensor in inputs) < _WORTH_A_CALL:
        return None
    if not _can_come_first(graph, scalars):
        return None
    whole = split_module(graph, graph, lambda node: 0 if node in scalars else 1)
    return _halves(whole, inputs, compiler)


def _scalar_nodes(graph: GraphModule) -> set[Node]:
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function" or not node.all_input_nodes or _is_random(node):
            continue
        inputs = node.all_input_nodes
        fed = all(i in found or (i.op == "placeholder" and _is_scalar(i)) for i in inputs)
        if fed and (_is_scalar(node) or _changed(node)):
            found.add(node)
    return found


def _is_scalar(node: Node) -> bool:
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    several = value if isinstance(value, list) else [value]
    return all(getattr(one, "shape", None) == torch.Size([]) for one in several)


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _changed(node: Node) -> list[Node]:
    """What a node changes in place: the first argument of torch's operations of that kind."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    first = node.args[0]
    several = first if isinstance(first, list | tuple) else [first]
    return [one for one in several if isinstance(one, Node)]


def _can_come_first(graph: GraphModule, scalars: set[Node]) -> bool:
    """Whether all else reads a number only after the last change to it, and changes none itself."""
    place = {node: index for index, node in enumerate(graph.graph.nodes)}
    others = [node for node in place if node.op == "call_function" and node not in scalars]
    read = {number for node in scalars for number in node.all_input_nodes}
    if any(number in read for node in others for number in _changed(node)):
        return False
    last = {number: place[node] for node in place if node in scalars for number in _changed(node)}
    return not any(
        place[node] < last.get(number, 0) for node in others for number in node.all_input_nodes
    )


def _halves(whole: GraphModule, inputs: list[Tensor], compiler: Compile) -> Halves:
    nodes = list(whole.graph.nodes)
    place = {node: index for index, node in enumerate(n for n in nodes if n.op == "placeholder")}
    first, second = (node for node in nodes if node.op == "call_module")
    scalars, rest = (_part(whole, node) for node in (first, second))
    returned = _as_tuple(scalars)
    # Of several results each is taken out of the first part's; a single one is that itself.
    results = [n for n in nodes if n.target is operator.getitem and n.args[0] is first]
    place |= {node: len(inputs) + node.args[1] for node in results}
    place[first] = len(inputs)
    constants = [node for node in nodes if node.op == "get_attr"]
    count = len(inputs) + len(returned)
    place |= {node: count + index for index, node in enumerate(constants)}
    taken = tuple(place[node] for node in first.args)
    needed = tuple(place[node] for node in second.args)
    numbers = [torch.ones((), dtype=node.meta["val"].dtype) for node in returned]
    fixed = tuple(operator.attrgetter(node.target)(whole) for node in constants)
    known = [*inputs, *numbers, *fixed]
    return Halves(
        compiler(scalars, [inputs[index] for index in taken]),
        compiler(rest, [known[index] for index in needed]),
        taken,
        needed,
        fixed,
    )


def _part(whole: GraphModule, node: Node) -> GraphModule:
    return cast(GraphModule, whole.get_submodule(str(node.target)))


def _as_tuple(graph: GraphModule) -> tuple[Node, ...]:
    """Let a graph return a tuple, also of a single result; what it returns."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    (returned,) = output.args
    if isinstance(returned, Node):
        output.args = ((returned,),)
        graph.recompile()
        return (returned,)
    return tuple(returned)
