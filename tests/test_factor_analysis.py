"""Factor analysis against scikit-learn and the dense normal."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FactorAnalysis as Theirs
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_models.errors import OptionError
from pyro_models.factor_analysis import FactorAnalysis
from pyro_models.infer import em
from pyro_models.linear_gaussian import RandomAxes
from tests.real_cases import standardised


def standardized(name: str) -> Tensor:
    if name != "synthetic":
        return standardised(name)
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return draw(400, 2) @ draw(2, 8) + draw(400, 8) * torch.linspace(0.3, 1.0, 8)


@pytest.mark.parametrize(
    ("name", "latent_dim"),
    [("wine", 1), ("wine", 2), ("breast_cancer", 1), ("iris", 3), ("digits", 2), ("synthetic", 2)],
)
def test_em_has_the_score_of_scikit_learn(name: str, latent_dim: int) -> None:
    x = standardized(name)
    theirs = Theirs(latent_dim, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    model = FactorAnalysis(x.shape[1], latent_dim).double()
    model.initialize(x)
    em(model, x, epochs=2000, tolerance=1e-10, progress=False)
    assert model.log_prob(x).mean().item() == pytest.approx(theirs.score(x.numpy()), abs=1e-6)
    assert np.allclose(model.covariance().detach(), theirs.get_covariance(), atol=1e-2)


def test_single_precision_reaches_it_too_and_random_axes_lead_there() -> None:
    x = standardized("wine")
    theirs = Theirs(2, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    model = FactorAnalysis(x.shape[1], 2)
    model.initialize(x.float(), RandomAxes())
    em(model, x.float(), epochs=300, progress=False)
    score = model.log_prob(x.float()).mean().item()
    assert score == pytest.approx(theirs.score(x.numpy()), abs=1e-3)


def test_where_noise_vanishes_it_ends_at_the_floor() -> None:
    x = torch.randn(200, 1).double() * torch.ones(3)
    x[:, 1:] += torch.randn(200, 2)
    model = FactorAnalysis(3, 1, floor=1e-3).double()
    model.initialize(x)
    em(model, x, epochs=500, progress=False)
    assert model.noise_variance.min() >= 1e-3
    assert model.log_prob(x).isfinite().all()


def test_the_density_is_that_of_the_joint_normal() -> None:
    model = FactorAnalysis(5, 2).double()
    model.set(noise_variance=torch.rand(5).double() + 0.1, mean=torch.randn(5).double())
    x = torch.randn(20, 5).double()
    wanted = MultivariateNormal(model.mean, model.covariance()).log_prob(x)
    assert torch.allclose(model.log_prob(x), wanted)
    gain = model.loadings.mT @ model.covariance().inverse()
    assert torch.allclose(model.transform(x), (x - model.mean) @ gain.mT)
    trace = torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters()))
    dense = torch.autograd.grad(wanted.sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(trace, dense, strict=True))


def test_canonical_axes_make_the_latents_independent_given_data() -> None:
    model = FactorAnalysis(6, 3).double()
    model.set(noise_variance=torch.rand(6).double() + 0.1)
    before = model.covariance()
    model.canonicalize()
    assert torch.allclose(model.covariance(), before)
    covariance = model.posterior(torch.zeros(1, 6).double()).covariance
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-12)
    assert (covariance.diagonal().diff() > 0).all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_data=st.integers(1, 12),
    dim=st.integers(2, 6),
    missing=st.sampled_from([0.0, 0.3]),
    double=st.booleans(),
)
def test_em_never_lowers_the_likelihood(
    seed: int, num_data: int, dim: int, missing: float, double: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    x = torch.randn(num_data, dim, generator=generator, dtype=dtype)
    x[:, 0] *= 10
    gone = torch.rand(num_data, dim, generator=generator) < missing
    gone[0] = False
    x[gone] = math.nan
    model = FactorAnalysis(dim, 1 + seed % (dim - 1), floor=1e-3).to(dtype)
    model.initialize(x, RandomAxes(), generator)
    bound = -math.inf
    for _ in range(8):
        posterior = model.posterior(x)
        now = posterior.log_prob.mean().item()
        assert now >= bound - (1e-9 if double else 2e-4) * max(1.0, abs(now))
        bound = now
        model.maximize(x, posterior)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_units_do_not_matter() -> None:
    x = standardized("wine")
    scale = torch.logspace(-2, 3, x.shape[1]).double()
    scores = []
    for data in (x, x * scale):
        model = FactorAnalysis(x.shape[1], 2, floor=1e-9).double()
        model.initialize(data)
        em(model, data, epochs=400, tolerance=1e-10, progress=False)
        scores.append(model.log_prob(data).mean().item())
    assert scores[1] + scale.log().sum().item() == pytest.approx(scores[0], abs=1e-5)


def test_free_parameters_are_counted_and_sizes_checked() -> None:
    assert FactorAnalysis(10, 3).num_free_parameters == 10 + 30 + 10 - 3
    with pytest.raises(OptionError, match="latent_dim=4 is not below"):
        FactorAnalysis(4, 4)
