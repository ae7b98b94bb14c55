"""log p(x) from draws of the prior: the notes' first estimator."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer import (
    EffectiveSampleSizeWarning,
    ImportanceSampling,
    NaiveMonteCarlo,
    log_likelihood,
)


def model(x: Tensor, scale: float = 1.0) -> None:
    """Marginally N(0, 1 + scale²)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def narrow(x: Tensor) -> None:
    model(x, scale=1e-4)


def unused(x: Tensor) -> None:
    raise AssertionError("the guide is not run")


X = torch.linspace(-2.0, 2.0, 9)


def test_it_estimates_the_marginal() -> None:
    found = log_likelihood(model, unused, X, method=NaiveMonteCarlo(4000))
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(X)
    assert found.num_samples == 4000
    assert ((found.value - exact).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.05


def test_the_weights_are_those_of_the_prior_s_draws() -> None:
    drawn = []

    def watched(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            drawn.append(z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = log_likelihood(watched, unused, X, method=NaiveMonteCarlo(50))
    z = drawn[-1]
    assert z.shape == (50, len(X))
    weights = dist.Normal(z, 1.0).log_prob(X).double()
    torch.testing.assert_close(found.value, weights.logsumexp(0) - math.log(50))
    w = weights.exp()
    torch.testing.assert_close(found.effective_sample_size, w.sum(0) ** 2 / w.square().sum(0))


def test_discrete_latents() -> None:
    def mixture(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)

    found = log_likelihood(mixture, unused, X, method=NaiveMonteCarlo(4000))
    parts = [dist.Normal(mean, 1.0).log_prob(X) for mean in (0.0, 3.0)]
    exact = torch.logaddexp(parts[0] + math.log(0.7), parts[1] + math.log(0.3))
    # Halfway between the two every draw has the same weight, and there is only rounding.
    assert ((found.value - exact).abs() < 4 * found.standard_error + 1e-6).all()


def test_a_narrow_posterior_is_warned_of() -> None:
    with pytest.warns(EffectiveSampleSizeWarning, match="rest on one draw of 500"):
        found = log_likelihood(narrow, unused, X, method=NaiveMonteCarlo(500))
    assert found.mean < dist.Normal(0.0, 1.0).log_prob(X).mean() - 1  # and is too low, as it says
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(model, unused, X, method=NaiveMonteCarlo(500))


def test_a_method_has_its_own_number_of_draws() -> None:
    with pytest.raises(OptionError, match="num_samples=10 is given beside NaiveMonteCarlo"):
        log_likelihood(model, unused, X, 10, method=NaiveMonteCarlo(20))
    for method in (NaiveMonteCarlo, ImportanceSampling):
        with pytest.raises(OptionError, match="num_samples=0"):
            method(0)


def test_importance_sampling_is_the_default() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    values = []
    for options in ({"num_samples": 30}, {"method": ImportanceSampling(30)}):
        pyro.set_rng_seed(1)
        values.append(log_likelihood(model, guide, X, **options).value)
    assert torch.equal(*values)
    assert log_likelihood(model, guide, X).num_samples == 1000
