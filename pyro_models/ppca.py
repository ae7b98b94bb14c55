"""Probabilistic principal component analysis."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import DataError, OptionError
from pyro_models.linear_gaussian import LinearGaussian
from pyro_models.second_moments import Moments, leading_eigenpairs


@final
class ProbabilisticPCA(LinearGaussian):
    r"""Linear latents and noise of one variance: principal components as a density.

    .. math::
        z_n \sim \mathcal N(0, I), \qquad
        x_n \mid z_n \sim \mathcal N(W z_n + \mu, \sigma^2 I)

    for n = 1, ..., N, with :math:`z_n` of dimension ``latent_dim`` and :math:`x_n` of dimension
    ``data_dim``, so that :math:`x_n \sim \mathcal N(\mu, W W^\top + \sigma^2 I)`. Sites: latent
    ``"z"`` and observed ``"x"``, both in the plate ``"data"``. NaN among the data is a value that
    is missing at random: it is summed out in every method, exactly.

    Fit it by :meth:`maximize_likelihood` (closed form), by ``infer.em``, also with missing values,
    or by ``infer.fit``, with ``guides.LinearGaussian`` or any other.

    Args:
        data_dim: Numbers a datum.
        latent_dim: Dimension of z, below ``data_dim``.
        floor: Least :math:`\sigma^2`, in the data's squared units.

    Raises:
        OptionError: If an option has no meaning, or ``latent_dim`` is not below ``data_dim``.

    References:
        Tipping and Bishop 1999, https://doi.org/10.1111/1467-9868.00196
        Roweis 1997 (EM, missing values), https://papers.nips.cc/paper/1398

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [1.0, 0.9], [2.0, 2.2], [3.0, 2.8]])
        >>> model = ProbabilisticPCA(data_dim=2, latent_dim=1)
        >>> model.maximize_likelihood(x)
        >>> round(model.log_prob(x).mean().item(), 3)
        -1.006
        >>> model.impute(torch.tensor([[4.0, torch.nan]]))
        tensor([[4.0000, 3.8500]])
    """

    def __init__(self, data_dim: int, latent_dim: int, floor: float = 1e-6) -> None:
        super().__init__(data_dim, latent_dim, floor, ())

    @property
    def num_free_parameters(self) -> int:
        """Degrees of freedom: of the mean, of W up to a rotation, and of the noise."""
        q = self.latent_dim
        return self.data_dim * (q + 1) + 1 - q * (q - 1) // 2

    @property
    def explained_variance(self) -> Float[Tensor, " latent_dim"]:
        """The variance of x along its principal axes, descending."""
        sizes = torch.linalg.svdvals(self.loadings.detach())
        return sizes.square() + self.noise_variance.detach()

    def _pooled(
        self, residual: Float[Tensor, " data_dim"], seen: Float[Tensor, " data_dim"]
    ) -> Float[Tensor, ""]:
        total = seen.sum()
        return torch.where(total > 0, residual.sum() / total, self.noise_variance.double())

    def _to_principal_axes(self, x: Moments) -> None:
        self.maximize_likelihood(x)

    def _after_step(self, x: Float[Tensor, "num_data data_dim"] | Moments) -> None:
        """Nothing does: W, mu and the noise have been raised together."""

    @torch.no_grad()
    def maximize_likelihood(
        self, x: Float[Tensor, "num_data data_dim"] | Moments, correction: int = 0
    ) -> None:
        r"""Set the parameters to those of maximum likelihood, in closed form.

        .. math::
            \sigma^2 = \frac{1}{D - q} \sum_{j > q} \lambda_j, \qquad
            W = U_q (\Lambda_q - \sigma^2 I)^{1/2}

        with :math:`\lambda_j` the eigenvalues of the data's covariance, descending, and
        :math:`U_q` the vectors of the first q. The data are read once; a covariance is formed
        where data_dim is less than N, and only its leading eigenpairs are computed where
        latent_dim is small.

        Args:
            x: Data without missing values, or what :meth:`condense` gave.
            correction: The covariance is divided by N less this: 0 is maximum likelihood, 1 is
                what scikit-learn's ``PCA`` reports. (Where N is less than data_dim it moreover
                averages the noise over N dimensions instead of all.)

        Raises:
            DataError: If a value is missing.
            OptionError: If no data are left after the correction.

        Example:
            >>> model = ProbabilisticPCA(data_dim=2, latent_dim=1)
            >>> model.maximize_likelihood(torch.tensor([[3.0, 1.0], [3, -1], [-3, 1], [-3, -1]]))
            >>> model.explained_variance.item(), model.noise_variance.item()
            (9.0, 1.0)
        """
        reduced = self.condense(x) if isinstance(x, Tensor) else x
        if not reduced.complete:
            raise DataError(
                "x holds NaN, and the closed form needs every value; use infer.em, whose steps sum "
                "missing values out"
            )
        divisor = reduced.num_data - correction
        if correction < 0 or divisor < 1:
            raise OptionError(
                f"correction={correction!r} leaves nothing of {reduced.num_data} data to divide "
                "by; give 0, or 1 for two data and more"
            )
        rows = reduced.deviations / divisor**0.5
        values, axes = leading_eigenpairs(rows, self.latent_dim)
        # Summed from the residuals: a difference of variances would lose the small ones.
        left_out = (rows - (rows @ axes) @ axes.mT).square().sum()
        noise = left_out / (self.data_dim - self.latent_dim)
        self.set(mean=reduced.mean, noise_variance=noise)
        scale = (values - self.noise_variance).clamp_min(0).sqrt()
        self.set(loadings=axes * scale)
        self.centre.copy_(reduced.mean)
        self.canonicalize()
