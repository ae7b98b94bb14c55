"""Probabilistic PCA against scikit-learn, dense normals, and itself by other routes."""

import copy
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_models import second_moments
from pyro_models.errors import DataError, NonFiniteError, OptionError
from pyro_models.linear_gaussian import RandomAxes
from pyro_models.ppca import ProbabilisticPCA
from pyro_models.second_moments import condense, leading_eigenpairs
from tests.real_cases import standardised
from tests.unchecked import unchecked

KINDS = ["wide", "tall", "few", "most", "rank", "constant", "offset", "large"]


def data(kind: str) -> tuple[Tensor, int]:
    """Data and a latent dimension, of every shape that takes a way of its own."""

    def linear(num_data: int, dim: int, rank: int = 4) -> Tensor:
        z, axes = torch.randn(num_data, rank), torch.randn(rank, dim)
        return (2 * z @ axes + torch.randn(num_data, dim)).double()

    match kind:
        case "wide":
            return linear(20, 50), 5
        case "tall":
            return linear(400, 10), 3
        case "few":
            return linear(6, 5), 2
        case "most":
            return linear(100, 6), 5
        case "rank":
            return (torch.randn(60, 4) @ torch.randn(4, 9)).double(), 3
        case "constant":
            return torch.cat([linear(80, 6), torch.full((80, 1), 7.0)], 1), 2
        case "offset":
            return linear(200, 8) + 1e6, 2
    return linear(700, 600), 10  # the leading eigenpairs by iteration


def fitted(x: Tensor, latent_dim: int, correction: int = 0) -> ProbabilisticPCA:
    model = ProbabilisticPCA(x.shape[1], latent_dim, floor=1e-12).to(x)
    model.maximize_likelihood(x, correction)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_is_that_of_scikit_learn(kind: str) -> None:
    x, q = data(kind)
    theirs = PCA(q, svd_solver="full").fit(x.numpy())
    if len(x) < x.shape[1]:
        # Theirs averages the left-out variance over N dimensions, not over all that are left out.
        theirs.noise_variance_ *= (len(x) - q) / (x.shape[1] - q)
    model = fitted(x, q, correction=1)
    assert model.noise_variance.item() == pytest.approx(theirs.noise_variance_, rel=1e-6)
    assert model.log_prob(x).mean().item() == pytest.approx(theirs.score(x.numpy()), rel=1e-6)
    assert np.allclose(model.explained_variance, theirs.explained_variance_, rtol=1e-6)
    # Its axes too, up to their signs.
    axes = (model.loadings / model.loadings.norm(dim=0)).detach()
    assert np.allclose(np.abs((theirs.components_ @ axes.numpy()).diagonal()), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_real_data_have_the_scores_of_scikit_learn(name: str) -> None:
    x = standardised(name)
    for q in (1, 3):
        theirs = PCA(q).fit(x.numpy())
        model = fitted(x, q, correction=1)
        assert model.log_prob(x).mean().item() == pytest.approx(theirs.score(x.numpy()), rel=1e-6)
        single = ProbabilisticPCA(x.shape[1], q)
        single.maximize_likelihood(x.float(), correction=1)
        score = single.log_prob(x.float()).mean().item()
        assert score == pytest.approx(theirs.score(x.numpy()), rel=1e-5)


def test_maximum_likelihood_is_a_maximum() -> None:
    x, q = data("tall")
    model = fitted(x, q)
    best = model.log_prob(x).mean()
    gradients = torch.autograd.grad(best, list(model.parameters()))
    assert all(gradient.abs().max() < 1e-8 for gradient in gradients)
    for _ in range(20):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        assert other.log_prob(x).mean() < best
    # And with the divisor N: scikit-learn's is N - 1, which has a lower likelihood.
    assert fitted(x, q, correction=1).log_prob(x).mean() < best


@pytest.mark.parametrize("kind", ["wide", "tall", "most"])
def test_density_and_posterior_are_those_of_the_joint_normal(kind: str) -> None:
    x, q = data(kind)
    model = fitted(x, q)
    model.mean.data += 0.3
    with torch.no_grad():
        posterior, covariance = model.posterior(x), model.covariance()
        wanted = MultivariateNormal(model.mean, covariance).log_prob(x)
        gain = model.loadings.mT @ covariance.inverse()
        spread = torch.eye(q) - gain @ model.loadings
        assert torch.allclose(posterior.log_prob, wanted, rtol=1e-9)
        assert torch.allclose(posterior.mean, (x - model.mean) @ gain.mT, atol=1e-9)
        assert torch.allclose(posterior.covariance, spread, atol=1e-9)
        assert torch.equal(posterior.scale_tril, posterior.scale_tril.tril())
        assert (posterior.scale_tril.diagonal() > 0).all()
        assert posterior.distribution().batch_shape == (len(x),)
        v = torch.randn(3, 2, x.shape[1]).double()
        assert torch.allclose(model.covariance_product(v), v @ covariance)


def test_the_gradient_of_log_prob_is_that_of_the_dense_normal() -> None:
    x, q = data("tall")
    model = fitted(x, q).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters()))
    dense = MultivariateNormal(model.mean, model.covariance()).log_prob(x).sum()
    theirs = torch.autograd.grad(dense, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-7)


