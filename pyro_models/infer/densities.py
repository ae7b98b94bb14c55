"""Densities of sites at values, and flows that have none but at their own fresh draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributions import ComposeTransform, Transform

from pyro_models.errors import OptionError


@contextmanager
def density_of(name: str, fn: Any, *, drawn: bool) -> Iterator[None]:
    """Where a site's density is taken: what a flow without an inverse raises is explained.

    Such a flow remembers what its draws were made from, tensor by tensor; a detached draw or an
    alias of it is another tensor, and so is any value from outside.

    Args:
        name: The site.
        fn: Its distribution.
        drawn: Whether the value was drawn from it, by the guide.

    Raises:
        OptionError: If the density is not known; the message names site and transform.
    """
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        transform = _without_inverse(fn, error)
        if transform is None:
            raise
        advice = (
            f"take ELBO(), or IWAE(K) with StandardGradient(), keep the path in "
            f"ScoreFunction(sites={{{name!r}: Pathwise()}}), or give the guide"
            if drawn
            else "it was drawn elsewhere, so give the model"
        )
        raise OptionError(
            f"site {name!r} has the transform {transform}, which has no inverse: its density is "
            f"known at its own fresh draws only, and is asked for at another value here; {advice} "
            "a flow that has an inverse, such as "
            "pyro.distributions.transforms.affine_autoregressive"
        ) from error


def _without_inverse(fn: Any, error: Exception) -> str | None:
    """Name of the transform that raised this for want of an inverse; ``None`` if it was another."""
    found: list[Transform] = []
    while fn is not None:
        found += getattr(fn, "transforms", [])
        fn = getattr(fn, "base_dist", None)
    # Pyro's message begins with the name of the class that looked in vain, perhaps a parent.
    words = str(error.args[0]).split() if error.args else []
    for transform in _parts(found):
        if isinstance(error, KeyError):
            mine = {kind.__name__ for kind in type(transform).__mro__}
            if "cache" in words and words[0] in mine:
                return type(transform).__name__
        elif type(transform)._inverse is Transform._inverse:
            return type(transform).__name__
    return None


def _parts(transforms: list[Transform]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _parts(list(transform.parts))
        else:
            yield transform
