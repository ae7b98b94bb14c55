"""Networks that encoders and decoders share, and how a minibatch reaches them.

Every network here accepts any number of leading dimensions, ``(K, batch, ...)``, and folds them
into one, so that K particles cost one matrix product or one convolution.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from pyro_models.errors import DataError, OptionError
from pyro_models.options import positive_int, widths


def glorot_(module: nn.Module) -> None:
    """Give linear and convolutional layers Glorot's uniform weights and zero biases, in place.

    Args:
        module: Every layer in it, however deep, is drawn anew from torch's generator.

    References:
        Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> glorot_(layer)
        >>> layer.bias.tolist()
        [0.0, 0.0]
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def bounded_softplus(
    raw: Float[Tensor, "*shape"], floor: float = 1e-4, ceiling: float = 1e4
) -> Float[Tensor, "*shape"]:
    r"""A positive number that can neither vanish nor overflow.

    .. math:: f + \frac{s}{1 + s/c}, \qquad s = \log(1 + e^{raw})

    It is strictly increasing, so no unit gets stuck at a bound as it would behind a clamp.

    Args:
        raw: Any finite numbers.
        floor: f > 0, the lower bound.
        ceiling: c, which the part above the floor stays under.

    Example:
        >>> bounded_softplus(torch.tensor([-1e30, 0.0, 1e30]))
        tensor([1.0000e-04, 6.9320e-01, 1.0000e+04])
    """
    softened = functional.softplus(raw)
    return floor + softened / (1 + softened / ceiling)


def first_parameter(module: nn.Module) -> Tensor:
    """A parameter of the module, to see its type and device; a scalar zero if it has none.

    Args:
        module: Any module.

    Example:
        >>> first_parameter(nn.Linear(3, 2).double()).dtype
        torch.float64
    """
    parameter = next(module.parameters(), None)
    return torch.zeros(()) if parameter is None else parameter


def as_batch(
    x: Shaped[Tensor, "batch *datum"], data_dim: int, like: Tensor
) -> Float[Tensor, "batch data_dim"]:
    """A minibatch as networks take it: one flat row a datum, in the parameters' type.

    Whole numbers and booleans are converted; floating types must agree already, so that no
    precision is lost unseen. Only shapes and types are looked at, never values: it costs nothing
    and can be traced.

    Args:
        x: The minibatch, ``(batch, data_dim)`` or images, ``(batch, channels, height, width)``.
        data_dim: Numbers a datum.
        like: A parameter, whose type and device the data must have.

    Raises:
        DataError: If shape, type or device do not fit.

    Example:
        >>> as_batch(torch.ones(2, 1, 4, 4, dtype=torch.uint8), 16, torch.zeros(1)).shape
        torch.Size([2, 16])
    """
    if x.ndim < 2 or math.prod(x.shape[1:]) != data_dim:
        raise DataError(
            f"x has shape {tuple(x.shape)}, but a minibatch of shape (batch, {data_dim}) is "
            f"expected; give {data_dim} numbers a datum, and x.unsqueeze(0) for a single datum"
        )
    if x.device != like.device:
        raise DataError(
            f"x is on {x.device} and the parameters are on {like.device}; "
            f"give x.to({str(like.device)!r}), or move the module"
        )
    if x.is_complex() or (x.is_floating_point() and x.dtype != like.dtype):
        raise DataError(
            f"x is {x.dtype} and the parameters are {like.dtype}; "
            f"give x.to({like.dtype}), or convert the module with .to({x.dtype})"
        )
    rows = x if x.ndim == 2 else x.flatten(1)
    return rows if rows.is_floating_point() else rows.to(like.dtype)


@final
class Folded(nn.Module):
    """Lets a network that knows one batch dimension take any number of them.

    Args:
        network: Maps ``(batch, *event)`` to ``(batch, ...)``: a convolution, a flatten, a
            network of your own.
        event_dim: Number of dimensions in one datum: 3 for ``(channels, height, width)``.

    Raises:
        OptionError: If ``event_dim`` is no whole number of at least 1.

    Example:
        >>> network = Folded(nn.Conv2d(1, 8, 3), event_dim=3)
        >>> network(torch.zeros(5, 2, 1, 28, 28)).shape  # 5 particles, 2 data
        torch.Size([5, 2, 8, 26, 26])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = positive_int("event_dim", event_dim)

    def forward(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Fold the leading dimensions, run the network, unfold them again."""
        lead, event = x.shape[: -self.event_dim], x.shape[-self.event_dim :]
        if len(lead) == 1:
            return self.network(x)
        out = self.network(x.reshape(-1, *event))  # (K * batch, ...)
        return out.reshape(*lead, *out.shape[1:])  # (K, batch, ...)


