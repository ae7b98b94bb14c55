"""The pairs under the laws: every name of ``pairs.names()``, and variants of each.

A model of outputs given inputs is held to the laws with its inputs given, see ``Given``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

import guides
from guides import AmortizedCategorical, BetaFactor, LinearGaussian
from pyro_models import pairs
from pyro_models.covariances import Diagonal, Full, Spherical, Tied
from pyro_models.infer import ELBO, LeaveOneOut, Pathwise, ScoreFunction
from pyro_models.likelihoods import (
    Categorical,
    ContinuousBernoulli,
    LearnedScale,
    Normal,
    OptimalScale,
    Poisson,
)
from pyro_models.semi_supervised import LearnedWeights

BATCH, DIM = 6, 5


@dataclass(frozen=True)
class Case:
    """A pair to be made anew for each law, with a few data that it can explain."""

    name: str
    """Of the pair, as ``pairs.names()`` has it."""
    data: Callable[[], Tensor]
    """``(BATCH, DIM)``."""
    options: Callable[[], dict[str, Any]] = field(default=dict)
    """Made anew each time, for options may be modules with parameters."""
    given: bool = False
    """Whether the pair is made for inputs and outputs."""
    labelled: bool = False
    """Whether it is made for data and labels, some of them unknown."""
    exact: bool = False
    """Whether its objective is the log-likelihood itself, whatever is drawn."""
    spoil: Callable[[pairs.Pair], None] = field(default=lambda pair: None)
    """Takes a new pair away from an optimum that it starts at."""

    def make(self) -> tuple[pairs.Pair, Tensor]:
        """A small pair from a fixed seed, and its data."""
        pyro.set_rng_seed(1)
        x = self.data()
        return self.build(x), x

    def build(self, x: Tensor) -> pairs.Pair:
        """A small pair for some data."""
        if self.labelled:
            return self._with_labels(x)
        if not self.given:
            pair = pairs.build(self.name, x, **self.options())
            self.spoil(pair)
            return pair
        inputs = torch.linspace(-1, 1, BATCH).unsqueeze(-1)
        pair = pairs.build(self.name, (inputs, x), **self.options())
        return replace(pair, model=Given(pair.model, inputs), guide=Given(pair.guide, inputs))

    def _with_labels(self, x: Tensor) -> pairs.Pair:
        labels = torch.tensor([1, -1, 0, -1, -1, 2])
        pair = pairs.build(self.name, (x, labels), **self.options())
        self.spoil(pair)
        return replace(pair, model=Labelled(pair.model, labels), guide=Labelled(pair.guide, labels))


class Labelled(nn.Module):
    """A program of data and labels as one of data alone, the first labels for the first data."""

    labels: Tensor

    def __init__(self, program: nn.Module, labels: Tensor):
        super().__init__()
        self.program = program
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor | None = None, num_data: int | None = None) -> Any:
        count = (num_data or 1) if x is None else len(x)
        return self.program(x, self.labels[:count], num_data=num_data)

    def check(self, x: Tensor) -> None:
        check: Any = self.program.check
        check(x, self.labels[: len(x)])


class Given(nn.Module):
    """A program of inputs and data as one of data alone, the first inputs for the first data."""

    inputs: Tensor

    def __init__(self, program: nn.Module, inputs: Tensor):
        super().__init__()
        self.program = program
        self.register_buffer("inputs", inputs)

    def forward(self, x: Tensor | None = None, num_data: int | None = None) -> Any:
        count = (num_data or 1) if x is None else len(x)
        return self.program(self.inputs[:count], x, num_data=num_data)

    def check(self, x: Tensor) -> None:
        check: Any = self.program.check
        check(self.inputs[: len(x)], x)


def binary() -> Tensor:
    return torch.randint(2, (BATCH, DIM)).float()


def grey() -> Tensor:
    return torch.rand(BATCH, DIM)


def real() -> Tensor:
    return torch.randn(BATCH, DIM) * 3 + 1


def whole() -> Tensor:
    return torch.randint(4, (BATCH, DIM)).float()


def missing() -> Tensor:
    """Some values of some data are missing, and one datum altogether."""
    gone = torch.rand(BATCH, DIM) < 0.3
    gone[-1] = True
    gone[0] = False
    return real().masked_fill(gone, torch.nan)


def _two(**options: Any) -> dict[str, Any]:
    return {"num_components": 2, **options}


def _wide(pair: pairs.Pair) -> None:
    """Six data in five dimensions are explained too well by two components of their own."""
    pair.model.set(covariances=9.0 * torch.eye(DIM).expand(2, -1, -1))  # type: ignore[operator]


def _small(**options: Any) -> dict[str, Any]:
    return {"latent_dim": 2, "hidden": (4,), **options}


def _few(**options: Any) -> dict[str, Any]:
    return {"truncation": 3, "hidden": (4,), **options}


def _off_the_mean(pair: pairs.Pair) -> None:
    """Three pieces of a stick explain little more of six random data than their mean does."""
    with torch.no_grad():
        pair.model.decoder.output_bias.add_(1.0)  # type: ignore[union-attr, operator]


CASES: dict[str, Case] = {
    "vae": Case("vae", binary, _small),
    "vae/deep": Case("vae", binary, lambda: _small(hidden=(5, 4))),
    "vae/linear": Case("vae", binary, lambda: _small(hidden=())),
    "vae/full": Case("vae", binary, lambda: _small(covariance=guides.Full())),
    "vae/continuous": Case("vae", grey, lambda: _small(likelihood=ContinuousBernoulli())),
    "vae/normal": Case("vae", real, _small),
    "vae/normal-each": Case(
        "vae", real, lambda: _small(likelihood=Normal(LearnedScale(data_dim=DIM)))
    ),
    "vae/normal-optimal": Case("vae", real, lambda: _small(likelihood=Normal(OptimalScale()))),
    "vae/categorical": Case("vae", whole, lambda: _small(likelihood=Categorical(4))),
    "vae/poisson": Case("vae", whole, lambda: _small(likelihood=Poisson())),
    "belief_network": Case("belief_network", binary, lambda: {"latent_dim": 3}),
    "belief_network/two": Case("belief_network", binary, lambda: {"latent_dim": (3, 2)}),
    # The score function is noisy: more particles show the gain of a few steps.
    "belief_network/nonlinear": Case(
        "belief_network",
        binary,
        lambda: {"latent_dim": (3, 2), "hidden": (4, 3), "objective": ELBO(num_particles=5)},
    ),
    "belief_network/normal": Case(
        "belief_network", real, lambda: {"latent_dim": 3, "likelihood": Normal()}
    ),
}
CASES |= {
    "gmvae": Case("gmvae", binary, lambda: _small(num_components=3)),
    "gmvae/deep": Case(
        "gmvae",
        real,
        lambda: _small(hidden=(5, 4), component_hidden=(3, 2), covariance=guides.Full()),
    ),
    "vade": Case("vade", binary, lambda: _small(num_components=3)),
    "vade/full": Case("vade", real, lambda: _small(covariance=guides.Full())),
}
CASES |= {
    "gaussian": Case("gaussian", real, exact=True),
    "gaussian/spherical": Case("gaussian", real, lambda: {"covariance": Spherical()}, exact=True),
    **{
        f"gaussian_mixture{suffix}": Case(
            "gaussian_mixture", real, partial(_two, covariance=covariance), exact=True, spoil=_wide
        )
        for suffix, covariance in {
            "": Full(),
            "/tied": Tied(),
            "/diagonal": Diagonal(),
            "/spherical": Spherical(),
        }.items()
    },
    "gaussian_mixture/amortized": Case(
        "gaussian_mixture",
        real,
        lambda: _two(guide=AmortizedCategorical(DIM, 2, hidden=(4,))),
        spoil=_wide,
    ),
    "bayesian_gaussian_mixture": Case("bayesian_gaussian_mixture", real, _two),
    "dirichlet_process_mixture": Case("dirichlet_process_mixture", real, lambda: {"truncation": 3}),
    "dirichlet_process_mixture/beta": Case(
        "dirichlet_process_mixture",
        real,
        lambda: {"truncation": 3, "concentration": 2.0, "sticks": BetaFactor()},
    ),
    "ppca": Case("ppca", real, exact=True),
    "ppca/missing": Case("ppca", missing, exact=True),
    "ppca/amortized": Case("ppca", real, lambda: {"guide": LinearGaussian(DIM, 2)}),
    "factor_analysis": Case("factor_analysis", real, exact=True),
    "factor_analysis/missing": Case("factor_analysis", missing, exact=True),
    "regression": Case("regression", real, given=True, exact=True),
    "regression/deep": Case("regression", real, lambda: {"hidden": (4,)}, given=True, exact=True),
}
CASES |= {
    "stick_breaking_vae": Case("stick_breaking_vae", binary, _few, spoil=_off_the_mean),
    "stick_breaking_vae/normal": Case("stick_breaking_vae", real, _few, spoil=_off_the_mean),
    **{
        f"stick_breaking_vae/{name}": Case(
            "stick_breaking_vae", binary, partial(_few, posterior=posterior), spoil=_off_the_mean
        )
        for name, posterior in {
            "beta": guides.AmortizedBeta,
            "logit-normal": guides.AmortizedLogitNormal,
            "gamma-ratio": guides.AmortizedGammaRatio,
        }.items()
    },
    "semi_supervised_vae": Case("semi_supervised_vae", binary, _small, labelled=True),
    "semi_supervised_vae/learned": Case(
        "semi_supervised_vae",
        real,
        lambda: _small(weights=LearnedWeights(), covariance=guides.Full()),
        labelled=True,
    ),
    **{
        f"semi_supervised_stick_breaking_vae{suffix}": Case(
            "semi_supervised_stick_breaking_vae",
            binary,
            partial(_few, posterior=posterior),
            spoil=_off_the_mean,
            labelled=True,
        )
        for suffix, posterior in {
            "": guides.KumaraswamySticks,
            "/beta": guides.BetaSticks,
        }.items()
    },
    # The score function is noisy: more particles show the gain of a few steps.
    "semi_supervised_vae/drawn": Case(
        "semi_supervised_vae",
        binary,
        lambda: _small(objective=ScoreFunction(5, LeaveOneOut(), {"z": Pathwise()}), num_classes=4),
        labelled=True,
    ),
}
PLAIN = tuple(name for name, case in CASES.items() if name == case.name)
"""One case for each pair, with little but its defaults."""


def parameters(pair: pairs.Pair) -> dict[str, torch.nn.Parameter]:
    """What is trained, by name."""
    parts = {"model": pair.model, "guide": pair.guide}
    return {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def snapshot(pair: pairs.Pair) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {name: parameter.detach().clone() for name, parameter in parameters(pair).items()}


def sites(program: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The sample sites of one run, by name, without the indices that plates draw."""
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    }


def latents(program: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The sites of one run that are not observed."""
    found = sites(program, *args, **kwargs)
    return {name: site for name, site in found.items() if not site["is_observed"]}


def loss(pair: pairs.Pair, x: Tensor, seed: int = 2, **kwargs: Any) -> Tensor:
    """One estimate of the pair's loss from a fixed seed, with its gradient."""
    pyro.set_rng_seed(seed)
    return pair.objective.differentiable_loss(pair.model, pair.guide, x, **kwargs)
