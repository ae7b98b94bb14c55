"""Small pairs whose ELBO is known by enumeration, quadrature or in closed form, with its gradient.

Each case says its bound for the whole data set as a differentiable function of its parameters, for
any weight of the divergence, apart from the programs and written from the formulas alone.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import logsigmoid

DTYPE = torch.float64
NODES, WEIGHTS = (
    torch.tensor(values, dtype=DTYPE) for values in np.polynomial.hermite_e.hermegauss(40)
)
WEIGHTS = WEIGHTS / WEIGHTS.sum()

Parameters = dict[str, Tensor]
Program = Callable[[Parameters], Any]


@dataclass(frozen=True)
class Case:
    """A pair and its exact bound: E log p(x | z) - weight * KL."""

    parameters: dict[str, list[float] | float]
    model: Program
    guide: Program
    exact: Callable[[Parameters, float], Tensor]

    def start(self) -> Parameters:
        """The parameters, ready to be differentiated by."""
        return {
            name: torch.tensor(value, dtype=DTYPE, requires_grad=True)
            for name, value in self.parameters.items()
        }


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)


def normal(value: Any, loc: Any, scale: Any) -> Tensor:
    """Log-density of a normal."""
    scale = torch.as_tensor(scale, dtype=DTYPE)
    return -(((value - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2


def bernoulli(value: float, logit: Tensor) -> Tensor:
    """Log-probability of an outcome."""
    return logsigmoid(logit) if value else logsigmoid(-logit)


def expect(function: Callable[[Tensor], Tensor], loc: Tensor, scale: Tensor) -> Tensor:
    """Mean of a function of a normal variable by Gauss-Hermite quadrature."""
    return (WEIGHTS * function(loc + scale * NODES)).sum()


X = tensor(0.4, 1.9)
OUTCOMES = tensor(1.0, 0.0)
SCALE = 3.0  # six data, of which these two are the minibatch


def data(size: int = 6) -> Any:
    return pyro.plate("data", size, subsample=torch.arange(2), dim=-1)


def loop() -> Any:
    return pyro.plate("data", 6, subsample=torch.arange(2))


def path() -> Case:
    """A local normal on its path, a Bernoulli likelihood: no conjugacy."""

    def model(p: Parameters) -> None:
        with data():
            z = pyro.sample("z", dist.Normal(tensor(0.0).squeeze(), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=p["w"] * z + p["b"]), obs=OUTCOMES)

    def guide(p: Parameters) -> None:
        with data():
            pyro.sample("z", dist.Normal(p["loc"], p["log_scale"].exp()))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        for i, outcome in enumerate(OUTCOMES.tolist()):
            loc, scale = p["loc"][i], p["log_scale"][i].exp()
            fit = expect(lambda z: bernoulli(outcome, p["w"] * z + p["b"]), loc, scale)  # noqa: B023
            kl = (loc**2 + scale**2 - 1) / 2 - scale.log()
            total = total + SCALE * (fit - weight * kl)
        return total

    start: Any = {"w": 1.4, "b": -0.3, "loc": [0.5, -0.7], "log_scale": [-0.4, 0.2]}
    return Case(start, model, guide, exact)


def score_local(sequential: bool = False) -> Case:
    """A local categorical by its score."""

    def model(p: Parameters) -> None:
        with data():
            k = pyro.sample("k", dist.Categorical(logits=p["prior"]))
            pyro.sample("x", dist.Normal(p["mean"][k], 1.0), obs=X)

    def guide(p: Parameters) -> None:
        with data():
            pyro.sample("k", dist.Categorical(logits=p["logits"]))

    def loop_model(p: Parameters) -> None:
        for i in loop():
            k = pyro.sample(f"k_{i}", dist.Categorical(logits=p["prior"]))
            pyro.sample(f"x_{i}", dist.Normal(p["mean"][k], 1.0), obs=X[i])

    def loop_guide(p: Parameters) -> None:
        for i in loop():
            pyro.sample(f"k_{i}", dist.Categorical(logits=p["logits"][i]))

    def exact(p: Parameters, weight: float) -> Tensor:
        log_q, log_p = p["logits"].log_softmax(-1), p["prior"].log_softmax(-1)
        fit = normal(X.unsqueeze(-1), p["mean"], 1.0)
        return SCALE * (log_q.exp() * (fit - weight * (log_q - log_p))).sum()

    start = {
        "prior": [0.2, -0.1, 0.4],
        "mean": [-1.0, 0.5, 2.0],
        "logits": [[0.3, 0.0, -0.5], [0.1, 0.6, 0.2]],
    }
    programs = (loop_model, loop_guide) if sequential else (model, guide)
    return Case(start, *programs, exact)  # type: ignore[arg-type]


def score_global() -> Case:
    """A global Bernoulli by its score; the minibatch stands for three times its data."""

    def model(p: Parameters) -> None:
        c = pyro.sample("c", dist.Bernoulli(tensor(0.3).squeeze()))
        with data():
            pyro.sample("x", dist.Normal(p["mean"] * c, 1.0), obs=X)

    def guide(p: Parameters) -> None:
        pyro.sample("c", dist.Bernoulli(logits=p["logit"]))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        for c, prior in ((0.0, 0.7), (1.0, 0.3)):
            log_q = bernoulli(c, p["logit"])
            fit = SCALE * normal(X, p["mean"] * c, 1.0).sum()
            total = total + log_q.exp() * (fit - weight * (log_q - math.log(prior)))
        return total

    return Case({"mean": 0.8, "logit": 0.4}, model, guide, exact)


def path_below_score() -> Case:
    """A normal on its path whose parameters are chosen by a discrete latent drawn before it."""

    def model(p: Parameters) -> None:
        with data():
            k = pyro.sample("k", dist.Bernoulli(tensor(0.3).squeeze()))
            z = pyro.sample("z", dist.Normal(p["shift"] * k, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=X)

    def guide(p: Parameters) -> None:
        with data():
            k = pyro.sample("k", dist.Bernoulli(logits=p["logit"]))
            loc = torch.where(k > 0, p["loc"][1], p["loc"][0])
            pyro.sample("z", dist.Normal(loc, p["log_scale"].exp()))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        scale = p["log_scale"].exp()
        for x, (c, prior) in itertools.product(X, ((0, 0.7), (1, 0.3))):
            log_q, loc = bernoulli(c, p["logit"]), p["loc"][c]
            fit = normal(x, loc, 0.8) - scale**2 / (2 * 0.8**2)
            kl = ((loc - p["shift"] * c) ** 2 + scale**2 - 1) / 2 - scale.log()
            kl = kl + log_q - math.log(prior)
            total = total + SCALE * log_q.exp() * (fit - weight * kl)
        return total

    start: Any = {"shift": 1.5, "logit": 0.4, "loc": [0.2, 1.3], "log_scale": -0.5}
    return Case(start, model, guide, exact)


def score_below_path() -> Case:
    """A discrete latent whose probability depends on a normal drawn before it on its path."""

    def model(p: Parameters) -> None:
        with data():
            z = pyro.sample("z", dist.Normal(tensor(0.0).squeeze(), 1.0))
            k = pyro.sample("k", dist.Bernoulli(logits=p["slope"] * z))
            pyro.sample("x", dist.Normal(k + z, 1.0), obs=X)

    def guide(p: Parameters) -> None:
        with data():
            z = pyro.sample("z", dist.Normal(p["loc"], p["log_scale"].exp()))
            pyro.sample("k", dist.Bernoulli(logits=p["a"] * z + p["b"]))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        scale = p["log_scale"].exp()
        for x, c in itertools.product(X, (0.0, 1.0)):

            def inside(z: Tensor, x: Tensor = x, c: float = c) -> Tensor:
                log_q = bernoulli(c, p["a"] * z + p["b"])
                divergence = log_q - bernoulli(c, p["slope"] * z)
                return log_q.exp() * (normal(x, c + z, 1.0) - weight * divergence)

            total = total + SCALE * expect(inside, p["loc"], scale)
        kl = (p["loc"] ** 2 + scale**2 - 1) / 2 - scale.log()
        return total - SCALE * weight * len(X) * kl

    start: Any = {"slope": 0.9, "loc": 0.3, "log_scale": -0.3, "a": 0.7, "b": -0.2}
    return Case(start, model, guide, exact)


def local_below_global() -> Case:
    """A global normal on its path, and local discrete latents whose probability depends on it."""

    def model(p: Parameters) -> None:
        t = pyro.sample("t", dist.Normal(tensor(0.0).squeeze(), 1.0))
        with data():
            k = pyro.sample("k", dist.Bernoulli(logits=p["slope"] * t))
            pyro.sample("x", dist.Normal(k + t, 1.0), obs=X)

    def guide(p: Parameters) -> None:
        t = pyro.sample("t", dist.Normal(p["loc"], p["log_scale"].exp()))
        with data():
            pyro.sample("k", dist.Bernoulli(logits=p["a"] * t + p["b"]))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        scale = p["log_scale"].exp()
        for i, c in itertools.product((0, 1), (0.0, 1.0)):

            def inside(t: Tensor, i: int = i, c: float = c) -> Tensor:
                log_q = bernoulli(c, p["a"] * t + p["b"][i])
                divergence = log_q - bernoulli(c, p["slope"] * t)
                return log_q.exp() * (normal(X[i], c + t, 1.0) - weight * divergence)

            total = total + SCALE * expect(inside, p["loc"], scale)
        kl = (p["loc"] ** 2 + scale**2 - 1) / 2 - scale.log()
        return total - weight * kl

    start: Any = {"slope": 0.9, "loc": 0.3, "log_scale": -0.6, "a": 0.7, "b": [-0.2, 0.4]}
    return Case(start, model, guide, exact)


def global_below_local() -> Case:
    """A global latent drawn from the local discrete ones: each then costs all data."""

    def model(p: Parameters) -> None:
        t = pyro.sample("t", dist.Normal(tensor(0.0).squeeze(), 1.0))
        with data():
            k = pyro.sample("k", dist.Bernoulli(tensor(0.4).squeeze()))
            pyro.sample("x", dist.Normal(t + k, 1.0), obs=X)

    def guide(p: Parameters) -> None:
        with data():
            k = pyro.sample("k", dist.Bernoulli(logits=p["logit"]))
        loc = p["slope"] * k.sum(-1, keepdim=k.dim() > 1)
        pyro.sample("t", dist.Normal(loc, 0.5))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        for ks in itertools.product((0, 1), repeat=2):
            log_q = torch.stack([bernoulli(k, p["logit"][i]) for i, k in enumerate(ks)])
            log_p = tensor(*(math.log(0.4 if k else 0.6) for k in ks))
            loc = p["slope"] * sum(ks)
            fit = SCALE * (normal(X, loc + tensor(*ks), 1.0) - 0.5**2 / 2).sum()
            kl = (loc**2 + 0.5**2 - 1) / 2 - math.log(0.5) + SCALE * (log_q - log_p).sum()
            total = total + log_q.sum().exp() * (fit - weight * kl)
        return total

    return Case({"slope": 0.8, "logit": [0.3, -0.4]}, model, guide, exact)


def local_with_joint_factor() -> Case:
    """Local discrete latents whose cost lies partly outside the data plate."""

    def model(p: Parameters) -> None:
        with data():
            k = pyro.sample("k", dist.Bernoulli(tensor(0.4).squeeze()))
            pyro.sample("x", dist.Normal(p["mean"] * k, 1.0), obs=X)
        pyro.factor("pair", 4.0 * k.prod(-1, keepdim=k.dim() > 1))

    def guide(p: Parameters) -> None:
        with data():
            pyro.sample("k", dist.Bernoulli(logits=p["logit"]))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        for ks in itertools.product((0, 1), repeat=2):
            log_q = torch.stack([bernoulli(k, p["logit"][i]) for i, k in enumerate(ks)])
            log_p = tensor(*(math.log(0.4 if k else 0.6) for k in ks))
            fit = SCALE * normal(X, p["mean"] * tensor(*ks), 1.0).sum() + 4.0 * math.prod(ks)
            cost = fit - weight * SCALE * (log_q - log_p).sum()
            total = total + log_q.sum().exp() * cost
        return total

    return Case({"mean": 0.9, "logit": [0.3, -0.4]}, model, guide, exact)


def nested_scales() -> Case:
    """Discrete latents in a subsampled plate inside another one: their scale is not the data's."""
    outer, y = 5.0, torch.stack([X, X + 0.5])

    def plates() -> Any:
        return pyro.plate("groups", 10, subsample=torch.arange(2), dim=-2)

    def model(p: Parameters) -> None:
        t = pyro.sample("t", dist.Normal(tensor(0.0).squeeze(), 1.0))
        with plates(), data():
            k = pyro.sample("k", dist.Bernoulli(tensor(0.4).squeeze()))
            pyro.sample("x", dist.Normal(p["mean"] * k + t, 1.0), obs=y)

    def guide(p: Parameters) -> None:
        pyro.sample("t", dist.Normal(tensor(0.2).squeeze(), 0.5))
        with plates(), data():
            pyro.sample("k", dist.Bernoulli(logits=p["logit"]))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = -weight * ((tensor(0.2) ** 2 + 0.5**2 - 1) / 2 - math.log(0.5)).sum()
        for c, prior in ((0.0, 0.6), (1.0, 0.4)):
            log_q = bernoulli(c, p["logit"])
            fit = (normal(y, p["mean"] * c + 0.2, 1.0) - 0.5**2 / 2).sum()
            cost = fit - weight * 4 * (log_q - math.log(prior))
            total = total + outer * SCALE * log_q.exp() * cost
        return total

    return Case({"mean": 0.9, "logit": 0.3}, model, guide, exact)


