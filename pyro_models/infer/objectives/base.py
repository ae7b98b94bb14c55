"""What every objective is: a ``pyro.infer.ELBO`` made of log-weights."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro.infer
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_models.errors import OptionError
from pyro_models.infer.draws import ON_PATHS, Draws
from pyro_models.infer.record import LogWeights
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

    @abstractmethod
    def estimate(self, weights: LogWeights, kl_weight: Tensor | float = 1.0) -> Estimate:
        """Turn one run of a pair into a bound and a surrogate.

        Args:
            weights: The run.
            kl_weight: Weight of the latents' terms in the surrogate, for warm-up. The bound that is
                reported always has weight 1.
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