def test_the_program_is_the_joint_density() -> None:
    model = ProbabilisticPCA(4, 2).double()
    x, z = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    trace: Any = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x, num_data=50)
    prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum()
    error = x - z @ model.loadings.mT - model.mean
    variance = model.noise_variance
    given_z = -0.5 * (error.square() / variance + (2 * math.pi * variance).log()).sum()
    assert torch.allclose(trace.log_prob_sum(), 10 * (prior + given_z))
    particles: Any = pyro.plate("particles", 3, dim=-2)
    trace = poutine.trace(particles(model)).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (3, 5)


def test_simulated_data_have_the_implied_covariance() -> None:
    model = ProbabilisticPCA(3, 1)
    model.set(mean=torch.tensor([5.0, 0.0, -5.0]), noise_variance=torch.tensor(0.5))
    with torch.no_grad():
        x, wanted = model(num_data=20_000), model.covariance()
    error = ((wanted.diagonal().outer(wanted.diagonal()) + wanted.square()) / len(x)).sqrt()
    assert ((x.T.cov() - wanted).abs() < 4 * error).all()
    assert ((x.mean(0) - model.mean).abs() < 4 * (wanted.diagonal() / len(x)).sqrt()).all()


@pytest.mark.parametrize("kind", ["wide", "tall", "most", "constant"])
def test_em_reaches_the_closed_form(kind: str) -> None:
    x, q = data(kind)
    wanted = fitted(x, q).log_prob(x).mean()
    model = ProbabilisticPCA(x.shape[1], q, floor=1e-12).double()
    model.initialize(x, RandomAxes(), generator=torch.Generator().manual_seed(3))
    reduced = model.condense(x)
    for _ in range(200):
        model.maximize(reduced, model.posterior(reduced))
    assert model.log_prob(x).mean().item() == pytest.approx(wanted.item(), abs=1e-3)


def test_a_step_of_em_is_that_of_tipping_and_bishop_up_to_the_latents_scale() -> None:
    x, q = data("tall")
    model = ProbabilisticPCA(x.shape[1], q).double()
    model.set(mean=x.mean(0), noise_variance=torch.tensor(2.0))
    w, variance = model.loadings.detach().clone(), model.noise_variance.item()
    s = x.mT.cov(correction=0)
    m_inverse = (w.mT @ w + variance * torch.eye(q)).inverse()
    wanted = s @ w @ (variance * torch.eye(q) + m_inverse @ w.mT @ s @ w).inverse()
    noise = (s - s @ w @ m_inverse @ wanted.mT).trace() / x.shape[1]
    moment = variance * m_inverse + m_inverse @ w.mT @ s @ w @ m_inverse  # E z z'
    model.maximize(x, model.posterior(x))
    assert model.noise_variance.item() == pytest.approx(noise.item())
    ours = model.loadings @ model.loadings.mT
    assert torch.allclose(ours, wanted @ moment @ wanted.mT)


