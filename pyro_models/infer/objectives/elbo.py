"""The evidence lower bound, in the lecture notes' two splits."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.divergences import by_dimension, closed_form
from pyro_models.infer.objectives.base import (
    Estimate,
    Objective,
    require_latents,
    require_own_density,
)
from pyro_models.infer.objectives.costs import Kept, gathered, kept_axes, without_plates
from pyro_models.infer.record import KLWeight, LogWeights, weight_of
from pyro_models.infer.remedies import FreeBits
from pyro_models.infer.sites import Site, scores_by_plates
from pyro_models.infer.weights import Program, run_pair


@dataclass(frozen=True)
class AnalyticKL:
    r"""Split one: :math:`E_q \log p(x \mid z) - KL(q \| p)`, closed form wherever there is one.

    A latent whose pair of distributions has no registered ``kl_divergence``, or whose prior may
    depend on something that the guide draws later (there the closed form would be wrong), keeps its
    Monte Carlo estimate :math:`\log q - \log p`. ``ELBO.terms`` says which sites were analytic.
    """


@dataclass(frozen=True)
class MonteCarloKL:
    r"""Split two: :math:`E_q [\log p(x, z) - \log q(z)]`, every term at the guide's draws."""


@dataclass(frozen=True)
class ELBOTerms:
    """The parts of one estimate of the ELBO, in nats per datum."""

    elbo: Float[Tensor, ""]
    """Reconstruction minus all of ``kl``."""
    reconstruction: Float[Tensor, ""]
    """Expected log-likelihood of the observed sites."""
    kl: dict[str, Tensor]
    """Divergence of guide from prior by latent site, each a 0-dim tensor."""
    analytic: tuple[str, ...]
    """The latents whose divergence was computed in closed form."""


@dataclass(frozen=True)
class _Split:
    """A run's terms: observed log-likelihoods and divergences, each with its site."""

    observed: list[tuple[Site, Tensor]]
    divergences: list[tuple[str, Site, Tensor]]
    closed: dict[str, Tensor]
    """Divergences in closed form, by latent, in the latents' batch shapes."""

    @property
    def divergence_terms(self) -> list[tuple[Site, Tensor]]:
        return [(site, term) for _, site, term in self.divergences]


