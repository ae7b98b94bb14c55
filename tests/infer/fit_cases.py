"""Small pairs with known answers, for the tests of ``fit`` and of what it is made of."""

import functools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_models.infer.fit import fit as _fit
from pyro_models.infer.history import Fit
from pyro_models.programs import announce, data_plate

adam = functools.partial(torch.optim.Adam, lr=0.05)

fit: Callable[..., Fit] = functools.partial(
    _fit, seed=0, progress=False, compiled=False, optimizer=adam
)


def local_model(x: Tensor, num_data: int | None = None) -> None:
    """z ~ N(0, 1), x ~ N(z, 1), so that z | x ~ N(x/2, 1/2) and x ~ N(0, 2)."""
    with data_plate(len(x), num_data):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x: Tensor, num_data: int | None = None) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    shift = pyro.param("shift", torch.tensor(1.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with data_plate(len(x), num_data):
        pyro.sample("z", dist.Normal(slope * x + shift, scale))


def global_model(x: Tensor, num_data: int | None = None) -> None:
    """mean ~ N(0, 1), x ~ N(mean, 1), so that mean | x ~ N(sum x / (N + 1), 1 / (N + 1))."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with data_plate(len(x), num_data):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def global_guide(x: Tensor, num_data: int | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def mean_model(x: Tensor) -> Tensor:
    """No latents: x ~ N(loc, 1), whose optimum is the mean of the data."""
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def no_guide(*args: object, **kwargs: object) -> None:
    """For models without latents."""


class Decoder(nn.Module):
    """z ~ N(0, I) in 2-D, x ~ N(net(z), I) in 3-D."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))

    def forward(self, x: Tensor | None = None, num_data: int | None = None) -> Tensor:
        announce(self, "model")
        with data_plate(1 if x is None else len(x), num_data):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class Centre(nn.Module):
    """Takes off a running mean, which is a buffer that each step in training changes."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean + self.shift


class Encoder(nn.Module):
    """q(z | x), normal with diagonal covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = Centre()
        self.net = nn.Linear(3, 4)

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "guide")
        loc, scale = self.net(self.centre(x)).chunk(2, -1)
        with data_plate(len(x), num_data):
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(scale)).to_event(1))


def network_pair(seed: int = 0) -> tuple[Decoder, Encoder]:
    """The same networks for the same seed, leaving torch's generator alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Decoder(), Encoder()


def normal_data(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
