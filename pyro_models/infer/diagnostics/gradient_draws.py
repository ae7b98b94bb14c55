"""Gradients of a pair, drawn one by one and added up as they come."""

import copy
import functools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from pyro_models.errors import NonFiniteError, OptionError
from pyro_models.infer.dry_run import dry_run, preserved_buffers, preserved_rng
from pyro_models.infer.inspection import unwrapped
from pyro_models.infer.nonfinite import all_finite
from pyro_models.infer.objectives import Objective
from pyro_models.infer.random_state import seed_all
from pyro_models.infer.scope import Scope
from pyro_models.infer.weights import LogWeights, Program

# Gradients that wait for their cosines together: at most so many, and so many numbers.
_MOST_ROWS, _MOST_NUMBERS = 64, 2**22


@dataclass
class OpenPair:
    """A pair, its batch, and the parameters that are differentiated."""

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that are differentiated, by name."""
    sides: dict[str, str] = field(default_factory=dict)
    """Side by parameter."""

    @classmethod
    @contextmanager
    def opened(
        cls, model: Program, guide: Program, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> Iterator["OpenPair"]:
        """The pair with a parameter store of its own, and all else put back afterwards."""
        pair = cls(model, guide, args, kwargs)
        scope = _filled_scope()
        with ExitStack() as stack:
            stack.enter_context(preserved_rng(unwrapped(model), unwrapped(guide), args))
            stack.enter_context(preserved_buffers(unwrapped(model), unwrapped(guide)))
            pair._find(scope)
            stack.enter_context(preserved_rng(pair.parameters))
            stack.enter_context(scope())
            stack.enter_context(torch.enable_grad())
            yield pair

    def _find(self, scope: Scope) -> None:
        programs = {"model": unwrapped(self.model), "guide": unwrapped(self.guide)}
        owners: dict[int, set[str]] = {}
        for side, program in programs.items():
            if isinstance(program, nn.Module):
                # Before the run: distributions would refuse NaN with less to say.
                _check_finite({f"{side}.{n}": p for n, p in program.named_parameters()})
                for own in program.parameters():
                    owners.setdefault(id(own), set()).add(side)

        def run() -> None:
            with poutine.trace(param_only=True) as by_guide:
                drawn = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
            with poutine.trace(param_only=True) as by_model:
                poutine.replay(self.model, trace=drawn)(*self.args, **self.kwargs)
            for side, seen in (("guide", by_guide), ("model", by_model)):
                for site in seen.trace.nodes.values():
                    value: Any = site["value"]
                    owners.setdefault(id(value.unconstrained()), set()).add(side)

        with dry_run(self.model, self.guide, self.args, self.kwargs):
            self.parameters = scope.collect(programs, run)
        if not self.parameters:
            raise OptionError(
                "neither model nor guide has a parameter to differentiate; make one with "
                "pyro.param or torch.nn.Parameter, with requires_grad=True"
            )
        _check_finite(self.parameters)
        for name, parameter in self.parameters.items():
            found = owners[id(parameter)]
            self.sides[name] = next(iter(found)) if len(found) == 1 else "both"

    @property
    def device(self) -> torch.device:
        """Where the first parameter is, and all gradients are gathered."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The widest type among the parameters."""
        return functools.reduce(torch.promote_types, (p.dtype for p in self.parameters.values()))

    @property
    def sizes(self) -> list[int]:
        """Numbers in each parameter."""
        return [parameter.numel() for parameter in self.parameters.values()]

    def seed(self, seed: int) -> None:
        """Seed what the programs draw from."""
        seed_all(self.device, seed)

    def shaped(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat gradient by parameter, each of the parameter's shape."""
        pieces = flat.split(self.sizes)
        return {
            name: piece.reshape(parameter.shape).clone()
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def gradient(self, name: str, objective: Objective) -> tuple[Tensor, float]:
        """One draw of the bound's gradient per datum, flat, and the seconds that it took."""
        leaves = list(self.parameters.values())
        start = self._clock()
        weights = objective.weights(self.model, self.guide, self.args, self.kwargs)
        surrogate = objective.estimate(weights).surrogate / weights.num_data
        if not surrogate.requires_grad:
            raise OptionError(f"objective {name!r} does not depend on any parameter of the pair")
        found = torch.autograd.grad(surrogate, leaves, allow_unused=True)
        seconds = self._clock() - start
        parts = [
            (torch.zeros_like(leaf) if part is None else part).reshape(-1).to(self.device)
            for leaf, part in zip(leaves, found, strict=True)
        ]
        flat = torch.cat(parts)
        if not all_finite([flat]):
            raise self._not_finite(name, parts, weights)
        return flat, seconds

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _not_finite(self, name: str, parts: list[Tensor], weights: LogWeights) -> NonFiniteError:
        named = zip(self.parameters, parts, strict=True)
        bad = tuple(parameter for parameter, part in named if not bool(part.isfinite().all()))
        sites = {**weights.guide_sites, **weights.model_sites}
        at = [n for n, s in sites.items() if not bool(s.log_prob.isfinite().all())]
        where = f", and the log-density of site(s) {at}" if at else ""
        return NonFiniteError(
            f"objective {name!r}: the gradient of {list(bad)} is NaN or infinite{where}. Keep "
            "scales away from zero, and check that the data lie in the likelihood's support.",
            sites=(*at, *bad),
        )


def _check_finite(parameters: Mapping[str, Tensor]) -> None:
    bad = tuple(name for name, value in parameters.items() if not bool(value.isfinite().all()))
    if bad:
        raise NonFiniteError(
            f"the parameters {list(bad)} are NaN or infinite; go back to a fit that was not",
            sites=bad,
        )


def _filled_scope() -> Scope:
    """A parameter store with what programs made by ``pyro.param`` so far, and nothing of modules.

    Modules keep their parameters themselves; what Pyro's store has under their names may be that
    of an earlier module, which it would write into the present one.
    """
    store = pyro.get_param_store()
    own = {n: p for n, p in store._params.items() if not isinstance(p, nn.Parameter)}
    constraints = {n: store._constraints[n] for n in own}
    scope = Scope()
    with scope():
        store._params.update(own)
        store._param_to_name.update({p: n for n, p in own.items()})
        store._constraints.update(constraints)
    return scope


class Moments:
    """Mean and variance of gradients as they come, by Welford's recursion in float64."""

    def __init__(self, size: int, device: torch.device):
        self.count = 0
        """Gradients so far."""
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        """Their mean."""
        self._squares = torch.zeros_like(self.mean)

    def add(self, drawn: Float[Tensor, " size"]) -> None:
        """Take in a gradient."""
        # One by one: on the CPU torch.var_mean over the rows of a chunk takes ten times as long.
        self.count += 1
        drawn = drawn.double()
        gap = drawn - self.mean
        self.mean.add_(gap, alpha=1 / self.count)
        self._squares.addcmul_(gap, drawn - self.mean)

    @property
    def variance(self) -> Tensor:
        """Their variance, with divisor count - 1."""
        return self._squares / (self.count - 1)


@dataclass
class Tally:
    """What the draws of one objective add up to."""

    moments: Moments
    """Mean and variance of the gradient, flat."""
    seconds: list[float]
    """Of each draw."""
    cosines: dict[str, float]
    """Sum over draws by parameter, and by side."""


def tally_draws(
    pair: OpenPair,
    name: str,
    objective: Objective,
    draws: int,
    warm_up: int,
    target: Tensor | None,
    bar: Any,
) -> Tally:
    """Draw gradients and add them up."""
    objective = copy.deepcopy(objective)  # its moving averages and baselines stay as they were
    size = sum(pair.sizes)
    tally = Tally(Moments(size, pair.device), [], {})
    chunk = max(1, min(_MOST_ROWS, _MOST_NUMBERS // size, draws))
    rows = torch.empty(chunk, size, dtype=pair.dtype, device=pair.device)
    bar.total += draws + warm_up
    bar.set_description(name)
    for _ in range(warm_up):
        pair.gradient(name, objective)
        bar.update()
    for start in range(0, draws, chunk):
        count = min(chunk, draws - start)
        for row in rows[:count]:
            drawn, seconds = pair.gradient(name, objective)
            row.copy_(drawn)
            tally.moments.add(drawn)
            tally.seconds.append(seconds)
            bar.update()
        if target is not None:
            for key, value in _cosines(pair, rows[:count], target).items():
                tally.cosines[key] = tally.cosines.get(key, 0.0) + value
    return tally


def _cosines(pair: OpenPair, rows: Float[Tensor, "rows size"], target: Tensor) -> dict[str, float]:
    """Sum over rows of the cosine to the target, by parameter and by side."""
    target = target.to(rows.dtype)
    dots: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    pieces = zip(rows.split(pair.sizes, 1), target.split(pair.sizes), strict=True)
    for (name, side), (row, goal) in zip(pair.sides.items(), pieces, strict=True):
        values = ((row @ goal), torch.linalg.vector_norm(row, dim=1).square(), goal @ goal)
        for sums, value in zip((dots, lengths, norms), values, strict=True):
            sums[f"parameter {name}"] = value.double()
            sums[side] = value.double() + sums.get(side, 0.0)
    found = {}
    for key, dot in dots.items():
        cosine = (dot / (lengths[key] * norms[key]).sqrt()).nan_to_num(nan=0.0)
        found[key] = float(cosine.sum()) if norms[key] > 0 else math.nan
    return found
