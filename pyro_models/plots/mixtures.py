"""Pictures of mixtures: where components lie, which data they explain, and how many there are."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_models.errors import DataError
from pyro_models.picture import Picture
from pyro_models.plots.canvas import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    Array,
    blank,
    feature_names,
    one_panel,
    plain,
    table,
)
from pyro_models.plots.latent import scatter_classes

_SMALL = 0.005
"""Weight below which a component is not drawn."""
_HALF = 0.5
"""Expected number of data below which a component gets no row."""
_MAX_ROWS = 30
_ASSIGNMENTS = 200


def components(
    x: Float[Tensor, "n data_dim"],
    weights: Float[Tensor, " components"],
    means: Float[Tensor, "components _"],
    covariances: Float[Tensor, "components _ _"],
    labels: Int[Tensor, "_"] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    title: str = "Normal components",
) -> Picture:
    r"""Draw normal components over data: ellipses of one and two standard deviations.

    Two dimensions are drawn as they are. Of more, data and components are projected onto the plane
    in which the data vary most, their first two principal axes; of one, densities stand over a
    histogram. Components of a weight below 0.5 % are left out.

    Args:
        x: Data, ``(N, D)``.
        weights: :math:`\pi`, ``(K,)``.
        means: ``(K, D)``.
        covariances: ``(K, D, D)``.
        labels: Class of each datum, which the mixture has not seen; None draws all alike.
        label_names: Names of the classes 0, 1, ...
        names: Names of the dimensions.
        title: What the ellipses are.

    Raises:
        DataError: If shapes do not fit, or something is not finite.

    Example:
        >>> import torch
        >>> picture = components(
        ...     torch.randn(50, 2), torch.tensor([0.4, 0.6]), torch.zeros(2, 2),
        ...     torch.eye(2).expand(2, 2, 2),
        ... )
        >>> [text.get_text() for text in picture.axes[0].texts]
        ['60 %', '40 %']
    """
    rows, centres = table(x, "x"), table(means, "means")
    spreads = np.asarray(covariances.detach().cpu().double().numpy())
    sizes = np.asarray(weights.detach().cpu().double().numpy())
    width = rows.shape[1]
    if centres.shape != (len(sizes), width) or spreads.shape != (len(sizes), width, width):
        raise DataError(
            f"{len(sizes)} weights, means {centres.shape} and covariances {spreads.shape} do not "
            f"fit data of {width} dimensions; give (K,), (K, {width}) and (K, {width}, {width})"
        )
    classes = _classes(labels, len(rows))
    drawn = [int(k) for k in np.argsort(-sizes, kind="stable") if sizes[k] >= _SMALL]
    picture, axes = one_panel(f"{title}, over {len(rows)} data", (7.0, 5.2))
    if len(drawn) < len(sizes):
        left_out = f"{len(sizes) - len(drawn)} of {len(sizes)}, of next to no weight, left out"
        axes.set_title(left_out, fontsize=9, color=INK)
    if width == 1:
        _densities(axes, rows[:, 0], sizes, centres[:, 0], spreads[:, 0, 0], drawn)
        axes.set_xlabel(feature_names(names, 1)[0])
        return picture
    axis_names: Sequence[str] = feature_names(names, width)
    if width > 2:
        plane, share = _principal_plane(rows)
        rows, centres = rows @ plane, centres @ plane
        spreads = plane.T @ spreads @ plane
        axis_names = [f"principal axis {j + 1} ({share[j]:.0%} of variance)" for j in (0, 1)]
    if classes is None:
        axes.plot(*rows.T, "o", ms=4, alpha=0.5, color=GREY, mew=0)
    else:
        scatter_classes(axes, rows, classes, label_names)
    for k in drawn:
        _ellipses(axes, centres[k], spreads[k])
    for k in drawn:
        axes.text(
            centres[k][0],
            centres[k][1],
            f"{sizes[k]:.0%}".replace("%", " %"),
            ha="center",
            va="center",
            fontsize=9,
            color=INK,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85},
        )
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.autoscale_view()
    return picture


def _classes(labels: Tensor | None, count: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    classes = labels.detach().cpu().numpy()
    if classes.shape != (count,):
        raise DataError(
            f"labels have shape {classes.shape} for {count} data; give one label a datum"
        )
    return classes


def _principal_plane(rows: Array) -> tuple[Array, Array]:
    """The data's first two principal axes as columns, and their parts of the variance."""
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    plane = axes[:2].T
    if plane.shape[1] < 2:  # one datum: any second axis will do
        plane = np.eye(rows.shape[1])[:, :2]
    plane = plane * np.where(plane[np.abs(plane).argmax(0), [0, 1]] < 0, -1.0, 1.0)
    total = float((values**2).sum()) or 1.0
    share = np.zeros(2)
    share[: len(values[:2])] = values[:2] ** 2 / total
    return plane, share


