"""E- and M-steps of linear Gaussian models: exact posteriors, and regressions on latents.

Everything of size latent_dim x latent_dim is computed in double precision whatever the parameters'
type; nothing of size data_dim x data_dim is formed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_models.errors import NonFiniteError
from pyro_models.second_moments import Moments, chunks

# Numbers in the matrices of a chunk of data with missing values.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class LinearGaussianPosterior:
    """The exact posterior p(z | x) of each datum, with log p(x) from the same pass."""

    mean: Float[Tensor, "num_data latent_dim"]
    """Its mean."""
    scale_tril: Float[Tensor, "*own latent_dim latent_dim"]
    """Lower Cholesky factor of its covariance: one for all data if none of their values is missing,
    else one for each, ``(num_data, latent_dim, latent_dim)``."""
    log_prob: Float[Tensor, "*each"]
    """log p(x_n), ``(num_data,)``; of condensed data, their mean."""

    @property
    def covariance(self) -> Float[Tensor, "*own latent_dim latent_dim"]:
        """Its covariance."""
        return self.scale_tril @ self.scale_tril.mT

    def distribution(self) -> TorchDistributionMixin:
        """As a distribution of batch shape ``(num_data,)`` and event shape ``(latent_dim,)``."""
        return dist.MultivariateNormal(self.mean, scale_tril=self.scale_tril)


class Projection(NamedTuple):
    r"""The posterior of z for complete data: :math:`\mathcal N(P (x - \mu), T T^\top)`."""

    matrix: Float[Tensor, "latent_dim data_dim"]
    """P."""
    scale_tril: Float[Tensor, "latent_dim latent_dim"]
    """T, lower triangular with a positive diagonal."""


def projection(
    loadings: Float[Tensor, "data_dim latent_dim"], noise: Float[Tensor, " data_dim"]
) -> Projection:
    r"""How a linear Gaussian model infers z.

    .. math:: T T^\top = (I + W^\top \Psi^{-1} W)^{-1}, \qquad P = T T^\top W^\top \Psi^{-1}

    By a QR decomposition of I stacked on :math:`\Psi^{-1/2} W`, which never squares their sizes.

    Args:
        loadings: W.
        noise: The diagonal of :math:`\Psi`.

    Example:
        >>> matrix, tril = projection(torch.tensor([[1.0], [0.0]]), torch.ones(2))
        >>> matrix.float(), round(tril.item() ** 2, 6)  # the posterior of z is N(x_1 / 2, 1 / 2)
        (tensor([[0.5000, 0.0000]]), 0.5)
    """
    scale = noise.double().sqrt()
    identity = torch.eye(loadings.shape[1], dtype=torch.float64, device=loadings.device)
    # With the columns in reverse, the inverse of the upper factor becomes a lower one.
    stacked = torch.cat([identity, loadings.double() / scale[:, None]]).flip(-1)
    basis, upper = torch.linalg.qr(stacked)
    sign = upper.diagonal().sign().detach()
    inverse = torch.linalg.solve_triangular(upper * sign[:, None], identity, upper=True)
    matrix = inverse @ (basis[len(identity) :] * sign).mT / scale
    # Adding zero makes a nought of minus nought.
    return Projection(matrix.flip(0) + 0.0, inverse.flip(0, 1))


def infer(
    x: Float[Tensor, "num_data data_dim"] | Moments,
    mean: Float[Tensor, " data_dim"],
    loadings: Float[Tensor, "data_dim latent_dim"],
    noise: Float[Tensor, " data_dim"],
) -> LinearGaussianPosterior:
    r"""The E-step: the exact posterior of z, and

    .. math::
        -2 \log p(x) = \log \det (2 \pi \Psi) + \log \det (I + W^\top \Psi^{-1} W)
            + \min_z \Big[ (x - \mu - W z)^\top \Psi^{-1} (x - \mu - W z) + z^\top z \Big]

    over the dimensions that were seen. The minimum is at the posterior's mean, so that errors of
    that mean count by their square only.

    Args:
        x: Data, NaN where missing, or condensed data.
        mean: The :math:`\mu`.
        loadings: W.
        noise: The diagonal of :math:`\Psi`.
    """
    if isinstance(x, Moments):
        wide = (mean.double(), loadings.double(), noise.double())
        deviations = x.values - x.ones[:, None] * wide[0]
        run = _complete if x.complete else _missing
        found, quadratic, constant = run(deviations, *wide[1:])
        # The constant is that of a datum; a condensed row stands for many or none.
        total = quadratic.sum() / x.num_data
        total = total + (constant if x.complete else constant.sum() / x.num_data)
        return LinearGaussianPosterior(found[0], found[1], -0.5 * total)
    run = _complete if is_complete(x) else _missing
    found, quadratic, constant = run(x - mean, loadings, noise)
    return LinearGaussianPosterior(found[0], found[1], -0.5 * (quadratic + constant))


def is_complete(x: Tensor) -> bool:
    """Whether nothing is missing; while a step is traced, ``False``: its graph serves all data.

    Args:
        x: Data.

    Example:
        >>> is_complete(torch.tensor([1.0, torch.nan]))
        False
    """
    return not (torch.compiler.is_compiling() or bool(x.isnan().any()))


_Found = tuple[tuple[Tensor, Tensor], Tensor, Tensor]


def _complete(
    deviations: Float[Tensor, "rows data_dim"],
    loadings: Float[Tensor, "data_dim latent_dim"],
    noise: Float[Tensor, " data_dim"],
) -> _Found:
    matrix, tril = projection(loadings, noise)
    constant = noise.double().log().sum() - 2 * tril.diagonal().log().sum()
    constant = constant + len(noise) * math.log(2 * math.pi)
    matrix = matrix.to(deviations)
    means, quadratics = [], []
    for part in chunks(deviations):
        mean = part @ matrix.mT
        residual = part - mean @ loadings.mT
        quadratics.append((residual.square() / noise).sum(-1) + mean.square().sum(-1))
        means.append(mean)
    scale_tril = tril.to(deviations)
    return (torch.cat(means), scale_tril), torch.cat(quadratics), constant.to(deviations)


def _missing(
    deviations: Float[Tensor, "rows data_dim"],
    loadings: Float[Tensor, "data_dim latent_dim"],
    noise: Float[Tensor, " data_dim"],
) -> _Found:
    weights, psi = loadings.double(), noise.double()
    scaled = weights / psi[:, None]  # (data_dim, latent_dim)
    squares = (scaled[:, :, None] * weights[:, None, :]).flatten(1)  # (data_dim, latent_dim²)
    constants = psi.log() + math.log(2 * math.pi)
    parts = []
    for part in chunks(deviations, max(1, _CHUNK // weights.shape[1] ** 2) * len(psi)):
        seen = ~part.isnan()
        values = torch.where(seen, part, 0).double()
        share = seen.double()
        tril = _inverse_root((share @ squares).unflatten(-1, weights.shape[1:] * 2))
        mean = (tril @ (tril.mT @ (values @ scaled).unsqueeze(-1))).squeeze(-1)
        residual = share * (values - mean @ weights.mT)
        quadratic = (residual.square() / psi).sum(-1) + mean.square().sum(-1)
        constant = share @ constants - 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        parts.append((mean, tril, quadratic, constant))
    mean, tril, quadratic, constant = (
        torch.cat(list(column)).to(deviations) for column in zip(*parts, strict=True)
    )
    return (mean, tril), quadratic, constant


def _inverse_root(
    gram: Float[Tensor, "rows latent_dim latent_dim"],
) -> Float[Tensor, "rows latent_dim latent_dim"]:
    """The lower T with T T' = (I + gram)^-1."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    precision = identity + gram
    scale = precision.detach().diagonal(dim1=-2, dim2=-1).rsqrt()
    scaled = scale[:, :, None] * precision * scale[:, None, :]
    root = cholesky(scaled.flip(-1, -2))
    inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
    return scale[:, :, None] * inverse.flip(-1, -2).mT


