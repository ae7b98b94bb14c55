"""The linear guides against the exact posterior, by formula, by copy and by training."""

import copy
import functools
import pickle
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from guides import Diagonal, ExactLinearGaussian, Full, LinearGaussian
from pyro_models.errors import DataError, OptionError
from pyro_models.factor_analysis import FactorAnalysis
from pyro_models.infer import ELBO, MonteCarloKL, embed, fit, log_weights
from pyro_models.infer.schedules import Cosine
from pyro_models.ppca import ProbabilisticPCA
from tests.unchecked import unchecked


def trained(kind: Any = ProbabilisticPCA) -> tuple[Any, Tensor]:
    x = torch.randn(200, 2) @ torch.randn(2, 5) + 0.7 * torch.randn(200, 5) + 1
    model = kind(5, 2)
    model.initialize(x)
    for _ in range(5):
        model.maximize(x, model.posterior(x))
    return model, x


def divergence(guide: Any, model: Any, x: Tensor) -> float:
    q, p = guide.posterior(x), model.posterior(x).distribution()
    if not isinstance(q, MultivariateNormal):
        q = MultivariateNormal(q.mean, q.variance.diag_embed())
    return kl_divergence(q, p).mean().item()


@pytest.mark.parametrize("kind", [ProbabilisticPCA, FactorAnalysis])
def test_matched_it_is_the_exact_posterior(kind: Any) -> None:
    model, x = trained(kind)
    guide = LinearGaussian(5, 2)
    guide.initialize(x)
    guide.match(model)
    assert abs(divergence(guide, model, x)) < 1e-5
    assert torch.allclose(guide.posterior(x).mean, model.transform(x), atol=1e-5)


def test_a_matched_diagonal_is_the_best_product_of_normals() -> None:
    model, x = trained()
    model.set(loadings=model.loadings @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5)
    guide = LinearGaussian(5, 2, covariance=Diagonal())
    guide.match(model)
    best = divergence(guide, model, x)
    assert best > 1e-3  # the latents are correlated given x, which it cannot show
    for change in (0.05, -0.05):
        other = copy.deepcopy(guide)
        other.spread.data[0] += change
        assert divergence(other, model, x) > best


@pytest.mark.slow
def test_trained_by_svi_it_comes_to_the_exact_posterior() -> None:
    model, x = trained()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    guide = LinearGaussian(5, 2)
    guide.initialize(x)
    before = divergence(guide, model, x)
    fit(
        model,
        guide,
        x,
        optimizer=functools.partial(torch.optim.Adam, lr=0.1),
        schedule=Cosine(),
        epochs=400,
        batch_size=None,
        compiled=False,
        seed=0,
        progress=False,
    )
    assert divergence(guide, model, x) < 1e-3 < before


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", [ProbabilisticPCA, FactorAnalysis])
def test_with_the_exact_guide_each_draw_gives_log_p(kind: Any, missing: bool) -> None:
    model, x = trained(kind)
    if missing:
        x = x.masked_fill(torch.rand(x.shape) < 0.3, torch.nan)
    guide = ExactLinearGaussian(model)
    weights = log_weights(model, guide, x, num_particles=4)
    assert torch.allclose(weights.local, model.log_prob(x).expand(4, -1), atol=2e-3)


def test_its_gradient_is_that_of_log_p_without_noise() -> None:
    model, x = trained()
    model, x = model.double(), x.double()
    model.mean.data += 0.3
    guide, bound = ExactLinearGaussian(model), ELBO(kl=MonteCarloKL())
    loss = bound.differentiable_loss(model, guide, x)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    exact = torch.autograd.grad(-model.log_prob(x).sum(), list(model.parameters()))
    for one, other in zip(ours, exact, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_exact_guide_holds_the_model_without_owning_it() -> None:
    model, x = trained()
    guide = ExactLinearGaussian(model)
    assert list(guide.parameters()) == []
    assert guide.state_dict() == {}
    for clone in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin, its_guide = clone((model, guide))
        twin.set(mean=model.mean + 1)
        assert torch.allclose(its_guide.posterior(x).mean, twin.transform(x))
        assert not torch.allclose(its_guide.posterior(x).mean, guide.posterior(x).mean)


@pytest.mark.parametrize("covariance", [Full(), Diagonal()])
def test_the_program_draws_one_latent_a_datum(covariance: Any) -> None:
    guide = LinearGaussian(5, 2, covariance)
    x = torch.randn(6, 5)
    x[0, 0] = torch.nan
    trace: Any = poutine.trace(guide).get_trace(x, num_data=60)
    assert trace.nodes["z"]["value"].shape == (6, 2)
    assert trace.nodes["z"]["scale"] == 10
    particles: Any = pyro.plate("particles", 7, dim=-2)
    assert particles(guide)(x).shape == (7, 6, 2)
    assert guide(x).isfinite().all()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(OptionError, match="takes 5 numbers to 2"):
        LinearGaussian(5, 3).match(ProbabilisticPCA(5, 2))
    with pytest.raises(OptionError, match=r"guides.Full\(\)"), unchecked():
        LinearGaussian(5, 2, covariance="full")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no exact linear posterior"), unchecked():
        ExactLinearGaussian(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    for guide in (LinearGaussian(5, 2), ExactLinearGaussian(ProbabilisticPCA(5, 2))):
        with pytest.raises(DataError, match="give x"):
            guide()


@pytest.mark.parametrize("exact", [True, False])
def test_data_with_missing_values_can_be_embedded(exact: bool) -> None:
    x = torch.tensor([[1.0, 2.0, torch.nan], [0.0, -1.0, 0.5]])
    model = ProbabilisticPCA(3, 1)
    guide = ExactLinearGaussian(model) if exact else LinearGaussian(3, 1)
    found = embed(guide, x).mean
    assert found.shape == (2, 1)
    if exact:
        torch.testing.assert_close(found, model.posterior(x).mean.to(found))
