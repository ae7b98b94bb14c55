"""Priors p(z) of latent variables, as modules that return a distribution."""

from typing import final

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.options import positive_int


@final
class StandardNormal(nn.Module):
    r"""The standard normal prior.

    .. math:: z \sim \mathcal N(0, I)

    Args:
        latent_dim: Dimension of z.

    Raises:
        OptionError: If ``latent_dim`` is no whole number of at least 1.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        # Buffers follow the module to its device and type, and are no part of its state.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        """The distribution of one z, with event shape ``(latent_dim,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)
