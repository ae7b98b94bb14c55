"""Guides for linear latents: a free one, and the exact posterior of the model."""

from typing import Protocol, final, runtime_checkable

import pyro
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from guides.covariance import Covariance, Diagonal, Full
from pyro_models.errors import DataError, OptionError
from pyro_models.networks import as_batch
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate


@runtime_checkable
class NormalPosterior(Protocol):
    """What an exact E-step gives."""

    def distribution(self) -> TorchDistributionMixin:
        """As a distribution."""


@runtime_checkable
class LinearModel(Protocol):
    """A model whose latent z is, given x, normal with a mean linear in x."""

    @property
    def mean(self) -> Tensor:
        """The mean of x, ``(data_dim,)``."""

    def posterior(self, x: Tensor, /) -> NormalPosterior:
        """The exact posterior of each datum."""

    def projection(self) -> tuple[Tensor, Tensor]:
        """P and T of the posterior N(P (x - mean), T T')."""


@final
class LinearGaussian(nn.Module):
    r"""A normal posterior with a mean linear in the datum and one covariance for all.

    .. math:: q(z_n \mid x_n) = \mathcal N\big(A (x_n - m) + b, L L^\top\big)

    with free A, b and L: the family that holds the exact posteriors of probabilistic PCA and
    factor analysis. The centre m is fixed; :meth:`initialize` sets it to the data's mean. A value
    that is missing (NaN) counts as its mean. Site: ``"z"`` in the plate ``"data"``.

    Args:
        data_dim: Numbers a datum.
        latent_dim: Dimension of z.
        covariance: ``Full()`` or ``Diagonal()``.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Tipping and Bishop 1999, https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> guide = LinearGaussian(data_dim=5, latent_dim=2)
        >>> guide(torch.zeros(3, 5)).shape
        torch.Size([3, 2])
    """

    accepts_missing = True
    centre: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        covariance: Covariance = Full(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        if not isinstance(covariance, Covariance):
            raise OptionError(
                f"covariance={covariance!r} is none; give guides.Full() or guides.Diagonal()"
            )
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.covariance = covariance
        self.weight = nn.Parameter(torch.zeros(latent_dim, data_dim))
        self.bias = nn.Parameter(torch.zeros(latent_dim))
        # What the covariance reads besides the means: the same for every datum.
        self.spread = nn.Parameter(torch.zeros(covariance.num_outputs(latent_dim) - latent_dim))
        self.register_buffer("centre", torch.zeros(data_dim))

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Float[Tensor, "*lead latent_dim"]:
        """The Pyro program: draw a latent for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)``.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The latents, ``(batch, latent_dim)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        rows = _rows(x, self.data_dim, self.weight)
        with data_plate(len(rows), num_data, rows.device):
            return pyro.sample("z", self.posterior(rows))

    def posterior(self, x: Float[Tensor, "*lead data_dim"]) -> TorchDistributionMixin:
        """The distribution q(z | x), of batch shape ``(...)`` and event shape ``(latent_dim,)``.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.

        Example:
            >>> LinearGaussian(data_dim=4, latent_dim=2).posterior(torch.zeros(5, 3, 4)).mean.shape
            torch.Size([5, 3, 2])
        """
        deviation = torch.where(x.isnan(), 0, x - self.centre)
        loc = deviation @ self.weight.mT + self.bias  # (..., latent_dim)
        spread = self.spread.expand(*loc.shape[:-1], -1)
        return self.covariance.normal(torch.cat([loc, spread], -1), self.latent_dim)

    @torch.no_grad()
    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the centre m to the mean of the data.

        Args:
            x: Training data, ``(num_data, data_dim)``, NaN where missing.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.

        Example:
            >>> guide = LinearGaussian(data_dim=2, latent_dim=1)
            >>> guide.initialize(torch.tensor([[0.0, 1.0], [1.0, torch.nan]]))
            >>> guide.centre
            tensor([0.5000, 1.0000])
        """
        rows = as_batch(x, self.data_dim, self.weight)
        self.centre.copy_(rows.double().nanmean(0).nan_to_num(0.0))

    @torch.no_grad()
    def match(self, model: LinearModel) -> None:
        """Set A, b and L to the posterior of a model under its present parameters.

        With ``Full()`` that is the exact posterior of data without missing values; with
        ``Diagonal()`` the product of normals of least KL divergence from it. Scales stay within the
        bounds of the covariance.

        Args:
            model: ``ProbabilisticPCA`` or ``FactorAnalysis`` of the same sizes.

        Raises:
            OptionError: If the sizes differ, or the covariance is one of your own.
        """
        matrix, tril = model.projection()
        if matrix.shape != self.weight.shape:
            raise OptionError(
                f"the model's posterior takes {matrix.shape[1]} numbers to {matrix.shape[0]}, the "
                f"guide {self.data_dim} to {self.latent_dim}; make data_dim and latent_dim the same"
            )
        if not isinstance(self.covariance, Full | Diagonal):
            raise OptionError(
                f"match knows guides.Full() and guides.Diagonal(), not {self.covariance!r}"
            )
        if isinstance(self.covariance, Full):
            scale = tril.diagonal()
            row, column = torch.tril_indices(len(tril), len(tril), -1, device=tril.device)
            below = tril[row, column]
        else:
            scale = torch.linalg.inv(tril @ tril.mT).diagonal().rsqrt()
            below = scale[:0]
        raw = _inverse_bounded_softplus(scale, self.covariance.floor, self.covariance.ceiling)
        self.weight.copy_(matrix)
        self.bias.copy_(matrix @ (self.centre - model.mean).double())
        self.spread.copy_(torch.cat([raw, below]))


def _inverse_bounded_softplus(value: Tensor, floor: float, ceiling: float) -> Tensor:
    """The raw number that ``networks.bounded_softplus`` takes to a value between its bounds."""
    above = (value - floor).clamp(1e-6 * floor, (1 - 1e-6) * ceiling)
    softened = above / (1 - above / ceiling)
    return softened + torch.log(-torch.expm1(-softened))


@final
class ExactLinearGaussian(nn.Module):
    r"""The exact posterior p(z | x) of probabilistic PCA or factor analysis, missing values too.

    .. math:: q(z_n \mid x_n) = p_\theta(z_n \mid x_n)

    It follows the model's parameters and has none of its own. The ELBO is then log p(x), for every
    single draw: :math:`\log p_\theta(x, z) - \log p_\theta(z \mid x)` does not depend on z, nor
    does its gradient. Site: ``"z"`` in the plate ``"data"``.

    The model is held, not registered: its parameters are shown and saved by the model alone, and
    ``.to(...)`` must be called on the model. A copy of guide and model together (such as of a pair)
    keeps them together.

    Args:
        model: ``ProbabilisticPCA`` or ``FactorAnalysis``.

    Example:
        >>> from types import SimpleNamespace
        >>> standard = pyro.distributions.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> known = SimpleNamespace(distribution=lambda: standard)
        >>> model = SimpleNamespace(mean=torch.zeros(5), posterior=lambda x: known, projection=id)
        >>> ExactLinearGaussian(model)(torch.zeros(3, 5)).shape
        torch.Size([3, 2])
    """

    accepts_missing = True

    def __init__(self, model: LinearModel) -> None:
        super().__init__()
        if not isinstance(model, LinearModel):
            raise OptionError(
                f"model={type(model).__name__} has no exact linear posterior; give "
                "ProbabilisticPCA or FactorAnalysis, or use guides.LinearGaussian"
            )
        # In a tuple, nn.Module does not find it.
        self._held = (model,)

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Float[Tensor, "*lead latent_dim"]:
        """The Pyro program: draw a latent for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)``, NaN where missing.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The latents, ``(batch, latent_dim)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        mean = self._held[0].mean
        rows = _rows(x, len(mean), mean)
        with data_plate(len(rows), num_data, rows.device):
            return pyro.sample("z", self.posterior(rows))

    def posterior(self, x: Float[Tensor, "batch data_dim"]) -> TorchDistributionMixin:
        """The distribution p(z | x), of batch shape ``(batch,)`` and event shape ``(latent_dim,)``.

        Args:
            x: Data, ``(batch, data_dim)``, in the parameters' type.
        """
        return self._held[0].posterior(x).distribution()


def _rows(x: Tensor | None, data_dim: int, like: Tensor) -> Tensor:
    if x is None:
        raise DataError("the guide infers z from data and got none; give x")
    return as_batch(x, data_dim, like)
