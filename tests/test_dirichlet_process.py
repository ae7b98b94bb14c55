"""The Dirichlet process mixture: how many clusters it finds, and its bound by other routes."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from guides import BetaFactor, KumaraswamyFactor, MeanField, NormalFactor
from pyro_models.bayesian_components import NormalWishartPrior
from pyro_models.dirichlet_process import DirichletProcessMixture, GammaPrior, StickWeights
from pyro_models.distributions.wishart_factor import pack, unpack
from pyro_models.errors import OptionError
from pyro_models.infer import ELBO, Enumerated, Step, em
from tests.real_cases import clusters, used
from tests.unchecked import unchecked

adam = functools.partial(torch.optim.Adam, lr=0.05)


@pytest.mark.parametrize("concentration", [0.5, 3.0, GammaPrior()])
@pytest.mark.parametrize("truncation", [6, 15])
def test_it_finds_four_clusters(concentration: float | GammaPrior, truncation: int) -> None:
    x = clusters()
    model = DirichletProcessMixture(truncation, 2, concentration).double()
    em(model, x, restarts=3, seed=0, progress=False)
    assert used(model.posterior(x).log_responsibilities) == 4
    weights = model.expected_weights.sort(descending=True).values
    assert torch.allclose(weights[:4], torch.full((4,), 0.25).double(), atol=0.05)


@pytest.mark.parametrize("concentration", [0.3, 1.0, 5.0, GammaPrior()])
@pytest.mark.parametrize("seed", range(4))
def test_an_order_is_chosen_that_never_lowers_the_bound(
    concentration: float | GammaPrior, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.rand(5, generator=generator, dtype=torch.float64) * 20

    def bound(order: Tensor) -> float:
        weights = StickWeights(5, concentration).double()
        weights.update(counts[order])
        # The sticks are best for the concentration's belief as it was, so it goes back there.
        fresh = StickWeights(5, concentration).double()
        fresh.taken, fresh.left = weights.taken, weights.left
        return float((counts[order] * fresh.expected_log()).sum() - fresh.divergence())

    chosen = StickWeights(5, concentration).double().best_order(counts)
    assert sorted(chosen.tolist()) == list(range(5))
    least = max(bound(torch.arange(5)), bound(counts.argsort(descending=True)))
    assert bound(chosen) >= least - 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_never_falls(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 2, generator=generator, dtype=dtype) * 10.0 ** (seed - 2)
    model = DirichletProcessMixture(7, 2).to(dtype)
    model.initialize(x, generator=generator)
    bounds = []
    for _ in range(40):
        posterior = model.posterior(x)
        bounds.append(float(posterior.bound))
        model.maximize(x, posterior)
    slack = 1e-5 if dtype == torch.float32 else 1e-10
    assert all(after > before - slack for before, after in itertools.pairwise(bounds))


def test_the_divergence_of_sticks_is_its_monte_carlo_mean() -> None:
    weights = StickWeights(5, GammaPrior(2.0, 1.5)).double()
    weights.update(torch.tensor([7.0, 4.0, 2.5, 0.5, 0.0]).double())
    draws = 40_000
    q_alpha = dist.Gamma(weights.shape, weights.rate)
    q_v = dist.Beta(weights.taken, weights.left)
    alpha, v = q_alpha.sample((draws,)), q_v.sample((draws,))
    prior = dist.Gamma(torch.tensor(2.0).double(), 1.5).log_prob(alpha)
    prior = prior + dist.Beta(1.0, alpha.unsqueeze(-1)).log_prob(v).sum(-1)
    ratio = q_alpha.log_prob(alpha) + q_v.log_prob(v).sum(-1) - prior
    error = ratio.std() / draws**0.5
    assert abs(weights.divergence() - ratio.mean()) < 4 * error
    left = torch.nn.functional.pad((-v).log1p().cumsum(-1), (1, 0))
    log_weights = torch.nn.functional.pad(v.log(), (0, 1)) + left
    error = log_weights.std(0) / draws**0.5
    assert ((weights.expected_log() - log_weights.mean(0)).abs() < 4 * error).all()
    error = log_weights.exp().std(0) / draws**0.5
    mean = log_weights.exp().mean(0)
    assert ((weights.log_mean().exp() - mean).abs() < 4 * error).all()


def test_the_fresh_belief_is_the_prior() -> None:
    assert abs(float(StickWeights(5, 2.0).divergence())) < 1e-6
    model = DirichletProcessMixture(4, 2, concentration=2.0)
    x = torch.randn(1, 2)
    # No datum seen: the bound of one is no more than its predictive density.
    assert model.posterior(x).bound < model.log_prob(x)[0]


def test_the_concentration_follows_the_number_of_clusters() -> None:
    x = clusters()
    learned = []
    for data in (x[:40], x):
        model = DirichletProcessMixture(10, 2).double()
        em(model, data, restarts=2, seed=0, progress=False)
        learned.append(model.expected_concentration)
    assert learned[0] < learned[1]


def test_the_program_has_the_joint_density_of_its_formula() -> None:
    model = DirichletProcessMixture(3, 1, GammaPrior(2.0, 3.0))
    x = torch.randn(4, 1)
    values = {
        "concentration": torch.tensor(0.7),
        "v": torch.tensor([0.4, 0.6]),
        "precision_factors": torch.tensor([[1.0], [2.0], [0.5]]),
        "means": torch.randn(3, 1),
        "component": torch.tensor([0, 1, 2, 0]),
    }
    trace: Any = poutine.trace(poutine.condition(model, values)).get_trace(x)
    weights = torch.tensor([0.4, 0.6 * 0.6, 0.6 * 0.4])
    k = values["component"]
    wanted = weights[k].log().sum()
    scale = 1 / values["precision_factors"]
    wanted = wanted + dist.Normal(values["means"][k], scale[k]).log_prob(x).sum()
    wanted = wanted + dist.Gamma(2.0, 3.0).log_prob(values["concentration"])
    wanted = wanted + dist.Beta(1.0, 0.7).log_prob(values["v"]).sum()
    wanted = wanted + dist.Normal(0.0, scale).log_prob(values["means"]).sum()
    # W² ~ chi-squared with one degree: W is half normal.
    wanted = wanted + dist.HalfNormal(1.0).log_prob(values["precision_factors"]).sum()
    assert torch.allclose(trace.log_prob_sum(), wanted, rtol=1e-5)


def test_it_simulates_with_the_prior_number_of_clusters() -> None:
    model = DirichletProcessMixture(30, 1, concentration=1.0)
    counts = []
    for _ in range(100):
        trace: Any = poutine.trace(model).get_trace(num_data=50)
        counts.append(float(trace.nodes["component"]["value"].unique().numel()))
    wanted = sum(1.0 / (1.0 + n) for n in range(50))  # sum of alpha / (alpha + n)
    found = torch.tensor(counts)
    assert abs(found.mean() - wanted) < 4 * found.std() / 10


def small() -> tuple[DirichletProcessMixture, Tensor]:
    """Two clusters on a line, and a prior that is fixed."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(12, 1) - 4, torch.randn(8, 1) + 4])
    prior = NormalWishartPrior(torch.zeros(1), 0.1, 3.0, torch.tensor([[3.0]]))
    return DirichletProcessMixture(3, 1, concentration=1.0, prior=prior), x


