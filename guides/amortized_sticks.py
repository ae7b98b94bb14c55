"""The stick-breaking autoencoder's inference side: a network gives each datum its fractions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import pyro
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from guides.stick_families import (
    BetaSticks,
    GammaRatioSticks,
    KumaraswamySticks,
    LogitNormalSticks,
    StickFamily,
)
from pyro_models.errors import DataError, OptionError
from pyro_models.networks import MLP, as_batch, first_parameter
from pyro_models.options import positive_int
from pyro_models.own_networks import outputs_of, own_or_perceptron
from pyro_models.programs import announce, data_plate

_START = 0.1


class AmortizedSticks(nn.Module, ABC):
    r"""Parent of the guides for a stick's fractions: independent given the datum.

    .. math:: q(v_n \mid x_n) = \prod_{k=1}^{K-1} q\big(v_{nk}; \mathrm{encoder}_k(x_n)\big)

    Site: ``"v"`` in the plate ``"data"``, the K - 1 fractions in (0, 1). The built-in encoder's
    last weights start at a tenth of Glorot's, so that the posterior starts near the prior, where
    the divergence is small: with fifty fractions it would else outweigh what the data say.

    Args:
        data_dim: Numbers a datum; images are flattened.
        truncation: K, pieces of the stick, at least 2.
        concentration: The prior's :math:`\alpha`, near which the posterior starts.
        hidden: Widths of the encoder's hidden layers; ``(500,)`` if not given, as in the paper.
        activation: Class of the encoder's activation; ``nn.ReLU`` if not given.
        encoder: A network of your own instead of the multilayer perceptron, from
            ``(..., data_dim)`` to ``(..., 2 * (truncation - 1))``; zeros stand for the prior.
        preprocess: Module between the data and the encoder, such as ``networks.Standardize(x)``
            for data of another size than 1; by default the encoder sees the data as they are.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.
    """

    def __init__(
        self,
        data_dim: int,
        truncation: int = 50,
        concentration: float = 5.0,
        hidden: Sequence[int] | None = None,
        activation: type[nn.Module] | None = None,
        encoder: nn.Module | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.truncation = positive_int("truncation", truncation)
        if truncation < 2:
            raise OptionError("truncation=1 leaves nothing to break; give at least 2")
        self.family = self.family_for(concentration)
        self.outputs = self.family.num_outputs(truncation - 1)
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        sizes = (data_dim, self.outputs)
        self.encoder = own_or_perceptron(
            "encoder", encoder, sizes, hidden, activation, usual=((500,), nn.ReLU)
        )
        if encoder is None:
            start_near_zero(self.encoder)

    @staticmethod
    @abstractmethod
    def family_for(concentration: float) -> StickFamily:
        r"""The family of the fractions.

        Args:
            concentration: The prior's :math:`\alpha`.
        """

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Float[Tensor, "*lead sticks"]:
        """The Pyro program: draw fractions for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The fractions, ``(batch, truncation - 1)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        if x is None:
            raise DataError("the guide infers v from data and got none; give x")
        rows = as_batch(x, self.data_dim, first_parameter(self))
        with data_plate(len(rows), num_data, rows.device):
            return pyro.sample("v", self.posterior(rows))

    def posterior(self, x: Float[Tensor, "*lead data_dim"]) -> TorchDistributionMixin:
        """The distribution q(v | x), of batch shape ``(...)``, event shape ``(truncation - 1,)``.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.

        Raises:
            OptionError: If an encoder of your own does not give what the family expects.

        Example:
            >>> guide = AmortizedKumaraswamy(data_dim=4, truncation=3)
            >>> guide.posterior(torch.zeros(5, 3, 4)).mean.shape
            torch.Size([5, 3, 2])
        """
        seen = self.preprocess(x)
        outputs = outputs_of("encoder", self.encoder, seen, self.outputs, self.family)
        return self.family.distribution(outputs)


@torch.no_grad()
def start_near_zero(encoder: nn.Module) -> None:
    """Shrink a built-in encoder's last weights, so that it starts near the family's prior.

    Args:
        encoder: Changed in place if it is a ``networks.MLP``.
    """
    if isinstance(encoder, MLP):
        encoder.output.weight.mul_(_START)


@final
class AmortizedKumaraswamy(AmortizedSticks):
    """Kumaraswamy fractions, see ``KumaraswamySticks``; arguments as for ``AmortizedSticks``.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197

    Example:
        >>> guide = AmortizedKumaraswamy(data_dim=784, truncation=50, concentration=5.0)
        >>> guide(torch.zeros(3, 784)).shape
        torch.Size([3, 49])
    """

    @staticmethod
    def family_for(concentration: float) -> KumaraswamySticks:
        """Kumaraswamy fractions."""
        return KumaraswamySticks(concentration)


@final
class AmortizedBeta(AmortizedSticks):
    """Beta fractions with implicit gradients, see ``BetaSticks``; arguments as for
    ``AmortizedSticks``.

    References:
        Figurnov, Mohamed and Mnih 2018, https://arxiv.org/abs/1805.08498

    Example:
        >>> AmortizedBeta(data_dim=784, truncation=50)(torch.zeros(3, 784)).shape
        torch.Size([3, 49])
    """

    @staticmethod
    def family_for(concentration: float) -> BetaSticks:
        """Beta fractions."""
        return BetaSticks(concentration)


@final
class AmortizedLogitNormal(AmortizedSticks):
    """Logit-normal fractions, see ``LogitNormalSticks``; arguments as for ``AmortizedSticks``.

    The divergence from the prior is an integral over one number, as exact as a closed form, see
    ``distributions.logit_normal``.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197

    Example:
        >>> AmortizedLogitNormal(data_dim=784, truncation=50)(torch.zeros(3, 784)).shape
        torch.Size([3, 49])
    """

    @staticmethod
    def family_for(concentration: float) -> LogitNormalSticks:
        """Logit-normal fractions."""
        return LogitNormalSticks(concentration)


@final
class AmortizedGammaRatio(AmortizedSticks):
    """Beta fractions drawn as a ratio of gammas, see ``GammaRatioSticks``; arguments as for
    ``AmortizedSticks``.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197

    Example:
        >>> AmortizedGammaRatio(data_dim=784, truncation=50)(torch.zeros(3, 784)).shape
        torch.Size([3, 49])
    """

    @staticmethod
    def family_for(concentration: float) -> GammaRatioSticks:
        """Fractions of a gamma in two."""
        return GammaRatioSticks(concentration)
