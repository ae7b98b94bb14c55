"""The table at the end of a run: how good the fit is, beside two simple models."""

import copy
import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_models import clustering
from pyro_models.baselines import Baseline, Margin
from pyro_models.cli import classes
from pyro_models.cli.fitted import Fitted
from pyro_models.cli.latents import Latents, latents_of, responsibilities
from pyro_models.cli.recipe import Prepared
from pyro_models.errors import DataError
from pyro_models.infer import (
    ELBO,
    AnalyticKL,
    EffectiveSampleSizeWarning,
    Enumerated,
    Objective,
    Supervised,
)
from pyro_models.infer.diagnostics import active_units
from pyro_models.infer.likelihood import COLLAPSED
from pyro_models.infer.random_state import isolated
from pyro_models.selection import HeldOut, held_out
from pyro_models.selection.criteria import HasLogProb, exact_log_prob

# Draws from the guide for log p(x), for all held-out data together and for each.
_ALL_DRAWS, _MOST_DRAWS, _FEWEST_DRAWS = 500_000, 2_000, 100
_ELBO_PARTICLES = 20
_BATCH = 500


@runtime_checkable
class HasClosedForm(Protocol):
    """A model whose maximum of the likelihood has a closed form."""

    def maximize_likelihood(self, x: Tensor) -> None:
        """Set the parameters to it."""


@dataclass(frozen=True)
class Row:
    """One model in the table; nats per datum, higher is better."""

    name: str
    """What it is."""
    elbo: float | None
    """Bound on log p(x); None for a model whose log p(x) is exact."""
    log_p: float
    """Mean of log p(x) over held-out data."""
    standard_error: float
    """Standard error of that mean, over data."""
    margin: Margin | None
    """By how much the pair is better, datum by datum; None for the pair itself."""


