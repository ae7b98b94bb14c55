"""Fractions that a Pyro site holds as numbers v, which rounding must not make 0 or 1."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.distributions.kumaraswamy import Logs
from pyro_models.distributions.stick_breaking import log_weights_of_sticks, logs_of


def inside(v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Clip to the numbers of the type that lie strictly between 0 and 1.

    Args:
        v: Any numbers; those outside get no gradient.

    Example:
        >>> inside(torch.tensor([0.0, 0.5, 1.0])) == torch.tensor([0.0, 0.5, 1.0])
        tensor([False,  True, False])
    """
    limits = torch.finfo(v.dtype)
    return v.clamp(limits.tiny, 1 - limits.eps / 2)


def logs_inside(v: Float[Tensor, "*shape"]) -> Logs:
    """The two logarithms of fractions; of 0 and 1 those of the nearest number inside.

    Args:
        v: Numbers from 0 to 1.

    Example:
        >>> logs_inside(torch.tensor(1.0))
        Logs(log_v=tensor(-5.9605e-08), log1m_v=tensor(-16.6355))
    """
    return logs_of(inside(v))


def log_weights_at(v: Float[Tensor, "*lead sticks"]) -> Float[Tensor, "*lead pieces"]:
    """Logarithms of the weights that sticks leave, which rounding never makes infinite.

    Args:
        v: The fractions broken off, ``(..., K - 1)``.

    Returns:
        ``(..., K)``; the last piece takes the remainder.

    Example:
        >>> log_weights_at(torch.tensor([0.5, 1.0])).exp()
        tensor([5.0000e-01, 5.0000e-01, 2.9802e-08])
    """
    return log_weights_of_sticks(logs_inside(v))