def masked_and_tempered() -> Case:
    """The prior and guide of a discrete latent masked at one datum and tempered at both."""
    mask: Any = torch.tensor([True, False])

    def both(weight: float) -> Any:
        return poutine.scale(scale=weight)

    def model(p: Parameters) -> None:
        with data():
            with poutine.mask(mask=mask), both(0.2):
                k = pyro.sample("k", dist.Bernoulli(tensor(0.4).squeeze()))
            pyro.sample("x", dist.Normal(p["mean"] * k, 1.0), obs=X)

    def guide(p: Parameters) -> None:
        with data(), poutine.mask(mask=mask), both(0.2):
            pyro.sample("k", dist.Bernoulli(logits=p["logit"]))

    def exact(p: Parameters, weight: float) -> Tensor:
        total = tensor(0.0).sum()
        for i, (c, prior) in itertools.product((0, 1), ((0.0, 0.6), (1.0, 0.4))):
            log_q = bernoulli(c, p["logit"][i])
            divergence = 0.2 * (log_q - math.log(prior)) if i == 0 else 0.0
            fit = normal(X[i], p["mean"] * c, 1.0)
            total = total + SCALE * log_q.exp() * (fit - weight * divergence)
        return total

    return Case({"mean": 0.9, "logit": [0.3, -0.5]}, model, guide, exact)


