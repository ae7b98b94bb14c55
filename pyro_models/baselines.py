r"""What a latent variable model must beat: independent pixels, and one full-covariance Gaussian.

Densities and probabilities are different things, so a baseline is of the kind of the model:

- Where the model's likelihood is a density (normal, continuous Bernoulli), both baselines are
  maximum-likelihood normal densities over the same space. All numbers change by the same constant
  when the data is rescaled, and their differences not at all.
- Where it is a probability (Bernoulli, categorical, Poisson), a Gaussian density of whole numbers
  would mean nothing: it has no upper bound. There the baselines are probabilities of the levels
  too: each pixel's frequencies, and a Gaussian whose quantiles are cut into those levels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_models.errors import DataError
from pyro_models.options import positive_int

# Log-probabilities below this are of no interest, and their exponentials are not representable.
_TINY = 1e-300
# Added to the variance of each pixel's levels: pixels that never change have no correlation.
_RIDGE = 0.01
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Margin:
    """By how much a model beats a baseline on the same data, in nats per datum."""

    mean: float
    """Mean over data of log p(x) under the model, minus that under the baseline."""
    standard_error: float
    """Standard error of that mean, from the differences datum by datum."""


@dataclass(frozen=True)
class Baseline:
    """Held-out log p(x) of a simple model, in nats."""

    name: str
    """What it is, for a table."""
    log_prob: Float[Tensor, " N"]
    """log p(x) of each held-out datum, float64."""

    @property
    def mean(self) -> float:
        """Nats per datum."""
        return float(self.log_prob.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over data; NaN for one datum."""
        return _standard_error(self.log_prob)

    def margin(self, log_prob: Float[Tensor, " N"]) -> Margin:
        """By how much a model beats this baseline.

        Args:
            log_prob: log p(x) of the same held-out data under the model.

        Raises:
            DataError: If there are not as many data.
        """
        if log_prob.shape != self.log_prob.shape:
            raise DataError(
                f"log_prob has shape {tuple(log_prob.shape)} and the baseline's "
                f"{tuple(self.log_prob.shape)}; both must be of the same held-out data"
            )
        difference = log_prob.double().cpu() - self.log_prob
        return Margin(float(difference.mean()), _standard_error(difference))


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def densities(train: Tensor, held_out: Tensor) -> tuple[Baseline, Baseline]:
    r"""Normal densities by maximum likelihood: of independent pixels, and with full covariance.

    .. math::
        \prod_d \mathcal N(x_d; \hat\mu_d, \hat\Sigma_{dd}), \qquad
        \mathcal N(x; \hat\mu, \hat\Sigma), \qquad
        \hat\mu = \tfrac1N \sum_i x_i, \quad
        \hat\Sigma = \tfrac1N \sum_i (x_i - \hat\mu)(x_i - \hat\mu)^\top .

    Args:
        train: Data to fit, ``(N, ...)``.
        held_out: Data to judge by, ``(M, ...)``.

    Returns:
        The independent and the full baseline.

    Raises:
        DataError: If the data is empty or not finite, or the fit does not exist because a pixel is
            constant or the covariance is singular.

    Example:
        >>> train = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
        >>> for baseline in densities(train, torch.tensor([[0.5, 0.5], [0.5, 0.5]])):
        ...     print(f"{baseline.name}: {baseline.mean:.4f}")
        independent normal pixels: -0.4516
        full-covariance normal: -0.4516
    """
    fitted, judged = _flat("train", train), _flat("held_out", held_out)
    _check_same_width(fitted, judged)
    mean, deviations = fitted.mean(0), fitted - fitted.mean(0)
    variance = deviations.square().mean(0)
    constant = int((variance <= 1e-12 * variance.max()).sum())
    if constant:
        raise DataError(
            f"{constant} of {len(variance)} dimensions are constant in the training data, so that "
            "a normal density has no maximum; dequantise the data, or leave these dimensions out"
        )
    covariance = deviations.T @ deviations / len(fitted)
    scale = variance.sqrt()
    smallest = float(torch.linalg.eigvalsh(covariance / scale / scale[:, None])[0])
    if smallest < 1e-10:
        raise DataError(
            f"the covariance of {len(fitted)} training data in {len(variance)} dimensions is "
            "singular; give more data, or dequantise them"
        )
    independent = torch.distributions.Normal(mean, scale).log_prob(judged).sum(-1)
    full = torch.distributions.MultivariateNormal(mean, covariance).log_prob(judged)
    return Baseline("independent normal pixels", independent), Baseline(
        "full-covariance normal", full
    )


