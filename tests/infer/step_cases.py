"""Pairs and helpers that the tests of eager and of compiled steps share."""

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_models.infer import ELBO, Objective, Step
from pyro_models.programs import announce, data_plate

adam = functools.partial(torch.optim.Adam, lr=0.05)
sgd = functools.partial(torch.optim.SGD, lr=0.1)


def no_guide(*_: Any, **__: Any) -> None:
    """The guide of a model without latents."""


def mean_model(x: Tensor, num_data: int | None = None) -> None:
    """x ~ N(loc, 1): the loss is (x - loc)^2 / 2 and a constant, its gradient loc - x."""
    loc = pyro.param("loc", torch.tensor(0.5))
    with data_plate(len(x), num_data):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


class Mean(nn.Module):
    """The same, with its parameter on a module."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x: Tensor) -> None:
        announce(self, "model")
        with data_plate(len(x), None):
            pyro.sample("x", dist.Normal(self.loc.sum(), 1.0), obs=x)


def latent_model(x: Tensor, num_data: int | None = None) -> None:
    """A normal latent a datum, and a scale that is learned inside its constraint."""
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with data_plate(len(x), num_data):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def latent_guide(x: Tensor, num_data: int | None = None) -> None:
    """An amortised posterior whose two weights are parameters."""
    slope = pyro.param("slope", torch.tensor(0.3))
    spread = pyro.param("spread", torch.tensor(0.8), constraint=constraints.positive)
    with data_plate(len(x), num_data):
        pyro.sample("z", dist.Normal(slope * x, spread))


class Decoder(nn.Module):
    """The model of a small VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), 100):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class Encoder(nn.Module):
    """Its guide."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), 100):
            loc, raw = self.net(x).chunk(2, -1)
            scale = nn.functional.softplus(raw)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class Mixture(nn.Module):
    """Four Gaussians in two dimensions, the component summed out: nothing random."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(4))
        self.loc = nn.Parameter(torch.randn(4, 2))
        self.log_scale = nn.Parameter(torch.zeros(4, 2))

    def forward(self, x: Tensor) -> None:
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        with data_plate(len(x), None):
            weights = dist.Categorical(logits=self.logits)
            pyro.sample("x", dist.MixtureSameFamily(weights, components), obs=x)


def make(
    model: Any,
    guide: Any = no_guide,
    optimizer: Any = adam,
    objective: Objective | None = None,
    compiled: bool = False,
) -> Step:
    """A step, eager unless said otherwise."""
    return Step(model, guide, objective or ELBO(), optimizer, compiled=compiled)


def vae(compiled: bool, optimizer: Any = adam, particles: int = 1) -> Step:
    """The step of a small VAE from a fixed start."""
    pyro.set_rng_seed(1)
    return make(Decoder(), Encoder(), optimizer, ELBO(particles), compiled)


def values(step: Step) -> dict[str, Tensor]:
    """A copy of a step's parameters."""
    return {name: value.detach().clone() for name, value in step.parameters().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
