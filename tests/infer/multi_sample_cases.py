"""Bounds of several particles, known exactly, with their gradients, and pairs to see them on.

A pair here has one datum, repeated along the data plate, and its parameters may be repeated too: a
run over n columns is then n independent draws of the gradient. ``every_draw`` puts each value that
K particles can have into a column of its own, with its probability, so that the mean of an
estimator is a sum and not a sample: over outcomes of discrete latents and over a grid of normals.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_models.infer import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    DoublyReparameterized,
    Objective,
    RenyiELBO,
    StickingTheLanding,
)
from tests.infer.gradient_cases import DTYPE, normal

SCALE = 3.0  # N / B
X = 0.9
DREG, STL = DoublyReparameterized(), StickingTheLanding()
ORDERS = [0.0, 0.5, 1.0, 1 - 1e-5, 2.0, -1.0, math.inf, -math.inf]

Parameters = dict[str, Tensor]
Draws = dict[str, Tensor]
Function = Callable[[Tensor], Tensor]
"""From the log-weights of K particles, (K, n), to n bounds."""


def column(p: Parameters) -> Any:
    """The data plate: as many data as the parameters are repeated, a third of the whole set."""
    size = max(v.numel() for v in p.values())
    return pyro.plate("data", round(SCALE * size), subsample=torch.arange(size), dim=-1)


def observe(loc: Tensor, scale: Any = 1.0) -> None:
    scale = torch.as_tensor(scale, dtype=DTYPE)
    shape = torch.broadcast_shapes(loc.shape, scale.shape)[-1:]
    pyro.sample("x", dist.Normal(loc, scale), obs=torch.full(shape, X, dtype=DTYPE))


def bern(value: Tensor, logit: Any) -> Tensor:
    return torch.where(value > 0.5, logsigmoid(logit), logsigmoid(-logit))


def standard() -> Any:
    return dist.Normal(torch.zeros((), dtype=DTYPE), 1.0)


@dataclass(frozen=True)
class Case:
    """A pair with its formulas, written apart from its programs."""

    model_parameters: dict[str, float]
    guide_parameters: dict[str, float]
    discrete: tuple[str, ...]
    normals: tuple[str, ...]
    model: Callable[[Parameters], None]
    guide: Callable[[Parameters], None]
    path: Callable[[Parameters, Draws], Draws]
    """The latents from outcomes of the discrete and standard normals for the others."""
    log_q: Callable[[Parameters, Draws], dict[str, Tensor]]
    """By latent."""
    log_prior: Callable[[Parameters, Draws], Tensor]
    log_likelihood: Callable[[Parameters, Draws], Tensor]

    def start(self, size: int | None = None) -> Parameters:
        """The parameters, each repeated ``size`` times if that is given."""
        values = self.model_parameters | self.guide_parameters
        shape = () if size is None else (size,)
        return {
            name: torch.full(shape, value, dtype=DTYPE, requires_grad=True)
            for name, value in values.items()
        }

    def log_weights(
        self, p: Parameters, noise: Draws, weight: float = 1.0, score: bool = True
    ) -> Tensor:
        """Log-weights at draws; without the score, log q sees constants for its parameters."""
        z = self.path(p, noise)
        seen = p if score else {n: v.detach() for n, v in p.items()}
        divergence = self.log_prior(p, z) - torch.stack([*self.log_q(seen, z).values()]).sum(0)
        return self.log_likelihood(p, z) + weight * divergence

    def log_outcome(self, p: Parameters, noise: Draws) -> Tensor:
        """Log-probability of the outcomes of each column's discrete latents, over particles."""
        log_q = self.log_q(p, self.path(p, noise))
        return sum((log_q[name].sum(0) for name in self.discrete), torch.zeros((), dtype=DTYPE))


def discrete() -> Case:
    """A mixture of two components."""

    def model(p: Parameters) -> None:
        with column(p):
            c = pyro.sample("c", dist.Bernoulli(logits=p["prior"]))
            observe(torch.where(c > 0, p["high"], p["low"]), 0.7)

    def guide(p: Parameters) -> None:
        with column(p):
            pyro.sample("c", dist.Bernoulli(logits=p["logit"]))

    return Case(
        {"prior": 0.4, "low": -0.8, "high": 1.5},
        {"logit": -0.3},
        ("c",),
        (),
        model,
        guide,
        lambda p, noise: noise,
        lambda p, z: {"c": bern(z["c"], p["logit"])},
        lambda p, z: bern(z["c"], p["prior"]),
        lambda p, z: normal(X, torch.where(z["c"] > 0, p["high"], p["low"]), 0.7),
    )


