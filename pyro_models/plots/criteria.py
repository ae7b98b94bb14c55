"""Criteria of models side by side."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pyro_models.errors import DataError
from pyro_models.picture import Picture
from pyro_models.plots.canvas import COLOURS, INK, one_panel

_MARKERS = "sDv^Po"
_CROWDED = 40
"""Characters of all names together from which they are written upright."""


def criteria(
    names: Sequence[str],
    curves: Mapping[str, Sequence[float | None]],
    errors: Mapping[str, Sequence[float]] | None = None,
) -> Picture:
    """Draw criteria model by model, with a ring around the best of each.

    Args:
        names: Names of the models, in an order that means something, such as that of their sizes.
        curves: By criterion, one value a model, on a common scale where higher is better; None
            where a model has none.
        errors: Standard errors of a criterion's values.

    Raises:
        DataError: If there is no value, or not one a model.

    Example:
        >>> picture = criteria(["1", "2"], {"held-out log p(x)": [-3.0, -2.5]})
        >>> picture.axes[0].get_ylabel()
        'nats per datum (higher is better)'
    """
    errors = errors or {}
    for name, values in {**curves, **errors}.items():
        if len(values) != len(names):
            raise DataError(f"{name!r} has {len(values)} values for {len(names)} models")
    if not any(v is not None and math.isfinite(v) for values in curves.values() for v in values):
        raise DataError("there is no value to draw; give at least one criterion of one model")
    picture, axes = one_panel("Choosing a model", (max(5.6, 1.8 + 0.55 * len(names)), 4.2))
    for order, (name, values) in enumerate(curves.items()):
        colour, marker = COLOURS[order % len(COLOURS)], _MARKERS[order % len(_MARKERS)]
        heights = np.array([math.nan if v is None else v for v in values], dtype=float)
        places = np.arange(len(names), dtype=float)
        axes.plot(
            places, heights, color=colour, marker=marker, ms=5, mew=0, lw=1.3, alpha=0.9, label=name
        )
        if name in errors:
            axes.errorbar(places, heights, yerr=errors[name], fmt="none", ecolor=colour, lw=1)
        if np.isfinite(heights).sum() > 1:
            best = int(np.nanargmax(heights))
            axes.plot(best, heights[best], "o", ms=11, mfc="none", mec=colour, mew=1.3)
    upright = sum(map(len, names)) > _CROWDED
    axes.set_xticks(range(len(names)), list(names), rotation=90 if upright else 0)
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_ylabel("nats per datum (higher is better)")
    axes.set_title("rings: the best by each criterion", fontsize=9, color=INK, loc="left")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return picture
