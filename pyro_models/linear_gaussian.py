"""What probabilistic PCA and factor analysis share: linear latents, normal noise."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.latent_regression import (
    LatentStatistics,
    LinearGaussianPosterior,
    Projection,
    infer,
    projection,
    regress,
    residuals,
    residuals_from,
    standardize_latents,
    statistics,
)
from pyro_models.networks import as_batch
from pyro_models.options import positive_float, positive_int
from pyro_models.priors import StandardNormal
from pyro_models.programs import announce, data_plate
from pyro_models.second_moments import Moments, condense

# The least noise is this much above the floor, so that its logarithm above it is finite.
_ABOVE = 1e-6


@dataclass(frozen=True)
class PrincipalAxes:
    """Start at the data's principal axes; missing values count as their column's mean."""


@dataclass(frozen=True)
class RandomAxes:
    """Start at random axes, which explain half of the variance."""


Start = PrincipalAxes | RandomAxes


class LinearGaussian(nn.Module, ABC):
    r"""Parent of the models x = W z + mu + noise, with their exact inference.

    .. math:: z_n \sim \mathcal N(0, I), \qquad x_n \mid z_n \sim \mathcal N(W z_n + \mu, \Psi)

    with a diagonal :math:`\Psi`; NaN among the data is a value that is missing.

    Args:
        data_dim: Numbers a datum.
        latent_dim: Dimension of z, below ``data_dim``.
        floor: Least variance of the noise, in the data's squared units.
        noise_shape: ``()`` for one variance, ``(data_dim,)`` for one for each dimension.
    """

    accepts_missing = True
    centre: Tensor

    def __init__(
        self, data_dim: int, latent_dim: int, floor: float, noise_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.floor = positive_float("floor", floor)
        if latent_dim >= data_dim:
            raise OptionError(
                f"latent_dim={latent_dim} is not below data_dim={data_dim}, so that no dimension "
                "is left for the noise; give less, or describe the data by a full normal"
            )
        self.prior = StandardNormal(latent_dim)
        # W = 0 is a saddle point of the likelihood, where EM and gradients would stay.
        self.loadings = nn.Parameter(torch.randn(data_dim, latent_dim) / latent_dim**0.5)
        self.mean = nn.Parameter(torch.zeros(data_dim))
        self.raw_noise = nn.Parameter(torch.zeros(noise_shape))
        self.register_buffer("centre", torch.zeros(data_dim))

    @property
    def noise_variance(self) -> Float[Tensor, "*noise"]:
        """The variance of the noise: floor + exp(raw_noise)."""
        return self.floor + self.raw_noise.exp()

    @property
    def _noise(self) -> Float[Tensor, " data_dim"]:
        return self.noise_variance.expand(self.data_dim)

    @property
    @abstractmethod
    def num_free_parameters(self) -> int:
        """Degrees of freedom, for AIC and BIC."""

    @abstractmethod
    def _pooled(
        self, residual: Float[Tensor, " data_dim"], seen: Float[Tensor, " data_dim"]
    ) -> Float[Tensor, "*noise"]:
        """The noise's variance from sums of squares and counts in each dimension."""

    @abstractmethod
    def _to_principal_axes(self, x: Moments) -> None:
        """Set W, and the noise if it can be, by a closed form for data without missing values."""

    @abstractmethod
    def _after_step(self, x: Float[Tensor, "num_data data_dim"] | Moments) -> None:
        """What raises the likelihood further after an M-step, if anything does."""

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)``; NaN is missing, and has no part in the density
                of ``"x"``, where it stands as 0. ``None`` simulates.
            num_data: Size N of the whole set, by which a minibatch is scaled; without data, how
                many to simulate (1 if not given).

        Returns:
            The data, ``(batch, data_dim)``.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        announce(self, "model")
        if x is not None:
            x = as_batch(x, self.data_dim, self.loadings)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, self.loadings.device):
            z = pyro.sample("z", self.prior())
            normal = dist.Normal(self.decode_mean(z), self._noise.sqrt())
            if x is None:
                return pyro.sample("x", normal.to_event(1))
            # A gradient through NaN is NaN, also where a mask takes its value away.
            seen = ~x.isnan()
            filled = torch.where(seen, x, 0)
            return pyro.sample("x", normal.mask(seen).to_event(1), obs=filled)

    def decode_mean(self, z: Float[Tensor, "*lead latent_dim"]) -> Float[Tensor, "*lead data_dim"]:
        """The mean W z + mu of x given z."""
        return z @ self.loadings.mT + self.mean

    def posterior(self, x: Shaped[Tensor, "batch *datum"] | Moments) -> LinearGaussianPosterior:
        """The exact posterior of z, and log p(x), under the present parameters: the E-step.

        Args:
            x: Data, ``(batch, data_dim)``, NaN where missing, or what :meth:`condense` gave.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        if isinstance(x, Tensor):
            x = as_batch(x, self.data_dim, self.loadings)
        return infer(x, self.mean, self.loadings, self._noise)

    def projection(self) -> Projection:
        """P and T of the posterior N(P (x - mu), T T') of a datum without missing values."""
        return projection(self.loadings, self._noise)

    def log_prob(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, " batch"]:
        """The exact log p(x_n), of what was seen: 0 of a datum where nothing was.

        Args:
            x: Data, ``(batch, data_dim)``, NaN where missing.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        return self.posterior(x).log_prob

    def condense(self, x: Float[Tensor, "num_data data_dim"]) -> Moments:
        """Reduce data to what EM needs of them, at most data_dim + 1 rows if none is missing.

        Args:
            x: Data, NaN where missing.
        """
        return condense(as_batch(x, self.data_dim, self.loadings))

    @torch.no_grad()
    def maximize(
        self, x: Float[Tensor, "num_data data_dim"] | Moments, posterior: LinearGaussianPosterior
    ) -> None:
        """The M-step for W, mu and the noise, which never lowers the mean of log p(x).

        Args:
            x: The data of the E-step.
            posterior: Of that E-step.

        Raises:
            DataError: If a column was never seen.
        """
        centre = self.mean.double()
        found = statistics(x, posterior, centre)
        _refuse_unseen(found.seen)
        coefficients = regress(found, self._coefficients(centre))
        squares = residuals(x, posterior, centre, coefficients, found)
        noise = self._pooled(squares, found.seen).clamp_min(self.floor)
        coefficients = standardize_latents(found, coefficients, noise.expand(self.data_dim))
        self._store(coefficients, centre, noise)
        self._after_step(x)

    @torch.no_grad()
    def statistics(
        self, x: Float[Tensor, "batch data_dim"], posterior: LinearGaussianPosterior
    ) -> LatentStatistics:
        """Means per datum of what :meth:`maximize_statistics` needs, about ``centre``.

        Args:
            x: A minibatch, NaN where missing.
            posterior: Of its E-step.
        """
        return statistics(x, posterior, self.centre)

    @torch.no_grad()
    def maximize_statistics(self, statistics: LatentStatistics) -> None:
        """The M-step from averaged statistics: stepwise EM.

        The latents keep their axes here, so that averages of earlier steps stay comparable. A
        dimension never seen keeps its parameters.

        Args:
            statistics: Averages of what :meth:`statistics` gave.
        """
        centre = self.centre.double()
        coefficients = regress(statistics, self._coefficients(centre))
        noise = self._pooled(residuals_from(statistics, coefficients), statistics.seen)
        self._store(coefficients, centre, noise)

    def _coefficients(self, centre: Tensor) -> Float[Tensor, "data_dim augmented"]:
        offset = (self.mean.double() - centre)[:, None]
        return torch.cat([self.loadings.double(), offset], 1)

    def _store(self, coefficients: Tensor, centre: Tensor, noise: Tensor) -> None:
        mean = coefficients[:, -1] + centre
        self.set(loadings=coefficients[:, :-1], mean=mean, noise_variance=noise)

    @torch.no_grad()
    def set(
        self,
        *,
        loadings: Float[Tensor, "data_dim latent_dim"] | None = None,
        mean: Float[Tensor, " data_dim"] | None = None,
        noise_variance: Float[Tensor, "*noise"] | None = None,
    ) -> None:
        """Set parameters from outside.

        Args:
            loadings: W.
            mean: The mean of x.
            noise_variance: Variance of the noise; what lies below the floor is set to it.
        """
        if loadings is not None:
            self.loadings.copy_(loadings)
        if mean is not None:
            self.mean.copy_(mean)
        if noise_variance is not None:
            above = (noise_variance.double() - self.floor).clamp_min(_ABOVE * self.floor)
            self.raw_noise.copy_(above.log())

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot explain, once before a fit. NaN is missing.

        Args:
            x: Data, ``(num_data, data_dim)``.

        Raises:
            DataError: If shape, type or device do not fit, or a value is infinite.
        """
        as_batch(x[:1], self.data_dim, self.loadings)
        if bool(x.sum().isfinite()):  # one number, and no mask of the size of x
            return
        infinite = x.isinf()
        if bool(infinite.any()):
            row, column = infinite.flatten(1).nonzero()[0].tolist()
            raise DataError(
                f"x holds {int(infinite.sum())} infinite values, the first at row {row}, column "
                f"{column}: drop those rows, or write NaN for values that are missing"
            )

    @torch.no_grad()
    def initialize(
        self,
        x: Float[Tensor, "num_data data_dim"],
        start: Start = PrincipalAxes(),
        generator: torch.Generator | None = None,
    ) -> None:
        """Starting values from data.

        Args:
            x: Training data, NaN where missing.
            start: ``PrincipalAxes()`` or ``RandomAxes()``.
            generator: Of random axes; torch's global one if not given.

        Raises:
            DataError: If shape, type or device do not fit, or a column was never seen.
        """
        x = as_batch(x, self.data_dim, self.loadings)
        seen = ~x.isnan()
        _refuse_unseen(seen.sum(0))
        mean = x.double().nanmean(0)
        variance = (x - mean).square().nanmean(0).clamp_min(2 * self.floor)
        self.centre.copy_(mean)
        axes = torch.randn(self.data_dim, self.latent_dim, generator=generator)
        scale = (variance / (2 * self.latent_dim)).sqrt()
        loadings = axes.to(variance) * scale[:, None]
        every = torch.ones_like(variance)
        self.set(loadings=loadings, mean=mean, noise_variance=self._pooled(variance / 2, every))
        if isinstance(start, PrincipalAxes):
            self._to_principal_axes(self.condense(torch.where(seen, x, mean.to(x))))

    @torch.no_grad()
    def canonicalize(self) -> None:
        r"""Turn the latents so that :math:`W^\top \Psi^{-1} W` is diagonal and descending.

        Of each column the entry of largest size is positive. W is known up to a rotation only, so
        that nothing else changes.
        """
        scaled = self.loadings.double() / self._noise.double().sqrt()[:, None]
        _, _, rotation = torch.linalg.svd(scaled, full_matrices=False)
        turned = self.loadings.double() @ rotation.mT
        largest = turned.gather(0, turned.abs().argmax(0, keepdim=True))
        self.loadings.copy_(turned * torch.where(largest < 0, -1.0, 1.0))

    def covariance(self) -> Float[Tensor, "data_dim data_dim"]:
        r"""The covariance :math:`W W^\top + \Psi` of x."""
        return self.loadings @ self.loadings.mT + self._noise.diag_embed()

    def covariance_product(
        self, v: Float[Tensor, "*lead data_dim"]
    ) -> Float[Tensor, "*lead data_dim"]:
        """The product of the covariance of x with vectors, without forming it.

        Args:
            v: Vectors, ``(..., data_dim)``.
        """
        return (v @ self.loadings) @ self.loadings.mT + v * self._noise

    @torch.no_grad()
    def transform(self, x: Float[Tensor, "batch data_dim"]) -> Float[Tensor, "batch latent_dim"]:
        """The posterior means of z.

        Args:
            x: Data, NaN where missing.
        """
        return self.posterior(x).mean

    @torch.no_grad()
    def impute(self, x: Float[Tensor, "batch data_dim"]) -> Float[Tensor, "batch data_dim"]:
        """The data with conditional means, given what was seen, where values are missing.

        Args:
            x: Data, NaN where missing.
        """
        return torch.where(x.isnan(), self.decode_mean(self.posterior(x).mean), x)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"data_dim={self.data_dim}, latent_dim={self.latent_dim}, floor={self.floor}"


def _refuse_unseen(seen: Any) -> None:
    unseen = (seen == 0).nonzero().flatten().tolist()
    if unseen:
        raise DataError(
            f"nothing was seen in column{'s' if len(unseen) > 1 else ''} "
            f"{', '.join(map(str, unseen[:8]))} (counted from 0): every value is NaN; drop them"
        )