@dataclass(frozen=True)
class Report:
    """How good a fit is."""

    data: str
    """Name of the data set."""
    kind: str
    """What log p(x) is of."""
    held_out: int
    """Data that it was judged by."""
    how: str
    """How log p(x) was found."""
    collapsed: int
    """Held-out data whose estimate rests on about one draw, and is probably too low."""
    rows: tuple[Row, ...]
    """The pair, then the baselines, best first."""
    used: str
    """How much of the latents is used; empty if there are none of the data's own."""
    seconds: float
    """Wall time of the fit."""
    without: str
    """Why there are no baselines; empty if there are."""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON has it, which knows no NaN."""
        return _finite(asdict(self))

    def notes(self) -> list[str]:
        """What to know before reading the table."""
        notes = [
            f"{self.held_out} held-out data of {self.data}; nats per datum, higher is better; "
            f"{self.kind}, {self.how}"
        ]
        if self.collapsed:
            notes.append(
                f"for {self.collapsed} of {self.held_out} data the estimate of log p(x) rests on "
                "about one draw, and is probably too low"
            )
        if self.without:
            notes.append(f"no baselines: {self.without}")
        return notes

    def table(self) -> str:
        """The table, as aligned plain text.

        Example:
            >>> rows = (
            ...     Row("vae", -62.25, -58.5, 1.0, None),
            ...     Row("normal", None, -70.0, 1.25, Margin(11.5, 0.5)),
            ... )
            >>> used = "active units 14 of 16"
            >>> print(Report("digits", "", 180, "exact", 0, rows, used, 9.87, "").table())
                       ELBO        log p(x)   vae better by
            vae      -62.25   -58.50 ± 1.00
            normal            -70.00 ± 1.25    11.50 ± 0.50
            active units 14 of 16, fitted in 9.9 seconds
        """
        pair = self.rows[0].name
        cells = [("", "ELBO", "log p(x)", f"{pair} better by" if len(self.rows) > 1 else "")]
        for row in self.rows:
            elbo = "" if row.elbo is None else f"{row.elbo:.2f}"
            margin = row.margin
            better = "" if margin is None else _plus_minus(margin.mean, margin.standard_error)
            cells.append((row.name, elbo, _plus_minus(row.log_p, row.standard_error), better))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in cells
        ]
        lines.append(", ".join(filter(None, [self.used, f"fitted in {self.seconds:.1f} seconds"])))
        return "\n".join(lines)


def judge(pair: Fitted, name: str, prepared: Prepared) -> Report:
    """Judge a fitted pair by the test part, with draws that are the same at every call.

    Args:
        pair: The pair.
        name: What the pair is called.
        prepared: The data.

    Raises:
        NonFiniteError: If a density is NaN or infinite.
    """
    test = prepared.parts.test
    x = prepared.seen(test).to(pair.device)
    draws = min(_MOST_DRAWS, max(_FEWEST_DRAWS, _ALL_DRAWS // len(x)))
    with isolated(pair.device, prepared.seed), warnings.catch_warnings():
        # The report says itself how many estimates rest on one draw.
        warnings.simplefilter("ignore", EffectiveSampleSizeWarning)
        latents = latents_of(pair, x)
        estimate = held_out(pair.model, x, pair.guide, num_samples=draws)
        if estimate.bound is None:
            elbo = _elbo(pair, x, len(prepared.parts.train))
        else:  # log p(x | theta) on average over the posterior
            elbo = float(estimate.bound.mean())
        used = _used(pair, prepared, latents)
    fitted = Row(name, elbo, estimate.mean, estimate.standard_error, None)
    simple, without = _baselines(prepared)
    simple = (*simple, *_closed_form(pair, prepared))
    rows = [Row(b.name, None, b.mean, b.standard_error, b.margin(estimate.value)) for b in simple]
    sizes = estimate.effective_sample_size
    return Report(
        data=test.name,
        kind=prepared.kind,
        held_out=len(x),
        how=_how(estimate, latents),
        collapsed=0 if sizes is None else int((sizes < COLLAPSED).sum()),
        rows=(fitted, *sorted(rows, key=lambda row: -row.log_p)),
        used=used,
        seconds=pair.seconds,
        without=without,
    )


def _how(estimate: HeldOut, latents: Latents) -> str:
    if estimate.num_samples is None:
        return "exact"
    if latents.shared:
        return f"averaged over {estimate.num_samples} draws of the parameters' posterior"
    return f"by importance sampling with {estimate.num_samples} draws a datum"


def _used(pair: Fitted, prepared: Prepared, latents: Latents) -> str:
    """How many latent units follow the data, or how many components hold some."""
    told = _clusters if prepared.known is None else classes.accuracy
    clusters = told(pair, prepared, latents)
    if latents.codes:
        x = prepared.seen(prepared.parts.test).to(pair.device)
        # By share: codes such as fractions of a stick have priors of variance far below 1.
        active = active_units(pair.guide, x, relative=True).active
        found = [active[name] for name in latents.codes]
        count, total = sum(int(f.sum()) for f in found), sum(f.numel() for f in found)
        units_used = f"active units {count} of {total}"
        return ", ".join(filter(None, [units_used, clusters]))
    return clusters


def _clusters(pair: Fitted, prepared: Prepared, latents: Latents) -> str:
    """How many components hold some of the training data, and how they agree with labels."""
    train = prepared.parts.train
    shares = responsibilities(pair, prepared.seen(train).to(pair.device), latents)
    if shares is None:
        return ""
    judged = clustering.report(shares, train.labels if latents.codes else None)
    used = f"components in use {judged.used_by_argmax} of {judged.num_clusters}"
    if judged.accuracy is None:
        return used
    return (
        f"{used}, clusters that agree with labels {judged.accuracy:.0%} "
        f"(NMI {judged.normalized_mutual_information:.2f})"
    )


def _closed_form(pair: Fitted, prepared: Prepared) -> tuple[Baseline, ...]:
    """The same model at its maximum in closed form, where it has one and it is known."""
    if not isinstance(pair.model, HasClosedForm) or not isinstance(pair.model, HasLogProb):
        return ()
    other = copy.deepcopy(pair.model)
    other.maximize_likelihood(prepared.seen(prepared.parts.train).to(pair.device))
    x = prepared.seen(prepared.parts.test).to(pair.device)
    return (Baseline("closed form", exact_log_prob(other, (x,))),)


def _elbo(pair: Fitted, x: Tensor, num_data: int) -> float:
    """The bound over all of ``x``, in nats per datum."""
    given, over = pair.objective, tuple[str, ...]()
    if isinstance(given, Supervised):
        given = given.objective
    if isinstance(given, Enumerated):
        over, given = given.over, given.objective
    # An exact posterior's bound is log p(x) at every draw, unless a KL in closed form spoils that.
    kl = given.kl if isinstance(given, ELBO) else AnalyticKL()
    summed = given.summed if isinstance(given, ELBO) else ()
    objective: Objective = ELBO(_ELBO_PARTICLES, kl, summed)
    if not summed:
        objective = Enumerated(objective, over)
    total = 0.0
    with torch.no_grad():
        for batch in x.split(min(_BATCH, num_data)):
            loss = objective.loss(pair.model, pair.guide, batch, num_data=num_data)
            total -= loss / num_data * len(batch)
    return total / len(x)


def _baselines(prepared: Prepared) -> tuple[tuple[Baseline, ...], str]:
    """The baselines, or why there are none."""
    try:
        return prepared.baselines(), ""
    except DataError as error:
        return (), str(error)


def _plus_minus(mean: float, standard_error: float) -> str:
    return f"{mean:z.2f} ± {standard_error:.2f}"


def _finite(value: Any) -> Any:
    """The same with None for what JSON cannot say."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
