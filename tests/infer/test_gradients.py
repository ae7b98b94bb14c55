"""Gradients of every part of the ELBO, unbiased: against enumeration, quadrature, closed forms."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_models.infer import ELBO, AnalyticKL, MonteCarloKL, log_weights
from tests.infer.gradient_cases import CASES, DTYPE, Case, Parameters, normal

RUNS, PARTICLES = 40, 500  # 20,000 draws
KLS = [AnalyticKL(), MonteCarloKL()]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def estimates(case: Case, kl: Any, weight: float, runs: int = RUNS) -> tuple[Tensor, Tensor]:
    """Bound and gradient, a row a run."""
    parameters = case.start()
    objective = ELBO(PARTICLES, kl=kl)
    bounds, gradients = [], []
    for _ in range(runs):
        weights = log_weights(case.model, case.guide, parameters, num_particles=PARTICLES)
        bound, surrogate = objective.estimate(weights, weight)
        found = torch.autograd.grad(surrogate, list(parameters.values()))
        bounds.append(bound)
        gradients.append(flat(found))
    return torch.stack(bounds), torch.stack(gradients)


def exact_gradient(case: Case, weight: float) -> tuple[float, Tensor]:
    parameters = case.start()
    bound = case.exact(parameters, weight)
    return bound.item(), flat(torch.autograd.grad(bound, list(parameters.values())))


def assert_mean(draws: Tensor, expected: Tensor) -> None:
    """The mean over rows is within four standard errors of what is expected."""
    error = draws.std(0) / math.sqrt(len(draws))
    gap = (draws.mean(0) - expected).abs()
    assert (gap <= 4 * error + 1e-10).all(), f"off by {(gap / error).tolist()} standard errors"


@pytest.mark.parametrize("kl", KLS, ids=["analytic", "monte carlo"])
@pytest.mark.parametrize("name", CASES)
def test_bound_and_gradient_are_unbiased(name: str, kl: Any) -> None:
    case = CASES[name]()
    bound, gradient = exact_gradient(case, 1.0)
    bounds, gradients = estimates(case, kl, 1.0)
    assert_mean(bounds, torch.tensor(bound, dtype=DTYPE))
    assert_mean(gradients, gradient)


@pytest.mark.parametrize("kl", KLS, ids=["analytic", "monte carlo"])
@pytest.mark.parametrize("name", ["score, local", "path below score", "global below local"])
def test_the_weight_of_the_divergence(name: str, kl: Any) -> None:
    case = CASES[name]()
    bounds, gradients = estimates(case, kl, 0.3)
    assert_mean(gradients, exact_gradient(case, 0.3)[1])
    assert_mean(bounds, torch.tensor(exact_gradient(case, 1.0)[0], dtype=DTYPE))


@pytest.mark.parametrize("name", CASES)
def test_the_cases_would_notice_a_wrong_gradient(name: str) -> None:
    """Four standard errors are few enough: a gradient of which a fifth is missing is found."""
    case = CASES[name]()
    _, gradient = exact_gradient(case, 1.0)
    _, gradients = estimates(case, MonteCarloKL(), 1.0, runs=10)
    error = gradients.std(0) / math.sqrt(RUNS)
    assert (0.2 * gradient.abs() / error).max() > 4


@pytest.mark.parametrize("name", ["path", "score, local", "score, global", "local below global"])
def test_exact_cases_agree_with_stock_pyro(name: str) -> None:
    """A second route to the oracle itself."""
    case = CASES[name]()
    parameters = case.start()
    elbo = Trace_ELBO(PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    gradients = []
    for _ in range(RUNS):
        loss = elbo.differentiable_loss(case.model, case.guide, parameters)
        gradients.append(-flat(torch.autograd.grad(loss, list(parameters.values()))))
    assert_mean(torch.stack(gradients), exact_gradient(case, 1.0)[1])


class TestSubsamples:
    """Every minibatch of two from four data, in turn: their mean is the whole."""

    x = torch.tensor([0.4, 1.9, -0.8, 1.1], dtype=DTYPE)

    def program(self, kind: str) -> tuple[Any, Any, Parameters]:
        discrete = kind == "score"
        parameters = {
            "mean": torch.tensor(0.7, dtype=DTYPE, requires_grad=True),
            "q": torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=DTYPE, requires_grad=True),
            "global": torch.tensor(0.4, dtype=DTYPE, requires_grad=True),
        }
        zero = torch.zeros((), dtype=DTYPE)

        def data(index: Tensor | None) -> Any:
            return pyro.plate("data", 4, subsample=index, subsample_size=2)

        def model(p: Parameters, index: Tensor | None = None) -> None:
            b = pyro.sample("b", dist.Bernoulli(zero + 0.3) if discrete else dist.Normal(zero, 1))
            with data(index) as i:
                fn = dist.Bernoulli(zero + 0.4) if discrete else dist.Normal(zero, 1)
                z = pyro.sample("z", fn)
                pyro.sample("x", dist.Normal(p["mean"] * z + b, 1.0), obs=self.x[i])

        def guide(p: Parameters, index: Tensor | None = None) -> None:
            q = p["global"]
            pyro.sample("b", dist.Bernoulli(logits=q) if discrete else dist.Normal(q, 0.5))
            with data(index) as i:
                q = p["q"][i]
                pyro.sample("z", dist.Bernoulli(logits=q) if discrete else dist.Normal(q, 0.5))

        return model, guide, parameters

    def exact(self, kind: str, p: Parameters) -> Tensor:
        if kind == "path":
            kl = sum(((m**2 + 0.25 - 1) / 2 - math.log(0.5)).sum() for m in (p["q"], p["global"]))
            spread = 0.25 * (p["mean"] ** 2 + 1)
            fit = normal(self.x, p["mean"] * p["q"] + p["global"], 1.0) - spread / 2
            return fit.sum() - kl
        total = torch.zeros((), dtype=DTYPE)
        for b, z in itertools.product((0.0, 1.0), repeat=2):
            q_b = p["global"].sigmoid() if b else 1 - p["global"].sigmoid()
            q_z = p["q"].sigmoid() if z else 1 - p["q"].sigmoid()
            local = q_z.log() - math.log(0.4 if z else 0.6)
            total = total + (q_b * q_z * (normal(self.x, p["mean"] * z + b, 1.0) - local)).sum()
            # Over the four values of (b, z), each b comes twice.
            total = total - q_b * (q_b.log() - math.log(0.3 if b else 0.7)) / 2
        return total

    @pytest.mark.parametrize("kl", KLS, ids=["analytic", "monte carlo"])
    @pytest.mark.parametrize("kind", ["path", "score"])
    def test_the_mean_over_minibatches_is_the_whole(self, kind: str, kl: Any) -> None:
        model, guide, parameters = self.program(kind)
        leaves = list(parameters.values())
        bound = self.exact(kind, parameters)
        gradient = flat(torch.autograd.grad(bound, leaves))
        bounds, gradients = [], []
        for _ in range(20):
            per_batch = []
            for pair in itertools.combinations(range(4), 2):
                index = torch.tensor(pair)
                weights = log_weights(model, guide, parameters, index, num_particles=200)
                per_batch.append(ELBO(200, kl=kl).estimate(weights))
            bounds.append(torch.stack([e.bound for e in per_batch]).mean())
            surrogate = torch.stack([e.surrogate for e in per_batch]).mean()
            gradients.append(flat(torch.autograd.grad(surrogate, leaves)))
        assert_mean(torch.stack(bounds), bound.detach())
        assert_mean(torch.stack(gradients), gradient)

    @pytest.mark.parametrize("kind", ["path", "score"])
    def test_minibatches_drawn_by_pyro(self, kind: str) -> None:
        model, guide, parameters = self.program(kind)

        leaves = list(parameters.values())
        bound = self.exact(kind, parameters)
        gradient = flat(torch.autograd.grad(bound, leaves))
        gradients = []
        for _ in range(200):
            weights = log_weights(model, guide, parameters, num_particles=100)
            surrogate = ELBO(100).estimate(weights).surrogate
            gradients.append(flat(torch.autograd.grad(surrogate, leaves)))
        assert_mean(torch.stack(gradients), gradient)


def test_partly_reparameterised_sites_have_both_gradients() -> None:
    """Pyro's rejection samplers: a path through the proposal and a score of the acceptance."""
    log_shape = torch.tensor(0.1, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.Gamma(torch.tensor(1.5), torch.tensor(1.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        pyro.sample("z", RejectionStandardGamma(log_shape.exp()))

    def exact(shape: Tensor) -> Tensor:
        # E over Gamma(a, 1): mean a, second moment a (a + 1), E log z = digamma(a).
        fit = -((2.0 - shape) ** 2 + shape) / 2 - math.log(2 * math.pi) / 2
        q, p = dist.Gamma(shape, 1.0), dist.Gamma(1.5, 1.0)
        return fit - torch.distributions.kl_divergence(q, p)

    (expected,) = torch.autograd.grad(exact(log_shape.exp()), log_shape)
    gradients = []
    for _ in range(RUNS):
        weights = log_weights(model, guide, num_particles=2000)
        surrogate = ELBO(2000, kl=MonteCarloKL()).estimate(weights).surrogate
        gradients.append(torch.autograd.grad(surrogate, log_shape)[0])
    assert_mean(torch.stack(gradients), expected)
