"""Stick-breaking in log space against the plain product in float64."""

import pytest
import torch
from torch import Tensor

from pyro_models.distributions.kumaraswamy import Kumaraswamy, Logs
from pyro_models.distributions.stick_breaking import (
    log_abs_det,
    log_weights_of_sticks,
    logs_of,
    sticks_of_log_weights,
)

types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def product(v: Tensor) -> Tensor:
    """The definition, a piece at a time."""
    left = torch.ones_like(v[..., 0])
    pieces = []
    for fraction in v.unbind(-1):
        pieces.append(left * fraction)
        left = left * (1 - fraction)
    return torch.stack([*pieces, left], -1)


@types
def test_pieces_are_the_product(dtype: torch.dtype) -> None:
    v = torch.rand(5, 3, 7, dtype=torch.float64)
    weights = log_weights_of_sticks(logs_of(v.to(dtype))).exp()
    assert weights.shape == (5, 3, 8)
    assert torch.allclose(weights.double(), product(v), rtol=20 * torch.finfo(dtype).eps)


@types
@pytest.mark.parametrize("b", [0.01, 1.0, 50.0, 1000.0])
def test_a_thousand_pieces_sum_to_one(dtype: torch.dtype, b: float) -> None:
    q = Kumaraswamy(torch.ones(1000, dtype=dtype), torch.full((1000,), b, dtype=dtype))
    log_weights = log_weights_of_sticks(q.rsample_logs(torch.Size((20,))))
    assert log_weights.shape == (20, 1001)
    # Each logarithm is a sum, whose rounding grows like the size of what matters of it.
    assert (log_weights.logsumexp(-1).abs() < 50 * torch.finfo(dtype).eps).all()


@types
def test_the_inverse_gives_the_fractions_back(dtype: torch.dtype) -> None:
    q = Kumaraswamy(torch.tensor(0.3, dtype=dtype), torch.tensor(0.3, dtype=dtype))
    sticks = q.expand(torch.Size((50, 6))).rsample_logs()
    back = sticks_of_log_weights(log_weights_of_sticks(sticks))
    tolerance = 1e3 * torch.finfo(dtype).eps
    assert torch.allclose(back.log_v, sticks.log_v, rtol=tolerance, atol=tolerance)
    assert torch.allclose(back.log1m_v, sticks.log1m_v, rtol=tolerance, atol=tolerance)


def test_the_inverse_does_not_mind_a_common_factor() -> None:
    log_weights = torch.randn(4, 5)
    one, two = sticks_of_log_weights(log_weights), sticks_of_log_weights(log_weights + 3)
    assert torch.allclose(one.log_v, two.log_v, atol=1e-5)
    assert torch.allclose(log_weights_of_sticks(one), log_weights.log_softmax(-1), atol=1e-5)


def test_the_determinant_is_that_of_the_jacobian() -> None:
    v = torch.rand(6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: log_weights_of_sticks(logs_of(v)).exp()[:-1], v
    )
    assert isinstance(jacobian, Tensor)
    assert torch.allclose(log_abs_det(logs_of(v)), jacobian.slogdet().logabsdet)


def test_a_stick_that_takes_all_leaves_finite_logarithms() -> None:
    # What is left after 1 - exp(-200) is exp(-200), and it is divided in halves.
    sticks = Logs(torch.tensor([0.0, -0.6931472]), torch.tensor([-200.0, -0.6931472]))
    log_weights = log_weights_of_sticks(sticks)
    assert torch.allclose(log_weights, torch.tensor([0.0, -200.6931, -200.6931]))
    back = sticks_of_log_weights(log_weights)
    assert torch.allclose(back.log1m_v, sticks.log1m_v)


def test_one_stick_and_no_batch_do() -> None:
    assert torch.allclose(
        log_weights_of_sticks(logs_of(torch.tensor([0.3]))).exp(), torch.tensor([0.3, 0.7])
    )
    assert log_abs_det(logs_of(torch.tensor([0.3]))) == 0


def test_gradients_are_finite_at_both_ends() -> None:
    c = torch.full((30,), 0.01, requires_grad=True)
    log_weights = log_weights_of_sticks(Kumaraswamy(c, c).rsample_logs(torch.Size((100,))))
    (gradient,) = torch.autograd.grad(log_weights.clamp_min(-1e6).sum(), c)
    assert gradient.isfinite().all()