def _ellipses(axes: Axes, centre: Array, spread: Array) -> None:
    values, vectors = np.linalg.eigh(spread)
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    low, high = np.sqrt(values.clip(min=0))
    for deviations, line, fill in ((1, 1.6, 0.07), (2, 0.9, 0.04)):
        shape = {"width": 2 * deviations * high, "height": 2 * deviations * low, "angle": angle}
        axes.add_patch(Ellipse(tuple(centre), **shape, color=INK, alpha=fill, lw=0))
        axes.add_patch(Ellipse(tuple(centre), **shape, fill=False, ec=INK, lw=line, alpha=0.85))


def _densities(
    axes: Axes, values: Array, weights: Array, means: Array, variances: Array, drawn: list[int]
) -> None:
    axes.hist(values, min(60, max(10, len(values) // 8)), density=True, color=GREY, alpha=0.45)
    margin = 0.1 * (values.max() - values.min()) or 1.0
    grid = np.linspace(values.min() - margin, values.max() + margin, 400)
    total = np.zeros_like(grid)
    for order, k in enumerate(drawn):
        scale = math.sqrt(variances[k])
        curve = np.exp(-0.5 * ((grid - means[k]) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
        total += weights[k] * curve
        colour = COLOURS[order % len(COLOURS)]
        label = f"{weights[k]:.0%}".replace("%", " %")
        axes.plot(grid, weights[k] * curve, color=colour, lw=1.5, label=label)
    axes.plot(grid, total, color=INK, lw=1.2, ls="--", label="mixture")
    axes.set_ylabel("density")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="weight")


def responsibilities(
    responsibilities: Float[Tensor, "n components"],
    labels: Int[Tensor, "_"] | None = None,
    *,
    label_names: Sequence[str] | None = None,
) -> Picture:
    r"""Draw which component explains which datum, :math:`p(k \mid x_n)`.

    A column is a datum, sorted by its most probable component and then by how probable that is;
    a row is a component, the largest first; those that hold next to nothing get none. Above them
    stand the labels, which the mixture has not seen: where it has found the classes, colours lie
    in blocks.

    Args:
        responsibilities: ``(N, K)``, of sum 1 in each row.
        labels: Class of each datum; None leaves the strip out.
        label_names: Names of the classes 0, 1, ...

    Raises:
        DataError: If labels and responsibilities differ in number, or one is not finite.

    Example:
        >>> import torch
        >>> picture = responsibilities(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]]))
        >>> [text.get_text() for text in picture.axes[0].get_yticklabels()]
        ['2', '1']
    """
    shares = table(responsibilities, "responsibilities")
    classes = _classes(labels, len(shares))
    order = np.argsort(-shares.sum(0), kind="stable")
    holding = int((shares.sum(0) >= _HALF).sum())
    shown = order[: max(1, min(holding, _MAX_ROWS))]
    ranked = shares[:, order]
    best = ranked.argmax(1)
    columns = np.lexsort((-ranked.max(1), best))
    sheet = shares[columns][:, shown].T  # (components, data)
    height = 1.6 + 0.3 * len(shown) + (0.4 if classes is not None else 0)
    picture = blank(f"Which component explains which of {len(shares)} data", (8.0, height))
    if classes is None:
        axes = picture.subplots()
    else:
        strip, axes = picture.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": (1, max(4.0, 1.4 * len(shown)))}
        )
        _label_strip(picture, strip, classes[columns], label_names)
    image = axes.imshow(sheet, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    plain(axes)
    # Lines where the most probable component changes.
    for edge in np.flatnonzero(np.diff(best[columns])) + 0.5:
        axes.axvline(edge, color=INK, lw=0.5, alpha=0.4)
    axes.set_yticks(range(len(shown)), [str(k + 1) for k in shown])
    axes.set_ylabel("component")
    axes.set_xlabel("datum, sorted by its component")
    if len(shown) < len(order):
        left_out = f"{len(order) - len(shown)} of {len(order)} components hold next to nothing"
        axes.set_xlabel(f"datum, sorted by its component ({left_out})")
    bar = picture.colorbar(image, ax=axes, shrink=0.9, pad=0.01, aspect=12)
    bar.ax.tick_params(labelsize=8, color=INK, labelcolor=INK)
    bar.set_ticks([0, 0.5, 1])
    bar.outline.set_visible(False)
    return picture


def _label_strip(
    picture: Picture, axes: Axes, classes: NDArray[np.int64], names: Sequence[str] | None
) -> None:
    present = np.unique(classes)
    colours = np.array([to_rgb(COLOURS[place % len(COLOURS)]) for place in range(len(present))])
    axes.imshow(
        colours[np.searchsorted(present, classes)][None], aspect="auto", interpolation="nearest"
    )
    axes.spines[:].set_visible(False)
    axes.set_yticks([0], ["label"])
    axes.tick_params(length=0, labelsize=9, labelcolor=INK, labelbottom=False)
    handles = [
        Patch(
            color=tuple(colours[place]),
            label=names[label] if names is not None and 0 <= label < len(names) else str(label),
        )
        for place, label in enumerate(present)
    ]
    picture.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)


def clusters(responsibilities: Float[Tensor, "n components"], *, seed: int = 0) -> Picture:
    """Draw how many components are in use: their sizes, and how many hold data.

    On the left the expected number of data of each component, the largest first, and how much the
    first of them hold together; on the right the number of components that hold at least one
    datum, over 200 draws of all assignments.

    Args:
        responsibilities: ``(N, K)``, of sum 1 in each row.
        seed: Of the draws.

    Raises:
        DataError: If there are none, or one is not finite.

    Example:
        >>> import torch
        >>> clusters(torch.eye(3)[[0, 0, 1, 1, 1]]).get_suptitle()
        '2 of 3 components hold data'
    """
    shares = table(responsibilities, "responsibilities")
    counts = _occupied(shares, np.random.default_rng(seed))
    usual = int(np.median(counts))
    sizes = -np.sort(-shares.sum(0))
    hold = "holds" if usual == 1 else "hold"
    title = f"{usual} of {len(sizes)} components {hold} data"
    picture = blank(title, (8.4, 3.8))
    left, right = picture.subplots(1, 2, gridspec_kw={"width_ratios": (3, 2)})
    for axes in (left, right):
        plain(axes)
    ranks = np.arange(1, len(sizes) + 1)
    left.bar(ranks, sizes, color=BLUE, width=0.8)
    left.set_xlabel("component, by size")
    left.set_ylabel("expected number of data")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    together = left.twinx()
    together.plot(ranks, sizes.cumsum() / sizes.sum(), color=ORANGE, marker="o", ms=3.5, lw=1.2)
    together.set_ylim(0, 1.04)
    together.set_ylabel("part held by the first", color=ORANGE, fontsize=9)
    together.tick_params(labelsize=8, color=INK, labelcolor=INK)
    together.spines[["top"]].set_visible(False)
    values, found = np.unique(counts, return_counts=True)
    right.bar(values, found / len(counts), color=GREY, width=0.8)
    right.set_xlim(max(0.0, values.min() - 2.5), values.max() + 2.5)
    right.set_ylim(0, 1.04)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("components with data")
    right.set_ylabel("probability")
    return picture


def _occupied(shares: Array, generator: np.random.Generator) -> NDArray[np.int64]:
    """Components with at least one datum, in each draw of all assignments."""
    ends = shares.cumsum(1)
    counts = []
    for _ in range(_ASSIGNMENTS):
        places = generator.uniform(0, ends[:, -1])[:, None]
        counts.append(len(np.unique((places > ends).sum(1))))
    return np.array(counts)
