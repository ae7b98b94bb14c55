import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_mean
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pyro_models.errors import DataError, NonFiniteError, OptionError, SiteMismatchError
from pyro_models.infer.likelihood import (
    EffectiveSampleSizeWarning,
    LogLikelihood,
    log_likelihood,
)

WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.2]])
NOISE = 0.7


def model(x: Tensor) -> None:
    """z ~ N(0, I), x ~ N(W z, noise^2 I)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x)


def exact(x: Tensor) -> Tensor:
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3)
    return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).double()


def posterior(inflation: float = 1.0, shift: float = 0.0) -> Callable[[Tensor], None]:
    precision = torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2
    covariance = torch.linalg.inv(precision)
    gain = covariance @ WEIGHT.T / NOISE**2

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            fn = dist.MultivariateNormal(x @ gain.T + shift, inflation * covariance)
            pyro.sample("z", fn)

    return guide


def draws(n: int) -> Tensor:
    return torch.randn(n, 2) @ WEIGHT.T + NOISE * torch.randn(n, 3)


def test_exact_posterior_gives_the_exact_value() -> None:
    x = draws(20)
    estimate = log_likelihood(model, posterior(), x, num_samples=50)
    torch.testing.assert_close(estimate.value, exact(x), atol=2e-5, rtol=0)
    assert estimate.standard_error.max() < 1e-5
    torch.testing.assert_close(estimate.effective_sample_size, torch.full((20,), 50.0).double())
    assert estimate.value.dtype == torch.float64
    assert (estimate.num_samples, estimate.num_data) == (50, 20)


def test_value_lies_within_four_standard_errors() -> None:
    x = draws(200)
    estimate = log_likelihood(model, posterior(inflation=1.5), x, num_samples=2000)
    z = (estimate.value - exact(x)) / estimate.standard_error
    assert z.abs().max() < 4.5
    # The standard errors are right, not merely large enough: z has variance 1.
    assert z.square().mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 200))
    off = estimate.mean - exact(x).mean().item()
    assert abs(off) < 4 * estimate.mean_monte_carlo_error


def test_estimate_of_the_density_is_unbiased() -> None:
    x = draws(1).expand(20_000, 3)
    estimate = log_likelihood(model, posterior(inflation=2.0), x, num_samples=3)
    ratio = (estimate.value - exact(x)).exp()
    error = ratio.std() / len(x) ** 0.5
    assert abs(ratio.mean() - 1) < 4 * error
    # The logarithm is too low, which shows that the test has the power to see a bias.
    log_error = (estimate.value - exact(x)).std() / len(x) ** 0.5
    assert (estimate.value - exact(x)).mean() < -4 * log_error


def test_effective_sample_size_is_that_of_the_weights() -> None:
    seen: list[Tensor] = []
    guide = posterior(inflation=1.7)

    def spy(x: Tensor) -> None:
        guide(x)
        seen.append(x)

    x = draws(1)
    torch.manual_seed(1)
    estimate = log_likelihood(model, spy, x, num_samples=4000)
    # For a Gaussian posterior and proposal the weights' moments are known:
    # E[w^2] / E[w]^2 = prod over 2 dims of c / sqrt(2 c - 1) at inflation c.
    expected = 4000 / (1.7 / math.sqrt(2 * 1.7 - 1)) ** 2
    assert estimate.effective_sample_size.item() == pytest.approx(expected, rel=0.05)
    ratio = 4000 / estimate.effective_sample_size
    assert estimate.standard_error.item() == pytest.approx(
        math.sqrt((ratio.item() - 1) / 3999), rel=1e-6
    )


@pytest.mark.parametrize("max_memory", [20_000, 100_000])
def test_chunks_change_nothing(max_memory: int) -> None:
    x = draws(7)
    guide = posterior(inflation=1.5)
    whole = log_likelihood(model, guide, x, num_samples=300)
    parts = log_likelihood(model, guide, x, num_samples=300, max_memory=max_memory)
    error = (whole.standard_error.square() + parts.standard_error.square()).sqrt()
    assert ((whole.value - parts.value) / error).abs().max() < 4
    ratio = parts.effective_sample_size / whole.effective_sample_size
    assert (ratio - 1).abs().max() < 0.2
    assert parts.num_samples == 300


@pytest.mark.parametrize("max_memory", [1, 3000, 512 * 2**20])
def test_every_datum_gets_every_draw_once(max_memory: int) -> None:
    guide = posterior(inflation=1.5)
    seen = torch.zeros(5)
    x = draws(5)
    x[:, 0] = torch.arange(5.0)

    def spy(x: Tensor) -> None:
        value: Any = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"]
        count = value.numel() // (2 * len(x))
        seen[x[:, 0].long()] += count

    log_likelihood(model, spy, x, num_samples=37, max_memory=max_memory)
    extra = seen[1]  # each chunk's first run of a pair looks at its plates
    assert torch.equal(seen[1:], torch.full((4,), float(extra)))
    assert extra == 37


def peak(run: Callable[[], Any]) -> int:
    """Most bytes of the CPU allocator that were alive at a time, as torch's profiler sees it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    profiler: Any = record.profiler
    events = profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive, most = 0, 0
    for _, change in changes:
        alive += change
        most = max(most, alive)
    return most


