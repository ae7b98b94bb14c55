"""Guides of global latents: their densities beside Pyro's, and conjugate posteriors."""

import copy
import functools
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from guides import BetaFactor, FullRank, KumaraswamyFactor, MeanField, NormalFactor, Point
from pyro_models.errors import DataError, OptionError, SiteMismatchError
from pyro_models.infer import ELBO, MonteCarloKL, Step, log_weights
from pyro_models.programs import announce, data_plate
from tests.unchecked import unchecked

adam = functools.partial(torch.optim.Adam, lr=0.03)
X = torch.tensor([1.0, 2.5, 0.5, 2.0])


def several(x: Tensor | None = None, num_data: int | None = None) -> Tensor:
    """Latents of many supports, one in a plate of its own."""
    w = pyro.sample("w", dist.Dirichlet(torch.full((3,), 2.0)))
    v = pyro.sample("v", dist.Beta(torch.ones(2), 3.0).to_event(1))
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    factor = pyro.sample("factor", dist.LKJCholesky(3, 1.0))
    with pyro.plate("groups", 4, dim=-1):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
    loc = w[..., 0] + v.sum(-1) + m.sum(-1, keepdim=True) + factor[..., 2, 0]
    with data_plate(1 if x is None else len(x), num_data):
        return pyro.sample("x", dist.Normal(loc.reshape(s.shape), s), obs=x)


def normal_normal(x: Tensor | None = None, num_data: int | None = None) -> Tensor:
    """mu ~ N(0, 2²), x ~ N(mu, 1): the posterior is N(sum(x) / (n + 1/4), 1 / (n + 1/4))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with data_plate((num_data or 1) if x is None else len(x), num_data):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def regression(x: Tensor | None = None) -> Tensor:
    """Weights ~ N(0, I), x ~ N(features @ weights, 1): the posterior has correlations."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with data_plate(4, None):
        return pyro.sample("x", dist.Normal((weights * FEATURES).sum(-1), 1.0), obs=x)


FEATURES = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
GUIDES = [
    MeanField,
    functools.partial(MeanField, factors={"v": KumaraswamyFactor()}),
    functools.partial(MeanField, factors={"v": BetaFactor(), "m": NormalFactor(0.5)}),
    FullRank,
    Point,
]
each = pytest.mark.parametrize("make", GUIDES)


def raw(scale: Tensor) -> Tensor:
    """What bounded_softplus makes a scale of."""
    s = scale.double() - 1e-4
    return (s / (1 - s / 1e4)).expm1().log().float()


@each
def test_values_have_the_models_shapes_and_lie_in_its_supports(make: Any) -> None:
    guide = make(several)
    trace: Any = poutine.trace(several).get_trace(X)
    for name, value in {**guide(X), **guide.center()}.items():
        assert value.shape == trace.nodes[name]["value"].shape
        assert trace.nodes[name]["fn"].support.check(value).all()
    assert set(guide(X)) == {"w", "v", "s", "factor", "m"}


@each
def test_particles_come_in_front(make: Any) -> None:
    weights = log_weights(several, make(several), X, num_particles=5, num_data=20)
    assert weights.global_.shape == (5,)
    assert weights.guide_sites["m"].value.shape == (5, 4)
    assert weights.guide_sites["w"].value.shape == (5, 1, 3)
    assert weights.plate_scale == 5


@each
def test_step_and_stock_svi_train_every_parameter_and_no_store_is_touched(make: Any) -> None:
    torch.manual_seed(1)
    guide = make(several)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    step = Step(several, guide, ELBO(num_particles=2), adam, compiled=False)
    SVI(several, guide, ClippedAdam({"lr": 0.01}), Trace_ELBO()).step(X)
    assert step(X).isfinite()
    for name, parameter in guide.named_parameters():
        assert (parameter.detach() != before[name]).any(), name
    assert list(pyro.get_param_store().keys()) == []


@each
def test_copies_and_pickles_are_the_same_guide(make: Any) -> None:
    guide = make(several)
    twins = [copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))]
    for twin in twins:
        pyro.set_rng_seed(3)
        ours = guide(X)
        pyro.set_rng_seed(3)
        assert all(torch.equal(ours[name], value) for name, value in twin(X).items())