@final
class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, none at the end.

    Args:
        inputs: Numbers in.
        hidden: Width of each hidden layer; empty for a single linear map.
        outputs: Numbers out.
        activation: Class of the activation's module.

    Raises:
        OptionError: If a width is no whole number of at least 1.

    Example:
        >>> network = MLP(784, (200, 200), 50)
        >>> network(torch.zeros(5, 20, 784)).shape  # 5 particles, 20 data
        torch.Size([5, 20, 50])
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        sizes = (positive_int("inputs", inputs), *widths("hidden", hidden))
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), activation()]
        self.body = nn.Sequential(*layers)
        self.output = nn.Linear(sizes[-1], positive_int("outputs", outputs))
        glorot_(self)

    @property
    def output_bias(self) -> nn.Parameter:
        """What the outputs are where the last hidden layer is zero, ``(outputs,)``."""
        return self.output.bias

    def forward(self, x: Float[Tensor, "*lead inputs"]) -> Float[Tensor, "*lead outputs"]:
        """Apply the network to the last dimension."""
        if x.ndim == 2:
            return self.output(self.body(x))
        rows = x.reshape(-1, x.shape[-1])  # (K * batch, inputs)
        return self.output(self.body(rows)).reshape(*x.shape[:-1], -1)

    def beside_one_hot(
        self, x: Float[Tensor, "*lead dim"], y: Int[Tensor, "..."]
    ) -> Float[Tensor, "*all outputs"]:
        r"""Apply the network to ``x`` with classes beside it, as zeros and a one.

        The first layer is a sum, :math:`W [x, \mathrm{onehot}(y)] = W [x, 0] + W [0,
        \mathrm{onehot}(y)]`: a datum and a class go through it once each, however many classes a
        datum is seen with.

        Args:
            x: ``(..., dim)``; the network's other inputs are for the classes.
            y: Classes, of a shape that broadcasts with ``(...)``.

        Example:
            >>> network = MLP(784 + 10, (200,), 50)
            >>> every = torch.arange(10).unsqueeze(-1)
            >>> network.beside_one_hot(torch.zeros(20, 784), every).shape  # 20 data, in 10 classes
            torch.Size([10, 20, 50])
        """
        first = next(layer for layer in self.modules() if isinstance(layer, nn.Linear))
        data = x.reshape(-1, x.shape[-1])
        count = first.in_features - x.shape[-1]
        classes = torch.arange(count, device=x.device)
        # Not by parts of the weight: its gradient would be put together a number at a time.
        rows = torch.cat(
            [
                functional.pad(data, (0, count)),
                functional.pad(torch.eye(count, dtype=x.dtype, device=x.device), (x.shape[-1], 0)),
            ]
        )
        from_x, from_y = functional.linear(rows, first.weight).split([len(data), count])
        hot = (y.unsqueeze(-1) == classes).to(x.dtype)
        seen = from_x.reshape(*x.shape[:-1], -1) + hot @ from_y + first.bias
        if first is self.output:
            return seen
        found = self.output(self.body[1:](seen.reshape(-1, seen.shape[-1])))
        return found.reshape(*seen.shape[:-1], -1)


