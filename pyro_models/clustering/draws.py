"""What a model makes in each of its clusters."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.options import positive_int


@runtime_checkable
class HasClusters(Protocol):
    """A model whose codes come from clusters, and that decodes them."""

    def code_prior(self, count: int) -> Any:
        """The distribution p(z | component), of batch shape ``(count, K)``."""

    def decode(self, z: Tensor) -> Any:
        """The distribution p(x | z)."""


@torch.no_grad()
def cluster_means(model: HasClusters, count: int) -> Float[Tensor, "clusters count data_dim"]:
    """Means of p(x | z) for draws of z from each cluster, ``(K, count, data_dim)``.

    Args:
        model: A model with ``code_prior(count)`` and ``decode(z)``, such as ``GaussianMixtureVAE``
            or ``VaDE``.
        count: Draws for each cluster.

    Raises:
        OptionError: If the model has neither, or ``count`` is no whole number of at least 1.

    Example:
        >>> from pyro_models import pairs
        >>> pair = pairs.gmvae(64, latent_dim=2, num_components=10)
        >>> cluster_means(pair.model, 8).shape
        torch.Size([10, 8, 64])
    """
    positive_int("count", count)
    if not (hasattr(model, "code_prior") and hasattr(model, "decode")):
        raise OptionError(
            f"{type(model).__name__} has no code_prior(count) and decode(z); give a model such as "
            "GaussianMixtureVAE or VaDE"
        )
    z = model.code_prior(count).sample()  # (count, K, latent_dim)
    return model.decode(z).mean.transpose(0, 1)
