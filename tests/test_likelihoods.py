"""Densities against scipy and quadrature, scales against their argmax, and what is refused."""

import math
from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    FixedScale,
    LearnedScale,
    Likelihood,
    Normal,
    OptimalScale,
    Poisson,
)
from tests.unchecked import unchecked

DIM = 3


def binary(n: int) -> Tensor:
    return torch.randint(2, (n, DIM)).float()


def codes(n: int) -> Tensor:
    return torch.randint(4, (n, DIM)).float()


def counts(n: int) -> Tensor:
    return torch.poisson(torch.tensor([0.5, 3.0, 40.0]).expand(n, DIM))


Example = tuple[Callable[[], Likelihood], Callable[[int], Tensor]]
EXAMPLES: dict[str, Example] = {
    "bernoulli": (Bernoulli, binary),
    "continuous": (ContinuousBernoulli, lambda n: torch.rand(n, DIM)),
    "fixed": (lambda: Normal(FixedScale(0.3)), lambda n: torch.randn(n, DIM)),
    "learned": (lambda: Normal(LearnedScale(0.3)), lambda n: torch.randn(n, DIM)),
    "per dimension": (lambda: Normal(LearnedScale(data_dim=DIM)), lambda n: torch.randn(n, DIM)),
    "optimal": (lambda: Normal(OptimalScale()), lambda n: torch.randn(n, DIM)),
    "categorical": (lambda: Categorical(4), codes),
    "poisson": (Poisson, counts),
}
every = pytest.mark.parametrize("name", EXAMPLES)


def outputs_for(likelihood: Likelihood, *lead: int) -> Tensor:
    return torch.randn(*lead, DIM * likelihood.outputs_per_dim, requires_grad=True)


class TestEveryLikelihood:
    @every
    def test_shapes_with_particles_in_front(self, name: str) -> None:
        make, data = EXAMPLES[name]
        likelihood = make()
        p = likelihood(outputs_for(likelihood, 5, 7), data(7))
        assert p.batch_shape == (5, 7)
        assert p.event_shape == (DIM,)
        assert p.log_prob(data(7)).shape == (5, 7)

    @every
    def test_what_it_draws_it_accepts(self, name: str) -> None:
        likelihood = EXAMPLES[name][0]()
        likelihood.check(likelihood(outputs_for(likelihood, 50)).sample())

    @every
    def test_a_finite_gradient_reaches_outputs_and_parameters(self, name: str) -> None:
        make, data = EXAMPLES[name]
        likelihood = make()
        outputs = outputs_for(likelihood, 7)
        loss = -likelihood(outputs, x := data(7)).log_prob(x).sum()
        inputs = [outputs, *likelihood.parameters()]
        for gradient in torch.autograd.grad(loss, inputs):
            assert gradient.isfinite().all()
            assert gradient.any()

    @every
    @pytest.mark.parametrize("size", [1e3, 1e30])
    def test_extreme_outputs_stay_finite(self, name: str, size: float) -> None:
        make, data = EXAMPLES[name]
        likelihood = make()
        if isinstance(likelihood, Normal):
            size = min(size, 1e15)  # further out a normal's log-density leaves float32
        outputs = (size * outputs_for(likelihood, 7)).detach().requires_grad_()
        loss = likelihood(outputs, x := data(7)).log_prob(x).sum()
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert loss.isfinite()
        assert gradient.isfinite().all()

    @every
    def test_the_initial_bias_gives_the_training_mean(self, name: str) -> None:
        make, data = EXAMPLES[name]
        likelihood, x = make(), data(40)
        p = likelihood(likelihood.initial_bias(x))
        if name == "categorical":
            share = torch.nn.functional.one_hot(x.long(), 4).double().mean(0)
            assert torch.allclose(p.base_dist.probs, share, atol=1e-3)
        else:
            assert torch.allclose(p.mean, x.double().mean(0), rtol=1e-5)

    @every
    def test_it_traces_to_a_static_graph(self, name: str) -> None:
        make, data = EXAMPLES[name]
        likelihood, x = make(), data(4)
        outputs = outputs_for(likelihood, 4).detach()

        def log_prob(outputs: Tensor, x: Tensor) -> Tensor:
            with pyro.validation_enabled(False):
                return likelihood(outputs, x).log_prob(x)

        graph = make_fx(log_prob)(outputs, x)
        assert torch.allclose(graph(outputs, x), log_prob(outputs, x))

    @every
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_nan_and_infinity_are_refused(self, name: str, bad: float) -> None:
        make, data = EXAMPLES[name]
        x = data(7)
        x[3, 1] = bad
        with pytest.raises(DataError, match=r"x\[3, 1\] = .* is not finite"):
            make().check(x)

    @every
    @pytest.mark.parametrize("shape", [(0, DIM), (7, 0), (7,), ()])
    def test_no_data_are_refused(self, name: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match="shape"), unchecked():
            EXAMPLES[name][0]().check(torch.zeros(shape))

    @every
    def test_complex_data_are_refused(self, name: str) -> None:
        with pytest.raises(DataError, match="complex"):
            EXAMPLES[name][0]().check(torch.zeros(2, DIM, dtype=torch.complex64))


