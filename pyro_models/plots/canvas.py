"""What all pictures share: the sheet, its colours and lettering, and checked arrays."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from pyro_models.errors import DataError, OptionError
from pyro_models.picture import Picture

# Petroff (2021), https://arxiv.org/abs/2107.02270: ten colours told apart with colour-blindness.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
BLUE, ORANGE, GREY, INK = COLOURS[0], COLOURS[6], "#9a9a9a", "#262626"

Array = NDArray[np.float64]


def blank(title: str, size: tuple[float, float]) -> Picture:
    """Make a titled picture of ``size`` in inches, with nothing in it yet."""
    picture = Picture(figsize=size, layout="constrained")
    picture.suptitle(title, fontsize=12, color=INK)
    return picture


def one_panel(title: str, size: tuple[float, float]) -> tuple[Picture, Axes]:
    """Make a picture of one panel."""
    picture = blank(title, size)
    axes = picture.subplots()
    plain(axes)
    return picture, axes


def panels(count: int, title: str, *, share_y: bool = False) -> tuple[Picture, list[Axes]]:
    """Make a picture of ``count`` equal panels, at most three in a row."""
    columns = min(3, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    picture = blank(title, (1.2 + 2.4 * columns, 1.4 + 2.1 * rows))
    grid = picture.subplots(rows, columns, squeeze=False, sharey=share_y).reshape(-1)
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count]:
        plain(axes)
    return picture, list(grid[:count])


def plain(axes: Axes) -> None:
    """Take away what says nothing: the upper and right frame, big ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)


def table(x: Tensor, name: str) -> Array:
    """Check ``x`` and make it an array of one row a datum.

    Raises:
        DataError: If it is empty, or has values that are NaN or infinite.
    """
    if x.ndim < 2 or x.numel() == 0:
        raise DataError(f"{name} has shape {tuple(x.shape)}; give at least one datum, (N, D)")
    rows = np.asarray(x.detach().cpu().double().numpy()).reshape(len(x), -1)
    if not np.isfinite(rows).all():
        raise DataError(f"{name} has values that are NaN or infinite; there is nothing to draw")
    return rows


def feature_names(names: Sequence[str] | None, width: int) -> list[str]:
    """Names of ``width`` features: those given, or numbers.

    Raises:
        OptionError: If there are not ``width`` names.
    """
    if names is None:
        return [f"feature {index + 1}" for index in range(width)]
    if len(names) != width:
        raise OptionError(f"{len(names)} feature names for {width} features; give one for each")
    return list(names)


def most_varied(rows: Array, count: int) -> list[int]:
    """Indices of the ``count`` columns of largest variance, in their order."""
    width = rows.shape[1]
    if width <= count:
        return list(range(width))
    return sorted(np.argsort(-rows.var(axis=0), kind="stable")[:count].tolist())


def of_all(shown: int, width: int) -> str:
    """Say that some features are not shown, if so."""
    return "" if shown == width else f": the {shown} most varied of {width} features"
