"""The bound of a pair with clusters, by the names that the paper gives its terms."""

from dataclasses import dataclass
from typing import Any

from pyro_models.errors import SiteMismatchError
from pyro_models.infer import ELBO
from pyro_models.infer.weights import Program

_COMPONENT, _CODE, _NOISE = "component", "z", "w"


@dataclass(frozen=True)
class ClusterTerms:
    r"""The ELBO's terms, in nats per datum.

    .. math::
        \mathcal L = \mathbb E_q \log p(x \mid z)
            - \mathbb E_{q(w) p(k \mid z, w)} KL\big(q(z \mid x) \| p(z \mid w, k)\big)
            - KL\big(q(w \mid x) \| p(w)\big)
            - \mathbb E_{q(z) q(w)} KL\big(p(k \mid z, w) \| p(k)\big)

    for ``GaussianMixtureVAE``; ``VaDE`` has no w.
    """

    elbo: float
    """Reconstruction less the other terms."""
    reconstruction: float
    """Expected log-likelihood of the data."""
    conditional_prior: float
    """Divergence of the code z from the clusters that it belongs to."""
    w_prior: float | None
    """Divergence of the noise w from its prior; None for a model without it."""
    component_prior: float
    """Divergence of the component from its prior: low where clusters overlap or merge. (The paper
    calls it the z-prior term, z being its name of the component.)"""


def terms(
    model: Program, guide: Program, x: Any, *, num_samples: int = 10, **kwargs: Any
) -> ClusterTerms:
    """Estimate the terms of the bound at draws of the guide, the component summed out.

    Args:
        model: ``GaussianMixtureVAE`` or ``VaDE``, or another with such sites.
        guide: Its guide.
        x: Data, ``(N, ...)``.
        num_samples: Draws of w and z for each datum.
        **kwargs: Given to both programs.

    Raises:
        SiteMismatchError: If the guide does not sample ``"z"`` and ``"component"``.

    References:
        Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648

    Example:
        >>> import torch
        >>> from pyro_models import pairs
        >>> pair = pairs.gmvae(4, latent_dim=2, num_components=3)
        >>> found = terms(pair.model, pair.guide, torch.ones(5, 4))
        >>> parts = found.conditional_prior + found.w_prior + found.component_prior
        >>> abs(found.elbo - (found.reconstruction - parts)) < 1e-4
        True
    """
    objective = ELBO(num_particles=num_samples, summed=(_COMPONENT,))
    found = objective.terms(model, guide, x, **kwargs)
    missing = [name for name in (_CODE, _COMPONENT) if name not in found.kl]
    if missing:
        raise SiteMismatchError(
            f"the guide does not sample {missing}; give a pair such as gmvae or vade, whose "
            'latents are "z" and "component"'
        )
    noise = found.kl.get(_NOISE)
    return ClusterTerms(
        elbo=float(found.elbo),
        reconstruction=float(found.reconstruction),
        conditional_prior=float(found.kl[_CODE]),
        w_prior=None if noise is None else float(noise),
        component_prior=float(found.kl[_COMPONENT]),
    )
