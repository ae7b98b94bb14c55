import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError, SiteMismatchError
from pyro_models.infer.predict import Posterior, Standard, reconstruct, sample, variations
from pyro_models.infer.scope import Scope

WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.2]])
NOISE = 0.7


class Linear(nn.Module):
    """z ~ N(0, I), x ~ N(W z, noise^2 I), as the house writes models."""

    def forward(self, x: Tensor | None = None, num_data: int | None = None) -> Tensor:
        batch = len(x) if x is not None else num_data or 1
        with pyro.plate("data", num_data or batch, subsample=torch.arange(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x)


def encode(x: Tensor) -> Tensor:
    return x @ WEIGHT / 3


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(encode(x), 0.5).to_event(1))


def assert_draws_of_linear(x: Tensor) -> None:
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3)
    error = (covariance.diagonal() / len(x)).sqrt()
    assert (x.mean(0).abs() < 4 * error).all()
    # Var of a sample covariance of Gaussians: (C_ii C_jj + C_ij^2) / n.
    diagonal = covariance.diagonal()
    spread = ((diagonal[:, None] * diagonal + covariance**2) / len(x)).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < 4 * spread).all()


def test_samples_have_the_model_s_distribution() -> None:
    x = sample(Linear(), 5000)
    assert x.shape == (5000, 3)
    assert_draws_of_linear(x)


def simple(x: Tensor | None = None) -> None:
    """Without num_data, and returning nothing."""
    with pyro.plate("data", 1 if x is None else len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x)


def test_samples_of_a_model_without_num_data() -> None:
    x = sample(simple, 5000)
    assert x.shape == (5000, 3)
    assert_draws_of_linear(x)


def test_samples_of_a_model_without_plate_are_independent() -> None:
    def shared(x: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = sample(shared, 4000)
    assert x.shape == (4000,)
    assert x.var().item() == pytest.approx(10.0, abs=4 * 10 * math.sqrt(2 / 4000))


def test_samples_of_a_set_of_data_keep_its_plate() -> None:
    def regression(y: Tensor | None = None) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            return pyro.sample("y", dist.Normal(slope * torch.arange(5.0), 1.0), obs=y)

    assert sample(regression, 7).shape == (7, 5)
    assert sample(regression, 7, site="slope").shape == (7,)


def test_samples_carry_no_gradient() -> None:
    class Learned(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor | None = None, num_data: int | None = None) -> Tensor:
            return self.scale * super().forward(x, num_data)

    assert not sample(Learned(), 2).requires_grad


def test_samples_of_a_program_bound_to_a_fit() -> None:
    scope = Scope()
    with scope():
        pyro.param("unused", torch.zeros(()))
    assert sample(scope.bind(Linear()), 3).shape == (3, 3)


def test_a_model_that_needs_data_cannot_be_sampled() -> None:
    with pytest.raises(OptionError, match="cannot run without \\['x'\\]"):
        sample(lambda x: None, 3)
    with pytest.raises(OptionError, match="n is 0"):
        sample(Linear(), 0)
    with pytest.raises(SiteMismatchError, match="'y'"):
        sample(Linear(), 3, site="y")


def test_reconstruction_decodes_the_posterior_mean() -> None:
    x = torch.randn(4, 3)
    torch.testing.assert_close(reconstruct(Linear(), guide, x), encode(x) @ WEIGHT.T)


def test_reconstruction_follows_latents_that_depend_on_others() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(2 * b, 1.0), obs=x)

    def chain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0))
            pyro.sample("b", dist.Normal(3 * a, 1.0))

    x = torch.randn(5)
    torch.testing.assert_close(reconstruct(model, chain, x), 6 * x)


def test_reconstruction_with_an_autoguide() -> None:
    x = torch.randn(4, 3)
    with pyro.get_param_store().scope():
        auto = AutoNormal(simple, init_scale=0.5)
        auto(x)
        expected = auto.median(x)["z"] @ WEIGHT.T
        torch.testing.assert_close(reconstruct(simple, auto, x), expected)


def discrete_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 0.0, 1.0])[k], 0.1), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        logits = -((x[:, None] - torch.tensor([-1.0, 0.0, 1.0])) ** 2)
        pyro.sample("k", dist.Categorical(logits=logits))


