import math

import pytest
import torch
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    Folded,
    Standardize,
    as_batch,
    bounded_softplus,
    first_parameter,
    glorot_,
)

NETWORKS = {
    "mlp": (MLP(48, (5, 4), 6), 48),
    "linear": (MLP(48, (), 6), 48),
    "encoder": (ConvEncoder((3, 4, 4), outputs=6, channels=(4, 5)), 48),
    "decoder": (ConvDecoder(7, (3, 4, 8), outputs_per_pixel=2, channels=(5, 4)), 7),
    "folded": (Folded(nn.Sequential(nn.Unflatten(1, (3, 16)), nn.Conv1d(3, 2, 3)), 1), 48),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_particles_in_front_change_nothing(name: str) -> None:
    network, inputs = NETWORKS[name]
    x = torch.randn(4, 3, 2, inputs)
    together = network(x)
    apart = torch.stack([torch.stack([network(batch) for batch in group]) for group in x])
    assert torch.allclose(together, apart, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "linear", "encoder", "decoder"])
def test_a_single_datum_without_a_batch_dimension_passes(name: str) -> None:
    network, inputs = NETWORKS[name]
    x = torch.randn(1, inputs)
    assert torch.allclose(network(x[0]), network(x)[0], atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_strided_views_pass(name: str) -> None:
    network, inputs = NETWORKS[name]
    x = torch.randn(inputs, 3).T.expand(2, 3, inputs)
    assert torch.allclose(network(x)[0], network(x[1]), atol=1e-6)


def test_a_perceptron_is_its_formula() -> None:
    network = MLP(3, (4,), 2, nn.ReLU)
    weights = dict(network.named_parameters())
    x = torch.randn(5, 3)
    hidden = (x @ weights["body.0.weight"].T + weights["body.0.bias"]).clamp_min(0)
    wanted = hidden @ weights["output.weight"].T + weights["output.bias"]
    assert torch.allclose(network(x), wanted, atol=1e-6)


def test_glorot_weights_have_their_spread_and_biases_are_zero() -> None:
    layer = nn.Linear(300, 500)
    glorot_(nn.Sequential(layer))
    bound = math.sqrt(6 / 800)
    assert layer.weight.abs().max() <= bound
    error = bound / math.sqrt(3) / math.sqrt(2 * layer.weight.numel())
    assert abs(layer.weight.std().item() - bound / math.sqrt(3)) < 4 * error
    assert not layer.bias.any()


def test_the_layers_of_one_seed_are_the_same() -> None:
    def weights() -> Tensor:
        torch.manual_seed(3)
        return MLP(3, (4,), 2).output.weight

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 8, 16)])
def test_convolutions_map_images_to_codes_and_back(image_shape: tuple[int, int, int]) -> None:
    pixels = math.prod(image_shape)
    code = ConvEncoder(image_shape, outputs=5)(torch.randn(2, pixels))
    assert code.shape == (2, 5)
    assert ConvDecoder(5, image_shape)(code).shape == (2, pixels)


def test_a_decoder_keeps_the_outputs_of_one_pixel_together() -> None:
    decoder = ConvDecoder(2, (1, 4, 4), outputs_per_pixel=3, channels=(2,))
    images = decoder.network(torch.ones(1, 2))  # (1, outputs, height, width)
    flat = decoder(torch.ones(1, 2)).reshape(16, 3)  # (pixels, outputs)
    assert torch.equal(flat, images[0].reshape(3, 16).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bounded_softplus_rises_between_its_bounds(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    raw = torch.tensor([-largest, -100, -1, 0, 1, 5, 100, 1e4, 1e6, largest], dtype=dtype)
    raw.requires_grad_()
    value = bounded_softplus(raw, floor=1e-3, ceiling=1e3)
    assert (value >= 1e-3).all()
    assert (value <= 1e3 + 2e-3).all()
    assert (value.diff() >= 0).all()
    (gradient,) = torch.autograd.grad(value.sum(), raw)
    assert gradient.isfinite().all()
    assert (gradient[2:8] > 0).all()  # beyond a clamp it would be 0
    assert value[3].item() == pytest.approx(1e-3 + math.log(2), rel=1e-3)


def test_data_are_standardised_and_constant_columns_only_centred() -> None:
    x = torch.randn(200, 3) * torch.tensor([1.0, 1e4, 0.0]) + torch.tensor([5.0, -3e4, 7.0])
    seen = Standardize(x)(x)
    assert torch.allclose(seen.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(seen.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    with pytest.raises(DataError, match="no data"):
        Standardize(x[:0])


def test_columns_a_million_times_smaller_are_still_data() -> None:
    x = torch.randn(200, 2) * torch.tensor([1.0, 1e-8])
    seen = Standardize(x)(x)
    assert torch.allclose(seen.std(0, correction=0), torch.ones(2), atol=1e-4)


class TestAsBatch:
    like = torch.zeros(1)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
    def test_images_and_whole_numbers_become_rows_of_floats(self, dtype: torch.dtype) -> None:
        x = torch.ones(2, 1, 3, 4).to(dtype)
        assert torch.equal(as_batch(x, 12, self.like), torch.ones(2, 12))

    def test_rows_pass_as_they_are(self) -> None:
        x = torch.randn(2, 3)
        assert as_batch(x, 3, self.like) is x

    @pytest.mark.parametrize(
        ("x", "words"),
        [
            (torch.zeros(2, 4), r"shape \(2, 4\).*shape \(batch, 3\)"),
            (torch.zeros(3), r"unsqueeze"),
            (torch.zeros(2, 3, dtype=torch.float64), r"torch.float64.*x.to\(torch.float32\)"),
            (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
            (torch.zeros(2, 3, device="meta"), "on meta.*on cpu"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, x: Tensor, words: str) -> None:
        with pytest.raises(DataError, match=words):
            as_batch(x, 3, self.like)


def test_a_module_without_parameters_is_on_the_cpu() -> None:
    assert first_parameter(nn.Identity()).device.type == "cpu"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP(0, (3,), 2), "inputs=0"),
        (lambda: MLP(1, (3, 0), 2), r"hidden\[1\]=0"),
        (lambda: MLP(1, (3,), -2), "outputs=-2"),
        (lambda: Folded(nn.Identity(), 0), "event_dim=0"),
        (lambda: ConvEncoder((28, 28), 10), r"channels, height, width"),
        (lambda: ConvEncoder((1, 30, 28), 10), "30 x 28 is not divisible by 4"),
        (lambda: ConvEncoder((1, 28, 28), 10, channels=()), "no convolution"),
        (lambda: ConvDecoder(10, (1, 28, 28), channels=(8, 8, 8)), "divisible by 8"),
        (lambda: ConvDecoder(10, (1, 28, 28), outputs_per_pixel=0), "outputs_per_pixel=0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(OptionError, match=words):
        make()
