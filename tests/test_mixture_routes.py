"""The notes' ways to fit a mixture lead to one place: EM's, from the same start."""

from collections.abc import Callable
from functools import partial

import pyro
import pytest
import torch
from torch import Tensor, nn

from guides import AmortizedCategorical, Empty, Responsibilities
from pyro_models.infer import (
    ELBO,
    VIMCO,
    Alternation,
    Cosine,
    Enumerated,
    LeaveOneOut,
    MonteCarloKL,
    Objective,
    ScoreFunction,
    Stepwise,
    em,
    fit,
    log_likelihood,
    marginal,
)
from pyro_models.mixture import GaussianMixture
from pyro_models.starts import RandomResponsibilities


def data() -> Tensor:
    """Three overlapping clusters in the plane."""
    generator = torch.Generator().manual_seed(5)
    draws = torch.randn(240, 2, generator=generator)
    turn = torch.tensor([[1.0, 0.6], [0.0, 0.5]])
    centres = torch.tensor([[-2.5, 0.0], [1.0, 1.5], [2.0, -2.0]])
    return torch.cat([draws[:100] @ turn, draws[100:160], 0.7 * draws[160:]]) + (
        centres.repeat_interleave(torch.tensor([100, 60, 80]), dim=0)
    )


def start(x: Tensor) -> GaussianMixture:
    """The same at every call, and far from where EM ends."""
    model = GaussianMixture(3, 2)
    model.initialize(x, RandomResponsibilities(), torch.Generator().manual_seed(2))
    model.set(means=torch.tensor([[-1.5, 0.5], [0.5, 2.0], [1.0, -1.0]]))
    return model


@pytest.fixture(scope="module")
def best() -> float:
    x = data()
    model = start(x)
    before = model.log_prob(x).mean().item()
    result = em(model, x, tolerance=1e-10, progress=False)
    assert result.elbo is not None
    assert result.elbo > before + 0.3  # there is a way to go
    return result.elbo


def amortized(model: GaussianMixture) -> nn.Module:
    pyro.set_rng_seed(0)
    return AmortizedCategorical(2, 3, hidden=(20,))


def empty(model: GaussianMixture) -> nn.Module:
    return Empty()


Route = tuple[Callable[[GaussianMixture], nn.Module], Objective, int]
ROUTES: dict[str, Route] = {
    "component summed out": (empty, Enumerated(), 300),
    "exact posterior, summed out": (Responsibilities, Enumerated(over=("component",)), 300),
    "exact posterior, drawn": (Responsibilities, ELBO(2, kl=MonteCarloKL()), 300),
    "amortized, score function": (amortized, ScoreFunction(5, LeaveOneOut()), 800),
    "amortized, VIMCO": (amortized, VIMCO(5), 800),
}


@pytest.mark.parametrize(
    "route",
    [pytest.param(r, marks=[pytest.mark.slow] if "amortized" in r else []) for r in ROUTES],
)
def test_svi_reaches_the_optimum_of_em(route: str, best: float) -> None:
    make_guide, objective, epochs = ROUTES[route]
    x = data()
    model = start(x)
    fit(
        model,
        make_guide(model),
        x,
        objective=objective,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        schedule=Cosine(),
        epochs=epochs,
        batch_size=None,
        compiled=False,
        seed=0,
        progress=False,
    )
    assert model.log_prob(x).mean().item() == pytest.approx(best, abs=1e-2)


def test_svi_on_the_marginal_likelihood_does(best: float) -> None:
    x = data()
    model = start(x)
    fit(
        marginal(model), Empty(), x,
        optimizer=partial(torch.optim.Adam, lr=0.05), schedule=Cosine(), epochs=300,
        batch_size=None, compiled=False, seed=0, progress=False,
    )  # fmt: skip
    assert model.log_prob(x).mean().item() == pytest.approx(best, abs=1e-2)


@pytest.mark.slow
def test_gradient_steps_by_turns_do(best: float) -> None:
    x = data()
    model = start(x)
    fit(
        model, amortized(model), x,
        objective=ScoreFunction(5, LeaveOneOut()), alternation=Alternation(2, 2),
        optimizer=partial(torch.optim.Adam, lr=0.05), schedule=Cosine(), epochs=1600,
        batch_size=None, compiled=False, seed=0, progress=False,
    )  # fmt: skip
    assert model.log_prob(x).mean().item() == pytest.approx(best, abs=1e-2)


def test_stepwise_em_does(best: float) -> None:
    x = data()
    model = start(x)
    em(model, x, epochs=60, stepwise=Stepwise(40, power=0.9), seed=0, progress=False)
    assert model.log_prob(x).mean().item() == pytest.approx(best, abs=1e-2)


def test_the_estimate_of_the_likelihood_is_exact_with_the_exact_posterior() -> None:
    x = data()
    model = start(x)
    found = log_likelihood(model, Responsibilities(model), x, num_samples=2)
    torch.testing.assert_close(found.value.float(), model.log_prob(x).detach(), atol=1e-4, rtol=0)
    assert found.standard_error.max() < 1e-4
