"""Score-function gradients of the ELBO, with a baseline chosen site by site."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer.dependencies import dependents
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
from pyro_models.infer.objectives.multi_sample import require_densities
from pyro_models.infer.record import KLWeight, LogWeights, weight_of
from pyro_models.infer.sites import Site
from pyro_models.infer.weights import Program

_State = DecayingAverage | Learned


@dataclass(frozen=True)
class _Cost:
    """What one latent's draws cost, per datum of the whole set's ``scale``."""

    score: Float[Tensor, "K *M"]
    value: Float[Tensor, "K *M"]
    scale: float


class ScoreFunction(Objective):
    r"""The ELBO, differentiated by the score function (REINFORCE),

    .. math::
        \nabla_\phi \mathcal L = E_q \Big[ \sum_z \nabla_\phi \log q(z) \,
            (\text{cost}_z - b_z) \Big], \qquad
        \text{cost}_z = \sum_{s \text{ depends on } z} \big( \log p(s) - \log q(s) \big) .

    Rao-Blackwellised: a latent's cost has only those terms that depend on its draw (found by
    running the pair once on marked tensors), and of a latent in the data plate only those of its
    own datum. The model's parameters have their usual gradient.

    Every latent is treated so, reparameterised or not, except where ``sites`` says otherwise.
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
            latent of the guide or asks for the path of one that has none, or if a latent has a
            path and no density (a ``Delta``) and is not ``Pathwise()``.

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
        return Detached(frozenset(n for n, b in self.sites.items() if isinstance(b, Pathwise)))

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
        weights = super().weights(model, guide, args, kwargs)
        self._check(weights)
        require_densities(weights, "sites={{{name!r}: Pathwise()}}")
        latents = [s for s in weights.guide_sites.values() if s.score is not None]
        for site in latents:
            baseline = self._baseline(site)
            if isinstance(baseline, _State) and _key(site.name) not in self._memory:
                self._memory[_key(site.name)] = SiteState(baseline, site.log_prob)
        weights.notes["downstream"] = dependents(model, guide, args, kwargs)
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
        for site in weights.guide_sites.values():
            if site.score is not None and site.score.requires_grad:
                surrogate = surrogate + self._score_term(weights, site, terms)
        return Estimate(bound.detach(), weights.common_scale * surrogate)

    def _baseline(self, site: Site) -> Baseline | Pathwise:
        return self.sites.get(site.name, self.baseline)

    def _check(self, weights: LogWeights) -> None:
        for name, chosen in self.sites.items():
            site = weights.guide_sites.get(name)
            if site is None or site.observed:
                raise OptionError(
                    f"sites names {name!r}, which the guide does not sample; its latents are "
                    f"{', '.join(map(repr, weights.latents))}"
                )
            if isinstance(chosen, Pathwise) and not site.reparameterized:
                raise OptionError(
                    f"sites asks for the path of {name!r}, a {type(site.fn).__name__}, which is "
                    "not reparameterised; give it a baseline"
                )

    def _predict(
        self, network: nn.Module, weights: LogWeights, site: Site, inputs: tuple[tuple, dict]
    ) -> Tensor:
        shape = torch.Size([weights.batch_size]) if _own(weights, site) else torch.Size([])
        return predict(network, *inputs, shape)

    def _score_term(self, weights: LogWeights, site: Site, terms: list[Any]) -> Tensor:
        """Score times cost less baseline, averaged over particles, and what the baseline learns."""
        cost = _cost(weights, site, terms)
        baseline = self._baseline(site)
        predicted = weights.notes["predictions"].get(site.name)
        taken_off: Tensor | float = 0.0
        if isinstance(baseline, LeaveOneOut):
            taken_off = leave_one_out(cost.value)
        elif isinstance(baseline, _State):
            taken_off = self._memory[_key(site.name)](cost.value, predicted)
        term = cost.scale * (cost.score * (cost.value - taken_off)).sum() / weights.num_particles
        if predicted is not None:
            error = cost.value - taken_off + predicted.detach() - predicted
            # Squared error a datum, in the unit of a loss: the step divides by N.
            size = weights.num_data / max(error.numel(), 1)
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


def _own(weights: LogWeights, site: Site) -> bool:
    """Whether a latent's costs are its own datum's: nothing outside the data plate sees it."""
    sites = {**weights.guide_sites, **weights.model_sites}
    seen = weights.notes["downstream"].get(site.name, frozenset(sites))
    return site.local and all(sites[name].local for name in seen if name in sites)


def _cost(weights: LogWeights, site: Site, terms: list[tuple[int, Site, Tensor]]) -> _Cost:
    """The terms that depend on a latent's draw, with its score, in matching shapes."""
    seen = weights.notes["downstream"].get(site.name)
    found = [(s, t.detach()) for _, s, t in terms if seen is None or s.name in seen]
    local, rest = weights.total(found)
    if site.score is None:
        raise OptionError(f"site {site.name!r} has no score")
    if _own(weights, site):
        return _Cost(site.score, local, weights.plate_scale)
    score = site.score.sum(-1) if site.local else site.score
    joint = weights.plate_scale * local.sum(-1) + rest
    # Per datum of the whole set, so that a baseline sees the same whatever the minibatch.
    return _Cost(score, joint / weights.num_data, float(weights.num_data))
