"""Pictures of tables: scatters, intervals and lines, feature by feature."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pyro_models.picture import Picture
from pyro_models.plots.canvas import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    Array,
    blank,
    most_varied,
    of_all,
    one_panel,
    panels,
    plain,
)

MAX_SCATTER_FEATURES = 5
MAX_INTERVALS = 24
MAX_LINES = 6
MAX_PANELS = 9
MAX_WALKS = 6


def samples(drawn: Array, real: Array, names: Sequence[str], title: str) -> Picture:
    """Every pair of features if they are few, else the range of each feature."""
    if len(names) <= MAX_SCATTER_FEATURES:
        return _scatter_matrix(drawn, real, names, title)
    return _intervals(drawn, real, names, title)


def reconstructions(real: Array, made: Array, names: Sequence[str]) -> Picture:
    """One panel a feature: reconstructed against original values."""
    chosen = most_varied(real, MAX_PANELS)
    title = "Reconstructions against originals" + of_all(len(chosen), len(names))
    picture, grid = panels(len(chosen), title)
    for axes, index in zip(grid, chosen, strict=True):
        original, remade = real[:, index], made[:, index]
        spread = ((original - original.mean()) ** 2).sum()
        r2 = 1 - ((original - remade) ** 2).sum() / spread if spread > 0 else math.nan
        axes.plot(original, remade, "o", ms=3, alpha=0.5, color=BLUE, mew=0)
        ends = [original.min(), original.max()]
        axes.plot(ends, ends, color=INK, lw=0.8, ls="--")
        axes.set_title(f"{names[index]}: R² = {r2:.2f}", fontsize=9, color=INK)
    picture.supxlabel("original value", fontsize=10, color=INK)
    picture.supylabel("reconstructed value", fontsize=10, color=INK)
    return picture


def traversal(walk: Array, real: Array, names: Sequence[str]) -> Picture:
    """One panel a datum, one line a feature; dots at the end are the datum."""
    rows, steps, width = walk.shape
    chosen = most_varied(walk.reshape(-1, width), MAX_LINES)
    title = "From the prior to the posterior" + of_all(len(chosen), width)
    picture, grid = panels(min(rows, MAX_WALKS), title, share_y=True)
    times = np.linspace(0, 1, steps)
    for axes, curves, datum in zip(grid, walk, real, strict=False):
        for colour, index in zip(COLOURS, chosen, strict=False):
            axes.plot(times, curves[:, index], color=colour, lw=1.5, label=names[index])
            axes.plot([1.07], [datum[index]], "o", color=colour, ms=5, mew=0, clip_on=False)
        axes.set_xlim(-0.03, 1.12)
        axes.set_xticks([0, 1], ["prior\ndraw", "posterior\nmean"])
    picture.legend(
        *grid[0].get_legend_handles_labels(),
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title="lines: decoded\ndots: the datum",
        title_fontsize=8,
    )
    picture.supylabel("value, in the units of the data", fontsize=10, color=INK)
    return picture


def _scatter_matrix(drawn: Array, real: Array, names: Sequence[str], title: str) -> Picture:
    count = len(names)
    side = max(4.5, 1.9 * count)
    picture = blank(title, (side, side))
    grid = picture.subplots(count, count, squeeze=False)
    for row in range(count):
        for column in range(count):
            axes = grid[row, column]
            if column > row:
                axes.remove()
                continue
            plain(axes)
            if row == column:
                _histograms(axes, drawn[:, row], real[:, row])
            else:
                _scatter(axes, drawn[:, [column, row]], real[:, [column, row]])
            if row == count - 1:
                axes.set_xlabel(names[column], fontsize=9)
            if column == 0:
                axes.set_ylabel("density" if row == 0 else names[row], fontsize=9)
    _legend(picture)
    return picture


def _histograms(axes: Axes, drawn: Array, real: Array) -> None:
    low, high = real.min(), real.max()
    margin = 0.25 * (high - low) or 1.0
    # Samples far out are counted in the outermost bins.
    drawn = drawn.clip(low - margin, high + margin)
    bins = np.linspace(low - margin, high + margin, 30).tolist()
    axes.hist(real, bins, density=True, color=GREY, alpha=0.6)
    axes.hist(drawn, bins, density=True, histtype="step", color=ORANGE, lw=1.5)
    axes.set_yticks([])


def _scatter(axes: Axes, drawn: Array, real: Array) -> None:
    # The fewer lie on top, or they would not be seen.
    above = 3 if len(real) < len(drawn) else 1
    axes.plot(*real.T, color=GREY, alpha=0.9, marker="o", ls="", ms=3, mew=0, zorder=above)
    axes.plot(*drawn.T, color=ORANGE, alpha=0.5, marker="o", ls="", ms=3, mew=0, zorder=2)


def _intervals(drawn: Array, real: Array, names: Sequence[str], title: str) -> Picture:
    chosen = most_varied(real, MAX_INTERVALS)
    picture, axes = one_panel(title, (7.2, 1.6 + 0.26 * len(chosen)))
    axes.set_title(
        "median and central 90 %" + of_all(len(chosen), len(names)), fontsize=9, color=INK
    )
    height = np.arange(len(chosen), dtype=float)
    for rows, colour, offset in ((real, GREY, -0.16), (drawn, ORANGE, 0.16)):
        low, middle, high = np.quantile(rows[:, chosen], (0.05, 0.5, 0.95), axis=0)
        axes.hlines(height + offset, low, high, color=colour, lw=3)
        axes.plot(middle, height + offset, "o", color=colour, ms=5, mec="white", mew=0.8)
    axes.set_yticks(height, [names[index] for index in chosen])
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    axes.set_xlabel("value, in the units of the data")
    _legend(picture)
    return picture


def _legend(picture: Picture) -> None:
    axes = picture.axes[0]
    handles = [axes.plot([], [], "o", color=colour, ms=6, mew=0)[0] for colour in (GREY, ORANGE)]
    picture.legend(handles, ["data", "samples"], loc="outside lower center", ncols=2, frameon=False)
