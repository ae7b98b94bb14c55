"""The sigmoid belief network's generative side: layers of binary units above the data."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.likelihoods import Bernoulli, Likelihood
from pyro_models.likelihoods.parts import check_data, require_likelihood, start_at_mean
from pyro_models.networks import MLP, as_batch
from pyro_models.options import positive_int, widths
from pyro_models.programs import announce, data_plate


@final
class SigmoidBeliefNetwork(nn.Module):
    r"""Layers of binary units, each of which sets the probabilities of the layer below.

    .. math::
        z_L \sim \mathrm{Bernoulli}(\sigma(a)), \qquad
        z_l \mid z_{l+1} \sim \mathrm{Bernoulli}\big(\sigma(f_l(2 z_{l+1} - 1))\big), \qquad
        x \mid z_1 \sim p\big(x \mid f_0(2 z_1 - 1)\big)

    for each datum, with learned logits :math:`a`. The layers see their inputs centred, as -1 and 1.
    Every :math:`f_l` is linear if ``hidden`` is empty (200H-784V in the papers), and otherwise has
    deterministic layers between two stochastic ones (200H~784V: two of them, of 200 tanh units).
    Sites: latents ``"z_1"`` (next to the data) to ``"z_L"`` and observed ``"x"``, all in the plate
    ``"data"``; the only layer of a network is ``"z_1"`` too.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dims: Units of z_1, ..., z_L, from the data up.
        hidden: Widths of the deterministic layers in each f_l, from its input to its output.
        likelihood: What the outputs of f_0 mean; ``Bernoulli()`` if not given.
        activation: Class of the deterministic layers' activation.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Neal 1992, https://doi.org/10.1016/0004-3702(92)90065-6
        Mnih and Gregor 2014, https://arxiv.org/abs/1402.0030
        Maddison, Mnih and Teh 2017, https://arxiv.org/abs/1611.00712

    Example:
        >>> model = SigmoidBeliefNetwork(data_dim=784, latent_dims=(200, 100))
        >>> model(num_data=3).shape  # simulate
        torch.Size([3, 784])
        >>> x = torch.zeros(3, 784)
        >>> trace = pyro.poutine.trace(model).get_trace(x, num_data=60_000)  # condition
        >>> [trace.nodes[site]["value"].shape for site in ("z_2", "z_1")]
        [torch.Size([3, 100]), torch.Size([3, 200])]
    """

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int],
        hidden: Sequence[int] = (),
        likelihood: Likelihood | None = None,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dims = widths("latent_dims", latent_dims)
        if not self.latent_dims:
            raise OptionError("latent_dims=() leaves no latent layer; give at least one, as (200,)")
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        require_likelihood(self.likelihood, data_dim)
        self.prior_logits = nn.Parameter(torch.zeros(self.latent_dims[-1]))
        sizes = (data_dim * self.likelihood.outputs_per_dim, *self.latent_dims)
        self.layers = nn.ModuleList(
            MLP(above, hidden, below, activation) for below, above in pairwise(sizes)
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
        if x is not None:
            x = as_batch(x, self.data_dim, self.prior_logits)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        top = len(self.latent_dims)
        with data_plate(batch, num_data, self.prior_logits.device):
            logits: Tensor = self.prior_logits
            for number in range(top, 0, -1):  # z_L, ..., z_1
                z = pyro.sample(f"z_{number}", dist.Bernoulli(logits=logits).to_event(1))
                logits = self.layers[number - 1](2 * z - 1)  # (..., units below)
            return pyro.sample("x", self.likelihood(logits, x), obs=x)

    def decode(self, z: Float[Tensor, "*lead units"]) -> TorchDistributionMixin:
        """The distribution p(x | z_1), of batch shape ``(...)`` and event shape ``(data_dim,)``.

        Args:
            z: Units of the layer next to the data, ``(..., latent_dims[0])``; numbers between 0
                and 1, such as posterior means, are allowed.

        Example:
            >>> model = SigmoidBeliefNetwork(data_dim=4, latent_dims=(2,))
            >>> model.decode(torch.ones(5, 3, 2)).mean.shape
            torch.Size([5, 3, 4])
        """
        return self.likelihood(self.layers[0](2 * z - 1))

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            x: Data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN or infinite.
            SupportError: If a value lies outside the likelihood's support.

        Example:
            >>> from pyro_models.errors import SupportError
            >>> try:
            ...     SigmoidBeliefNetwork(2, (1,)).check(torch.tensor([[0.0, 0.5]]))
            ... except SupportError as error:
            ...     print(str(error)[:45])
            Bernoulli explains 0 and 1, but x[0, 1] = 0.5
        """
        check_data(self.likelihood, x, self.data_dim, self.prior_logits)

    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the output bias so that the network starts at the mean of the data.

        Args:
            x: Training data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.

        Example:
            >>> model = SigmoidBeliefNetwork(data_dim=2, latent_dims=(1,))
            >>> model.initialize(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
            >>> model.decode(torch.full((1, 1), 0.5)).mean.detach()
            tensor([[0.5000, 0.9990]])
        """
        bias = self.get_parameter("layers.0.output.bias")
        start_at_mean(bias, self.likelihood, x, self.data_dim)
