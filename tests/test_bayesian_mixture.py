"""The Bayesian mixture: its steps beside scikit-learn's, its bound beside enumeration."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sklearn import cluster, mixture
from torch import Tensor

from pyro_models.bayesian_components import NormalWishartPrior
from pyro_models.bayesian_mixture import BayesianGaussianMixture
from pyro_models.distributions.precision_normal import PrecisionNormal
from pyro_models.distributions.wishart_factor import WishartFactor, pack, unpack
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import em
from pyro_models.normal_wishart import (
    NormalWishart,
    divergence,
    expected_log_density,
    log_predictive,
    update,
)
from pyro_models.starts import KMeans, Start
from tests.real_cases import clusters, standardised, used
from tests.unchecked import unchecked

DRAWS = 50_000


@final
@dataclass(frozen=True, eq=False)
class Given(Start):
    """A start at given labels."""

    labels: Tensor

    def log_responsibilities(
        self, x: Tensor, num_components: int, generator: torch.Generator | None
    ) -> Tensor:
        return torch.nn.functional.one_hot(self.labels, num_components).to(x).log()


def beliefs() -> tuple[NormalWishart, NormalWishart, Tensor, Tensor]:
    """A prior, data, how much of each is seen, and the belief after it."""
    torch.manual_seed(1)
    tril = torch.randn(2, 3, 3).double().tril(-1) + torch.rand(2, 3).double().add(0.5).diag_embed()
    strength, degrees = torch.tensor([1.0, 2.5]).double(), torch.tensor([4.0, 5.5]).double()
    prior = NormalWishart(strength, torch.randn(2, 3).double(), degrees, tril)
    x, seen = torch.randn(7, 3).double(), torch.rand(7, 2).double()
    return prior, update(prior, x, seen), x, seen


def draw(belief: NormalWishart, draws: int) -> tuple[Tensor, Tensor]:
    packed = wishart(belief).sample(torch.Size((draws,)))
    return packed, normal(belief, packed).sample()


def wishart(belief: NormalWishart) -> WishartFactor:
    return WishartFactor(belief.degrees_of_freedom, belief.scatter_tril)


def normal(belief: NormalWishart, packed: Tensor) -> PrecisionNormal:
    scale = belief.strength.sqrt().unsqueeze(-1).unsqueeze(-1)
    return PrecisionNormal(belief.mean, scale * unpack(packed))


def log_density(belief: NormalWishart, packed: Tensor, means: Tensor) -> Tensor:
    return wishart(belief).log_prob(packed) + normal(belief, packed).log_prob(means)


def test_the_factor_has_the_density_of_torchs_wishart() -> None:
    tril = torch.tensor([[1.5, 0.0, 0.0], [0.4, 0.7, 0.0], [-1.0, 0.3, 2.0]]).double()
    degrees = torch.tensor(4.7).double()
    ours = WishartFactor(degrees, tril)
    theirs = torch.distributions.Wishart(degrees, precision_matrix=tril @ tril.mT)
    value = ours.sample()
    rows, columns = torch.tril_indices(3, 3)

    def precision(numbers: Tensor) -> Tensor:
        factor = unpack(numbers)
        return (factor.mT @ factor)[rows, columns]

    jacobian = torch.autograd.functional.jacobian(precision, value)
    assert isinstance(jacobian, Tensor)
    factor = unpack(value)
    wanted = theirs.log_prob(factor.mT @ factor) + jacobian.slogdet().logabsdet
    assert torch.allclose(ours.log_prob(value), wanted)
    assert torch.equal(pack(factor), value)
    assert ours.support.check(value)


def test_draws_of_the_factor_have_the_wisharts_mean() -> None:
    tril = torch.tensor([[1.5, 0.0], [0.4, 0.7]]).double()
    degrees = torch.tensor(3.5).double()
    factors = unpack(WishartFactor(degrees, tril).sample(torch.Size((DRAWS,))))
    precisions = factors.mT @ factors
    wanted = degrees * (tril @ tril.mT).inverse()
    error = precisions.std(0) / DRAWS**0.5
    assert ((precisions.mean(0) - wanted).abs() < 4 * error).all()


def test_the_update_is_bayes_rule() -> None:
    prior, belief, x, seen = beliefs()
    packed, means = draw(belief, 5)
    likelihood = PrecisionNormal(means.unsqueeze(1), unpack(packed).unsqueeze(1))
    evidence = (seen * likelihood.log_prob(x.unsqueeze(1))).sum(1)
    constant = log_density(prior, packed, means) + evidence - log_density(belief, packed, means)
    assert torch.allclose(constant, constant[:1].expand(5, -1), atol=1e-8)


def test_divergence_and_expectations_are_their_monte_carlo_means() -> None:
    prior, belief, x, _ = beliefs()
    packed, means = draw(belief, DRAWS)
    ratio = log_density(belief, packed, means) - log_density(prior, packed, means)
    error = ratio.std(0) / DRAWS**0.5
    assert ((divergence(belief, prior) - ratio.mean(0)).abs() < 4 * error).all()
    assert torch.allclose(divergence(prior, prior), torch.zeros(2).double(), atol=1e-10)
    density = PrecisionNormal(means, unpack(packed)).log_prob(x[0])
    error = density.std(0) / DRAWS**0.5
    assert ((expected_log_density(belief, x)[0] - density.mean(0)).abs() < 4 * error).all()
    mean = density.exp().mean(0)
    error = density.exp().std(0) / DRAWS**0.5
    assert ((log_predictive(belief, x)[0].exp() - mean).abs() < 4 * error).all()


@pytest.mark.parametrize("name", ["iris", "wine", "synthetic"])
@pytest.mark.parametrize("components", [4, 8])
def test_from_the_same_start_it_ends_where_scikit_learn_does(name: str, components: int) -> None:
    x = clusters() if name == "synthetic" else standardised(name)
    theirs = mixture.BayesianGaussianMixture(
        n_components=components,
        weight_concentration_prior_type="dirichlet_distribution",
        reg_covar=1e-10,
        max_iter=300,
        tol=0.0,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged to a tolerance of zero
        theirs.fit(x.numpy())
    means = cluster.KMeans(n_clusters=components, n_init=1, random_state=0).fit(x.numpy())
    model = BayesianGaussianMixture(components, x.shape[1]).double()
    model.initialize(x, Given(torch.as_tensor(means.labels_).long()))
    for _ in range(300):
        model.maximize(x, model.posterior(x))
    assert used(model.posterior(x).log_responsibilities) == len(set(theirs.predict(x.numpy())))
    assert torch.allclose(model.expected_weights, torch.as_tensor(theirs.weights_), atol=2e-3)
    close = torch.isclose(model.components.mean, torch.as_tensor(theirs.means_), atol=2e-2)
    assert close.all()


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits", "synthetic"])
def test_best_of_five_uses_as_many_components_as_scikit_learns(name: str) -> None:
    x = clusters() if name == "synthetic" else standardised(name)
    theirs = mixture.BayesianGaussianMixture(
        n_components=5,
        weight_concentration_prior_type="dirichlet_distribution",
        max_iter=1000,
        tol=1e-6,
        n_init=5,
        random_state=1,
    ).fit(x.numpy())
    model = BayesianGaussianMixture(5, x.shape[1]).double()
    em(model, x, restarts=5, tolerance=1e-7, seed=0, progress=False)
    ours = used(model.posterior(x).log_responsibilities)
    assert abs(ours - len(set(theirs.predict(x.numpy())))) <= 1
    if name == "synthetic":
        assert ours == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_never_falls(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 3, generator=generator, dtype=dtype) * 10.0 ** (seed - 2)
    model = BayesianGaussianMixture(6, 3).to(dtype)
    model.initialize(x, generator=generator)
    bounds = []
    for _ in range(30):
        posterior = model.posterior(x)
        bounds.append(float(posterior.bound))
        model.maximize(x, posterior)
    slack = 1e-5 if dtype == torch.float32 else 1e-10
    assert all(after > before - slack for before, after in itertools.pairwise(bounds))


def test_the_bound_is_the_elbo_and_under_the_evidence() -> None:
    # Three data, two components: all eight assignments, each with its marginal likelihood.
    x = torch.tensor([[0.0], [0.5], [4.0]]).double()
    scatter = torch.tensor([[1.0]])
    prior = NormalWishartPrior(torch.tensor([1.0]), 0.5, 2.0, scatter)
    model = BayesianGaussianMixture(2, 1, concentration=0.7, prior=prior).double()
    model.initialize(x, Given(torch.tensor([0, 0, 1])))
    for _ in range(200):
        model.maximize(x, model.posterior(x))
    bound = 3 * float(model.posterior(x).bound)
    terms = [_log_joint(model, x, labels) for labels in itertools.product((0, 1), repeat=3)]
    evidence = float(torch.stack(terms).logsumexp(0))
    # Either labelling is a mode: at best the bound is the evidence less log 2 and a gap.
    assert evidence - 3.0 < bound < evidence
    assert abs(bound - _monte_carlo(model, x)) < 0.02


def _log_joint(model: BayesianGaussianMixture, x: Tensor, labels: tuple[int, ...]) -> Tensor:
    """log p(x, labels), by the chain rule of predictive densities."""
    total = torch.zeros(()).double()
    counts = [0.7, 0.7]
    for n, label in enumerate(labels):
        total = total + math.log(counts[label] / sum(counts))
        counts[label] += 1
        seen = torch.tensor([float(other == label) for other in labels[:n]] or [0.0])
        rows = x[: max(n, 1)]
        prior = model.components._prior()
        belief = update(prior, rows, seen.double().unsqueeze(-1).expand(-1, 2))
        total = total + log_predictive(belief, x[n : n + 1])[0, 0]
    return total


def _monte_carlo(model: BayesianGaussianMixture, x: Tensor) -> float:
    """The ELBO by draws of weights, means, precisions, and the sum over components."""
    belief, prior = model.components.belief(), model.components._prior()
    packed, means = draw(belief, DRAWS)
    alpha = model.weights.concentration
    q, p = dist.Dirichlet(alpha), dist.Dirichlet(torch.full_like(alpha, 0.7))
    weights = q.sample(torch.Size((DRAWS,)))
    posterior = model.posterior(x)
    log_r = posterior.log_responsibilities
    density = PrecisionNormal(means.unsqueeze(1), unpack(packed).unsqueeze(1))
    joint = density.log_prob(x.unsqueeze(1)) + weights.log().unsqueeze(1)
    local = (posterior.responsibilities * (joint - log_r)).sum((-2, -1))
    ratio = log_density(prior, packed, means) - log_density(belief, packed, means)
    total = local + ratio.sum(-1) + p.log_prob(weights) - q.log_prob(weights)
    assert float(total.std()) / DRAWS**0.5 < 0.005
    return float(total.mean())


def test_the_program_has_the_joint_density_of_its_formula() -> None:
    model = BayesianGaussianMixture(2, 2)
    x = torch.randn(5, 2)
    values = {
        "weights": torch.tensor([0.3, 0.7]),
        "precision_factors": torch.tensor([[1.0, 2.0, 0.5], [0.5, 1.0, -1.0]]),
        "means": torch.randn(2, 2),
        "component": torch.tensor([0, 1, 1, 0, 1]),
    }
    trace: Any = poutine.trace(poutine.condition(model, values)).get_trace(x, num_data=10)
    factors = unpack(values["precision_factors"])
    covariance = (factors.mT @ factors).inverse()
    k = values["component"]
    local = dist.MultivariateNormal(values["means"][k], covariance[k]).log_prob(x).sum()
    local = local + values["weights"][k].log().sum()
    prior = dist.Dirichlet(torch.full((2,), 0.5)).log_prob(values["weights"])
    prior = (
        prior + dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(values["means"]).sum()
    )
    prior = (
        prior
        + WishartFactor(torch.tensor(2.0), torch.eye(2)).log_prob(values["precision_factors"]).sum()
    )
    assert torch.allclose(trace.log_prob_sum(), prior + 2 * local, rtol=1e-4)


def test_it_simulates() -> None:
    model = BayesianGaussianMixture(3, 2, concentration=2.0)
    assert model().shape == (1, 2)
    assert model(num_data=7).shape == (7, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[3.0, 1.0]]),
        torch.tensor([[0.0, 1.0], [5.0, 5.0]]),
        torch.ones(10, 2),
        torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [4.0, 1.0]]),
        torch.cat([torch.randn(20, 2), torch.tensor([[1e8, 1e8]])]),
        torch.randn(20, 2) + 1e4,
    ],
    ids=["one datum", "fewer than components", "duplicates", "constant column", "outlier", "far"],
)
def test_odd_data_give_a_finite_belief(dtype: torch.dtype, x: Tensor) -> None:
    model = BayesianGaussianMixture(4, 2).to(dtype)
    x = x.to(dtype)
    model.initialize(x, KMeans(), torch.Generator().manual_seed(0))
    for _ in range(20):
        model.maximize(x, model.posterior(x))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert model.posterior(x).bound.isfinite()
    assert model.log_prob(x).isfinite().all()


def test_one_dimension_does() -> None:
    x = torch.cat([torch.randn(40, 1), torch.randn(40, 1) + 10])
    model = BayesianGaussianMixture(5, 1)
    em(model, x, restarts=2, seed=0, progress=False)
    assert used(model.posterior(x).log_responsibilities) == 2
    # The predictive density integrates to one.
    grid = torch.linspace(-2000, 2000, 400_001).unsqueeze(-1)
    assert abs(model.log_prob(grid).exp().sum() * 0.01 - 1) < 1e-2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BayesianGaussianMixture(0, 2), "num_components=0"),
        (lambda: BayesianGaussianMixture(2, 2, concentration=0.0), "concentration=0.0"),
        (lambda: NormalWishartPrior(strength=-1.0), "strength=-1.0"),
        (lambda: model_with(NormalWishartPrior(degrees_of_freedom=1.0)), "above data_dim - 1"),
        (lambda: model_with(NormalWishartPrior(mean=torch.zeros(3))), r"shape \(3,\)"),
        (lambda: model_with(NormalWishartPrior(scatter=-torch.eye(2))), "positive definite"),
        (lambda: BayesianGaussianMixture(2, 2, prior=1.0), "NormalWishartPrior"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


def model_with(prior: NormalWishartPrior) -> BayesianGaussianMixture:
    return BayesianGaussianMixture(2, 2, prior=prior)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_data_it_cannot_explain_are_refused(bad: float) -> None:
    x = torch.zeros(4, 2)
    x[1, 1] = bad
    with pytest.raises(DataError):
        BayesianGaussianMixture(2, 2).check(x)
    with pytest.raises(DataError, match=r"\(batch, 2\)"):
        BayesianGaussianMixture(2, 2).check(torch.zeros(4, 3))
