"""The sites of a model whose discrete latents are summed out: which are, and what becomes of each.

Every latent that is summed out takes all its values side by side, along a tensor dimension of its
own that Pyro's ``EnumMessenger`` chooses. Where an effect handler outside gives a value, that wins;
it is asked by passing a copy of the statement along the handlers, which leaves no trace in them.
"""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.markov_messenger import MarkovMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer.densities import density_of
from pyro_models.infer.scales import shared_scale
from pyro_models.infer.summation import Term, Variable, connected, sum_out

# What an enumerated site must not inherit: samples instead of values are no exact sum.
_CHOICES = ("enumerate", "num_samples", "tmc")

# Handlers that make up a value for any site, or remember what passes them: they are not asked.
_NOT_ASKED = (InitMessenger, EnumMessenger, MarkovMessenger)


def is_summed(msg: Any) -> bool:
    """Whether a statement is one of a latent that is summed out."""
    return msg["type"] == "sample" and msg["infer"].get("_enumerate_dim") is not None


def _from_outside(msg: Any, outside: list[Messenger]) -> Tensor | None:
    """The value that handlers outside, such as a replay of the guide, give to a site."""
    asked = msg.copy()
    asked["infer"] = dict(msg["infer"])
    for messenger in reversed(outside):
        if isinstance(messenger, _NOT_ASKED):
            continue
        messenger._process_message(asked)
        if asked["stop"]:
            break
    return asked["value"]


def _is_open(msg: Any) -> bool:
    """Whether a site is a latent that the program leaves to be drawn."""
    return not msg["is_observed"] and msg["value"] is None and not site_is_subsample(msg)


def _is_discrete(fn: Any) -> bool:
    if getattr(fn, "has_enumerate_support", False):
        return True
    try:
        return bool(getattr(fn.support, "is_discrete", False))
    except (NotImplementedError, AttributeError):  # it does not say
        return False


def _check_values(name: str, fn: Any) -> None:
    """Make sure that all values of a latent can be listed."""
    try:
        fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        base = fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        inner = fn.batch_shape if base is fn else tuple(fn.event_shape)
        of = f" with dependent dimensions {inner}" if base is not fn and inner else ""
        raise SiteMismatchError(
            f"site {name!r} is a discrete latent that the guide does not sample, and the values of "
            f"its {type(base).__name__}{of} cannot be listed to be summed over; sample it in the "
            "guide, observe it, or make it independent draws of a finite distribution in a plate"
        ) from error


class Survey(Messenger):
    """Finds how many dimensions plates take, and shows nothing of the run outside.

    Args:
        outside: Handlers outside the model.
    """

    def __init__(self, outside: list[Messenger]):
        super().__init__()
        self.depth = 0
        self._outside = outside

    def _pyro_sample(self, msg: Any) -> None:
        msg["stop"] = True
        dims = [f.dim for f in msg["cond_indep_stack"] if f.dim is not None]
        self.depth = max([self.depth, *(-dim for dim in dims)])
        if msg["is_observed"] or msg["value"] is not None:
            return
        value = _from_outside(msg, self._outside)
        if value is not None:
            msg["value"], msg["done"] = value, True
        elif not site_is_subsample(msg) and _is_discrete(msg["fn"]):
            _check_values(msg["name"], msg["fn"])