@final
class Standardize(nn.Module):
    r"""Shows each dimension of the data to a network with mean 0 and standard deviation 1.

    .. math:: (x_d - m_d) / s_d

    It belongs in front of an inference network; the data that the likelihood explains stay as
    they are. Dimensions that do not vary are only centred.

    Args:
        x: The training data, from which m and s are computed once.

    Raises:
        DataError: If there are no data.

    Example:
        >>> see = Standardize(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> see(torch.tensor([[2.0, 5.0]]))
        tensor([[1., 0.]])
    """

    center: Tensor
    spread: Tensor

    def __init__(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        super().__init__()
        if x.numel() == 0:
            raise DataError("x holds no data to take a mean of; give at least one datum")
        rows = x.flatten(1)
        spread, center = torch.std_mean(rows.double(), dim=0, correction=0)
        # The mean of equal numbers is rounded, so a column without spread shows a little.
        spread = torch.where(spread > 1e-12 * center.abs(), spread, torch.ones_like(spread))
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        self.register_buffer("center", center.to(dtype))
        self.register_buffer("spread", spread.to(dtype))

    def forward(self, x: Float[Tensor, "*lead data_dim"]) -> Float[Tensor, "*lead data_dim"]:
        """Standardise the last dimension."""
        return (x - self.center) / self.spread


def _halvings(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Height and width after every layer has halved them, with the count of channels."""
    shape = widths("image_shape", image_shape)
    if len(shape) != 3:
        raise OptionError(f"image_shape={shape} is not (channels, height, width); give all three")
    if not channels:
        raise OptionError("channels=() leaves no convolution; give at least one, as in (32, 64)")
    factor = 2 ** len(channels)
    _, height, width = shape
    if height % factor or width % factor:
        raise OptionError(
            f"{len(channels)} layers halve an image {len(channels)} times, but {height} x {width} "
            f"is not divisible by {factor}; give fewer channels or pad the images"
        )
    return channels[-1], height // factor, width // factor


@final
class ConvEncoder(nn.Module):
    """Convolutions of stride 2 and one linear layer, from flat images to numbers.

    Args:
        image_shape: ``(channels, height, width)`` of one image.
        outputs: Numbers out.
        channels: Feature maps of each layer; every layer halves height and width.
        activation: Class of the activation's module.

    Raises:
        OptionError: If a size is no whole number of at least 1, or the image cannot be halved
            that often.

    Example:
        >>> network = ConvEncoder((1, 28, 28), outputs=10)
        >>> network(torch.zeros(20, 784)).shape
        torch.Size([20, 10])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (32, 64),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels = widths("channels", channels)
        smallest = _halvings(image_shape, channels)
        layers: list[nn.Module] = [nn.Unflatten(-1, tuple(image_shape))]
        for here, following in zip((image_shape[0], *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(here, following, 4, stride=2, padding=1), activation()]
        layers += [nn.Flatten(), nn.Linear(math.prod(smallest), positive_int("outputs", outputs))]
        self.network = Folded(nn.Sequential(*layers), event_dim=1)
        glorot_(self)

    def forward(self, x: Float[Tensor, "*lead pixels"]) -> Float[Tensor, "*lead outputs"]:
        """Apply the network to images flattened into the last dimension."""
        return self.network(x)


@final
class ConvDecoder(nn.Module):
    """One linear layer and transposed convolutions of stride 2, from a code to flat images.

    Args:
        inputs: Numbers in, the dimension of the code.
        image_shape: ``(channels, height, width)`` of one image.
        outputs_per_pixel: Numbers out for each value of an image, as the likelihood asks for.
        channels: Feature maps of each layer, the first being nearest to the code.
        activation: Class of the activation's module.

    Raises:
        OptionError: If a size is no whole number of at least 1, or the image cannot be halved
            that often.

    Example:
        >>> network = ConvDecoder(10, (1, 28, 28))
        >>> network(torch.zeros(5, 20, 10)).shape  # 5 particles, 20 data
        torch.Size([5, 20, 784])
    """

    def __init__(
        self,
        inputs: int,
        image_shape: Sequence[int],
        outputs_per_pixel: int = 1,
        channels: Sequence[int] = (64, 32),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels = widths("channels", channels)
        smallest = _halvings(image_shape, channels[::-1])
        self.outputs_per_pixel = positive_int("outputs_per_pixel", outputs_per_pixel)
        layers: list[nn.Module] = [
            nn.Linear(positive_int("inputs", inputs), math.prod(smallest)),
            activation(),
            nn.Unflatten(-1, smallest),
        ]
        last = image_shape[0] * outputs_per_pixel
        for here, following in zip(channels, (*channels[1:], last), strict=True):
            layers += [nn.ConvTranspose2d(here, following, 4, stride=2, padding=1), activation()]
        self.network = Folded(nn.Sequential(*layers[:-1]), event_dim=1)
        glorot_(self)
        # A bias for every value, not only one a channel: the training mean differs by pixel.
        self.output_bias = nn.Parameter(torch.zeros(math.prod(image_shape) * outputs_per_pixel))

    def forward(self, z: Float[Tensor, "*lead inputs"]) -> Float[Tensor, "*lead outputs"]:
        """Apply the network to the last dimension."""
        images = self.network(z)  # (..., channels * outputs_per_pixel, height, width)
        images = images.unflatten(-3, (-1, self.outputs_per_pixel)).movedim(-3, -1)
        return images.flatten(-4) + self.output_bias  # the outputs of one value lie together
