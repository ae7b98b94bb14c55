r"""What each draw of a latent costs, element by element of the plates that it lies in.

A latent in plates has one draw an element, and the score of each needs only the terms that its own
draw reaches: those of the same element, of every plate in which all that depends on it lies too.
"""

from collections.abc import Iterable

from torch import Tensor

from pyro_models.infer.sites import Site


def kept_axes(site: Site, reached: Iterable[Site]) -> frozenset[int]:
    """The latent's plates whose other elements do not see its draw, as axes of ``by_plates``.

    Args:
        site: The latent.
        reached: The sites that depend on its draw, or may hand it on.
    """
    return site.axes.intersection(*(other.axes for other in reached))


def gathered(batch: Tensor, kept: frozenset[int]) -> Tensor:
    """A tensor ``(K, B, *plates)`` summed over data and plates other than those kept, which stay.

    Example:
        >>> import torch
        >>> gathered(torch.ones(2, 3, 4), frozenset({1})).shape
        torch.Size([2, 3, 1])
    """
    others = tuple(d for d in range(1, batch.dim()) if d not in kept)
    return batch.sum(others, keepdim=True) if others else batch


def without_plates(term: Tensor, like: Tensor) -> Tensor:
    """A term ``(K, B)`` or ``(K,)`` as one of no plate but the data's, shaped as ``like``."""
    return term.reshape(*term.shape, *(1,) * (like.dim() - term.dim()))
