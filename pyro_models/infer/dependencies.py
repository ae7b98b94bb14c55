"""Which densities depend on which draws of a pair: the costs that a score function must see."""

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_models.infer.draws import latents_of, rerun
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.kinds import kind_of_program, tensors_of_program
from pyro_models.infer.sites import is_point_mass, samples
from pyro_models.infer.weights import Program

Dependents = dict[str, frozenset[str]]
_Marks = frozenset[str]

_NONE: _Marks = frozenset()
_ARGUMENT = "what the pair is given or has hold of"
_MOST_KINDS = 256

# Ways out of torch that no operation sees. Those that an operation does see, such as ``item``, it
# is tagged for.
_WAYS_OUT = (
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.untyped_storage,
    Tensor.data_ptr,
)
_SHOWS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class _LostTrackError(RuntimeError):
    """A draw became a plain value: what depends on it cannot be told."""


class _Taint(TorchDispatchMode):
    """Marks memory, and hands marks on from what an operation reads to what it writes.

    It stands below autograd, vectorising maps, scripts and custom functions, and so sees all that
    torch does; also what is changed in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked_arguments = False
        """Whether the program looked at values of its arguments, parameters or buffers."""
        # The storages themselves are kept, so that no address is given away again.
        self._marks: dict[int, tuple[Any, _Marks]] = {}

    def marks(self, *values: Any) -> _Marks:
        """The marks on all tensors among these."""
        with torch._C.DisableTorchFunction():
            found = [
                self._marks[key][1]
                for leaf in tree_leaves(values)
                if isinstance(leaf, Tensor)
                and (key := leaf.untyped_storage()._cdata) in self._marks
            ]
        return _NONE.union(*found)

    def mark(self, values: Any, marks: _Marks) -> None:
        """Add marks to all tensors among these."""
        if not marks:
            return
        with torch._C.DisableTorchFunction():
            for leaf in tree_leaves(values):
                if isinstance(leaf, Tensor):
                    storage = leaf.untyped_storage()
                    _, before = self._marks.get(storage._cdata, (None, _NONE))
                    self._marks[storage._cdata] = (storage, before | marks)

    def leaves_torch(self, marks: _Marks) -> None:
        """Note that values with these marks are seen by Python.

        Raises:
            _LostTrackError: If they come from a draw.
        """
        if marks - {_ARGUMENT}:
            raise _LostTrackError
        self.asked_arguments = self.asked_arguments or bool(marks)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        marks = self.marks(args, kwargs)
        if marks and _shows_values(func, args):
            self.leaves_torch(marks)
        result = func(*args, **kwargs)
        if marks:
            self.mark(result, marks)
            self.mark(_written(func, args, kwargs), marks)
        return result


class _Watch(TorchFunctionMode):
    def __init__(self, taint: _Taint) -> None:
        super().__init__()
        self._taint = taint

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _WAYS_OUT:
            self._taint.leaves_torch(self._taint.marks(args[0]))
        if func is Tensor.__getitem__ and _is_one_index(args[1]):
            # Torch would make a Python number of it.
            return args[0][args[1].reshape(1)].squeeze(0)
        return func(*args, **(kwargs or {}))


def _is_one_index(index: Any) -> bool:
    if not isinstance(index, Tensor) or index.dim() or index.dtype in (torch.bool, torch.uint8):
        return False
    return not index.is_floating_point()


def _shows_values(func: Any, args: tuple) -> bool:
    """Whether a result is a plain value, or of a shape that depends on values."""
    if func is torch.ops.aten.index.Tensor:
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return any(tag in func.tags for tag in _SHOWS_VALUES)


def _written(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation changes."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return found


class _Track(Messenger):
    """Marks every draw with the name of its site."""

    def __init__(self, taint: _Taint) -> None:
        super().__init__()
        self._taint = taint

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if msg["is_observed"] or site_is_subsample(msg) or not isinstance(value, Tensor):
            return
        if is_point_mass(msg["fn"]):  # draws what it was given, whose memory is not the draw's
            value = msg["value"] = value.clone()
        self._taint.mark(value, frozenset({msg["name"]}))


_known: "weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, dict[Any, Any]]]" = (
    weakref.WeakKeyDictionary()
)


def dependents(model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Dependents:
    """The sites whose density, in model or guide, depends on the draw of each latent, by latent.

    On a latent that is missing everything may depend. All are missing where marks are lost, because
    a draw becomes a Python number or leaves torch: that is never wrong, only noisier.

    Found in one run with marked tensors and remembered for the pair, for arguments of the same
    shapes and plain values, and for the same plain values among what the programs have hold of:
    attributes of modules, variables from around functions. It is not remembered where a program
    asks for the values of tensors among all these, parameters and buffers included, which may be
    others next time. What is not seen to change is a switch that is neither a plain value nor a
    tensor, such as an option object or an entry of a list.
    """
    kind = (kind_of_program(model), kind_of_program(guide), *_kind(args, kwargs))
    known: dict[Any, Dependents] = {}
    with suppress(TypeError):  # for callables that cannot be keys: nothing is remembered of them
        known = _known.setdefault(model, weakref.WeakKeyDictionary()).setdefault(guide, known)
    if kind in known:
        return known[kind]
    # A step that is being traced to a graph must have none of this run in it.
    with disable_proxy_modes_tracing(), dry_run(model, guide, args, kwargs), _unchecked():
        found, again = _survey(model, guide, args, kwargs)
    if not again:
        if len(known) >= _MOST_KINDS:
            known.clear()
        known[kind] = found
    return found


def _kind(args: tuple, kwargs: dict[str, Any]) -> tuple[Hashable, ...]:
    """What of the arguments tells runs apart whose structure may differ."""
    return tuple(_kind_of_leaf(leaf) for leaf in tree_leaves((args, kwargs)))


def _kind_of_leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return Tensor, leaf.shape
    if isinstance(leaf, nn.Module):
        return kind_of_program(leaf)
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return type(leaf), leaf
    return (type(leaf),)


def _survey(
    model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
) -> tuple[Dependents, bool]:
    """What depends on what, and whether that may be otherwise next time."""
    taint = _Taint()
    # In a dry run buffers are clones, and so are looked for here.
    held = [tensors_of_program(part) for part in (model, guide, *tree_leaves((args, kwargs)))]
    stored = [parameter for _, parameter in pyro.get_param_store().named_parameters()]
    try:
        taint.mark((held, stored), frozenset({_ARGUMENT}))
        with _Watch(taint), taint:
            with _Track(taint):
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = rerun(model, guide_trace, {}, (args, kwargs))
            marks = [
                (node["name"], _marks(taint, node))
                for trace in (guide_trace, model_trace)
                for node in samples(trace)
            ]
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return {}, False
    found = {
        node["name"]: frozenset(site for site, origins in marks if node["name"] in origins)
        for node in latents_of(guide_trace)
    }
    return found, taint.asked_arguments


def _marks(taint: _Taint, node: dict[str, Any]) -> _Marks:
    density = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return taint.marks(density, node["mask"], node["scale"]) | {node["name"]}


@contextmanager
def _unchecked() -> Iterator[None]:
    """Validation asks marked tensors for plain truth values."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
