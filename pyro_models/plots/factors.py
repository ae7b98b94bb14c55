"""Pictures of linear latent models: their loadings, and how much each component explains."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_models.errors import DataError, OptionError
from pyro_models.picture import Picture
from pyro_models.plots.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Array,
    blank,
    feature_names,
    most_varied,
    plain,
    table,
)

_MAX_IMAGES = 24
_MAX_COMPONENTS = 16
_MAX_FEATURES = 30
_MAX_EIGENVALUES = 64
_MOST_WRITTEN = 150
_COLUMNS = 8


def loadings(
    loadings: Float[Tensor, "data_dim latent_dim"],
    *,
    image_shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Picture:
    """Draw the columns of W: images of what each latent adds, or a map of features by latents.

    Red is positive, blue negative, white none; all on one scale.

    Args:
        loadings: W, ``(data_dim, latent_dim)``.
        image_shape: ``(height, width)`` or ``(1, height, width)``; None for a table.
        names: Names of a table's columns.

    Raises:
        DataError: If W is empty, not finite, or does not fit ``image_shape``.
        OptionError: If ``image_shape`` is no grey image's, or there is not one name a feature.

    Example:
        >>> import torch
        >>> [axes.get_title() for axes in loadings(torch.eye(4), image_shape=(2, 2)).axes][:4]
        ['1', '2', '3', '4']
    """
    columns = table(loadings, "loadings")
    most = float(np.abs(columns).max()) or 1.0
    if image_shape is not None:
        return _as_images(columns, image_shape, most)
    return _as_map(columns, feature_names(names, len(columns)), most)


def _as_images(columns: Array, image_shape: Sequence[int], most: float) -> Picture:
    shape = tuple(image_shape)
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise OptionError(
            f"image_shape={tuple(image_shape)} is not that of a grey image; give (height, width), "
            "or None for a map"
        )
    if math.prod(shape) != len(columns):
        raise DataError(f"loadings of {len(columns)} values are no images of shape {shape}")
    total = columns.shape[1]
    shown = min(total, _MAX_IMAGES)
    across = min(_COLUMNS, shown)
    rows = math.ceil(shown / across)
    of_all = "" if shown == total else f" (the first {shown} of {total})"
    title = f"Loadings: what each latent adds to x{of_all}"
    high = 1.05 * shape[0] / shape[1] + 0.3
    picture = blank(title, (max(4.6, 1.2 + 1.05 * across), 0.8 + high * rows))
    grid = picture.subplots(rows, across, squeeze=False).reshape(-1)
    for axes in grid[shown:]:
        axes.remove()
    for number, axes in enumerate(grid[:shown]):
        image = axes.imshow(
            columns[:, number].reshape(shape),
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            interpolation="nearest",
        )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#cccccc")
        axes.set_title(str(number + 1), fontsize=8, color=INK, pad=3)
    bar = picture.colorbar(image, ax=list(grid[:shown]), shrink=0.8, aspect=18, pad=0.02)
    bar.ax.tick_params(labelsize=8, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)
    return picture


def _as_map(columns: Array, names: list[str], most: float) -> Picture:
    kept = most_varied(columns.T, _MAX_FEATURES)
    width = min(columns.shape[1], _MAX_COMPONENTS)
    part = columns[kept, :width]
    left_out = "" if len(kept) == len(names) else f", {len(kept)} of {len(names)} features"
    if width < columns.shape[1]:
        left_out += f", the first {width} of {columns.shape[1]} latents"
    picture = blank(f"Loadings{left_out}", (3.2 + 0.55 * width, 1.5 + 0.26 * len(kept)))
    axes = picture.subplots()
    image = axes.imshow(
        part, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest"
    )
    plain(axes)
    if part.size <= _MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(part):
            colour = "white" if abs(value) > 0.6 * most else INK
            axes.text(
                column, row, f"{value:z.2f}", ha="center", va="center", fontsize=7, color=colour
            )
    axes.set_yticks(range(len(kept)), [names[index] for index in kept])
    axes.set_xticks(range(width), [str(number + 1) for number in range(width)])
    axes.set_xlabel("latent")
    bar = picture.colorbar(image, ax=axes, shrink=0.8, aspect=18, pad=0.02)
    bar.ax.tick_params(labelsize=8, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)
    return picture


def scree(
    explained: Float[Tensor, " latent_dim"],
    *,
    data_variances: Float[Tensor, " data_dim"] | None = None,
    noise_variance: Float[Tensor, ""] | None = None,
    relevance: Float[Tensor, " num_columns"] | None = None,
    num_relevant: int | None = None,
) -> Picture:
    r"""Draw how much variance each component explains, beside the data's own.

    Components are in descending order. Where the bars end, the data's variances should lie along
    the noise floor; what stands above it was left unexplained. With automatic relevance
    determination, a second panel shows the precision :math:`\alpha_j` of each column of W, those of
    most variance first: columns of very large precision have been switched off.

    Args:
        explained: The model's variance of x along each principal axis, ``(latent_dim,)``.
        data_variances: Eigenvalues of the data's covariance, ``(data_dim,)``.
        noise_variance: Variance of the noise in every direction.
        relevance: ARD's :math:`\alpha`, of as many columns as it was given.
        num_relevant: How many columns ARD keeps; the others are drawn grey.

    Raises:
        DataError: If a number is not finite, or no component explains anything.

    Example:
        >>> import torch
        >>> picture = scree(torch.tensor([3.0, 1.0]), noise_variance=torch.tensor(0.5))
        >>> picture.axes[0].get_ylabel()
        'variance'
    """
    heights = -np.sort(-table(explained.unsqueeze(-1), "explained")[:, 0])
    if heights[0] <= 0:
        raise DataError("no component explains any variance; there is nothing to draw")
    picture = blank("Variance by component", (7.2, 3.9 if relevance is None else 5.8))
    if relevance is None:
        axes = picture.subplots()
    else:
        axes, lower = picture.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
        _precisions(lower, relevance, num_relevant)
    plain(axes)
    positive = heights[heights > 1e-10 * heights[0]]
    axes.bar(np.arange(1, len(positive) + 1), positive, color=BLUE, width=0.7, label="the model's")
    if data_variances is not None:
        values = -np.sort(-table(data_variances.unsqueeze(-1), "data_variances")[:, 0])
        values = values[values > 1e-10 * values[0]][:_MAX_EIGENVALUES]
        places = np.arange(1, len(values) + 1)
        axes.plot(places, values, "o-", color=INK, ms=3.5, lw=0.9, mew=0, label="the data's")
    floor = math.inf
    if noise_variance is not None:
        floor = float(noise_variance)
        axes.axhline(floor, color=ORANGE, lw=1.2, ls="--", label="noise floor σ²")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.1 * min(floor, positive[-1]))
    axes.set_ylabel("variance")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    bottom = picture.axes[-1]
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_xlabel("component")
    return picture


def _precisions(axes: Axes, relevance: Tensor, kept: int | None) -> None:
    alphas = np.sort(table(relevance.unsqueeze(-1), "relevance")[:, 0])
    plain(axes)
    ranks = np.arange(1, len(alphas) + 1)
    number = len(alphas) if kept is None else kept
    axes.bar(ranks[:number], alphas[:number], color=BLUE, width=0.7)
    axes.bar(ranks[number:], alphas[number:], color=GREY, width=0.7)
    axes.set_yscale("log")
    axes.set_ylabel("ARD precision α")
    if kept is not None:
        axes.set_title(
            f"automatic relevance determination keeps {kept} of {len(alphas)}",
            fontsize=9,
            color=INK,
            loc="left",
        )
