"""What every objective is: a ``pyro.infer.ELBO`` made of log-weights."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pyro.infer
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_models.errors import OptionError
from pyro_models.infer.draws import ON_PATHS, Draws
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.remedies import FreeBits
from pyro_models.infer.sites import is_point_mass
from pyro_models.infer.weights import Program, run_pair

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]


class Estimate(NamedTuple):
    """One stochastic estimate of an objective, in nats for the whole data set."""

    bound: Float[Tensor, ""]
    """Estimate of the bound itself, detached; higher is better."""
    surrogate: Float[Tensor, ""]
    """Its gradient estimates the gradient of the bound; its value means nothing."""


class Objective(pyro.infer.ELBO):
    """Abstract parent of the objectives; a subclass says how log-weights become an estimate.

    Each is a ``pyro.infer.ELBO``, so stock ``pyro.infer.SVI`` takes it. Unlike stock Pyro's, an
    objective keeps nothing about the programs it has seen: one instance serves any number of pairs.

    Args:
        num_particles: K, draws from the guide a datum; they run as one vectorised batch.
    """

    def __init__(self, num_particles: int = 1):
        if num_particles < 1:
            raise OptionError(f"num_particles is {num_particles}; it must be at least 1")
        super().__init__(num_particles=num_particles)
        self._own_optimizer: Optimizer | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_particles={self.num_particles})"

    def weights(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        """Run a pair the way this objective needs it.

        Args:
            model: A Pyro program.
            guide: A Pyro program with the same arguments.
            args: Given to both.
            kwargs: Given to both.

        Raises:
            OptionError: If the objective is not defined for this pair; the message names the site.
            SiteMismatchError: If guide and model do not fit each other.
        """
        return run_pair(
            model, guide, args, kwargs, num_particles=self.num_particles, draws=self.draws
        )

    @property
    def draws(self) -> Draws:
        """How densities see the guide's draws."""
        return ON_PATHS

    @property
    def state(self) -> nn.Module | None:
        """What the objective remembers from step to step; ``None`` for most."""
        return None

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """Makes the optimiser for the parameters in ``state``; ``None`` where it has none."""
        return None

    def private(self) -> "Objective":
        """The objective itself, or a copy with a memory of its own."""
        return self if self.state is None else copy.deepcopy(self)

    def with_free_bits(self, free_bits: FreeBits | Mapping[str, FreeBits]) -> "Objective":
        """This objective with free bits in what is optimised, for all latents or some by name.

        Raises:
            OptionError: If the objective is none that free bits are defined for.
        """
        raise OptionError(
            f"{free_bits!r} is a floor on the ELBO's KL and has no meaning for {self!r}; take "
            "ELBO(), or a weight on the KL"
        )

    def check_latents(self, weights: LogWeights, kl_weight: KLWeight) -> None:
        """Make sure that weights and free bits have a meaning for a pair.

        Args:
            weights: A run of the pair.
            kl_weight: As for ``estimate``.

        Raises:
            OptionError: If they have none; the message names the site.
        """
        if isinstance(kl_weight, Mapping):
            require_latents("weight", kl_weight, weights)
            for name in kl_weight:
                require_own_density("weight", name, weights)

    @abstractmethod
    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Turn one run of a pair into a bound and a surrogate.

        Args:
            weights: The run.
            kl_weight: Weight of the latents' terms in the surrogate, for warm-up; one for all, or
                by name of a latent. The bound that is reported always has weight 1.
        """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Minus the bound, in nats for the whole data set, with the surrogate's gradient."""
        weights = self.weights(model, guide, args, kwargs)
        bound, surrogate = self.estimate(weights)
        return surrogate.detach() - surrogate - bound

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, in nats for the whole data set, as stock Pyro's ``loss``."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, and its gradient added to each parameter's ``grad``, as stock ``SVI`` wants.

        What the objective itself learns takes a step of its own optimiser.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        if self.state is not None and self.optimizer is not None:
            if self._own_optimizer is None:
                self._own_optimizer = self.optimizer(list(self.state.parameters()))
            self._own_optimizer.step()
            self._own_optimizer.zero_grad()
        return loss.item()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        """Unused: traces are made by ``weights``; ``pyro.infer.ELBO`` declares it abstract."""
        raise NotImplementedError("objectives run pairs through pyro_models.infer.log_weights")


def require_latents(what: str, by_site: Mapping[str, Any], weights: LogWeights) -> None:
    """Refuse names that are no latents of a pair.

    Args:
        what: Whose names they are.
        by_site: What there is by name.
        weights: A run of the pair.

    Raises:
        OptionError: If there are any; the message has the latents.
    """
    unknown = [name for name in by_site if name not in weights.latents]
    if unknown:
        known = ", ".join(map(repr, weights.latents)) or "none"
        raise OptionError(
            f"{what} names {', '.join(map(repr, unknown))}, which the pair has no latent of; its "
            f"latents are {known}"
        )


def require_own_density(what: str, name: str, weights: LogWeights) -> None:
    """Refuse a latent whose density in the guide is that of another site, as an autoguide's may be.

    Raises:
        OptionError: If it is so.
    """
    others = [n for n, s in weights.guide_sites.items() if n not in weights.latents]
    if is_point_mass(weights.guide_sites[name].fn) and others:
        raise OptionError(
            f"{what} is for {name!r}, whose density in the guide is that of {others}, so that it "
            "has no KL of its own; give one weight for all latents, or take a guide that samples "
            f"{name!r} itself"
        )