class ELBO(Objective):
    r"""The evidence lower bound

    .. math::
        \mathcal L = E_{q(z \mid x)} [\log p(x, z) - \log q(z \mid x)]
                   = E_q \log p(x \mid z) - KL(q(z \mid x) \| p(z)) \le \log p(x),

    summed over the data; a minibatch of B from N counts N/B times. Sites with ``rsample`` are
    differentiated along their path, every other site by the score function
    :math:`E[\nabla \log q \cdot \text{cost}]`, whose cost is that of the site's own element of
    each of its plates and of what lies outside them (of a whole plate where the guide draws a
    latent outside it afterwards). Both are unbiased, if elements of a plate do not see each other's
    draws, which is what a plate says. ``ScoreFunction`` leaves out what does not depend on the
    draw, too, and has baselines.

    A discrete latent k of the guide named in ``summed`` is not drawn: its part of the expectation
    is the sum over its values, :math:`\sum_k q(k \mid \cdot) [\dots]`, and is differentiated
    through q(k), without a score function. Latents that the guide draws given k are drawn for each
    of its values, as are the networks run that see k; all else is drawn and run once. Latents
    outside the data plate can be summed over, and several, which takes the product of their
    numbers of values where a term depends on all. A latent under a mask weighs other terms with its
    whole q.

    Args:
        num_particles: K, draws from the guide averaged.
        kl: ``AnalyticKL()`` or ``MonteCarloKL()``.
        summed: Names of discrete latents that the guide samples and that are summed over.

    Raises:
        OptionError: If an argument cannot work; at the first run, if the guide does not sample a
            name in ``summed``, if its values cannot be listed, or if another latent that has no
            path is drawn given it.
        SiteMismatchError: At the first run, if a site outside the plate of a latent in ``summed``
            depends on it.

    References:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114
        Ranganath et al. 2014, "Black Box Variational Inference", https://arxiv.org/abs/1401.0118

    Example:
        >>> import math, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.zeros(4)
        >>> round(ELBO(kl=MonteCarloKL()).loss(model, guide, x) / 4, 4)  # exact guide: -log p(x)
        1.2655
        >>> ELBO().terms(model, guide, x).analytic
        ('z',)

        A mixture, whose guide may be wrong about the component:

        >>> means = torch.tensor([-1.0, 2.0])
        >>> def mixture(x):
        ...     with pyro.plate("data", len(x)):
        ...         k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
        ...         pyro.sample("x", dist.Normal(means[k], 1.0), obs=x)
        >>> def assign(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        >>> x = torch.zeros(1)
        >>> round(ELBO(summed=("k",)).loss(mixture, assign, x), 4)  # the same at each run
        2.1893
        >>> gain = torch.tensor([0.4, 0.6]).log() + dist.Normal(means, 1.0).log_prob(x)
        >>> round(-gain.mean().item() - math.log(2), 4)
        2.1893
    """

    def __init__(
        self,
        num_particles: int = 1,
        kl: AnalyticKL | MonteCarloKL = AnalyticKL(),
        summed: tuple[str, ...] = (),
    ):
        super().__init__(num_particles)
        if not isinstance(kl, AnalyticKL | MonteCarloKL):
            raise OptionError(f"kl is {kl!r}; give AnalyticKL() or MonteCarloKL()")
        if not isinstance(summed, tuple) or not all(isinstance(name, str) for name in summed):
            raise OptionError(f'summed={summed!r} is no tuple of site names; write ("component",)')
        self.kl = kl
        self.summed = summed
        self._free_bits: FreeBits | Mapping[str, FreeBits] = {}

    def __repr__(self) -> str:
        summed = f", summed={self.summed!r}" if self.summed else ""
        return f"ELBO(num_particles={self.num_particles}, kl={self.kl}{summed})"

    def weights(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        """Run the pair, with latents in ``summed`` summed over; see ``Objective.weights``."""
        count = self.num_particles
        return run_pair(model, guide, args, kwargs, num_particles=count, summed=self.summed)

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the ELBO from one run; see ``Objective.estimate``."""
        split = self._split(weights)
        fit_local, fit_rest = weights.total(split.observed)
        kl_local, kl_rest = weights.total(split.divergence_terms)
        bound = _joint(weights, fit_local - kl_local, fit_rest - kl_rest)
        charged = self._charged(weights, split, kl_weight)
        charged_local, charged_rest = weights.total(charged)
        surrogate = _joint(weights, fit_local - charged_local, fit_rest - charged_rest)
        if any(_scored(site) for site in weights.guide_sites.values()):
            terms = self._by_plates(weights, split, charged, kl_weight)
            surrogate = surrogate + _score(weights, terms)
        return Estimate(bound.detach(), surrogate)

    def with_free_bits(self, free_bits: FreeBits | Mapping[str, FreeBits]) -> "ELBO":
        """This objective with free bits in what is optimised; see ``Objective.with_free_bits``."""
        made = copy.copy(self)
        made._free_bits = free_bits
        return made

    def check_latents(self, weights: LogWeights, kl_weight: KLWeight) -> None:
        """Refuse weights and free bits that a pair has no meaning for; see ``Objective``."""
        super().check_latents(weights, kl_weight)
        if isinstance(self._free_bits, Mapping):
            require_latents("free_bits", self._free_bits, weights)
        self._charged(weights, self._split(weights), kl_weight)

    def _charged(
        self, weights: LogWeights, split: "_Split", kl_weight: KLWeight
    ) -> list[tuple[Site, Tensor]]:
        """What each divergence costs in what is optimised: weighted, and free up to a floor."""
        charged = []
        for name, site, term in split.divergences:
            free = self._free(weights, name)
            if free is not None:
                term = self._floored(weights, name, free)
            charged.append((site, weight_of(kl_weight, name) * term))
        return charged

    def _by_plates(
        self,
        weights: LogWeights,
        split: "_Split",
        charged: list[tuple[Site, Tensor]],
        kl_weight: KLWeight,
    ) -> list[tuple[Site, Tensor]]:
        """The terms of what is optimised, ``(K, B, *plates)``, as costs: without gradients."""
        found = [(site, _spread(weights, site)) for site, _ in split.observed]
        for (name, site, _), (_, term) in zip(split.divergences, charged, strict=True):
            weight, prior = weight_of(kl_weight, name), weights.model_sites.get(name)
            if self._free(weights, name) is not None:
                # A floor is on sums over plates: each of their elements costs the whole.
                found.append((site, -without_plates(term.detach(), _spread(weights, site))))
            elif name in split.closed:
                kl = weights.by_plates(site, split.closed[name])
                found.append((site, -weight * kl.detach()))
            else:
                found.append((site, -weight * _spread(weights, site)))
                if prior is not None and not prior.observed:
                    found.append((prior, weight * _spread(weights, prior)))
        return found

    def _free(self, weights: LogWeights, name: str) -> FreeBits | None:
        """The free bits of a latent, if any."""
        floors = self._free_bits
        free = floors.get(name) if isinstance(floors, Mapping) else floors
        return free if name in weights.latents else None

    def _floored(self, weights: LogWeights, name: str, free: FreeBits) -> Tensor:
        require_own_density("free_bits", name, weights)
        kl = by_dimension(weights, name, closed=isinstance(self.kl, AnalyticKL))
        if kl is None:
            raise OptionError(
                f"free bits of site {name!r}: the guide has a point mass there, whose KL is "
                "infinite; name other latents in free_bits"
            )
        if weights.guide_sites[name].column is not None:
            raise OptionError(
                f"free bits of site {name!r}: it is one datum's, in a data plate that runs as a "
                "Python loop; write the plate as a with statement"
            )
        try:
            return free.floored(kl.terms, kl.split)
        except OptionError as error:
            raise OptionError(f"free bits of site {name!r}: {error}") from error

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> ELBOTerms:
        """The parts of the bound at one run of the pair, in nats per datum, without gradients."""
        with torch.no_grad():
            weights = self.weights(model, guide, args, kwargs)
            split = self._split(weights)

            def per_datum(terms: list[tuple[Site, Tensor]]) -> Tensor:
                return _joint(weights, *weights.total(terms)) / weights.num_data

            reconstruction = per_datum(split.observed)
            kl = {name: per_datum([(site, term)]) for name, site, term in split.divergences}
        total = reconstruction - torch.stack([*kl.values(), torch.zeros_like(reconstruction)]).sum()
        return ELBOTerms(total, reconstruction, kl, tuple(split.closed))

    def _split(self, weights: LogWeights) -> _Split:
        model, guide = weights.model_sites, weights.guide_sites
        observed = [(s, s.log_prob) for s in model.values() if s.observed]
        closed: dict[str, Tensor] = {}
        if isinstance(self.kl, AnalyticKL):
            for name in weights.latents:
                divergence = closed_form(weights, name)
                if divergence is not None:
                    closed[name] = divergence
        divergences = [(n, guide[n], weights.reduce(guide[n], kl)) for n, kl in closed.items()]
        for name, site in guide.items():
            if name in closed:
                continue
            # Auxiliary sites and factors of the guide have a density but no prior of their own.
            has_prior = name in model and not model[name].observed
            # Without a path, log q's own gradient has mean zero and would only be noise.
            only_score = site.score is not None and not site.reparameterized
            log_q = site.log_prob.detach() if only_score else site.log_prob
            term = log_q - model[name].log_prob if has_prior else log_q
            divergences.append((name, site, term))
        return _Split(observed, divergences, closed)


def _joint(weights: LogWeights, local: Tensor, rest: Tensor) -> Tensor:
    """Average over particles of the whole data set's term."""
    scaled = weights.plate_scale * local.sum(-1)
    return weights.common_scale * (rest + scaled).mean()


def _spread(weights: LogWeights, site: Site) -> Tensor:
    """A site's log-density as a cost, ``(K, B, *plates)``."""
    return weights.by_plates(site, site.batch_log_prob).detach()


def _scored(site: Site) -> bool:
    return site.score is not None and site.score.requires_grad


def _score(weights: LogWeights, terms: list[tuple[Site, Tensor]]) -> Tensor:
    """Score-function term: log q of each draw that has no path gradient, times its cost."""
    sites = list(weights.guide_sites.values())
    costs = [(site, weights.plate_scale * t if site.local else t) for site, t in terms]
    joined: dict[Kept, Tensor] = {}
    total = terms[0][1].new_zeros(())
    for place, site in enumerate(sites):
        if not _scored(site):
            continue
        # Other elements are no cost, unless a later latent outside the plate carries it to them.
        kept = kept_axes(site, [later for later in sites[place + 1 :] if not later.observed])
        if kept not in joined:
            joined[kept] = reduce(torch.add, (gathered(t, s, kept) for s, t in costs))
        score = gathered(scores_by_plates(site, weights.batch_size), site, kept)
        total = total + (score * joined[kept]).flatten(1).sum(1).mean()
    return weights.common_scale * total
