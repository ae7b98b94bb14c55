"""Models side by side: a table and a picture of every criterion that each of them allows."""

import html
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_models import plots
from pyro_models.errors import OptionError
from pyro_models.infer.inspection import as_arguments
from pyro_models.infer.weights import Program
from pyro_models.plots import Picture
from pyro_models.selection.criteria import HasLogProb, InformationCriteria, information_criteria
from pyro_models.selection.draws import latents_of
from pyro_models.selection.loo import Loo, ParetoWarning, psis_loo
from pyro_models.selection.predictive import MEMORY, Evidence, HeldOut, evidence, held_out

_MARK = "*"


@dataclass(frozen=True)
class Candidate:
    """What is known of one model; None for what it does not allow."""

    name: str
    """What it is called."""
    held_out: HeldOut
    """log p(x) of held-out data."""
    criteria: InformationCriteria | None
    """By the training data, where log p(x) is exact and the parameters are counted."""
    loo: Loo | None
    """By the training data, where the latents that all data share have a posterior."""
    evidence: Evidence | None
    """Of the training data, likewise."""


@dataclass(frozen=True)
class Margin:
    """By how much a model is behind the best, in nats per datum."""

    mean: float
    """Mean over held-out data of the difference in log p(x); 0 for the best."""
    standard_error: float
    """Of that mean, from the differences datum by datum."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Fitted models, compared. Shown as a table; ``plot()`` draws it."""

    candidates: tuple[Candidate, ...]
    """In the order given."""
    num_train: int
    """Training data."""
    num_held_out: int
    """Held-out data."""

    @property
    def best(self) -> str:
        """The name of the model with the highest held-out log p(x)."""
        return self._leader.name

    @property
    def _leader(self) -> Candidate:
        return max(self.candidates, key=lambda c: c.held_out.mean)

    def __getitem__(self, name: str) -> Candidate:
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no model {name!r}; they are {[c.name for c in self.candidates]}")

    def behind(self, name: str) -> Margin:
        """By how much a model is worse than the best on held-out data, datum by datum.

        Args:
            name: One of the models.
        """
        gap = self._leader.held_out.value - self[name].held_out.value
        error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else math.nan
        return Margin(float(gap.mean()), error)

    def table(self) -> str:
        """The table, as aligned plain text.

        Per-datum figures are nats, higher is better; AIC and BIC are totals, lower is better. A
        star marks leave-one-out estimates whose weights cannot be trusted.
        """
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in cells
        )

    def _cells(self) -> list[list[str]]:
        """Header and rows, without columns that no model has."""
        columns = {"": [c.name for c in self.candidates]}
        for name, show in _COLUMNS.items():
            found = [show(c) for c in self.candidates]
            if any(found):
                columns[name] = found
        columns["behind by"] = [self._behind(c.name) for c in self.candidates]
        rows = zip(*columns.values(), strict=True)
        return [list(columns), *map(list, rows)]

    def _behind(self, name: str) -> str:
        if name == self.best:
            return "best"
        margin = self.behind(name)
        return f"{margin.mean:.3f} ± {margin.standard_error:.3f}"

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        header, *rows = self._cells()
        best = self.best
        lines = [_html_row(header, "th")]
        lines += [_html_row(row, "td", bold=row[0] == best) for row in rows]
        about = (
            f"nats per datum, higher is better ({self.num_train} training data, "
            f"{self.num_held_out} held out); AIC and BIC in all, lower is better"
        )
        return f"<div><table>{''.join(lines)}</table><p>{html.escape(about)}</p></div>"

    def plot(self) -> Picture:
        """Every criterion against the model, on one scale: nats per datum, higher is better.

        AIC and BIC are drawn as -AIC/2N and -BIC/2N: the log-likelihood less what is charged.
        """
        count = self.num_train
        curves: dict[str, list[float | None]] = {
            "training log p(x)": [
                None if c.criteria is None else c.criteria.mean_log_likelihood
                for c in self.candidates
            ],
            "-AIC / 2N": [
                None if c.criteria is None else -c.criteria.aic / (2 * count)
                for c in self.candidates
            ],
            "-BIC / 2N": [
                None if c.criteria is None else -c.criteria.bic / (2 * count)
                for c in self.candidates
            ],
            "leave one out": [None if c.loo is None else c.loo.mean for c in self.candidates],
            "evidence (bound)": [
                None if c.evidence is None else c.evidence.per_datum for c in self.candidates
            ],
            "held-out log p(x)": [c.held_out.mean for c in self.candidates],
        }
        return plots.criteria(
            [c.name for c in self.candidates],
            {name: values for name, values in curves.items() if any(v is not None for v in values)},
            errors={"held-out log p(x)": [c.held_out.standard_error for c in self.candidates]},
        )


def _size(candidate: Candidate) -> str:
    criteria = candidate.criteria
    return "" if criteria is None else str(criteria.num_free_parameters)


def _train(candidate: Candidate) -> str:
    criteria = candidate.criteria
    return "" if criteria is None else f"{criteria.mean_log_likelihood:.3f}"


def _aic(candidate: Candidate) -> str:
    return "" if candidate.criteria is None else f"{candidate.criteria.aic:.1f}"