def test_condensed_data_take_the_same_steps() -> None:
    for kind in ("wide", "tall"):
        x, q = data(kind)
        model = ProbabilisticPCA(x.shape[1], q).double()
        twin = copy.deepcopy(model)
        reduced = model.condense(x)
        assert len(reduced.values) == min(x.shape) + 1
        for _ in range(3):
            one, other = model.posterior(x), twin.posterior(reduced)
            assert torch.allclose(one.log_prob.mean(), other.log_prob)
            model.maximize(x, one)
            twin.maximize(reduced, other)
        assert torch.allclose(model.covariance(), twin.covariance(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["tall", "wide", "constant", "offset"])
def test_second_moments_of_many_data_are_as_good(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, q = data(kind)
    exact = condense(x)
    monkeypatch.setattr(second_moments, "_EXACT_WORK", 0)
    monkeypatch.setattr(second_moments, "_CHUNK", 100)
    monkeypatch.setattr(second_moments, "_BLOCK", 3)
    other = condense(x)
    for one, two in ((exact.deviations, other.deviations), (exact.values, other.values)):
        assert torch.allclose(one.mT @ one, two.mT @ two, rtol=1e-10, atol=1e-9)
    model = ProbabilisticPCA(x.shape[1], q, floor=1e-12).double()
    model.maximize_likelihood(other)
    wanted = fitted(x, q)
    assert model.noise_variance.item() == pytest.approx(wanted.noise_variance.item(), rel=1e-7)


def test_leading_eigenpairs_by_iteration_are_those_of_the_decomposition() -> None:
    flat = torch.randn(700, 600).double()  # no gap anywhere: the hardest
    values, axes = leading_eigenpairs(flat, 12)
    wanted = torch.linalg.svdvals(flat).square()
    assert torch.allclose(values, wanted[:12], rtol=1e-5)
    assert torch.allclose(axes.mT @ axes, torch.eye(12).double(), atol=1e-10)


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
    model = ProbabilisticPCA(dim, 1 + seed % (dim - 1), floor=1e-3).to(dtype)
    model.initialize(x, RandomAxes(), generator)
    bound = -math.inf
    for _ in range(8):
        posterior = model.posterior(x)
        now = posterior.log_prob.mean().item()
        assert now >= bound - (1e-9 if double else 2e-4) * max(1.0, abs(now))
        bound = now
        model.maximize(x, posterior)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_stepwise_statistics_make_the_step_of_all_data() -> None:
    x, q = data("tall")
    model = ProbabilisticPCA(x.shape[1], q).double()
    model.initialize(x, RandomAxes())
    parts = [model.statistics(part, model.posterior(part)) for part in x.split(100)]
    mean = type(parts[0])(*(sum(column) / 4 for column in zip(*parts, strict=True)))
    twin = copy.deepcopy(model)
    twin.maximize_statistics(mean)
    before, after = model.log_prob(x).mean(), twin.log_prob(x).mean()
    assert after > before
    model.maximize_statistics(model.statistics(x, model.posterior(x)))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other)


def test_canonical_axes_are_orthogonal_descending_and_unique() -> None:
    model = ProbabilisticPCA(6, 3).double()
    rotation = torch.linalg.qr(torch.randn(3, 3).double()).Q
    twin = copy.deepcopy(model)
    twin.set(loadings=model.loadings @ rotation)
    covariance = model.covariance()
    for one in (model, twin):
        one.canonicalize()
        assert torch.allclose(one.covariance(), covariance)
    assert torch.allclose(model.loadings, twin.loadings)
    gram = model.loadings.mT @ model.loadings
    assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-12)
    assert (gram.diagonal().diff() < 0).all()


