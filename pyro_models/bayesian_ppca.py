"""Bayesian principal component analysis: automatic relevance determination finds the dimension."""

import math
from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.transforms import PowerTransform
from torch import Tensor, nn
from torch.distributions import Gamma, kl_divergence

from pyro_models.errors import DataError, OptionError
from pyro_models.latent_regression import LinearGaussianPosterior, cholesky
from pyro_models.linear_gaussian import PrincipalAxes, Start
from pyro_models.networks import as_batch
from pyro_models.options import positive_float, positive_int
from pyro_models.ppca import ProbabilisticPCA
from pyro_models.priors import StandardNormal
from pyro_models.programs import announce, data_plate
from pyro_models.second_moments import Moments, condense


@final
class BayesianPPCA(nn.Module):
    r"""Probabilistic PCA with priors on all that is global, of which W's switches columns off.

    .. math::
        \alpha_j \sim \mathrm{Gamma}(a, b), \quad W_{dj} \sim \mathcal N(0, \alpha_j^{-1}), \quad
        \mu \sim \mathcal N(0, s^2 I), \quad \sigma^{-2} \sim \mathrm{Gamma}(c, d)

    .. math::
        z_n \sim \mathcal N(0, I), \qquad
        x_n \mid z_n \sim \mathcal N(W z_n + \mu, \sigma^2 I)

    Sites: ``"alpha"``, ``"W"``, ``"mu"``, ``"sigma"``, and in the plate ``"data"`` latent ``"z"``
    and observed ``"x"``. The program goes with any guide, or NUTS. Beside it the model keeps a
    variational posterior of its own, :math:`q(W) q(\mu) q(\alpha) q(\sigma) \prod_n q(z_n)`, which
    ``infer.em`` fits in closed-form steps (variational Bayes): its bound is
    ``posterior(x).log_prob`` summed over the data, plus ``log_prior()``. The default priors are
    vague for columns of about unit variance: standardise the data.

    Args:
        data_dim: D, numbers a datum.
        latent_dim: The most dimensions of z, below ``data_dim``; D - 1 leaves the choice to the
            data.
        concentration: a.
        rate: b, small against the squared length of a column of W that matters.
        noise_concentration: c.
        noise_rate: d.
        mean_scale: s.

    Raises:
        OptionError: If an option has no meaning, or ``latent_dim`` is not below ``data_dim``.

    References:
        Bishop 1999, "Bayesian PCA", https://papers.nips.cc/paper/1549
        Bishop 1999, "Variational principal components", https://doi.org/10.1049/cp:19991160

    Example:
        >>> x = torch.randn(200, 1) * torch.tensor([2.0, 1.0, -1.0, 0.0]) + torch.randn(200, 4) / 2
        >>> model = BayesianPPCA(data_dim=4, latent_dim=3)
        >>> model.initialize(x)
        >>> for _ in range(50):
        ...     model.maximize(x, model.posterior(x))
        >>> model.active_dimensions()
        1
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        concentration: float = 1.0,
        rate: float = 1e-3,
        noise_concentration: float = 1.0,
        noise_rate: float = 1e-3,
        mean_scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        if latent_dim >= data_dim:
            raise OptionError(
                f"latent_dim={latent_dim} is not below data_dim={data_dim}, so that no dimension "
                f"is left for the noise; give {data_dim - 1} at most, or describe the data by a "
                "full normal"
            )
        self.concentration = positive_float("concentration", concentration)
        self.rate = positive_float("rate", rate)
        self.noise_concentration = positive_float("noise_concentration", noise_concentration)
        self.noise_rate = positive_float("noise_rate", noise_rate)
        self.mean_scale = positive_float("mean_scale", mean_scale)
        self.prior = StandardNormal(latent_dim)
        # q's parameters. Gradients have no part in them, and Pyro does not see them.
        self.loadings = _state(torch.randn(data_dim, latent_dim) / latent_dim**0.5)
        self.loadings_covariance = _state(1e-3 * torch.eye(latent_dim))
        self.mean = _state(torch.zeros(data_dim))
        self.mean_variance = _state(torch.tensor(1e-3))
        self.alpha_rate = _state(torch.full((latent_dim,), 0.5 * data_dim))
        self.sigma_concentration = _state(torch.tensor(1.0))
        self.sigma_rate = _state(torch.tensor(1.0))

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)``; ``None`` simulates.
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
        new = self.loadings.new_full
        gamma = dist.Gamma(new((self.latent_dim,), self.concentration), self.rate)
        alpha = pyro.sample("alpha", gamma.to_event(1))  # (..., latent_dim)
        scale = alpha.rsqrt().unsqueeze(-2).expand(*alpha.shape[:-1], self.data_dim, -1)
        w = pyro.sample("W", dist.Normal(torch.zeros_like(scale), scale).to_event(2))
        center = dist.Normal(new((self.data_dim,), 0.0), self.mean_scale)
        mu = pyro.sample("mu", center.to_event(1))
        precision = dist.Gamma(new((), self.noise_concentration), self.noise_rate)
        noise = dist.TransformedDistribution(precision, [PowerTransform(new((), -0.5))])
        sigma = pyro.sample("sigma", noise)
        with data_plate(batch, num_data, self.loadings.device):
            z = pyro.sample("z", self.prior())
            mean = torch.einsum("...q,...dq->...d", z, w) + mu
            return pyro.sample("x", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=x)

    @property
    def _precision(self) -> Tensor:
        """E 1 / sigma²."""
        return (self.sigma_concentration / self.sigma_rate).double()

    @property
    def _gram(self) -> Tensor:
        """E W'W."""
        w = self.loadings.double()
        return w.mT @ w + self.data_dim * self.loadings_covariance.double()

    @torch.no_grad()
    def posterior(self, x: Shaped[Tensor, "batch *datum"] | Moments) -> LinearGaussianPosterior:
        """q(z) of each datum given q of all that is global: the E-step.

        Args:
            x: Data, ``(batch, data_dim)``, or what :meth:`condense` gave.

        Returns:
            The posterior. Its ``log_prob`` is each datum's part of the bound, which is below
            log p(x) where ``log_prior()`` is added to their sum.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        values, ones, num_data = self._rows(x)
        identity = torch.eye(self.latent_dim, dtype=torch.float64, device=values.device)
        upper = cholesky((identity + self._precision * self._gram).flip(-1, -2))
        inverse = torch.linalg.solve_triangular(upper, identity, upper=False)
        tril = inverse.flip(-1, -2).mT  # of the covariance
        covariance = tril @ tril.mT
        deviations = values - ones[:, None] * self.mean.double()
        mean = self._precision * deviations @ self.loadings.double() @ covariance
        # Every term in n that is not quadratic in the datum is the same for all of them.
        shared = self._log_noise() + 2 * tril.diagonal().log().sum() + self.latent_dim
        shared = shared - self._precision * self.data_dim * self.mean_variance
        shared = shared - (covariance * (identity + self._precision * self._gram)).sum()
        own = self._precision * self._squares(deviations, mean) + mean.square().sum(1)
        if isinstance(x, Moments):
            return LinearGaussianPosterior(mean, tril, 0.5 * (shared - own.sum() / num_data))
        narrow = self.loadings.dtype
        log_prob = 0.5 * (shared - own)
        return LinearGaussianPosterior(mean.to(narrow), tril.to(narrow), log_prob.to(narrow))

    def _log_noise(self) -> Tensor:
        """Twice E log N(x | x, sigma² I)."""
        log_precision = self.sigma_concentration.double().digamma() - self.sigma_rate.double().log()
        return self.data_dim * (log_precision - math.log(2 * math.pi))

    def _squares(self, deviations: Tensor, mean: Tensor) -> Tensor:
        """E |x - W z - mu|² where z is its mean, without what mu's variance adds."""
        residual = deviations - mean @ self.loadings.double().mT
        spread = self.data_dim * self.loadings_covariance.double()
        return residual.square().sum(1) + ((mean @ spread) * mean).sum(1)

    def _rows(self, x: Tensor | Moments) -> tuple[Tensor, Tensor, int]:
        if isinstance(x, Moments):
            return x.values, x.ones, x.num_data
        rows = as_batch(x, self.data_dim, self.loadings).double()
        return rows, rows.new_ones(len(rows)), len(rows)

    def condense(self, x: Float[Tensor, "num_data data_dim"]) -> Moments:
        """Reduce data to what the steps need of them, at most data_dim + 1 rows.

        Args:
            x: Data.

        Raises:
            DataError: If a value is missing.
        """
        self.check(x)
        return condense(as_batch(x, self.data_dim, self.loadings))

    @torch.no_grad()
    def maximize(
        self, x: Float[Tensor, "num_data data_dim"] | Moments, posterior: LinearGaussianPosterior
    ) -> None:
        """The M-step: q(W), q(mu), the best rotation of z, q(alpha) and q(sigma), one by one.

        None of these lowers the bound.

        Args:
            x: The data of the E-step.
            posterior: Of that E-step.
        """
        values, ones, num_data = self._rows(x)
        z, covariance = posterior.mean.double(), posterior.covariance.double()
        second = z.mT @ z + num_data * covariance  # sum of E z z'
        alpha = self.expected_precision
        root = cholesky(alpha.diag() + self._precision * second)
        spread = torch.cholesky_inverse(root)
        deviations = values - ones[:, None] * self.mean.double()
        w = torch.cholesky_solve(self._precision * z.mT @ deviations, root).mT
        variance = 1 / (self.mean_scale**-2 + num_data * self._precision)
        mean = variance * self._precision * (ones @ (values - z @ w.mT))
        # z's prior does not see a rotation, and alpha's likes W's columns orthogonal best.
        sizes, turn = torch.linalg.eigh(w.mT @ w + self.data_dim * spread)
        turn = turn.flip(-1)
        w, z = w @ turn, z @ turn
        spread, covariance = turn.mT @ spread @ turn, turn.mT @ covariance @ turn
        self.loadings.copy_(w)
        self.loadings_covariance.copy_(spread)
        self.mean.copy_(mean)
        self.mean_variance.copy_(variance)
        self.alpha_rate.copy_(self.rate + sizes.flip(0) / 2)
        squares = self._squares(values - ones[:, None] * self.mean.double(), z).sum()
        squares = squares + num_data * (covariance * self._gram).sum()
        squares = squares + num_data * self.data_dim * self.mean_variance
        self.sigma_concentration.fill_(self.noise_concentration + num_data * self.data_dim / 2)
        self.sigma_rate.copy_(self.noise_rate + squares / 2)

    @torch.no_grad()
    def log_prior(self) -> Float[Tensor, ""]:
        """What is global in the bound: minus the KL divergence of q(alpha, W, mu, sigma)."""
        like = self.loadings.new_ones((), dtype=torch.float64)
        shape = like * (self.concentration + self.data_dim / 2)
        rate = self.alpha_rate.double()
        q_alpha = Gamma(shape.expand_as(rate), rate)
        q_tau = Gamma(self.sigma_concentration.double(), self.sigma_rate.double())
        value = -kl_divergence(q_alpha, Gamma(like * self.concentration, like * self.rate)).sum()
        prior = Gamma(like * self.noise_concentration, like * self.noise_rate)
        value = value - kl_divergence(q_tau, prior)
        log_alpha = shape.digamma() - rate.log()
        log_det = 2 * cholesky(self.loadings_covariance.double()).diagonal().log().sum()
        value = value + 0.5 * self.data_dim * (log_alpha.sum() + log_det + self.latent_dim)
        value = value - 0.5 * (shape / rate * self._gram.diagonal()).sum()
        ratio = self.mean_variance.double() / self.mean_scale**2
        shift = self.mean.double().square().sum() / self.mean_scale**2
        return value - 0.5 * (self.data_dim * (ratio - 1 - ratio.log()) + shift)

    @property
    def expected_precision(self) -> Float[Tensor, " latent_dim"]:
        """E[alpha_j] of each column of W, in float64: large where the column is off."""
        return (self.concentration + self.data_dim / 2) / self.alpha_rate.detach().double()

    @torch.no_grad()
    def active_dimensions(self) -> int:
        """How many columns of W are longer than their posterior's uncertainty makes them."""
        lengths = self.loadings.double().square().sum(0)
        uncertainty = self.data_dim * self.loadings_covariance.double().diagonal()
        return int((lengths > uncertainty).sum())

    @torch.no_grad()
    def initialize(
        self,
        x: Float[Tensor, "num_data data_dim"],
        start: Start = PrincipalAxes(),  # noqa: B008 (immutable)
        generator: torch.Generator | None = None,
    ) -> None:
        """Start at probabilistic PCA with every column in use.

        Args:
            x: Training data.
            start: ``PrincipalAxes()`` or ``RandomAxes()``.
            generator: Of random axes; torch's global one if not given.

        Raises:
            DataError: If the data do not fit, or a value is missing.
        """
        self.check(x)
        point = ProbabilisticPCA(self.data_dim, self.latent_dim).to(self.loadings)
        point.initialize(x, start, generator)
        variance = point.noise_variance
        self.loadings.copy_(point.loadings)
        self.loadings_covariance.copy_(variance / len(x) * torch.eye(self.latent_dim).to(variance))
        self.mean.copy_(point.mean)
        self.mean_variance.copy_(variance / len(x))
        self.alpha_rate.copy_(self.rate + self._gram.diagonal() / 2)
        half = self.data_dim * len(x) / 2
        self.sigma_concentration.fill_(self.noise_concentration + half)
        self.sigma_rate.copy_(self.noise_rate + half * variance)

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            x: Data, ``(num_data, data_dim)``.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN or infinite.
        """
        as_batch(x[:1], self.data_dim, self.loadings)
        bad = ~x.isfinite()
        if bool(bad.any()):
            raise DataError(
                f"x holds {int(bad.sum())} values that are NaN or infinite, the first at index "
                f"{tuple(bad.nonzero()[0].tolist())}: drop those rows, or fill in missing values "
                "by ProbabilisticPCA's impute"
            )

    @torch.no_grad()
    def point(self) -> ProbabilisticPCA:
        """Probabilistic PCA at the posterior's means, for log p(x) of new data, and pictures."""
        found = ProbabilisticPCA(self.data_dim, self.latent_dim).to(self.loadings)
        found.set(loadings=self.loadings, mean=self.mean, noise_variance=1 / self._precision)
        found.centre.copy_(self.mean)
        return found


def _state(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