def conjugate() -> Case:
    """z ~ N(0, 1), x ~ N(z + shift, noise), and a guide somewhat off the posterior."""

    def model(p: Parameters) -> None:
        with column(p):
            z = pyro.sample("z", standard())
            observe(z + p["shift"], p["log_noise"].exp())

    def guide(p: Parameters) -> None:
        with column(p):
            pyro.sample("z", dist.Normal(p["loc"], p["log_scale"].exp()))

    return Case(
        {"shift": 0.3, "log_noise": -0.1},
        {"loc": -0.2, "log_scale": -0.3},
        (),
        ("z",),
        model,
        guide,
        lambda p, noise: {"z": p["loc"] + p["log_scale"].exp() * noise["z"]},
        lambda p, z: {"z": normal(z["z"], p["loc"], p["log_scale"].exp())},
        lambda p, z: normal(z["z"], 0.0, 1.0),
        lambda p, z: normal(X, z["z"] + p["shift"], p["log_noise"].exp()),
    )


def mixed() -> Case:
    """A discrete latent that chooses the place of a normal one, in model and guide."""

    def model(p: Parameters) -> None:
        with column(p):
            c = pyro.sample("c", dist.Bernoulli(logits=p["prior"]))
            z = pyro.sample("z", dist.Normal(p["shift"] * c, 1.0))
            observe(z, 0.8)

    def guide(p: Parameters) -> None:
        with column(p):
            c = pyro.sample("c", dist.Bernoulli(logits=p["logit"]))
            loc = torch.where(c > 0, p["high"], p["low"])
            pyro.sample("z", dist.Normal(loc, p["log_scale"].exp()))

    def loc(p: Parameters, z: Draws) -> Tensor:
        return torch.where(z["c"] > 0, p["high"], p["low"])

    return Case(
        {"prior": -0.4, "shift": 1.2},
        {"logit": 0.5, "low": 0.1, "high": 1.3, "log_scale": -0.4},
        ("c",),
        ("z",),
        model,
        guide,
        lambda p, noise: noise | {"z": loc(p, noise) + p["log_scale"].exp() * noise["z"]},
        lambda p, z: {
            "c": bern(z["c"], p["logit"]),
            "z": normal(z["z"], loc(p, z), p["log_scale"].exp()),
        },
        lambda p, z: bern(z["c"], p["prior"]) + normal(z["z"], p["shift"] * z["c"], 1.0),
        lambda p, z: normal(X, z["z"], 0.8),
    )


def chosen() -> Case:
    """A discrete latent whose probability depends on the path of a normal one drawn before it."""

    def model(p: Parameters) -> None:
        with column(p):
            z = pyro.sample("z", standard())
            c = pyro.sample("c", dist.Bernoulli(logits=p["slope"] * z))
            observe(c + z)

    def guide(p: Parameters) -> None:
        with column(p):
            z = pyro.sample("z", dist.Normal(p["loc"], p["log_scale"].exp()))
            pyro.sample("c", dist.Bernoulli(logits=p["a"] * z + p["b"]))

    return Case(
        {"slope": 0.9},
        {"loc": 0.3, "log_scale": -0.3, "a": 0.7, "b": -0.2},
        ("c",),
        ("z",),
        model,
        guide,
        lambda p, noise: noise | {"z": p["loc"] + p["log_scale"].exp() * noise["z"]},
        lambda p, z: {
            "z": normal(z["z"], p["loc"], p["log_scale"].exp()),
            "c": bern(z["c"], p["a"] * z["z"] + p["b"]),
        },
        lambda p, z: normal(z["z"], 0.0, 1.0) + bern(z["c"], p["slope"] * z["z"]),
        lambda p, z: normal(X, z["c"] + z["z"], 1.0),
    )


def chain() -> Case:
    """Two normals, the guide's second drawn from its first."""

    def model(p: Parameters) -> None:
        with column(p):
            z1 = pyro.sample("z1", standard())
            z2 = pyro.sample("z2", dist.Normal(p["slope"] * z1, 1.0))
            observe(z1 + z2, 1.2)

    def guide(p: Parameters) -> None:
        with column(p):
            z1 = pyro.sample("z1", dist.Normal(p["loc"], p["log_scale"].exp()))
            pyro.sample("z2", dist.Normal(p["a"] * z1 + p["b"], p["log_spread"].exp()))

    def path(p: Parameters, noise: Draws) -> Draws:
        z1 = p["loc"] + p["log_scale"].exp() * noise["z1"]
        return {"z1": z1, "z2": p["a"] * z1 + p["b"] + p["log_spread"].exp() * noise["z2"]}

    return Case(
        {"slope": 0.6},
        {"loc": 0.1, "log_scale": -0.2, "a": -0.3, "b": 0.4, "log_spread": -0.3},
        (),
        ("z1", "z2"),
        model,
        guide,
        path,
        lambda p, z: {
            "z1": normal(z["z1"], p["loc"], p["log_scale"].exp()),
            "z2": normal(z["z2"], p["a"] * z["z1"] + p["b"], p["log_spread"].exp()),
        },
        lambda p, z: normal(z["z1"], 0.0, 1.0) + normal(z["z2"], p["slope"] * z["z1"], 1.0),
        lambda p, z: normal(X, z["z1"] + z["z2"], 1.2),
    )