def cholesky(matrix: Float[Tensor, "*rows dim dim"]) -> Float[Tensor, "*rows dim dim"]:
    """Lower Cholesky factors, or an error that says what to do.

    Args:
        matrix: Positive definite.

    Raises:
        NonFiniteError: If one is not.

    Example:
        >>> cholesky(torch.tensor([[4.0]]))
        tensor([[2.]])
    """
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError as error:
        raise NonFiniteError(
            "a covariance of the latents is singular to rounding or not finite; look for values "
            "of very different sizes (standardise the columns), raise floor, or use double()"
        ) from error


class LatentStatistics(NamedTuple):
    r"""Means per datum of what the M-step needs; :math:`\tilde z = (z, 1)`, x less a fixed centre.

    The dimension ``own`` is 1 if nothing is missing, else data_dim.
    """

    seen: Float[Tensor, " data_dim"]
    """Share of the data in which a dimension was seen."""
    squares: Float[Tensor, " data_dim"]
    """Of x_d², where seen."""
    cross: Float[Tensor, "data_dim augmented"]
    """Of x_d E z̃, where seen."""
    outer: Float[Tensor, "own augmented augmented"]
    """Of E z̃ E z̃', where x_d was seen."""
    covariance: Float[Tensor, "own latent_dim latent_dim"]
    """Of Cov z, where x_d was seen."""
    latent: Float[Tensor, "augmented augmented"]
    """Of E z̃ z̃', over data of which something was seen."""


