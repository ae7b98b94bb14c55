"""The stick-breaking variational autoencoder's generative side: weights of a stick as the code."""

from collections.abc import Sequence
from typing import final

import pyro
import pyro.distributions as dist
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.distributions.stick_fractions import log_weights_at
from pyro_models.errors import OptionError
from pyro_models.likelihoods import Bernoulli, Likelihood
from pyro_models.likelihoods.parts import (
    check_data,
    output_bias_of,
    require_likelihood,
    start_at_mean,
)
from pyro_models.networks import as_batch, first_parameter
from pyro_models.options import positive_float, positive_int
from pyro_models.own_networks import outputs_of, own_or_perceptron
from pyro_models.programs import announce, data_plate


@final
class StickBreakingVAE(nn.Module):
    r"""A variational autoencoder whose code is a stick of length one, broken into pieces.

    .. math::
        v_{nk} \sim \mathrm{Beta}(1, \alpha), \qquad
        \pi_{nk} = v_{nk} \prod_{j<k} (1 - v_{nj}), \qquad
        \pi_{nK} = \prod_{j<K} (1 - v_{nj}), \qquad
        x_n \mid \pi_n \sim p\big(x \mid \mathrm{decoder}(\pi_n)\big)

    for data n = 1, ..., N and pieces k = 1, ..., K - 1 (equation 45 of the notes). The code
    :math:`\pi_n` is what a Dirichlet process has as weights, cut off at K pieces of which the last
    takes the remainder; early pieces are large, so that a datum uses as many as it needs. Sites:
    latent ``"v"``, the K - 1 fractions in (0, 1), and observed ``"x"``, both in the plate
    ``"data"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        truncation: K, pieces of the stick, at least 2.
        concentration: :math:`\alpha > 0`; about :math:`\alpha` pieces hold most of the stick.
        hidden: Widths of the decoder's hidden layers; ``(500,)`` if not given, as in the paper.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        activation: Class of the decoder's activation; ``nn.ReLU`` if not given.
        decoder: A network of your own instead of the multilayer perceptron, from
            ``(..., truncation)`` to ``(..., data_dim * likelihood.outputs_per_dim)``. If it knows
            one batch dimension only, wrap it in ``networks.Folded``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197
        Ishwaran and James 2001 (truncation), https://doi.org/10.1198/016214501750332758

    Example:
        >>> import torch
        >>> model = StickBreakingVAE(data_dim=784, truncation=50, concentration=5.0)
        >>> model(num_data=3).shape  # simulate
        torch.Size([3, 784])
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3, 784), num_data=60_000)
        >>> trace.nodes["v"]["value"].shape, trace.nodes["x"]["is_observed"]
        (torch.Size([3, 49]), True)
    """

    def __init__(
        self,
        data_dim: int,
        truncation: int = 50,
        concentration: float = 5.0,
        hidden: Sequence[int] | None = None,
        likelihood: Likelihood | None = None,
        activation: type[nn.Module] | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.truncation = positive_int("truncation", truncation)
        if truncation < 2:
            raise OptionError("truncation=1 leaves nothing to break; give at least 2")
        self.concentration = positive_float("concentration", concentration)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        require_likelihood(self.likelihood, data_dim)
        self.outputs = data_dim * self.likelihood.outputs_per_dim
        sizes = (truncation, self.outputs)
        self.decoder = own_or_perceptron(
            "decoder", decoder, sizes, hidden, activation, usual=((500,), nn.ReLU)
        )

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
        like = first_parameter(self)
        if x is not None:
            x = as_batch(x, self.data_dim, like)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, like.device):
            code = self.weights(pyro.sample("v", self.prior()))
            return pyro.sample("x", self.likelihood(self._outputs(code), x), obs=x)

    def prior(self) -> TorchDistributionMixin:
        """The distribution p(v) of one datum's fractions, of event shape ``(truncation - 1,)``.

        Example:
            >>> StickBreakingVAE(data_dim=4, truncation=3, concentration=4.0).prior().mean
            tensor([0.2000, 0.2000])
        """
        one = first_parameter(self).new_ones(self.truncation - 1)
        return dist.Beta(one, self.concentration * one).to_event(1)

    def weights(self, v: Float[Tensor, "*lead sticks"]) -> Float[Tensor, "*lead truncation"]:
        r"""The pieces :math:`\pi` of sticks that are broken at these fractions; they sum to one.

        Args:
            v: Fractions in (0, 1), ``(..., truncation - 1)``.

        Example:
            >>> import torch
            >>> StickBreakingVAE(data_dim=4, truncation=3).weights(torch.tensor([0.5, 0.2]))
            tensor([0.5000, 0.1000, 0.4000])
        """
        return log_weights_at(v).exp()

    def _outputs(self, code: Float[Tensor, "*lead truncation"]) -> Float[Tensor, "*lead outputs"]:
        return outputs_of("decoder", self.decoder, code, self.outputs, "the likelihood")

    def decode(self, code: Float[Tensor, "*lead truncation"]) -> TorchDistributionMixin:
        r"""The distribution p(x | π), of batch shape ``(...)`` and event shape ``(data_dim,)``.

        Args:
            code: Weights :math:`\pi`, ``(..., truncation)``; of fractions, see :meth:`weights`.

        Example:
            >>> import torch
            >>> model = StickBreakingVAE(data_dim=4, truncation=3)
            >>> model.decode(model.weights(torch.full((5, 2), 0.5))).mean.shape
            torch.Size([5, 4])
        """
        return self.likelihood(self._outputs(code))

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            x: Data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN or infinite.
            SupportError: If a value lies outside the likelihood's support.
        """
        check_data(self.likelihood, x, self.data_dim, first_parameter(self))

    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the decoder's output bias so that it starts at the mean of the data.

        Args:
            x: Training data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
            OptionError: If the decoder has no ``output_bias`` to set.
        """
        bias = output_bias_of(self.decoder, self.outputs)
        start_at_mean(bias, self.likelihood, x, self.data_dim)