CASES: dict[str, Callable[[], Case]] = {
    "discrete": discrete,
    "conjugate": conjugate,
    "mixed": mixed,
    "chosen": chosen,
    "chain": chain,
}


def every_draw(case: Case, particles: int, nodes: int) -> tuple[Draws, Tensor]:
    """All that K particles can draw, (K, n) a latent, and the weights of the grid of normals."""
    grid = torch.linspace(-6.5, 6.5, nodes, dtype=DTYPE)
    mass = (-(grid**2) / 2).softmax(0)
    flags, names = torch.tensor([0.0, 1.0], dtype=DTYPE), (*case.discrete, *case.normals)
    keys = list(itertools.product(names, range(particles)))
    places = torch.meshgrid(
        *(torch.arange(nodes if name in case.normals else 2) for name, _ in keys), indexing="ij"
    )
    at = {key: place.reshape(-1) for key, place in zip(keys, places, strict=True)}
    noise = {
        name: torch.stack(
            [(grid if name in case.normals else flags)[at[name, k]] for k in range(particles)]
        )
        for name in names
    }
    weight = torch.ones_like(noise[names[0]][0])
    for name, k in keys:
        if name in case.normals:
            weight = weight * mass[at[name, k]]
    return noise, weight


def expectation(
    case: Case,
    p: Parameters,
    function: Function,
    noise: Draws,
    mass: Tensor,
    kl_weight: float = 1.0,
    score: bool = True,
) -> Tensor:
    """The exact mean of a bound, differentiable."""
    probability = mass * case.log_outcome(p, noise).exp()
    return (probability * function(case.log_weights(p, noise, kl_weight, score))).sum()


class Preset(Messenger):
    """Has a guide draw given outcomes and, for normals, given noise."""

    def __init__(self, noise: Draws) -> None:
        super().__init__()
        self._noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        # Outside all else, so that plates have broadcast the distribution and replays have spoken.
        if msg["done"] or msg["is_observed"] or msg["name"] not in self._noise:
            return
        fn, noise = msg["fn"], self._noise[msg["name"]]
        shape = fn.batch_shape + fn.event_shape
        # In the run that looks for plates there are no particles.
        noise = noise if noise.numel() == shape.numel() else noise[0]
        base = getattr(fn, "base_dist", fn)
        loc, scale = getattr(base, "loc", None), getattr(base, "scale", None)
        noise = noise.reshape(shape)
        msg["value"] = noise if loc is None or scale is None else loc + scale * noise
        msg["done"] = True


def renyi(alpha: float) -> Function:
    """The formula, of powers themselves: double precision has digits enough here."""
    if alpha == 1:
        return lambda log_w: log_w.mean(0)
    if math.isinf(alpha):
        return lambda log_w: log_w.min(0).values if alpha > 0 else log_w.max(0).values
    return lambda log_w: (log_w.exp() ** (1 - alpha)).mean(0).log() / (1 - alpha)


importance = renyi(0.0)


def landing(log_w: Tensor) -> Tensor:
    """What sticking the landing differentiates, where log q has no score."""
    return (log_w.detach().softmax(0) * log_w).sum(0)


@dataclass(frozen=True)
class Follows:
    """An objective of K particles and the bound it follows."""

    objective: Objective
    bound: Function
    score: bool = True
    """Whether the estimator's formula has log q's score."""
    reference: Function | None = None
    """What the guide's gradient follows, where that is not the bound."""

    @property
    def particles(self) -> int:
        return self.objective.num_particles

    @property
    def guide_bound(self) -> Function:
        return self.reference or self.bound


def means_of_pairs(log_w: Tensor) -> Tensor:
    """MIWAE(2, 2); which particles share a bound is for the objective to say, and no matter."""
    return (importance(log_w[0::2]) + importance(log_w[1::2])) / 2


def combined(log_w: Tensor) -> Tensor:
    return 0.3 * log_w.mean(0) + 0.7 * importance(log_w)


def followers(particles: int) -> dict[str, Follows]:
    """Every objective for any latent, at K particles (four for those of two bounds)."""
    found = {f"Renyi({a:g})": Follows(RenyiELBO(a, particles), renyi(a)) for a in ORDERS}
    found["IWAE"] = Follows(IWAE(particles), importance)
    found["CIWAE"] = Follows(CIWAE(0.3, particles), combined)
    found["VIMCO"] = Follows(VIMCO(particles), importance)
    if particles == 2:
        found["MIWAE"] = Follows(MIWAE(2, 2), means_of_pairs)
        found["PIWAE"] = Follows(PIWAE(2, 2), importance, reference=means_of_pairs)
    return found


def path_followers(particles: int) -> dict[str, Follows]:
    """Those that need every latent's path."""
    return {
        "DReG": Follows(IWAE(particles, DREG), importance),
        "STL": Follows(IWAE(particles, STL), importance, score=False, reference=landing),
    }
