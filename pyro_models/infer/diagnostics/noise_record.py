"""What ``gradient_noise`` returns: numbers by parameter and by side, a table and a plot."""

import base64
import html
import io
import math
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from pyro_models.picture import Picture

_HEADINGS = ("objective", "side", "numbers", "|mean|", "variance", "SNR", "cosine", "ms")
_COST = "variance x s"


@dataclass(frozen=True, eq=False)
class ParameterNoise:
    """The gradient of one objective in one parameter, over the draws; nats per datum."""

    side: str
    """Whose the parameter is: ``"model"``, ``"guide"``, or ``"both"`` for one they share."""
    mean: Tensor
    """Mean over draws, of the parameter's shape, float64; it points uphill, to a higher bound."""
    variance: Tensor
    """Variance over draws (divisor: draws - 1) of each number, of the parameter's shape."""
    cosine: float
    """Mean over draws of the cosine between the draw and the reference gradient; NaN where the
    reference is zero."""
    draws: int
    """Gradients drawn."""

    @property
    def standard_error(self) -> Tensor:
        """Standard error of ``mean``, number by number."""
        return (self.variance / self.draws).sqrt()

    @property
    def snr(self) -> float:
        """Signal to noise: |mean| / standard deviation of each number, averaged.

        Numbers without either signal or noise are left out; NaN if that leaves none, infinite if
        one has signal and no noise. Where there is no signal at all it reads about
        ``(2 / (pi * draws)) ** 0.5``, which is what the estimated mean then amounts to.
        """
        return mean_ratio(self.mean, self.variance)


@dataclass(frozen=True)
class SideNoise:
    """The gradient of one objective over all of a side's parameters; nats per datum."""

    objective: str
    """The objective's name."""
    side: str
    """``"model"``, ``"guide"``, or ``"both"`` for parameters that they share."""
    numbers: int
    """Numbers in the side's parameters."""
    mean_norm: float
    """Length of the mean gradient."""
    variance: float
    """Trace of the gradient's covariance: the sum of the variances of its numbers."""
    snr: float
    """|mean| / standard deviation of each number, averaged; see ``ParameterNoise.snr``."""
    cosine: float
    """Mean over draws of the cosine between the side's gradient and the reference."""
    seconds: float
    """Cost of one gradient (of both sides), seconds on this machine, the median over draws."""

    @property
    def variance_cost(self) -> float:
        """Variance times seconds: the variance that a second of averaging leaves; lower wins."""
        return self.variance * self.seconds

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        numbers = (self.mean_norm, self.variance, self.snr, self.cosine, 1000 * self.seconds)
        shown = [_short(value) for value in (*numbers, self.variance_cost)]
        return (self.objective, self.side, str(self.numbers), *shown)