SCIPY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bernoulli": lambda o, x: stats.bernoulli(1 / (1 + np.exp(-o))).logpmf(x),
    "fixed": lambda o, x: stats.norm(o, 0.3).logpdf(x),
    "learned": lambda o, x: stats.norm(o, 0.3).logpdf(x),
    "per dimension": lambda o, x: stats.norm(o, 1).logpdf(x),
    "poisson": lambda o, x: stats.poisson(np.exp(20 * np.tanh(o / 20))).logpmf(x),
    "optimal": lambda o, x: stats.norm(o, np.sqrt(np.mean((x - o) ** 2))).logpdf(x),
}


@pytest.mark.parametrize("name", SCIPY)
def test_log_density_equals_scipys(name: str) -> None:
    make, data = EXAMPLES[name]
    likelihood, x = make().double(), data(7).double()
    outputs = torch.randn(7, DIM, dtype=torch.float64)
    wanted = SCIPY[name](outputs.numpy(), x.numpy()).sum(-1)
    assert torch.allclose(likelihood(outputs, x).log_prob(x), torch.from_numpy(wanted), atol=1e-6)


def test_categorical_reads_the_outputs_of_a_dimension_together() -> None:
    likelihood, x = Categorical(4), codes(7)
    outputs = outputs_for(likelihood, 7)
    table = torch.log_softmax(outputs.reshape(7, DIM, 4), -1)
    wanted = table.gather(-1, x.long().unsqueeze(-1)).squeeze(-1).sum(-1)
    for stored in (x, x.long(), x.to(torch.uint8), x.double()):
        assert torch.allclose(likelihood(outputs).log_prob(stored), wanted, atol=1e-5)


def test_continuous_bernoulli_integrates_to_one() -> None:
    p = ContinuousBernoulli()(torch.tensor([0.7], dtype=torch.float64))
    total, _ = integrate.quad(lambda x: p.log_prob(torch.tensor([x])).exp().item(), 0, 1)
    assert total == pytest.approx(1, abs=1e-6)


class TestOptimalScale:
    def test_it_is_where_the_likelihood_is_highest(self) -> None:
        mean, x = torch.randn(2, 8, DIM).double().unbind(0)
        scale = OptimalScale().double()(mean, x)

        def loss(log_scale: float) -> float:
            return -stats.norm(mean, np.exp(log_scale)).logpdf(x).sum()

        best = optimize.minimize_scalar(loss, bracket=(-1, 1), tol=1e-10).x
        assert scale.item() == pytest.approx(math.exp(best), rel=1e-6)

    def test_over_particles_it_is_the_best_for_all_of_them(self) -> None:
        mean, x = torch.randn(5, 8, DIM), torch.randn(8, DIM)
        best = (x - mean).square().mean().sqrt()
        assert torch.allclose(OptimalScale()(mean, x), best)

    def test_its_gradient_is_that_of_the_whole_optimum(self) -> None:
        # At the optimum the scale's own gradient is zero, so detaching it loses nothing.
        mean, x = torch.randn(8, DIM, requires_grad=True), torch.randn(8, DIM)
        through = torch.distributions.Normal(mean, (x - mean).square().mean().sqrt())
        (wanted,) = torch.autograd.grad(through.log_prob(x).sum(), mean)
        ours = Normal(OptimalScale())(mean, x).log_prob(x).sum()
        assert torch.allclose(torch.autograd.grad(ours, mean)[0], wanted, atol=1e-5)

    def test_it_looks_at_the_data_only_while_training(self) -> None:
        scale, mean, x = OptimalScale(), torch.zeros(4, DIM), torch.full((4, DIM), 2.0)
        with torch.no_grad():
            assert scale(mean, x).item() == 1.0
        assert scale.eval()(mean, x).item() == 1.0
        assert scale.train()(mean, x).item() == 2.0
        assert scale(mean, None).item() == 2.0
        assert scale.eval()(mean, 3 * x).item() == 2.0

    def test_the_last_one_is_kept_with_the_state(self) -> None:
        likelihood = Normal(OptimalScale())
        likelihood(torch.zeros(4, DIM), torch.full((4, DIM), 2.0))
        other = Normal(OptimalScale())
        other.load_state_dict(likelihood.state_dict())
        assert other(torch.zeros(DIM)).stddev.tolist() == [2.0] * DIM

    def test_a_perfect_reconstruction_stays_above_the_floor(self) -> None:
        x = torch.randn(4, DIM)
        assert OptimalScale(floor=0.01)(x, x).item() == pytest.approx(0.01)

    def test_two_runs_before_one_backward_pass_are_allowed(self) -> None:
        likelihood, x = Normal(OptimalScale()), torch.randn(4, DIM)
        outputs = outputs_for(likelihood, 4)
        first = likelihood(outputs, x).log_prob(x).sum()
        second = likelihood(2 * outputs, x).log_prob(x).sum()
        (first + second).backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()


