"""The Gaussian-mixture variational autoencoder's generative side."""

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
from pyro_models.priors import StandardNormal
from pyro_models.programs import announce, data_plate

# How far the start of the components depends on w, once they are set.
_SMALL = 0.1


@final
class GaussianMixtureVAE(nn.Module):
    r"""A variational autoencoder whose prior is a mixture that a noise w bends.

    .. math::
        w_n \sim \mathcal N(0, I), \qquad k_n \sim \mathrm{Categorical}(\pi), \qquad
        z_n \mid w_n, k_n \sim \mathcal N\big(\mu_{k_n}(w_n; \beta),
        \mathrm{diag}(\sigma^2_{k_n}(w_n; \beta))\big), \qquad
        x_n \mid z_n \sim p\big(x \mid \mathrm{decoder}(z_n)\big)

    for n = 1, ..., N. One network :math:`\beta` reads means :math:`\mu` and standard deviations
    :math:`\sigma` of all K components off w, so that a cluster need not be normal: w says where in
    its cluster a code lies. Sites: latents ``"w"``, ``"component"`` and ``"z"`` and observed
    ``"x"``, all in the plate ``"data"``. The component may be drawn, or take all its values side
    by side in a dimension on the left, as Pyro's parallel enumeration has it.

    The paper calls x what is z here, y what is x here, and z the component.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        num_components: K.
        w_dim: Dimension of w.
        hidden: Widths of the decoder's hidden layers.
        component_hidden: Widths of the hidden layers of :math:`\beta`.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        activation: Class of both networks' activation.
        weights: :math:`\pi`, ``(K,)``, in proportion and not learned; equal ones if not given.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648

    Example:
        >>> model = GaussianMixtureVAE(data_dim=64, latent_dim=5, num_components=10, w_dim=2)
        >>> model(num_data=3).shape  # simulate
        torch.Size([3, 64])
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3, 64))  # condition
        >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("w", "component", "z")}
        {'w': (3, 2), 'component': (3,), 'z': (3, 5)}
    """

    log_weights: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        num_components: int,
        w_dim: int = 2,
        hidden: Sequence[int] = (200,),
        component_hidden: Sequence[int] = (100,),
        likelihood: Likelihood | None = None,
        activation: type[nn.Module] = nn.Tanh,
        weights: Float[Tensor, " components"] | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_components = positive_int("num_components", num_components)
        self.w_dim = positive_int("w_dim", w_dim)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        require_likelihood(self.likelihood, data_dim)
        self.outputs = data_dim * self.likelihood.outputs_per_dim
        self.decoder = MLP(latent_dim, hidden, self.outputs, activation)
        self.w_prior = StandardNormal(w_dim)
        size = 2 * num_components * latent_dim
        self.components = MLP(w_dim, component_hidden, size, activation)
        check_components("weights", weights, (num_components,), positive=True)
        share = torch.ones(num_components) if weights is None else weights.detach().double()
        log_weights = (share / share.sum()).log().to(torch.get_default_dtype())
        self.register_buffer("log_weights", log_weights)
        with torch.no_grad():
            # With zero biases all components would start in one place.
            start = self._bias()
            start[0] = torch.randn(num_components, latent_dim)
            start[1] = raw_scale(torch.ones(num_components, latent_dim))

    def _bias(self) -> Float[Tensor, "two components latent_dim"]:
        """A view of the output bias of beta: first means, then what sets scales."""
        return self.components.output_bias.view(2, self.num_components, self.latent_dim)

    @property
    def code_dims(self) -> dict[str, int]:
        """Dimension of each continuous latent, by site, in the order that a guide draws them."""
        return {"w": self.w_dim, "z": self.latent_dim}

    @property
    def weights(self) -> Float[Tensor, " components"]:
        """The components' probabilities, ``(K,)``."""
        return self.log_weights.exp()

    def component_parameters(
        self, w: Float[Tensor, "*lead w_dim"]
    ) -> tuple[
        Float[Tensor, "*lead components latent_dim"], Float[Tensor, "*lead components latent_dim"]
    ]:
        """Means and standard deviations of all components, each ``(..., K, latent_dim)``.

        Args:
            w: Noise, ``(..., w_dim)``.

        Example:
            >>> model = GaussianMixtureVAE(4, latent_dim=2, num_components=3, w_dim=1)
            >>> means, scales = model.component_parameters(torch.zeros(5, 1))
            >>> means.shape, scales.shape
            (torch.Size([5, 3, 2]), torch.Size([5, 3, 2]))
        """
        shape = (*w.shape[:-1], 2, self.num_components, self.latent_dim)
        means, raw = self.components(w).reshape(shape).unbind(-3)
        return means, bounded_softplus(raw)

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
            x = as_batch(x, self.data_dim, self.components.output_bias)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, self.log_weights.device):
            w = pyro.sample("w", self.w_prior())
            component = pyro.sample("component", dist.Categorical(logits=self.log_weights))
            means, scales = self.component_parameters(w)
            z = pyro.sample("z", normal(chosen(means, component), chosen(scales, component)))
            return pyro.sample("x", self.likelihood(self.decoder(z), x), obs=x)

    def component_posterior(
        self, z: Float[Tensor, "*lead latent_dim"], w: Float[Tensor, "*lead w_dim"]
    ) -> dist.Categorical:
        r"""The exact :math:`p_\beta(\text{component} \mid z, w)`, of batch shape ``(...)``.

        .. math::
            p_\beta(k \mid z, w) = \frac{\pi_k\, \mathcal N\big(z \mid \mu_k(w; \beta),
            \mathrm{diag}(\sigma_k^2(w; \beta))\big)}{\sum_j \pi_j\, \mathcal N\big(z \mid
            \mu_j(w; \beta), \mathrm{diag}(\sigma_j^2(w; \beta))\big)}

        Args:
            z: Codes, ``(..., latent_dim)``.
            w: Noise, ``(..., w_dim)``.

        Example:
            >>> model = GaussianMixtureVAE(4, latent_dim=2, num_components=3, w_dim=1)
            >>> model.component_posterior(torch.zeros(5, 2), torch.zeros(5, 1)).probs.shape
            torch.Size([5, 3])
        """
        means, scales = self.component_parameters(w)
        return posterior(self.log_weights, means, scales, z)

    def code_prior(self, count: int) -> TorchDistributionMixin:
        """The distribution p(z | component, w) at ``count`` draws of w, of shape ``(count, K)``.

        Args:
            count: How many draws.

        Example:
            >>> GaussianMixtureVAE(4, latent_dim=2, num_components=3).code_prior(8).sample().shape
            torch.Size([8, 3, 2])
        """
        w = self.w_prior().sample(torch.Size((count,)))
        return normal(*self.component_parameters(w))

    def decode(self, z: Float[Tensor, "*lead latent_dim"]) -> TorchDistributionMixin:
        """The distribution p(x | z), of batch shape ``(...)`` and event shape ``(data_dim,)``.

        Args:
            z: Latent codes, ``(..., latent_dim)``.

        Example:
            >>> model = GaussianMixtureVAE(data_dim=4, latent_dim=2, num_components=3)
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
        check_data(self.likelihood, x, self.data_dim, self.components.output_bias)

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
        means: Float[Tensor, "components latent_dim"],
        scales: Float[Tensor, "components latent_dim"],
    ) -> None:
        r"""Start the components at given places: they become the output biases of :math:`\beta`.

        The output weights of :math:`\beta` become a tenth of what they are, so that w moves the
        components little at first.

        Args:
            means: ``(K, latent_dim)``.
            scales: Standard deviations, ``(K, latent_dim)``.

        Raises:
            OptionError: If shapes or values cannot be.

        Example:
            >>> model = GaussianMixtureVAE(4, latent_dim=1, num_components=2, w_dim=1)
            >>> model.set(means=torch.tensor([[0.0], [2.0]]), scales=torch.full((2, 1), 0.5))
            >>> [p.detach().flatten() for p in model.component_parameters(torch.zeros(1))]
            [tensor([0., 2.]), tensor([0.5000, 0.5000])]
        """
        shape = (self.num_components, self.latent_dim)
        check_components("means", means, shape)
        check_components("scales", scales, shape, positive=True)
        self.components.output.weight.mul_(_SMALL)
        bias = self._bias()
        bias[0] = means
        bias[1] = raw_scale(scales)
