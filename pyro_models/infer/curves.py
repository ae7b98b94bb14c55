"""The bound by step, as it is drawn for a fit."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

# From so many values on, single ones are too noisy to be read.
_MANY = 1000
_FEW = 20


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
