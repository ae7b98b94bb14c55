"""How much of a broken stick each piece takes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_models.errors import DataError
from pyro_models.picture import Picture
from pyro_models.plots.canvas import BLUE, COLOURS, blank, plain, table
from pyro_models.plots.latent import MARKERS

_MOST_CLASSES = 20


def sticks(
    weights: Float[Tensor, "n pieces"],
    labels: Int[Tensor, "_"] | None = None,
    *,
    label_names: Sequence[str] | None = None,
) -> Picture:
    r"""Draw the mean weight :math:`\pi_k` of each piece over data, and by class beside it.

    Args:
        weights: Each datum's pieces, which sum to one.
        labels: Class of each datum; None leaves the second panel out.
        label_names: Names of the classes 0, 1, ...

    Raises:
        DataError: If ``labels`` and ``weights`` differ in number, or a weight is not finite.

    Example:
        >>> import torch
        >>> picture = sticks(torch.softmax(torch.randn(50, 6), -1), torch.arange(50) % 2)
        >>> [axes.get_xlabel() for axes in picture.axes[:2]]
        ['piece k', 'piece k']
    """
    rows = table(weights, "weights")
    pieces = np.arange(1, rows.shape[1] + 1)
    title = f"How much of the stick each piece takes: means over {len(rows)} data"
    picture = blank(title, (6.4, 3.6) if labels is None else (9.6, 3.8))
    panels = picture.subplots(1, 1 if labels is None else 2, squeeze=False)[0]
    panels[0].bar(pieces, rows.mean(0), color=BLUE, width=0.8)
    panels[0].set_ylabel("mean weight πₖ")
    for axes in panels:
        plain(axes)
        axes.set_xlabel("piece k")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if labels is None:
        return picture
    classes = labels.detach().cpu().numpy()
    if classes.shape != (len(rows),):
        raise DataError(
            f"labels have shape {classes.shape} for {len(rows)} data; give one label a datum"
        )
    for order, label in enumerate(np.unique(classes)[:_MOST_CLASSES]):
        named = label_names is not None and 0 <= label < len(label_names)
        panels[1].plot(
            pieces,
            rows[classes == label].mean(0),
            marker=MARKERS[order % len(MARKERS)],
            color=COLOURS[order % len(COLOURS)],
            ms=4,
            lw=1,
            label=label_names[label] if named and label_names is not None else str(label),
        )
    panels[1].legend(
        title="label", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8
    )
    return picture
