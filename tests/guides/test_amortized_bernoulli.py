"""The units' probabilities against their formula, what they see, and refusals."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from guides import AmortizedBernoulli
from pyro_models.errors import DataError, OptionError
from pyro_models.networks import Standardize
from tests.unchecked import unchecked

BINARY = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


def linear(guide: AmortizedBernoulli, layer: int, inputs: Tensor) -> Tensor:
    prefix = f"layers.{layer}.output"
    weight, bias = guide.get_parameter(f"{prefix}.weight"), guide.get_parameter(f"{prefix}.bias")
    return inputs @ weight.T + bias


def test_the_first_layer_sees_data_less_their_mean() -> None:
    guide = AmortizedBernoulli(3, (4,))
    guide.initialize(BINARY)
    logits = linear(guide, 0, BINARY - BINARY.mean(0))
    assert torch.allclose(guide.posterior(BINARY).mean, logits.sigmoid())
    assert guide.posterior(BINARY.mean(0)).mean.tolist() == [0.5] * 4  # biases start at zero


def test_the_layers_above_see_minus_one_and_one() -> None:
    guide = AmortizedBernoulli(3, (4, 2))
    trace: Any = poutine.trace(guide).get_trace(BINARY)
    logits = linear(guide, 1, 2 * trace.nodes["z_1"]["value"] - 1)
    assert torch.allclose(trace.nodes["z_2"]["fn"].base_dist.logits, logits)


def test_deterministic_layers_stand_between_stochastic_ones() -> None:
    guide = AmortizedBernoulli(3, (4,), hidden=(5, 6), activation=nn.ReLU)
    weights = dict(guide.named_parameters())
    rows = BINARY
    for place in (0, 2):
        weight, bias = (
            weights[f"layers.0.body.{place}.weight"],
            weights[f"layers.0.body.{place}.bias"],
        )
        rows = (rows @ weight.T + bias).clamp_min(0)
    assert torch.allclose(guide.posterior(BINARY).mean, linear(guide, 0, rows).sigmoid())


def test_the_program_draws_every_layer_for_each_datum() -> None:
    guide = AmortizedBernoulli(12, (5, 3))
    images = torch.randint(2, (6, 3, 2, 2), dtype=torch.uint8)
    trace: Any = poutine.trace(guide).get_trace(images, num_data=60)
    for site, units in (("z_1", 5), ("z_2", 3)):
        assert trace.nodes[site]["value"].shape == (6, units)
        assert set(trace.nodes[site]["value"].unique().tolist()) <= {0.0, 1.0}
        assert trace.nodes[site]["scale"] == 10
        assert not trace.nodes[site]["fn"].has_rsample
    drawn = pyro.plate("particles", 7, dim=-2)(guide)(images)
    assert [tuple(z.shape) for z in drawn] == [(7, 6, 5), (7, 6, 3)]


def test_draws_have_the_posterior_probabilities() -> None:
    guide = AmortizedBernoulli(3, (4,))
    with torch.no_grad():
        (z,) = pyro.plate("particles", 10_000, dim=-2)(guide)(BINARY)
    p = guide.posterior(BINARY).mean
    assert ((z.mean(0) - p).abs() < 4 * (p * (1 - p) / len(z)).sqrt()).all()


def test_the_mean_is_kept_with_the_state_and_is_no_parameter() -> None:
    guide = AmortizedBernoulli(3, (2,))
    guide.initialize(BINARY)
    other = AmortizedBernoulli(3, (2,))
    other.load_state_dict(guide.state_dict())
    assert torch.equal(other.center, BINARY.mean(0))
    assert "center" not in dict(guide.named_parameters())


def test_preprocessing_comes_first_and_is_centred_too() -> None:
    x = torch.randn(50, 3) * 1e3 + 1e4
    guide = AmortizedBernoulli(3, (2,), preprocess=Standardize(x))
    guide.initialize(x)
    assert torch.allclose(guide.center, torch.zeros(3), atol=1e-3)
    logits = linear(guide, 0, (x - x.mean(0)) / x.std(0, correction=0))
    assert torch.allclose(guide.posterior(x).mean, logits.sigmoid(), atol=1e-3)


def test_double_precision_and_a_batch_of_one() -> None:
    guide = AmortizedBernoulli(3, (4, 2), hidden=(5,)).double()
    guide.initialize(BINARY.byte())
    assert guide.center.dtype == torch.float64
    assert [(z.dtype, len(z)) for z in guide(BINARY[:1].double())] == [(torch.float64, 1)] * 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AmortizedBernoulli(0, (2,)), "data_dim=0"),
        (lambda: AmortizedBernoulli(3, ()), r"latent_dims=\(\).*at least one"),
        (lambda: AmortizedBernoulli(3, (0,)), r"latent_dims\[0\]=0"),
        (lambda: AmortizedBernoulli(3, 2), r"write \(2,\)"),  # type: ignore[arg-type]
        (lambda: AmortizedBernoulli(3, (2,), hidden=(0,)), r"hidden\[0\]=0"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "give x"),
        (torch.zeros(2, 4), r"\(batch, 3\)"),
        (torch.zeros(2, 3).double(), "torch.float64"),
        (torch.zeros(0, 3), "empty"),
    ],
)
def test_data_it_cannot_see_are_refused(x: Tensor | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        AmortizedBernoulli(3, (2,))(x)
