"""Covariances: densities against torch's, M-steps against their definition and against search."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_models.covariance_parameters import Covariances, differences
from pyro_models.covariance_triangular import whitener
from pyro_models.covariances import Covariance, Diagonal, Full, Spherical, Tied
from pyro_models.errors import OptionError
from tests.unchecked import unchecked

KINDS = (Full, Tied, Diagonal, Spherical)
every = pytest.mark.parametrize("kind", KINDS)
K, D = 3, 4


def matrices(kind: type[Covariance], dim: int = D) -> Tensor:
    """Some of the form that the option allows."""
    root = torch.randn(K, dim, dim, dtype=torch.float64)
    free = root @ root.mT + 0.1 * torch.eye(dim)
    if kind is Tied:
        return free[:1].expand(K, -1, -1)
    if kind is Diagonal:
        return torch.diag_embed(free.diagonal(dim1=-2, dim2=-1))
    if kind is Spherical:
        return free[:, :1, :1] * torch.eye(dim, dtype=torch.float64)
    return free


def block(kind: type[Covariance], dtype: torch.dtype = torch.float64) -> Covariances:
    made = kind().make(K, D).to(dtype)
    made.set(matrices(kind))
    return made


@every
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_what_is_set_is_had(kind: Any, dtype: torch.dtype, rtol: float) -> None:
    made, wanted = kind().make(K, D).to(dtype), matrices(kind)
    torch.testing.assert_close(made.dense()[0], torch.eye(D, dtype=dtype))
    made.set(wanted)
    torch.testing.assert_close(made.dense(), wanted.to(dtype), rtol=rtol, atol=rtol)


@every
def test_densities_by_both_routes_are_those_of_the_normal(kind: Any) -> None:
    made, means = block(kind), torch.randn(K, D, dtype=torch.float64)
    x = torch.randn(20, D, dtype=torch.float64)
    wanted = MultivariateNormal(means[:, None], made.dense()[:, None]).log_prob(x)
    passes = list(made.log_density(x, means))
    torch.testing.assert_close(torch.cat([log for _, log in passes], 1), wanted)
    index = torch.arange(K).unsqueeze(-1)
    torch.testing.assert_close(made.normal(means[:, None], index).log_prob(x), wanted)
    some = torch.tensor([2, 0, 2, 1])
    found = made.normal(means[some], some).log_prob(x[:4])
    torch.testing.assert_close(found, wanted[some, torch.arange(4)])


@every
def test_moments_are_weighted_sums(kind: Any) -> None:
    x = torch.randn(50, D, dtype=torch.float64)
    weights, centers = torch.rand(50, K).double(), torch.randn(K, D).double()
    counts, first, second = block(kind).moments(x, weights.log(), centers)
    away = x[:, None] - centers
    torch.testing.assert_close(counts, weights.sum(0))
    torch.testing.assert_close(first, torch.einsum("nk,nkd->kd", weights, away))
    products = torch.einsum("nk,nkd,nke->kde", weights, away, away)
    if second.ndim == 2:
        products = products.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(second, products)


@pytest.mark.parametrize("many", [1, 100, 3001])
def test_passes_see_every_datum_once(many: int) -> None:
    x, centers = torch.randn(many, 9), torch.randn(20, 9)
    found = torch.zeros(20, 9, many)
    parts = 0
    for part, away in differences(x, centers):
        found[..., part] = away
        parts += 1
    torch.testing.assert_close(found, x.T - centers.unsqueeze(-1))
    assert (parts > 1) == (many > 1000)


def expected(sigma: Tensor, second: Tensor) -> Tensor:
    """Twice the mean log-density, without constants, of data with these second moments."""
    return -torch.logdet(sigma) - torch.linalg.solve(sigma, second).diagonal(0, -2, -1).sum(-1)


@every
@pytest.mark.parametrize("floor", [1e-6, 0.5])
def test_what_is_written_is_the_best_above_the_floor(kind: Any, floor: float) -> None:
    # Against many others that obey the same constraint, near and far.
    central, counts = matrices(Full), torch.tensor([3.0, 1.0, 2.0]).double()
    made = kind(floor=floor).make(K, D).double()
    dense_kind = kind in (Full, Tied)
    used = central if dense_kind else central.diagonal(dim1=-2, dim2=-1)
    made.write(made.pool(used, counts), torch.ones(K, dtype=torch.bool))
    best = made.dense()
    assert torch.linalg.eigvalsh(best).min() > floor * (1 - 1e-6)
    value = (counts * expected(best, central)).sum()
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            move = torch.randn(D, D, dtype=torch.float64) * size
            mixing = torch.linalg.matrix_exp(move if kind is Tied else move.expand(K, D, D))
            if not dense_kind:
                scales = (size * torch.randn(K, 1 if kind is Spherical else D)).double().exp()
                mixing = torch.diag_embed(scales.expand(K, D))
            values, vectors = torch.linalg.eigh(mixing @ best @ mixing.mT)
            other = vectors * values.clamp_min(floor).unsqueeze(-2) @ vectors.mT
            assert (counts * expected(other, central)).sum() <= value + 1e-9


@pytest.mark.parametrize(
    "values", [(4.0, 1.0, 1e-3), (4.0, 1.0, 0.0), (4.0, 0.0, -1e-9), (0.0, 0.0, 0.0), (1e16, 1, 0)]
)
def test_whitening_cannot_fail(values: tuple[float, ...]) -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    sigma = rotation * torch.tensor(values, dtype=torch.float64) @ rotation.T
    w = whitener(((sigma + sigma.T) / 2).unsqueeze(0), 1e-6)[0]
    assert w.isfinite().all()
    assert torch.equal(w, w.tril())
    assert (w.diagonal() > 0).all()
    if max(values) < 1e9:  # beyond, rounding of what is given is above the floor
        floored = torch.tensor(values, dtype=torch.float64).clamp_min(1e-6)
        torch.testing.assert_close(
            w.T @ w, rotation / floored @ rotation.T, rtol=1e-6, atol=1e-6 / floored.min().item()
        )


@every
def test_gradient_descent_stays_near_the_floor(kind: Any) -> None:
    made = kind(floor=0.01).make(1, D)
    with torch.no_grad():
        made.raw_diagonal.fill_(1e6)
    variances = torch.linalg.eigvalsh(made.dense())
    torch.testing.assert_close(variances, torch.full((1, D), 0.01 / 4))
    # And its gradient does not vanish at what the M-step puts there.
    made.set(0.01 * torch.eye(D).unsqueeze(0))
    torch.testing.assert_close(made.dense()[0], 0.01 * torch.eye(D))
    made.dense().sum().backward()
    assert (made.raw_diagonal.grad.abs() > 1e-3).all()


@every
def test_reordered_they_are_the_same(kind: Any) -> None:
    made = block(kind)
    before = made.dense()
    made.reorder(torch.tensor([2, 0, 1]))
    torch.testing.assert_close(made.dense(), before[[2, 0, 1]])


@every
def test_some_can_be_written_alone(kind: Any) -> None:
    made, other = block(kind), matrices(kind)
    before = made.dense().clone()
    made.write(made.compact(other), torch.tensor([False, True, False]))
    after = made.dense()
    torch.testing.assert_close(after[1], other[1])
    torch.testing.assert_close(after[0], other[0] if kind is Tied else before[0])


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_floor_that_is_none_is_refused(floor: float) -> None:
    with pytest.raises(OptionError, match="floor"):
        Full(floor=floor)


@pytest.mark.parametrize(
    ("kind", "covariances", "words"),
    [
        (Full, torch.eye(D).expand(2, D, D), r"\(3, 4, 4\)"),
        (Full, -torch.eye(D).expand(K, D, D), "positive definite"),
        (Full, (torch.eye(D) + torch.ones(D, D).triu(1) / 9).expand(K, D, D), "symmetric"),
        (Tied, torch.eye(D) * torch.arange(1, 4)[:, None, None], "Tied: all equal"),
        (Diagonal, (torch.eye(D) + 0.1).expand(K, D, D), "Diagonal: zeros"),
        (Spherical, torch.diag(torch.arange(1.0, 5.0)).expand(K, D, D), "Spherical"),
    ],
)
def test_matrices_of_another_form_are_refused(kind: Any, covariances: Tensor, words: str) -> None:
    made = kind().make(K, D)
    before = made.dense()
    with pytest.raises(OptionError, match=words), unchecked():
        made.set(covariances)
    assert torch.equal(made.dense(), before)
