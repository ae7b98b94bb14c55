"""The course of a fit."""

from collections.abc import Sequence

from pyro_models.errors import DataError
from pyro_models.infer.curves import draw_bound
from pyro_models.picture import Picture
from pyro_models.plots.canvas import BLUE, INK, ORANGE, one_panel


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
    draw_bound(axes, steps, train, validation_steps, validation, (BLUE, ORANGE))
    if len(validation):
        last = validation[-1]
        axes.axhline(last, color=ORANGE, lw=0.8, ls=":", zorder=0)
        axes.set_title(f"held out, at the end: {last:.2f}", fontsize=9, color=INK, loc="right")
    axes.set_xlabel("optimisation step")
    return picture
