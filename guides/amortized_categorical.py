"""An inference side for mixtures: a network gives each datum its components' probabilities."""

from collections.abc import Sequence
from typing import final

import pyro
import pyro.distributions as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.networks import MLP, as_batch, first_parameter
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate


@final
class AmortizedCategorical(nn.Module):
    r"""A posterior of the component whose logits a network reads off the datum.

    .. math:: q(k_n \mid x_n) = \mathrm{Categorical}\big(\mathrm{softmax}\, f(x_n)\big)

    Site: ``"component"`` in the plate ``"data"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        num_components: K.
        hidden: Widths of the encoder's hidden layers; ``(200,)`` if not given.
        activation: Class of the encoder's activation; ``nn.Tanh`` if not given.
        encoder: A network of your own instead of the multilayer perceptron, from
            ``(..., data_dim)`` to ``(..., num_components)``.
        preprocess: Module between the data and the encoder, such as ``networks.Standardize(x)``
            for data of another size than 1; by default the encoder sees the data as they are.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Mnih and Gregor 2014, https://arxiv.org/abs/1402.0030

    Example:
        >>> import torch
        >>> guide = AmortizedCategorical(data_dim=4, num_components=3)
        >>> guide(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        data_dim: int,
        num_components: int,
        hidden: Sequence[int] | None = None,
        activation: type[nn.Module] | None = None,
        encoder: nn.Module | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if encoder is not None and not (hidden is None and activation is None):
            raise OptionError(
                "hidden and activation describe the built-in encoder; give them or an encoder of "
                "your own, not both"
            )
        self.data_dim = positive_int("data_dim", data_dim)
        self.num_components = positive_int("num_components", num_components)
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        if encoder is None:
            widths = (200,) if hidden is None else hidden
            encoder = MLP(data_dim, widths, num_components, activation or nn.Tanh)
        self.encoder = encoder

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Int[Tensor, "..."]:
        """The Pyro program: draw a component for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The components, ``(batch,)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        if x is None:
            raise DataError("the guide infers components from data and got none; give x")
        rows = as_batch(x, self.data_dim, first_parameter(self))
        with data_plate(len(rows), num_data, rows.device):
            return pyro.sample("component", self.posterior(rows))

    def posterior(self, x: Float[Tensor, "*lead data_dim"]) -> dist.Categorical:
        """The distribution q(component | x), of batch shape ``(...)``.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.

        Raises:
            OptionError: If an encoder of your own does not give a logit for each component.

        Example:
            >>> import torch
            >>> AmortizedCategorical(4, 3).posterior(torch.zeros(5, 2, 4)).probs.shape
            torch.Size([5, 2, 3])
        """
        logits = self.encoder(self.preprocess(x))
        if logits.shape != (expected := (*x.shape[:-1], self.num_components)):
            raise OptionError(
                f"the encoder turned {tuple(x.shape)} into {tuple(logits.shape)}, but {expected} "
                "is expected; change its output layer, or wrap it in pyro_models.networks.Folded "
                "if it knows one batch dimension only"
            )
        return dist.Categorical(logits=logits)