@dataclass(frozen=True, eq=False, repr=False)
class GradientNoise:
    """What ``gradient_noise`` measured. Shown as a table, in a notebook with a plot."""

    parameters: dict[str, dict[str, ParameterNoise]]
    """By objective and parameter."""
    sides: tuple[SideNoise, ...]
    """A row for each objective and side."""
    seconds: dict[str, float]
    """Seconds of one gradient by objective: guide, model and backward pass, eager; no update."""
    reference: dict[str, Tensor]
    """The gradient that cosines are taken to, by parameter."""
    reference_error: dict[str, float]
    """Length of the reference's own standard error relative to its length, by side; 0 where it was
    given. A large one pulls every cosine towards zero, by about 1 / sqrt(1 + its square)."""
    draws: int
    """Gradients drawn for each objective."""
    seed: int
    """The seed: with the same arguments it repeats everything but the seconds."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, as given."""
        return tuple(self.parameters)

    def side(self, objective: str, side: str) -> SideNoise:
        """The row of one objective and side.

        Raises:
            KeyError: If there is none.
        """
        for row in self.sides:
            if (row.objective, row.side) == (objective, side):
                return row
        known = sorted({(row.objective, row.side) for row in self.sides})
        raise KeyError(f"no row {(objective, side)}; there are {known}")

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary for each objective and parameter: ``pandas.DataFrame(noise.to_rows())``."""
        rows = []
        for objective, found in self.parameters.items():
            cost = self.seconds[objective]
            for name, noise in found.items():
                variance = float(noise.variance.sum())
                rows.append(
                    {
                        "objective": objective,
                        "side": noise.side,
                        "parameter": name,
                        "numbers": noise.mean.numel(),
                        "mean_norm": float(noise.mean.norm()),
                        "variance": variance,
                        "snr": noise.snr,
                        "cosine": noise.cosine,
                        "seconds": cost,
                        "variance_cost": variance * cost,
                    }
                )
        return rows

    def side_rows(self) -> list[dict[str, Any]]:
        """A dictionary for each objective and side."""
        return [
            {f.name: getattr(row, f.name) for f in fields(row)}
            | {"variance_cost": row.variance_cost}
            for row in self.sides
        ]

    def plot(self) -> Picture:
        """Variance, signal-to-noise ratio, cosine and variance times cost, by objective and side.

        Returns:
            A figure of no window: a notebook shows it by itself, ``savefig`` writes it.
        """
        figure = Picture(figsize=(8.0, 5.5), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True).ravel()
        quantities = {
            "variance": "variance (nats² per datum²)",
            "snr": "signal-to-noise ratio",
            "cosine": "cosine to the reference",
            "variance_cost": "variance × seconds",
        }
        sides = list(dict.fromkeys(row.side for row in self.sides))
        for axes, (name, label) in zip(panels, quantities.items(), strict=True):
            drawn = [v for side in sides for v in self._points(axes, name, side, sides)]
            if name != "cosine" and drawn and min(drawn) > 0:
                axes.set_yscale("log")
            axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
            places = range(len(self.objectives))
            axes.set_xticks(places, self.objectives, rotation=20, ha="right", fontsize=8)
            axes.set_xlim(-0.5, len(self.objectives) - 0.5)
        panels[1].axhline(self._floor, color="0.6", linestyle=":", label="no signal")
        panels[1].legend(frameon=False, fontsize=8)
        return figure

    def _points(self, axes: Any, name: str, side: str, sides: list[str]) -> list[float]:
        """Points of one side in one panel, for the values that can be shown."""
        offset = 0.1 * (sides.index(side) - (len(sides) - 1) / 2)
        values = [
            (place + offset, getattr(row, name))
            for place, objective in enumerate(self.objectives)
            for row in self.sides
            if (row.objective, row.side) == (objective, side)
        ]
        finite = [(place, value) for place, value in values if math.isfinite(value)]
        color = f"C{sides.index(side)}"
        places, heights = zip(*finite, strict=True) if finite else ((), ())
        axes.plot(places, heights, marker="o", linestyle=":", label=side, color=color)
        return list(heights)

    @property
    def _floor(self) -> float:
        return math.sqrt(2 / (math.pi * self.draws))

    def _notes(self) -> str:
        errors = ", ".join(f"{e:.2g} ({side})" for side, e in self.reference_error.items())
        return (
            f"{self.draws} draws, seed {self.seed}, nats per datum; SNR without any signal: "
            f"{self._floor:.2g}; relative error of the reference: {errors}"
        )

    def __repr__(self) -> str:
        table = [(*_HEADINGS, _COST), *(row.cells for row in self.sides)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        return "\n".join(["GradientNoise", *lines, self._notes()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in (*_HEADINGS, _COST))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells) + "</tr>"
            for row in self.sides
        )
        png = io.BytesIO()
        self.plot().savefig(png, format="png", dpi=90)
        data = base64.b64encode(png.getvalue()).decode()
        return (
            f"<div><table><tr>{head}</tr>{body}</table><p>{html.escape(self._notes())}</p>"
            f"<img alt='gradient noise' src='data:image/png;base64,{data}'/></div>"
        )


def mean_ratio(mean: Tensor, variance: Tensor) -> float:
    """Average of |mean| / standard deviation over the numbers that have either.

    Example:
        >>> import torch
        >>> mean_ratio(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 4.0, 0.0]))
        1.5
    """
    alive = (mean != 0) | (variance > 0)
    if not bool(alive.any()):
        return math.nan
    return float((mean[alive].abs() / variance[alive].sqrt()).mean())


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else {math.inf: "inf"}.get(value, "-")
