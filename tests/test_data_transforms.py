"""Transforms against autograd Jacobians, exact cell masses and their own inverses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from jaxtyping import TypeCheckError
from scipy import stats
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_models.data import (
    Compose,
    Dequantization,
    DynamicBinarization,
    LogitTransform,
    Standardization,
    StaticBinarization,
    Stochastic,
    Threshold,
    digits,
)
from pyro_models.errors import DataError, OptionError, SupportError

SHAPES = array_shapes(min_dims=2, max_dims=3, max_side=5)
UNIT = arrays(np.float64, SHAPES, elements=st.floats(0, 1))
REAL = arrays(np.float64, SHAPES, elements=st.floats(-1e6, 1e6).map(lambda x: round(x, 6)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=seeded(), dtype=dtype)


def test_which_are_random():
    assert DynamicBinarization().random
    assert Dequantization().random
    assert not StaticBinarization(Stochastic()).random
    assert not LogitTransform().random
    assert not Standardization.fit([[1.0], [2.0]]).random
    assert Compose([Dequantization(), LogitTransform()]).random
    assert not Compose([LogitTransform()]).random


# --- inverses ---


@settings(deadline=None)
@given(x=REAL, offset=st.floats(-1e8, 1e8))
def test_standardisation_has_its_moments_and_comes_back(x, offset):
    x = torch.from_numpy(x + offset)
    transform = Standardization.fit(x)
    y = transform(x)
    size = x.abs().max().item() + 1
    torch.testing.assert_close(transform.inverse(y), x, rtol=1e-12, atol=1e-12 * size)
    # Rounding in x - mean is seen relative to the scale of its column.
    noise = 1e-13 * size / transform.scale.clamp(min=1e-300)
    varied = x.amax(0) > x.amin(0)
    assert (y.mean(0).abs() <= noise + 1e-12)[varied].all()
    assert ((y.square().mean(0) - 1).abs() <= noise + 1e-12)[varied].all()
    assert (y[:, ~varied] == 0).all()


@settings(deadline=None)
@given(x=UNIT, alpha=st.floats(1e-6, 0.49))
def test_logits_come_back(x, alpha):
    x = torch.from_numpy(x)
    transform = LogitTransform(alpha)
    error = 1e-14 / (1 - 2 * alpha)
    torch.testing.assert_close(transform.inverse(transform(x)), x, rtol=0, atol=error)


@settings(deadline=None)
@given(
    levels=st.integers(2, 65536),
    places=arrays(np.float64, (3, 40), elements=st.floats(0, 1)),
    seed=st.integers(0, 2**32),
)
def test_levels_come_back_exactly_in_float32(levels, places, seed):
    grid = np.round(places * (levels - 1))
    x = torch.from_numpy((grid / (levels - 1)).astype(np.float32))
    y = Dequantization(levels)(x, generator=seeded(seed))
    assert ((y >= 0) & (y < 1)).all()
    back = Dequantization(levels).inverse(y) * (levels - 1)
    np.testing.assert_array_equal(back.round().numpy(), grid)


# The smallest and the largest number that torch draws in float32.
@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256, 4096, 65535])
def test_levels_come_back_from_the_edges_of_their_cells(monkeypatch, levels, draw):
    monkeypatch.setattr(torch, "rand", lambda shape, **kw: torch.full(shape, draw))
    level = torch.arange(levels).unsqueeze(1)
    transform = Dequantization(levels)
    y = transform.apply(level / (levels - 1))
    assert torch.equal((transform.inverse(y) * (levels - 1)).round(), level.float())
    # Keeping it inside its cell moves it by no more than a few rounding errors.
    shift = (y.double() - (level + draw) / levels).abs()
    assert (shift <= 4 * torch.finfo(torch.float32).eps * y + 1e-9).all()


def test_dequantisation_is_uniform_in_its_cell():
    x = torch.full((20_000, 1), 3 / 15)
    y = Dequantization(16)(x, generator=seeded())
    assert stats.kstest((16 * y - 3).squeeze(1).numpy(), "uniform").pvalue > 1e-3


def test_the_inverse_of_dequantisation_takes_samples_beyond_the_grid():
    y = torch.tensor([[-0.3, 0.999, 1.0, 7.0]])
    assert Dequantization(3).inverse(y).tolist() == [[0, 1, 1, 1]]


def test_logits_are_accurate_near_one_in_float32():
    x = 1 - torch.logspace(-7, -1, 50, dtype=torch.float64)
    x = x.float().unsqueeze(1)
    exact = LogitTransform(1e-6)(x.double())
    torch.testing.assert_close(LogitTransform(1e-6)(x).double(), exact, rtol=1e-5, atol=1e-6)


# --- volume changes ---


def autograd_log_det(function, x):
    """log |det| of the Jacobian, one datum at a time."""
    values = []
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda r: function(r[None])[0], row)
        size = row.numel()
        values.append(torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet)
    return torch.stack(values)


SCALES = torch.tensor([0.5, 2.0, 1e3], dtype=torch.float64)
DENSITIES = {
    "logit": LogitTransform(0.05),
    "logit, alpha 0": LogitTransform(0.0),
    "standard": Standardization(torch.zeros(3, dtype=torch.float64), SCALES),
    "one scale": Standardization(torch.tensor(0.1), torch.tensor(3.0)),
    "chain": Compose(
        [LogitTransform(1e-3), Standardization(SCALES, SCALES), Standardization.fit([[1.0], [5.0]])]
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("shape", [(4, 3), (2, 2, 3)])
def test_volume_changes_agree_with_autograd(name, shape):
    x, transform = unit(*shape), DENSITIES[name]
    y = transform(x)
    expected = autograd_log_det(transform.apply, x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
    torch.testing.assert_close(transform.inverse(y), x)


def test_a_chain_with_noise_has_the_volume_change_of_its_own_draw():
    levels, scale = 16, Standardization(torch.ones(6).double(), torch.full((6,), 2.5).double())
    x = (unit(5, 6) * (levels - 1)).round() / (levels - 1)
    chain = Compose([Dequantization(levels), LogitTransform(0.05), scale])
    y = chain(x)
    spread = LogitTransform(0.05).inverse(scale.inverse(y))
    tail = Compose([LogitTransform(0.05), scale])
    expected = autograd_log_det(tail.apply, spread) - 6 * math.log(levels)
    torch.testing.assert_close(chain.log_abs_det_jacobian(x, y), expected)
    torch.testing.assert_close(chain.inverse(y), x)


def test_a_density_carried_back_through_the_logit_integrates_to_one():
    x = torch.linspace(1e-7, 1 - 1e-7, 400_001, dtype=torch.float64).unsqueeze(1)
    transform = LogitTransform(0.0)
    y = transform(x)
    normal = torch.distributions.Normal(0.3, 1.2)
    density = (normal.log_prob(y).squeeze(1) + transform.log_abs_det_jacobian(x, y)).exp()
    assert torch.trapezoid(density, x.squeeze(1)).item() == pytest.approx(1, abs=1e-6)


def test_dequantised_density_gives_the_mass_of_each_level():
    # E_u exp(log p_Y(y) + log det) is the mass that p_Y gives the cell; its logarithm is bounded
    # by the mean of the exponents.
    levels, draws = 5, 40_000
    beta = torch.distributions.Beta(2.0, 3.5)
    transform = Dequantization(levels)
    edges = stats.beta(2.0, 3.5).cdf(np.arange(levels + 1) / levels)
    for level in range(levels):
        x = torch.full((draws, 1), level / (levels - 1))
        y = transform(x)
        log_mass = beta.log_prob(y).squeeze(1) + transform.log_abs_det_jacobian(x, y)
        mass = log_mass.exp()
        exact = edges[level + 1] - edges[level]
        assert abs(mass.mean() - exact) < 4 * mass.std() / math.sqrt(draws)
        assert log_mass.mean() < math.log(exact)


def test_a_uniform_density_makes_levels_equally_likely():
    x = torch.zeros(2, 3, 4)
    log_mass = Dequantization(17).log_abs_det_jacobian(x, x)
    assert log_mass.tolist() == pytest.approx([-12 * math.log(17)] * 2)


def test_a_gaussian_has_the_same_likelihood_in_either_space():
    x = digits().x[:, 20:24].double() * 16
    transform = Standardization.fit(x)
    y = transform(x)
    own = torch.distributions.Normal(transform.mean, transform.scale).log_prob(x).sum(1)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(1)
    torch.testing.assert_close(standard + transform.log_abs_det_jacobian(x, y), own)


# --- standardisation ---


def test_constant_columns_of_digits_become_zero():
    x = digits().x
    y = Standardization.fit(x)(x)
    constant = x.amax(0) == x.amin(0)
    assert constant.any()
    assert (y[:, constant] == 0).all()
    torch.testing.assert_close(y[:, ~constant].std(0, correction=0), torch.ones(61))


def test_statistics_of_float32_survive_a_large_offset():
    noise = torch.randn(10_000, 1, generator=seeded())
    shifted = (noise.double() + 4096).float()
    expected = shifted.double().std(0, correction=0).float()
    torch.testing.assert_close(Standardization.fit(shifted).scale, expected)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(size):
    x = torch.tensor([[-1.0], [1.0]]) * size
    torch.testing.assert_close(Standardization.fit(x)(x), torch.tensor([[-1.0], [1.0]]))


def test_what_cannot_be_summed_is_refused():
    with pytest.raises(DataError, match=r"x\.double\(\)"):
        Standardization.fit([[-3e38], [3e38]])


def test_one_datum_and_pictures_can_be_standardised():
    assert Standardization.fit([[3.0, 4.0]])(torch.tensor([[3.0, 5.0]])).tolist() == [[0, 1]]
    x = unit(7, 2, 3, 3, dtype=torch.float32)
    assert Standardization.fit(x)(x).shape == x.shape
    assert repr(Standardization.fit(x)) == "Standardization(shape=(2, 3, 3))"


# --- chains ---


def test_chains_unroll_and_apply_in_order():
    inner = Compose([Standardization(torch.tensor(0.0), torch.tensor(2.0)), LogitTransform(0.05)])
    chain = Compose([StaticBinarization(Threshold(0.2)), inner])
    assert len(chain.steps) == 3
    x = torch.tensor([[0.1, 0.3]])
    torch.testing.assert_close(chain(x), LogitTransform(0.05)(torch.tensor([[0.0, 0.5]])))


def test_a_chain_that_loses_something_has_no_inverse():
    chain = Compose([DynamicBinarization(), LogitTransform(0.1)])
    y = chain(unit(2, 2))
    with pytest.raises(OptionError, match=r"no inverse, since DynamicBinarization\(\)"):
        chain.inverse(y)
    with pytest.raises(OptionError, match="no log_abs_det_jacobian"):
        chain.log_abs_det_jacobian(y, y)


def test_a_chain_checks_what_each_step_is_given_without_touching_torchs_generator():
    shift = Standardization(torch.tensor(-5.0), torch.tensor(1.0))
    state = torch.get_rng_state()
    with pytest.raises(SupportError, match=r"DynamicBinarization needs values in \[0, 1\]"):
        Compose([Dequantization(2), shift, DynamicBinarization()]).check(torch.zeros(2, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_an_empty_or_foreign_chain_is_refused():
    with pytest.raises(OptionError, match="no steps"):
        Compose([])
    # The run-time type checks of the tests speak before our own.
    with pytest.raises((OptionError, TypeCheckError)):
        Compose([torch.sigmoid])  # type: ignore[list-item]


# --- refusals ---

UNIT_TRANSFORMS = [
    StaticBinarization(Threshold()),
    StaticBinarization(Stochastic()),
    DynamicBinarization(),
    Dequantization(2),
    LogitTransform(),
]


@pytest.mark.parametrize("transform", UNIT_TRANSFORMS, ids=str)
@pytest.mark.parametrize("bad", [-0.01, 1.01, 255.0, math.nan, math.inf])
def test_values_outside_the_unit_interval_are_refused(transform, bad):
    with pytest.raises(SupportError, match=r"x / 255"):
        transform(torch.tensor([[0.0, bad]]))


@pytest.mark.parametrize(
    "transform", [*UNIT_TRANSFORMS, Standardization(torch.zeros(2), torch.ones(2))], ids=str
)
@pytest.mark.parametrize(
    "x", [torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(0, 2), torch.zeros(2)]
)
def test_what_is_no_batch_of_floats_is_refused(transform, x):
    with pytest.raises(DataError, match="as_tensor"):
        transform(x)


def test_values_between_levels_are_refused():
    with pytest.raises(SupportError, match=r"2 values of x, the first 0\.3, are none of the 256"):
        Dequantization()(torch.tensor([[0.0, 0.3, 1.0], [0.3, 0.2, 1.0]]))
    with pytest.raises(DataError, match="too coarse"):
        Dequantization()(torch.zeros(1, 1, dtype=torch.bfloat16))
    Dequantization(17).check(digits().x)


def test_the_logit_of_an_end_needs_alpha():
    with pytest.raises(SupportError, match="alpha above 0"):
        LogitTransform(0.0)(torch.tensor([[0.0, 0.5]]))


def test_standardisation_knows_its_shape():
    transform = Standardization.fit(unit(5, 3))
    with pytest.raises(DataError, match=r"\(N, 3\).*\(5, 4\)"):
        transform(unit(5, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Threshold(1.0),
        lambda: Threshold(-0.1),
        lambda: Threshold(math.nan),
        lambda: Dequantization(1),
        lambda: Dequantization(65537),
        lambda: Dequantization(True),
        lambda: LogitTransform(0.5),
        lambda: LogitTransform(-1e-9),
        lambda: Standardization(torch.zeros(2), torch.tensor([1.0, 0.0])),
        lambda: Standardization(torch.zeros(2), torch.tensor([1.0, math.nan])),
        lambda: Standardization(torch.zeros(2), torch.ones(3)),
    ],
)
def test_options_that_cannot_work_are_refused_when_made(make):
    with pytest.raises(OptionError):
        make()


@pytest.mark.parametrize("transform", [*UNIT_TRANSFORMS, *DENSITIES.values()], ids=str)
def test_apply_can_be_traced_and_keeps_the_type(transform):
    x = (unit(4, 3) > 0.5).double() * 0.5 + 0.25 if transform in DENSITIES.values() else None
    x = torch.zeros(4, 3, dtype=torch.float64) if x is None else x
    graph = make_fx(lambda x: transform.apply(x))(x)
    assert graph(x).dtype == torch.float64
    assert graph(x).shape == x.shape
