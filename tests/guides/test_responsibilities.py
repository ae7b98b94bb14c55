"""The exact posterior of the component: Bayes' rule, and the ELBO that it makes exact."""

import copy
import pickle
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

from guides import Responsibilities
from pyro_models.covariances import Covariance, Diagonal, Full, Spherical, Tied
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import ELBO, MonteCarloKL
from pyro_models.mixture import GaussianMixture
from tests.unchecked import unchecked

KINDS = (Full(), Tied(), Diagonal(), Spherical())
every = pytest.mark.parametrize("covariance", KINDS, ids=repr)


def pair(covariance: Covariance = KINDS[0]) -> tuple[GaussianMixture, Responsibilities, Tensor]:
    model = GaussianMixture(3, 2, covariance)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model, Responsibilities(model), torch.randn(6, 2) * 2


@every
def test_it_is_bayes_rule(covariance: Covariance) -> None:
    model, guide, x = pair(covariance)
    normal = torch.distributions.MultivariateNormal(model.means, model.covariances)
    joint = model.weights * normal.log_prob(x[:, None]).exp()
    torch.testing.assert_close(guide.posterior(x).probs, joint / joint.sum(-1, keepdim=True))
    torch.testing.assert_close(guide.posterior(x).probs, model.posterior(x).responsibilities)


@every
@pytest.mark.parametrize("particles", [1, 3])
def test_the_bound_is_the_likelihood_whatever_is_drawn(
    covariance: Covariance, particles: int
) -> None:
    model, guide, x = pair(covariance)
    exact = -model.log_prob(x).sum().item()
    elbo = ELBO(particles, kl=MonteCarloKL())  # only so do all parts of it have the same draw
    for seed in range(2):
        pyro.set_rng_seed(seed)
        assert elbo.loss(model, guide, x) == pytest.approx(exact, rel=1e-5)
        assert Trace_ELBO().loss(model, guide, x) == pytest.approx(exact, rel=1e-5)
    assert elbo.loss(model, guide, x, num_data=60) == pytest.approx(10 * exact, rel=1e-5)


@every
def test_stock_enumeration_has_the_likelihoods_gradient(covariance: Covariance) -> None:
    model, guide, x = pair(covariance)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, config_enumerate(guide), x)
    exact = -model.log_prob(x).sum()
    torch.testing.assert_close(loss, exact)
    parameters = list(model.parameters())
    found, wanted = (torch.autograd.grad(value, parameters) for value in (loss, exact))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_stock_svi_raises_the_likelihood() -> None:
    model, guide, x = pair()
    before = model.log_prob(x).sum().item()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(model, config_enumerate(guide), Adam({"lr": 0.05}), elbo)
    losses = [svi.step(x) for _ in range(30)]
    assert losses[0] == pytest.approx(-before, rel=1e-5)
    assert model.log_prob(x).sum() > before + 1
    assert list(pyro.get_param_store().keys()) == []


def test_parameters_are_the_models_alone() -> None:
    model, guide, x = pair()
    assert list(guide.parameters()) == []
    assert guide.state_dict() == {}
    assert list(guide.modules()) == [guide]
    capture: Any
    with poutine.trace(param_only=True) as capture:
        guide(x)
    assert len(capture.trace.nodes) == 0
    assert guide.model is model


def test_it_is_copied_and_stored_with_its_model() -> None:
    model, guide, x = pair()
    for clone in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        twin, follower = clone((model, guide))
        assert follower.model is twin
        assert follower.model is not model
        with torch.no_grad():
            twin.means.add_(1.0)
        torch.testing.assert_close(follower.posterior(x).probs, twin.posterior(x).responsibilities)
        assert not torch.allclose(follower.posterior(x).probs, guide.posterior(x).probs)


def test_what_it_cannot_use_is_refused() -> None:
    _, guide, _ = pair()
    with pytest.raises(DataError, match="give x"):
        guide()
    with pytest.raises(DataError, match=r"\(batch, 2\)"):
        guide(torch.zeros(3, 4))
    with unchecked(), pytest.raises(OptionError, match="GaussianMixture"):
        Responsibilities(nn.Linear(2, 1))  # type: ignore[arg-type]
