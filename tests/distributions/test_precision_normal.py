"""The normal with a factor of its precision against torch's own, SciPy and its draws."""

from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_models.distributions.precision_normal import PrecisionNormal


def factor(*shape: int, dim: int) -> Tensor:
    below = torch.randn(*shape, dim, dim, dtype=torch.float64).tril(-1)
    return below + torch.diag_embed(torch.rand(*shape, dim, dtype=torch.float64) + 0.5)


def pair(loc: Tensor, w: Tensor) -> tuple[PrecisionNormal, MultivariateNormal]:
    return PrecisionNormal(loc, w), MultivariateNormal(loc, precision_matrix=w.mT @ w)


# Batch shapes of loc, factor and value, as they come up: one for all, enumerated, sampled, tied.
SHAPES: list[tuple[Any, Any, Any]] = [
    ((), (), ()),
    ((), (), (7,)),
    ((4, 1), (4, 1), (7,)),
    ((4, 1, 1), (4, 1, 1), (3, 7)),
    ((7,), (7,), (7,)),
    ((3, 7), (3, 7), (7,)),
    ((4, 1), (), (7,)),
    ((4,), (4,), (4,)),
    ((4,), (1,), (4,)),
    ((), (4,), ()),
    ((), (1,), ()),
]


@pytest.mark.parametrize("dim", [1, 3, 6])
@pytest.mark.parametrize("shapes", SHAPES)
def test_densities_are_those_of_the_normal(dim: int, shapes: Any) -> None:
    loc = torch.randn(*shapes[0], dim, dtype=torch.float64)
    value = torch.randn(*shapes[2], dim, dtype=torch.float64)
    ours, torchs = pair(loc, factor(*shapes[1], dim=dim))
    assert ours.batch_shape == torchs.batch_shape
    torch.testing.assert_close(ours.log_prob(value), torchs.log_prob(value))


@pytest.mark.parametrize("dim", [2, 6])
def test_expanded_it_is_the_same(dim: int) -> None:
    p = PrecisionNormal(torch.randn(4, 1, dim).double(), factor(4, 1, dim=dim))
    more = p.expand([5, 4, 7])
    assert more.batch_shape == (5, 4, 7)
    assert more.factor.shape == (4, 1, dim, dim)
    value = torch.randn(7, dim, dtype=torch.float64)
    torch.testing.assert_close(more.log_prob(value), p.log_prob(value).expand(5, 4, 7))
    assert more.sample((2,)).shape == (2, 5, 4, 7, dim)
    assert more.covariance_matrix.shape == (5, 4, 7, dim, dim)


def test_moments_and_entropy() -> None:
    ours, torchs = pair(torch.randn(3, 4).double(), factor(3, dim=4))
    for name in ("mean", "mode", "variance", "covariance_matrix", "precision_matrix", "scale_tril"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name))
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    assert PrecisionNormal(torch.zeros(5, 4), torch.eye(4)).entropy().shape == (5,)


def test_scipy_agrees() -> None:
    ours, torchs = pair(torch.randn(4).double(), factor(dim=4))
    value = torch.randn(6, 4, dtype=torch.float64)
    other = multivariate_normal(torchs.mean.numpy(), torchs.covariance_matrix.numpy())
    torch.testing.assert_close(ours.log_prob(value), torch.from_numpy(other.logpdf(value.numpy())))


def test_draws_have_its_moments() -> None:
    p = PrecisionNormal(torch.tensor([1.0, -2.0, 0.5]).double(), factor(dim=3))
    x = p.sample((40_000,))
    covariance, diagonal = p.covariance_matrix, p.variance
    assert ((x.mean(0) - p.mean).abs() < 4 * (diagonal / len(x)).sqrt()).all()
    error = ((diagonal.outer(diagonal) + covariance.square()) / len(x)).sqrt()
    assert ((x.T.cov() - covariance).abs() < 4 * error).all()


def test_gradients_flow_through_draws_and_densities() -> None:
    loc = torch.randn(3, dtype=torch.float64, requires_grad=True)
    w = factor(dim=3).requires_grad_()
    value = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m, f: PrecisionNormal(m, f.tril(), validate_args=False).log_prob(value),
        (loc, w),
    )
    PrecisionNormal(loc, w).rsample((5,)).sum().backward()
    assert loc.grad is not None
    assert w.grad is not None


def test_what_is_no_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="factor"):
        PrecisionNormal(torch.zeros(2), torch.ones(2, 2))