@pytest.mark.slow
@pytest.mark.parametrize("factor", [BetaFactor(), KumaraswamyFactor(), NormalFactor()])
def test_by_gradients_it_gets_a_better_bound_than_in_closed_form(factor: Any) -> None:
    model, x = small()
    em(model, x, restarts=1, seed=0, progress=False)
    closed = float(model.posterior(x).bound)
    guide = MeanField(model, factors={"v": factor})
    belief = model.components.belief()
    degrees = belief.degrees_of_freedom.sqrt().unsqueeze(-1).unsqueeze(-1)
    factors = pack(degrees * torch.linalg.inv(belief.scatter_tril)).float()
    sticks = model.weights.taken / (model.weights.taken + model.weights.left)
    guide.initialize({"means": belief.mean.float(), "precision_factors": factors, "v": sticks})
    step = Step(model, guide, Enumerated(ELBO(num_particles=4)), adam, compiled=False)
    for number in range(200):
        step.lr_factor = 1 - number / 200
        step(x)
    found = torch.stack([step.evaluate(x) for _ in range(60)])
    # It sums over components at each draw, which closed form replaces by a mean; but its normals
    # are no gammas.
    assert found.mean() > closed - 0.05


@pytest.mark.slow
def test_nuts_agrees_with_the_belief() -> None:
    model, x = small()
    em(model, x, restarts=1, seed=0, progress=False)
    fitted = model.log_prob(x)
    chain = MCMC(NUTS(model), num_samples=200, warmup_steps=200, disable_progbar=True)
    chain.run(x)
    drawn = chain.get_samples()
    log_v, left = drawn["v"].log(), (-drawn["v"]).log1p().cumsum(-1)
    log_weights = torch.nn.functional.pad(log_v, (0, 1))
    log_weights = log_weights + torch.nn.functional.pad(left, (1, 0))
    scale = 1 / unpack(drawn["precision_factors"]).flatten(1)
    normal = dist.Normal(drawn["means"].flatten(1).unsqueeze(1), scale.unsqueeze(1))
    density = (normal.log_prob(x) + log_weights.unsqueeze(1)).logsumexp(-1)
    predictive = density.logsumexp(0) - math.log(len(density))
    assert (predictive - fitted).abs().mean() < 0.1


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[3.0, 1.0]]),
        torch.tensor([[0.0, 1.0], [5.0, 5.0]]),
        torch.ones(10, 2),
        torch.cat([torch.randn(20, 2), torch.tensor([[1e8, 1e8]])]),
    ],
    ids=["one datum", "fewer than the truncation", "duplicates", "outlier"],
)
def test_odd_data_give_a_finite_belief(x: Tensor) -> None:
    model = DirichletProcessMixture(4, 2)
    model.initialize(x, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        model.maximize(x, model.posterior(x))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert model.log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DirichletProcessMixture(1, 2), "at least 2"),
        (lambda: DirichletProcessMixture(3, 2, concentration=-1.0), "concentration=-1.0"),
        (lambda: GammaPrior(shape=0.0), "shape=0.0"),
        (lambda: GammaPrior(rate=math.inf), "rate=inf"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()
