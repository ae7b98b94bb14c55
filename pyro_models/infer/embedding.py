"""Where a guide puts data in latent space: posterior mean and scale of each latent."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Categorical

from pyro_models.errors import SiteMismatchError
from pyro_models.infer.inspection import (
    as_arguments,
    base_distribution,
    data_size,
    is_amortized,
    latent_sites,
)
from pyro_models.infer.weights import Program
from pyro_models.options import positive_int


@dataclass(frozen=True)
class LatentMoments:
    """Posterior mean and scale of one latent."""

    mean: Tensor
    """Mean, ``(N, *event)``; of a categorical latent the probabilities, one more dimension."""
    scale: Tensor
    """Standard deviation, of the same shape."""
    monte_carlo_error: Tensor
    """Standard error of the mean as an estimate from draws; 0 where the moments are exact."""
    local: bool
    """Whether the latent lies in the data plate; others have no leading N."""

    @property
    def exact(self) -> bool:
        """Whether these are the distribution's own moments, not estimates from draws."""
        return not bool(self.monte_carlo_error.any())


@dataclass(frozen=True)
class Embedding:
    """Posterior mean and scale of every latent of a guide.

    ``mean`` and ``scale`` are those of the only latent; of several, name one: ``embedding["z"]``.
    """

    sites: dict[str, LatentMoments]
    """Moments by latent, in the order in which the guide samples them."""

    def __getitem__(self, site: str) -> LatentMoments:
        """Moments of one latent.

        Raises:
            SiteMismatchError: If the guide has no such latent.
        """
        if site not in self.sites:
            raise SiteMismatchError(f"the guide has no latent {site!r}; it has {list(self.sites)}")
        return self.sites[site]

    @property
    def mean(self) -> Tensor:
        """Posterior mean of the only latent."""
        return self._only().mean

    @property
    def scale(self) -> Tensor:
        """Posterior standard deviation of the only latent."""
        return self._only().scale

    def _only(self) -> LatentMoments:
        if len(self.sites) != 1:
            raise SiteMismatchError(
                f"the guide has the latents {list(self.sites)}; choose one, as in "
                'embedding["z"].mean'
            )
        return next(iter(self.sites.values()))


def embed(guide: Program, x: Any, *, num_samples: int = 100, batch_size: int = 1000) -> Embedding:
    r"""Posterior mean :math:`\mathbb E_q[z \mid x]` and scale of every latent, for any Pyro guide.

    Where the moments of a latent are the same whatever the guide draws, they are exact. Otherwise
    (a latent that depends on another, an autoguide, a flow) they are estimated from
    ``num_samples`` runs by the laws of total expectation and variance.

    Args:
        guide: A Pyro program.
        x: Data ``(N, ...)``, or a tuple of several arguments of the guide, as for ``fit``.
        num_samples: Runs of the guide for moments that have no closed form, at least 2.
        batch_size: Data encoded at a time, where the guide treats each datum by itself.

    Returns:
        Mean and scale by latent. Discrete latents give the probabilities of their values.

    Raises:
        DataError: If the data is empty or not finite.
        OptionError: If a number is less than 1.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5))
        >>> embedding = embed(guide, torch.tensor([1.0, 2.0]))
        >>> embedding.mean, embedding.scale
        (tensor([0.5000, 1.0000]), tensor([0.5000, 0.5000]))
        >>> embedding["z"].exact
        True
    """
    args = as_arguments(x, guide)
    num_samples = positive_int("num_samples", num_samples)
    batch_size = positive_int("batch_size", batch_size)
    size = len(args[0])
    if size <= batch_size or not is_amortized(guide, args):
        return Embedding(_moments(guide, args, num_samples))
    parts = [
        _moments(guide, tuple(part[start : start + batch_size] for part in args), num_samples)
        for start in range(0, size, batch_size)
    ]
    return Embedding({name: _joined([part[name] for part in parts]) for name in parts[0]})


def _joined(parts: list[LatentMoments]) -> LatentMoments:
    return replace(
        parts[0],
        mean=torch.cat([part.mean for part in parts]),
        scale=torch.cat([part.scale for part in parts]),
        monte_carlo_error=torch.cat([part.monte_carlo_error for part in parts]),
    )


@dataclass(frozen=True)
class _Run:
    """Mean and variance of a latent's distribution in one run of the guide."""

    mean: Tensor
    variance: Tensor
    local: bool

    def same(self, other: "_Run") -> bool:
        return torch.equal(self.mean, other.mean) and torch.equal(self.variance, other.variance)


def _moments(
    guide: Program, args: tuple[Tensor, ...], num_samples: int
) -> dict[str, LatentMoments]:
    runs = [_run(guide, args), _run(guide, args)]
    exact = {name: run.same(runs[1][name]) for name, run in runs[0].items()}
    moments = {
        name: LatentMoments(run.mean, run.variance.sqrt(), torch.zeros_like(run.mean), run.local)
        for name, run in runs[0].items()
    }
    vague = [name for name, same in exact.items() if not same]
    if not vague:
        return moments
    totals = {name: _Total(runs[0][name]) for name in vague}
    for index in range(1, max(2, num_samples)):
        run = runs[1] if index == 1 else _run(guide, args)
        for name in vague:
            totals[name].add(run[name])
    return moments | {name: total.moments() for name, total in totals.items()}


class _Total:
    """Running mean and variance over runs, by Welford's recurrence."""

    def __init__(self, first: _Run):
        self.count = 1
        self.local = first.local
        self.mean = first.mean
        self.within = first.variance
        self.squares = torch.zeros_like(first.mean)

    def add(self, run: _Run) -> None:
        self.count += 1
        change = run.mean - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (run.mean - self.mean)
        self.within = self.within + (run.variance - self.within) / self.count

    def moments(self) -> LatentMoments:
        between = self.squares / (self.count - 1)
        scale = (self.within + between).sqrt()
        return LatentMoments(self.mean, scale, (between / self.count).sqrt(), self.local)


def _run(guide: Program, args: tuple[Tensor, ...]) -> dict[str, _Run]:
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(*args)
    size = len(args[0])
    runs = {}
    for name, node in latent_sites(trace).items():
        mean, variance = _own_moments(node["fn"], node["value"])
        runs[name] = _Run(mean, variance, data_size(node) == size)
    return runs


def _own_moments(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a distribution; the drawn value itself where it has none."""
    base = base_distribution(fn)
    if isinstance(base, Categorical):
        return base.probs, base.probs * (1 - base.probs)
    try:
        mean, variance = fn.mean, fn.variance
    except NotImplementedError:
        return value, torch.zeros_like(value)
    if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
        return value, torch.zeros_like(value)
    return mean, variance
