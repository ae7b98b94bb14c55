"""The ways to set the standard deviation of a normal likelihood."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.options import positive_float, positive_int


class Scale(nn.Module, ABC):
    """Parent of the ways to set the standard deviation of a normal likelihood."""

    data_dim: int | None = None
    """The only data dimension it fits, if it has a scale for each; ``None`` fits any."""

    @abstractmethod
    def forward(self, mean: Float[Tensor, "*lead data_dim"], x: Tensor | None) -> Tensor:
        """The standard deviation, which broadcasts against ``mean``.

        Args:
            mean: Means that the decoder gives.
            x: The data that are being explained, where there are some.
        """


@final
class FixedScale(Scale):
    """One standard deviation, given and never changed.

    Args:
        value: The standard deviation, in the units of the data.

    Raises:
        OptionError: If it is no finite number above 0.

    Example:
        >>> FixedScale(0.1)(torch.zeros(3), None)
        tensor(0.1000)
    """

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(positive_float("value", value)))

    def forward(self, mean: Float[Tensor, "*lead data_dim"], x: Tensor | None) -> Tensor:
        """The given standard deviation, 0-dim."""
        return self.value


@final
class LearnedScale(Scale):
    r"""A standard deviation learned by gradient with the other parameters.

    .. math:: \sigma = \mathrm{floor} + e^{\rho}

    with :math:`\rho` the parameter, so that its steps are relative to the data's units.

    Args:
        initial: Standard deviation at the start, in the units of the data.
        floor: It stays above this; without a floor a datum that is reproduced exactly would have
            infinite density.
        data_dim: Give it for a standard deviation for each data dimension; without it all share
            one.

    Raises:
        OptionError: If a number is not finite and above 0, or ``initial`` is not above ``floor``.

    Example:
        >>> LearnedScale(initial=0.5, data_dim=2)(torch.zeros(3, 2), None)
        tensor([0.5000, 0.5000], grad_fn=<AddBackward0>)
    """

    def __init__(
        self, initial: float = 1.0, floor: float = 1e-3, data_dim: int | None = None
    ) -> None:
        super().__init__()
        self.floor = positive_float("floor", floor)
        if positive_float("initial", initial) <= floor:
            raise OptionError(f"initial={initial} is not above floor={floor}; lower the floor")
        self.data_dim = None if data_dim is None else positive_int("data_dim", data_dim)
        shape = () if data_dim is None else (data_dim,)
        self.log_excess = nn.Parameter(torch.full(shape, math.log(initial - floor)))

    def forward(self, mean: Float[Tensor, "*lead data_dim"], x: Tensor | None) -> Tensor:
        """The standard deviation, 0-dim or ``(data_dim,)``."""
        return self.floor + self.log_excess.exp()


@final
class OptimalScale(Scale):
    r"""The standard deviation that is best for each minibatch, in closed form (sigma-VAE).

    .. math:: \sigma^2 = \frac{1}{B D} \sum_{b, d} (x_{bd} - \mu_{bd})^2

    is where the likelihood of the minibatch is highest, so no gradient flows through it. It is
    used while the module is in training mode and gradients are on. The last one is kept, and
    stands wherever looking at the data would be cheating or impossible: in evaluation mode, under
    ``torch.no_grad()``, and in simulation.

    Args:
        initial: Standard deviation until the first minibatch, in the units of the data.
        floor: It is never less than this.

    Raises:
        OptionError: If a number is not finite and above 0.

    References:
        Rybkin, Daniilidis and Levine 2021, https://arxiv.org/abs/2006.13202

    Example:
        >>> scale = OptimalScale()
        >>> scale(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))  # sqrt((9 + 16) / 2)
        tensor(3.5355)
        >>> scale.eval()(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]]))
        tensor(3.5355)
    """

    last: Tensor

    def __init__(self, initial: float = 1.0, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = positive_float("floor", floor)
        self.register_buffer("last", torch.tensor(positive_float("initial", initial)))

    def forward(self, mean: Float[Tensor, "*lead data_dim"], x: Tensor | None) -> Tensor:
        """The best standard deviation for ``x``, or the one that was best last, 0-dim."""
        if x is None or not self.training or not torch.is_grad_enabled():
            return self.last
        with torch.no_grad():
            best = (x - mean).square().mean().sqrt().clamp_min(self.floor)
            # A copy: the graph keeps `best`, which must not change under its backward pass.
            self.last.copy_(best)
        return best
