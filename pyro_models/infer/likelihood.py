"""log p(x) by importance sampling, with its standard error."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_models.errors import NonFiniteError, OptionError
from pyro_models.infer.inspection import as_arguments, footprint, is_amortized
from pyro_models.infer.record import LogWeights
from pyro_models.infer.weights import Program, log_weights
from pyro_models.options import positive_int

COLLAPSED = 2.0
"""Effective sample size below which one draw carries the estimate."""

TOLERATED = 0.1
"""Part of the data that may have a collapsed estimate without a warning."""


class EffectiveSampleSizeWarning(UserWarning):
    """The importance weights of much of the data rest on one draw: log p(x) is understated."""


@dataclass(frozen=True)
class ImportanceSampling:
    r"""Draws from the guide, weighted by :math:`p(x, z) / q(z \mid x)`.

    Args:
        num_samples: S, draws for each datum.

    Raises:
        OptionError: If ``num_samples`` is less than 1.
    """

    num_samples: int = 1000

    def __post_init__(self) -> None:
        positive_int("num_samples", self.num_samples)


@dataclass(frozen=True)
class NaiveMonteCarlo:
    r"""Draws from the prior, weighted by :math:`p(x \mid z)`.

    .. math:: \hat p(x) = \frac1K \sum_{k=1}^K p(x \mid z_k), \quad z_k \sim p(z)

    The first estimator that one would think of. Few draws of the prior explain a datum, so that it
    needs ever more of them as the posterior is narrower than the prior: the effective sample size
    says so. The guide is not run.

    Args:
        num_samples: K, draws for each datum.

    Raises:
        OptionError: If ``num_samples`` is less than 1.
    """

    num_samples: int = 1000

    def __post_init__(self) -> None:
        positive_int("num_samples", self.num_samples)


@dataclass(frozen=True)
class LogLikelihood:
    r"""Importance-sampling estimates of :math:`\log p(x)` in nats, float64, on the CPU.

    Two errors are told apart: that of the estimates for the data at hand, which more draws make
    smaller, and that of their mean as an estimate for data yet unseen, which only more data do.
    """

    value: Float[Tensor, "*N"]
    r"""Estimated :math:`\log p(x_i)`, ``(N,)``; with global latents :math:`\log p(X)`, ``()``."""
    standard_error: Float[Tensor, "*N"]
    """Monte Carlo standard error of each value, by the delta method; infinite for one draw."""
    effective_sample_size: Float[Tensor, "*N"]
    r"""Kish's :math:`(\sum_s w_s)^2 / \sum_s w_s^2`, between 1 and ``num_samples``."""
    num_samples: int
    """S: draws from the guide for each value."""
    num_data: int
    """N: data in the set."""

    @property
    def mean(self) -> float:
        """Nats per datum."""
        return float(self.value.sum() / self.num_data)

    @property
    def mean_monte_carlo_error(self) -> float:
        """Standard error of ``mean`` for these very data, from the finite number of draws."""
        return float(self.standard_error.square().sum().sqrt() / self.num_data)

    @property
    def mean_standard_error(self) -> float:
        """Standard error of ``mean`` as an estimate for new data: that over data, draws included.

        NaN where there is only one value, be it of one datum or of all data jointly.
        """
        if self.value.numel() < 2:
            return math.nan
        return float(self.value.std() / self.num_data**0.5)


