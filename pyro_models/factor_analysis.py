"""Factor analysis: linear latents, and noise of its own for each dimension."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.latent_regression import is_complete
from pyro_models.linear_gaussian import LinearGaussian
from pyro_models.second_moments import Moments, leading_eigenpairs


@final
class FactorAnalysis(LinearGaussian):
    r"""Linear latents explain what the dimensions share; each has noise of its own.

    .. math::
        z_n \sim \mathcal N(0, I), \qquad
        x_n \mid z_n \sim \mathcal N(W z_n + \mu, \mathrm{diag}(\psi))

    for n = 1, ..., N, with :math:`z_n` of dimension ``latent_dim`` and :math:`x_n` of dimension
    ``data_dim``, so that :math:`x_n \sim \mathcal N(\mu, W W^\top + \mathrm{diag}(\psi))`. Sites:
    latent ``"z"`` and observed ``"x"``, both in the plate ``"data"``. NaN among the data is a
    value that is missing at random: it is summed out in every method, exactly.

    Fit it by ``infer.em``. An M-step sets all parameters, and then, where nothing is missing, W to
    what maximises the likelihood given the noise, in closed form (ECME), which converges in far
    fewer steps. Or fit it by ``infer.fit``, with ``guides.LinearGaussian`` or any other.

    Args:
        data_dim: Numbers a datum.
        latent_dim: Dimension of z, below ``data_dim``.
        floor: Least noise variance of a dimension, in its squared units. The likelihood may be
            largest where a dimension has no noise at all (a Heywood case); it then ends here.

    Raises:
        OptionError: If an option has no meaning, or ``latent_dim`` is not below ``data_dim``.

    References:
        Rubin and Thayer 1982 (EM), https://doi.org/10.1007/BF02293851
        Liu and Rubin 1994 (ECME), https://doi.org/10.1093/biomet/81.4.633

    Example:
        >>> x = torch.randn(200, 1) * torch.tensor([1.0, 2.0, -1.0]) + 0.5 * torch.randn(200, 3)
        >>> model = FactorAnalysis(data_dim=3, latent_dim=1)
        >>> model.initialize(x)
        >>> for _ in range(50):
        ...     model.maximize(x, model.posterior(x))
        >>> bool((model.covariance() - x.T.cov(correction=0)).abs().max() < 0.01)
        True
    """

    def __init__(self, data_dim: int, latent_dim: int, floor: float = 1e-6) -> None:
        super().__init__(data_dim, latent_dim, floor, (data_dim,))

    @property
    def num_free_parameters(self) -> int:
        """Degrees of freedom: of the mean, of W up to a rotation, and of the noise."""
        q = self.latent_dim
        return self.data_dim * (q + 2) - q * (q - 1) // 2

    def _pooled(
        self, residual: Float[Tensor, " data_dim"], seen: Float[Tensor, " data_dim"]
    ) -> Float[Tensor, " data_dim"]:
        return torch.where(seen > 0, residual / seen, self.noise_variance.double())

    def _to_principal_axes(self, x: Moments) -> None:
        r"""W given the noise: :math:`\Psi^{1/2} U_q (\Lambda_q - I)^{1/2}`.

        With the eigenpairs of :math:`\Psi^{-1/2} S \Psi^{-1/2}`, S the data's covariance.
        """
        scale = self.noise_variance.double().sqrt()
        rows = x.deviations / (x.num_data**0.5 * scale)
        values, axes = leading_eigenpairs(rows, self.latent_dim)
        loadings = scale[:, None] * axes * (values - 1).clamp_min(0).sqrt()
        self.set(loadings=loadings, mean=x.mean)

    def _after_step(self, x: Float[Tensor, "num_data data_dim"] | Moments) -> None:
        if isinstance(x, Tensor):
            if not is_complete(x):
                return
            x = self.condense(x)
        if x.complete:
            self._to_principal_axes(x)
