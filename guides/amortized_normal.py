"""The variational autoencoder's inference side: a network gives each datum its normal."""

from collections.abc import Sequence
from typing import final

import pyro
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from guides.covariance import Covariance, Diagonal
from pyro_models.errors import DataError, OptionError
from pyro_models.networks import MLP, as_batch, first_parameter
from pyro_models.options import positive_int
from pyro_models.own_networks import outputs_of, own_or_perceptron
from pyro_models.programs import announce, data_plate


@final
class AmortizedNormal(nn.Module):
    r"""A normal posterior whose mean and covariance a network reads off the datum.

    .. math:: q(z_n \mid x_n) = \mathcal N\big(\mu(x_n), \Sigma(x_n)\big)

    Site: ``"z"`` in the plate ``"data"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; ``(200,)`` if not given.
        covariance: ``Diagonal()`` or ``Full()``.
        activation: Class of the encoder's activation; ``nn.Tanh`` if not given.
        encoder: A network of your own instead of the multilayer perceptron, from
            ``(..., data_dim)`` to ``(..., covariance.num_outputs(latent_dim))``.
        preprocess: Module between the data and the encoder, such as ``networks.Standardize(x)``
            for data of another size than 1; by default the encoder sees the data as they are.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Kingma and Welling 2014, https://arxiv.org/abs/1312.6114

    Example:
        >>> guide = AmortizedNormal(data_dim=784, latent_dim=50, hidden=(200, 200))
        >>> guide(torch.zeros(3, 784)).shape
        torch.Size([3, 50])
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden: Sequence[int] | None = None,
        covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
        activation: type[nn.Module] | None = None,
        encoder: nn.Module | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(covariance, Covariance):
            raise OptionError(
                f"covariance={covariance!r} is none; give guides.Diagonal() or guides.Full()"
            )
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.covariance = covariance
        self.outputs = covariance.num_outputs(latent_dim)
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        sizes = (data_dim, self.outputs)
        self.encoder = own_or_perceptron("encoder", encoder, sizes, hidden, activation)
        if encoder is None:
            self._uncorrelate(self.encoder)

    @torch.no_grad()
    def _uncorrelate(self, encoder: nn.Module) -> None:
        """Start correlations, if any, at zero: many random ones would start far from any prior."""
        if isinstance(encoder, MLP):
            encoder.output.weight[2 * self.latent_dim :] = 0

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Float[Tensor, "*lead latent_dim"]:
        """The Pyro program: draw a latent code for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The codes, ``(batch, latent_dim)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        if x is None:
            raise DataError("the guide infers z from data and got none; give x")
        rows = as_batch(x, self.data_dim, first_parameter(self))
        with data_plate(len(rows), num_data, rows.device):
            return pyro.sample("z", self.posterior(rows))

    def posterior(self, x: Float[Tensor, "*lead data_dim"]) -> TorchDistributionMixin:
        """The distribution q(z | x), of batch shape ``(...)`` and event shape ``(latent_dim,)``.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.

        Raises:
            OptionError: If an encoder of your own does not give what the covariance expects.

        Example:
            >>> guide = AmortizedNormal(data_dim=4, latent_dim=2)
            >>> guide.posterior(torch.zeros(5, 3, 4)).mean.shape
            torch.Size([5, 3, 2])
        """
        seen = self.preprocess(x)
        outputs = outputs_of("encoder", self.encoder, seen, self.outputs, self.covariance)
        return self.covariance.normal(outputs, self.latent_dim)
