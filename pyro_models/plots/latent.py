"""Where data lie in the latent space."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyro_models.errors import DataError
from pyro_models.picture import Picture
from pyro_models.plots.canvas import BLUE, COLOURS, Array, one_panel, table

MAX_TSNE_POINTS = 1000
MIN_TSNE_POINTS = 5
MARKERS = "osD^vP*X<>"


def latent_space(
    mean: Float[Tensor, "n latent_dim"],
    labels: Int[Tensor, "_"] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Picture:
    """Draw each datum at its posterior mean, coloured by label.

    Two latent dimensions are drawn as they are; one is spread out by a jitter. More are laid out
    in the plane by t-SNE with a fixed seed (van der Maaten and Hinton 2008,
    https://jmlr.org/papers/v9/vandermaaten08a.html): neighbours stay neighbours, but axes and
    the distances between clusters mean nothing. At most 1000 data are drawn then, chosen by
    the seed.

    Args:
        mean: Posterior means.
        labels: Class of each datum; None colours all alike.
        label_names: Names of the classes 0, 1, ...
        seed: Seed of t-SNE, of the jitter and of the choice.

    Raises:
        DataError: If ``labels`` and ``mean`` differ in number, a mean is not finite, or fewer
            than 5 data have more than two latent dimensions.

    Example:
        >>> import torch
        >>> latent_space(torch.randn(50, 2), torch.arange(50) % 2).axes[0].get_xlabel()
        'z₁'
    """
    points = table(mean, "mean")
    classes = np.zeros(len(points), int) if labels is None else labels.detach().cpu().numpy()
    if classes.shape != (len(points),):
        raise DataError(
            f"labels have shape {classes.shape} for {len(points)} means; give one label a datum"
        )
    kept = _choice(points, seed)
    plane, axis_names, how = _plane(points[kept], seed)
    picture, axes = one_panel(
        f"Latent space: posterior means of {len(plane)} data{how}", (6.8, 5.2)
    )
    if labels is None:
        axes.plot(*plane.T, "o", ms=4, alpha=0.7, color=BLUE, mew=0)
    else:
        scatter_classes(axes, plane, classes[kept], label_names)
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    if "t-SNE" in how:
        axes.set_xticks([])
    if points.shape[1] != 2:
        axes.set_yticks([])
    return picture


def _choice(points: Array, seed: int) -> NDArray[np.int64]:
    count, width = points.shape
    if width <= 2 or count <= MAX_TSNE_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:MAX_TSNE_POINTS])


def _plane(points: Array, seed: int) -> tuple[Array, tuple[str, str], str]:
    """Lay points out in the plane; name its axes, and say how they came there."""
    count, width = points.shape
    if width == 1:
        jitter = np.random.default_rng(seed).uniform(-1, 1, (count, 1))
        return np.hstack([points, jitter]), ("z₁", "jitter, to keep points apart"), ""
    if width == 2:
        return points, ("z₁", "z₂"), ""
    if count < MIN_TSNE_POINTS:
        raise DataError(
            f"t-SNE needs at least {MIN_TSNE_POINTS} data to lay out {width} latent dimensions, "
            f"got {count}; give more data"
        )
    chosen = points.astype(np.float32)
    # A collapsed posterior has no principal axis to start from.
    init = "pca" if chosen.std(axis=0).max() > 1e-6 else "random"
    perplexity = min(30.0, (count - 1) / 3)
    # On a busy machine its threads wait for each other ten times longer than they work.
    with threadpool_limits(1):
        plane = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(chosen)
    axis_names = ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
    return plane.astype(np.float64), axis_names, f", {width} dimensions by t-SNE"


def scatter_classes(
    axes: Axes, plane: Array, classes: NDArray[np.int64], names: Sequence[str] | None
) -> None:
    """Draw points with a colour and a marker for each class, and a legend beside them."""
    present = np.unique(classes)
    for order, label in enumerate(present):
        name = names[label] if names is not None and 0 <= label < len(names) else str(label)
        axes.plot(
            *plane[classes == label].T,
            ls="",
            marker=MARKERS[order % len(MARKERS)],
            color=COLOURS[order % len(COLOURS)],
            ms=4.5,
            alpha=0.75,
            mew=0,
            label=name,
        )
    axes.legend(
        title="label",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        markerscale=1.4,
        ncols=1 + (len(present) - 1) // 16,
    )