def test_discrete_latents_are_put_at_the_mode() -> None:
    x = torch.tensor([-0.9, 0.2, 1.5])
    torch.testing.assert_close(
        reconstruct(discrete_model, discrete_guide, x), torch.tensor([-1.0, 0.0, 1.0])
    )
    drawn = variations(discrete_model, discrete_guide, x, spread=1.0, n=200)
    assert set(drawn.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_a_latent_without_mean_is_drawn() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Cauchy(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def cauchy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Cauchy(x, 1e-3))

    x = torch.zeros(3)
    made = reconstruct(model, cauchy, x)
    assert made.isfinite().all()
    assert (made != 0).any()


def test_a_likelihood_without_mean_gives_its_mode() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = torch.stack([z, -z], -1)
            pyro.sample("x", dist.Categorical(logits=logits), obs=x)

    def sign(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.0 - 2.0 * x, 1.0))

    x = torch.tensor([0, 1, 1])
    assert torch.equal(reconstruct(model, sign, x), x)


def test_variations_spread_as_the_posterior_does() -> None:
    x = torch.randn(3, 3)
    mean = encode(x) @ WEIGHT.T
    made = variations(Linear(), guide, x, spread=2.0, n=4000)
    assert made.shape == (4000, 3, 3)
    covariance = (2.0 * 0.5) ** 2 * WEIGHT @ WEIGHT.T
    error = (covariance.diagonal() / 4000).sqrt()
    assert ((made.mean(0) - mean).abs() < 4.5 * error).all()
    assert (made.var(0) / covariance.diagonal() - 1).abs().max() < 4.5 * math.sqrt(2 / 4000)


def test_standard_variations_ignore_the_posterior_s_width() -> None:
    x = torch.randn(1, 3)
    made = variations(Linear(), guide, x, spread=2.0, n=4000, perturbation=Standard())
    variance = 4.0 * (WEIGHT**2).sum(1)
    assert (made.var(0)[0] / variance - 1).abs().max() < 4.5 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("perturbation", [Posterior(), Standard()])
def test_no_spread_is_a_reconstruction(perturbation: Posterior | Standard) -> None:
    x = torch.randn(2, 3)
    made = variations(Linear(), guide, x, spread=0.0, n=3, perturbation=perturbation)
    torch.testing.assert_close(made, reconstruct(Linear(), guide, x).expand(3, 2, 3))


def positive_pair() -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def gamma(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(2.0 + x, 2.0))

    return model, gamma


@pytest.mark.parametrize("perturbation", [Posterior(), Standard()])
def test_variations_stay_in_the_support(perturbation: Posterior | Standard) -> None:
    model, gamma = positive_pair()
    made = variations(
        model, gamma, torch.tensor([0.0, 3.0]), spread=5.0, n=100, perturbation=perturbation
    )
    assert (made > 0).all()
    assert made.std(0).min() > 0


def test_variations_with_an_autoguide() -> None:
    x = torch.randn(2, 3)
    with pyro.get_param_store().scope():
        auto = AutoNormal(simple, init_scale=0.5)
        made = variations(simple, auto, x, spread=1.0, n=2000)
    variance = 0.25 * (WEIGHT**2).sum(1)
    assert (made.var(0) / variance - 1).abs().max() < 4.5 * math.sqrt(2 / 2000)


def test_the_observed_site_may_have_another_name() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def two(y: Tensor) -> None:
        model(y)
        with pyro.plate("more", len(y)):
            pyro.sample("v", dist.Normal(5.0, 1.0), obs=y)

    def half(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))

    y = torch.randn(3)
    torch.testing.assert_close(reconstruct(model, half, y), y / 2)
    torch.testing.assert_close(reconstruct(two, half, y, site="v"), torch.full((3,), 5.0))
    with pytest.raises(SiteMismatchError, match="'v', 'y'"):
        reconstruct(two, half, y)


def test_bad_options_and_data_are_refused() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(OptionError, match="n is 0"):
        variations(Linear(), guide, x, spread=1.0, n=0)
    for spread in (-1.0, math.nan, math.inf):
        with pytest.raises(OptionError, match="spread is"):
            variations(Linear(), guide, x, spread=spread, n=1)
    with pytest.raises(DataError, match="holds no data"):
        reconstruct(Linear(), guide, torch.zeros(0, 3))
