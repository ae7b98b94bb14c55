"""What the models with a mixture of normals as a prior of z share: choice, densities, scales."""

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_models.errors import OptionError

# The bounds of `networks.bounded_softplus`, between which the components' scales lie.
FLOOR, CEILING = 1e-4, 1e4


def chosen(
    values: Float[Tensor, "*lead components latent_dim"], component: Int[Tensor, "*index"]
) -> Float[Tensor, "*broadcast latent_dim"]:
    """The values of the component that each datum has, for draws and for enumerated values alike.

    Args:
        values: Of every component, ``(..., K, latent_dim)``.
        component: Which ones; its shape broadcasts with the leading dimensions of ``values``, and
            may have more of them, such as one in which all K stand side by side.

    Example:
        >>> chosen(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1, 1])).flatten()
        tensor([1., 2., 2.])
        >>> every = torch.arange(2).unsqueeze(-1)  # (K, 1): each value for all data
        >>> chosen(torch.zeros(5, 2, 3), every).shape
        torch.Size([2, 5, 3])
    """
    lead = torch.broadcast_shapes(values.shape[:-2], component.shape)
    every = values.expand(*lead, *values.shape[-2:])
    index = component.expand(lead)[..., None, None].expand(*lead, 1, values.shape[-1])
    return every.gather(-2, index).squeeze(-2)


def normal(
    means: Float[Tensor, "*lead latent_dim"], scales: Float[Tensor, "*lead latent_dim"]
) -> TorchDistributionMixin:
    """Independent normals, of event shape ``(latent_dim,)``."""
    return dist.Normal(means, scales).to_event(1)


def posterior(
    log_weights: Float[Tensor, " components"],
    means: Float[Tensor, "*lead components latent_dim"],
    scales: Float[Tensor, "*lead components latent_dim"],
    z: Float[Tensor, "*codes latent_dim"],
) -> dist.Categorical:
    r"""Bayes' rule for the component of a code, in log space.

    .. math:: p(k \mid z) = \frac{\pi_k\, \mathcal N(z \mid \mu_k, \mathrm{diag}(\sigma_k^2))}
        {\sum_j \pi_j\, \mathcal N(z \mid \mu_j, \mathrm{diag}(\sigma_j^2))}

    Args:
        log_weights: :math:`\log \pi`, ``(K,)``.
        means: :math:`\mu`, ``(..., K, latent_dim)``.
        scales: :math:`\sigma`, of the same shape.
        z: Codes, ``(..., latent_dim)``.

    Example:
        >>> means, scales = torch.tensor([[0.0], [2.0]]), torch.ones(2, 1)
        >>> posterior(torch.zeros(2), means, scales, torch.tensor([[1.0]])).probs
        tensor([[0.5000, 0.5000]])
    """
    densities = normal(means, scales).log_prob(z.unsqueeze(-2))  # (..., K)
    return dist.Categorical(logits=log_weights + densities)


def raw_scale(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What ``networks.bounded_softplus`` turns into a scale.

    Args:
        scale: Scales; they are first brought between the bounds.

    Example:
        >>> from pyro_models.networks import bounded_softplus
        >>> bounded_softplus(raw_scale(torch.tensor([0.1, 1.0, 20.0])))
        tensor([ 0.1000,  1.0000, 20.0000])
    """
    above = scale.double().clamp(2 * FLOOR, CEILING / 2) - FLOOR
    softened = above / (1 - above / CEILING)
    return (softened + (-torch.expm1(-softened)).log()).to(scale)


def check_components(
    name: str, values: Tensor | None, shape: tuple[int, ...], positive: bool = False
) -> None:
    """Refuse parameters of the components that cannot be set.

    Args:
        name: What they are called.
        values: What is to be set; ``None`` sets nothing.
        shape: The shape that they must have.
        positive: Whether they must be above zero.

    Raises:
        OptionError: If they are of another shape, not finite, or not above zero.
    """
    if values is None:
        return
    if tuple(values.shape) != shape:
        raise OptionError(
            f"{name} have shape {tuple(values.shape)}, but {shape} is expected; give a row for "
            "each component"
        )
    if not bool(values.isfinite().all()) or (positive and not bool((values > 0).all())):
        kind = "finite numbers above 0" if positive else "finite numbers"
        raise OptionError(f"{name} hold something else than {kind}; give such numbers only")
