import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_models.errors import DataError, OptionError
from pyro_models.infer.diagnostics import active_units

GAIN = torch.tensor([1.0, 0.2, 0.05, 0.0])


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, None] * GAIN, 1.0).to_event(1))


def test_variance_of_the_posterior_mean_by_dimension() -> None:
    x = torch.randn(400)
    units = active_units(guide, x)
    expected = GAIN.double() ** 2 * x.double().var(correction=0)
    torch.testing.assert_close(units.variances["z"], expected, rtol=1e-5, atol=1e-7)
    assert (units.count, units.total, units.threshold) == (2, 4, 0.01)
    assert active_units(guide, x, threshold=0.001).count == 3


def test_shares_are_of_the_whole_variance() -> None:
    """A code of small scale is as active as the same code in other units."""

    def scaled(scale: float, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] * GAIN * scale, scale).to_event(1))

    x = torch.randn(400)
    of_means = GAIN.double() ** 2 * x.double().var(correction=0)
    for scale in (1.0, 0.01):
        units = active_units(partial(scaled, scale), x, relative=True)
        expected = of_means / (of_means + 1.0)
        torch.testing.assert_close(units.shares["z"], expected, rtol=1e-5, atol=1e-7)
        assert units.active["z"].tolist() == [True, True, False, False]
    # By its variance, 0.0001 times as large, nothing of the last counts.
    assert active_units(partial(scaled, 0.01), x).count == 0


def test_shares_of_point_masses() -> None:
    def points(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x[:, None] * GAIN).to_event(1))

    units = active_units(points, torch.randn(9), relative=True)
    assert units.shares["z"].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_the_whole_set_is_used_in_batches() -> None:
    x = torch.linspace(-1, 1, 101)
    # Within a batch of the sorted data the variance is far below the threshold.
    units = active_units(guide, x, batch_size=5)
    torch.testing.assert_close(units.variances["z"], active_units(guide, x).variances["z"])
    assert units.count == 2


def test_noise_of_estimated_means_does_not_count() -> None:
    def noisy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(len(x)), 3.0))
            pyro.sample("z", dist.Normal(a + 0.5 * x, 1.0))

    x = torch.randn(2000)
    units = active_units(noisy, x)
    assert units.variances["a"].item() == 0.0
    # Means over 100 draws have variance 9 / 100, nine times the threshold, which is taken off.
    expected = 0.25 * x.var(correction=0).item()
    assert units.variances["z"].item() == pytest.approx(
        expected, abs=4 * math.sqrt(2 / 2000) * (expected + 0.09)
    )


def test_global_latents_do_not_count() -> None:
    def mixed(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(x.mean(), 1.0))
        guide(x)

    assert list(active_units(mixed, torch.randn(7)).variances) == ["z"]


def test_bad_options_and_data_are_refused() -> None:
    for threshold in (-1.0, math.nan):
        with pytest.raises(OptionError, match="threshold"):
            active_units(guide, torch.randn(3), threshold=threshold)
    with pytest.raises(DataError, match="holds no data"):
        active_units(guide, torch.zeros(0))
