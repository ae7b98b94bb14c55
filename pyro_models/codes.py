"""Latent codes that a decoder can see: their priors, and what of them it sees."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_models.distributions.stick_fractions import log_weights_at
from pyro_models.errors import OptionError
from pyro_models.options import positive_float, positive_int


@dataclass(frozen=True)
class Code(ABC):
    """Parent of the codes: one latent site a datum."""

    @property
    @abstractmethod
    def site(self) -> str:
        """Name of the latent."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers that the decoder sees."""

    @abstractmethod
    def prior(self, like: Tensor) -> TorchDistributionMixin:
        """The distribution of one datum's latent.

        Args:
            like: A parameter, whose type and device it has.
        """

    @abstractmethod
    def features(self, latent: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead width"]:
        """What the decoder sees.

        Args:
            latent: Values of the site.
        """


@final
@dataclass(frozen=True)
class NormalCode(Code):
    r"""A standard normal code, :math:`z \sim \mathcal N(0, I)`, seen as it is.

    Args:
        latent_dim: Dimension of z.

    Raises:
        OptionError: If ``latent_dim`` is no whole number of at least 1.

    Example:
        >>> import torch
        >>> NormalCode(3).prior(torch.zeros(())).event_shape
        torch.Size([3])
    """

    latent_dim: int

    def __post_init__(self) -> None:
        positive_int("latent_dim", self.latent_dim)

    @property
    def site(self) -> str:
        """Name of the latent."""
        return "z"

    @property
    def width(self) -> int:
        """Numbers that the decoder sees."""
        return self.latent_dim

    def prior(self, like: Tensor) -> TorchDistributionMixin:
        """The standard normal."""
        zero = like.new_zeros(self.latent_dim)
        return dist.Normal(zero, 1.0 + zero).to_event(1)

    def features(self, latent: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead width"]:
        """The code itself."""
        return latent


@final
@dataclass(frozen=True)
class StickCode(Code):
    r"""A stick of length one, broken at :math:`v_k \sim \mathrm{Beta}(1, \alpha)`.

    The decoder sees the K pieces :math:`\pi_k = v_k \prod_{j<k} (1 - v_j)`, of which the last
    takes the remainder.

    Args:
        truncation: K, pieces of the stick, at least 2.
        concentration: :math:`\alpha > 0`; about :math:`\alpha` pieces hold most of the stick.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197

    Example:
        >>> import torch
        >>> StickCode(truncation=3).features(torch.tensor([0.5, 0.2]))
        tensor([0.5000, 0.1000, 0.4000])
    """

    truncation: int
    concentration: float = 5.0

    def __post_init__(self) -> None:
        if positive_int("truncation", self.truncation) < 2:
            raise OptionError("truncation=1 leaves nothing to break; give at least 2")
        positive_float("concentration", self.concentration)

    @property
    def site(self) -> str:
        """Name of the latent: the K - 1 fractions in (0, 1)."""
        return "v"

    @property
    def width(self) -> int:
        """Numbers that the decoder sees."""
        return self.truncation

    def prior(self, like: Tensor) -> TorchDistributionMixin:
        """Independent Beta(1, concentration)."""
        one = like.new_ones(self.truncation - 1)
        return dist.Beta(one, self.concentration * one).to_event(1)

    def features(self, latent: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead width"]:
        """The pieces, ``(..., truncation)``; they sum to one."""
        return log_weights_at(latent).exp()