@each
def test_the_start_is_where_it_was_put(make: Any) -> None:
    guide = make(several)
    values = {
        "w": torch.tensor([0.2, 0.5, 0.3]),
        "s": torch.tensor(2.0),
        "m": torch.tensor([1.0, -1.0, 0.0, 3.0]),
    }
    guide.initialize(values)
    center = guide.center()
    for name, value in values.items():
        assert torch.allclose(center[name], value, atol=1e-5), name


@pytest.mark.parametrize("factor", [BetaFactor(20.0), KumaraswamyFactor(20.0)])
def test_fractions_start_near_where_they_were_put(factor: Any) -> None:
    guide = MeanField(several, factors={"v": factor})
    guide.initialize({"v": torch.tensor([0.3, 0.9])})
    assert torch.allclose(guide.center()["v"], torch.tensor([0.3, 0.9]), atol=0.03)


def test_mean_field_has_the_density_of_pyros() -> None:
    guide, theirs = MeanField(several), AutoNormal(poutine.block(several, hide=["x"]))
    theirs(X)
    with torch.no_grad():
        for name in guide.latents:
            loc = attribute(theirs.locs, name)
            loc.copy_(guide.get_parameter(f"factors.{name}.loc"))
            attribute(theirs.scales, name).fill_(0.1)
            guide.get_parameter(f"factors.{name}.raw_scale").copy_(raw(torch.full_like(loc, 0.1)))
    compare(guide, theirs)


def test_full_rank_has_the_density_of_pyros() -> None:
    guide = FullRank(several)
    theirs: Any = AutoMultivariateNormal(poutine.block(several, hide=["x"]))
    theirs(X)
    with torch.no_grad():
        guide.raw_tril.normal_()
        guide.raw_scale.normal_()
        theirs.loc.copy_(guide.loc)
        theirs.scale = guide.scale_tril.diagonal()
        theirs.scale_tril = guide.scale_tril / guide.scale_tril.diagonal().unsqueeze(-1)
    compare(guide, theirs)
    pyro.clear_param_store()


def attribute(module: Any, name: str) -> Any:
    return getattr(module, name)


def compare(guide: nn.Module, theirs: nn.Module) -> None:
    """Both draw the same from the same seed, and give it the same density."""
    for seed in range(5):
        totals = []
        for program in (guide, theirs):
            pyro.set_rng_seed(seed)
            trace: Any = poutine.trace(program).get_trace(X)
            values = {name: trace.nodes[name]["value"] for name in ("w", "v", "s", "factor", "m")}
            totals.append((trace.log_prob_sum(), values))
        (ours, our_values), (pyros, their_values) = totals
        order = all(torch.allclose(our_values[n], their_values[n], atol=1e-5) for n in our_values)
        assert order
        assert torch.allclose(ours, pyros, atol=1e-2, rtol=1e-4)
    pyro.clear_param_store()


def test_at_a_conjugate_posterior_every_weight_is_the_evidence() -> None:
    guide = MeanField(normal_normal)
    precision = len(X) + 0.25
    with torch.no_grad():
        guide.get_parameter("factors.mu.loc").fill_(float(X.sum()) / precision)
        scale = torch.tensor(precision**-0.5)
        guide.get_parameter("factors.mu.raw_scale").copy_(raw(scale))
    weights = log_weights(normal_normal, guide, X, num_particles=6)
    marginal = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 4.0)
    total = weights.global_ + weights.local.sum(-1)
    assert torch.allclose(total, marginal.log_prob(X).expand(6), atol=1e-4)


