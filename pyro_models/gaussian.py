"""One normal distribution: the baseline that every latent variable model must beat."""

import math
from dataclasses import dataclass
from typing import final

import pyro
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_models.covariances import Covariance, Full, Tied
from pyro_models.errors import DataError, OptionError
from pyro_models.mixture_steps import check_data, check_means, weighted_means
from pyro_models.networks import as_batch
from pyro_models.options import positive_float, positive_int
from pyro_models.programs import announce, data_plate


@final
@dataclass(frozen=True, eq=False)
class NormalInverseWishart:
    r"""The conjugate prior of a normal distribution's mean and covariance.

    .. math::
        \Sigma \sim \mathcal W^{-1}(\Psi, \nu), \qquad
        \mu \mid \Sigma \sim \mathcal N(m_0, \Sigma / \kappa_0)

    .. math::
        \log p(\mu, \Sigma) = -\tfrac{\nu + D + 2}{2} \log|\Sigma|
        - \tfrac12 \mathrm{tr}\big(\Sigma^{-1} (\Psi + \kappa_0 (\mu - m_0)(\mu - m_0)^\top)\big)
        + \tfrac\nu2 \log|\Psi| - \tfrac{\nu D}{2} \log 2 - \log \Gamma_D(\tfrac\nu2)
        - \tfrac D2 \log \tfrac{2\pi}{\kappa_0}

    Args:
        mean: :math:`m_0`, ``(D,)`` or a number for all dimensions.
        strength: :math:`\kappa_0`, in data.
        scale: Ψ, ``(D, D)`` and positive definite, or a number times the identity.
        degrees: ν > D - 1; D + 2 if not given, with which the mean of Σ is Ψ.

    Raises:
        OptionError: If a number is not above 0 where it must be.

    References:
        Murphy 2007, Conjugate Bayesian analysis of the Gaussian distribution, section 9,
        https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf

    Example:
        >>> NormalInverseWishart(strength=0.01).for_dim(2).degrees
        4.0
    """

    mean: Tensor | float = 0.0
    strength: float = 1.0
    scale: Tensor | float = 1.0
    degrees: float | None = None

    def __post_init__(self) -> None:
        positive_float("strength", self.strength)
        if not isinstance(self.scale, Tensor):
            positive_float("scale", self.scale)

    def for_dim(self, data_dim: int) -> "NormalInverseWishart":
        """The same with all of its values written out in float64.

        Args:
            data_dim: D.

        Raises:
            OptionError: If a shape does not fit D, the scale is not positive definite, or there
                are too few degrees of freedom.
        """
        mean = torch.as_tensor(self.mean, dtype=torch.float64)
        scale = torch.as_tensor(self.scale, dtype=torch.float64)
        mean = mean.expand(data_dim) if mean.ndim == 0 else mean
        scale = scale * torch.eye(data_dim, dtype=scale.dtype) if scale.ndim == 0 else scale
        degrees = float(data_dim + 2 if self.degrees is None else self.degrees)
        if mean.shape != (data_dim,) or scale.shape != (data_dim, data_dim):
            raise OptionError(
                f"the prior's mean and scale have shapes {tuple(mean.shape)} and "
                f"{tuple(scale.shape)}, but data_dim={data_dim} asks for ({data_dim},) and "
                f"({data_dim}, {data_dim}); give these, or numbers"
            )
        if not degrees > data_dim - 1:
            raise OptionError(f"degrees={degrees:g} must be above data_dim - 1 = {data_dim - 1}")
        if not torch.equal(scale, scale.T) or bool(torch.linalg.cholesky_ex(scale)[1]):
            raise OptionError("the prior's scale must be symmetric and positive definite; give one")
        return NormalInverseWishart(mean, self.strength, scale, degrees)

    def log_prob(
        self,
        mean: Float[Tensor, " data_dim"],
        covariance: Float[Tensor, "data_dim data_dim"],
    ) -> Float[Tensor, ""]:
        """Log-density at a mean and a covariance, in float64.

        Args:
            mean: μ, ``(D,)``.
            covariance: Σ, ``(D, D)``.

        Example:
            >>> prior = NormalInverseWishart(strength=2.0, scale=3.0, degrees=4.0)
            >>> round(prior.log_prob(torch.zeros(1), torch.ones(1, 1)).item(), 4)
            -1.2614
        """
        dim = len(mean)
        prior = self.for_dim(dim)
        nu, kappa = float(prior.degrees or 0.0), prior.strength
        center = torch.as_tensor(prior.mean).to(mean.device)
        scale = torch.as_tensor(prior.scale).to(mean.device)
        away = mean.double() - center
        inside = scale + kappa * away.outer(away)
        sigma = covariance.double()
        half = torch.tensor(nu / 2, dtype=torch.float64)
        constant = (
            0.5 * nu * torch.logdet(scale)
            - 0.5 * nu * dim * math.log(2)
            - torch.special.multigammaln(half, dim).to(scale.device)
            - 0.5 * dim * math.log(2 * math.pi / kappa)
        )
        quadratic = torch.linalg.solve(sigma, inside).diagonal().sum()
        return constant - 0.5 * (nu + dim + 2) * torch.logdet(sigma) - 0.5 * quadratic


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """There is no latent: only the log-density under the parameters of the time."""

    log_prob: Float[Tensor, " num_data"]
    """log p(x_n), ``(N,)``."""


