"""What holds the parameters of normal components' covariance matrices.

Both kinds of parameters here are free real numbers, fit for gradient descent, and are set exactly
by a closed-form M-step. Passes over data for the E- and M-step take a few data at a time, into
buffers that stay in the processor's cache, and only ever look at differences from a mean: sums of
squares from which squared means are subtracted afterwards lose all digits in float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import log
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional

from pyro_models.errors import OptionError
from pyro_models.options import positive_int

# Numbers in one buffer of a pass: within a core's cache on a processor, and enough to keep a GPU
# busy.
_CPU_BUFFER = 2**17
_GPU_BUFFER = 2**26

# Gradient descent may go below the floor by this factor in log W, so that what the M-step puts at
# the floor is well inside.
_MARGIN = log(2)


class Moments(NamedTuple):
    """Weighted sums over data around a centre for each component, in float64."""

    counts: Tensor
    """Sum of responsibilities, ``(K,)``."""
    first: Tensor
    """Sum of differences from the centre, ``(K, D)``."""
    second: Tensor
    """Sum of their products ``(K, D, D)``, or of their squares ``(K, D)``."""


def zero_moments(centers: Float[Tensor, "components data_dim"], *products: int) -> Moments:
    """Sums over no data; second moments get the further dimensions ``products``."""
    zeros = torch.zeros_like(centers, dtype=torch.float64)
    second = zeros.new_zeros(*centers.shape, *products)
    return Moments(zeros.new_zeros(len(centers)), zeros, second)


def differences(
    x: Float[Tensor, "num_data data_dim"], centers: Float[Tensor, "components data_dim"]
) -> Iterator[tuple[slice, Tensor]]:
    """Go through the data a few at a time, with their differences from every centre.

    Args:
        x: Data, ``(N, D)``.
        centers: ``(K, D)``.

    Yields:
        Which data, and ``x - center`` as ``(K, D, batch)``, in a buffer that the next ones reuse.

    Example:
        >>> [(part, d.shape) for part, d in differences(torch.zeros(5, 2), torch.zeros(3, 2))]
        [(slice(0, 5, None), torch.Size([3, 2, 5]))]
    """
    budget = _CPU_BUFFER if x.device.type == "cpu" else _GPU_BUFFER
    size = min(len(x), max(16, budget // max(1, centers.numel())))
    buffer = x.new_empty(*centers.shape, size)
    for start in range(0, len(x), size):
        part = slice(start, min(start + size, len(x)))
        if part.stop - start < size:
            buffer = x.new_empty(*centers.shape, part.stop - start)
        # (D, batch) - (K, D, 1); along the data all is contiguous.
        torch.sub(x[part].T.contiguous(), centers.unsqueeze(-1), out=buffer)
        yield part, buffer


class Covariances(nn.Module, ABC):
    """Parent of what holds the covariances' parameters.

    Args:
        floor: Least variance in any direction.
        num_components: K.
        data_dim: D.
    """

    raw_diagonal: nn.Parameter

    def __init__(self, floor: float, num_components: int, data_dim: int) -> None:
        super().__init__()
        self.floor = floor
        self.num_components = positive_int("num_components", num_components)
        self.data_dim = positive_int("data_dim", data_dim)
        self.ceiling = _MARGIN - 0.5 * log(floor)  # of log W

    def log_diagonal(self) -> Float[Tensor, "*shape"]:
        """log W on the diagonal: it may take any value below a ceiling that the floor sets."""
        return self.ceiling - functional.softplus(self.ceiling - self.raw_diagonal)

    def _raw(self, log_diagonal: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The inverse of ``log_diagonal``."""
        below = (self.ceiling - log_diagonal).clamp_min(1e-3)
        return self.ceiling - (below + (-torch.expm1(-below)).log())

    @property
    @abstractmethod
    def num_free_parameters(self) -> int:
        """Degrees of freedom."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "components data_dim data_dim"]:
        """The covariance matrices, ``(K, D, D)``."""

    @abstractmethod
    def normal(
        self, loc: Float[Tensor, "*lead data_dim"], component: Int[Tensor, "*lead"]
    ) -> TorchDistributionMixin:
        """The normal distributions of some components, of event shape ``(D,)``.

        Args:
            loc: Their means, ``(..., D)``.
            component: Which they are, ``(...)``.
        """

    @abstractmethod
    def log_density(
        self,
        x: Float[Tensor, "num_data data_dim"],
        means: Float[Tensor, "components data_dim"],
    ) -> Iterator[tuple[slice, Tensor]]:
        """Go through the data, with log-densities under every component, without gradients.

        Args:
            x: Data, ``(N, D)``.
            means: Of the components, ``(K, D)``.

        Yields:
            Which data, and their log-densities, ``(K, batch)``.
        """

    @abstractmethod
    def moments(
        self,
        x: Float[Tensor, "num_data data_dim"],
        log_weights: Float[Tensor, "num_data components"],
        centers: Float[Tensor, "components data_dim"],
    ) -> Moments:
        """Weighted sums over the data of differences from the centres, and their squares."""

    @abstractmethod
    def pool(self, central: Tensor, counts: Float[Tensor, " components"]) -> Tensor:
        """What the best covariances without a floor are, of each component's central moments.

        Args:
            central: Mean product ``(K, D, D)`` or square ``(K, D)`` of differences from the mean.
            counts: What each component explains, ``(K,)``.
        """

    @abstractmethod
    def write(self, pooled: Tensor, where: Bool[Tensor, " components"]) -> None:
        """Set covariances to what ``pool`` gave, with the floor.

        Args:
            pooled: From ``pool``.
            where: The components to set.
        """

    @abstractmethod
    def compact(self, dense: Float[Tensor, "components data_dim data_dim"]) -> Tensor:
        """Dense matrices in the form that ``pool`` gives, by leaving out what is not free."""

    @torch.no_grad()
    def set(self, covariances: Float[Tensor, "components data_dim data_dim"]) -> None:
        """Set the parameters to these matrices, with the floor.

        Args:
            covariances: Positive definite, ``(K, D, D)``, of the form that the option allows.

        Raises:
            OptionError: If shape, symmetry, definiteness or form are wrong.
        """
        shape = (self.num_components, self.data_dim, self.data_dim)
        if covariances.shape != shape:
            raise OptionError(
                f"covariances have shape {tuple(covariances.shape)}, but {shape} is expected; "
                "give one matrix a component, as torch.diag_embed makes of variances"
            )
        dense = covariances.double()
        size = dense.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[:, None, None]
        _, failed = torch.linalg.cholesky_ex(dense)
        if bool(failed.any()) or bool(((dense - dense.mT).abs() > 1e-5 * size).any()):
            raise OptionError("covariances must be symmetric and positive definite; these are not")
        compact = self.compact(dense)
        if bool(((self.expand(compact) - dense).abs() > 1e-5 * size).any()):
            raise OptionError(
                "covariances are not of the form that the model's option allows (Tied: all equal; "
                "Diagonal: zeros off the diagonal; Spherical: a number times the identity); "
                "change them, or the option"
            )
        self.write(compact, torch.ones(shape[0], dtype=torch.bool, device=dense.device))

    @abstractmethod
    def expand(self, compact: Tensor) -> Float[Tensor, "components data_dim data_dim"]:
        """The dense matrices of the form that ``pool`` gives."""

    @torch.no_grad()
    def reorder(self, order: Int[Tensor, " components"]) -> None:
        """Put the components in another order.

        Args:
            order: The present index of each, ``(K,)``.
        """
        for parameter in self.parameters():
            if len(parameter) == self.num_components:  # and not one that all share
                parameter.copy_(parameter[order])