def test_full_rank_holds_a_correlated_posterior_exactly() -> None:
    guide = FullRank(regression)
    covariance = (FEATURES.T @ FEATURES + torch.eye(2)).inverse()
    tril = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        guide.loc.copy_(covariance @ FEATURES.T @ X)
        guide.raw_scale.copy_(raw(tril.diagonal()))
        guide.raw_tril.copy_((tril / tril.diagonal().unsqueeze(-1)).tril(-1))
    assert torch.allclose(guide.covariance, covariance, atol=1e-5)
    weights = log_weights(regression, guide, X, num_particles=6)
    marginal = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + FEATURES @ FEATURES.T)
    total = weights.global_ + weights.local.sum(-1)
    assert torch.allclose(total, marginal.log_prob(X).expand(6), atol=1e-4)


def test_full_rank_learns_the_correlated_posterior() -> None:
    guide = FullRank(regression)
    step = Step(regression, guide, ELBO(num_particles=20), adam, compiled=False)
    for number in range(300):
        step.lr_factor = 1 - number / 300
        step(X)
    covariance = (FEATURES.T @ FEATURES + torch.eye(2)).inverse()
    deviation = covariance.diagonal().sqrt()
    assert ((guide.loc - covariance @ FEATURES.T @ X).abs() < 0.1 * deviation).all()
    assert torch.allclose(guide.covariance, covariance, atol=0.02)


def coin(x: Tensor | None = None) -> Tensor:
    """v ~ Beta(2, 3), x ~ Bernoulli(v)."""
    v = pyro.sample("v", dist.Beta(2.0, 3.0))
    with data_plate(1 if x is None else len(x), None):
        return pyro.sample("x", dist.Bernoulli(v), obs=x)


FLIPS = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("factor", [BetaFactor(), KumaraswamyFactor(), NormalFactor()])
def test_each_family_finds_the_posterior_of_a_coin(factor: Any) -> None:
    guide = MeanField(coin, factors={"v": factor})
    step = Step(coin, guide, ELBO(num_particles=10), adam, compiled=False)
    for number in range(300):
        step.lr_factor = 1 - number / 300
        step(FLIPS)
    exact = dist.Beta(7.0, 5.0)  # 5 heads and 2 tails seen
    with torch.no_grad():
        draws = torch.stack([guide()["v"] for _ in range(500)])
        bounds = torch.stack([step.evaluate(FLIPS) * len(FLIPS) for _ in range(50)])
    assert abs(draws.mean() - exact.mean) < 0.03
    assert abs(draws.std() - exact.stddev) < 0.03
    evidence = math.lgamma(7) + math.lgamma(5) - math.lgamma(12)
    evidence -= math.lgamma(2) + math.lgamma(3) - math.lgamma(5)
    # The bound is the evidence less KL(q || posterior), which is zero for the conjugate family.
    error = bounds.std() / len(bounds) ** 0.5
    assert -0.05 - 4 * error < bounds.mean() - evidence < 4 * error


def dice(x: Tensor | None = None) -> Tensor:
    """w ~ Dirichlet(2, 3, 4), x ~ Categorical(w)."""
    w = pyro.sample("w", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with data_plate(1 if x is None else len(x), None):
        return pyro.sample("x", dist.Categorical(w), obs=x)


def test_point_finds_the_mode_of_a_conjugate_posterior() -> None:
    guide = Point(dice)
    throws = torch.tensor([0, 0, 1, 2, 2, 2])
    step = Step(dice, guide, ELBO(), adam, compiled=False)
    for _ in range(400):
        step(throws)
    # Dirichlet(4, 4, 7): its mode over the simplex is (3, 3, 6) / 12.
    assert torch.allclose(guide.center()["w"], torch.tensor([0.25, 0.25, 0.5]), atol=1e-3)


def test_point_has_the_bound_of_the_log_joint() -> None:
    guide = Point(dice)
    guide.initialize({"w": torch.tensor([0.5, 0.2, 0.3])})
    throws = torch.tensor([0, 2])
    prior = dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])).log_prob(guide.center()["w"])
    wanted = prior + math.log(0.5) + math.log(0.3)
    bound = ELBO(kl=MonteCarloKL()).terms(dice, guide, throws).elbo * 2
    assert torch.allclose(bound, wanted, atol=1e-5)


