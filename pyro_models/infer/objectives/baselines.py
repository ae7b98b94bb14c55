r"""Baselines of the score function: what is taken off a cost before it multiplies a score.

Anything that does not depend on the draw may be taken off, for :math:`E_q \nabla \log q = 0`; the
nearer it is to the cost, the less noise is left.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_models.errors import OptionError
from pyro_models.infer.objectives.base import OptimizerFactory
from pyro_models.infer.optimizer_state import needs_closure


@dataclass(frozen=True)
class Pathwise:
    """No score function at all: the site is differentiated along its path."""


@dataclass(frozen=True)
class NoBaseline:
    """The whole cost."""


@dataclass(frozen=True)
class LeaveOneOut:
    """The mean cost of the other particles' draws for the same datum; needs two particles."""


@dataclass(frozen=True)
class DecayingAverage:
    """A running mean of the costs of past steps."""

    decay: float = 0.9
    """Share of the mean that a step keeps, from 0 up to but without 1."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise OptionError(f"decay is {self.decay}; it must be at least 0 and less than 1")


@dataclass(frozen=True)
class Learned:
    """A network of the data that learns to predict the cost, beside a running mean of its errors.

    The input-dependent baseline of NVIL (Mnih and Gregor 2014, https://arxiv.org/abs/1402.0030),
    fitted by least squares. Their division by a running scale, which changes the step size and not
    the direction of one site's gradient, is left to the optimiser.
    """

    network: nn.Module
    """Called with the pair's arguments, without keyword arguments that it does not name (as
    ``num_data``, which ``fit`` gives); returns a number a datum, ``(B,)`` or ``(B, 1)``, for a
    site in the data plate, and one number for a site outside. A ``Step`` trains a copy. Where
    nothing else does (``objective(model, guide)(x).backward()``), give ``objective.state``'s
    parameters to your optimiser."""
    optimizer: OptimizerFactory = field(repr=False)
    """Makes the network's own optimiser; not one that evaluates the loss itself, as LBFGS."""
    decay: float = 0.9
    """Of the running mean."""

    def __post_init__(self) -> None:
        if not isinstance(self.network, nn.Module):
            raise OptionError(f"network is {self.network!r}; give a torch.nn.Module")
        if isinstance(self.optimizer, Optimizer) or not callable(self.optimizer):
            raise OptionError(
                f"optimizer is {self.optimizer!r}; give something that makes one from parameters, "
                "such as functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if not 0.0 <= self.decay < 1.0:
            raise OptionError(f"decay is {self.decay}; it must be at least 0 and less than 1")
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise OptionError(
                f"network is {self.network!r}, which has no parameter to train; take "
                "DecayingAverage()"
            )
        # It takes one step with the guide's, on gradients that are there already.
        if needs_closure(self.optimizer(self.network.parameters())):
            raise OptionError(
                "the network's optimizer evaluates the loss several times a step, as LBFGS does, "
                "and a baseline has one evaluation a step; take another, such as "
                "functools.partial(torch.optim.Adam, lr=1e-3)"
            )


Baseline = NoBaseline | LeaveOneOut | DecayingAverage | Learned


class RunningMean(nn.Module):
    """A decaying average of costs, corrected for its start at zero."""

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float, like: Tensor):
        super().__init__()
        self.decay = decay
        self.register_buffer("total", like.new_zeros(()))
        self.register_buffer("weight", like.new_zeros(()))

    def forward(self) -> Float[Tensor, ""]:
        """The mean so far; 0 before the first."""
        return self.total / self.weight.clamp(min=1e-12)

    def update(self, costs: Tensor, present: Tensor | None = None) -> None:
        """Take in the costs of one step, or those of them that are present."""
        with torch.no_grad():
            if present is None:
                mean = costs.mean()
            else:
                counted = present.expand(costs.shape)
                mean = torch.where(counted, costs, 0.0).sum() / counted.sum().clamp(min=1)
            self.total.mul_(self.decay).add_((1 - self.decay) * mean)
            self.weight.mul_(self.decay).add_(1 - self.decay)


class SiteState(nn.Module):
    """What the baseline of one site remembers."""

    def __init__(self, baseline: DecayingAverage | Learned, like: Tensor):
        super().__init__()
        self.mean = RunningMean(baseline.decay, like)

    def forward(
        self, costs: Float[Tensor, "K *M"], predicted: Tensor | None, present: Tensor | None = None
    ) -> Tensor:
        """The baseline of these costs, made without them; they are taken in for the next ones.

        Args:
            costs: One a particle and element.
            predicted: What a network expects of them.
            present: Which are no mask's zeros; all, if not given.
        """
        centre = self.mean() if predicted is None else predicted.detach() + self.mean()
        baseline = centre.expand(costs.shape).clone()
        if torch.is_grad_enabled():
            self.mean.update(costs if predicted is None else costs - predicted.detach(), present)
        return baseline


def leave_one_out(costs: Float[Tensor, "K *M"]) -> Float[Tensor, "K *M"]:
    """The mean of the other particles' costs."""
    return (costs.sum(0) - costs) / (len(costs) - 1)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Where nothing is learned, running statistics of the data stay as they are."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def predict(network: nn.Module, args: tuple, kwargs: dict[str, Any], shape: torch.Size) -> Tensor:
    """A learned baseline's predictions, in the shape of one particle's costs.

    Raises:
        OptionError: If the network returns another number of them.
    """
    accepted = inspect.signature(network.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in accepted}
    with nullcontext() if torch.is_grad_enabled() else _evaluating(network):
        predicted: Tensor = network(*args, **kwargs)
    if predicted.numel() != math.prod(shape):
        raise OptionError(
            f"the baseline's network returned shape {tuple(predicted.shape)}, and the costs of the "
            f"site have shape {tuple(shape)}; let it return one number for each of them"
        )
    return predicted.reshape(shape)
