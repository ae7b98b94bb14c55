"""Binarisation: right frequencies, fixed draws that stay and fresh draws that do not."""

import math

import torch

from pyro_models.data import DynamicBinarization, StaticBinarization, Stochastic, Threshold


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def unit(*shape):
    return torch.rand(*shape, generator=seeded(0), dtype=torch.float64)


def test_dynamic_binarisation_draws_anew_with_the_right_frequency():
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).expand(20_000, 5)
    y = DynamicBinarization()(x)
    assert y.unique().tolist() == [0, 1]
    error = (x[0] * (1 - x[0]) / len(x)).sqrt()
    assert ((y.mean(0) - x[0]).abs() <= 4 * error).all()
    assert not torch.equal(y, DynamicBinarization()(x))


def test_dynamic_binarisation_follows_torch_or_the_given_generator():
    x = unit(4, 50)
    torch.manual_seed(1)
    first = DynamicBinarization()(x)
    torch.manual_seed(1)
    assert torch.equal(first, DynamicBinarization()(x))
    state = torch.get_rng_state()
    drawn = DynamicBinarization()(x, generator=seeded(2))
    assert torch.equal(drawn, DynamicBinarization()(x, generator=seeded(2)))
    assert torch.equal(state, torch.get_rng_state())


def test_static_binarisation_is_one_draw_with_the_right_frequency():
    transform = StaticBinarization(Stochastic(seed=5))
    x = torch.full((100, 100), 0.3)
    state = torch.get_rng_state()
    y = transform(x)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(y, transform(x))
    assert torch.equal(y, transform(x.double()).float())
    assert abs(y.mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1e4)
    assert not torch.equal(y, StaticBinarization(Stochastic(seed=6))(x))


def test_binary_data_is_left_as_it_is():
    x = (unit(10, 10) > 0.5).double()
    for rule in (Threshold(), Stochastic()):
        assert torch.equal(StaticBinarization(rule)(x), x)
    assert torch.equal(DynamicBinarization()(x), x)
