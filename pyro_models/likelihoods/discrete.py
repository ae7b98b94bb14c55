"""Likelihoods of whole numbers: categories and counts."""

import math
from typing import final

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.likelihoods.base import (
    MEAN_LIMITS,
    Likelihood,
    Outputs,
    Rows,
    check_finite,
    check_support,
    data_mean,
    fractional,
)
from pyro_models.options import positive_float, positive_int


@final
class Categorical(Likelihood):
    r"""Codes 0, ..., C - 1 in each dimension, with C outputs a dimension as logits.

    .. math:: x_d \mid z \sim \mathrm{Categorical}(\mathrm{softmax}(o_{d1}, \ldots, o_{dC}))

    Args:
        num_categories: C.

    Raises:
        OptionError: If it is no whole number of at least 1.

    Example:
        >>> Categorical(4)(torch.zeros(2, 3 * 4)).log_prob(torch.ones(2, 3)).exp()
        tensor([0.0156, 0.0156])
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.outputs_per_dim = positive_int("num_categories", num_categories)

    def forward(self, outputs: Outputs, x: Tensor | None = None) -> TorchDistributionMixin:
        """Independent categorical variables, event shape ``(data_dim,)``."""
        logits = outputs.unflatten(-1, (-1, self.outputs_per_dim))  # (..., data_dim, C)
        return dist.Categorical(logits=logits).to_event(1)

    def check(self, x: Rows) -> None:
        """Refuse anything but the codes 0, ..., C - 1."""
        check_finite(x)
        last = self.outputs_per_dim - 1
        bad = (x < 0) | (x > last) | fractional(x)
        fix = "number the categories from 0, and give num_categories as their count"
        check_support(x, bad, "Categorical", f"the codes 0, ..., {last}", fix)

    def initial_bias(self, x: Rows) -> Float[Tensor, " outputs"]:
        """Log of each code's share of the data, which is first raised to at least 0.001."""
        codes = x.flatten(1).long()
        dims, count = codes.shape[1], self.outputs_per_dim
        first = count * torch.arange(dims, device=x.device)
        counts = torch.bincount((codes + first).flatten(), minlength=dims * count)
        return (counts / len(x)).double().clamp_min(MEAN_LIMITS[0]).log()


@final
class Poisson(Likelihood):
    r"""Counts, with the outputs as log-rates that are bounded smoothly.

    .. math:: x_d \mid z \sim \mathrm{Poisson}\big(\exp(c \tanh(o_d / c))\big)

    Args:
        max_log_rate: c; rates lie between :math:`e^{-c}` and :math:`e^c`. Unlike a clamp, the
            bound leaves a gradient that leads back.

    Raises:
        OptionError: If it is not above 0 and at most 80, where rates leave float32.

    Example:
        >>> Poisson()(torch.tensor([0.0, 1e6])).mean
        tensor([1.0000e+00, 4.8517e+08])
    """

    def __init__(self, max_log_rate: float = 20.0) -> None:
        super().__init__()
        self.max_log_rate = positive_float("max_log_rate", max_log_rate)
        if max_log_rate > 80:
            raise OptionError(f"max_log_rate={max_log_rate} overflows float32; give at most 80")

    def forward(self, outputs: Outputs, x: Tensor | None = None) -> TorchDistributionMixin:
        """Independent Poisson variables, event shape ``(data_dim,)``."""
        log_rate = self.max_log_rate * torch.tanh(outputs / self.max_log_rate)
        return dist.Poisson(log_rate.exp()).to_event(1)

    def check(self, x: Rows) -> None:
        """Refuse anything but whole numbers from 0 up to the largest rate."""
        check_finite(x)
        most = math.exp(self.max_log_rate)
        fix = "choose likelihoods.Normal() for real numbers, or raise max_log_rate for huge counts"
        bad = (x < 0) | (x > most) | fractional(x)
        check_support(x, bad, "Poisson", f"whole numbers from 0 to {most:.3g}", fix)

    def initial_bias(self, x: Rows) -> Float[Tensor, " outputs"]:
        """The output whose rate is the mean of the data, which is first raised to 0.001."""
        limit = self.max_log_rate
        share = data_mean(x).clamp_min(MEAN_LIMITS[0]).log() / limit
        return limit * torch.atanh(share.clamp(-0.99, 0.99))
