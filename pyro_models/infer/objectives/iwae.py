"""The importance-weighted bound, with its gradient estimators."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.draws import ON_PATHS, Draws, PathsOnly
from pyro_models.infer.objectives.base import Estimate
from pyro_models.infer.objectives.multi_sample import (
    MultiSampleBound,
    importance_bound,
    require_all_data,
)
from pyro_models.infer.record import KLWeight, LogWeights, weight_of
from pyro_models.infer.sites import Site, is_point_mass


@dataclass(frozen=True)
class StandardGradient:
    r"""The bound's own gradient, :math:`\sum_k \tilde w_k \nabla \log w_k` with normalised weights.

    The guide's signal-to-noise ratio falls as :math:`K^{-1/2}` (Rainforth et al. 2018).
    """


@dataclass(frozen=True)
class StickingTheLanding:
    r"""Without log q's score: :math:`\sum_k \tilde w_k \partial_{z_k} \log w_k \nabla_\phi z_k`.

    At an exact guide it has no variance. It is unbiased for K = 1 and biased for more (Roeder, Wu
    and Duvenaud 2017, https://arxiv.org/abs/1703.09194; Tucker et al. 2018).
    """


@dataclass(frozen=True)
class DoublyReparameterized:
    r"""DReG: :math:`\sum_k \tilde w_k^2\, \partial_{z_k} \log w_k\, \nabla_\phi z_k` for the guide.

    Unbiased for every K, and its signal-to-noise ratio does not fall with K. The model's gradient
    is the standard one (Tucker et al. 2018, https://arxiv.org/abs/1810.04152).
    """


Gradient = StandardGradient | StickingTheLanding | DoublyReparameterized


class IWAE(MultiSampleBound):
    r"""The importance-weighted bound

    .. math::
        \mathcal L_K = E \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)} \le \log p(x),

    a datum; it is the ELBO at K = 1, grows with K, and approaches log p(x).

    Args:
        num_particles: K. Memory grows linearly in it.
        gradient: ``StandardGradient()``, ``StickingTheLanding()`` or ``DoublyReparameterized()``.
            The latter two need every latent of the guide to be reparameterised. A guide with
            several latents runs thrice for them, and must be deterministic given its
            draws (no dropout).

    Raises:
        OptionError: If an argument cannot work; doubly reparameterised at the first run, if a
            latent has a scale or a mask of its own.

    References:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders",
        https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_models import pairs
        >>> pair = pairs.vae(data_dim=4, objective=IWAE(5, gradient=DoublyReparameterized()))
        >>> pair.objective
        IWAE(num_particles=5, gradient=DoublyReparameterized())
    """

    def __init__(self, num_particles: int, gradient: Gradient = StandardGradient()):
        super().__init__(num_particles)
        if not isinstance(gradient, Gradient):
            raise OptionError(
                f"gradient is {gradient!r}; give StandardGradient(), StickingTheLanding() or "
                "DoublyReparameterized()"
            )
        self.gradient = gradient

    def __repr__(self) -> str:
        return f"IWAE(num_particles={self.num_particles}, gradient={self.gradient})"

    @property
    def draws(self) -> Draws:
        """On paths alone, for the gradients that leave out the score."""
        return ON_PATHS if isinstance(self.gradient, StandardGradient) else PathsOnly()

    def value(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
        """The bound of each column of log-weights."""
        return importance_bound(log_w)

    def check_latents(self, weights: LogWeights, kl_weight: KLWeight) -> None:
        """Refuse weights that a pair has no meaning for; see ``Objective.check_latents``."""
        super().check_latents(weights, kl_weight)
        if isinstance(self.gradient, DoublyReparameterized) and self.num_particles > 1:
            _tempering(weights, kl_weight)

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the bound from one run; see ``Objective.estimate``."""
        if isinstance(self.gradient, DoublyReparameterized) and self.num_particles > 1:
            require_all_data(weights)
            # With the latents' terms tempered, so is the score that the second path stands for; and
            # where they are masked there is none.
            score = _tempering(weights, kl_weight) * _share_of_scores(weights)
            normalized = weights.importance(kl_weight).detach().softmax(0)
            weights.paths.value = 1.0 - score + score * normalized
        return super().estimate(weights, kl_weight)


