"""Pairs of networks whose codes lie in clusters: the Gaussian-mixture VAE and VaDE."""

from collections.abc import Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from guides import Covariance, Diagonal, MixtureCodes
from pyro_models.gmvae import GaussianMixtureVAE
from pyro_models.infer import ELBO, Objective
from pyro_models.likelihoods import Likelihood
from pyro_models.pairs.registry import Pair, check_objective, register
from pyro_models.pairs.suited import default_likelihood, suited
from pyro_models.vade import VaDE


def gmvae(
    data_dim: int,
    latent_dim: int = 10,
    num_components: int = 10,
    w_dim: int = 2,
    hidden: Sequence[int] = (200,),
    component_hidden: Sequence[int] = (100,),
    likelihood: Likelihood | None = None,
    covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A Gaussian-mixture variational autoencoder.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        num_components: Clusters, K.
        w_dim: Dimension of w, which says where in its cluster a code lies.
        hidden: Widths of the recognition network's hidden layers; the decoder has them in reverse.
        component_hidden: Widths of the hidden layers of the network from w to the components.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        covariance: ``guides.Diagonal()`` or ``guides.Full()``, of the posteriors of z and w.
        activation: Class of all networks' activation.
        objective: What to maximise; the ELBO with the component summed out if not given.
        preprocess: Module between the data and the recognition network; see
            ``guides.MixtureCodes``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> import torch
        >>> pair = gmvae(64, latent_dim=5, num_components=10)
        >>> pair.guide(torch.zeros(20, 64)).shape
        torch.Size([20])
    """
    check_objective(objective)
    model = GaussianMixtureVAE(
        data_dim,
        latent_dim,
        num_components,
        w_dim,
        tuple(hidden)[::-1],
        component_hidden,
        likelihood,
        activation,
    )
    guide = MixtureCodes(model, hidden, covariance, activation, preprocess)
    return Pair(model, guide, _summed() if objective is None else objective)


def vade(
    data_dim: int,
    latent_dim: int = 10,
    num_components: int = 10,
    hidden: Sequence[int] = (200,),
    likelihood: Likelihood | None = None,
    covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A variational autoencoder with a mixture of normals as its prior (VaDE).

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        num_components: Clusters, K.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        covariance: ``guides.Diagonal()`` or ``guides.Full()``, of the posterior of z.
        activation: Class of both networks' activation.
        objective: What to maximise; the ELBO with the component summed out if not given.
        preprocess: Module between the data and the encoder; see ``guides.MixtureCodes``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> vade(64, latent_dim=5, num_components=10).model(num_data=3).shape
        torch.Size([3, 64])
    """
    check_objective(objective)
    model = VaDE(data_dim, latent_dim, num_components, tuple(hidden)[::-1], likelihood, activation)
    guide = MixtureCodes(model, hidden, covariance, activation, preprocess)
    return Pair(model, guide, _summed() if objective is None else objective)


def _summed() -> Objective:
    return ELBO(summed=("component",))


@register("gmvae", gmvae)
def _gmvae_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    return _started(gmvae(x.shape[1], **suited(x, chosen, default_likelihood)), x)


@register("vade", vade)
def _vade_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    return _started(vade(x.shape[1], **suited(x, chosen, default_likelihood)), x)


def _started(pair: Pair, x: Float[Tensor, "num_data data_dim"]) -> Pair:
    pair.model.to(x)
    pair.guide.to(x)
    cast(GaussianMixtureVAE | VaDE, pair.model).initialize(x)
    return pair
