"""Bayesian PCA: its bound by Monte Carlo, its ascent, and the dimension that it finds."""

import copy
import math
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal

from pyro_models.bayesian_ppca import BayesianPPCA
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import em
from pyro_models.linear_gaussian import RandomAxes
from tests.unchecked import unchecked


def data(num_data: int = 300, rank: int = 3, dim: int = 10) -> Tensor:
    signal = torch.randn(num_data, rank).double() @ torch.randn(rank, dim).double()
    return signal + 0.5 * torch.randn(num_data, dim)


def bound(model: BayesianPPCA, x: Tensor) -> Tensor:
    return model.posterior(x).log_prob.sum() + model.log_prior()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_dimension(seed: int) -> None:
    torch.manual_seed(seed)
    x = data()
    model = BayesianPPCA(10, 9).double()
    model.initialize(x)
    result = em(model, x, progress=False)
    assert model.active_dimensions() == 3
    assert result.history
    # What is left is the covariance of the data.
    found = model.point()
    assert found.noise_variance.item() == pytest.approx(0.25, rel=0.1)
    assert (found.covariance() - x.T.cov()).abs().max() < 0.03 * x.T.cov().max()


@pytest.mark.parametrize("rank", [0, 1, 6])
def test_it_finds_other_dimensions_from_few_and_many(rank: int) -> None:
    x = data(500, rank).float()
    model = BayesianPPCA(10, 9)
    model.initialize(x)
    reduced = model.condense(x)
    for _ in range(150):
        model.maximize(reduced, model.posterior(reduced))
    assert model.active_dimensions() == rank


def test_the_bound_is_its_monte_carlo_mean() -> None:
    x = data(20, 1, 3)
    model = BayesianPPCA(3, 2).double()
    model.initialize(x)
    for _ in range(3):
        model.maximize(x, model.posterior(x))
    posterior = model.posterior(x)
    shape = torch.tensor(model.concentration + 1.5).double()
    q: dict[str, Any] = {
        "alpha": Gamma(shape, model.alpha_rate),
        "W": MultivariateNormal(model.loadings, model.loadings_covariance),
        "mu": Normal(model.mean, model.mean_variance.sqrt()),
        "tau": Gamma(model.sigma_concentration, model.sigma_rate),
        "z": posterior.distribution(),
    }
    terms = []
    for _ in range(300):
        draws = {name: each.sample() for name, each in q.items()}
        log_q = torch.stack([each.log_prob(draws[name]).sum() for name, each in q.items()]).sum()
        tau = draws.pop("tau")
        draws["sigma"] = tau.rsqrt()
        trace: Any = poutine.trace(poutine.condition(model, draws)).get_trace(x)
        # The density of sigma and that of tau = sigma^-2: |d tau / d sigma| = 2 sigma^-3.
        log_p = trace.log_prob_sum() - math.log(2) + 3 * draws["sigma"].log()
        terms.append(log_p - log_q)
    found = torch.stack(terms)
    assert abs(found.mean() - bound(model, x)) < 4 * found.std() / len(found) ** 0.5
    assert found.std() < 50


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_data=st.integers(1, 15),
    dim=st.integers(2, 6),
    double=st.booleans(),
)
def test_the_bound_never_falls(seed: int, num_data: int, dim: int, double: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, dim, generator=generator).to(
        torch.float64 if double else torch.float32
    )
    model = BayesianPPCA(dim, 1 + seed % (dim - 1)).to(x)
    model.initialize(x, RandomAxes(), generator)
    before = -math.inf
    for _ in range(8):
        now = bound(model, x).item()
        assert now >= before - (1e-8 if double else 1e-3) * max(1.0, abs(now))
        before = now
        model.maximize(x, model.posterior(x))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_condensed_data_take_the_same_steps() -> None:
    x = data(50, 2, 6)
    model = BayesianPPCA(6, 4).double()
    model.initialize(x, RandomAxes())
    twin = copy.deepcopy(model)
    reduced = twin.condense(x)
    for _ in range(3):
        one, other = model.posterior(x), twin.posterior(reduced)
        assert torch.allclose(one.log_prob.mean(), other.log_prob)
        model.maximize(x, one)
        twin.maximize(reduced, other)
    assert torch.allclose(model.sigma_rate, twin.sigma_rate)
    assert torch.allclose(model.loadings.abs(), twin.loadings.abs(), atol=1e-7)


def test_the_program_is_the_joint_density_and_takes_particles() -> None:
    model = BayesianPPCA(3, 2).double()
    x = torch.randn(4, 3).double()
    particles: Any = pyro.plate("particles", 5, dim=-2)
    trace: Any = poutine.trace(particles(model)).get_trace(x, num_data=40)
    trace.compute_log_prob()
    shapes = {name: tuple(trace.nodes[name]["value"].shape) for name in ("alpha", "W", "mu", "z")}
    assert shapes == {"alpha": (5, 1, 2), "W": (5, 1, 3, 2), "mu": (5, 1, 3), "z": (5, 4, 2)}
    assert trace.nodes["x"]["log_prob"].shape == (5, 4)
    values = {name: trace.nodes[name]["value"][1] for name in (*shapes, "sigma")}
    values["z"] = trace.nodes["z"]["value"][1]
    wanted = Normal(
        values["z"] @ values["W"][0].mT + values["mu"][0], values["sigma"].squeeze()
    ).log_prob(x)
    assert torch.allclose(trace.nodes["x"]["unscaled_log_prob"][1], wanted.sum(-1))
    assert torch.allclose(trace.nodes["x"]["log_prob"][1], 10 * wanted.sum(-1))
    assert model(num_data=7).shape == (7, 3)
    assert model(num_data=7).isfinite().all()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(OptionError, match="latent_dim=3 is not below"):
        BayesianPPCA(3, 3)
    with pytest.raises(OptionError, match="rate=0"):
        BayesianPPCA(3, 2, rate=0.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match="index"), unchecked():
            BayesianPPCA(3, 2).check(torch.full((2, 3), bad))
