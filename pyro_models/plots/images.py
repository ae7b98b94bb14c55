"""Pictures of images: sheets of small images, drawn pixel by pixel."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pyro_models.errors import DataError, OptionError
from pyro_models.picture import Picture
from pyro_models.plots.canvas import INK, Array, blank

MAX_SIDE = 8
MAX_COLUMNS = 10
MAX_PAIRS = 4


def samples(drawn: Array, real: Array, image_shape: Sequence[int], title: str) -> Picture:
    """Two square sheets: data and samples."""
    side = max(1, min(MAX_SIDE, math.isqrt(min(len(drawn), len(real)))))
    picture = blank(title, (8.4, 4.7))
    left, right = picture.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    limits = _limits(real)
    for axes, rows, name in ((left, real, "data"), (right, drawn, "samples")):
        tiles = _tiles(rows[: side * side], image_shape)
        _show(axes, tiles.reshape(side, side, *tiles.shape[1:]), limits)
        axes.set_title(name, fontsize=10, color=INK)
    return picture


def reconstructions(real: Array, made: Array, image_shape: Sequence[int]) -> Picture:
    """Pairs of rows: data, and below them their reconstructions."""
    columns = min(MAX_COLUMNS, len(real))
    pairs = min(MAX_PAIRS, len(real) // columns)
    height, width = image_shape[-2:]
    picture = blank(
        "Data and their reconstructions",
        (8.0, 0.6 + pairs * (0.2 + 2 * 6.8 / columns * height / width)),
    )
    grid = picture.subplots(pairs, 1, squeeze=False, gridspec_kw={"hspace": 0.08})
    limits = _limits(real)
    for pair, axes in enumerate(grid[:, 0]):
        members = slice(pair * columns, (pair + 1) * columns)
        both = np.stack([_tiles(rows[members], image_shape) for rows in (real, made)])
        step, _ = _show(axes, both, limits)
        axes.set_yticks([0.5 * step, 1.5 * step], ["data", "reconstructed"])
        axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    return picture


def traversal(walk: Array, real: Array, image_shape: Sequence[int]) -> Picture:
    """Rows of images from a prior draw to a posterior mean, and apart from them the datum."""
    rows, steps, features = walk.shape
    decoded = _tiles(walk.reshape(-1, features), image_shape)
    decoded = decoded.reshape(rows, steps, *decoded.shape[1:])
    datum = _tiles(real, image_shape)[:, None]
    limits = _limits(real)
    gap = np.full_like(datum, np.nan)
    height, width = image_shape[-2:]
    picture = blank(
        "From the prior to the posterior: decoded along a straight line in latent space",
        (8.4, 0.7 + rows * 8.2 / (steps + 2) * height / width),
    )
    axes = picture.subplots()
    _, step = _show(axes, np.concatenate([decoded, gap, datum], axis=1), limits)
    axes.set_xticks(
        [0.5 * step, (steps - 0.5) * step, (steps + 1.5) * step],
        ["prior draw", "posterior mean", "datum"],
    )
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    return picture


def grid(
    made: Array, real: Array, image_shape: Sequence[int], names: Sequence[str], title: str
) -> Picture:
    """Named rows of images, ``(rows, columns, D)``, in the range of the data."""
    rows, columns, features = made.shape
    tiles = _tiles(made.reshape(-1, features), image_shape)
    height, width = image_shape[-2:]
    picture = blank(title, (7.4, 0.6 + rows * 6.6 / columns * height / width))
    axes = picture.subplots()
    step, _ = _show(axes, tiles.reshape(rows, columns, *tiles.shape[1:]), _limits(real))
    axes.set_yticks([(row + 0.5) * step for row in range(rows)], list(names))
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    return picture


def _limits(rows: Array) -> tuple[float, float]:
    """The values drawn black and white: the range of the data."""
    low, high = float(rows.min()), float(rows.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _tiles(rows: Array, image_shape: Sequence[int]) -> Array:
    """Flat rows to images: (N, height, width) if grey, (N, height, width, 3) if in colour."""
    shape = tuple(image_shape)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        raise OptionError(
            f"image_shape={shape} cannot be drawn; give (height, width), or (channels, height, "
            "width) with 1 or 3 channels"
        )
    if rows.shape[1] != math.prod(shape):
        raise DataError(
            f"data of {rows.shape[1]} values are no images of shape {shape}; give the "
            "image_shape that they were flattened from"
        )
    if len(shape) == 3 and shape[0] == 3:
        return np.moveaxis(rows.reshape(-1, *shape), 1, -1)
    return rows.reshape(-1, *shape[-2:])


def _show(axes: Axes, tiles: Array, limits: tuple[float, float]) -> tuple[int, int]:
    """Show a sheet, (rows, columns, height, width[, 3]); NaN is left white.

    Returns:
        Height and width from one image to the next, in pixels.
    """
    low, high = limits
    scaled = np.nan_to_num(np.clip((tiles - low) / (high - low), 0, 1), nan=1.0)
    if scaled.ndim == 4:
        scaled = np.repeat(scaled[..., None], 3, axis=-1)
    rows, columns, height, width, _ = scaled.shape
    gap = max(1, round(width / 12))
    tall, wide = height + gap, width + gap
    framed = np.ones((rows, columns, tall, wide, 3))
    framed[:, :, :height, :width] = scaled
    # (rows, columns, tall, wide, 3) -> (rows * tall, columns * wide, 3), less the last gap
    sheet = framed.transpose(0, 2, 1, 3, 4).reshape(rows * tall, columns * wide, 3)
    sheet = sheet[:-gap, :-gap]
    axes.imshow(sheet, interpolation="nearest", extent=(0, sheet.shape[1], sheet.shape[0], 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return tall, wide