class TestLearnedScale:
    @pytest.mark.parametrize("initial", [0.01, 1.0, 1e6])
    def test_it_starts_where_it_is_told(self, initial: float) -> None:
        assert LearnedScale(initial)(torch.zeros(1), None).item() == pytest.approx(initial)

    def test_it_never_reaches_zero(self) -> None:
        scale = LearnedScale(floor=0.01)
        with torch.no_grad():
            scale.log_excess.fill_(-1e6)
        assert scale(torch.zeros(1), None).item() == pytest.approx(0.01)

    def test_it_finds_the_maximum_of_the_likelihood(self) -> None:
        likelihood = Normal(LearnedScale(data_dim=DIM))
        x = torch.randn(200, DIM) * torch.tensor([0.1, 1.0, 10.0])
        optimizer = torch.optim.LBFGS(likelihood.parameters(), line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            loss = -likelihood(torch.zeros(200, DIM), x).log_prob(x).mean()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(loss)
        best = x.square().mean(0).sqrt()
        assert torch.allclose(likelihood(torch.zeros(DIM)).stddev, best, rtol=1e-3)


def test_means_at_the_edge_are_clipped() -> None:
    edge = torch.tensor([[0.0, 1.0]])
    assert torch.allclose(
        Bernoulli().initial_bias(edge).sigmoid(), torch.tensor([0.001, 0.999]).double()
    )
    mean = ContinuousBernoulli()(ContinuousBernoulli().initial_bias(edge)).mean
    assert torch.allclose(mean, torch.tensor([0.01, 0.99]).double())
    assert Poisson()(Poisson().initial_bias(edge)).mean[0].item() == pytest.approx(0.001)
    probs = Categorical(3)(Categorical(3).initial_bias(edge)).base_dist.probs
    assert torch.allclose(probs[0], torch.tensor([0.998, 0.001, 0.001]).double(), atol=1e-5)


def test_a_bias_is_found_for_images_and_whole_numbers_too() -> None:
    images = torch.ones(5, 1, 2, 3, dtype=torch.uint8)
    for likelihood in (Bernoulli(), ContinuousBernoulli(), Normal(), Categorical(3), Poisson()):
        bias = likelihood.initial_bias(images)
        assert bias.shape == (6 * likelihood.outputs_per_dim,)
        assert bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("likelihood", "value", "words"),
    [
        (Bernoulli(), 0.5, r"x\[1, 2\] = 0.5 .*1 of 6 values.*DynamicBinarization\(\)"),
        (Bernoulli(), 0.5, r"StaticBinarization.*ContinuousBernoulli\(\)"),
        (Bernoulli(), 16.0, r"x\[1, 2\] = 16 .*scale"),
        (Bernoulli(), -1.0, r"likelihoods.Normal\(\)"),
        (ContinuousBernoulli(), 1.01, r"x\[1, 2\] = 1.01 .*scale grey levels"),
        (ContinuousBernoulli(), -0.1, r"x\[1, 2\] = -0.1"),
        (Categorical(4), 4.0, r"the codes 0, ..., 3, but x\[1, 2\] = 4 "),
        (Categorical(4), -1.0, r"x\[1, 2\] = -1 "),
        (Categorical(4), 1.5, r"x\[1, 2\] = 1.5 "),
        (Poisson(), -1.0, r"x\[1, 2\] = -1 "),
        (Poisson(), 2.5, r"x\[1, 2\] = 2.5 .*Normal\(\)"),
        (Poisson(max_log_rate=2.0), 8.0, r"whole numbers from 0 to 7.39.*max_log_rate"),
    ],
)
def test_data_outside_the_support_are_refused(
    likelihood: Likelihood, value: float, words: str
) -> None:
    x = torch.zeros(2, DIM)
    likelihood.check(x)
    x[1, 2] = value
    with pytest.raises(SupportError, match=words):
        likelihood.check(x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_data_of_any_real_type_are_checked(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    for likelihood in (Bernoulli(), ContinuousBernoulli(), Normal(), Categorical(2), Poisson()):
        likelihood.check(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FixedScale(0.0), "value=0.0"),
        (lambda: FixedScale(math.nan), "value=nan"),
        (lambda: LearnedScale(1e-3, floor=1e-3), "not above floor"),
        (lambda: LearnedScale(-1.0), "initial=-1.0"),
        (lambda: LearnedScale(data_dim=0), "data_dim=0"),
        (lambda: OptimalScale(floor=-1.0), "floor=-1.0"),
        (lambda: Categorical(0), "num_categories=0"),
        (lambda: Poisson(0.0), "max_log_rate=0.0"),
        (lambda: Poisson(100.0), "at most 80"),
        (lambda: Normal(0.1), r"FixedScale\(0.1\)"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


def test_the_largest_rate_stays_in_float32() -> None:
    p = Poisson(80.0)(torch.tensor([1e9, -1e9]))
    assert p.mean.isfinite().all()
    assert constraints.positive.check(p.mean).all()
