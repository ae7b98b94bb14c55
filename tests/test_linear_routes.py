"""Linear latents by closed form, EM and gradients: one place, from the same start."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from guides import AmortizedNormal, ExactLinearGaussian, Full, LinearGaussian
from pyro_models.factor_analysis import FactorAnalysis
from pyro_models.infer import ELBO, Cosine, MonteCarloKL, Objective, em, fit
from pyro_models.linear_gaussian import RandomAxes
from pyro_models.ppca import ProbabilisticPCA

Model = ProbabilisticPCA | FactorAnalysis


def data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(300, 2, generator=generator)
    noise = torch.randn(300, 6, generator=generator) * torch.linspace(0.3, 0.9, 6)
    return 2.0 + z @ torch.randn(2, 6, generator=generator) + noise


def start(kind: str, x: Tensor) -> Model:
    model: Model = ProbabilisticPCA(6, 2) if kind == "ppca" else FactorAnalysis(6, 2)
    model.initialize(x, RandomAxes(), torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module", params=["ppca", "factor analysis"])
def kind_and_best(request: pytest.FixtureRequest) -> tuple[str, float]:
    x, kind = data(), request.param
    model = start(kind, x)
    before = model.log_prob(x).mean().item()
    best = em(model, x, epochs=3000, tolerance=1e-9, progress=False).elbo
    assert best is not None
    assert best > before + 0.2  # there is a way to go
    return kind, best


def test_the_closed_form_is_the_optimum_of_em(kind_and_best: tuple[str, float]) -> None:
    kind, best = kind_and_best
    x = data()
    model = ProbabilisticPCA(6, 2)
    model.maximize_likelihood(x)
    found = model.log_prob(x).mean().item()
    # Factor analysis can do all that probabilistic PCA can.
    assert found == pytest.approx(best, abs=1e-4) if kind == "ppca" else found < best


@pytest.mark.parametrize(
    "route",
    [
        "exact guide",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("linear guide", "network")),
    ],
)
def test_svi_reaches_it(kind_and_best: tuple[str, float], route: str) -> None:
    kind, best = kind_and_best
    x = data()
    model = start(kind, x)
    torch.manual_seed(0)
    guide: nn.Module
    objective: Objective = ELBO(num_particles=4)
    if route == "exact guide":
        guide, objective = ExactLinearGaussian(model), ELBO(kl=MonteCarloKL())
    elif route == "linear guide":
        guide = LinearGaussian(6, 2)
        guide.initialize(x)
    else:
        guide = AmortizedNormal(6, 2, hidden=(32,), covariance=Full())
    fit(
        model, guide, x, objective=objective,
        optimizer=partial(torch.optim.Adam, lr=0.03), schedule=Cosine(),
        epochs=300 if route == "exact guide" else 700,
        batch_size=None, compiled=False, seed=0, progress=False,
    )  # fmt: skip
    assert model.log_prob(x).mean().item() == pytest.approx(best, abs=1e-2)
