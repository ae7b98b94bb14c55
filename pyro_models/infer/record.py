r"""The importance log-weights of one run of a pair, by site.

Everything the engine does stands on this record. It keeps the data plate apart from the particles,
and the plate's scale apart from the weights, because a bound such as
:math:`s \sum_i \log \frac1K \sum_k w_{ki}` needs the scale :math:`s = N / B` outside the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.infer.draws import PathFactor
from pyro_models.infer.sites import Site, by_plates, is_point_mass, reduce_to_weights
from pyro_models.infer.sums import NO_SUMS, Sums

KLWeight = Tensor | float | Mapping[str, Tensor | float]
"""Weight of the latents' terms: one for all, or by name of a latent, 1 for those not named."""


def weight_of(kl_weight: KLWeight, name: str) -> Tensor | float:
    """The weight of one latent's terms.

    Example:
        >>> weight_of(0.5, "z"), weight_of({"w": 0.5}, "z")
        (0.5, 1.0)
    """
    return kl_weight.get(name, 1.0) if isinstance(kl_weight, Mapping) else kl_weight


@dataclass(frozen=True)
class LogWeights:
    r"""A vectorised run of guide and model: one row a particle, one column a datum.

    With :math:`z_k \sim q(z \mid x)`, local latents inside the data plate and global ones outside,

    .. math::
        \log w_{ki} = \sum_{\text{local}} \log p - \sum_{\text{local}} \log q, \qquad
        \log w_k = \sum_{\text{global}} (\log p - \log q) + \tfrac NB \sum_i \log w_{ki} .
    """

    model_sites: dict[str, Site]
    """Sample sites of the model, observed ones included, in the order they ran."""
    guide_sites: dict[str, Site]
    """Sample sites of the guide, auxiliary ones included, in the order they ran."""
    num_particles: int
    """K."""
    batch_size: int
    """B: data in the minibatch; 0 where the program has no data plate."""
    num_data: int
    """N: data in the whole set; 1 where the program has no data plate."""
    common_scale: float | Tensor
    """A scale that the user put on every site alike (``poutine.scale``), 1 without one; where
    it is a tensor, a 0-dim one."""
    paths: PathFactor = field(default_factory=PathFactor)
    """Where an objective that runs with ``PathsOnly`` puts the weight of each draw's path."""
    sums: Sums = NO_SUMS
    """The guide's latents over which log-densities are averaged exactly."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What an objective found out about the run, for itself."""

    @property
    def plate_scale(self) -> float:
        """N / B, the weight of one datum of the minibatch."""
        return self.num_data / self.batch_size if self.batch_size else 1.0

    @property
    def log_p(self) -> dict[str, Tensor]:
        """Log-density by model site: ``(K, B)`` inside the data plate, ``(K,)`` outside."""
        return {name: site.log_prob for name, site in self.model_sites.items()}

    @property
    def log_q(self) -> dict[str, Tensor]:
        """Log-density by guide site: ``(K, B)`` inside the data plate, ``(K,)`` outside."""
        return {name: site.log_prob for name, site in self.guide_sites.items()}

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the model's unobserved sites, in the order they ran."""
        return tuple(name for name, site in self.model_sites.items() if not site.observed)

    @property
    def has_global_latents(self) -> bool:
        """Whether a latent lies outside the data plate, so that one weight serves all data."""
        return any(not s.local and not s.observed for s in self.guide_sites.values())

    def total(self, terms: list[tuple[Site, Tensor]]) -> tuple[Tensor, Tensor]:
        """Add up terms by site: ``(K, B)`` for those in the data plate and ``(K,)`` for others."""
        like = self._like(terms)
        local = like.new_zeros(self.num_particles, self.batch_size)
        rest = like.new_zeros(self.num_particles)
        for site, term in terms:
            if site.local:
                local = local + term
            else:
                rest = rest + term
        return local, rest

    def _like(self, terms: list[tuple[Site, Tensor]]) -> Tensor:
        for _, term in terms:
            return term
        for site in (*self.model_sites.values(), *self.guide_sites.values()):
            return site.log_prob
        return torch.zeros(())

    def _terms(self) -> list[tuple[Site, Tensor]]:
        model = [(s, s.log_prob) for s in self.model_sites.values()]
        return model + [(s, -s.log_prob) for s in self.guide_sites.values()]

    @property
    def local(self) -> Float[Tensor, "K B"]:
        """Log-weight of each datum: log p - log q over the sites in the data plate."""
        return self.total(self._terms())[0]

    @property
    def global_(self) -> Float[Tensor, " K"]:
        """log p - log q over the sites outside the data plate."""
        return self.total(self._terms())[1]

    @property
    def joint(self) -> Float[Tensor, " K"]:
        """Log-weight of all data together, minibatches scaled up: global + N/B times local."""
        local, rest = self.total(self._terms())
        return rest + self.plate_scale * local.sum(-1)

    @property
    def joint_sites(self) -> tuple[str, ...]:
        """Sites outside the data plate whose density may differ between particles.

        Where there are any, one weight serves all data. A latent that the guide fixes (a ``Delta``,
        as ``AutoDelta`` gives) does not count: it is the same in all particles.
        """
        sites = {**self.model_sites, **self.guide_sites}
        fixed = {n for n, s in self.guide_sites.items() if is_point_mass(s.fn) and not s.local}
        if any(not s.local and s.name not in fixed for s in self.guide_sites.values()):
            fixed = set()  # a Delta may be computed from another latent, as autoguides do
        return tuple(
            name for name, s in sites.items() if not (s.local or s.deterministic or name in fixed)
        )

    @property
    def is_joint(self) -> bool:
        """Whether one weight serves all data: there are ``joint_sites``, or no data plate."""
        return not self.batch_size or bool(self.joint_sites)

    def importance(self, kl_weight: KLWeight = 1.0) -> Float[Tensor, "K M"]:
        r"""Log-weights of what a bound of many particles is taken over.

        One a datum, ``(K, B)``, or one for all data, ``(K, 1)``. The latents' terms count
        ``kl_weight`` times.
        """
        terms = [
            (s, s.log_prob if s.observed else weight_of(kl_weight, s.name) * s.log_prob)
            for s in self.model_sites.values()
        ]
        sites = self.guide_sites.values()
        terms += [(s, -weight_of(kl_weight, s.name) * s.log_prob) for s in sites]
        return self.fold(terms)

    def fold(self, terms: list[tuple[Site, Tensor]]) -> Float[Tensor, "K M"]:
        """Add up terms by site in the shape of ``importance``."""
        local, rest = self.total(terms)
        if self.is_joint:
            return (rest + self.plate_scale * local.sum(-1)).unsqueeze(-1)
        return local + rest.unsqueeze(-1) / (self.plate_scale * self.batch_size)

    def log_q_all(self, kl_weight: KLWeight = 1.0) -> Float[Tensor, "K M"]:
        """Log-density of the guide in the shape of ``importance``, counted ``kl_weight`` times."""
        sites = self.guide_sites.values()
        return self.fold([(s, weight_of(kl_weight, s.name) * s.log_prob) for s in sites])

    @property
    def importance_scale(self) -> float | Tensor:
        """What a bound on ``importance`` is multiplied by, to be one for the whole data set."""
        return self.common_scale * (1.0 if self.is_joint else self.plate_scale)

    def scores(self) -> Float[Tensor, "K M"] | None:
        """What the score function differentiates, as ``importance``; ``None`` if nothing is."""
        found = [(s, s.score) for s in self.guide_sites.values() if s.score is not None]
        if not found:
            return None
        local, rest = self.total(found)
        return (rest + local.sum(-1)).unsqueeze(-1) if self.is_joint else local

    def by_plates(self, site: Site, batch: Tensor) -> Tensor:
        """A tensor of a site's batch shape as ``(K, B, *plates)``; see ``sites.by_plates``."""
        return by_plates(site, batch, self.batch_size, self.sums)

    def reduce(self, site: Site, batch: Tensor) -> Tensor:
        """A tensor of a site's batch shape as ``(K, B)`` or ``(K,)``, masked, scaled, averaged."""
        return reduce_to_weights(site, batch, self.num_particles, self.batch_size, self.sums)