def log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int | None = None,
    *,
    method: ImportanceSampling | NaiveMonteCarlo | None = None,
    max_memory: int = 512 * 2**20,
    progress: bool = False,
) -> LogLikelihood:
    r"""Estimate :math:`\log p(x_i)` for each datum, by importance sampling from the guide.

    .. math::
        \hat p(x_i) = \frac1S \sum_{s=1}^S w_{is}, \qquad
        w_{is} = \frac{p(x_i, z_{is})}{q(z_{is} \mid x_i)}, \quad z_{is} \sim q(z \mid x_i) .

    :math:`\hat p` is unbiased, so that :math:`\log \hat p` is on average too low, by about half
    its squared standard error where that is small. With latents outside the data plate there is
    one weight for all data, and the value is the joint :math:`\log p(X)`, of shape ``()``.

    Draws and data are taken in chunks, with running sums in log space. Where the guide treats
    each datum by itself, ``x`` may be of any length; otherwise (global latents, autoguides) each
    draw is for all data at once.

    Args:
        model: A Pyro program that observes ``x``.
        guide: A Pyro program with the same arguments.
        x: Data ``(N, ...)``, or a tuple of several arguments of the programs, as for ``fit``.
        num_samples: S, draws for each datum; 1000 if neither it nor a method is given.
        method: ``NaiveMonteCarlo(K)`` draws from the prior instead of the guide;
            ``ImportanceSampling(S)`` is what ``num_samples`` is short for.
        max_memory: Bytes for the tensors of one chunk; at least one draw is held at a time.
        progress: Whether to show a progress bar.

    Returns:
        Values with standard errors and effective sample sizes.

    Raises:
        OptionError: If ``num_samples`` or ``max_memory`` is less than 1, or ``num_samples`` is
            given beside a method, which has its own.
        DataError: If the data is empty or not finite.
        NonFiniteError: If a weight is NaN or infinite; it names the sites.
        SiteMismatchError: If model and guide do not fit together.

    Warns:
        EffectiveSampleSizeWarning: If for a tenth of the data the effective sample size is below 2.

    References:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2015,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> estimate = log_likelihood(model, guide, torch.tensor([0.0, 2.0]), num_samples=10)
        >>> estimate.value  # the guide is exact, so that every weight is p(x)
        tensor([-1.2655, -2.2655], dtype=torch.float64)
        >>> round(estimate.mean, 4)
        -1.7655
    """
    method = _chosen(method, num_samples)
    num_samples = method.num_samples
    max_memory = positive_int("max_memory", max_memory)
    args = as_arguments(x, model, guide)
    if isinstance(method, NaiveMonteCarlo):
        guide = _Prior(model)
    plan = _plan(model, guide, args, num_samples, max_memory)
    parts = []
    with (
        torch.no_grad(),
        tqdm(total=len(args[0]) * num_samples, unit="draw", disable=not progress) as bar,
    ):
        for part in plan.parts(args):
            sums = _Sums()
            for count in plan.counts():
                sums.add(_weights(model, guide, part, count))
                bar.update(len(part[0]) * count)
            parts.append(sums.estimate(len(args[0])))
    whole = parts[0] if len(parts) == 1 else _joined(parts, len(args[0]))
    _warn_of_collapse(whole)
    return whole


def _chosen(
    method: ImportanceSampling | NaiveMonteCarlo | None, num_samples: int | None
) -> ImportanceSampling | NaiveMonteCarlo:
    if method is None:
        return ImportanceSampling() if num_samples is None else ImportanceSampling(num_samples)
    if num_samples is not None:
        raise OptionError(
            f"num_samples={num_samples} is given beside {method}, which has its own; leave one out"
        )
    return method


class _Prior:
    """The model's latents drawn from their prior, as a guide."""

    def __init__(self, model: Program):
        self.__wrapped__ = model.forward if isinstance(model, nn.Module) else model
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with poutine.block(hide_fn=lambda site: bool(site.get("is_observed"))):
            self._model(*args, **kwargs)


@dataclass(frozen=True)
class _Plan:
    """How many data and draws make a chunk."""

    num_data: int
    draws: int
    num_samples: int

    def parts(self, args: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(args[0]), self.num_data):
            yield tuple(arg[start : start + self.num_data] for arg in args)

    def counts(self) -> Iterator[int]:
        for start in range(0, self.num_samples, self.draws):
            yield min(self.draws, self.num_samples - start)