def statistics(
    x: Float[Tensor, "num_data data_dim"] | Moments,
    posterior: LinearGaussianPosterior,
    centre: Float[Tensor, " data_dim"],
) -> LatentStatistics:
    """Average what the M-step needs.

    Args:
        x: Data, NaN where missing, or condensed data.
        posterior: The E-step's.
        centre: What is taken from the data, so that nothing cancels.
    """
    values, ones, num_data = _as_rows(x)
    covariance = posterior.covariance.double()
    mean = torch.cat([posterior.mean.double(), ones[:, None]], 1)
    values = values - ones[:, None] * centre.double()
    if covariance.ndim == 2:
        outer = (mean.mT @ mean)[None] / num_data
        return LatentStatistics(
            seen=torch.ones_like(centre, dtype=torch.float64),
            squares=values.square().sum(0) / num_data,
            cross=values.mT @ mean / num_data,
            outer=outer,
            covariance=covariance[None],
            latent=outer[0] + _padded(covariance),
        )
    seen = ~values.isnan()
    share = seen.double() / num_data
    values = torch.where(seen, values, 0)
    any_seen = seen.any(1).double() / num_data
    pairs = (mean[:, :, None] * mean[:, None, :]).flatten(1)
    square = (mean.shape[1],) * 2
    return LatentStatistics(
        seen=share.sum(0),
        squares=values.square().sum(0) / num_data,
        cross=values.mT @ mean / num_data,
        outer=(share.mT @ pairs).unflatten(-1, square),
        covariance=(share.mT @ covariance.flatten(1)).unflatten(-1, covariance.shape[1:]),
        latent=(any_seen @ pairs).view(square)
        + _padded(torch.tensordot(any_seen, covariance, dims=1)),
    )


def _as_rows(x: Tensor | Moments) -> tuple[Tensor, Tensor, int]:
    if isinstance(x, Moments):
        return x.values, x.ones, x.num_data
    return x.double(), torch.ones(len(x), dtype=torch.float64, device=x.device), len(x)


def _padded(covariance: Float[Tensor, "*own dim dim"]) -> Float[Tensor, "*own dim+1 dim+1"]:
    """The covariance of (z, 1)."""
    return torch.nn.functional.pad(covariance, (0, 1, 0, 1))


