"""How the coordinates of a normal posterior vary together."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

# Imported for what it registers: a full-covariance posterior's KL from a product of normals.
import pyro_models.distributions.kl  # noqa: F401
from pyro_models.errors import OptionError
from pyro_models.networks import bounded_softplus
from pyro_models.options import positive_float


@dataclass(frozen=True)
class Covariance(ABC):
    """Parent of the covariances: they read a network's outputs as a normal distribution."""

    @abstractmethod
    def num_outputs(self, latent_dim: int) -> int:
        """Numbers that the network must give for each datum."""

    @abstractmethod
    def normal(
        self, outputs: Float[Tensor, "*lead outputs"], latent_dim: int
    ) -> TorchDistributionMixin:
        """The distribution, of event shape ``(latent_dim,)``.

        Args:
            outputs: ``(..., num_outputs(latent_dim))``: first the means, then what sets the
                scales, then, where there are correlations, what sets these.
            latent_dim: Dimension of the latent.
        """


def _check_bounds(floor: float, ceiling: float) -> None:
    if positive_float("floor", floor) >= positive_float("ceiling", ceiling):
        raise OptionError(f"floor={floor} is not below ceiling={ceiling}; exchange them")


@final
@dataclass(frozen=True)
class Diagonal(Covariance):
    r"""Independent coordinates, with softplus standard deviations kept between two bounds.

    .. math:: \mathcal N(\mu, \mathrm{diag}(\sigma^2))

    Args:
        floor: Lower bound of the standard deviation.
        ceiling: Upper bound of the part above the floor.

    Raises:
        OptionError: If the bounds are not finite, above 0 and in this order.

    Example:
        >>> Diagonal().normal(torch.zeros(4), latent_dim=2).stddev
        tensor([0.6932, 0.6932])
    """

    floor: float = 1e-4
    ceiling: float = 1e4

    def __post_init__(self) -> None:
        _check_bounds(self.floor, self.ceiling)

    def num_outputs(self, latent_dim: int) -> int:
        """A mean and a scale for each coordinate."""
        return 2 * latent_dim

    def normal(
        self, outputs: Float[Tensor, "*lead outputs"], latent_dim: int
    ) -> TorchDistributionMixin:
        """Independent normals."""
        loc, raw = outputs.split(latent_dim, -1)
        return dist.Normal(loc, bounded_softplus(raw, self.floor, self.ceiling)).to_event(1)


@final
@dataclass(frozen=True)
class Full(Covariance):
    r"""Correlated coordinates, by the Cholesky factor of their covariance.

    .. math:: \mathcal N(\mu, L L^\top)

    with L lower triangular, its diagonal softplus numbers kept between two bounds.

    Args:
        floor: Lower bound of L's diagonal.
        ceiling: Upper bound of the part above the floor.

    Raises:
        OptionError: If the bounds are not finite, above 0 and in this order.

    Example:
        >>> Full().normal(torch.zeros(5), latent_dim=2).scale_tril
        tensor([[0.6932, 0.0000],
                [0.0000, 0.6932]])
    """

    floor: float = 1e-4
    ceiling: float = 1e4

    def __post_init__(self) -> None:
        _check_bounds(self.floor, self.ceiling)

    def num_outputs(self, latent_dim: int) -> int:
        """A mean and a scale for each coordinate, and a number for each pair of them."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def normal(
        self, outputs: Float[Tensor, "*lead outputs"], latent_dim: int
    ) -> TorchDistributionMixin:
        """A multivariate normal."""
        loc, raw, below = outputs.tensor_split((latent_dim, 2 * latent_dim), -1)
        row, column = torch.tril_indices(latent_dim, latent_dim, -1, device=outputs.device)
        tril = torch.diag_embed(bounded_softplus(raw, self.floor, self.ceiling))
        tril[..., row, column] = below  # (..., latent_dim, latent_dim)
        return dist.MultivariateNormal(loc, scale_tril=tril)