def _plan(
    model: Program, guide: Program, args: tuple[Tensor, ...], num_samples: int, max_memory: int
) -> _Plan:
    """Measure what one draw costs, and fill the memory with draws first, then with data."""
    size = len(args[0])
    if is_amortized(guide, args):
        one = tuple(arg[:1] for arg in args)
        with torch.no_grad():
            weights = log_weights(model, guide, *one, num_particles=2)
        if weights.batch_size == 1 and not weights.has_global_latents:
            pair = footprint(lambda: _weights(model, guide, one, 2)) // 2
            pairs = max(1, max_memory // max(1, pair))
            draws = min(num_samples, pairs)
            return _Plan(min(size, pairs // draws), draws, num_samples)
    draw = footprint(lambda: _weights(model, guide, args, 1))
    return _Plan(size, max(1, min(num_samples, max_memory // max(1, draw))), num_samples)


def _weights(model: Program, guide: Program, args: tuple[Tensor, ...], count: int) -> Tensor:
    """Log-weights of one chunk: a row a draw, a column a datum, or no column for the joint."""
    weights = log_weights(model, guide, *args, num_particles=count)
    total = weights.joint if weights.has_global_latents else weights.local
    if not weights.has_global_latents and weights.batch_size == 0:
        total = weights.global_
    if bool(torch.isnan(total).any()) or bool((total == math.inf).any()):
        raise _not_finite(weights)
    return total


def _not_finite(weights: LogWeights) -> NonFiniteError:
    densities = {"p": weights.log_p, "q": weights.log_q}
    found = [
        (side, name)
        for side, logs in densities.items()
        for name, log in logs.items()
        if not bool(torch.isfinite(log).all())
    ]
    where = ", ".join(f"log {side} of {name!r}" for side, name in found)
    return NonFiniteError(
        f"importance weights are NaN or infinite, from {where or 'their sum'}; look for a scale "
        "of zero, or for data outside the support of the likelihood",
        sites=tuple(dict.fromkeys(name for _, name in found)),
    )


class _Sums:
    r"""Running :math:`\log \sum w` and :math:`\log \sum w^2`, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        # log 0: the sums of no draws; the first draws give them their shape.
        self.first = torch.tensor(-math.inf, dtype=torch.float64)
        self.second = self.first

    def add(self, log_w: Tensor) -> None:
        log_w = log_w.cpu().double()
        self.first = torch.logaddexp(self.first, log_w.logsumexp(0))
        self.second = torch.logaddexp(self.second, (2 * log_w).logsumexp(0))
        self.count += len(log_w)

    def estimate(self, num_data: int) -> LogLikelihood:
        count = self.count
        # mean(w^2) / mean(w)^2 is 1 + the squared coefficient of variation, up to rounding.
        ratio = (count * (self.second - 2 * self.first).exp()).clamp(min=1.0)
        if count > 1:
            standard_error = ((ratio - 1) / (count - 1)).sqrt()
        else:
            standard_error = torch.full_like(ratio, math.inf)
        impossible = self.first == -math.inf
        return LogLikelihood(
            value=self.first - math.log(count),
            standard_error=standard_error.masked_fill(impossible, math.inf),
            effective_sample_size=(count / ratio).masked_fill(impossible, 0.0),
            num_samples=count,
            num_data=num_data,
        )


def _joined(parts: list[LogLikelihood], num_data: int) -> LogLikelihood:
    return LogLikelihood(
        value=torch.cat([part.value for part in parts]),
        standard_error=torch.cat([part.standard_error for part in parts]),
        effective_sample_size=torch.cat([part.effective_sample_size for part in parts]),
        num_samples=parts[0].num_samples,
        num_data=num_data,
    )


def _warn_of_collapse(estimate: LogLikelihood) -> None:
    collapsed = estimate.effective_sample_size < COLLAPSED
    # So few draws are a choice of the caller's, not a failure of the guide.
    if estimate.num_samples < 10 * COLLAPSED or float(collapsed.double().mean()) <= TOLERATED:
        return
    warnings.warn(
        f"{int(collapsed.sum())} of {collapsed.numel()} estimates of log p(x) rest on one draw of "
        f"{estimate.num_samples} (effective sample size below {COLLAPSED:g}), and are probably too "
        "low; use more draws, or draw from a guide closer to the posterior",
        EffectiveSampleSizeWarning,
        stacklevel=3,
    )
