"""Missing values: summed out as the dense normal has it, and imputed as well as can be."""

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_models.errors import DataError, NonFiniteError
from pyro_models.factor_analysis import FactorAnalysis
from pyro_models.infer import em
from pyro_models.linear_gaussian import LinearGaussian, RandomAxes
from pyro_models.ppca import ProbabilisticPCA

MODELS = [ProbabilisticPCA, FactorAnalysis]
each = pytest.mark.parametrize("kind", MODELS)


def holes(x: Tensor, share: float = 0.3) -> Tensor:
    return x.masked_fill(torch.rand(x.shape) < share, math.nan)


def make(kind: Any, dim: int = 6, latent_dim: int = 2) -> LinearGaussian:
    model = kind(dim, latent_dim).double()
    model.set(mean=torch.randn(dim).double(), noise_variance=torch.rand_like(model.raw_noise) + 0.5)
    return model


def conditional(model: LinearGaussian, row: Tensor) -> tuple[Tensor, Tensor]:
    """log p of what was seen, and the mean of x given it, from the dense covariance."""
    seen = ~row.isnan()
    c, mean = model.covariance(), model.mean
    if not seen.any():
        return torch.zeros(()).double(), mean
    inner = c[seen][:, seen]
    gain = c[:, seen] @ inner.inverse()
    log_prob = MultivariateNormal(mean[seen], inner).log_prob(row[seen])
    return log_prob, mean + gain @ (row[seen] - mean[seen])


@each
def test_what_is_missing_is_summed_out(kind: Any) -> None:
    model = make(kind)
    x = holes(torch.randn(30, 6).double(), 0.5)
    x[3] = math.nan
    x[4] = 0.5
    wanted = [conditional(model, row) for row in x]
    filled = torch.stack([mean for _, mean in wanted])
    assert torch.allclose(model.log_prob(x), torch.stack([value for value, _ in wanted]))
    assert torch.allclose(model.impute(x), torch.where(x.isnan(), filled, x))
    assert model.log_prob(x)[3] == 0
    posterior = model.posterior(x)
    assert torch.allclose(posterior.covariance[3], torch.eye(2).double())
    assert torch.equal(posterior.scale_tril, posterior.scale_tril.tril())
    complete = model.posterior(x[4:5])
    assert torch.allclose(posterior.covariance[4], complete.covariance)
    assert torch.allclose(posterior.mean[4], complete.mean[0])


@each
def test_its_gradient_is_finite_and_that_of_the_dense_normal(kind: Any) -> None:
    model = make(kind)
    x = holes(torch.randn(10, 6).double())
    ours = torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters()))
    dense = torch.stack([conditional(model, row)[0] for row in x]).sum()
    theirs = torch.autograd.grad(dense, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-8)


@each
def test_the_program_leaves_it_out_of_the_density(kind: Any) -> None:
    model = make(kind)
    x, z = holes(torch.randn(8, 6).double()), torch.randn(8, 2).double()
    trace: Any = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    normal = torch.distributions.Normal(model.decode_mean(z), model.noise_variance.sqrt())
    wanted = normal.log_prob(x.nan_to_num()).where(~x.isnan(), 0).sum(-1)
    found = trace.nodes["x"]["log_prob"]
    assert torch.allclose(found, wanted)
    gradients = torch.autograd.grad(found.sum(), list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@each
def test_em_climbs_to_where_the_gradient_vanishes(kind: Any) -> None:
    truth = make(kind)
    with torch.no_grad():
        x = holes(truth(num_data=300))
    model = kind(6, 2).double()
    model.initialize(x)
    result = em(model, x, epochs=200, tolerance=1e-12, progress=False)
    bounds = [record.elbo for record in result.history]
    assert all(later > earlier - 1e-10 for earlier, later in pairwise(bounds))
    gradients = torch.autograd.grad(model.log_prob(x).mean(), list(model.parameters()))
    assert all(gradient.abs().max() < 1e-3 for gradient in gradients)
    assert model.log_prob(x).mean() > truth.log_prob(x).mean()


def test_a_step_of_a_row_without_values_is_that_without_the_row() -> None:
    x = holes(torch.randn(30, 5).double())
    empty = torch.cat([x, torch.full((10, 5), math.nan).double()])
    model = ProbabilisticPCA(5, 2).double()
    twin = copy.deepcopy(model)
    for _ in range(3):
        model.maximize(x, model.posterior(x))
        twin.maximize(empty, twin.posterior(empty))
    assert torch.allclose(model.covariance(), twin.covariance())
    assert torch.allclose(model.mean, twin.mean)
    reduced = model.condense(empty)
    bound = model.posterior(reduced).log_prob
    assert torch.allclose(bound, model.log_prob(empty).mean())


@each
def test_condensed_and_stepwise_statistics_agree_with_the_data(kind: Any) -> None:
    x = holes(torch.randn(60, 5).double())
    model = kind(5, 2).double()
    model.initialize(x, RandomAxes())
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    one.maximize(x, one.posterior(x))
    reduced = two.condense(x)
    two.maximize(reduced, two.posterior(reduced))
    assert torch.allclose(one.covariance(), two.covariance())
    parts = [model.statistics(part, model.posterior(part)) for part in x.split(20)]
    mean = type(parts[0])(*(sum(column) / 3 for column in zip(*parts, strict=True)))
    before = model.log_prob(x).mean()
    model.maximize_statistics(mean)
    assert model.log_prob(x).mean() > before


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_imputation_is_near_that_under_the_true_parameters(seed: int) -> None:
    torch.manual_seed(seed)
    truth = ProbabilisticPCA(12, 3)
    truth.set(noise_variance=torch.tensor(0.1))
    with torch.no_grad():
        whole = truth(num_data=1000)
    x = holes(whole)
    model = ProbabilisticPCA(12, 3)
    model.initialize(x)
    em(model, x, epochs=200, tolerance=1e-6, progress=False)

    def error(by: ProbabilisticPCA) -> float:
        return (by.impute(x) - whole)[x.isnan()].square().mean().sqrt().item()

    assert error(model) < 1.05 * error(truth)
    # Columns' means are far worse: it is no easy test.
    assert (whole - whole.mean(0))[x.isnan()].square().mean().sqrt() > 1.5 * error(truth)


@each
def test_a_column_that_was_never_seen_is_named(kind: Any) -> None:
    x = holes(torch.randn(30, 4))
    x[:, 2] = math.nan
    model = kind(4, 2)
    for act in (model.initialize, lambda x: model.maximize(x, model.posterior(x))):
        with pytest.raises(DataError, match="column 2"):
            act(x)
    # In a minibatch it keeps what it has.
    before = model.loadings[2].clone()
    model.maximize_statistics(model.statistics(x, model.posterior(x)))
    assert torch.allclose(model.loadings[2], before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_closed_form_refuses_it() -> None:
    with pytest.raises(DataError, match=r"infer\.em"):
        ProbabilisticPCA(4, 2).maximize_likelihood(holes(torch.randn(30, 4)))


def test_values_that_overflow_are_named() -> None:
    model = ProbabilisticPCA(3, 2).double()
    model.set(loadings=1e200 * torch.ones(3, 2).double())
    with pytest.raises(NonFiniteError, match="standardise"):
        model.log_prob(torch.tensor([[math.nan, 1.0, 2.0]]).double())
