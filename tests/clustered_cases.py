"""Small pairs with three clusters, and what their bounds are by hand: loops and quadrature."""

import math
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from torch import Tensor

from guides import MixtureCodes
from pyro_models.gmvae import GaussianMixtureVAE
from pyro_models.vade import VaDE

K, NUM_DATA, DIM = 3, 4, 2
NODES = 60


def small_gmvae(latent_dim: int = 1) -> tuple[GaussianMixtureVAE, MixtureCodes, Tensor]:
    """Three clusters of unequal weights, with one noise w, in double precision."""
    pyro.set_rng_seed(3)
    model = GaussianMixtureVAE(
        DIM, latent_dim, K, 1, (4,), (5,), weights=torch.tensor([0.2, 0.3, 0.5])
    )
    model.double()
    model.log_weights.copy_(model.log_weights.log_softmax(-1))  # to the last digit of a double
    return model, MixtureCodes(model, (4,)).double(), data()


def small_vade(latent_dim: int = 1) -> tuple[VaDE, MixtureCodes, Tensor]:
    """Three clusters of unequal weights and scales, in double precision."""
    pyro.set_rng_seed(4)
    model = VaDE(DIM, latent_dim, K, (4,))
    model.set(torch.tensor([0.2, 0.3, 0.5]), scales=torch.rand(K, latent_dim) + 0.5)
    return model.double(), MixtureCodes(model, (4,)).double(), data()


def data() -> Tensor:
    return torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def log_normal(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Of independent coordinates, written out."""
    squares = ((z - mean) / scale) ** 2
    return -(squares / 2 + scale.log() + math.log(2 * math.pi) / 2).sum(-1)


def component_joint(model: GaussianMixtureVAE | VaDE, z: Tensor, w: Tensor | None) -> Tensor:
    """log p(component) + log p(z | w, component), ``(..., K)``, a component at a time."""
    if isinstance(model, GaussianMixtureVAE):
        means, scales = model.component_parameters(w)  # type: ignore[arg-type]
    else:
        means, scales = model.means, model.scales
    return torch.stack(
        [
            model.weights[k].log() + log_normal(z, means[..., k, :], scales[..., k, :])
            for k in range(model.num_components)
        ],
        dim=-1,
    )


@dataclass(frozen=True)
class Terms:
    """The terms of the bound, of each datum."""

    reconstruction: Tensor
    z: Tensor
    w: Tensor
    component: Tensor

    @property
    def elbo(self) -> Tensor:
        return self.reconstruction - self.z - self.w - self.component


def terms_at(
    model: GaussianMixtureVAE | VaDE,
    guide: MixtureCodes,
    x: Tensor,
    z: Tensor,
    w: Tensor | None,
) -> Terms:
    """The four terms of equation 42 at given codes, the component summed by a loop."""
    q = guide.posterior(x)
    logits = model.decoder(z)
    reconstruction = (x * logits - torch.log1p(logits.exp())).sum(-1)
    joint = component_joint(model, z, w)
    log_share = joint - joint.exp().sum(-1, keepdim=True).log()
    log_q = log_normal(z, q["z"].mean, q["z"].stddev)
    kl_z, kl_component = torch.zeros_like(log_q), torch.zeros_like(log_q)
    for k in range(model.num_components):
        share, log_weight = log_share[..., k].exp(), model.weights[k].log()
        kl_z = kl_z + share * (log_q - (joint[..., k] - log_weight))
        kl_component = kl_component + share * (log_share[..., k] - log_weight)
    kl_w = torch.zeros_like(log_q)
    if "w" in q:
        mean, scale = q["w"].mean, q["w"].stddev
        kl_w = kl_w + ((mean**2 + scale**2 - 1) / 2 - scale.log()).sum(-1)
    return Terms(reconstruction, kl_z, kl_w, kl_component)


def by_quadrature(model: GaussianMixtureVAE | VaDE, guide: MixtureCodes, x: Tensor) -> Terms:
    """The expectations over w and z, each of one dimension, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    nodes, share = torch.tensor(points), torch.tensor(weights / math.sqrt(2 * math.pi))
    q = guide.posterior(x)
    z = q["z"].mean + q["z"].stddev * nodes.reshape(-1, 1, 1, 1)  # (NODES, 1, N, 1)
    if "w" not in q:
        found, grid = terms_at(model, guide, x, z[:, 0], None), share[:, None]
        return Terms(*((grid * term).sum(0) for term in _fields(found)))
    w = q["w"].mean + q["w"].stddev * nodes.reshape(1, -1, 1, 1)
    z, w = z.expand(NODES, NODES, -1, -1), w.expand(NODES, NODES, -1, -1)
    found, grid = terms_at(model, guide, x, z, w), (share[:, None] * share)[..., None]
    return Terms(*((grid * term).sum((0, 1)) for term in _fields(found)))


def _fields(terms: Terms) -> tuple[Tensor, ...]:
    return terms.reconstruction, terms.z, terms.w, terms.component


def by_quadrature_of_shares(
    model: GaussianMixtureVAE | VaDE, guide: MixtureCodes, x: Tensor
) -> Tensor:
    """E[p(component | z, w)], ``(N, K)``, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    nodes, share = torch.tensor(points), torch.tensor(weights / math.sqrt(2 * math.pi))
    q = guide.posterior(x)
    z = q["z"].mean + q["z"].stddev * nodes.reshape(-1, 1, 1, 1)
    w, grid = None, share[:, None, None, None]
    if "w" in q:
        w = (q["w"].mean + q["w"].stddev * nodes.reshape(1, -1, 1, 1)).expand(NODES, -1, -1, -1)
        z, grid = z.expand(-1, NODES, -1, -1), grid * share[None, :, None, None]
    joint = component_joint(model, z, w).exp()
    return (grid * joint / joint.sum(-1, keepdim=True)).sum((0, 1)).detach()
