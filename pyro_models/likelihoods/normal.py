"""The likelihood of real data."""

from typing import final

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.likelihoods.base import Likelihood, Outputs, Rows, check_finite, data_mean
from pyro_models.likelihoods.scales import LearnedScale, Scale


@final
class Normal(Likelihood):
    r"""Real data, with the outputs as means.

    .. math:: x_d \mid z \sim \mathcal N(o_d, \sigma^2)

    Args:
        scale: How :math:`\sigma` is set: :class:`LearnedScale` (the default),
            :class:`OptimalScale` or :class:`FixedScale`.

    Raises:
        OptionError: If ``scale`` is none of these.

    Example:
        >>> import torch
        >>> Normal(LearnedScale(2.0))(torch.zeros(3)).sample().shape
        torch.Size([3])
    """

    def __init__(self, scale: Scale | None = None) -> None:
        super().__init__()
        if scale is not None and not isinstance(scale, Scale):
            raise OptionError(
                f"scale={scale!r} is none of FixedScale, LearnedScale and OptimalScale; "
                f"for a known standard deviation give FixedScale({scale!r})"
            )
        self.scale = LearnedScale() if scale is None else scale
        self.data_dim = self.scale.data_dim

    def forward(self, outputs: Outputs, x: Tensor | None = None) -> TorchDistributionMixin:
        """Independent normal variables, event shape ``(data_dim,)``."""
        return dist.Normal(outputs, self.scale(outputs, x)).to_event(1)

    def check(self, x: Rows) -> None:
        """Refuse NaN and infinity."""
        check_finite(x)

    def initial_bias(self, x: Rows) -> Float[Tensor, " outputs"]:
        """The mean of the data."""
        return data_mean(x)
