"""Cluster probabilities: exact where they are known, within standard errors where drawn."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from guides import Responsibilities
from pyro_models import pairs
from pyro_models.clustering import assign, cluster_means
from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.mixture import GaussianMixture
from tests.clustered_cases import K, by_quadrature_of_shares, small_gmvae, small_vade
from tests.unchecked import unchecked

MAKE: dict[str, Any] = {"gmvae": small_gmvae, "vade": small_vade}


@pytest.mark.parametrize("name", MAKE)
def test_it_is_the_expected_posterior_of_the_component(name: str) -> None:
    model, guide, x = MAKE[name]()
    pyro.set_rng_seed(0)
    runs = torch.stack([assign(model, guide, x, num_samples=20) for _ in range(30)])
    error = runs.std(0) / len(runs) ** 0.5
    wanted = by_quadrature_of_shares(model, guide, x)
    assert ((runs.mean(0) - wanted).abs() < 4 * error).all()
    assert torch.allclose(runs.sum(-1), torch.ones((), dtype=torch.float64))


def test_a_mixture_is_exact() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0]])
    model = GaussianMixture(2, 1)
    model.set(means=torch.tensor([[0.0], [2.0]]))
    found = assign(model, Responsibilities(model), x, num_samples=1)
    assert torch.allclose(found, model.posterior(x).responsibilities, rtol=1e-5)


def test_the_bayesian_mixtures_have_clusters_too() -> None:
    pyro.set_rng_seed(1)
    x = torch.cat([torch.randn(20, 2) - 6, torch.randn(20, 2) + 6])
    for name, options in (
        ("bayesian_gaussian_mixture", {"num_components": 2}),
        ("dirichlet_process_mixture", {"truncation": 4}),
    ):
        pair = pairs.build(name, x, **options)
        found = assign(pair.model, pair.guide, x, num_samples=20)
        assert found.shape == (40, pairs_components(options))
        assert torch.allclose(found.sum(1), torch.ones(40), atol=1e-5)


def pairs_components(options: dict[str, int]) -> int:
    return next(iter(options.values()))


def mixture(x: Tensor) -> None:
    """A code that the guide draws, and a component that it leaves to the model."""
    weights, means = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-1.0, 0.0, 2.0])
    with pyro.plate("data", len(x), dim=-1):
        component = pyro.sample("component", dist.Categorical(weights))
        z = pyro.sample("z", dist.Normal(means[component], 1.0))
        with pyro.plate("columns", x.shape[-1], dim=-2):
            pyro.sample("x", dist.Normal(z + component, 1.0), obs=x.T)


def codes(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x.mean(-1)))


def test_what_the_guide_leaves_open_follows_by_bayes_rule() -> None:
    x = torch.randn(4, 2)
    z, means = x.mean(-1), torch.tensor([-1.0, 0.0, 2.0])
    joint = torch.stack(
        [
            share
            * dist.Normal(means[k], 1.0).log_prob(z).exp()
            * dist.Normal(z[:, None] + k, 1.0).log_prob(x).sum(-1).exp()
            for k, share in enumerate((0.2, 0.3, 0.5))
        ],
        dim=-1,
    )
    found = assign(mixture, codes, x, num_samples=2)
    assert torch.allclose(found, joint / joint.sum(-1, keepdim=True), rtol=1e-4)


def two(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Categorical(torch.ones(2)))
        pyro.sample("b", dist.Categorical(torch.ones(3)))


def test_one_of_several_is_named() -> None:
    x = torch.zeros(4, 1)
    assert assign(two, two, x, site="b").shape == (4, 3)
    with pytest.raises(SiteMismatchError, match=r"\['a', 'b'\].*site="):
        assign(two, two, x)
    with pytest.raises(SiteMismatchError, match="'c' is no categorical latent"):
        assign(two, two, x, site="c")
    with pytest.raises(SiteMismatchError, match=r"leaves the model \['a', 'b'\]"):
        assign(two, lambda x: None, x)


def test_a_pair_without_clusters_is_refused() -> None:
    pair = pairs.vae(3)
    with pytest.raises(SiteMismatchError, match="give a pair with clusters"):
        assign(pair.model, pair.guide, torch.zeros(2, 3))
    with pytest.raises(OptionError, match="num_samples=0"):
        assign(pair.model, pair.guide, torch.zeros(2, 3), num_samples=0)


def test_the_means_of_clusters_are_those_of_their_codes() -> None:
    model, _, _ = small_vade()
    model.set(scales=torch.full((K, 1), 2e-4).double())  # next to no spread
    found = cluster_means(model, 6)
    wanted = model.decode(model.means).mean.detach()
    assert found.shape == (K, 6, 2)
    assert torch.allclose(found, wanted[:, None].expand_as(found), atol=1e-2)
    other: Any = pairs.vae(3).model
    with unchecked(), pytest.raises(OptionError, match="no code_prior"):
        cluster_means(other, 2)
