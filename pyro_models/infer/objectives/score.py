"""Score-function gradients of the ELBO, with a baseline chosen site by site."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer.dependencies import Dependents, dependents
from pyro_models.infer.draws import Detached, Draws
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.baselines import (
    Baseline,
    DecayingAverage,
    Learned,
    LeaveOneOut,
    NoBaseline,
    OptimizerFactory,
    Pathwise,
    SiteState,
    leave_one_out,
    predict,
)
from pyro_models.infer.objectives.costs import Kept, by_datum, gathered, kept_axes
from pyro_models.infer.record import KLWeight, LogWeights, weight_of
from pyro_models.infer.sites import Site, by_plates, is_point_mass, scores_by_plates
from pyro_models.infer.weights import Program

_State = DecayingAverage | Learned


@dataclass(frozen=True)
class _Cost:
    """What one latent's draws cost, per datum of the whole set's ``scale``."""

    score: Float[Tensor, "K B *plates"]
    value: Float[Tensor, "K B *plates"]
    present: Tensor | None
    """Which elements have a cost: not those whose every term is masked. ``None`` for all."""
    count: int
    """How many draws share the whole set between them."""
    scale: float


class ScoreFunction(Objective):
    r"""The ELBO, differentiated by the score function (REINFORCE),

    .. math::
        \nabla_\phi \mathcal L = E_q \Big[ \sum_z \nabla_\phi \log q(z) \,
            (\text{cost}_z - b_z) \Big], \qquad
        \text{cost}_z = \sum_{s \text{ depends on } z} \big( \log p(s) - \log q(s) \big) .

    Rao-Blackwellised: a latent's cost has only those terms that depend on its draw (found by
    running the pair once on marked tensors), and of a latent in plates, the data's or others, only
    those of the draw's own element of each plate in which all that depends on it lies too: elements
    of a plate must not see each other's draws, but for sites outside it. The model's parameters
    have their usual gradient.

    Every latent is treated so, reparameterised or not, except where ``sites`` says otherwise, and
    except point masses (``Delta``), which are computed and not drawn.
    Baselines see costs per datum, and the scale N / B multiplies afterwards, so minibatches of
    other sizes do not upset a running mean.

    ``DecayingAverage`` and ``Learned`` remember past steps. A ``Step``, and so ``fit``, keeps a
    copy of the objective to itself; under stock ``SVI`` the objective remembers, so make one a fit.

    Args:
        num_particles: K, draws averaged.
        baseline: ``NoBaseline()``, ``LeaveOneOut()``, ``DecayingAverage(decay)`` or
            ``Learned(network, optimizer)``.
        sites: By name of a latent, another baseline, or ``Pathwise()``.

    Raises:
        OptionError: If an argument cannot work, or at the first run, if ``sites`` names what is no
            latent of the guide, asks for the path of one that has none, or names a point mass
            whose path ends at another latent's draw, as autoguides make; or if the guide has
            stock Pyro's ``infer={"baseline": ...}``.

    References:
        Williams 1992, "Simple statistical gradient-following algorithms"; Ranganath, Gerrish and
        Blei 2014, https://arxiv.org/abs/1401.0118; Mnih and Gregor 2014,
        https://arxiv.org/abs/1402.0030

    Example:
        >>> ScoreFunction(10, LeaveOneOut(), sites={"z": Pathwise()})
        ScoreFunction(num_particles=10, baseline=LeaveOneOut(), sites={'z': Pathwise()})
    """

    def __init__(
        self,
        num_particles: int = 1,
        baseline: Baseline = NoBaseline(),  # noqa: B008 (immutable)
        sites: Mapping[str, Baseline | Pathwise] | None = None,
    ):
        super().__init__(num_particles)
        self.baseline = baseline
        self.sites = dict(sites or {})
        if not isinstance(baseline, Baseline):
            raise OptionError(
                f"baseline is {baseline!r}; give NoBaseline(), LeaveOneOut(), DecayingAverage() or "
                "Learned(network, optimizer)"
            )
        for name, chosen in self.sites.items():
            if not isinstance(chosen, Baseline | Pathwise):
                raise OptionError(f"sites[{name!r}] is {chosen!r}; give a baseline or Pathwise()")
        if num_particles < 2 and LeaveOneOut() in (baseline, *self.sites.values()):
            raise OptionError(
                f"num_particles is {num_particles}; LeaveOneOut() takes at least 2, or take "
                "DecayingAverage()"
            )
        learned = [b for b in (baseline, *self.sites.values()) if isinstance(b, Learned)]
        if len({id(one.optimizer) for one in learned}) > 1:
            raise OptionError("the learned baselines have different optimizers; share one")
        self._networks = nn.ModuleList(dict.fromkeys(one.network for one in learned))
        self._optimizer = learned[0].optimizer if learned else None
        self._memory = nn.ModuleDict()

    def __repr__(self) -> str:
        others = f", sites={self.sites}" if self.sites else ""
        return (
            f"ScoreFunction(num_particles={self.num_particles}, baseline={self.baseline}{others})"
        )

    @property
    def draws(self) -> Draws:
        """Constants, but for the sites that keep their paths."""
        kept = frozenset(n for n, b in self.sites.items() if isinstance(b, Pathwise))
        return Detached(kept, point_masses=True)

    @property
    def state(self) -> nn.Module | None:
        """Running means and the learned baselines' networks; ``None`` where no baseline learns."""
        if not any(isinstance(chosen, _State) for chosen in (self.baseline, *self.sites.values())):
            return None
        return nn.ModuleDict({"networks": self._networks, "memory": self._memory})

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """Makes the learned baselines' optimiser."""
        return self._optimizer

    def weights(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        """Run the pair, and find out what depends on which latent."""
        downstream = dependents(model, guide, args, kwargs)
        weights = super().weights(model, guide, args, kwargs)
        self._check(weights, downstream)
        latents = [s for s in weights.guide_sites.values() if s.score is not None]
        for site in latents:
            baseline = self._baseline(site)
            if isinstance(baseline, _State) and _key(site.name) not in self._memory:
                self._memory[_key(site.name)] = SiteState(baseline, site.log_prob)
        weights.notes["downstream"] = downstream
        weights.notes["predictions"] = {
            site.name: self._predict(baseline.network, weights, site, (args, kwargs))
            for site in latents
            if isinstance(baseline := self._baseline(site), Learned)
        }
        return weights

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the ELBO from one run; see ``Objective.estimate``."""
        bound = _whole(weights, _terms(weights, 1.0))
        terms = _terms(weights, kl_weight)
        # log q of a detached draw has a gradient of mean zero, which would only be noise.
        noise = {s.name for s in weights.guide_sites.values() if s.score is not None}
        noise -= {name for name, chosen in self.sites.items() if isinstance(chosen, Pathwise)}
        kept = [
            (site, term.detach() if sign < 0 and site.name in noise else term)
            for sign, site, term in terms
        ]
        local, rest = weights.total(kept)
        surrogate = (weights.plate_scale * local.sum(-1) + rest).mean()
        scored = [s for s in weights.guide_sites.values() if _learns(s)]
        costs = _spread(weights, kl_weight) if scored else []
        for site in scored:
            surrogate = surrogate + self._score_term(weights, site, costs)
        return Estimate(bound.detach(), weights.common_scale * surrogate)

    def _baseline(self, site: Site) -> Baseline | Pathwise:
        return self.sites.get(site.name, self.baseline)

    def _check(self, weights: LogWeights, downstream: Dependents) -> None:
        for site in weights.guide_sites.values():
            if site.stock_baseline:
                raise OptionError(
                    f"site {site.name!r} of the guide has infer={{'baseline': ...}}, which is "
                    "TraceGraph_ELBO's and would change nothing here; take it out and give "
                    f"sites={{{site.name!r}: DecayingAverage()}} or Learned(...)"
                )
        for name, chosen in self.sites.items():
            if name not in weights.guide_sites or weights.guide_sites[name].observed:
                raise OptionError(
                    f"sites names {name!r}, which the guide does not sample; its latents are "
                    f"{', '.join(map(repr, weights.latents))}"
                )
            site = weights.guide_sites[name]
            if is_point_mass(site.fn):
                self._check_point_mass(name, weights, downstream)
            if isinstance(chosen, Pathwise) and not site.reparameterized:
                raise OptionError(
                    f"sites asks for the path of {name!r}, a {type(site.fn).__name__}, which is "
                    "not reparameterised; give it a baseline"
                )

    def _check_point_mass(self, name: str, weights: LogWeights, downstream: Dependents) -> None:
        """Refuse a choice for a value that is computed, where it would change nothing."""
        sources = [s for s in weights.guide_sites if s != name and name in downstream.get(s, ())]
        if isinstance(self.sites[name], Pathwise):
            ends = [s for s in sources if not isinstance(self.sites.get(s), Pathwise)]
            if not ends:
                return
            problem = f"whose path ends at the draw of {', '.join(map(repr, ends))}"
            if not all(weights.guide_sites[s].reparameterized for s in ends):
                ends = []  # of which none could have a path: the rest has it without being named
        else:
            ends, problem = sources, "which is computed and not drawn"
        instead = f"name {', '.join(map(repr, ends))} instead" if ends else "leave it out"
        raise OptionError(f"sites names {name!r}, a Delta in the guide, {problem}; {instead}")

    def _predict(
        self, network: nn.Module, weights: LogWeights, site: Site, inputs: tuple[tuple, dict]
    ) -> Tensor:
        own = by_datum(_kept(weights, site))
        shape = torch.Size([weights.batch_size]) if own else torch.Size([])
        return predict(network, *inputs, shape)

    def _score_term(self, weights: LogWeights, site: Site, terms: "_Terms") -> Tensor:
        """Score times cost less baseline, averaged over particles, and what the baseline learns."""
        cost = _cost(weights, site, terms)
        baseline = self._baseline(site)
        predicted = _beside(weights.notes["predictions"].get(site.name), cost, site)
        taken_off: Tensor | float = 0.0
        if isinstance(baseline, LeaveOneOut):
            taken_off = leave_one_out(cost.value)
        elif isinstance(baseline, _State):
            taken_off = self._memory[_key(site.name)](cost.value, predicted, cost.present)
            if cost.present is not None:
                taken_off = torch.where(cost.present, taken_off, 0.0)
        term = cost.scale * (cost.score * (cost.value - taken_off)).sum() / weights.num_particles
        if predicted is not None:
            error = cost.value - taken_off + predicted.detach() - predicted
            if cost.present is not None:
                error = torch.where(cost.present, error, 0.0)
            # Squared error a datum, in the unit of a loss: the step divides by N.
            size = weights.num_data / max(cost.count, 1)
            term = term - size * error.square().sum() / weights.common_scale
        return term


def _key(name: str) -> str:
    """The name of a site as that of a module, which has no dots and is no attribute's."""
    return "at " + name.replace("%", "%25").replace(".", "%2E")


def _terms(weights: LogWeights, kl_weight: KLWeight) -> list[tuple[int, Site, Tensor]]:
    """Signed terms of the ELBO by site: log p with 1, - log q with -1."""
    model = [
        (1, s, s.log_prob if s.observed else weight_of(kl_weight, s.name) * s.log_prob)
        for s in weights.model_sites.values()
    ]
    guide = weights.guide_sites.values()
    return model + [(-1, s, -weight_of(kl_weight, s.name) * s.log_prob) for s in guide]


def _whole(weights: LogWeights, terms: list[tuple[int, Site, Tensor]]) -> Tensor:
    local, rest = weights.total([(site, term) for _, site, term in terms])
    return weights.common_scale * (weights.plate_scale * local.sum(-1) + rest).mean()


_Terms = list[tuple[Site, Tensor]]


def _learns(site: Site) -> bool:
    return site.score is not None and site.score.requires_grad


def _spread(weights: LogWeights, kl_weight: KLWeight) -> _Terms:
    """Terms of the ELBO as costs ``(K, B, *plates)``: by the elements of plates, no gradients."""
    found: _Terms = []
    for sites, sign in ((weights.model_sites, 1.0), (weights.guide_sites, -1.0)):
        for site in sites.values():
            drawn = sign < 0 or not site.observed
            weight = sign * weight_of(kl_weight, site.name) if drawn else sign
            log_prob = weights.by_plates(site, site.batch_log_prob)
            found.append((site, (weight * log_prob).detach()))
    return found


def _reached(weights: LogWeights, site: Site) -> frozenset[str] | None:
    """Names of the sites that depend on a latent's draw; ``None`` where that cannot be told."""
    found: frozenset[str] | None = weights.notes["downstream"].get(site.name)
    return found


def _kept(weights: LogWeights, site: Site) -> Kept:
    """The plates of a latent whose other elements do not see its draw."""
    reached = _reached(weights, site)
    sites = [*weights.guide_sites.values(), *weights.model_sites.values()]
    return kept_axes(site, [s for s in sites if reached is None or s.name in reached])


def _cost(weights: LogWeights, site: Site, terms: _Terms) -> _Cost:
    """The terms that depend on a latent's draw, with its score, in matching shapes."""
    reached, kept = _reached(weights, site), _kept(weights, site)
    found = [(s, t) for s, t in terms if reached is None or s.name in reached]
    if by_datum(kept):  # then all of them lie in the data plate
        scale = weights.plate_scale
        costs = [gathered(term, s, kept) for s, term in found]
    else:
        # Per datum of the whole set, so that a baseline sees the same whatever the minibatch.
        scale = float(weights.num_data)
        shares = (weights.plate_scale / weights.num_data, 1.0 / weights.num_data)
        costs = [gathered(term, s, kept) * shares[not s.local] for s, term in found]
    score = gathered(scores_by_plates(site, weights.batch_size), site, kept)
    particles = (weights.num_particles, *(-1,) * (score.dim() - 1))
    score, value = score.expand(particles), reduce(torch.add, costs).expand(particles)
    present = _present(weights, [s for s, _ in found], kept)
    count = value.numel()
    if site.column is not None and by_datum(kept):
        score, value = (part.narrow(1, site.column, 1) for part in (score, value))
        present = None if present is None else present.narrow(1, site.column, 1)
    return _Cost(score, value, present, count, scale)


def _present(weights: LogWeights, sites: list[Site], kept: Kept) -> Tensor | None:
    """Where a term of these sites is no mask's zero; ``None`` where there is one everywhere."""
    if any(site.mask is None or site.mask is True for site in sites):
        return None
    found = None
    for site in sites:
        mask = torch.as_tensor(site.mask, device=site.batch_log_prob.device)
        bare = replace(site, mask=None, factor=1.0)
        seen = by_plates(bare, mask.to(site.batch_log_prob.dtype), weights.batch_size)
        seen = gathered(seen, site, kept) > 0
        found = seen if found is None else found | seen
    return found


def _beside(predicted: Tensor | None, cost: _Cost, site: Site) -> Tensor | None:
    """A prediction a datum, or one for all, in the place of the data among costs by plates."""
    if predicted is None:
        return None
    placed = predicted.reshape(-1, *(1,) * (cost.value.dim() - 2))
    if site.column is not None and len(placed) > 1:
        placed = placed.narrow(0, site.column, 1)
    return placed
