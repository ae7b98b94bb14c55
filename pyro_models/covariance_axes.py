"""Covariances without correlations, by their scales."""

from collections.abc import Iterator
from math import log, pi
from typing import final

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.covariance_parameters import Covariances, Moments, differences, zero_moments


@final
class Axes(Covariances):
    """Covariances without correlations, by the inverse scale along each axis.

    Args:
        floor: Least variance.
        num_scales: Scales that a component has: D, or 1 for all dimensions.
        num_components: K.
        data_dim: D.

    Example:
        >>> block = Axes(1e-6, num_scales=1, num_components=1, data_dim=2)
        >>> block.set(4 * torch.eye(2).unsqueeze(0))
        >>> block.scales().detach()
        tensor([[2.0000]])
    """

    def __init__(self, floor: float, num_scales: int, num_components: int, data_dim: int) -> None:
        super().__init__(floor, num_components, data_dim)
        self.raw_diagonal = nn.Parameter(torch.empty(num_components, num_scales))
        with torch.no_grad():
            self.raw_diagonal.copy_(self._raw(torch.full((1, 1), -0.5 * log(max(1.0, floor)))))

    @property
    def num_free_parameters(self) -> int:
        """Degrees of freedom: a number for each scale."""
        return self.raw_diagonal.numel()

    def scales(self) -> Float[Tensor, "components scales"]:
        """Standard deviations, ``(K, D)`` or ``(K, 1)``."""
        return (-self.log_diagonal()).exp()

    def dense(self) -> Float[Tensor, "components data_dim data_dim"]:
        """The covariance matrices, ``(K, D, D)``."""
        return self.expand(self.scales().square())

    def expand(self, compact: Tensor) -> Float[Tensor, "components data_dim data_dim"]:
        """Matrices with these on the diagonal."""
        return torch.diag_embed(compact.expand(-1, self.data_dim))

    def compact(self, dense: Float[Tensor, "components data_dim data_dim"]) -> Tensor:
        """As many of the diagonal as are free."""
        return dense.diagonal(dim1=-2, dim2=-1)[:, : self.raw_diagonal.shape[1]]

    def normal(
        self, loc: Float[Tensor, "*lead data_dim"], component: Int[Tensor, "*lead"]
    ) -> TorchDistributionMixin:
        """Products of normals."""
        # A single component indexes as a number would, which a traced step cannot be asked for.
        scales = self.scales().index_select(0, component.reshape(-1))
        return dist.Normal(loc, scales.reshape(*component.shape, -1)).to_event(1)

    def log_density(
        self,
        x: Float[Tensor, "num_data data_dim"],
        means: Float[Tensor, "components data_dim"],
    ) -> Iterator[tuple[slice, Tensor]]:
        """Log-densities of a few data at a time; the buffer is used again."""
        log_w = self.log_diagonal().detach().expand(-1, self.data_dim)
        inverse = log_w.exp().unsqueeze(-1)  # (K, D, 1)
        constant = log_w.sum(-1, keepdim=True) - 0.5 * self.data_dim * log(2 * pi)
        for part, difference in differences(x, means.detach()):
            white = difference.mul_(inverse).square_()
            yield part, white.sum(1).mul_(-0.5).add_(constant)

    @torch.no_grad()
    def moments(
        self,
        x: Float[Tensor, "num_data data_dim"],
        log_weights: Float[Tensor, "num_data components"],
        centers: Float[Tensor, "components data_dim"],
    ) -> Moments:
        """Weighted sums of differences from the centres, and of their squares."""
        sums = zero_moments(centers)
        for part, difference in differences(x, centers):
            weights = log_weights.T[:, part].exp().unsqueeze(1)  # (K, 1, batch)
            sums.counts.add_(weights.sum((1, 2)))
            sums.first.add_(torch.bmm(weights, difference.mT).squeeze(1))
            sums.second.add_(torch.bmm(weights, difference.square_().mT).squeeze(1))
        return sums

    def pool(self, central: Tensor, counts: Float[Tensor, " components"]) -> Tensor:
        """Each dimension's own, or the mean over dimensions."""
        shared = self.raw_diagonal.shape[1] < self.data_dim
        return central.mean(-1, keepdim=True) if shared else central

    @torch.no_grad()
    def write(self, pooled: Tensor, where: Bool[Tensor, " components"]) -> None:
        """Set the scales, with the floor on variances."""
        log_w = -0.5 * pooled[where].double().clamp_min(self.floor).log()
        self.raw_diagonal[where] = self._raw(log_w).to(self.raw_diagonal.dtype)
