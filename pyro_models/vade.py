"""Variational deep embedding (VaDE): a variational autoencoder with a mixture as its prior."""

from collections.abc import Sequence
from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.likelihoods import Bernoulli, Likelihood
from pyro_models.likelihoods.parts import check_data, require_likelihood, start_at_mean
from pyro_models.mixture_latents import (
    check_components,
    chosen,
    normal,
    posterior,
    raw_scale,
)
from pyro_models.networks import MLP, as_batch, bounded_softplus
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate


@final
class VaDE(nn.Module):
    r"""A variational autoencoder whose codes come from one of K learned normals.

    .. math::
        k_n \sim \mathrm{Categorical}(\pi), \qquad
        z_n \mid k_n \sim \mathcal N\big(\mu_{k_n}, \mathrm{diag}(\sigma_{k_n}^2)\big), \qquad
        x_n \mid z_n \sim p\big(x \mid \mathrm{decoder}(z_n)\big)

    for n = 1, ..., N, with weights :math:`\pi`, means :math:`\mu` and standard deviations
    :math:`\sigma` learned. Sites: latents ``"component"`` and ``"z"`` and observed ``"x"``, all in
    the plate ``"data"``. The component may be drawn, or take all its values side by side in a
    dimension on the left, as Pyro's parallel enumeration has it.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        num_components: K.
        hidden: Widths of the decoder's hidden layers; ``(200,)`` if not given.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        activation: Class of the decoder's activation.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Jiang, Zheng, Tan, Tang and Zhou 2017, https://arxiv.org/abs/1611.05148

    Example:
        >>> model = VaDE(data_dim=64, latent_dim=5, num_components=10)
        >>> model(num_data=3).shape  # simulate
        torch.Size([3, 64])
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3, 64))  # condition
        >>> trace.nodes["component"]["value"].shape, trace.nodes["z"]["value"].shape
        (torch.Size([3]), torch.Size([3, 5]))
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        num_components: int,
        hidden: Sequence[int] = (200,),
        likelihood: Likelihood | None = None,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_components = positive_int("num_components", num_components)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        require_likelihood(self.likelihood, data_dim)
        self.outputs = data_dim * self.likelihood.outputs_per_dim
        self.decoder = MLP(latent_dim, hidden, self.outputs, activation)
        self.weight_logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, latent_dim))
        self.raw_scales = nn.Parameter(raw_scale(torch.ones(num_components, latent_dim)))

    @property
    def code_dims(self) -> dict[str, int]:
        """Dimension of each continuous latent, by site, in the order that a guide draws them."""
        return {"z": self.latent_dim}

    @property
    def weights(self) -> Float[Tensor, " components"]:
        """The components' probabilities, ``(K,)``."""
        return self.weight_logits.softmax(-1)

    @property
    def scales(self) -> Float[Tensor, "components latent_dim"]:
        """The components' standard deviations, ``(K, latent_dim)``."""
        return bounded_softplus(self.raw_scales)

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
        if x is not None:
            x = as_batch(x, self.data_dim, self.means)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, self.means.device):
            component = pyro.sample("component", dist.Categorical(logits=self.weight_logits))
            means, scales = chosen(self.means, component), chosen(self.scales, component)
            z = pyro.sample("z", normal(means, scales))
            return pyro.sample("x", self.likelihood(self.decoder(z), x), obs=x)

    def component_posterior(self, z: Float[Tensor, "*lead latent_dim"]) -> dist.Categorical:
        r"""The exact p(component | z), of batch shape ``(...)``.

        .. math:: p(k \mid z) \propto \pi_k\, \mathcal N(z \mid \mu_k, \mathrm{diag}(\sigma_k^2))

        Args:
            z: Codes, ``(..., latent_dim)``.

        Example:
            >>> model = VaDE(data_dim=4, latent_dim=1, num_components=2)
            >>> model.set(means=torch.tensor([[0.0], [2.0]]))
            >>> model.component_posterior(torch.tensor([[1.0], [2.0]])).probs.detach()
            tensor([[0.5000, 0.5000],
                    [0.1192, 0.8808]])
        """
        return posterior(self.weight_logits.log_softmax(-1), self.means, self.scales, z)

    def code_prior(self, count: int) -> TorchDistributionMixin:
        """The distribution p(z | component), of batch shape ``(count, K)``.

        Args:
            count: Codes to be drawn for each component.

        Example:
            >>> VaDE(data_dim=4, latent_dim=2, num_components=3).code_prior(8).sample().shape
            torch.Size([8, 3, 2])
        """
        return normal(self.means, self.scales).expand(torch.Size((count, self.num_components)))

    def decode(self, z: Float[Tensor, "*lead latent_dim"]) -> TorchDistributionMixin:
        """The distribution p(x | z), of batch shape ``(...)`` and event shape ``(data_dim,)``.

        Args:
            z: Latent codes, ``(..., latent_dim)``.

        Example:
            >>> model = VaDE(data_dim=4, latent_dim=2, num_components=3)
            >>> model.decode(torch.zeros(5, 2)).mean.shape
            torch.Size([5, 4])
        """
        return self.likelihood(self.decoder(z))

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            x: Data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN or infinite.
            SupportError: If a value lies outside the likelihood's support.
        """
        check_data(self.likelihood, x, self.data_dim, self.means)

    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the decoder's output bias so that it starts at the mean of the data.

        Args:
            x: Training data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        start_at_mean(self.decoder.output_bias, self.likelihood, x, self.data_dim)

    @torch.no_grad()
    def set(
        self,
        weights: Float[Tensor, " components"] | None = None,
        means: Float[Tensor, "components latent_dim"] | None = None,
        scales: Float[Tensor, "components latent_dim"] | None = None,
    ) -> None:
        """Set parameters of the components; those that are not given stay as they are.

        Args:
            weights: Numbers above 0, in proportion to the probabilities, ``(K,)``.
            means: ``(K, latent_dim)``.
            scales: Standard deviations, ``(K, latent_dim)``.

        Raises:
            OptionError: If shapes or values cannot be.

        Example:
            >>> model = VaDE(data_dim=4, latent_dim=1, num_components=2)
            >>> model.set(weights=torch.tensor([3.0, 1.0]), scales=torch.tensor([[0.5], [2.0]]))
            >>> model.weights.detach(), model.scales.detach().flatten()
            (tensor([0.7500, 0.2500]), tensor([0.5000, 2.0000]))
        """
        shape = (self.num_components, self.latent_dim)
        check_components("weights", weights, shape[:1], positive=True)
        check_components("means", means, shape)
        check_components("scales", scales, shape, positive=True)
        if weights is not None:
            self.weight_logits.copy_((weights / weights.sum()).log())
        if means is not None:
            self.means.copy_(means)
        if scales is not None:
            self.raw_scales.copy_(raw_scale(scales))
