"""The mixture beside scikit-learn's: the same likelihoods from the same starts, and as good a best.

scikit-learn adds ``reg_covar`` to every variance where ours are clipped at a floor, so it runs with
``reg_covar=0`` here: wherever the floor is not reached, both do the same exact M-step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets, mixture
from sklearn.decomposition import PCA
from torch import Tensor

from pyro_models.covariances import Covariance, Diagonal, Full, Spherical, Tied
from pyro_models.mixture import GaussianMixture

KINDS: dict[str, Callable[[], Covariance]] = {
    "full": Full,
    "tied": Tied,
    "diag": Diagonal,
    "spherical": Spherical,
}
MOST_STEPS = 300


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def _synthetic() -> np.ndarray:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(4, 3, 3))
    labels = random.integers(4, size=500)
    noise = np.einsum("nde,ne->nd", mixing[labels], random.normal(size=(500, 3)))
    return 4 * random.normal(size=(4, 3))[labels] + noise


SETS: dict[str, Any] = {
    "iris": lambda: (datasets.load_iris().data, 3),
    "wine": lambda: (datasets.load_wine().data, 3),
    "breast cancer": lambda: (_standard(datasets.load_breast_cancer().data), 2),
    "digits": lambda: (PCA(10, random_state=0).fit_transform(datasets.load_digits().data), 10),
    "synthetic": lambda: (_synthetic(), 4),
}


def theirs(x: np.ndarray, k: int, kind: str, seed: int, steps: int) -> mixture.GaussianMixture:
    made = mixture.GaussianMixture(
        k, covariance_type=kind, reg_covar=0.0, random_state=seed, tol=0.0, max_iter=steps
    )
    with pytest.warns(Warning, match="did not converge"):
        return made.fit(x)


def dense(covariances: np.ndarray, kind: str, k: int, dim: int) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(covariances))
    if kind == "tied":
        return found.expand(k, dim, dim)
    if kind == "diag":
        return torch.diag_embed(found)
    return found if kind == "full" else found[:, None, None] * torch.eye(dim).double()


def run(model: GaussianMixture, x: Tensor, steps: int) -> float:
    for _ in range(steps):
        model.maximize(x, model.posterior(x))
    return model.posterior(x).log_prob.mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_from_the_same_start_the_likelihood_is_the_same(name: str, kind: str) -> None:
    array, k = SETS[name]()
    start = theirs(array, k, kind, seed=0, steps=1)
    model = GaussianMixture(k, array.shape[1], KINDS[kind]()).double()
    model.set(
        weights=torch.from_numpy(start.weights_),
        means=torch.from_numpy(start.means_),
        covariances=dense(start.covariances_, kind, k, array.shape[1]),
    )
    assert model.num_free_parameters == start._n_parameters()
    x = torch.from_numpy(array)
    assert run(model, x, 0) == pytest.approx(start.score(array), abs=1e-6)
    start.warm_start, start.max_iter = True, 30
    with pytest.warns(Warning, match="did not converge"):
        start.fit(array)
    assert run(model, x, 30) == pytest.approx(start.score(array), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_the_best_of_ten_starts_is_as_good(name: str, kind: str) -> None:
    array, k = SETS[name]()
    x = torch.from_numpy(array)
    found = []
    for seed in range(10):
        model = GaussianMixture(k, array.shape[1], KINDS[kind]()).double()
        model.initialize(x, generator=torch.Generator().manual_seed(seed))
        found.append(run(model, x, MOST_STEPS))
    made = mixture.GaussianMixture(
        k, covariance_type=kind, n_init=10, random_state=0, tol=1e-8, max_iter=MOST_STEPS
    )
    made.fit(array)
    assert max(found) >= made.score(array) - 1e-4
