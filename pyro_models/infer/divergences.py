"""KL of guide from prior at a latent: in closed form where there is one, and by dimension."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyro_models.infer.record import LogWeights
from pyro_models.infer.sites import Site, is_point_mass, spread_to_weights


@dataclass(frozen=True)
class DimensionKL:
    """KL of one latent by dimension, in one run of a pair."""

    terms: Tensor
    """``(K, B, D)`` inside the data plate and ``(K, D)`` outside; the last sums to the latent's."""
    exact: bool
    """Whether each is a closed form, given what is drawn before; else estimated at the draws."""
    split: bool
    """Whether the latent's dimensions are apart; else there is one term for all of them."""


def closed_form(weights: LogWeights, name: str) -> Tensor | None:
    """KL of guide from prior at a site, in its batch shape.

    ``None`` where there is no closed form or it would be wrong.
    """
    if not _may_be_closed(weights, name):
        return None
    try:
        return kl_divergence(weights.guide_sites[name].fn, weights.model_sites[name].fn)
    except NotImplementedError:
        return None


def by_dimension(weights: LogWeights, name: str, *, closed: bool = True) -> DimensionKL | None:
    r"""KL of guide from prior by dimension of a latent,

    .. math:: KL(q \| p) = \sum_j KL(q_j \| p_j), \qquad q = \prod_j q_j, \; p = \prod_j p_j .

    Dimensions are those that ``to_event`` and ``expand`` made, in order, and those of plates other
    than the data's. What is dependent in guide or prior is one dimension.

    Args:
        weights: A run of the pair.
        name: A latent.
        closed: Whether to take the closed form where there is one.

    Returns:
        The terms; ``None`` where the guide's site is a point mass, whose density is elsewhere.
    """
    prior, site = weights.model_sites[name], weights.guide_sites[name]
    if is_point_mass(site.fn):
        return None
    q, p, events = _factors(site.fn, prior.fn)
    split = not (q.event_shape.numel() > 1 or p.event_shape.numel() > 1)
    if closed and _may_be_closed(weights, name):
        try:
            terms = _spread(weights, site, kl_divergence(q, p), events)
            return DimensionKL(terms, True, split)
        except NotImplementedError:
            pass  # no closed form: estimated below
    log_q = q.log_prob(site.value)
    # Without a path, log q's own gradient has mean zero and would only be noise.
    log_q = log_q.detach() if site.score is not None and not site.reparameterized else log_q
    terms = _spread(weights, site, log_q, events)
    terms = terms - _spread(weights, prior, p.log_prob(site.value), events)
    return DimensionKL(terms, False, split)


def kl_per_datum(weights: LogWeights) -> dict[str, DimensionKL]:
    """KL by dimension of each latent that has one, averaged to ``(D,)``, in nats per datum."""
    found = {name: by_dimension(weights, name) for name in weights.latents}
    return {
        name: DimensionKL(_per_datum(weights, name, kl.terms), kl.exact, kl.split)
        for name, kl in found.items()
        if kl is not None
    }


def _per_datum(weights: LogWeights, name: str, terms: Tensor) -> Tensor:
    mean = terms.mean(0)
    local = weights.guide_sites[name].local
    share = mean.mean(0) if local else mean / weights.num_data
    return weights.common_scale * share


def _may_be_closed(weights: LogWeights, name: str) -> bool:
    prior, site = weights.model_sites[name], weights.guide_sites[name]
    if not _same(site.mask, prior.mask) or not _same(site.factor, prior.factor):
        return False
    return _parents_drawn_first(weights, name) and not is_point_mass(site.fn)


def _same(one: Any, other: Any) -> bool:
    """Whether two masks or scales are certainly equal; tensors only if they are the same object."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return bool(one == other)


def _parents_drawn_first(weights: LogWeights, name: str) -> bool:
    r"""Whether all that the prior of a latent may depend on is drawn before it in the guide.

    The divergence given its parents, :math:`E_{q(\text{parents})} KL(q(z) \| p(z \mid
    \text{parents}))`, is a term of the ELBO only if the parents do not depend on z under q.
    """
    latents = weights.latents
    parents = set(latents[: latents.index(name)])
    drawn = list(weights.guide_sites)
    return parents <= set(drawn[: drawn.index(name)])


def _factors(q: Any, p: Any) -> tuple[Any, Any, int]:
    """Both distributions with as many event dimensions made batch dimensions as both allow."""
    depths = [f.reinterpreted_batch_ndims if isinstance(f, Independent) else 0 for f in (q, p)]
    events = min(depths)
    return _opened(q, events), _opened(p, events), events


def _opened(fn: Any, events: int) -> Any:
    if not events:
        return fn
    rest = fn.reinterpreted_batch_ndims - events
    return Independent(fn.base_dist, rest) if rest else fn.base_dist


def _spread(weights: LogWeights, site: Site, batch: Tensor, events: int) -> Tensor:
    count, size = weights.num_particles, weights.batch_size
    return spread_to_weights(site, batch, events, count, size, weights.sums)
