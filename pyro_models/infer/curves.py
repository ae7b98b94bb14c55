"""The bound and the KL of the latents by step, as they are drawn for a fit."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

# From so many values on, single ones are too noisy to be read.
_MANY = 1000
_FEW = 20
# More dimensions than this are rows of a heat map, because so many lines cannot be told apart.
_LINES = 8


def draw_bound(
    axes: Axes,
    steps: Sequence[float],
    train: Sequence[float],
    validation_steps: Sequence[float] = (),
    validation: Sequence[float] = (),
    colours: tuple[str, str] = ("C0", "C1"),
) -> None:
    """Draw the bound of training and of held-out data against the step.

    Args:
        axes: Where to draw.
        steps: Steps at which ``train`` was noted, at least one.
        train: Bound on the training data, nats per datum.
        validation_steps: Steps at which ``validation`` was noted.
        validation: Bound on held-out data, nats per datum.
        colours: Of the two.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> draw_bound(axes, [1, 2, 3], [-30.0, -25.0, -24.0], [3], [-25.0])
        >>> [line.get_label() for line in axes.lines]
        ['training', 'held out']
    """
    values, held_out = np.asarray(train, dtype=float), np.asarray(validation, dtype=float)
    _draw_training(axes, np.asarray(steps, dtype=float), values, colours[0])
    if len(held_out):
        axes.plot(
            validation_steps, held_out, color=colours[1], lw=1.8, marker="o", ms=3, label="held out"
        )
    axes.set_ylabel("ELBO (nats per datum)")
    _focus(axes, np.concatenate([values, held_out]))
    axes.legend(frameon=False, loc="lower right")


def _draw_training(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    """One curve; if there are many noisy values, pale under their moving average."""
    if len(values) < _MANY:
        marker = "o" if len(values) < 3 else ""
        axes.plot(steps, values, color=colour, lw=1.4, marker=marker, label="training")
        return
    axes.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
    width = len(values) // 50
    mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
    label = f"training, mean of {width}"
    axes.plot(steps[width - 1 :], mean, color=colour, lw=1.8, label=label)


def _focus(axes: Axes, values: np.ndarray) -> None:
    """Keep the first steps' steep climb from flattening the rest of the curve."""
    finite = values[np.isfinite(values)]
    if len(finite) < _FEW:
        return
    low, high = np.quantile(finite, 0.05), finite.max()
    room = 0.15 * (high - low)
    if room > 0 and finite.min() < low - 2 * room:
        axes.set_ylim(low - room, high + room)


def draw_kl(
    axes: Axes, steps: Sequence[float], kl: Sequence[Mapping[str, Sequence[float]]]
) -> None:
    """Draw the KL of latents by dimension against the step: a line each, or rows of a heat map.

    Args:
        axes: Where to draw.
        steps: Steps at which ``kl`` was noted, at least one.
        kl: Nats per datum by latent and dimension, the same latents each time.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> draw_kl(axes, [1, 2], [{"z": [0.5, 0.1]}, {"z": [0.9, 0.0]}])
        >>> [line.get_label() for line in axes.lines]
        ['z[0]', 'z[1]']
    """
    sizes = {name: len(values) for name, values in kl[0].items()}
    table = np.array([[v for name in sizes for v in moment[name]] for moment in kl], dtype=float)
    if table.shape[1] > _LINES:
        _draw_rows(axes, np.asarray(steps, dtype=float), table.T, sizes)
        return
    names = [name if n == 1 else f"{name}[{j}]" for name, n in sizes.items() for j in range(n)]
    for name, values in zip(names, table.T, strict=True):
        axes.plot(steps, values, lw=1.4, marker="o", ms=3, label=name)
    axes.set_ylabel("KL (nats per datum)")
    axes.set_ylim(bottom=min(0.0, float(np.nanmin(table, initial=0.0))))
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")


def _draw_rows(axes: Axes, steps: np.ndarray, rows: np.ndarray, sizes: Mapping[str, int]) -> None:
    """A row a dimension, the latents one above the other, a column a moment."""
    middles = (steps[1:] + steps[:-1]) / 2
    first = steps[0] - (middles[0] - steps[0] if len(middles) else 0.5)
    last = steps[-1] + (steps[-1] - middles[-1] if len(middles) else 0.5)
    edges = np.concatenate([[first], middles, [last]])
    mesh = axes.pcolormesh(edges, np.arange(len(rows) + 1), rows, vmin=0.0, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label="KL (nats per datum)")
    axes.invert_yaxis()  # the first dimension on top, as in a table
    bounds = np.cumsum([0, *sizes.values()])
    for bound in bounds[1:-1]:
        axes.axhline(bound, color="w", lw=1.0)
    labels = [f"{name} ({size})" for name, size in sizes.items()]
    axes.set_yticks((bounds[1:] + bounds[:-1]) / 2, labels)
    axes.set_ylabel("latent (dimensions)")
