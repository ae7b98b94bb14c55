"""The start of clusters by k-means in latent space."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_models import pairs
from pyro_models.errors import DataError, NonFiniteError, OptionError
from pyro_models.pairs import LatentStart, latent_start, start_clusters

SHORT = LatentStart(epochs=30, batch_size=30, learning_rate=1e-2)
K, NUM_DATA = 3, 90
each = pytest.mark.parametrize("name", ["gmvae", "vade"])


def data() -> tuple[Tensor, Tensor]:
    """Three clusters that nobody could miss."""
    labels = torch.arange(NUM_DATA) % K
    centers = 4 * torch.eye(6)[:K]
    return centers[labels] + 0.1 * torch.randn(NUM_DATA, 6), labels


def make(name: str, x: Tensor, **options: Any) -> pairs.Pair:
    return pairs.build(name, x, latent_dim=2, num_components=K, hidden=(8,), **options)


def codes(pair: pairs.Pair, x: Tensor) -> Any:
    guide: Any = pair.guide
    return guide.posterior(x)["z"]


@each
def test_the_clusters_are_found_and_the_components_lie_on_them(name: str) -> None:
    x, labels = data()
    pair = make(name, x)
    found = start_clusters(pair, x, SHORT, progress=False, seed=1)
    assert len({tuple(pair_) for pair_ in zip(found.tolist(), labels.tolist(), strict=True)}) == K
    q = codes(pair, x)
    model: Any = pair.model
    parameters: Any = (
        model.component_parameters(torch.zeros(2))
        if name == "gmvae"
        else (model.means, model.scales)
    )
    for k in range(K):
        mine = found == k
        spread = (q.mean[mine].var(0, correction=0) + q.variance[mine].mean(0)).sqrt()
        # At w = 0, beta gives its biases, for its activation is odd.
        assert torch.allclose(parameters[0][k], q.mean[mine].mean(0), atol=1e-4)
        assert torch.allclose(parameters[1][k], spread, atol=1e-3)
    assert torch.allclose(model.weights, torch.full((K,), 1 / K))


@each
def test_the_same_seed_gives_the_same_start(name: str) -> None:
    x, _ = data()
    first = make(name, x)
    second = copy.deepcopy(first)
    for pair in (first, second):
        start_clusters(pair, x, LatentStart(epochs=2), progress=False, seed=5)
    for ours, theirs in (
        (first.model, second.model),
        (first.guide, second.guide),
    ):
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_what_cannot_start_is_refused() -> None:
    x, _ = data()
    pair = make("vade", x)
    with pytest.raises(DataError, match="2 data for 3 clusters"):
        start_clusters(pair, x[:2], SHORT, progress=False)
    with pytest.raises(DataError, match="1 different codes for 3 clusters"):
        latent_start._k_means(torch.zeros(9, 2), K, 1, 0)
    with pytest.raises(OptionError, match="no clusters to start"):
        start_clusters(pairs.vae(6), x, SHORT, progress=False)
    with pytest.raises(OptionError, match="restarts=0"):
        LatentStart(restarts=0)
    bad = torch.full((9, 2), torch.nan)
    with pytest.raises(NonFiniteError, match="9 posterior means"):
        latent_start._k_means(bad, K, 1, 0)
