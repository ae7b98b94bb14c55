"""How many latent dimensions a guide uses."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.embedding import LatentMoments, embed
from pyro_models.infer.weights import Program


@dataclass(frozen=True)
class ActiveUnits:
    """Latent dimensions whose posterior mean follows the data."""

    variances: dict[str, Tensor]
    """Variance over data of the posterior mean, by latent, of the latent's event shape."""
    threshold: float
    """Variance above which a dimension counts as active."""

    @property
    def count(self) -> int:
        """Number of active dimensions, over all latents."""
        return sum(int((v > self.threshold).sum()) for v in self.variances.values())

    @property
    def total(self) -> int:
        """Number of latent dimensions."""
        return sum(v.numel() for v in self.variances.values())


def active_units(
    guide: Program, x: Any, threshold: float = 0.01, *, batch_size: int = 1000
) -> ActiveUnits:
    r"""Count latent dimensions :math:`u` with :math:`\mathrm{Var}_x(\mathbb E_q[z_u|x]) > 0.01`.

    A dimension that the model ignores has the same posterior, the prior, for every datum. Latents
    outside the data plate do not count; a discrete latent counts by the probabilities of its
    values. The whole set is used, in batches. The variance is over the data given, with divisor N;
    where the means are estimated from draws, the variance of that noise is taken off.

    Args:
        guide: A Pyro program.
        x: Data ``(N, ...)``, or a tuple of several arguments of the guide, as for ``fit``.
        threshold: Variance above which a dimension is active.
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
    """
    if not threshold >= 0:
        raise OptionError(f"threshold is {threshold}; it must be zero or a positive number")
    embedding = embed(guide, x, batch_size=batch_size)
    variances = {
        name: _variance(moments) for name, moments in embedding.sites.items() if moments.local
    }
    return ActiveUnits(variances, threshold)


def _variance(moments: LatentMoments) -> Tensor:
    noise = moments.monte_carlo_error.double().square().mean(0)
    return (moments.mean.double().var(0, correction=0) - noise).clamp(min=0.0)
