"""Posteriors of a latent code, whose parameters a network gives."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from guides.covariance import Covariance, Diagonal
from guides.stick_families import KumaraswamySticks, StickFamily
from pyro_models.errors import OptionError
from pyro_models.options import positive_int


@dataclass(frozen=True)
class CodePosterior(ABC):
    """Parent of the posteriors: they read a network's outputs as the distribution of a code."""

    @property
    @abstractmethod
    def site(self) -> str:
        """Name of the latent."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Numbers that the network must give for each datum."""

    @property
    @abstractmethod
    def starts_small(self) -> bool:
        """Whether the network's outputs should be small at first, as zeros stand for the prior."""

    @abstractmethod
    def distribution(self, outputs: Float[Tensor, "*lead outputs"]) -> TorchDistributionMixin:
        """The distribution of the latent, of batch shape ``(...)``.

        Args:
            outputs: The network's, ``(..., outputs)``.
        """


@final
@dataclass(frozen=True)
class NormalCodePosterior(CodePosterior):
    r"""A normal posterior of the code z, :math:`\mathcal N(\mu, \Sigma)`.

    Args:
        latent_dim: Dimension of z.
        covariance: ``Diagonal()`` or ``Full()``.

    Raises:
        OptionError: If an option has no meaning.

    Example:
        >>> NormalCodePosterior(latent_dim=3).outputs
        6
    """

    latent_dim: int
    covariance: Covariance = Diagonal()  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        positive_int("latent_dim", self.latent_dim)
        if not isinstance(self.covariance, Covariance):
            raise OptionError(
                f"covariance={self.covariance!r} is none; give guides.Diagonal() or guides.Full()"
            )

    @property
    def site(self) -> str:
        """Name of the latent."""
        return "z"

    @property
    def outputs(self) -> int:
        """Numbers that the network must give for each datum."""
        return self.covariance.num_outputs(self.latent_dim)

    @property
    def starts_small(self) -> bool:
        """No: zeros stand for nothing in particular."""
        return False

    def distribution(self, outputs: Float[Tensor, "*lead outputs"]) -> TorchDistributionMixin:
        """The normal distribution."""
        return self.covariance.normal(outputs, self.latent_dim)


@final
@dataclass(frozen=True)
class StickCodePosterior(CodePosterior):
    r"""A posterior of the K - 1 fractions v of a stick, independent given the network's outputs.

    Args:
        truncation: K, pieces of the stick, at least 2.
        family: ``KumaraswamySticks(concentration)``, ``BetaSticks``, ``LogitNormalSticks`` or
            ``GammaRatioSticks``, with the prior's :math:`\alpha`, near which it starts.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197

    Example:
        >>> StickCodePosterior(truncation=50).outputs
        98
    """

    truncation: int
    family: StickFamily = KumaraswamySticks()  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        if positive_int("truncation", self.truncation) < 2:
            raise OptionError("truncation=1 leaves nothing to break; give at least 2")
        if not isinstance(self.family, StickFamily):
            raise OptionError(
                f"family={self.family!r} is none; give guides.KumaraswamySticks(concentration) or "
                "another of guides' families of sticks"
            )

    @property
    def site(self) -> str:
        """Name of the latent."""
        return "v"

    @property
    def outputs(self) -> int:
        """Numbers that the network must give for each datum."""
        return self.family.num_outputs(self.truncation - 1)

    @property
    def starts_small(self) -> bool:
        """Yes: with many fractions the divergence would else outweigh what the data say."""
        return True

    def distribution(self, outputs: Float[Tensor, "*lead outputs"]) -> TorchDistributionMixin:
        """The family's distribution."""
        return self.family.distribution(outputs)