def test_free_parameters_are_counted() -> None:
    assert ProbabilisticPCA(10, 3).num_free_parameters == 10 + 30 + 1 - 3
    # One latent fewer than dimensions is the full normal: D + D (D + 1) / 2.
    assert ProbabilisticPCA(4, 3).num_free_parameters == 4 + 10


def test_the_likelihood_can_be_traced_and_its_graph_serves_missing_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ProbabilisticPCA(4, 2)
    x = torch.randn(20, 4)
    y = x.clone()
    y[:5, 0] = math.nan

    def gradient(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model.log_prob(x).mean(), list(model.parameters()))

    with monkeypatch.context() as patch:  # as the engine's step does
        patch.setattr(torch.compiler, "_is_compiling_flag", True)
        graph = make_fx(gradient)(x)
    for data in (x, y):
        for one, other in zip(graph(data), gradient(data), strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_one_datum_and_duplicates_fit() -> None:
    for x in (torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(10, 3)):
        model = ProbabilisticPCA(3, 2)
        model.maximize_likelihood(x)
        assert model.noise_variance.item() == pytest.approx(1e-6, rel=1e-3)
        for _ in range(3):
            model.maximize(x, model.posterior(x))
        assert torch.allclose(model.mean, x[0])
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        # The density of the best normal that the floor allows.
        assert model.log_prob(x)[0].item() == pytest.approx(
            -1.5 * math.log(2 * math.pi * 1e-6), rel=1e-3
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_far_outlier_is_an_axis(dtype: torch.dtype) -> None:
    x = torch.randn(100, 5, dtype=torch.float64)
    x[0] = 1e8
    wanted = PCA(2, svd_solver="full").fit(x.numpy())
    model = ProbabilisticPCA(5, 2).to(dtype)
    model.maximize_likelihood(x.to(dtype), correction=1)
    assert model.noise_variance.item() == pytest.approx(wanted.noise_variance_, rel=1e-4)
    model.initialize(x.to(dtype), RandomAxes())
    before = -math.inf
    for _ in range(20):
        posterior = model.posterior(x.to(dtype))
        assert posterior.log_prob.mean() > before - 1e-2
        before = posterior.log_prob.mean().item()
        model.maximize(x.to(dtype), posterior)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ProbabilisticPCA(0, 1), "data_dim=0"),
        (lambda: ProbabilisticPCA(3, 3), "latent_dim=3 is not below data_dim=3"),
        (lambda: ProbabilisticPCA(1, 1), "full normal"),
        (lambda: ProbabilisticPCA(3, 1, floor=0.0), "floor=0.0"),
        (lambda: fitted(torch.ones(1, 3), 1, correction=1), "correction=1"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.tensor([[0.0, math.inf, 1.0]]), "row 0, column 1"),
        (torch.zeros(2, 4), r"\(batch, 3\)"),
        (torch.zeros(2, 3).double(), "torch.float64"),
    ],
)
def test_data_it_cannot_explain_are_refused(x: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words), unchecked():
        ProbabilisticPCA(3, 2).check(x)


def test_numbers_that_overflow_are_named() -> None:
    with pytest.raises(NonFiniteError, match="scale them"):
        second_moments._cholesky(torch.full((3, 3), math.inf).double())


def test_gradient_ascent_on_the_marginal_reaches_the_closed_form() -> None:
    x, q = data("tall")
    x = ((x - x.mean(0)) / x.std(0)).float()
    wanted = fitted(x, q).log_prob(x).mean().item()
    model = ProbabilisticPCA(x.shape[1], q)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (-model.log_prob(x).mean()).backward()
        optimizer.step()
    assert model.log_prob(x).mean().item() == pytest.approx(wanted, abs=1e-3)
