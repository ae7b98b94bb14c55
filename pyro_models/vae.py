"""The variational autoencoder's generative side."""

from collections.abc import Sequence
from typing import final

import pyro
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.likelihoods import Bernoulli, Likelihood
from pyro_models.likelihoods.parts import (
    check_data,
    output_bias_of,
    require_likelihood,
    start_at_mean,
)
from pyro_models.networks import as_batch, first_parameter
from pyro_models.options import positive_int
from pyro_models.own_networks import outputs_of, own_or_perceptron
from pyro_models.priors import StandardNormal
from pyro_models.programs import announce, data_plate


@final
class VAE(nn.Module):
    r"""A deep latent variable model: a network turns a latent code into a likelihood.

    .. math:: z_n \sim p(z), \qquad x_n \mid z_n \sim p\big(x \mid \mathrm{decoder}(z_n)\big)

    for n = 1, ..., N, with :math:`z_n` of dimension ``latent_dim`` and :math:`x_n` of dimension
    ``data_dim``. Sites: latent ``"z"`` and observed ``"x"``, both in the plate ``"data"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        hidden: Widths of the decoder's hidden layers; ``(200,)`` if not given.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        prior: Module that returns the distribution of one z; ``StandardNormal`` if not given.
        activation: Class of the decoder's activation; ``nn.Tanh`` if not given.
        decoder: A network of your own instead of the multilayer perceptron, from
            ``(..., latent_dim)`` to ``(..., data_dim * likelihood.outputs_per_dim)``. If it knows
            one batch dimension only, wrap it in ``networks.Folded``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
        Rezende, Mohamed and Wierstra 2014, https://arxiv.org/abs/1401.4082

    Example:
        >>> model = VAE(data_dim=784, latent_dim=50, hidden=(200, 200))
        >>> model(num_data=3).shape  # simulate
        torch.Size([3, 784])
        >>> x = torch.zeros(3, 784)
        >>> trace = pyro.poutine.trace(model).get_trace(x, num_data=60_000)  # condition
        >>> trace.nodes["z"]["value"].shape, trace.nodes["x"]["is_observed"]
        (torch.Size([3, 50]), True)
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden: Sequence[int] | None = None,
        likelihood: Likelihood | None = None,
        prior: nn.Module | None = None,
        activation: type[nn.Module] | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.prior = StandardNormal(latent_dim) if prior is None else prior
        require_likelihood(self.likelihood, data_dim)
        self._check_prior()
        self.outputs = data_dim * self.likelihood.outputs_per_dim
        sizes = (latent_dim, self.outputs)
        self.decoder = own_or_perceptron("decoder", decoder, sizes, hidden, activation)

    def _check_prior(self) -> None:
        with torch.no_grad():
            event_shape = tuple(self.prior().event_shape)
        if event_shape != (self.latent_dim,):
            raise OptionError(
                f"the prior has event shape {event_shape}, but latent_dim={self.latent_dim} asks "
                f"for ({self.latent_dim},); make them the same"
            )

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images; ``None`` simulates.
            num_data: Size N of the whole set, by which a minibatch is scaled; without data, how
                many to simulate (1 if not given).

        Returns:
            The data, ``(batch, data_dim)``.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        announce(self, "model")
        like = first_parameter(self)
        if x is not None:
            x = as_batch(x, self.data_dim, like)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, like.device):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(self._outputs(z), x), obs=x)

    def _outputs(self, z: Float[Tensor, "*lead latent_dim"]) -> Float[Tensor, "*lead outputs"]:
        return outputs_of("decoder", self.decoder, z, self.outputs, "the likelihood")

    def decode(self, z: Float[Tensor, "*lead latent_dim"]) -> TorchDistributionMixin:
        """The distribution p(x | z), of batch shape ``(...)`` and event shape ``(data_dim,)``.

        Args:
            z: Latent codes, ``(..., latent_dim)``.

        Example:
            >>> VAE(data_dim=4, latent_dim=2).decode(torch.zeros(5, 3, 2)).mean.shape
            torch.Size([5, 3, 4])
        """
        return self.likelihood(self._outputs(z))

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            x: Data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN or infinite.
            SupportError: If a value lies outside the likelihood's support.

        Example:
            >>> from pyro_models.errors import SupportError
            >>> try:
            ...     VAE(data_dim=2, latent_dim=1).check(torch.tensor([[0.0, 0.5]]))
            ... except SupportError as error:
            ...     print(str(error)[:45])
            Bernoulli explains 0 and 1, but x[0, 1] = 0.5
        """
        check_data(self.likelihood, x, self.data_dim, first_parameter(self))

    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the decoder's output bias so that it starts at the mean of the data.

        Args:
            x: Training data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
            OptionError: If the decoder has no ``output_bias`` to set.

        Example:
            >>> model = VAE(data_dim=2, latent_dim=1)
            >>> model.initialize(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
            >>> model.decode(torch.zeros(1, 1)).mean.detach()
            tensor([[0.5000, 0.9990]])
        """
        bias = output_bias_of(self.decoder, self.outputs)
        start_at_mean(bias, self.likelihood, x, self.data_dim)
