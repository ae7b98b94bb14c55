"""GEM against the Beta's product, its Jacobian, its integral and its moments."""

from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, TransformedDistribution

from pyro_models.distributions.gem import GEM
from pyro_models.distributions.stick_breaking import StickBreaking, log_weights_of_sticks, logs_of
from pyro_models.errors import OptionError

types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 7.0])
def test_the_density_is_the_betas_over_the_jacobian(alpha: float) -> None:
    concentration = torch.tensor(alpha, dtype=torch.float64)
    v = torch.rand(5, dtype=torch.float64) * 0.9 + 0.05

    def pieces(v: Tensor) -> Tensor:
        return log_weights_of_sticks(logs_of(v)).exp()

    jacobian = torch.autograd.functional.jacobian(lambda v: pieces(v)[:-1], v)
    assert isinstance(jacobian, Tensor)
    one = torch.ones_like(concentration)
    wanted = Beta(one, concentration).log_prob(v).sum() - jacobian.slogdet().logabsdet
    assert torch.allclose(GEM(concentration, 6).log_prob(pieces(v)), wanted)


def test_the_density_of_three_pieces_integrates_to_one() -> None:
    # Over the triangle of (pi_1, pi_2), whose edges are mapped far from the nodes.
    y = torch.linspace(-30, 30, 601, dtype=torch.float64)
    first, share = y.sigmoid().unsqueeze(-1), y.sigmoid()
    pieces = torch.stack(
        torch.broadcast_tensors(first, (1 - first) * share, (1 - first) * (1 - share)), -1
    )
    p = GEM(torch.tensor(2.5).double(), 3)
    slope = first * (1 - first) * (1 - first) * share * (1 - share)
    total = (p.log_prob(pieces.clamp_min(1e-300)).exp() * slope).sum() * 0.1**2
    assert total.item() == pytest.approx(1, abs=1e-9)


@types
@pytest.mark.parametrize("alpha", [0.3, 5.0])
def test_moments_are_those_of_the_draws(dtype: torch.dtype, alpha: float) -> None:
    p = GEM(torch.tensor([alpha, 1.0], dtype=dtype), 5)
    draws = p.sample(torch.Size((40_000,)))
    assert draws.shape == (40_000, 2, 5)
    assert p.mean.dtype == dtype
    assert torch.allclose(p.mean.sum(-1), torch.ones(2, dtype=dtype))
    assert ((draws.mean(0) - p.mean).abs() < 4.5 * draws.std(0) / 200).all()
    squares = (draws - p.mean).square()
    assert ((squares.mean(0) - p.variance).abs() < 4.5 * squares.std(0) / 200).all()


@types
@pytest.mark.parametrize("alpha", [0.01, 1.0, 1000.0])
def test_a_thousand_sticks_are_exact_in_log_space(dtype: torch.dtype, alpha: float) -> None:
    concentration = torch.tensor(alpha, dtype=dtype, requires_grad=True)
    p = GEM(concentration, 1001)
    log_weights = p.rsample_log_weights(torch.Size((20,)))
    assert (log_weights.logsumexp(-1).abs() < 50 * torch.finfo(dtype).eps).all()
    density = p.log_prob_of_log_weights(log_weights)
    (gradient,) = torch.autograd.grad(density.sum() + log_weights.sum(), concentration)
    for tensor in (log_weights, density, gradient, p.log_prob(p.sample())):
        assert tensor.isfinite().all()


def test_paths_have_the_gradient_of_the_mean() -> None:
    alpha = torch.full((20_000,), 1.7, dtype=torch.float64, requires_grad=True)
    (each,) = torch.autograd.grad(GEM(alpha, 3).rsample()[:, 1].sum(), alpha)
    one = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(GEM(one, 3).mean[1], one)
    assert (each.mean() - wanted).abs() < 4 * each.std() / len(each) ** 0.5


def test_shapes_and_what_is_refused() -> None:
    p = GEM(2.0, 4).expand(torch.Size((3, 2)))
    assert (p.batch_shape, p.event_shape) == ((3, 2), (4,))
    assert p.rsample(torch.Size((5,))).shape == (5, 3, 2, 4)
    assert p.log_prob(p.sample(torch.Size((5,)))).shape == (5, 3, 2)
    with pytest.raises(OptionError, match="truncation=1"):
        GEM(2.0, 1)
    with pytest.raises(ValueError, match="concentration"):
        GEM(-1.0, 4, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        GEM(1.0, 2, validate_args=True).log_prob(torch.tensor([0.9, 0.2]))


def test_pyro_draws_and_scores_it() -> None:
    def model() -> Tensor:
        with pyro.plate("rows", 3):
            return pyro.sample("weights", GEM(2.0, 4))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site: Any = trace.nodes["weights"]
    assert site["value"].shape == (3, 4)
    assert site["log_prob"].shape == (3,)
    assert site["log_prob"].isfinite().all()


@types
def test_the_transform_is_a_bijection_with_its_jacobian(dtype: torch.dtype) -> None:
    transform = StickBreaking()
    v = torch.rand(4, 3, 5, dtype=dtype) * 0.98 + 0.01
    pieces = transform(v)
    assert transform.codomain.check(pieces).all()
    assert transform.forward_shape((4, 3, 5)) == pieces.shape == (4, 3, 6)
    assert transform.inverse_shape(pieces.shape) == v.shape
    tolerance = 1e4 * torch.finfo(dtype).eps
    assert torch.allclose(transform.inv(pieces.clone()), v, rtol=tolerance, atol=tolerance)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[:-1], v[0, 0])
    assert isinstance(jacobian, Tensor)
    wanted = jacobian.slogdet().logabsdet
    assert torch.allclose(transform.log_abs_det_jacobian(v, pieces)[0, 0], wanted, atol=1e-5)


def test_a_transformed_beta_is_gem() -> None:
    beta = Beta(torch.ones(4, dtype=torch.float64), torch.full((4,), 3.0, dtype=torch.float64))
    transformed = TransformedDistribution(beta, [StickBreaking()])
    draws = transformed.sample(torch.Size((7,)))
    assert (transformed.batch_shape, transformed.event_shape) == ((), (5,))
    wanted = GEM(torch.tensor(3.0, dtype=torch.float64), 5).log_prob(draws)
    assert torch.allclose(transformed.log_prob(draws), wanted)