class _Dependent(TorchDistribution):
    """What a site that depends on a sum shows outside: the sum's log-density, or none."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, name: str, fn: Any, batch_shape: torch.Size, held: list[Tensor]):
        self.name = name
        self.fn = fn
        self.held = held
        super().__init__(batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Where the site's own distribution lives."""
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Dependent":
        """The same in more plates."""
        return _Dependent(self.name, self.fn, torch.Size(batch_shape), self.held)

    def sample(self, *_: Any, **__: Any) -> Tensor:
        """Refuse: the site must have a value."""
        raise SiteMismatchError(
            f"site {self.name!r} depends on discrete latents that are summed out, and has no "
            "value; sample it in the guide or observe it. (To simulate, run the model itself.)"
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum's log-density, once it is known."""
        log = self.held[0] if self.held else torch.zeros((), device=value.device)
        return log.expand(torch.broadcast_shapes(log.shape, self.batch_shape))


@dataclass(frozen=True, eq=False)
class _Record:
    """A site of a sum."""

    name: str
    term: Term
    frames: tuple[CondIndepStackFrame, ...]
    scale: Any
    """Its scale without that of its plates."""
    shown: _Dependent | None
    """What of it is seen outside; ``None`` if it is summed out itself."""


class Collector(Messenger):
    """Decides which latents are summed out, and collects all log-densities that depend on them.

    Args:
        outside: Handlers outside the model.
        first: The first dimension, from the right, that is no plate's.
    """

    def __init__(self, outside: list[Messenger], first: int):
        super().__init__()
        self._outside = outside
        self._first = first
        self._records: list[_Record] = []
        self._variables: dict[int, Variable] = {}
        self._open: dict[str, tuple[Any, _Dependent | None]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if site_is_subsample(msg):
            return
        if any(f.dim is not None and f.dim <= self._first for f in msg["cond_indep_stack"]):
            raise SiteMismatchError(
                f"site {name!r} lies in more plates than any site did when the model first ran "
                "with such arguments; open as many plates at each run"
            )
        msg["infer"] = {k: v for k, v in msg["infer"].items() if k not in _CHOICES}
        latent = _is_open(msg) and _is_discrete(fn)
        if latent and _from_outside(msg, self._outside) is None:
            _check_values(name, fn)
            msg["infer"]["enumerate"] = "parallel"
            self._open[name] = (msg.copy(), None)
        elif self._depends(msg):
            if msg["infer"].get("_deterministic"):
                msg["stop"] = True
                return
            kept = torch.Size(fn.batch_shape[self._first + 1 :] if self._first < -1 else ())
            shown = _Dependent(name, fn, kept, [])
            self._open[name] = (msg.copy(), shown)
            msg["fn"], msg["mask"] = shown, None

    def _depends(self, msg: Any) -> bool:
        """Whether distribution, value, mask or scale run along a dimension beyond all plates."""
        fn, value = msg["fn"], msg["value"]
        shapes = [fn.batch_shape]
        shapes += [t.shape for t in (msg["mask"], msg["scale"]) if isinstance(t, Tensor)]
        if isinstance(value, Tensor):
            shapes.append(value.shape[: value.dim() - fn.event_dim])
        return any(size > 1 for s in shapes for size in s[: max(0, len(s) + self._first + 1)])

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        name = msg["name"]
        before, shown = self._open.pop(name, (None, None))
        if (before is None or (shown and before["value"] is None)) and self._depends(msg):
            raise SiteMismatchError(
                f"the value of site {name!r} has shape {tuple(msg['value'].shape)}, with "
                "dimensions beyond all plates; enumerate in the model or in the guide and not in "
                "both"
            )
        if before is not None:
            self._record(msg, before, shown)

    def _record(self, msg: Any, before: Any, shown: _Dependent | None) -> None:
        name = msg["name"]
        fn, frames = before["fn"], before["cond_indep_stack"]
        with density_of(name, fn, drawn=False):
            log = fn.log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        scale = before["scale"]
        for frame in frames:
            scale = scale / _fraction(frame)
        ids = msg["infer"]["_dim_to_id"]
        if shown is None:
            own = ids[msg["infer"]["_enumerate_dim"]]
            self._variables[own] = Variable(name, frozenset(frames))
        elif before["mask"] is not None and before["mask"] is not True:
            mask = torch.as_tensor(before["mask"], device=log.device)
            log = torch.where(mask, log, log.new_zeros(()))
        term = Term.make(log, self._first, ids, frames, name)
        self._check(name, term)
        self._records.append(_Record(name, term, frames, scale, shown))

    def _check(self, name: str, term: Term) -> None:
        for own in term.variables:
            variable = self._variables[own]
            outside = variable.frames - term.frames
            if outside:
                raise SiteMismatchError(
                    f"site {name!r} depends on {variable.name!r}, which is summed out, but lies "
                    f"outside its plate {sorted(f.name for f in outside)}; run it inside, or "
                    f"sample {variable.name!r} in the guide"
                )

    def emit(self) -> None:
        """Contract the sums and show each as the log-density of a site."""
        for group in connected(self._records, lambda record: record.term.variables):
            self._emit(group)

    def _emit(self, group: list[_Record]) -> None:
        root = frozenset.intersection(*(record.term.frames for record in group))
        latent = next((r.name for r in group if r.shown is None), group[0].name)
        _check_minibatch(latent, group, root)
        common = shared_scale([record.scale for record in group])
        # Of tensors nobody knows here whether they are equal: then the powers are all 1.
        even = not isinstance(common, Tensor) and common is not None
        outside = 1.0 if common is None else common
        terms = [r.term if even else r.term.power(r.scale / outside, r.name) for r in group]
        log = sum_out(terms, self._variables).unnamed()
        shown = [r for r in group if r.shown is not None]
        if even and len(shown) == 1 and shown[0].term.frames == root:
            held = shown[0].shown
            held.held.append(log)  # type: ignore[union-attr]
            return
        for record in shown:
            record.shown.held.append(log.new_zeros(()))  # type: ignore[union-attr]
        frames = tuple(f for f in group[0].frames if f in root)
        with _Inside(frames, outside):
            pyro.factor(f"marginal_{latent}", log)


class _Inside(Messenger):
    """Puts a site into plates that are closed already, with their scale.

    Args:
        frames: The plates.
        scale: A scale beside the plates'.
    """

    def __init__(self, frames: tuple[CondIndepStackFrame, ...], scale: float | Tensor):
        super().__init__()
        self._frames = frames
        self._scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        msg["cond_indep_stack"] = self._frames
        msg["scale"] = msg["scale"] * self._scale
        for frame in self._frames:
            msg["scale"] = msg["scale"] * _fraction(frame)


def _fraction(frame: CondIndepStackFrame) -> float:
    """Scale of a plate: its size by that of its subsample."""
    return (frame.full_size or frame.size) / frame.size


def _check_minibatch(latent: str, group: list[_Record], root: frozenset) -> None:
    """Refuse a product over a part of a plate inside a sum: no scale makes its log unbiased."""
    for record in group:
        for frame in record.term.frames - root:
            if _fraction(frame) != 1:
                raise OptionError(
                    f"site {latent!r} is summed out and site {record.name!r} depends on it inside "
                    f"plate {frame.name!r}, of which there are {frame.size} of {frame.full_size} "
                    f"here; the sum needs all of them: fit without minibatches, or sample "
                    f"{latent!r} in the guide"
                )
