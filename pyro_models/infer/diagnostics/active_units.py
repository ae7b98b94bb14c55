"""How many latent dimensions a guide uses."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.embedding import LatentMoments, embed
from pyro_models.infer.weights import Program


@dataclass(frozen=True)
class ActiveUnits:
    """Latent dimensions whose posterior mean follows the data."""

    variances: dict[str, Tensor]
    """Variance over data of the posterior mean, by latent, of the latent's event shape."""
    shares: dict[str, Tensor]
    """The same as a share of the latent's whole variance under the guide; 0 where that is 0."""
    threshold: float
    """Variance, or share of variance, above which a dimension counts as active."""
    relative: bool
    """Whether the threshold is compared with shares."""

    @property
    def active(self) -> dict[str, Tensor]:
        """Whether each dimension is active, by latent, of the latent's event shape."""
        judged = self.shares if self.relative else self.variances
        return {name: values > self.threshold for name, values in judged.items()}

    @property
    def count(self) -> int:
        """Number of active dimensions, over all latents."""
        return sum(int(active.sum()) for active in self.active.values())

    @property
    def total(self) -> int:
        """Number of latent dimensions."""
        return sum(v.numel() for v in self.variances.values())


def active_units(
    guide: Program,
    x: Any,
    threshold: float = 0.01,
    *,
    relative: bool = False,
    batch_size: int = 1000,
) -> ActiveUnits:
    r"""Count latent dimensions :math:`u` with :math:`\mathrm{Var}_x(\mathbb E_q[z_u|x]) > 0.01`.

    A dimension that the model ignores has the same posterior, the prior, for every datum. Latents
    outside the data plate do not count; a discrete latent counts by the probabilities of its
    values. The whole set is used, in batches. The variance is over the data given, with divisor N;
    where the means are estimated from draws, the variance of that noise is taken off.

    The paper's threshold is made for a prior of variance 1. The fractions of a stick, say, vary by
    0.02 under Beta(1, 5), of which a threshold of 0.01 is half; with ``relative`` it is a share of
    the variance of :math:`z_u` over data and guide,
    :math:`\mathrm{Var}_x(\mathbb E_q[z_u|x]) + \mathbb E_x[\mathrm{Var}_q(z_u|x)]`.

    Args:
        guide: A Pyro program.
        x: Data ``(N, ...)``, or a tuple of several arguments of the guide, as for ``fit``.
        threshold: Variance, or share of variance, above which a dimension is active.
        relative: Compare shares of variance, for priors that are not of variance 1.
        batch_size: Data encoded at a time.

    Raises:
        OptionError: If the threshold is negative or no number.
        DataError: If the data is empty or not finite.

    References:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2015,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x * torch.tensor([1.0, 0.01]), 1.0).to_event(1))
        >>> units = active_units(guide, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        >>> units.count, units.total
        (1, 2)
        >>> units.shares["z"]  # 1 of 1 + 1, and 0.0001 of 1.0001
        tensor([5.0000e-01, 9.9990e-05], dtype=torch.float64)
    """
    if not threshold >= 0:
        raise OptionError(f"threshold is {threshold}; it must be zero or a positive number")
    embedding = embed(guide, x, batch_size=batch_size)
    local = {name: moments for name, moments in embedding.sites.items() if moments.local}
    variances = {name: _variance_of_means(moments) for name, moments in local.items()}
    shares = {name: _share(variances[name], moments) for name, moments in local.items()}
    return ActiveUnits(variances, shares, threshold, relative)


def _share(variance: Tensor, moments: LatentMoments) -> Tensor:
    whole = variance + moments.scale.double().square().mean(0)
    # Of a constant point mass there is nothing but the rounding of its mean.
    rounding = torch.finfo(moments.mean.dtype).eps * moments.mean.double().abs().amax(0)
    return torch.where(variance > rounding**2, variance / whole, 0.0)


def _variance_of_means(moments: LatentMoments) -> Tensor:
    noise = moments.monte_carlo_error.double().square().mean(0)
    return (moments.mean.double().var(0, correction=0) - noise).clamp(min=0.0)
