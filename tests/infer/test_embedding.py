import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError, SiteMismatchError
from pyro_models.infer.embedding import embed


def test_moments_of_a_normal_are_exact() -> None:
    factor = torch.tensor([[1.0, 0.0], [0.5, 2.0]])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x, scale_tril=factor))

    x = torch.randn(5, 2)
    embedding = embed(guide, x)
    assert embedding["z"].exact
    torch.testing.assert_close(embedding.mean, x)
    expected = (factor @ factor.T).diagonal().sqrt().expand(5, 2)
    torch.testing.assert_close(embedding.scale, expected)


def chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x, 2.0))
        pyro.sample("b", dist.Normal(3 * a, 1.0))


def test_moments_of_a_latent_that_depends_on_another_are_estimated() -> None:
    x = torch.randn(2000)
    embedding = embed(chain, x, num_samples=50)
    assert embedding["a"].exact
    assert not embedding["b"].exact
    error = embedding["b"].monte_carlo_error
    z = (embedding["b"].mean - 3 * x) / error
    # A t statistic of 49 degrees of freedom has variance 49 / 47.
    assert z.square().mean().item() == pytest.approx(49 / 47, abs=0.2)
    # E Var + Var E = 1 + 9 * 4.
    assert embedding["b"].scale.square().mean().item() == pytest.approx(37.0, rel=0.03)
    assert error.square().mean().item() == pytest.approx(36.0 / 50, rel=0.03)


def test_several_latents_must_be_named() -> None:
    embedding = embed(chain, torch.randn(3))
    with pytest.raises(SiteMismatchError, match="'a', 'b'"):
        _ = embedding.mean
    with pytest.raises(SiteMismatchError, match="no latent 'c'"):
        embedding["c"]


def test_discrete_latents_give_probabilities() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(probs=x))
            pyro.sample("b", dist.Bernoulli(probs=x).to_event(1))
            pyro.sample("h", dist.OneHotCategorical(probs=x))

    x = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    embedding = embed(guide, x)
    for name in ("k", "b", "h"):
        assert embedding[name].exact
        torch.testing.assert_close(embedding[name].mean, x)
        torch.testing.assert_close(embedding[name].scale, (x * (1 - x)).sqrt())


def test_a_distribution_without_moments_is_estimated() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            normal = dist.Normal(x, 0.5)
            squared = dist.TransformedDistribution(
                normal, [dist.transforms.AffineTransform(0.0, 2.0)]
            )
            pyro.sample("z", squared)

    x = torch.randn(1000)
    embedding = embed(guide, x, num_samples=40)
    assert not embedding["z"].exact
    z = (embedding.mean - 2 * x) / embedding["z"].monte_carlo_error
    assert z.square().mean().item() == pytest.approx(39 / 37, abs=0.25)
    assert embedding.scale.square().mean().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_report_the_model_s_latents(family: type) -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.randn(4)
    with pyro.get_param_store().scope():
        guide = family(model, init_scale=0.1)
        embedding = embed(guide, x, num_samples=400, batch_size=2)
        median = guide.median(x)
    assert sorted(embedding.sites) == ["scale", "z"]
    assert (embedding["z"].local, embedding["scale"].local) == (True, False)
    assert embedding["z"].mean.shape == (4,)
    # The mean of a log-normal is its median times exp(variance / 2).
    log_scale = 0.1
    expected = median["scale"] * math.exp(log_scale**2 / 2)
    error = embedding["scale"].monte_carlo_error
    assert abs(embedding["scale"].mean - expected) < 4 * error
    assert ((embedding["z"].mean - median["z"]).abs() < 4.5 * 0.1 / 20).all()


class Encoder(nn.Module):
    """Records the lengths it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.lengths: list[int] = []

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        self.lengths.append(len(x))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.net(x), 0.5).to_event(1))


def test_large_sets_are_embedded_in_batches() -> None:
    guide, x = Encoder(), torch.randn(25, 3)
    whole = embed(guide, x, batch_size=25)
    assert set(guide.lengths) == {25}
    guide.lengths.clear()
    parts = embed(guide, x, batch_size=10)
    assert max(guide.lengths) == 10
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.scale, whole.scale)
    assert not parts.mean.requires_grad


def test_bad_options_and_data_are_refused() -> None:
    with pytest.raises(OptionError, match="num_samples=0"):
        embed(chain, torch.randn(3), num_samples=0)
    with pytest.raises(OptionError, match="batch_size=0"):
        embed(chain, torch.randn(3), batch_size=0)
    with pytest.raises(DataError, match="holds no data"):
        embed(chain, torch.zeros(0))
