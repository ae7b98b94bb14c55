"""Pairs of networks: the variational autoencoder and the sigmoid belief network."""

from collections.abc import Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from guides import AmortizedBernoulli, AmortizedNormal, Covariance, Diagonal
from pyro_models.belief_network import SigmoidBeliefNetwork
from pyro_models.infer import ELBO, VIMCO, Objective
from pyro_models.likelihoods import Bernoulli, Likelihood
from pyro_models.options import widths
from pyro_models.pairs.registry import Pair, check_objective, register
from pyro_models.pairs.suited import default_likelihood, suited
from pyro_models.vae import VAE


def vae(
    data_dim: int,
    latent_dim: int = 2,
    hidden: Sequence[int] = (200,),
    likelihood: Likelihood | None = None,
    covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
    prior: nn.Module | None = None,
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A variational autoencoder.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        covariance: ``guides.Diagonal()`` or ``guides.Full()``, of the posterior.
        prior: Module that returns the distribution of one z; ``StandardNormal`` if not given.
        activation: Class of both networks' activation.
        objective: What to maximise; ``ELBO()`` if not given.
        preprocess: Module between the data and the encoder; see ``guides.AmortizedNormal``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> import torch
        >>> vae(784, latent_dim=50, hidden=(200, 200)).guide(torch.zeros(20, 784)).shape
        torch.Size([20, 50])
    """
    check_objective(objective)
    guide = AmortizedNormal(
        data_dim, latent_dim, hidden, covariance, activation, preprocess=preprocess
    )
    model = VAE(data_dim, latent_dim, tuple(hidden)[::-1], likelihood, prior, activation)
    return Pair(model, guide, ELBO() if objective is None else objective)


def belief_network(
    data_dim: int,
    latent_dim: int | Sequence[int] = 200,
    hidden: Sequence[int] = (),
    likelihood: Likelihood | None = None,
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A sigmoid belief network: layers of binary latents.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Binary units; of several layers, one number each, from the data up.
        hidden: Widths of the deterministic layers between two stochastic ones, as the guide has
            them; the model has them in reverse. ``()`` is the linear network of the papers,
            ``(200, 200)`` with ``latent_dim=200`` the nonlinear one.
        likelihood: What the outputs of the data's layer mean; ``Bernoulli()`` if not given.
        activation: Class of the deterministic layers' activation.
        objective: What to maximise; ``VIMCO(num_particles=5)`` if not given.
        preprocess: Module between the data and the guide; see ``guides.AmortizedBernoulli``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> pair = belief_network(784, latent_dim=(200, 100), hidden=(50,))
        >>> pair.model.latent_dims
        (200, 100)
    """
    check_objective(objective)
    dims = (latent_dim,) if isinstance(latent_dim, int) else widths("latent_dim", latent_dim)
    hidden = widths("hidden", hidden)
    guide = AmortizedBernoulli(data_dim, dims, hidden, activation, preprocess)
    model = SigmoidBeliefNetwork(data_dim, dims, hidden[::-1], likelihood, activation)
    return Pair(model, guide, VIMCO(num_particles=5) if objective is None else objective)


@register("vae", vae)
def _vae_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    pair = vae(x.shape[1], **suited(x, chosen, default_likelihood))
    pair.model.to(x)
    pair.guide.to(x)
    cast(VAE, pair.model).initialize(x)
    return pair


@register("belief_network", belief_network)
def _belief_network_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    pair = belief_network(x.shape[1], **suited(x, chosen, lambda _: Bernoulli()))
    pair.model.to(x)
    pair.guide.to(x)
    cast(SigmoidBeliefNetwork, pair.model).initialize(x)
    cast(AmortizedBernoulli, pair.guide).initialize(x)
    return pair
