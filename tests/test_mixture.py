"""The mixture: exact inference against formulas, EM's ascent, every way to run it, its edges."""

import copy
import math
import pickle
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_models.covariances import Covariance, Diagonal, Full, Spherical, Tied
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import ELBO, Enumerated, Step
from pyro_models.mixture import GaussianMixture
from pyro_models.starts import KMeans, KMeansPlusPlus, RandomData, RandomResponsibilities, Start
from tests.infer.step_cases import no_guide, sgd
from tests.unchecked import unchecked

KINDS = (Full(), Tied(), Diagonal(), Spherical())
STARTS = (KMeans(), KMeansPlusPlus(), RandomData(), RandomResponsibilities())
every = pytest.mark.parametrize("covariance", KINDS, ids=repr)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def blobs(count: int = 60, dim: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(3, dim, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    return centers[labels] + torch.randn(count, dim, generator=generator)


def fitted(covariance: Covariance, x: Tensor, steps: int = 3, k: int = 3) -> GaussianMixture:
    model = GaussianMixture(k, x.shape[1], covariance).to(x.dtype)
    model.initialize(x, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        model.maximize(x, model.posterior(x))
    return model


def mean_log_prob(model: GaussianMixture, x: Tensor) -> float:
    return model.posterior(x).log_prob.double().mean().item()


@every
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_the_likelihood_is_its_formula(covariance: Covariance, dim: int) -> None:
    x = blobs(dim=dim).double()
    model = fitted(covariance, x)
    normal = MultivariateNormal(model.means, model.covariances)
    joint = model.weights.log() + normal.log_prob(x[:, None])
    torch.testing.assert_close(model.log_joint(x), joint)
    torch.testing.assert_close(model.log_prob(x), joint.logsumexp(-1))
    with torch.no_grad():
        torch.testing.assert_close(model.log_prob(x), joint.logsumexp(-1))
    posterior = model.posterior(x)
    torch.testing.assert_close(posterior.log_prob, joint.logsumexp(-1).detach())
    torch.testing.assert_close(posterior.responsibilities, joint.softmax(-1).detach())


def test_the_m_step_is_its_formula() -> None:
    x = blobs().double()
    model = fitted(Full(), x, 0)
    r = model.posterior(x).responsibilities
    model.maximize(x, model.posterior(x))
    counts = r.sum(0)
    means = r.T @ x / counts.unsqueeze(-1)
    away = x[:, None] - means
    sigma = torch.einsum("nk,nkd,nke->kde", r, away, away) / counts[:, None, None]
    torch.testing.assert_close(model.weights.detach(), counts / len(x))
    torch.testing.assert_close(model.means.detach(), means)
    torch.testing.assert_close(model.covariances.detach(), sigma)


@settings(max_examples=25, deadline=None)
@given(
    covariance=st.sampled_from([Full, Tied, Diagonal, Spherical]),
    start=st.sampled_from(STARTS),
    seed=st.integers(0, 10_000),
    k=st.integers(1, 5),
    dim=st.integers(1, 4),
    count=st.integers(5, 60),
    floor=st.sampled_from([1e-6, 1e-2]),
    rounded=st.booleans(),
    double=st.booleans(),
)
def test_em_never_descends(
    covariance: Any,
    start: Start,
    seed: int,
    k: int,
    dim: int,
    count: int,
    floor: float,
    rounded: bool,
    double: bool,
) -> None:
    x = blobs(count, dim, seed).to(torch.float64 if double else torch.float32)
    x = x.round() if rounded else x  # many duplicates
    model = GaussianMixture(k, dim, covariance(floor=floor)).to(x.dtype)
    model.initialize(x, start, torch.Generator().manual_seed(seed))
    value = mean_log_prob(model, x)
    for _ in range(15):
        model.maximize(x, model.posterior(x))
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        after = mean_log_prob(model, x)
        # Log-densities at the floor come from differences that are a thousand times as large.
        assert after >= value - (1e-9 if double else 2e-4) * (1 + abs(value))
        value = after


@every
def test_stepwise_statistics_of_all_data_are_the_m_step(covariance: Covariance) -> None:
    x = blobs() + 100
    model = fitted(covariance, x)
    twin = copy.deepcopy(model)
    posterior = model.posterior(x)
    model.maximize(x, posterior)
    halves = [twin.statistics(part, twin.posterior(part)) for part in (x[:30], x[30:])]
    assert all(tensor.dtype == torch.float64 for tensor in halves[0])
    means = [(one + other) / 2 for one, other in zip(*halves, strict=True)]
    twin.maximize_statistics(type(halves[0])(*means))
    for ours, wanted in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


class TestInPyro:
    """The program, enumerated by stock Pyro and by ours, and the gradient of the likelihood."""

    @every
    def test_all_routes_have_one_value_and_gradient(self, covariance: Covariance) -> None:
        x = blobs(20)
        model = fitted(covariance, x, 1)
        exact = -model.log_prob(x).sum()
        parameters = list(model.parameters())
        wanted = torch.autograd.grad(exact, parameters)
        stock: Any = TraceEnum_ELBO(max_plate_nesting=1)
        losses = [
            stock.differentiable_loss(config_enumerate(model), no_guide, x),
            Enumerated().differentiable_loss(model, no_guide, x),
            Enumerated(ELBO(3)).differentiable_loss(model, no_guide, x),
        ]
        for loss in losses:
            torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-4)
            found = torch.autograd.grad(loss, parameters)
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        scaled = Enumerated().loss(model, no_guide, x, num_data=200)
        assert scaled == pytest.approx(10 * exact.item(), rel=1e-4)

    @pytest.mark.parametrize("covariance", [Full(), Spherical()])
    @pytest.mark.parametrize("dim", [2, pytest.param(6, marks=pytest.mark.slow)])
    def test_it_compiles(self, covariance: Covariance, dim: int) -> None:
        x = blobs(30, dim)
        model = fitted(covariance, x, 1)
        twin = copy.deepcopy(model)
        compiled = Step(model, no_guide, Enumerated(), sgd, compiled=True)
        eager = Step(twin, no_guide, Enumerated(), sgd, compiled=False)
        for _ in range(5):
            torch.testing.assert_close(compiled(x), eager(x), rtol=1e-3, atol=1e-4)
        assert compiled.fallback_reason is None
        for ours, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)

    def test_stock_svi_climbs_from_a_start_towards_em(self) -> None:
        x = blobs()
        model = fitted(Full(), x, 0)
        best = mean_log_prob(fitted(Full(), x, 100), x)
        marked = config_enumerate(model)
        svi = SVI(marked, no_guide, Adam({"lr": 0.03}), TraceEnum_ELBO(max_plate_nesting=1))
        for _ in range(150):
            svi.step(x)
        assert mean_log_prob(model, x) == pytest.approx(best, abs=1e-2)
        assert list(pyro.get_param_store().keys()) == []

    @every
    def test_simulated_data_follow_the_model(self, covariance: Covariance) -> None:
        model = fitted(covariance, blobs())
        with torch.no_grad():
            trace: Any = poutine.trace(model).get_trace(num_data=20_000)
        x, k = trace.nodes["x"]["value"], trace.nodes["component"]["value"]
        assert x.shape == (20_000, 2)
        counts = k.bincount(minlength=3)
        weights = model.weights.detach()
        error = (weights * (1 - weights) / len(x)).sqrt()
        assert ((counts / len(x) - weights).abs() < 4 * error).all()
        for index in range(3):
            part, sigma = x[k == index], model.covariances[index].detach()
            assert (
                (part.mean(0) - model.means[index]).abs()
                < 4 * (sigma.diagonal() / len(part)).sqrt()
            ).all()
            error = ((sigma.diagonal().outer(sigma.diagonal()) + sigma.square()) / len(part)).sqrt()
            assert ((part.T.cov() - sigma).abs() < 4.5 * error).all()

    def test_particles_and_copies(self) -> None:
        model = fitted(Full(), blobs())
        assert pyro.plate("particles", 4, dim=-2)(model)(num_data=7).shape == (4, 7, 2)
        clone: Any = pickle.loads(pickle.dumps(model))
        assert torch.equal(clone.means, model.means)


class TestStarts:
    """Each start, from one seed, on data whose clusters are plain."""

    x = torch.cat([torch.randn(20, 2) * 0.1 + center for center in (0.0, 10.0, -30.0)])

    @pytest.mark.parametrize("start", STARTS, ids=repr)
    @both
    def test_the_generator_decides(self, start: Start, dtype: torch.dtype) -> None:
        x = self.x.to(dtype)
        models = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed * 77)
            state = torch.get_rng_state()
            model = GaussianMixture(3, 2).to(dtype)
            torch.set_rng_state(state)
            model.initialize(x, start, torch.Generator().manual_seed(seed))
            assert torch.equal(torch.get_rng_state(), state)
            models.append(model)
        one, same, other = (model.means.detach() for model in models)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("start", [KMeans(), KMeansPlusPlus()], ids=repr)
    def test_plain_clusters_are_found(self, start: Start) -> None:
        model = GaussianMixture(3, 2)
        model.initialize(self.x, start, torch.Generator().manual_seed(0))
        model.canonicalize()
        parts = self.x.unflatten(0, (3, 20))[[2, 0, 1]]
        torch.testing.assert_close(model.means.detach(), parts.mean(1))
        sigma = torch.stack([part.T.cov(correction=0) for part in parts])
        torch.testing.assert_close(model.covariances.detach(), sigma, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(model.weights.detach(), torch.full((3,), 1 / 3))

    def test_clusters_of_too_few_data_get_the_average_covariance(self) -> None:
        x = torch.cat([self.x[:20], torch.tensor([[50.0, 50.0]])])
        model = GaussianMixture(2, 2)
        model.initialize(x)
        model.canonicalize()
        average = self.x[:20].T.cov(correction=0) * 20 / 21
        torch.testing.assert_close(model.covariances[1].detach(), average, rtol=1e-3, atol=1e-5)


class TestStarvation:
    """A component that explains nothing comes back only where that helps."""

    @every
    def test_it_is_moved_to_what_is_explained_worst(self, covariance: Covariance) -> None:
        x = torch.cat([torch.randn(30, 2), torch.randn(10, 2) + 12])
        model = GaussianMixture(2, 2, covariance)
        model.set(means=torch.tensor([[3.0, 3.0], [1e4, 1e4]]))
        model.maximize(x, model.posterior(x))
        for _ in range(40):
            model.maximize(x, model.posterior(x))
        assert mean_log_prob(model, x) > mean_log_prob(fitted(covariance, x, 1, k=1), x) + 0.05
        assert model.weights.min() > 0.05
        if isinstance(covariance, Full):
            return  # another optimum: a wide component over both clusters, and a narrow one
        model.canonicalize()
        torch.testing.assert_close(model.weights.detach(), torch.tensor([0.75, 0.25]))
        torch.testing.assert_close(
            model.means.detach(), torch.stack([x[:30].mean(0), x[30:].mean(0)])
        )

    @every
    def test_the_likelihood_never_falls_by_it(self, covariance: Covariance) -> None:
        for seed in range(5):
            x = blobs(30, seed=seed).double()
            model = GaussianMixture(4, 2, covariance).double()
            model.set(means=torch.tensor([[0.0, 0.0], [1e3, 0.0], [0.0, 1e3], [1e3, 1e3]]))
            value = mean_log_prob(model, x)
            for _ in range(10):
                model.maximize(x, model.posterior(x))
                after = mean_log_prob(model, x)
                assert after >= value - 1e-10
                value = after

    def test_it_stays_where_nothing_is_to_gain(self) -> None:
        x = torch.zeros(10, 1)
        model = GaussianMixture(2, 1)
        model.set(means=torch.tensor([[0.0], [5e3]]))
        model.maximize(x, model.posterior(x))
        assert model.means[1].item() == 5e3
        assert model.covariances[1].item() == pytest.approx(1.0)
        assert model.weights[0].item() == pytest.approx(1.0)
        assert model.weight_logits.isfinite().all()


EDGES = {
    "one datum": torch.full((1, 2), 3.0),
    "duplicates": torch.tensor([[1.0, 2.0]]).repeat(9, 1),
    "two places": torch.tensor([[1.0, 2.0], [5.0, 5.0]]).repeat(9, 1),
    "a constant column": torch.stack([torch.linspace(-1, 1, 20), torch.full((20,), 7.0)], -1),
    "an outlier": torch.cat([blobs(30), torch.tensor([[1e8, -1e8]])]),
    "a far place": blobs(30) + 1e4,
    "one dimension": blobs(30)[:, :1],
    "whole numbers": blobs(30).round().long(),
}


@every
@both
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("start", STARTS, ids=lambda start: type(start).__name__)
def test_edges(covariance: Covariance, dtype: torch.dtype, name: str, start: Start) -> None:
    x = EDGES[name]
    x = x.to(dtype) if x.is_floating_point() else x
    k = min(3, len(x))
    model = GaussianMixture(k, x.shape[1], covariance).to(dtype)
    model.initialize(x, start)
    first = mean_log_prob(model, x)
    for _ in range(10):
        model.maximize(x, model.posterior(x))
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert mean_log_prob(model, x) >= first - 1e-3 * (1 + abs(first))
    assert torch.linalg.eigvalsh(model.covariances.detach().double()).min() > -1e-3 * 1e8
    posterior = model.posterior(x)
    torch.testing.assert_close(posterior.responsibilities.sum(-1), torch.ones(len(x), dtype=dtype))
    if name == "two places" and type(start) in (KMeans, KMeansPlusPlus):
        places = model.means.detach()[model.weights > 0.01]
        torch.testing.assert_close(places.unique(dim=0), x.unique(dim=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing(bad: float) -> None:
    x = blobs()
    model = fitted(Full(), x)
    before = [parameter.clone() for parameter in model.parameters()]
    x[3, 1] = bad
    with pytest.raises(DataError, match="not finite"):
        model.initialize(x)
    with pytest.raises(DataError, match="NaN or infinity"):
        model.maximize(x, model.posterior(x))
    statistics = model.statistics(x, model.posterior(x))
    with pytest.raises(DataError, match="NaN or infinity"):
        model.maximize_statistics(statistics)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 2), "2 data for 3 components"),
        (torch.zeros(5, 3), r"\(batch, 2\)"),
        (torch.zeros(0, 2), "neither of them 0"),
        (torch.zeros(5, 2).double(), "torch.float64"),
        (torch.full((5, 2), 1e18), "overflows"),
    ],
)
def test_data_it_cannot_explain_are_refused(x: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        GaussianMixture(3, 2).check(x)


class TestReports:
    """What does not depend on the order of the components, and the order itself."""

    @every
    def test_canonical_order(self, covariance: Covariance) -> None:
        x = blobs()
        model = fitted(covariance, x)
        order = torch.tensor([2, 0, 1])
        twin = GaussianMixture(3, 2, covariance)
        twin.set(
            weights=model.weights.detach()[order],
            means=model.means.detach()[order],
            covariances=model.covariances.detach()[order],
        )
        torch.testing.assert_close(model.co_clustering(x), twin.co_clustering(x))
        before = model.log_prob(x).detach()
        model.canonicalize()
        twin.canonicalize()
        torch.testing.assert_close(model.log_prob(x).detach(), before)
        assert (model.means[:, 0].diff() > 0).all()
        for name in ("weights", "means", "covariances"):
            torch.testing.assert_close(getattr(model, name), getattr(twin, name))
        torch.testing.assert_close(model.assign(x), twin.assign(x))

    def test_ties_are_ordered_by_the_next_coordinate(self) -> None:
        model = GaussianMixture(3, 2)
        model.set(means=torch.tensor([[1.0, 5.0], [0.0, 9.0], [1.0, 2.0]]))
        model.canonicalize()
        assert model.means.tolist() == [[0.0, 9.0], [1.0, 2.0], [1.0, 5.0]]

    def test_assignment_and_co_clustering(self) -> None:
        x = blobs().double()
        model = fitted(Full(), x)
        r = model.posterior(x).responsibilities
        assert torch.equal(model.assign(x), r.argmax(-1))
        both_same = model.co_clustering(x)
        torch.testing.assert_close(both_same[0, 1], (r[0] * r[1]).sum())
        assert (both_same.diagonal() == 1).all()

    @every
    def test_degrees_of_freedom(self, covariance: Covariance) -> None:
        wanted = {Full: 18, Tied: 6, Diagonal: 9, Spherical: 3}[type(covariance)]
        assert GaussianMixture(3, 3, covariance).num_free_parameters == 2 + 9 + wanted


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: GaussianMixture(0, 2), "num_components=0"),
        (lambda: GaussianMixture(2, -1), "data_dim=-1"),
        (lambda: GaussianMixture(2, 2, "full"), r"Full\(\), Tied"),  # type: ignore[arg-type]
        (lambda: GaussianMixture(2, 2).set(weights=torch.tensor([0.5, 0.6])), "sum is 1"),
        (lambda: GaussianMixture(2, 2).set(weights=torch.tensor([1.0, 0.0])), "above 0"),
        (lambda: GaussianMixture(2, 2).set(means=torch.zeros(3, 2)), r"\(2, 2\)"),
    ],
)
def test_options_that_cannot_work_are_refused(act: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        act()
