r"""What each draw of a latent costs, element by element of the plates that it lies in.

A latent in plates has one draw an element, and the score of each needs only the terms that its own
draw reaches: those of the same element, of every plate in which all that depends on it lies too.
Elements of a plate are independent given what lies outside: that is what a plate says.
"""

from collections.abc import Iterable

from torch import Tensor

from pyro_models.infer.sites import Axis, Site

Kept = frozenset[Axis]


def kept_axes(site: Site, reached: Iterable[Site]) -> Kept:
    """The latent's plates whose other elements do not see its draw.

    Args:
        site: The latent.
        reached: The sites that depend on its draw, or may hand it on.
    """
    return site.axes.intersection(*(other.axes for other in reached))


def by_datum(kept: Kept) -> bool:
    """Whether the data plate is among those kept."""
    return any(axis == 1 for axis, _ in kept)


def gathered(batch: Tensor, site: Site, kept: Kept) -> Tensor:
    """A site's tensor ``(K, B, *plates)`` summed over data and plates but those kept.

    Args:
        batch: The tensor.
        site: Its site; what lies in another plate at the same place is summed over.
        kept: The plates of a latent that its cost is kept apart by.
    """
    own = {axis for axis, name in kept if (axis, name) in site.axes}
    others = tuple(d for d in range(1, batch.dim()) if d not in own)
    return batch.sum(others, keepdim=True) if others else batch


def without_plates(term: Tensor, like: Tensor) -> Tensor:
    """A term ``(K, B)`` or ``(K,)`` as one of no plate but the data's, shaped as ``like``."""
    return term.reshape(*term.shape, *(1,) * (like.dim() - term.dim()))
