"""How the covariance matrices of normal components may vary."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from pyro_models.covariance_axes import Axes
from pyro_models.covariance_parameters import Covariances
from pyro_models.covariance_triangular import Triangular
from pyro_models.options import positive_float


@dataclass(frozen=True)
class Covariance(ABC):
    """Parent of the covariances of a model's normal components.

    Not to be confused with ``guides.Full`` and ``guides.Diagonal``, which read a posterior off a
    network.

    Args:
        floor: Least variance in any direction, in the data's squared units. Where the best
            covariance has less, the M-step raises those eigenvalues to the floor, which is the
            exact maximum under that constraint; gradient descent is kept from going far below.

    Raises:
        OptionError: If the floor is not a finite number above 0.
    """

    floor: float = 1e-6

    def __post_init__(self) -> None:
        positive_float("floor", self.floor)

    @abstractmethod
    def make(self, num_components: int, data_dim: int) -> Covariances:
        """The parameters of K components in D dimensions, all with unit covariance at first."""

    @abstractmethod
    def least_count(self, data_dim: int) -> int:
        """Data that a component needs so that its own covariance is regular."""


@final
@dataclass(frozen=True)
class Full(Covariance):
    """Each component has any covariance: K D (D + 1) / 2 numbers.

    Example:
        >>> Full().make(3, 4).num_free_parameters
        30
    """

    def make(self, num_components: int, data_dim: int) -> Covariances:
        """A triangular matrix a component."""
        return Triangular(self.floor, num_components, num_components, data_dim)

    def least_count(self, data_dim: int) -> int:
        """A simplex."""
        return data_dim + 1


@final
@dataclass(frozen=True)
class Tied(Covariance):
    """All components share one covariance: D (D + 1) / 2 numbers.

    Example:
        >>> Tied().make(3, 4).num_free_parameters
        10
    """

    def make(self, num_components: int, data_dim: int) -> Covariances:
        """One triangular matrix."""
        return Triangular(self.floor, 1, num_components, data_dim)

    def least_count(self, data_dim: int) -> int:
        """The others have enough."""
        return 1


@final
@dataclass(frozen=True)
class Diagonal(Covariance):
    """Each component has its own variance in each dimension and no correlation: K D numbers.

    Example:
        >>> Diagonal().make(3, 4).num_free_parameters
        12
    """

    def make(self, num_components: int, data_dim: int) -> Covariances:
        """A scale for each dimension of each component."""
        return Axes(self.floor, data_dim, num_components, data_dim)

    def least_count(self, data_dim: int) -> int:
        """Two points."""
        return 2


@final
@dataclass(frozen=True)
class Spherical(Covariance):
    """Each component has one variance for all dimensions and no correlation: K numbers.

    Example:
        >>> Spherical().make(3, 4).num_free_parameters
        3
    """

    def make(self, num_components: int, data_dim: int) -> Covariances:
        """A scale for each component."""
        return Axes(self.floor, 1, num_components, data_dim)

    def least_count(self, data_dim: int) -> int:
        """Two points."""
        return 2