def _bic(candidate: Candidate) -> str:
    return "" if candidate.criteria is None else f"{candidate.criteria.bic:.1f}"


def _evidence(candidate: Candidate) -> str:
    return "" if candidate.evidence is None else f"{candidate.evidence.per_datum:.3f}"


def _elbo(candidate: Candidate) -> str:
    found = candidate.evidence
    return "" if found is None else f"{found.elbo / found.num_data:.3f}"


def _loo(candidate: Candidate) -> str:
    found = candidate.loo
    if found is None:
        return ""
    mark = _MARK if found.num_bad else ""
    return f"{found.mean:.3f} ± {found.standard_error:.3f}{mark}"


def _held_out(candidate: Candidate) -> str:
    return f"{candidate.held_out.mean:.3f} ± {candidate.held_out.standard_error:.3f}"


_COLUMNS: dict[str, Callable[[Candidate], str]] = {
    "parameters": _size,
    "training log p(x)": _train,
    "AIC": _aic,
    "BIC": _bic,
    "ELBO": _elbo,
    "evidence": _evidence,
    "leave one out": _loo,
    "held-out log p(x)": _held_out,
}


def _html_row(cells: list[str], tag: str, bold: bool = False) -> str:
    weight = ";font-weight:bold" if bold else ""
    first, *rest = (html.escape(cell) for cell in cells)
    shown = f"<{tag} style='text-align:left{weight}'>{first}</{tag}>"
    shown += "".join(f"<{tag} style='text-align:right{weight}'>{cell}</{tag}>" for cell in rest)
    return f"<tr>{shown}</tr>"


def compare(
    candidates: Mapping[str, Any],
    train: Any,
    held_out: Any,
    *,
    num_samples: int = 1000,
    max_memory: int = MEMORY,
) -> Comparison:
    """Compare fitted models by every criterion that they allow.

    Args:
        candidates: By name: a model with ``log_prob(x)``, or model and guide as a tuple or as what
            has both by these names (``Pair``, ``Fit``).
        train: The data that they were fitted to.
        held_out: Data that they were not fitted to.
        num_samples: Draws from a guide.
        max_memory: Bytes for tensors.

    Raises:
        OptionError: If there is nothing to compare, or a candidate is neither.
        DataError: If data are empty or not finite.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> class Bell(torch.nn.Module):
        ...     def __init__(self, scale, size):
        ...         super().__init__()
        ...         self.scale, self.num_free_parameters = scale, size
        ...     def log_prob(self, x):
        ...         return dist.Normal(0.0, self.scale).log_prob(x)
        >>> x = torch.linspace(-2.0, 2.0, 20)
        >>> found = compare({"fixed": Bell(1.0, 0), "fitted": Bell(1.2140, 1)}, x, x / 2)
        >>> print(found)
                 parameters   training log p(x)    AIC    BIC   held-out log p(x)       behind by
        fixed             0              -1.656   66.2   66.2      -1.103 ± 0.038            best
        fitted            1              -1.613   66.5   67.5      -1.238 ± 0.026   0.135 ± 0.012
        >>> found.best
        'fixed'
    """
    if not candidates:
        raise OptionError("there is nothing to compare; give at least one fitted model by name")
    pairs = {name: _pair(name, given) for name, given in candidates.items()}
    model, _ = next(iter(pairs.values()))
    found = tuple(
        _candidate(name, *pair, train, held_out, num_samples, max_memory)
        for name, pair in pairs.items()
    )
    size = len(as_arguments(train, model)[0])
    return Comparison(found, size, len(found[0].held_out.value))


def _pair(name: str, given: Any) -> tuple[Any, Program | None]:
    """Model and guide, if there is one."""
    if isinstance(given, tuple) and len(given) == 2:
        return given
    if hasattr(given, "model") and hasattr(given, "guide"):
        return given.model, given.guide
    if isinstance(given, HasLogProb) or (callable(given) and not isinstance(given, nn.Module)):
        return given, None
    raise OptionError(
        f"{name!r} is {type(given).__name__}, which has no log_prob(x); give (model, guide), or a "
        "pair or fit, which have both"
    )


def _candidate(
    name: str,
    model: Program,
    guide: Program | None,
    train: Any,
    unseen: Any,
    num_samples: int,
    max_memory: int,
) -> Candidate:
    known, judged, bound = None, None, None
    args = as_arguments(train, model, *(() if guide is None else (guide,)))
    latents = None if guide is None else latents_of(guide, args)
    if isinstance(model, HasLogProb) and not (latents and latents.shared):
        if getattr(model, "num_free_parameters", None) is not None:
            known = information_criteria(model, train)
    elif guide is not None and latents is not None and latents.spread and not latents.points:
        bound = evidence(model, guide, args, num_samples=num_samples, max_memory=max_memory)
        if not latents.continuous:
            with warnings.catch_warnings():
                # The table marks what cannot be trusted.
                warnings.simplefilter("ignore", ParetoWarning)
                judged = psis_loo(model, guide, args, num_samples, max_memory=max_memory)
    tested = held_out(model, unseen, guide, num_samples=num_samples, max_memory=max_memory)
    return Candidate(name, tested, known, judged, bound)
