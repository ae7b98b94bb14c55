"""The sigmoid belief network's inference side: its layers in reverse, from the data up."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.networks import MLP, as_batch, first_parameter
from pyro_models.options import positive_int, widths
from pyro_models.programs import announce, data_plate


@final
class AmortizedBernoulli(nn.Module):
    r"""Binary units in layers, each of which sets the probabilities of the layer above.

    .. math::
        z_1 \mid x \sim \mathrm{Bernoulli}\big(\sigma(g_1(x - m))\big), \qquad
        z_{l+1} \mid z_l \sim \mathrm{Bernoulli}\big(\sigma(g_{l+1}(2 z_l - 1))\big)

    for each datum. The first layer sees the data less their training mean m, which
    :meth:`initialize` sets, and the others see -1 and 1. Every :math:`g_l` is linear if ``hidden``
    is empty. Sites: ``"z_1"``, ..., ``"z_L"`` in the plate ``"data"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dims: Units of z_1, ..., z_L, from the data up.
        hidden: Widths of the deterministic layers in each g_l, from its input to its output.
        activation: Class of the deterministic layers' activation.
        preprocess: Module between the data and the first layer, such as
            ``networks.Standardize(x)`` for data of another size than 1; m is the mean of what it
            gives.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Mnih and Gregor 2014, https://arxiv.org/abs/1402.0030
        Mnih and Rezende 2016, https://arxiv.org/abs/1602.06725

    Example:
        >>> guide = AmortizedBernoulli(data_dim=784, latent_dims=(200, 100))
        >>> [z.shape for z in guide(torch.zeros(3, 784))]
        [torch.Size([3, 200]), torch.Size([3, 100])]
    """

    center: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int],
        hidden: Sequence[int] = (),
        activation: type[nn.Module] = nn.Tanh,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dims = widths("latent_dims", latent_dims)
        if not self.latent_dims:
            raise OptionError("latent_dims=() leaves no latent layer; give at least one, as (200,)")
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        self.layers = nn.ModuleList(
            MLP(below, hidden, above, activation)
            for below, above in pairwise((data_dim, *self.latent_dims))
        )
        self.register_buffer("center", torch.zeros(data_dim))

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> tuple[Tensor, ...]:
        """The Pyro program: draw the units of every layer for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            z_1, ..., z_L, each ``(batch, units)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        if x is None:
            raise DataError("the guide infers z from data and got none; give x")
        rows = self._rows(x)
        with data_plate(len(rows), num_data, rows.device):
            drawn: list[Tensor] = [pyro.sample("z_1", self.posterior(rows))]
            for number, layer in enumerate(self.layers[1:], start=2):
                logits = layer(2 * drawn[-1] - 1)  # (..., units)
                drawn.append(pyro.sample(f"z_{number}", dist.Bernoulli(logits=logits).to_event(1)))
        return tuple(drawn)

    def _rows(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, "batch data_dim"]:
        return as_batch(x, self.data_dim, first_parameter(self.layers))

    def posterior(self, x: Float[Tensor, "*lead data_dim"]) -> TorchDistributionMixin:
        """The distribution q(z_1 | x), of batch shape ``(...)`` and event shape ``(units,)``.

        Those of the layers above it are mixtures over z_1, which have no form of their own.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.

        Example:
            >>> guide = AmortizedBernoulli(data_dim=4, latent_dims=(2,))
            >>> guide.posterior(torch.zeros(5, 3, 4)).mean.shape
            torch.Size([5, 3, 2])
        """
        logits = self.layers[0](self.preprocess(x) - self.center)
        return dist.Bernoulli(logits=logits).to_event(1)

    @torch.no_grad()
    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the mean m that the first layer's input is centred by.

        Args:
            x: Training data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.

        Example:
            >>> guide = AmortizedBernoulli(data_dim=2, latent_dims=(1,))
            >>> guide.initialize(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
            >>> guide.center
            tensor([0.5000, 1.0000])
        """
        self.center.copy_(self.preprocess(self._rows(x)).mean(0, dtype=torch.float64))
