"""What suits data of which nothing is known but their values."""

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    LearnedScale,
    Likelihood,
    Normal,
)
from pyro_models.networks import Standardize


def default_likelihood(x: Float[Tensor, "num_data data_dim"]) -> Likelihood:
    """The likelihood for data of which nothing is known but their values.

    ======================================= ===============================================
    all values are                          likelihood
    ======================================= ===============================================
    0 or 1                                  ``Bernoulli()``
    in [0, 1]                               ``ContinuousBernoulli()``
    whole numbers from 0 up                 refused: counts, categories and grey levels look
                                            alike
    anything else                           ``Normal()``, its scale starting at the data's
    ======================================= ===============================================

    Columns of different units share that scale: standardise them first
    (``data.Standardization``), or choose ``LearnedScale(data_dim=...)``.

    Args:
        x: Data, ``(num_data, data_dim)``.

    Raises:
        OptionError: If the values leave it open.

    Example:
        >>> import torch
        >>> default_likelihood(torch.tensor([[0.0, 0.5]]))
        ContinuousBernoulli()
    """
    if bool(((x == 0) | (x == 1)).all()):
        return Bernoulli()
    low, high = x.min().item(), x.max().item()
    if low >= 0 and high <= 1:
        return ContinuousBernoulli()
    if low >= 0 and bool((x == x.round()).all()):
        raise OptionError(
            f"the data are whole numbers from {low:g} to {high:g}; choose a likelihood: "
            f"likelihoods.Poisson() for counts, likelihoods.Categorical({high + 1:g}) for "
            f"categories, or divide by {high:g} if they are grey levels"
        )
    rows = x.double()
    spread = (rows - rows.mean(0)).square().mean().sqrt().item()
    if not math.isfinite(spread) or spread == 0:
        spread = 1.0
    return Normal(LearnedScale(initial=spread, floor=1e-3 * spread))


def suited(
    x: Float[Tensor, "num_data data_dim"],
    chosen: dict[str, Any],
    default: Callable[[Tensor], Likelihood],
) -> dict[str, Any]:
    """The chosen options, with a likelihood and a preprocessing that suit the data.

    Binarised by ``fit``, grey levels become what Bernoulli explains; ``fit`` checks the outcome.
    """
    likelihood, preprocess = chosen.get("likelihood"), chosen.get("preprocess")
    if likelihood is None:
        likelihood = default(x)
    is_grey = bool(((x >= 0) & (x <= 1)).all())
    if not (isinstance(likelihood, Bernoulli) and is_grey) and isinstance(likelihood, Likelihood):
        likelihood.check(x)
    # Data within [0, 1] are shown to the guide as they are, all others standardised.
    if preprocess is None and not is_grey:
        preprocess = Standardize(x)
    return chosen | {"likelihood": likelihood, "preprocess": preprocess}