class LocalNormal(nn.Module):
    """q(z_n | x_n, mu) = N((x_n + mu) / 2, 1/2), exact for the model below."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, values: dict[str, Tensor], x: Tensor, num_data: int | None = None) -> None:
        announce(self, "guide")
        with data_plate(len(x), num_data):
            pyro.sample("z", dist.Normal(self.slope * (x + values["mu"]), 0.5**0.5))


def hierarchical(x: Tensor | None = None, num_data: int | None = None) -> Tensor:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with data_plate(1 if x is None else len(x), num_data):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("make", [MeanField, FullRank, Point])
def test_a_guide_for_single_data_sees_what_was_drawn(make: Any) -> None:
    guide = make(hierarchical, local=LocalNormal())
    weights = log_weights(hierarchical, guide, X, num_particles=3, num_data=8)
    mu = weights.guide_sites["mu"].value  # (3, 1)
    # The local guide is exact, so that its weights are log p(x | mu).
    assert torch.allclose(weights.local, dist.Normal(mu, 2**0.5).log_prob(X), atol=1e-4)
    assert "local.slope" in dict(guide.named_parameters())
    SVI(hierarchical, guide, ClippedAdam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert guide.local.slope != 0.5


def test_pyros_predictive_takes_them() -> None:
    for make in (MeanField, FullRank, Point):
        guide = make(normal_normal)
        drawn = Predictive(normal_normal, guide=guide, num_samples=7)(num_data=5)
        assert drawn["x"].shape == (7, 5)
        many = Predictive(guide, num_samples=7, parallel=True)(X)
        assert many["mu"].flatten().shape == (7,)


def test_a_draw_at_the_border_of_the_support_is_no_start() -> None:
    def sparse(x: Tensor | None = None) -> None:
        pyro.sample("w", dist.Dirichlet(torch.full((50,), 1e-3)))

    for make in (MeanField, FullRank, Point):
        for value in make(sparse).state_dict().values():
            assert value.isfinite().all()


def test_what_has_no_global_latents_is_refused() -> None:
    def local_only(x: Tensor | None = None) -> Tensor:
        with data_plate(2, None):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def discrete(x: Tensor | None = None) -> Tensor:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with data_plate(2, None):
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def undeclared(x: Tensor | None = None) -> None:
        pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0))

    for make in (MeanField, FullRank, Point):
        with pytest.raises(OptionError, match="amortised"):
            make(local_only)
        with pytest.raises(OptionError, match="Enumerated"):
            make(discrete)
        with pytest.raises(SiteMismatchError, match="to_event"):
            make(undeclared)


def test_options_and_values_that_cannot_work_are_refused() -> None:
    with pytest.raises(OptionError, match="no latent"):
        MeanField(coin, factors={"w": BetaFactor()})
    with pytest.raises(OptionError, match=r"fractions in \(0, 1\)"):
        MeanField(dice, factors={"w": BetaFactor()})
    with pytest.raises(OptionError, match="NormalFactor"), unchecked():
        MeanField(coin, factors={"v": "beta"})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="strength"):
        BetaFactor(strength=-1.0)
    with pytest.raises(OptionError, match="scale"):
        FullRank(coin, scale=0.0)
    guide = MeanField(dice)
    with pytest.raises(OptionError, match="no latent"):
        guide.initialize({"v": torch.tensor(1.0)})
    with pytest.raises(DataError, match="shape"):
        guide.initialize({"w": torch.tensor(1.0)})
    with pytest.raises(DataError, match="support"):
        guide.initialize({"w": torch.tensor([1.0, 1.0, 1.0])})
    with pytest.raises(DataError, match="support"):
        guide.initialize({"w": torch.tensor([1.0, math.nan, 0.0])})


@pytest.mark.parametrize(
    "make",
    [*(pytest.param(make, marks=pytest.mark.slow) for make in (MeanField, FullRank)), Point],
)
def test_compiled_steps_follow_the_program(make: Any) -> None:
    guide = make(coin)
    step = Step(coin, guide, ELBO(num_particles=2), adam)
    for _ in range(3):
        assert step(FLIPS).isfinite()
    assert step.fallback_reason is None
