"""The record of a fit: what was trained, how it went, why it stopped."""

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_models.infer.curves import draw_bound, draw_kl
from pyro_models.infer.stopping import StopReason
from pyro_models.picture import Picture


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a fit."""

    step: int
    """Steps done by the end of the epoch."""
    epoch: int
    """Number of the epoch, from 1."""
    elbo: float
    """Mean over the epoch of the objective's bound on the training data, nats per datum."""
    validation: float | None
    """Bound on the held-out data at the end of the epoch, nats per datum; None if not evaluated."""
    lr: float
    """Learning rate of the epoch's last step (of the optimiser's first group)."""
    kl_weight: float | dict[str, float]
    """KL weight of the epoch's last step, or weights by name of a latent; the bounds here always
    have weight 1."""
    seconds: float
    """Wall time since the fit began, earlier parts of a resumed fit included."""
    kl: dict[str, tuple[float, ...]] | None = None
    """KL of guide from prior on the held-out data by latent and dimension, nats per datum; None
    where ``validation`` is. Latents at which the guide has a point mass have none."""


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """What ``fit`` returns. Shown as a table and curves in a notebook."""

    model: Callable[..., Any]
    """The trained model, bound to this fit's parameters: call it like the model itself."""
    guide: Callable[..., Any]
    """The trained guide, bound to this fit's parameters."""
    parameters: dict[str, Tensor]
    """The trained tensors by name, unconstrained; without gradient, in the parameters' memory."""
    history: tuple[EpochRecord, ...]
    """One record an epoch; ``pandas.DataFrame(fit.history)`` makes a table of it."""
    steps: int
    """Optimisation steps done."""
    num_data: int | None
    """Training data, if known."""
    best_step: int | None
    """Step at which the held-out bound was highest; None without validation."""
    best_validation: float | None
    """The highest held-out bound, nats per datum; None without validation."""
    restored_best: bool
    """Whether the parameters are those of ``best_step``, as early stopping leaves them."""
    wall_time: float
    """Seconds, earlier parts of a resumed fit included."""
    stop_reason: StopReason
    """Why it stopped."""
    stop_message: str
    """What a callback said when it asked to stop; empty otherwise."""
    seed: int
    """The seed, given or drawn: with the same data and options it repeats the fit."""
    compiled: bool
    """Whether the steps ran as a compiled graph."""
    fallback_reason: str | None
    """Why steps that were to be compiled ran eagerly; None if they did not."""

    @property
    def elbo(self) -> float | None:
        """Mean training bound of the last epoch, nats per datum; None before the first ends."""
        return self.history[-1].elbo if self.history else None

    @property
    def validation(self) -> float | None:
        """The latest held-out bound, nats per datum; None if there is none."""
        values = [e.validation for e in self.history if e.validation is not None]
        return values[-1] if values else None

    def plot(self) -> Picture:
        """Bound by step, training and held-out, and the learning rate under it.

        Where held-out data were evaluated, a third panel has the KL by latent dimension: one whose
        KL is zero says nothing of the data.

        Returns:
            A figure of no window: a notebook shows it by itself, ``savefig`` writes it.
        """
        evaluated = [(e.step, e.kl) for e in self.history if e.kl]
        height, ratios = (6.5, (4, 1, 3)) if evaluated else (4.5, (4, 1))
        figure = Picture(figsize=(7.0, height), layout="constrained")
        panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
        bound, rate = panels[:2]
        steps = [e.step for e in self.history]
        held_out = [(e.step, e.validation) for e in self.history if e.validation is not None]
        if self.best_step is not None:
            bound.axvline(self.best_step, color="0.6", linestyle=":", label="best held out")
        draw_bound(
            bound,
            steps,
            [e.elbo for e in self.history],
            [step for step, _ in held_out],
            [value for _, value in held_out],
        )
        rate.plot(steps, [e.lr for e in self.history], color="0.4")
        rate.set_ylabel("learning rate")
        if evaluated:
            draw_kl(panels[2], [step for step, _ in evaluated], [kl for _, kl in evaluated])
        panels[-1].set_xlabel("step")
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _rows(self) -> list[tuple[str, str]]:
        """Name and value of what both forms of display tell."""
        reason = self.stop_reason.value
        rows = [
            ("stopped", f"{reason}: {self.stop_message}" if self.stop_message else reason),
            ("steps", f"{self.steps} in {len(self.history)} epochs"),
            ("ELBO", "none yet" if self.elbo is None else f"{self.elbo:.4f} nats per datum"),
        ]
        if self.best_validation is not None:
            kept = ", restored" if self.restored_best else ""
            where = f"best {self.best_validation:.4f} at step {self.best_step}{kept}"
            rows.append(("held-out", f"{self.validation:.4f} nats per datum ({where})"))
        size = sum(t.numel() for t in self.parameters.values())
        how = "compiled" if self.compiled else "eager"
        if self.fallback_reason is not None:
            how += f", not compiled: {self.fallback_reason}"
        rows.append(("parameters", f"{size} in {len(self.parameters)} tensors"))
        rows.append(("time", f"{self.wall_time:.1f} s ({how})"))
        rows.append(("seed", str(self.seed)))
        return rows

    def __repr__(self) -> str:
        return "\n".join(["Fit", *(f"  {name:<10} {value}" for name, value in self._rows())])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        picture = ""
        if self.history:
            png = io.BytesIO()
            self.plot().savefig(png, format="png", dpi=90)
            data = base64.b64encode(png.getvalue()).decode()
            picture = f"<img alt='bound by step' src='data:image/png;base64,{data}'/>"
        return f"<div><table>{cells}</table>{picture}</div>"
