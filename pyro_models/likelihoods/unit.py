"""Likelihoods of data in [0, 1]: binary ones and grey levels."""

from typing import final

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_models.distributions.continuous_bernoulli import ContinuousBernoulli as _Continuous
from pyro_models.likelihoods.base import (
    MEAN_LIMITS,
    Likelihood,
    Outputs,
    Rows,
    check_finite,
    check_support,
    data_mean,
)


@final
class Bernoulli(Likelihood):
    r"""Binary data, with the outputs as logits.

    .. math:: x_d \mid z \sim \mathrm{Bernoulli}(\sigma(o_d))

    Example:
        >>> Bernoulli()(torch.zeros(2, 3)).log_prob(torch.ones(2, 3)).exp()
        tensor([0.1250, 0.1250])
    """

    def forward(self, outputs: Outputs, x: Tensor | None = None) -> TorchDistributionMixin:
        """Independent Bernoulli variables, event shape ``(data_dim,)``."""
        return dist.Bernoulli(logits=outputs).to_event(1)

    def check(self, x: Rows) -> None:
        """Refuse anything but 0 and 1; grey pixels are pointed to binarisation."""
        check_finite(x)
        bad = (x != 0) & (x != 1)
        grey = bool(((x >= 0) & (x <= 1)).all())
        fix = (
            "for grey pixels, give fit transform=pyro_models.data.DynamicBinarization(), binarise "
            "them once with data.StaticBinarization(data.Stochastic(seed=0)), or choose "
            "likelihoods.ContinuousBernoulli()"
            if grey
            else "scale grey levels to [0, 1] and binarise them, or choose another likelihood, "
            "such as likelihoods.Normal() for real numbers"
        )
        check_support(x, bad, "Bernoulli", "0 and 1", fix)

    def initial_bias(self, x: Rows) -> Float[Tensor, " outputs"]:
        """Logit of the mean, which is first clipped to [0.001, 0.999]."""
        return torch.logit(data_mean(x).clamp(*MEAN_LIMITS))


@final
class ContinuousBernoulli(Likelihood):
    r"""Grey levels in [0, 1], with the outputs as logits of the continuous Bernoulli.

    .. math:: p(x_d \mid z) \propto e^{o_d x_d}, \qquad x_d \in [0, 1]

    References:
        Loaiza-Ganem and Cunningham 2019, https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli()(torch.zeros(2, 3)).log_prob(torch.full((2, 3), 0.4))
        tensor([0., 0.])
    """

    def forward(self, outputs: Outputs, x: Tensor | None = None) -> TorchDistributionMixin:
        """Independent continuous Bernoulli variables, event shape ``(data_dim,)``."""
        return _Continuous(outputs).to_event(1)

    def check(self, x: Rows) -> None:
        """Refuse anything outside [0, 1]."""
        check_finite(x)
        fix = "scale grey levels to [0, 1], or choose likelihoods.Normal() for real numbers"
        check_support(x, (x < 0) | (x > 1), "ContinuousBernoulli", "numbers in [0, 1]", fix)

    def initial_bias(self, x: Rows) -> Float[Tensor, " outputs"]:
        """The logit whose mean is that of the data, which is first clipped to [0.01, 0.99]."""
        # Near 0 and 1 the logit grows like 1 / mean: 0.001 would start it at -1000.
        mean = data_mean(x).clamp(0.01, 0.99)
        low, high = torch.full_like(mean, -101.0), torch.full_like(mean, 101.0)
        for _ in range(64):  # bisection: the mean rises with the logit
            middle = (low + high) / 2
            below = _Continuous(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2
