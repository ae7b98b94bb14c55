"""Concentrations of a Beta or a Kumaraswamy from numbers without bounds, and back."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.networks import bounded_softplus

LEAST, MOST = 1e-2, 1e5
"""Between these a concentration stays."""


def concentration_of(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A concentration that can neither vanish nor overflow, see ``networks.bounded_softplus``.

    Args:
        raw: Any finite numbers.

    Example:
        >>> concentration_of(torch.tensor([-1e30, 0.0, 1e30]))
        tensor([1.0000e-02, 7.0314e-01, 1.0000e+05])
    """
    return bounded_softplus(raw, floor=LEAST, ceiling=MOST)


def raw_concentration(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What ``concentration_of`` makes a value of: its inverse.

    Args:
        value: Numbers between the bounds.

    Example:
        >>> concentration_of(raw_concentration(torch.tensor([0.5, 5.0])))
        tensor([0.5000, 5.0000])
    """
    softened = (value - LEAST) / (1 - (value - LEAST) / MOST)  # softplus of the raw number
    return softened + torch.log(-torch.expm1(-softened))
