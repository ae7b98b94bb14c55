r"""The conjugate belief about a normal's mean and precision, in closed form.

.. math::
    \Lambda \sim \mathrm{Wishart}(\nu, (C C^\top)^{-1}), \qquad
    \mu \mid \Lambda \sim \mathcal N\big(m, (\beta \Lambda)^{-1}\big)

Formulas are those of Bishop 2006, chapter 10.2. Everything is computed in float64: differences of
large log-gammas would lose a float32.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_EMPTY = 1e-10  # fewer data than this have no mean


class NormalWishart(NamedTuple):
    """Beliefs about K normals in D dimensions."""

    strength: Float[Tensor, " components"]
    """β: so many data the belief about the mean is worth."""
    mean: Float[Tensor, "components dim"]
    """m."""
    degrees_of_freedom: Float[Tensor, " components"]
    """ν."""
    scatter_tril: Float[Tensor, "components dim dim"]
    """C."""


def _half_log_det(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _halves(belief: NormalWishart) -> Tensor:
    """(ν + 1 - i) / 2 for i = 1, ..., D: ``(K, D)``."""
    dim = belief.mean.shape[-1]
    place = torch.arange(dim, device=belief.mean.device)
    return 0.5 * (belief.degrees_of_freedom.unsqueeze(-1) - place)


def _distances(
    belief: NormalWishart, x: Float[Tensor, "rows dim"]
) -> Float[Tensor, "rows components"]:
    """Squared lengths of C^-1 (x - m)."""
    found = []
    for mean, tril in zip(belief.mean, belief.scatter_tril, strict=True):
        white = torch.linalg.solve_triangular(tril, (x - mean).mT, upper=False)
        found.append(white.square().sum(0))
    return torch.stack(found, -1)


def expected_log_density(
    belief: NormalWishart, x: Float[Tensor, "rows dim"]
) -> Float[Tensor, "rows components"]:
    r"""The mean of a datum's log-density under each belief.

    .. math::
        E[\log \mathcal N(x \mid \mu, \Lambda^{-1})] = \tfrac12\big(E\log|\Lambda| - D \log 2\pi
        - D/\beta - \nu\, \lVert C^{-1}(x - m) \rVert^2\big)
    """
    dim = x.shape[-1]
    log_det = torch.digamma(_halves(belief)).sum(-1) + dim * math.log(2)
    log_det = log_det - 2 * _half_log_det(belief.scatter_tril)
    constant = log_det - dim * math.log(2 * math.pi) - dim / belief.strength
    return 0.5 * (constant - belief.degrees_of_freedom * _distances(belief, x))


def log_predictive(
    belief: NormalWishart, x: Float[Tensor, "rows dim"]
) -> Float[Tensor, "rows components"]:
    r"""The log-density of a datum with mean and precision integrated out: a Student's t.

    .. math::
        \mathrm{St}_{\nu + 1 - D}\Big(x \,\Big|\, m,
            \tfrac{\beta + 1}{\beta (\nu + 1 - D)} C C^\top\Big)
    """
    dim = x.shape[-1]
    degrees = belief.degrees_of_freedom + 1 - dim
    factor = (belief.strength + 1) / belief.strength
    log_norm = torch.lgamma((degrees + dim) / 2) - torch.lgamma(degrees / 2)
    log_norm = log_norm - 0.5 * dim * (math.pi * factor).log() - _half_log_det(belief.scatter_tril)
    return log_norm - 0.5 * (degrees + dim) * (_distances(belief, x) / factor).log1p()


def update(
    prior: NormalWishart,
    x: Float[Tensor, "rows dim"],
    responsibilities: Float[Tensor, "rows components"],
) -> NormalWishart:
    r"""The belief after so much of each datum has been seen.

    .. math::
        \beta = \beta_0 + N_k, \quad \nu = \nu_0 + N_k, \quad
        m = \frac{\beta_0 m_0 + N_k \bar x_k}{\beta}, \quad
        C C^\top = C_0 C_0^\top + N_k S_k
            + \frac{\beta_0 N_k}{\beta} (\bar x_k - m_0)(\bar x_k - m_0)^\top
    """
    counts = responsibilities.sum(0)
    strength = prior.strength + counts
    means = (responsibilities.mT @ x) / counts.clamp_min(_EMPTY).unsqueeze(-1)
    means = torch.where(counts.unsqueeze(-1) > _EMPTY, means, prior.mean)
    shift = means - prior.mean
    trils = []
    for k in range(len(counts)):
        deviations = (x - means[k]) * responsibilities[:, k : k + 1].sqrt()
        pull = (prior.strength[k] * counts[k] / strength[k]).sqrt() * shift[k]
        # The factor of a sum of squares by QR, in which squares never are formed.
        rows = torch.cat([prior.scatter_tril[k].mT, pull.unsqueeze(0), deviations])
        upper = torch.linalg.qr(rows, mode="r").R
        trils.append((upper * upper.diagonal().sign().unsqueeze(-1)).mT)
    mean = prior.mean + (counts / strength).unsqueeze(-1) * shift
    return NormalWishart(strength, mean, prior.degrees_of_freedom + counts, torch.stack(trils))


def divergence(belief: NormalWishart, prior: NormalWishart) -> Float[Tensor, " components"]:
    """KL of each belief from the prior, in nats."""
    dim = belief.mean.shape[-1]
    nu, nu0 = belief.degrees_of_freedom, prior.degrees_of_freedom
    ratio = prior.strength / belief.strength
    shift = (belief.mean - prior.mean).unsqueeze(-1)
    white = torch.linalg.solve_triangular(belief.scatter_tril, shift, upper=False)
    of_mean = dim * (ratio - 1 - ratio.log())
    of_mean = of_mean + prior.strength * nu * white.square().sum((-2, -1))
    relative = torch.linalg.solve_triangular(belief.scatter_tril, prior.scatter_tril, upper=False)
    halves, halves0 = _halves(belief), _halves(prior)
    gammas = (torch.lgamma(halves0) - torch.lgamma(halves)).sum(-1)
    of_precision = (nu - nu0) / 2 * torch.digamma(halves).sum(-1) + gammas
    of_precision = of_precision + nu / 2 * (relative.square().sum((-2, -1)) - dim)
    return 0.5 * of_mean + of_precision - nu0 * _half_log_det(relative)
