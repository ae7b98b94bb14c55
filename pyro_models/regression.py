"""Supervised regression: a network's outputs as the parameters of a likelihood."""

from collections.abc import Sequence
from typing import final

import pyro
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.likelihoods import FixedScale, Likelihood, Normal
from pyro_models.networks import MLP, as_batch, first_parameter
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate


@final
class SupervisedRegression(nn.Module):
    r"""Outputs given inputs, by a network: maximum likelihood is least squares.

    .. math:: x_n \mid u_n \sim \mathcal N\big(\mathrm{network}(u_n), I\big)

    for n = 1, ..., N, with inputs :math:`u_n` of dimension ``in_dim`` and outputs :math:`x_n` of
    dimension ``out_dim`` (in the lecture notes, inputs X and outputs Z). There is no latent: the
    guide is ``guides.Empty()``. Site: observed ``"x"`` in the plate ``"data"``; the program takes
    inputs first, so that ``fit`` is given ``(inputs, x)``. With ``hidden=()`` it is linear
    regression, and with another likelihood a generalised linear model or its deep form.

    Args:
        in_dim: Numbers an input.
        out_dim: Numbers an output.
        hidden: Widths of the network's hidden layers; ``()`` if not given.
        likelihood: What the network's outputs mean; ``Normal(FixedScale(1.0))`` if not given.
        activation: Class of the network's activation; ``nn.Sigmoid``, as in the notes, if not
            given.
        network: A network of your own, from ``(..., in_dim)`` to
            ``(..., out_dim * likelihood.outputs_per_dim)``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Bishop 2006, "Pattern Recognition and Machine Learning", sections 3.1 and 5.2

    Example:
        >>> model = SupervisedRegression(in_dim=3, out_dim=1, hidden=(20,))
        >>> model(torch.zeros(5, 3)).shape  # simulate outputs of five inputs
        torch.Size([5, 1])
        >>> model.log_prob(torch.zeros(5, 3), torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden: Sequence[int] | None = None,
        likelihood: Likelihood | None = None,
        activation: type[nn.Module] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if network is not None and not (hidden is None and activation is None):
            raise OptionError(
                "hidden and activation describe the built-in network; give them or a network of "
                "your own, not both"
            )
        self.in_dim = positive_int("in_dim", in_dim)
        self.out_dim = positive_int("out_dim", out_dim)
        self.likelihood = Normal(FixedScale(1.0)) if likelihood is None else likelihood
        if not isinstance(self.likelihood, Likelihood):
            raise OptionError(
                f"likelihood={self.likelihood!r} is no likelihood; give one of "
                "pyro_models.likelihoods, such as likelihoods.Normal()"
            )
        if self.likelihood.data_dim not in (None, out_dim):
            raise OptionError(
                f"the likelihood has parameters for {self.likelihood.data_dim} dimensions, but "
                f"out_dim={out_dim}; make them the same"
            )
        self.outputs = out_dim * self.likelihood.outputs_per_dim
        if network is None:
            network = MLP(in_dim, hidden or (), self.outputs, activation or nn.Sigmoid)
        self.network = network

    def forward(
        self,
        inputs: Shaped[Tensor, "batch *input"],
        x: Shaped[Tensor, "batch *datum"] | None = None,
        num_data: int | None = None,
    ) -> Shaped[Tensor, "*lead out_dim"]:
        """The Pyro program: simulate outputs of inputs, or condition on them.

        Args:
            inputs: A minibatch of inputs, ``(batch, in_dim)``.
            x: Their outputs, ``(batch, out_dim)``; ``None`` simulates.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The outputs, ``(batch, out_dim)``.

        Raises:
            DataError: If shapes, types or devices do not fit.
        """
        announce(self, "model")
        rows, x = self._rows(inputs, x)
        with data_plate(len(rows), num_data, rows.device):
            return pyro.sample("x", self.likelihood(self._outputs(rows), x), obs=x)

    def _rows(self, inputs: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor | None]:
        like = first_parameter(self)
        rows = as_batch(inputs, self.in_dim, like)
        if x is None:
            return rows, None
        if len(x) != len(rows):
            raise DataError(f"there are {len(rows)} inputs and {len(x)} outputs; give one for each")
        return rows, as_batch(x, self.out_dim, like)

    def _outputs(self, rows: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch outputs"]:
        outputs = self.network(rows)
        if outputs.shape != (expected := (len(rows), self.outputs)):
            raise OptionError(
                f"the network turned {tuple(rows.shape)} into {tuple(outputs.shape)}, but the "
                f"likelihood expects {expected}; change its output layer"
            )
        return outputs

    def predict(self, inputs: Shaped[Tensor, "batch *input"]) -> TorchDistributionMixin:
        """The distribution of the outputs, of batch shape ``(batch,)``, event shape ``(out_dim,)``.

        Args:
            inputs: Inputs, ``(batch, in_dim)``.

        Raises:
            DataError: If shape, type or device do not fit.
        """
        return self.likelihood(self._outputs(self._rows(inputs, None)[0]), None)

    def log_prob(
        self, inputs: Shaped[Tensor, "batch *input"], x: Shaped[Tensor, "batch *datum"]
    ) -> Float[Tensor, " batch"]:
        """The log-likelihood log p(x_n | u_n).

        Args:
            inputs: Inputs, ``(batch, in_dim)``.
            x: Their outputs, ``(batch, out_dim)``.

        Raises:
            DataError: If shapes, types or devices do not fit.
        """
        rows, outputs = self._rows(inputs, x)
        return self.likelihood(self._outputs(rows), outputs).log_prob(outputs)

    def check(
        self,
        inputs: Shaped[Tensor, "num_data *input"],
        x: Shaped[Tensor, "num_data *datum"] | None = None,
    ) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            inputs: Inputs, ``(num_data, in_dim)``.
            x: Their outputs, ``(num_data, out_dim)``.

        Raises:
            DataError: If shapes, types or devices do not fit, or a value is NaN or infinite.
            SupportError: If an output lies outside the likelihood's support.
        """
        self._rows(inputs, x)
        bad = ~inputs.isfinite()
        if bool(bad.any()):
            raise DataError(
                f"inputs hold {int(bad.sum())} values that are NaN or infinite, the first at index "
                f"{tuple(bad.nonzero()[0].tolist())}: drop those rows or fill in the values"
            )
        if x is not None:
            self.likelihood.check(x)

    @torch.no_grad()
    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the network's output bias so that it starts near the mean of the outputs.

        Args:
            x: Training outputs, ``(num_data, out_dim)``.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
            OptionError: If the network has no ``output_bias`` to set.
        """
        bias = getattr(self.network, "output_bias", None)
        if not isinstance(bias, nn.Parameter):
            raise OptionError(
                "the network has no output_bias to start at the outputs' mean; give it a "
                f"parameter of that name with {self.outputs} elements"
            )
        as_batch(x[:1], self.out_dim, bias)
        bias.copy_(self.likelihood.initial_bias(x))
