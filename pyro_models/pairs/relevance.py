"""How many latent dimensions data ask for, by automatic relevance determination."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pyro_models.bayesian_ppca import BayesianPPCA
from pyro_models.errors import DataError
from pyro_models.infer import em

_MOST = 64
_EPOCHS, _TOLERANCE = 500, 1e-5


@dataclass(frozen=True)
class Relevance:
    r"""What Bayesian PCA makes of each latent dimension, those of most variance first."""

    precision: Float[Tensor, " latent_dim"]
    r""":math:`\mathbb E[\alpha_j]`, the precision of column j of W; large where it is off."""
    num_active: int
    """How many columns are longer than their uncertainty makes them."""


def relevance(x: Float[Tensor, "num_data data_dim"]) -> Relevance | None:
    """Fit Bayesian PCA with as many latents as there can be, and see which it keeps.

    Args:
        x: Data, of which no more than 64 latents are asked.

    Returns:
        The verdict; None for data that the model does not take: one column, or missing values.

    References:
        Bishop 1999, "Bayesian PCA", https://papers.nips.cc/paper/1549

    Example:
        >>> import torch
        >>> from pyro_models.pairs.relevance import relevance
        >>> x = torch.randn(200, 1) * torch.tensor([2.0, 1.0, -1.0, 0.0]) + torch.randn(200, 4) / 2
        >>> relevance(x).num_active
        1
    """
    data_dim = x.shape[1]
    if data_dim < 2:
        return None
    model = BayesianPPCA(data_dim, min(data_dim - 1, _MOST)).to(x)
    try:
        model.initialize(x)
    except DataError:
        return None
    em(model, x, epochs=_EPOCHS, tolerance=_TOLERANCE, seed=0, progress=False)
    precision = model.expected_precision
    return Relevance(precision.sort().values, model.active_dimensions())
