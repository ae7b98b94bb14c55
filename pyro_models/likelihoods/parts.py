"""What models do with a likelihood that they are given as a part: fit it, check data, start."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.likelihoods.base import Likelihood
from pyro_models.networks import as_batch


def require_likelihood(likelihood: object, data_dim: int) -> None:
    """Refuse what is no likelihood, or one with parameters for other data.

    Args:
        likelihood: What the user gave.
        data_dim: Numbers a datum.

    Raises:
        OptionError: If it does not fit.
    """
    if not isinstance(likelihood, Likelihood):
        raise OptionError(
            f"likelihood={likelihood!r} is no likelihood; give one of "
            "pyro_models.likelihoods, such as likelihoods.Bernoulli()"
        )
    if likelihood.data_dim not in (None, data_dim):
        raise OptionError(
            f"the likelihood has parameters for {likelihood.data_dim} dimensions, but "
            f"data_dim={data_dim}; make them the same"
        )


def check_data(
    likelihood: Likelihood, x: Shaped[Tensor, "num_data *datum"], data_dim: int, like: Tensor
) -> None:
    """Refuse data of which a likelihood cannot explain a value, or of another shape or type.

    Args:
        likelihood: The likelihood.
        x: Data, ``(num_data, data_dim)`` or images.
        data_dim: Numbers a datum.
        like: A parameter, whose type and device the data must have.

    Raises:
        DataError: If shape, type or device do not fit, or a value is NaN or infinite.
        SupportError: If a value lies outside the likelihood's support.
    """
    as_batch(x[:1], data_dim, like)
    likelihood.check(x)


def output_bias_of(decoder: nn.Module, outputs: int) -> nn.Parameter:
    """The decoder's parameter that :func:`start_at_mean` sets.

    Args:
        decoder: The built-in network or the user's own.
        outputs: How many numbers it has.

    Raises:
        OptionError: If the decoder has no ``output_bias``.
    """
    bias = getattr(decoder, "output_bias", None)
    if not isinstance(bias, nn.Parameter):
        raise OptionError(
            "the decoder has no output_bias to start at the training mean; give it a "
            f"parameter of that name with {outputs} elements"
        )
    return bias


@torch.no_grad()
def start_at_mean(
    bias: Float[Tensor, " outputs"],
    likelihood: Likelihood,
    x: Shaped[Tensor, "num_data *datum"],
    data_dim: int,
) -> None:
    """Set a network's output bias so that it starts at the mean of the data.

    Args:
        bias: The bias, changed in place.
        likelihood: What the network's outputs mean.
        x: Training data, ``(num_data, data_dim)`` or images.
        data_dim: Numbers a datum.

    Raises:
        DataError: If shape, type or device of ``x`` do not fit.
    """
    as_batch(x[:1], data_dim, bias)
    bias.copy_(likelihood.initial_bias(x))
