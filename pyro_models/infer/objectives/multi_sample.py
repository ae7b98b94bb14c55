"""What the bounds of several particles share: weights, minibatches, the score function."""

import math
from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.sites import is_point_mass


def importance_bound(log_w: Float[Tensor, "K *M"]) -> Float[Tensor, "*M"]:
    """Logarithm of the mean weight, over the first dimension."""
    return log_w.logsumexp(0) - math.log(len(log_w))


class MultiSampleBound(Objective):
    r"""Abstract parent of the bounds :math:`s \sum_i f(\log w_{1i}, \dots, \log w_{Ki})`.

    There is one log-weight a particle and datum, and :math:`s = N / B`. With latents outside the
    data plate there is one a particle for all data together, and then no minibatch: a sum over part
    of the data inside the logarithm is no bound.
    """

    @abstractmethod
    def value(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
        """The bound f of each column of log-weights, differentiable."""

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the bound from one run; see ``Objective.estimate``."""
        require_all_data(weights)
        scale = weights.importance_scale
        bound = self.value(weights.importance().detach()).sum()
        log_w = weights.importance(kl_weight)
        value = self.value(log_w)
        surrogate = value.sum()
        scores = weights.scores()
        if scores is not None:
            surrogate = surrogate + (scores * self.costs(log_w.detach(), value.detach())).sum()
        return Estimate(scale * bound, scale * surrogate)

    def costs(
        self, log_w: Float[Tensor, "K M"], value: Float[Tensor, " M"]
    ) -> Float[Tensor, "#K M"]:
        """What the score of each particle's draw is multiplied by: the bound that it is part of."""
        del log_w
        return value.unsqueeze(0)


def require_all_data(weights: LogWeights) -> None:
    """Refuse a minibatch inside the logarithm of a mean of weights, and what else is no bound.

    That is a minibatch where one weight serves all data, a minibatch of a plate beside the data
    plate, and a scale for each element.

    Raises:
        OptionError: If there is one; the message names the site.
    """
    if weights.num_particles == 1:
        return
    _require_even_scales(weights)
    if not weights.is_joint or weights.plate_scale == 1.0:
        return
    raise OptionError(
        f"site {weights.joint_sites[0]!r} lies outside the data plate, so that one weight serves "
        f"all {weights.num_data} data, and a minibatch of {weights.batch_size} has no bound of "
        f"{weights.num_particles} particles; give all data as one batch, or take ELBO(), whose "
        "terms add up"
    )


def _require_even_scales(weights: LogWeights) -> None:
    """Refuse scales that would be powers of densities inside the logarithm and are not meant so."""
    sites = (*weights.model_sites.values(), *weights.guide_sites.values())
    sites = tuple(site for site in sites if not site.deterministic)
    for site in sites:
        if isinstance(site.factor, Tensor) and site.factor.numel() > 1:
            raise OptionError(
                f"site {site.name!r} has a scale for each element, of shape "
                f"{tuple(site.factor.shape)}, which a bound of {weights.num_particles} particles "
                "would have inside its logarithm; take ELBO(), whose terms add up, or scale by "
                "one number"
            )
    # A scale common to all has been taken out of the sites' own; of tensors it is not known.
    if not any(isinstance(s.factor, Tensor) or abs(s.factor - 1.0) > 1e-9 for s in sites):
        return
    for site in sites:
        if site.minibatch is not None:
            raise OptionError(
                f"site {site.name!r} sees a part of plate {site.minibatch!r}, which is not the "
                "data plate, and not all sites have the same scale, or one is a tensor: a bound of "
                f"{weights.num_particles} particles would have a minibatch inside its logarithm; "
                f"give all of plate {site.minibatch!r}, or take ELBO(), whose terms add up"
            )


def require_densities(weights: LogWeights, instead: str) -> None:
    """Refuse a point mass that is to be learned, where draws are constants.

    All of its gradient is on its path: without that it would silently never move.

    Args:
        weights: A run whose draws are constants.
        instead: What to take, with ``{name}`` where the site's name goes.

    Raises:
        OptionError: If there is one; the message names the site.
    """
    for site in weights.guide_sites.values():
        if site.observed or site.score is None or not is_point_mass(site.fn):
            continue
        base = site.fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if base.v.requires_grad:
            raise OptionError(
                f"site {site.name!r} is a Delta, which has a path and no score, and this gradient "
                f"takes draws for constants; take {instead.format(name=site.name)}"
            )