@final
class Gaussian(nn.Module):
    r"""All data come from one normal distribution.

    .. math:: x_n \sim \mathcal N(\mu, \Sigma)

    Site: observed ``"x"`` in the plate ``"data"``; there is no latent. Its fit is in closed form:
    one call of :meth:`maximize`. With a prior that is the joint mode of mean and covariance,

    .. math::
        \mu = \frac{\kappa_0 m_0 + N \bar x}{\kappa_0 + N}, \qquad
        \Sigma = \frac{\Psi + S + \frac{\kappa_0 N}{\kappa_0 + N}
                 (\bar x - m_0)(\bar x - m_0)^\top}{\nu + N + D + 2}, \qquad
        S = \sum_n (x_n - \bar x)(x_n - \bar x)^\top

    and without one :math:`\mu = \bar x`, :math:`\Sigma = S / N`. ``Diagonal()`` keeps the diagonal
    and ``Spherical()`` the mean of the diagonal, which maximise among such covariances. The prior
    is no part of the Pyro program nor of :meth:`log_prob`: see :meth:`log_prior`.

    Args:
        data_dim: D, numbers a datum; images are flattened.
        covariance: ``Full()``, ``Diagonal()`` or ``Spherical()`` of ``pyro_models.covariances``.
        prior: Of mean and covariance; by default none, for maximum likelihood.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Murphy 2007, Conjugate Bayesian analysis of the Gaussian distribution, section 9,
        https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf

    Example:
        >>> model = Gaussian(data_dim=1)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> model.initialize(x)
        >>> model.mean.detach(), model.covariance_matrix.detach()
        (tensor([2.]), tensor([[1.]]))
    """

    def __init__(
        self,
        data_dim: int,
        covariance: Covariance = Full(),  # noqa: B008 (immutable)
        prior: NormalInverseWishart | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        if not isinstance(covariance, Covariance) or isinstance(covariance, Tied):
            raise OptionError(
                f"covariance={covariance!r} is none for a single normal; give Full(), Diagonal() "
                "or Spherical() of pyro_models.covariances"
            )
        self.covariance = covariance
        self.prior = None if prior is None else prior.for_dim(data_dim)
        self.mean = nn.Parameter(torch.zeros(data_dim))
        self.spread = covariance.make(1, data_dim)

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images; ``None`` simulates.
            num_data: Size N of the whole set, by which a minibatch is scaled; without data, how
                many to simulate (1 if not given).

        Returns:
            The data, ``(batch, data_dim)``.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        announce(self, "model")
        if x is not None:
            x = self._rows(x)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, self.mean.device):
            return pyro.sample("x", self._normal(), obs=x)

    def _normal(self) -> pyro.distributions.torch_distribution.TorchDistributionMixin:
        component = torch.zeros((), dtype=torch.long, device=self.mean.device)
        return self.spread.normal(self.mean, component)

    def _rows(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, "batch data_dim"]:
        return as_batch(x, self.data_dim, self.mean)

    def log_prob(self, x: Shaped[Tensor, "num_data *datum"]) -> Float[Tensor, " num_data"]:
        """log p(x_n) in nats, ``(N,)``, differentiable.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Example:
            >>> Gaussian(1).log_prob(torch.zeros(1, 1)).detach()
            tensor([-0.9189])
        """
        return self._normal().log_prob(self._rows(x))

    def log_prior(self) -> Float[Tensor, ""]:
        """log p(μ, Σ) under the prior, in nats for the whole data set; 0 without one."""
        if self.prior is None:
            return self.mean.new_zeros(())
        return self.prior.log_prob(self.mean, self.covariance_matrix)

    @torch.no_grad()
    def posterior(self, x: Shaped[Tensor, "num_data *datum"]) -> GaussianPosterior:
        """Log-densities, as what the E-step of a model without latents is.

        Args:
            x: Data, ``(N, data_dim)`` or images.
        """
        rows = self._rows(x)
        found = rows.new_empty(len(rows))
        for part, log_density in self.spread.log_density(rows, self.mean.unsqueeze(0)):
            found[part] = log_density[0]
        return GaussianPosterior(found)

    @torch.no_grad()
    def maximize(
        self, x: Shaped[Tensor, "num_data *datum"], posterior: GaussianPosterior | None = None
    ) -> None:
        """Set mean and covariance to the maximum, in place; see the class for the formulae.

        Args:
            x: Data, ``(N, data_dim)`` or images.
            posterior: Nothing of it is needed.

        Raises:
            DataError: If the data hold NaN or infinity; the parameters stay as they were.
        """
        rows = self._rows(x)
        alike = rows.new_zeros(1, len(rows)).T  # log-weights of 0
        center = weighted_means(rows, alike, self.mean.unsqueeze(0))
        counts, first, second = self.spread.moments(rows, alike, center)
        if not bool(first.isfinite().all() & second.isfinite().all()):
            raise DataError("x holds NaN or infinity; check it with model.check(x)")
        shift = first[0] / counts
        mean = center[0].double() + shift
        full = second.ndim == 3
        total = second - counts * (shift.outer(shift) if full else shift.square())
        count = float(counts)
        if self.prior is not None:
            strength = self.prior.strength
            away = mean - torch.as_tensor(self.prior.mean).to(mean.device)
            scale = torch.as_tensor(self.prior.scale).to(mean.device)
            weight = strength * count / (strength + count)
            total = total + (scale if full else scale.diagonal())
            total = total + weight * (away.outer(away) if full else away.square())
            mean = mean - away * strength / (strength + count)
            count += float(self.prior.degrees or 0.0) + self.data_dim + 2
        self.mean.copy_(mean)
        everywhere = torch.ones(1, dtype=torch.bool, device=mean.device)
        self.spread.write(self.spread.pool(total / count, counts), everywhere)

    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the parameters to the maximum, which is the whole fit.

        Args:
            x: Training data, ``(N, data_dim)`` or images.

        Raises:
            DataError: If :meth:`check` refuses the data.
        """
        self.check(x)
        self.maximize(x)

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot be fitted to, once before a fit.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Raises:
            DataError: If there are none, shape, type or device do not fit, or a value is NaN,
                infinite or so large that its square overflows.
        """
        self._rows(x[:1])
        check_data(x, self._rows(x), 1, self.covariance.floor)

    @torch.no_grad()
    def set(
        self,
        *,
        mean: Float[Tensor, " data_dim"] | None = None,
        covariance: Float[Tensor, "data_dim data_dim"] | None = None,
    ) -> None:
        """Set parameters from outside; one that is not given stays as it is.

        Args:
            mean: μ, ``(D,)``.
            covariance: Σ, ``(D, D)``, of the form that the model's option allows.

        Raises:
            OptionError: If a shape or value cannot be right.
        """
        if mean is not None:
            check_means(mean, self.mean)
            self.mean.copy_(mean)
        if covariance is not None:
            self.spread.set(covariance.unsqueeze(0))

    @property
    def covariance_matrix(self) -> Float[Tensor, "data_dim data_dim"]:
        """Σ, ``(D, D)``."""
        return self.spread.dense()[0]

    @property
    def num_free_parameters(self) -> int:
        """Degrees of freedom, for information criteria."""
        return self.data_dim + self.spread.num_free_parameters