def masses(
    train: Tensor, held_out: Tensor, *, num_samples: int = 100, seed: int = 0
) -> tuple[Baseline, Baseline]:
    r"""Probabilities of whole numbers: by independent pixels, and by a Gaussian cut into levels.

    With :math:`\hat F_d` each pixel's distribution function over the levels :math:`0, 1, \dots, L`
    (half a count added to each level) and :math:`R` the correlations of the levels,

    .. math::
        \prod_d \bigl(\hat F_d(x_d) - \hat F_d(x_d - 1)\bigr), \qquad
        P\bigl(\Phi^{-1}(\hat F_d(x_d - 1)) < y_d < \Phi^{-1}(\hat F_d(x_d)) \ \forall d\bigr),
        \quad y \sim \mathcal N(0, R).

    The second has the same pixels as the first, and correlations besides. Its probability is
    estimated without bias by drawing one truncated normal after the other, so that its logarithm
    is on average a little too low. For 0/1 pixels the first is the Bernoulli baseline.

    Args:
        train: Data to fit, whole numbers from 0, ``(N, ...)``.
        held_out: Data to judge by, ``(M, ...)``.
        num_samples: Draws for each probability of the second baseline.
        seed: Of those draws.

    Returns:
        The independent and the correlated baseline.

    Raises:
        DataError: If the data is empty, or anything but whole numbers from 0.
        OptionError: If ``num_samples`` is less than 1.

    References:
        - Genz, "Numerical computation of multivariate normal probabilities", 1992,
          https://doi.org/10.1080/10618600.1992.10477010
        - Macke et al., "Generating spike trains with specified correlation coefficients", 2009,
          https://doi.org/10.1162/neco.2008.02-08-713

    Example:
        >>> train = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
        >>> for baseline in masses(train, train):
        ...     print(f"{baseline.name}: {baseline.mean:.1f}")
        independent pixels: -1.4
        correlated pixels (Gaussian): -0.8
    """
    num_samples = positive_int("num_samples", num_samples)
    fitted, judged = _levels("train", train), _levels("held_out", held_out)
    _check_same_width(fitted, judged)
    below, above = _cumulative(fitted, judged)
    independent = (above - below).clamp(min=_TINY).log().sum(-1)
    deviations = fitted.double() - fitted.double().mean(0)
    covariance = deviations.T @ deviations / len(fitted)
    covariance = covariance + _RIDGE * torch.eye(len(covariance), dtype=torch.float64)
    scale = covariance.diagonal().sqrt()
    factor = torch.linalg.cholesky(covariance / scale / scale[:, None])
    generator = torch.Generator().manual_seed(seed)
    lower, upper = torch.special.ndtri(below), torch.special.ndtri(above)
    rows = max(1, _CHUNK // (num_samples * len(factor)))
    correlated = [
        _box_log_probability(low, high, factor, num_samples, generator)
        for low, high in zip(lower.split(rows), upper.split(rows), strict=True)
    ]
    return Baseline("independent pixels", independent), Baseline(
        "correlated pixels (Gaussian)", torch.cat(correlated)
    )


def _cumulative(
    fitted: Int[Tensor, "N D"], judged: Int[Tensor, "M D"]
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
    """Each pixel's distribution function just below and at the judged values."""
    levels = int(max(fitted.max(), judged.max())) + 1
    counts = torch.full((levels, fitted.shape[1]), 0.5, dtype=torch.float64)
    counts.scatter_add_(0, fitted, torch.ones(fitted.shape, dtype=torch.float64))
    total = counts.cumsum(0) / counts.sum(0)
    total[-1] = 1.0
    padded = torch.cat([torch.zeros(1, fitted.shape[1], dtype=torch.float64), total])
    return padded.gather(0, judged), padded.gather(0, judged + 1)


def _box_log_probability(
    lower: Float[Tensor, "M D"],
    upper: Float[Tensor, "M D"],
    factor: Float[Tensor, "D D"],
    num_samples: int,
    generator: torch.Generator,
) -> Float[Tensor, " M"]:
    r"""Log-probability that :math:`L \epsilon` lies in a box, by sequential importance sampling."""
    rows, size = lower.shape
    noise = torch.zeros(size, rows * num_samples, dtype=torch.float64)
    total = torch.zeros(rows * num_samples, dtype=torch.float64)
    for d in range(size):
        shift = factor[d, :d] @ noise[:d]  # (rows * num_samples,)
        low = (lower[:, d].repeat_interleave(num_samples) - shift) / factor[d, d]
        high = (upper[:, d].repeat_interleave(num_samples) - shift) / factor[d, d]
        # In the upper tail the distribution function is 1 to all digits: mirror it.
        flip = low > 0
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        start, end = torch.special.ndtr(low), torch.special.ndtr(high)
        inside = (end - start).clamp(min=_TINY)
        total += inside.log()
        uniform = torch.rand(len(total), dtype=torch.float64, generator=generator)
        drawn = torch.special.ndtri((start + uniform * inside).clamp(_TINY, 1 - 1e-16))
        noise[d] = torch.where(flip, -drawn, drawn)
    return total.reshape(rows, num_samples).logsumexp(-1) - math.log(num_samples)


def _flat(name: str, data: Tensor) -> Float[Tensor, "N D"]:
    if data.dim() == 0 or data.numel() == 0:
        raise DataError(f"{name} has shape {tuple(data.shape)}; give at least one datum")
    flat = data.detach().cpu().double().reshape(len(data), -1)
    if not bool(torch.isfinite(flat).all()):
        raise DataError(f"{name} holds values that are NaN or infinite; remove them")
    return flat


def _levels(name: str, data: Tensor) -> Int[Tensor, "N D"]:
    flat = _flat(name, data)
    if bool((flat < 0).any()) or bool((flat != flat.round()).any()):
        raise DataError(
            f"{name} holds values from {float(flat.min()):g} to {float(flat.max()):g} that are not "
            "whole numbers from 0; use densities(...) for continuous data"
        )
    return flat.long()


def _check_same_width(fitted: Tensor, judged: Tensor) -> None:
    if fitted.shape[1] != judged.shape[1]:
        raise DataError(
            f"train has {fitted.shape[1]} dimensions and held_out {judged.shape[1]}; "
            "give data of the same shape"
        )