def _tempering(weights: LogWeights, kl_weight: KLWeight) -> Tensor | float:
    """The weight of the guide's scores, which must be one for all of a datum's latents.

    Raises:
        OptionError: If there are several.
    """
    if not isinstance(kl_weight, Mapping):
        return kl_weight
    drawn = [s for s in weights.guide_sites.values() if not s.observed and not is_point_mass(s.fn)]
    if len(drawn) > 1:
        raise OptionError(
            f"there is a KL weight for {', '.join(map(repr, kl_weight))}, and the doubly "
            "reparameterised gradient has no formula for latents of different weights; give one "
            "weight for all, or take gradient=StandardGradient()"
        )
    return weight_of(kl_weight, drawn[0].name) if drawn else 1.0


def _share_of_scores(weights: LogWeights) -> Float[Tensor, "1 M"] | float:
    r"""How often the guide's scores count in the log-weights: once, or not where masked.

    With scores :math:`c \nabla_\phi \log q(z_k)` in the weights, integration by parts leaves
    :math:`\tilde w_k (1 - c) + \tilde w_k^2 c` of each path. The paths of latents that are drawn
    from each other have one factor, so c must be the same for all of a datum's latents.

    Raises:
        OptionError: If it is not; the message names the site.
    """
    drawn = [s for s in weights.guide_sites.values() if not s.observed and not is_point_mass(s.fn)]
    shared = isinstance(weights.common_scale, Tensor)
    for site in drawn:
        if shared and len(drawn) > 1:
            raise OptionError(
                f"site {site.name!r} has a scale that is a tensor, of which is not known whether "
                "it is the other latents' too, and then the doubly reparameterised gradient has no "
                "formula; scale by a number, or take gradient=StandardGradient()"
            )
        if not shared and (isinstance(site.factor, Tensor) or abs(site.factor - 1.0) > 1e-9):
            raise OptionError(
                f"site {site.name!r} has a scale of its own, {site.factor}, which the doubly "
                "reparameterised gradient has no formula for; put the scale around model and "
                "guide, or take gradient=StandardGradient()"
            )
        if site.mask is not drawn[0].mask or _masks_itself(site.fn):
            raise OptionError(
                f"site {site.name!r} has a mask of its own, which the doubly reparameterised "
                "gradient has no formula for; put one poutine.mask around the whole guide, or take "
                "gradient=StandardGradient()"
            )
    if not drawn:
        return 1.0
    count = _unmasked(weights, drawn[0])
    return count * drawn[0].factor.reshape(1, 1) if shared else count


def _unmasked(weights: LogWeights, site: Site) -> Float[Tensor, "1 M"] | float:
    """1 for each datum whose latents count and 0 for the others."""
    if site.mask is None or isinstance(site.mask, bool):
        return float(site.mask is not False)
    data_dim = site.dims[1]
    others = [n for d, n in enumerate(site.mask.shape, -site.mask.dim()) if d != data_dim]
    if (weights.is_joint and site.mask.numel() > 1) or any(n > 1 for n in others):
        raise OptionError(
            f"site {site.name!r} has a mask of shape {tuple(site.mask.shape)}, and the doubly "
            "reparameterised gradient has a formula for whole data only, with a weight each; mask "
            "along the data plate, or take gradient=StandardGradient()"
        )
    return site.mask.reshape(1, -1).to(site.log_prob.dtype)


def _masks_itself(fn: Any) -> bool:
    """Whether a distribution has a mask in it (``.mask()``), beneath whatever reshapes it."""
    while not isinstance(fn, MaskedDistribution):
        if not hasattr(fn, "base_dist"):
            return False
        fn = fn.base_dist
    return True
