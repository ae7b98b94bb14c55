"""The latents of a model that lie outside its data plate: what guides for them are made from."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_models.errors import DataError, OptionError, SiteMismatchError
from pyro_models.programs import DATA_PLATE

Local = Callable[..., Any]
"""A guide for the latents inside the data plate: ``local(values, *args, **kwargs)``."""

# Where a prior's draw lies at a border of its support, or next to it.
_FARTHEST = 20.0


@dataclass(frozen=True)
class Latent:
    """One latent outside the data plate, as a run of the model showed it."""

    name: str
    """Name of the site."""
    support: Any
    """Its support, a constraint of torch's."""
    event_dim: int
    """Dimensions of one value that belong to it and to no plate."""
    shape: torch.Size
    """Shape of a value, plates included."""
    unconstrained_shape: torch.Size
    """Shape of the real numbers that stand for a value."""
    plates: tuple[tuple[str, int, int], ...]
    """Name, size and dimension of the plates around it, the outermost first."""
    start: Tensor
    """The real numbers that stand for the value that the model drew."""

    @property
    def transform(self) -> Any:
        """From real numbers to the support."""
        return biject_to(self.support)

    @property
    def elementary_support(self) -> Any:
        """The support without the dimensions that ``.to_event`` declared."""
        support = self.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return support

    @property
    def real_event_dim(self) -> int:
        """Dimensions of the unconstrained event."""
        return self.event_dim + len(self.unconstrained_shape) - len(self.shape)

    def unconstrained(self, value: Tensor) -> Tensor:
        """The real numbers that stand for a value."""
        return self.transform.inv(value)

    def log_density_change(self, real: Tensor, value: Tensor) -> Tensor:
        """Log of how much the transform stretches space there, one number a value."""
        transform = self.transform
        change = transform.log_abs_det_jacobian(real, value)
        extra = self.event_dim - transform.codomain.event_dim
        return change.flatten(-extra).sum(-1) if extra > 0 else change

    def check(self, value: Tensor) -> None:
        """Refuse a value of another shape, or outside the support.

        Raises:
            DataError: If it is one.
        """
        if value.shape != self.shape:
            raise DataError(
                f"the value for {self.name!r} has shape {tuple(value.shape)}, but the model's has "
                f"{tuple(self.shape)}; give that"
            )
        if not (bool(value.isfinite().all()) and bool(self.support.check(value).all())):
            raise DataError(
                f"the value for {self.name!r} is not in its support, {self.support}; give one "
                "that is"
            )

    def in_plates(self) -> ExitStack:
        """A context in which the plates around the site are open."""
        stack = ExitStack()
        for name, size, dim in self.plates:
            stack.enter_context(pyro.plate(name, size, dim=dim))
        return stack


def latents_of(model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Latent]:
    """The latents outside the data plate, from one run of the model.

    Args:
        model: A Pyro program.
        args: What it is called with; the models here simulate without arguments.

    Raises:
        OptionError: If there are none, or one of them is discrete.
        SiteMismatchError: If one of them has dimensions that no plate and no event accounts for.
    """
    with torch.no_grad():
        trace: Any = poutine.trace(model).get_trace(*args)
    found = {
        name: _latent(name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not (node["is_observed"] or site_is_subsample(node))
        and all(frame.name != DATA_PLATE for frame in node["cond_indep_stack"])
        # What the models return without data is not latent.
        and name != "x"
    }
    if not found:
        raise OptionError(
            "the model has no latents outside its data plate, which is what this guide is for; "
            "for latents of single data take an amortised guide"
        )
    return found


def _latent(name: str, node: dict[str, Any]) -> Latent:
    fn, value = node["fn"], node["value"]
    if fn.support.is_discrete:
        raise OptionError(
            f"the latent {name!r} is discrete, which no density of this guide can be over; sum it "
            "out with infer.Enumerated"
        )
    frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    plates = tuple((f.name, f.size, f.dim) for f in frames)
    declared = {dim: size for _, size, dim in plates}
    batch = fn.batch_shape
    for dim in range(-len(batch), 0):
        if batch[dim] != declared.get(dim, 1):
            raise SiteMismatchError(
                f"the latent {name!r} has batch shape {tuple(batch)}, of which dimension {dim} "
                "belongs to no plate; declare it with .to_event(...)"
            )
    real = biject_to(fn.support).inv(value)
    start = real.nan_to_num(0.0, _FARTHEST, -_FARTHEST).clamp(-_FARTHEST, _FARTHEST)
    return Latent(name, fn.support, fn.event_dim, value.shape, real.shape, plates, start)


def chosen(latents: Mapping[str, Latent], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The real numbers that stand for given values.

    Raises:
        OptionError: If one of them is for no latent here.
        DataError: If one of them has another shape, or is outside its support.
    """
    for name in values:
        if name not in latents:
            raise OptionError(f"{name!r} is no latent of this guide; they are {list(latents)}")
        latents[name].check(values[name])
    return {name: latents[name].unconstrained(value) for name, value in values.items()}


def run_local(
    local: Local | None, values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Let the guide of single data's latents draw them, given the latents drawn here."""
    if local is not None:
        local(values, *args, **kwargs)
