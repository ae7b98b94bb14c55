"""Triangular factors of Wishart precision matrices."""

import math
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


@final
class WishartFactor(TorchDistribution):
    r"""The lower triangular factor W of a precision matrix with a Wishart distribution.

    .. math::
        W^\top W = \Lambda \sim \mathrm{Wishart}(\nu, (C C^\top)^{-1}), \qquad
        W = B\, C^{-1}, \quad B_{jj}^2 \sim \chi^2_{\nu - D + j}, \quad
        B_{ij} \sim \mathcal N(0, 1) \text{ for } i > j

    so that :math:`E[\Lambda] = \nu (C C^\top)^{-1}`. Everything is a product of independent normals
    and gammas: nothing is inverted for a density, and gradients flow through draws. A value is the
    D (D + 1) / 2 numbers of W, first the diagonal and then the rows below it (``unpack`` makes the
    matrix), so that torch's transforms know how to put real numbers in their place.

    Args:
        degrees_of_freedom: :math:`\nu > D - 1`, ``(*batch,)``.
        scatter_tril: C, lower triangular with a positive diagonal, ``(*batch, D, D)``.

    References:
        Bartlett 1933, https://doi.org/10.1017/S0370164600021350

    Example:
        >>> p = WishartFactor(torch.tensor(3.0), torch.eye(2))
        >>> p.log_prob(torch.tensor([1.0, 1.0, 0.0]))  # chi with 2 and 3 degrees, a normal's
        tensor(-2.1447)
    """

    arg_constraints: ClassVar = {
        "degrees_of_freedom": constraints.positive,
        "scatter_tril": constraints.lower_cholesky,
    }
    has_rsample = True

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """Positive numbers for the diagonal, real ones below it."""
        dim = self.scatter_tril.shape[-1]
        below = dim * (dim - 1) // 2
        if below == 0:
            return constraints.independent(constraints.positive, 1)
        parts = [constraints.positive, constraints.real]
        return constraints.independent(constraints.cat(parts, -1, [dim, below]), 1)

    def __init__(
        self,
        degrees_of_freedom: Float[Tensor, "*batch"],
        scatter_tril: Float[Tensor, "*factors dim dim"],
        validate_args: bool | None = None,
    ) -> None:
        batch = torch.broadcast_shapes(degrees_of_freedom.shape, scatter_tril.shape[:-2])
        self.degrees_of_freedom = degrees_of_freedom.expand(batch)
        self.scatter_tril = scatter_tril.expand(*batch, -1, -1)
        dim = scatter_tril.shape[-1]
        event = torch.Size((dim * (dim + 1) // 2,))
        super().__init__(batch, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: "WishartFactor | None" = None) -> "WishartFactor":
        """The same distribution with another batch shape."""
        batch = torch.Size(batch_shape)
        return WishartFactor(
            self.degrees_of_freedom.expand(batch),
            self.scatter_tril.expand(*batch, -1, -1),
            validate_args=False,
        )

    def _chi_degrees(self) -> Float[Tensor, "*batch dim"]:
        dim = self.scatter_tril.shape[-1]
        place = torch.arange(dim, device=self.scatter_tril.device) + 1 - dim
        return self.degrees_of_freedom.unsqueeze(-1) + place

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*out numbers"]:
        """Draw; gradients flow to both parameters."""
        shape = torch.Size(sample_shape) + self.batch_shape
        half = 0.5 * self._chi_degrees().expand(*shape, -1)
        dim = half.shape[-1]
        gamma = torch.distributions.Gamma(half, torch.ones_like(half), validate_args=False)
        noise = torch.randn(*shape, dim, dim, dtype=half.dtype, device=half.device)
        b = noise.tril(-1) + (2 * gamma.rsample()).sqrt().diag_embed()
        tril = self.scatter_tril.expand(*shape, -1, -1)
        return pack(torch.linalg.solve_triangular(tril, b, upper=False, left=False))

    def log_prob(self, value: Float[Tensor, "*value numbers"]) -> Float[Tensor, "..."]:
        """Log-density in nats at W, given as its numbers."""
        if self._validate_args:
            self._validate_sample(value)
        dim = self.scatter_tril.shape[-1]
        b = unpack(value) @ self.scatter_tril
        diagonal = b.diagonal(dim1=-2, dim2=-1)
        degrees = self._chi_degrees()
        chi = (degrees - 1) * diagonal.log() + (1 - degrees / 2) * math.log(2)
        chi = (chi - torch.lgamma(degrees / 2)).sum(-1)
        normal = -0.25 * dim * (dim - 1) * math.log(2 * math.pi)
        powers = torch.arange(dim, 0, -1, device=value.device)
        log_det = (powers * self.scatter_tril.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
        return chi + normal + log_det - 0.5 * b.square().sum((-2, -1))


def pack(matrix: Float[Tensor, "*lead dim dim"]) -> Float[Tensor, "*lead numbers"]:
    """The numbers of a lower triangular matrix: its diagonal, then the rows below it.

    Args:
        matrix: ``(..., D, D)``.

    Example:
        >>> pack(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        tensor([1., 2., 3.])
    """
    dim = matrix.shape[-1]
    rows, columns = torch.tril_indices(dim, dim, -1, device=matrix.device)
    return torch.cat([matrix.diagonal(dim1=-2, dim2=-1), matrix[..., rows, columns]], -1)


def unpack(numbers: Float[Tensor, "*lead numbers"]) -> Float[Tensor, "*lead dim dim"]:
    """The lower triangular matrix that ``pack`` took the numbers of.

    Args:
        numbers: ``(..., D (D + 1) / 2)``.

    Example:
        >>> unpack(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[1., 0.],
                [3., 2.]])
    """
    dim = (math.isqrt(8 * numbers.shape[-1] + 1) - 1) // 2
    # One number more, a zero, stands above the diagonal.
    place = [[_place(i, j, dim) for j in range(dim)] for i in range(dim)]
    index = torch.tensor(place, device=numbers.device).flatten()
    padded = torch.nn.functional.pad(numbers, (0, 1))
    return padded.index_select(-1, index).unflatten(-1, (dim, dim))


def _place(i: int, j: int, dim: int) -> int:
    if i == j:
        return i
    return dim + i * (i - 1) // 2 + j if i > j else dim * (dim + 1) // 2
