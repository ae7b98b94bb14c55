import itertools
import math

import pytest
import torch
from torch import Tensor

from pyro_models.baselines import Baseline, densities, masses
from pyro_models.errors import DataError, OptionError


def every_pattern(levels: int, size: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=size)), dtype=torch.float32)


def test_densities_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    train = torch.randn(200, 3) @ torch.randn(3, 3)
    held_out = torch.randn(20, 3)
    independent, full = densities(train, held_out)
    mean, data = train.double().mean(0).numpy(), train.double().numpy()
    covariance = (data - mean).T @ (data - mean) / 200
    expected = stats.multivariate_normal(mean, covariance).logpdf(held_out.double().numpy())
    torch.testing.assert_close(full.log_prob, torch.tensor(expected))
    expected = stats.norm(mean, covariance.diagonal() ** 0.5).logpdf(held_out.double().numpy())
    torch.testing.assert_close(independent.log_prob, torch.tensor(expected.sum(-1)))


def test_density_fits_maximise_the_training_likelihood() -> None:
    train = torch.randn(100, 2) @ torch.tensor([[1.0, 0.7], [0.0, 0.5]])
    best = [baseline.mean for baseline in densities(train, train)]
    assert best[1] > best[0]
    for other in (train * 1.05, train + 0.05, train * torch.tensor([1.0, 0.95])):
        assert all(b.mean < top for b, top in zip(densities(other, train), best, strict=True))


def test_images_are_flattened() -> None:
    train, held_out = torch.randn(50, 2, 2), torch.randn(7, 2, 2)
    flat = densities(train.flatten(1), held_out.flatten(1))
    for ours, theirs in zip(densities(train, held_out), flat, strict=True):
        torch.testing.assert_close(ours.log_prob, theirs.log_prob)


def test_masses_sum_to_one() -> None:
    torch.manual_seed(0)
    train = (torch.randn(60, 4) @ torch.randn(4, 4) > 0).float()
    independent, correlated = masses(train, every_pattern(2, 4), num_samples=4000)
    assert independent.log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert correlated.log_prob.exp().sum().item() == pytest.approx(1.0, abs=0.01)


def test_masses_of_counts_sum_to_one() -> None:
    train = torch.poisson(torch.full((50, 2), 1.0)).clamp(max=3)
    train[0] = 3
    independent, correlated = masses(train, every_pattern(4, 2), num_samples=4000)
    assert independent.log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert correlated.log_prob.exp().sum().item() == pytest.approx(1.0, abs=0.01)


def test_independent_masses_are_frequencies_with_half_a_count() -> None:
    train = torch.tensor([[0, 1], [1, 1], [1, 1], [1, 1]])
    independent, _ = masses(train, torch.tensor([[1, 1], [0, 0]]))
    expected = torch.tensor([3.5 / 5 * 4.5 / 5, 1.5 / 5 * 0.5 / 5], dtype=torch.float64).log()
    torch.testing.assert_close(independent.log_prob, expected)


def test_correlated_masses_are_orthant_probabilities() -> None:
    # For two fair pixels with latent correlation r the probability of (1, 1) is
    # 1/4 + arcsin(r) / (2 pi) (Sheppard 1899).
    train = torch.tensor([[0, 0], [1, 1]]).repeat(30, 1)
    train = torch.cat([train, torch.tensor([[0, 1], [1, 0]]).repeat(10, 1)])
    _, correlated = masses(train, every_pattern(2, 2), num_samples=200_000)
    covariance = 0.25 * (60 - 20) / 80
    r = covariance / (0.25 + 0.01)
    same = 0.25 + math.asin(r) / (2 * math.pi)
    expected = torch.tensor([same, 0.5 - same, 0.5 - same, same], dtype=torch.float64)
    torch.testing.assert_close(correlated.log_prob.exp(), expected, atol=1e-3, rtol=0)


def test_correlated_masses_in_many_dimensions_agree_with_simulation() -> None:
    train = torch.tensor([[0] * 5, [1] * 5, [0] * 5, [1] * 5, [0, 1, 0, 1, 0], [1, 0, 1, 0, 1]])
    _, correlated = masses(train, every_pattern(2, 5), num_samples=20_000)
    data = train.double()
    deviations = data - data.mean(0)
    covariance = deviations.T @ deviations / 6 + 0.01 * torch.eye(5)
    # Every pixel is 1 in half of the data, so that all thresholds are 0.
    draws = torch.distributions.MultivariateNormal(torch.zeros(5).double(), covariance)
    ones = (draws.sample((400_000,)) > 0).long()
    index = (ones * torch.tensor([16, 8, 4, 2, 1])).sum(-1)
    frequency = torch.bincount(index, minlength=32).double() / 400_000
    error = (frequency / 400_000).sqrt() + 1e-5
    assert ((correlated.log_prob.exp() - frequency).abs() < 4.5 * error + 2e-3).all()


def test_dead_pixels_and_extreme_data_stay_finite() -> None:
    train = torch.zeros(500, 6)
    train[:, :3] = (torch.rand(500, 1) > 0.5).float()
    held_out = torch.ones(2, 6)
    for baseline in masses(train, held_out):
        assert baseline.log_prob.isfinite().all()
        assert (baseline.log_prob < -10).all()


def test_masses_do_not_touch_the_generator_and_repeat() -> None:
    train = (torch.rand(40, 3) > 0.5).float()
    before = torch.get_rng_state()
    first, second = (masses(train, train)[1].log_prob for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_margin_is_paired() -> None:
    baseline = Baseline("", torch.tensor([1.0, 5.0, 3.0]).double())
    assert baseline.mean == pytest.approx(3.0)
    assert baseline.standard_error == pytest.approx(2 / 3**0.5)
    margin = baseline.margin(torch.tensor([2.0, 7.0, 6.0]))
    assert (margin.mean, margin.standard_error) == (pytest.approx(2.0), pytest.approx(1 / 3**0.5))
    with pytest.raises(DataError, match="same held-out data"):
        baseline.margin(torch.zeros(2))


def test_what_has_no_fit_is_refused() -> None:
    good = torch.randn(20, 3)
    constant = good.clone()
    constant[:, 1] = 0.5
    with pytest.raises(DataError, match="1 of 3 dimensions are constant"):
        densities(constant, good)
    with pytest.raises(DataError, match="singular"):
        densities(good[:3], good)
    with pytest.raises(DataError, match="whole numbers from 0"):
        masses(good, good)
    for function in (densities, masses):
        with pytest.raises(DataError, match="at least one datum"):
            function(torch.zeros(0, 3), good)
        with pytest.raises(DataError, match="NaN"):
            function(torch.full((2, 3), math.nan), good)
    with pytest.raises(DataError, match="3 dimensions and held_out 2"):
        densities(good, good[:, :2])
    with pytest.raises(OptionError, match="num_samples=0"):
        masses(torch.zeros(2, 3), torch.zeros(2, 3), num_samples=0)