class Wide(torch.nn.Module):
    """A model whose memory is in its hidden layer, which no sample site shows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, 400), torch.nn.Tanh(), torch.nn.Linear(400, 3)
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


def test_memory_bound_is_obeyed() -> None:
    x, wide, guide = draws(60), Wide(), posterior(inflation=1.5)
    bound = 2 * 2**20
    bounded = peak(lambda: log_likelihood(wide, guide, x, num_samples=200, max_memory=bound))
    free = peak(lambda: log_likelihood(wide, guide, x, num_samples=200))
    assert bounded < bound
    assert bounded > bound / 10, "the chunks are much smaller than they could be"
    assert free > 5 * bound


def mean_model(x: Tensor) -> None:
    """mu ~ N(0, 1) for all data, x ~ N(mu, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def mean_guide(inflation: float) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        n = len(x)
        pyro.sample("mu", dist.Normal(x.sum() / (n + 1), inflation / (n + 1) ** 0.5))

    return guide


@pytest.mark.parametrize("inflation", [1.0, 1.3])
@pytest.mark.parametrize("max_memory", [1, 2**29])
def test_global_latents_give_the_joint(inflation: float, max_memory: int) -> None:
    x = torch.randn(12) + 1
    joint = dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + 1).log_prob(x).item()
    estimate = log_likelihood(
        mean_model, mean_guide(inflation), x, num_samples=500, max_memory=max_memory
    )
    assert estimate.value.shape == ()
    assert estimate.value.item() == pytest.approx(
        joint, abs=4 * estimate.standard_error.item() + 1e-5
    )
    assert estimate.mean == pytest.approx(estimate.value.item() / 12)
    assert estimate.mean_monte_carlo_error == pytest.approx(estimate.standard_error.item() / 12)
    assert math.isnan(estimate.mean_standard_error)


def test_local_autoguide() -> None:
    x = draws(6)
    guide = AutoNormal(model, init_loc_fn=init_to_mean, init_scale=1.0)
    with pyro.get_param_store().scope():
        estimate = log_likelihood(model, guide, x, num_samples=5000)
    z = (estimate.value - exact(x)) / estimate.standard_error
    assert z.shape == (6,)
    assert z.abs().max() < 4


def test_errors_of_the_mean() -> None:
    value = torch.tensor([1.0, 2.0, 4.0]).double()
    error = torch.tensor([0.1, 0.2, 0.2]).double()
    estimate = LogLikelihood(value, error, torch.ones(3).double(), num_samples=5, num_data=3)
    assert estimate.mean == pytest.approx(7 / 3)
    assert estimate.mean_monte_carlo_error == pytest.approx(0.3 / 3)
    assert estimate.mean_standard_error == pytest.approx(value.std().item() / 3**0.5)


def test_one_draw_has_no_known_error() -> None:
    estimate = log_likelihood(model, posterior(2.0), draws(3), num_samples=1)
    assert torch.equal(estimate.standard_error, torch.full((3,), math.inf).double())
    assert estimate.value.isfinite().all()


def test_several_arguments() -> None:
    def regression(covariate: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(covariate, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(covariate: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((covariate + y) / 2, 0.5**0.5))

    covariate, y = torch.randn(4), torch.randn(4)
    estimate = log_likelihood(regression, guide, (covariate, y), num_samples=3)
    expected = dist.Normal(covariate, 2**0.5).log_prob(y).double()
    torch.testing.assert_close(estimate.value, expected, atol=1e-5, rtol=0)


def test_collapse_warns() -> None:
    with pytest.warns(EffectiveSampleSizeWarning, match="of 10 estimates .* one draw of 100"):
        log_likelihood(model, posterior(inflation=0.05, shift=5.0), draws(10), num_samples=100)


def test_impossible_data_has_log_density_minus_infinity() -> None:
    def bounded(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("wall", torch.where(z > 100.0, 0.0, -math.inf))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.warns(EffectiveSampleSizeWarning):
        estimate = log_likelihood(bounded, guide, torch.zeros(2), num_samples=50)
    assert torch.equal(estimate.value, torch.full((2,), -math.inf).double())
    assert torch.equal(estimate.effective_sample_size, torch.zeros(2).double())


def test_not_finite_weights_name_the_site() -> None:
    class Broken(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) * math.nan

    def broken(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("trap", Broken(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(NonFiniteError, match="trap") as caught:
        log_likelihood(broken, guide, torch.zeros(2), num_samples=5)
    assert caught.value.sites == ("trap",)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 3), "holds no data"),
        (torch.tensor([[0.0, math.nan, 1.0]]), "not finite .1 NaN"),
        (torch.tensor(1.0), "holds no data"),
        ((), "empty tuple"),
        ((torch.zeros(2), torch.zeros(3)), r"\[2, 3\] rows"),
    ],
)
def test_bad_data_is_refused(x: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        log_likelihood(model, posterior(), x)


def test_bad_options_are_refused() -> None:
    with pytest.raises(OptionError, match="num_samples=0"):
        log_likelihood(model, posterior(), draws(2), num_samples=0)
    with pytest.raises(OptionError, match="max_memory=0"):
        log_likelihood(model, posterior(), draws(2), max_memory=0)


def test_a_guide_without_the_latent_is_refused() -> None:
    with pytest.raises(SiteMismatchError, match="'z'"):
        log_likelihood(model, lambda x: None, draws(2))


def test_same_seed_same_estimate_and_no_gradient() -> None:
    x, wide, guide = draws(4), Wide(), posterior(1.5)
    estimates = []
    for _ in range(2):
        torch.manual_seed(3)
        estimates.append(log_likelihood(wide, guide, x, num_samples=40, max_memory=30_000))
    assert torch.equal(estimates[0].value, estimates[1].value)
    assert not estimates[0].value.requires_grad
    assert all(parameter.grad is None for parameter in wide.parameters())
