"""Pictures of clusters: what label each holds, and what the model makes in each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from pyro_models.errors import DataError
from pyro_models.picture import Picture
from pyro_models.plots import images
from pyro_models.plots.canvas import INK, one_panel, plain, table

_MAX_NUMBERED = 30
"""Rows or columns up to which a cell shows its number."""


def confusion(
    counts: Int[Tensor, "clusters classes"],
    assigned: Int[Tensor, "_"] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    row_names: Sequence[str] | None = None,
    rows: str = "cluster",
    title: str = "Clusters against labels",
) -> Picture:
    """Draw how many data of each label are in each cluster.

    Rows are clusters, in the order of the labels that are assigned to them, so that what is right
    lies on the diagonal; clusters without a label come last, the largest first.

    Args:
        counts: Data by cluster and label, ``(K, C)``; ``clustering.report`` gives them.
        assigned: Label of each cluster, -1 for none; without it, rows stay in their order.
        label_names: Names of the labels 0, 1, ...
        row_names: Names of the rows; 1, 2, ... if not given.
        rows: What a row is.
        title: Above the picture.

    Raises:
        DataError: If there are no counts, or ``assigned`` or ``row_names`` do not go with them.

    Example:
        >>> import torch
        >>> picture = confusion(torch.tensor([[0, 5], [7, 1]]), torch.tensor([1, 0]))
        >>> [text.get_text() for text in picture.axes[0].get_yticklabels()]
        ['2', '1']
    """
    found = table(counts, "counts").astype(np.int64)
    clusters, classes = found.shape
    order = np.arange(clusters)
    if assigned is not None:
        labels = np.asarray(assigned.detach().cpu().numpy())
        if labels.shape != (clusters,):
            raise DataError(
                f"assigned has shape {labels.shape} for {clusters} clusters; give each its label, "
                "or -1"
            )
        order = np.lexsort((-found.sum(1), np.where(labels < 0, classes, labels)))
    own = [str(k + 1) for k in range(clusters)] if row_names is None else list(row_names)
    if len(own) != clusters:
        raise DataError(f"{len(own)} row_names for {clusters} rows; give each its name")
    sheet = found[order]
    size = (2.2 + 0.42 * min(classes, 24), 1.6 + 0.34 * min(clusters, 30))
    picture, axes = one_panel(title, size)
    image = axes.imshow(sheet, cmap="Blues", vmin=0, vmax=max(1, sheet.max()), aspect="auto")
    plain(axes)
    names = [
        label_names[c] if label_names is not None and c < len(label_names) else str(c)
        for c in range(classes)
    ]
    long = max(map(len, names)) > 3
    axes.set_xticks(range(classes), names, rotation=90 if long else 0)
    axes.set_yticks(range(clusters), [own[k] for k in order])
    axes.set_xlabel("label")
    axes.set_ylabel(rows)
    if max(sheet.shape) <= _MAX_NUMBERED:
        for row, column in np.argwhere(sheet > 0):
            dark = sheet[row, column] > 0.6 * sheet.max()
            axes.text(
                column,
                row,
                str(sheet[row, column]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else INK,
            )
    bar = picture.colorbar(image, ax=axes, shrink=0.9, pad=0.02, aspect=20, label="data")
    bar.ax.tick_params(labelsize=8, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)
    return picture


def samples_by_cluster(
    means: Float[Tensor, "clusters count data_dim"],
    *,
    image_shape: Sequence[int],
    sizes: Float[Tensor, "_"] | None = None,
    data: Float[Tensor, "n data_dim"] | None = None,
    names: Sequence[str] | None = None,
    title: str = "Means of p(x | z), z from each cluster",
) -> Picture:
    """Draw what the model makes in each cluster, a row of images each.

    Args:
        means: Means of p(x | z) with z from each cluster, ``(K, count, D)``;
            ``clustering.cluster_means`` gives them.
        image_shape: ``(height, width)`` or ``(channels, height, width)``.
        sizes: Expected number of data in each cluster, written beside its row.
        data: Data whose range is drawn from black to white; by default that of ``means``.
        names: Names of the rows; 1, 2, ... if not given.
        title: Above the picture.

    Raises:
        DataError: If there is nothing to draw, or it does not fit ``image_shape``.
        OptionError: If ``image_shape`` is no image's.

    Example:
        >>> import torch
        >>> picture = samples_by_cluster(torch.rand(3, 5, 4), image_shape=(2, 2))
        >>> [text.get_text() for text in picture.axes[0].get_yticklabels()]
        ['1', '2', '3']
    """
    rows = table(means.reshape(-1, means.shape[-1]), "means")
    clusters, count = means.shape[:2]
    own = [str(k + 1) for k in range(clusters)] if names is None else list(names)
    if len(own) != clusters:
        raise DataError(f"{len(own)} names for {clusters} rows; give each its name")
    if sizes is not None:
        if sizes.shape != (clusters,):
            raise DataError(f"sizes have shape {tuple(sizes.shape)}; give one a cluster")
        own = [f"{name} ({float(size):.0f})" for name, size in zip(own, sizes, strict=True)]
    limits = rows if data is None else table(data, "data")
    return images.grid(
        rows.reshape(clusters, count, -1),
        limits,
        image_shape,
        own,
        title + ("" if sizes is None else " (its data)"),
    )