def regress(
    found: LatentStatistics, before: Float[Tensor, "data_dim augmented"]
) -> Float[Tensor, "data_dim augmented"]:
    r"""Regress each dimension on z and 1.

    .. math:: w_d^\top = E[x_d \tilde z^\top] \, E[\tilde z \tilde z^\top]^{-1}

    Args:
        found: The averages.
        before: The coefficients so far, which dimensions never seen keep.
    """
    gram = found.outer + _padded(found.covariance)
    known = found.seen > 0
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if len(gram) > 1:
        gram = torch.where(known[:, None, None], gram, identity)
    scale = gram.diagonal(dim1=-2, dim2=-1).rsqrt()
    root = cholesky(scale[:, :, None] * gram * scale[:, None, :])
    if len(gram) == 1:
        return (scale * torch.cholesky_solve((scale * found.cross).mT, root[0]).mT).to(before)
    solved = torch.cholesky_solve((scale * found.cross).unsqueeze(-1), root).squeeze(-1)
    return torch.where(known[:, None], scale * solved, before)


def residuals(
    x: Float[Tensor, "num_data data_dim"] | Moments,
    posterior: LinearGaussianPosterior,
    centre: Float[Tensor, " data_dim"],
    coefficients: Float[Tensor, "data_dim augmented"],
    found: LatentStatistics,
) -> Float[Tensor, " data_dim"]:
    r"""Mean of :math:`E (x_d - w_d^\top \tilde z)^2`, from the residuals themselves.

    Args:
        x: Data, NaN where missing, or condensed data.
        posterior: The E-step's.
        centre: What the statistics took from the data.
        coefficients: :math:`w_d`.
        found: The averages.
    """
    values, ones, num_data = _as_rows(x)
    mean = torch.cat([posterior.mean.double(), ones[:, None]], 1)
    error = values - ones[:, None] * centre.double() - mean @ coefficients.mT
    if posterior.scale_tril.ndim == 3:
        error = error.nan_to_num(0.0)
    return error.square().sum(0) / num_data + _explained(coefficients[:, :-1], found.covariance)


def residuals_from(
    found: LatentStatistics, coefficients: Float[Tensor, "data_dim augmented"]
) -> Float[Tensor, " data_dim"]:
    """The same from the averages alone, which loses digits where the noise is small.

    Args:
        found: The averages.
        coefficients: Of the regressions.
    """
    gram = found.outer + _padded(found.covariance)
    twice = 2 * (found.cross * coefficients).sum(1)
    return (found.squares - twice + _explained(coefficients, gram)).clamp_min(0)


def _explained(
    weights: Float[Tensor, "data_dim dim"], gram: Float[Tensor, "own dim dim"]
) -> Float[Tensor, " data_dim"]:
    if len(gram) == 1:
        return ((weights @ gram[0]) * weights).sum(1)
    return torch.einsum("di,dij,dj->d", weights, gram, weights)


def standardize_latents(
    found: LatentStatistics,
    coefficients: Float[Tensor, "data_dim augmented"],
    noise: Float[Tensor, " data_dim"],
) -> Float[Tensor, "data_dim augmented"]:
    r"""Fit the latents' own mean and covariance too, then bring them back to N(0, I).

    With :math:`z \sim \mathcal N(\nu, \Gamma)` the model is the same family, and an M-step over
    both raises the likelihood at least as much: EM goes many times as fast.

    Args:
        found: The averages.
        coefficients: Of the regressions, W and the offset.
        noise: The diagonal of Psi; the latents are turned so that W' Psi^-1 W is diagonal.

    References:
        Liu, Rubin and Wu 1998 (parameter expansion), https://doi.org/10.1093/biomet/85.4.755
    """
    share = found.latent[-1, -1]
    shift = found.latent[:-1, -1] / share
    covariance = found.latent[:-1, :-1] / share - shift.outer(shift)
    values, vectors = torch.linalg.eigh(covariance)
    loadings = coefficients[:, :-1]
    offset = coefficients[:, -1] + loadings @ shift
    loadings = loadings @ (vectors * values.clamp_min(0).sqrt())
    # Columns that are far longer than others must not lie along them, or rounding to the
    # parameters' type would change the short ones.
    _, rotation = torch.linalg.eigh(loadings.mT @ (loadings / noise[:, None]))
    return torch.cat([loadings @ rotation.flip(-1), offset[:, None]], 1)
