"""What every likelihood is, and the checks of data that they share."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.errors import DataError, SupportError

Rows = Shaped[Tensor, "num_data *datum"]
Outputs = Float[Tensor, "*lead outputs"]

# A mean of exactly 0 or 1 would start an output at infinity.
MEAN_LIMITS = (0.001, 0.999)


class Likelihood(nn.Module, ABC):
    """Parent of the likelihoods: independent data dimensions given the decoder's outputs."""

    outputs_per_dim: int = 1
    """Decoder outputs for each data dimension; those of one dimension lie together."""
    data_dim: int | None = None
    """The only data dimension it fits, if it has parameters for each; ``None`` fits any."""

    @abstractmethod
    def forward(self, outputs: Outputs, x: Tensor | None = None) -> TorchDistributionMixin:
        """The distribution of x given the decoder's outputs.

        Args:
            outputs: ``(..., data_dim * outputs_per_dim)``.
            x: The data that are being explained, where there are some. Only a likelihood that
                adapts itself to them while training looks at it.

        Returns:
            A distribution of batch shape ``(...)`` and event shape ``(data_dim,)``.
        """

    @abstractmethod
    def check(self, x: Rows) -> None:
        """Refuse data that the likelihood gives no density.

        It looks at every value, so it is called once a data set and not in the program.

        Args:
            x: Rows, ``(num_data, ...)``.

        Raises:
            DataError: If there are no data, or some are NaN or infinite.
            SupportError: If a value lies outside the support.
        """

    @abstractmethod
    def initial_bias(self, x: Rows) -> Float[Tensor, " outputs"]:
        """Outputs under which every datum is expected to be the mean of the data.

        Args:
            x: Training data, ``(num_data, ...)``.

        Returns:
            ``(data_dim * outputs_per_dim,)`` in float64.
        """


def data_mean(x: Rows) -> Float[Tensor, " data_dim"]:
    """Mean of each data dimension, in float64."""
    return x.flatten(1).mean(0, dtype=torch.float64)


def _place(bad: Bool[Tensor, "..."], x: Tensor) -> str:
    """The first refused value, as a user would index it."""
    index = tuple(bad.nonzero()[0].tolist())
    return f"x[{', '.join(map(str, index))}] = {x[index].item():g}"


def check_finite(x: Rows) -> None:
    """Refuse data that are empty, complex, NaN or infinite, with a ``DataError``."""
    if x.ndim < 2 or x.numel() == 0:
        raise DataError(
            f"x has shape {tuple(x.shape)}, but data of shape (num_data, data_dim) are expected, "
            "neither of them 0"
        )
    if x.is_complex():
        raise DataError(f"x is {x.dtype}, but data are real numbers; give real and imaginary parts")
    if x.is_floating_point() and not bool((finite := x.isfinite()).all()):
        raise DataError(
            f"{_place(~finite, x)} is not finite; remove such data or fill their gaps first"
        )


def check_support(x: Rows, bad: Bool[Tensor, "..."], who: str, support: str, fix: str) -> None:
    """Refuse data that are ``bad`` anywhere, with a ``SupportError`` that shows the first place."""
    if bool(bad.any()):
        raise SupportError(
            f"{who} explains {support}, but {_place(bad, x)} "
            f"({int(bad.sum())} of {x.numel()} values are outside); {fix}"
        )


def fractional(x: Rows) -> Bool[Tensor, "..."]:
    """Where the data are no whole numbers."""
    return x != x.round() if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)
