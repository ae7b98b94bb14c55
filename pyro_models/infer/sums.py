r"""Discrete latents of a guide that are summed over instead of drawn.

The guide runs with all values of such a latent side by side, each latent along a dimension of its
own to the left of plates and particles; what does not depend on its value does not have that
dimension and is not repeated. A term f of the ELBO becomes its expectation given what was drawn,

.. math:: \sum_{k_1} q(k_1) \sum_{k_2} q(k_2 \mid k_1) \cdots f(k_1, k_2, \dots),

summed from the latent that comes last to the first. The ELBO is linear in its terms, so that each
is summed by itself, before data and particles are.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_models.errors import OptionError, SiteMismatchError


@dataclass(frozen=True, eq=False)
class SummedLatent:
    """A latent of the guide that is summed over."""

    name: str
    """Its site."""
    dim: int
    """The dimension, from the right, along which its values lie."""
    probs: Tensor
    """q of each value: along ``dim``, the dimensions of latents before it, particles, plates."""
    frames: tuple[CondIndepStackFrame, ...]
    """The plates that it lies in: it has a value of its own for each of their elements."""


@dataclass(frozen=True, eq=False)
class Sums:
    """All latents of a run that are summed over, in the order in which they came.

    Example:
        >>> q = torch.tensor([0.25, 0.75]).reshape(2, 1, 1)
        >>> sums = Sums((SummedLatent("k", -3, q, ()),))
        >>> sums.expectation(torch.tensor([[[0.0, 4.0]], [[1.0, 8.0]]]))
        tensor([[0.7500, 7.0000]])
        >>> sums.expectation(torch.tensor([1.0, 2.0]))  # does not depend on k
        tensor([1., 2.])
    """

    latents: tuple[SummedLatent, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Their sites."""
        return tuple(latent.name for latent in self.latents)

    @property
    def sizes(self) -> dict[int, int]:
        """How many values lie along each of their dimensions."""
        return {latent.dim: latent.probs.shape[latent.dim] for latent in self.latents}

    def among(self, shape: torch.Size) -> list[SummedLatent]:
        """Those that a tensor of this batch shape depends on."""
        return [s for s in self.latents if len(shape) >= -s.dim and shape[s.dim] > 1]

    def expectation(self, batch: Tensor, events: int = 0) -> Tensor:
        """A tensor of batch shape averaged over their values.

        A value of probability zero does not count, whatever the tensor is there.

        Args:
            batch: The tensor.
            events: How many dimensions there are to the right of the batch shape.
        """
        for latent in reversed(self.latents):
            if latent in self.among(batch.shape[: batch.dim() - events]):
                probs = latent.probs[(..., *[None] * events)]
                batch = batch.masked_fill(probs == 0, 0.0)
                batch = (probs * batch).sum(latent.dim - events, keepdim=True)
        depth = events - self.latents[0].dim - 1 if self.latents else batch.dim()
        return batch.reshape(batch.shape[max(0, batch.dim() - depth) :])

    def check(self, name: str, shape: torch.Size, frames: Iterable[CondIndepStackFrame]) -> None:
        """Refuse a term that gathers a plate in which each element has a value of its own.

        Args:
            name: Its site.
            shape: Its batch shape.
            frames: Its plates.

        Raises:
            SiteMismatchError: If there is one; the message names it.
        """
        for latent in self.among(shape):
            inside = {_place(frame) for frame in frames}
            outside = [frame.name for frame in latent.frames if _place(frame) not in inside]
            if outside:
                raise SiteMismatchError(
                    f"site {name!r} depends on {latent.name!r}, which is summed over, but lies "
                    f"outside its plate {outside}; run it inside, or leave "
                    f"{latent.name!r} out of summed"
                )


NO_SUMS = Sums()


class SideBySide(Messenger):
    """Gives latents of a guide all their values at once instead of a draw.

    It must stand outside the plates, so that it sees distributions in the shape that they give.

    Args:
        names: The latents' sites.
        first: The dimension, from the right, for the values of the first one; the next one's lie
            to the left of it.

    Raises:
        OptionError: When a site of these names is no discrete latent of few values.
    """

    def __init__(self, names: tuple[str, ...], first: int):
        super().__init__()
        self._names = names
        self._first = first
        self._dims: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self._names or msg["is_observed"]:
            return
        if not getattr(fn, "has_enumerate_support", False):
            raise OptionError(
                f"summed names {name!r}, a {type(fn).__name__} of event shape "
                f"{tuple(getattr(fn, 'event_shape', ()))}, whose values cannot be listed; name "
                "discrete latents of finitely many values, one for each element of their plates"
            )
        dim = self._first - len(self._dims)
        self._dims[name] = dim
        values = fn.enumerate_support(expand=False)
        event = values.shape[values.dim() - fn.event_dim :]
        msg["value"] = values.reshape(len(values), *(1,) * (-dim - 1), *event)
        msg["done"] = True

    def sums(self, guide_trace: Any) -> Sums:
        """The latents as they ran.

        Args:
            guide_trace: The trace of the guide that ran inside.

        Raises:
            OptionError: If the guide did not sample one of the names.
        """
        missing = [name for name in self._names if name not in self._dims]
        if missing:
            nodes = guide_trace.iter_stochastic_nodes()
            sites = [repr(name) for name, node in nodes if not site_is_subsample(node)]
            raise OptionError(
                f"summed names {', '.join(map(repr, missing))}, which the guide does not sample; "
                f"its sites are {', '.join(sites) or 'none'}"
            )
        return Sums(tuple(self._latent(guide_trace.nodes[name]) for name in self._dims))

    def _latent(self, node: dict[str, Any]) -> SummedLatent:
        name, fn = node["name"], node["fn"]
        log_q = fn.log_prob(node["value"], *node["args"], **node["kwargs"])
        return SummedLatent(name, self._dims[name], log_q.exp(), node["cond_indep_stack"])


def _place(frame: CondIndepStackFrame) -> Hashable:
    """What a plate in the guide and its fellow in the model have in common."""
    return frame.dim if frame.vectorized else (frame.name, frame.counter)
