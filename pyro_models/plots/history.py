"""The course of a fit."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pyro_models.errors import DataError
from pyro_models.plots.canvas import BLUE, INK, ORANGE, Array, Picture, one_panel

MANY = 1000


def loss(
    steps: Sequence[float],
    train: Sequence[float],
    validation_steps: Sequence[float] = (),
    validation: Sequence[float] = (),
) -> Picture:
    """Draw the ELBO of the training batches and of held-out data against the step.

    Args:
        steps: Optimisation steps at which ``train`` was noted.
        train: ELBO, nats per datum; higher is better.
        validation_steps: Steps at which ``validation`` was noted.
        validation: ELBO of held-out data, nats per datum.

    Raises:
        DataError: If there is nothing to draw, or steps and values differ in number.

    Example:
        >>> loss([1, 2, 3], [-30.0, -25.0, -24.0], [3], [-25.0]).axes[0].get_ylabel()
        'ELBO (nats per datum)'
    """
    if len(steps) != len(train) or len(validation_steps) != len(validation):
        raise DataError("a curve needs as many steps as values; give sequences of equal length")
    if len(train) == 0:
        raise DataError("there is no step to draw; fit for at least one step first")
    picture, axes = one_panel("ELBO during the fit (higher is better)", (6.4, 4.0))
    values = np.asarray(train, dtype=float)
    held_out = np.asarray(validation, dtype=float)
    _training(axes, np.asarray(steps, dtype=float), values)
    if len(held_out):
        axes.plot(
            validation_steps, held_out, color=ORANGE, lw=1.8, marker="o", ms=3, label="held out"
        )
        axes.axhline(held_out[-1], color=ORANGE, lw=0.8, ls=":", zorder=0)
        axes.set_title(
            f"held out, at the end: {held_out[-1]:.2f}", fontsize=9, color=INK, loc="right"
        )
    axes.set_xlabel("optimisation step")
    axes.set_ylabel("ELBO (nats per datum)")
    _focus(axes, np.concatenate([values, held_out]))
    axes.legend(frameon=False, loc="lower right")
    return picture


def _training(axes: Axes, steps: Array, values: Array) -> None:
    """One curve; if there are many noisy values, pale under their moving average."""
    if len(values) < MANY:
        marker = "o" if len(values) == 1 else ""
        axes.plot(steps, values, color=BLUE, lw=1.4, marker=marker, label="training")
        return
    axes.plot(steps, values, color=BLUE, lw=0.6, alpha=0.35)
    width = len(values) // 50
    mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
    label = f"training, mean of {width}"
    axes.plot(steps[width - 1 :], mean, color=BLUE, lw=1.8, label=label)


def _focus(axes: Axes, values: Array) -> None:
    """Keep the first steps' steep climb from flattening the rest of the curve."""
    finite = values[np.isfinite(values)]
    if len(finite) < 20:
        return
    low, high = np.quantile(finite, 0.05), finite.max()
    room = 0.15 * (high - low)
    if room > 0 and finite.min() < low - 2 * room:
        axes.set_ylim(low - room, high + room)