def normal_by_score() -> Case:
    """A normal whose user asked for the score function."""
    plain = path()

    def guide(p: Parameters) -> None:
        with data():
            fn = dist.Normal(p["loc"], p["log_scale"].exp()).has_rsample_(False)
            pyro.sample("z", fn)

    return Case(plain.parameters, plain.model, guide, plain.exact)


def scaled_alike() -> Case:
    """A scale on the whole of both programs, beside the minibatch's."""
    plain = score_local()

    def model(p: Parameters) -> None:
        with poutine.scale(scale=0.1):
            plain.model(p)

    def guide(p: Parameters) -> None:
        with poutine.scale(scale=0.1):
            plain.guide(p)

    return Case(plain.parameters, model, guide, lambda p, w: 0.1 * plain.exact(p, w))


CASES: dict[str, Callable[[], Case]] = {
    "path": path,
    "score, local": score_local,
    "score, local, sequential plate": lambda: score_local(sequential=True),
    "score, global": score_global,
    "path below score": path_below_score,
    "score below path": score_below_path,
    "local below global": local_below_global,
    "global below local": global_below_local,
    "local with joint factor": local_with_joint_factor,
    "nested scales": nested_scales,
    "masked and tempered": masked_and_tempered,
    "normal by score": normal_by_score,
    "scaled alike": scaled_alike,
}
