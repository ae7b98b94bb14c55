"""Covariances with correlations, by triangular factors of their inverses."""

from collections.abc import Iterator
from math import log, pi
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.covariance_parameters import Covariances, Moments, differences, zero_moments
from pyro_models.distributions.precision_normal import PrecisionNormal


def whitener(
    covariance: Float[Tensor, "*batch dim dim"], floor: float
) -> Float[Tensor, "*batch dim dim"]:
    r"""The lower triangular W with :math:`W^\top W = \Sigma^{-1}`, of Σ with a floor.

    .. math:: \Sigma = V \max(\Lambda, \mathrm{floor})\, V^\top

    for the given :math:`V \Lambda V^\top`: of all covariances whose eigenvalues are at least the
    floor, it has the highest expected log-density. It cannot fail on finite numbers: where
    Cholesky's factorisation would, eigenvalues and a QR factorisation take its place.

    Args:
        covariance: Symmetric, in float64; rounding may have left it indefinite.
        floor: Least eigenvalue.

    Example:
        >>> whitener(torch.diag(torch.tensor([4.0, 0.0]).double()), floor=0.01)
        tensor([[ 0.5000,  0.0000],
                [ 0.0000, 10.0000]], dtype=torch.float64)
    """
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    _, below = torch.linalg.cholesky_ex(covariance - floor * eye)
    tril, failed = torch.linalg.cholesky_ex(covariance)
    factor = torch.linalg.solve_triangular(tril, eye.expand_as(tril), upper=False)
    bad = (below != 0) | (failed != 0)
    if bool(bad.any()):
        values, vectors = torch.linalg.eigh(covariance[bad])
        root = vectors.mT * values.clamp_min(floor).rsqrt().unsqueeze(-1)  # rootᵀ root = Σ⁻¹
        # With the columns reversed QR gives R, and W is R with rows and columns reversed.
        upper = torch.linalg.qr(root.flip(-1))[1]
        lower = upper.flip(-1, -2)
        factor[bad] = lower * lower.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)
    return factor.tril()


@final
class Triangular(Covariances):
    r"""Covariances by the triangular W with :math:`W^\top W = \Sigma^{-1}`.

    Args:
        floor: Least eigenvalue.
        num_matrices: How many there are: K, or 1 that all components share.
        num_components: K.
        data_dim: D.

    Example:
        >>> block = Triangular(1e-6, num_matrices=1, num_components=2, data_dim=2)
        >>> block.set(torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]).expand(2, 2, 2))
        >>> block.dense()[0].detach()
        tensor([[2.0000, 1.0000],
                [1.0000, 2.0000]])
    """

    def __init__(self, floor: float, num_matrices: int, num_components: int, data_dim: int) -> None:
        super().__init__(floor, num_components, data_dim)
        below = data_dim * (data_dim - 1) // 2
        self.raw_diagonal = nn.Parameter(torch.empty(num_matrices, data_dim))
        self.below = nn.Parameter(torch.zeros(num_matrices, below))
        with torch.no_grad():
            self.raw_diagonal.copy_(self._raw(torch.full((1, 1), -0.5 * log(max(1.0, floor)))))

    @property
    def num_free_parameters(self) -> int:
        """Degrees of freedom: a symmetric matrix each."""
        return len(self.raw_diagonal) * self.data_dim * (self.data_dim + 1) // 2

    def factor(self) -> Float[Tensor, "matrices data_dim data_dim"]:
        """W, ``(K, D, D)``, or ``(1, D, D)`` if it is shared."""
        row, column = torch.tril_indices(
            self.data_dim, self.data_dim, -1, device=self.raw_diagonal.device
        )
        factor = torch.diag_embed(self.log_diagonal().exp())
        factor[:, row, column] = self.below
        return factor

    def dense(self) -> Float[Tensor, "components data_dim data_dim"]:
        """The covariance matrices, ``(K, D, D)``."""
        zero = self.raw_diagonal.new_zeros(self.data_dim)
        matrices = PrecisionNormal(zero, self.factor(), validate_args=False).covariance_matrix
        return self.expand(matrices)

    def expand(self, compact: Tensor) -> Float[Tensor, "components data_dim data_dim"]:
        """One matrix a component."""
        return compact.expand(self.num_components, -1, -1)

    def compact(self, dense: Float[Tensor, "components data_dim data_dim"]) -> Tensor:
        """As many matrices as are free."""
        return dense[: len(self.raw_diagonal)]

    def normal(
        self, loc: Float[Tensor, "*lead data_dim"], component: Int[Tensor, "*lead"]
    ) -> TorchDistributionMixin:
        """Normals by the factors of their precisions."""
        factor = self.factor()
        return PrecisionNormal(loc, factor[component] if len(factor) > 1 else factor[0])

    def log_density(
        self,
        x: Float[Tensor, "num_data data_dim"],
        means: Float[Tensor, "components data_dim"],
    ) -> Iterator[tuple[slice, Tensor]]:
        """Log-densities of a few data at a time; the buffer is used again."""
        factor = self.factor().detach().expand(self.num_components, -1, -1).contiguous()
        log_det = self.log_diagonal().detach().sum(-1, keepdim=True)
        constant = log_det - 0.5 * self.data_dim * log(2 * pi)
        white = x.new_empty(0)
        for part, difference in differences(x, means.detach()):
            if white.shape != difference.shape:
                white = torch.empty_like(difference)
            torch.bmm(factor, difference, out=white)
            yield part, white.square_().sum(1).mul_(-0.5).add_(constant)

    @torch.no_grad()
    def moments(
        self,
        x: Float[Tensor, "num_data data_dim"],
        log_weights: Float[Tensor, "num_data components"],
        centers: Float[Tensor, "components data_dim"],
    ) -> Moments:
        """Weighted sums of differences from the centres, and of their products."""
        sums = zero_moments(centers, self.data_dim)
        products = x.new_empty(*centers.shape, self.data_dim)
        for part, difference in differences(x, centers):
            root = log_weights.T[:, part].mul(0.5).exp_()  # (K, batch)
            difference.mul_(root.unsqueeze(1))
            sums.counts.add_(root.square().sum(-1))
            sums.first.add_(torch.bmm(root.unsqueeze(1), difference.mT).squeeze(1))
            sums.second.add_(torch.bmm(difference, difference.mT, out=products))
        return sums

    def pool(self, central: Tensor, counts: Float[Tensor, " components"]) -> Tensor:
        """Each its own, or the mean over data."""
        if len(self.raw_diagonal) == self.num_components:
            return central
        weights = counts / counts.sum()
        return torch.einsum("k,kde->de", weights, central).unsqueeze(0)

    @torch.no_grad()
    def write(self, pooled: Tensor, where: Bool[Tensor, " components"]) -> None:
        """Set the factors, with the floor on eigenvalues."""
        if len(self.raw_diagonal) < self.num_components:
            where = where.any(0, keepdim=True)
        factor = whitener(pooled[where].double(), self.floor)
        row, column = torch.tril_indices(self.data_dim, self.data_dim, -1, device=factor.device)
        log_diagonal = factor.diagonal(dim1=-2, dim2=-1).log()
        self.raw_diagonal[where] = self._raw(log_diagonal).to(self.raw_diagonal.dtype)
        self.below[where] = factor[:, row, column].to(self.below.dtype)
