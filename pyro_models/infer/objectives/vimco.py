"""The importance-weighted bound for discrete latents, each particle's baseline from the others."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.objectives.multi_sample import MultiSampleBound, importance_bound


class VIMCO(MultiSampleBound):
    r"""The importance-weighted bound with a leave-one-out baseline in its score function.

    The score of particle k is multiplied by what the particle adds to the bound,

    .. math::
        \log \frac1K \sum_j w_j - \log \frac1K \Big(\sum_{j \ne k} w_j + \hat w_k\Big), \qquad
        \log \hat w_k = \frac{1}{K - 1} \sum_{j \ne k} \log w_j .

    The second term does not depend on the particle's draw, so the gradient stays unbiased. Latents
    with ``rsample`` are differentiated along their path. Takes memory :math:`K^2` numbers a datum.

    Args:
        num_particles: K, at least 2.

    Raises:
        OptionError: If K is less than 2.

    References:
        Mnih and Rezende 2016, "Variational Inference for Monte Carlo Objectives",
        https://arxiv.org/abs/1602.06725

    Example:
        >>> VIMCO(num_particles=5)
        VIMCO(num_particles=5)
    """

    def __init__(self, num_particles: int):
        if num_particles < 2:
            raise OptionError(
                f"num_particles is {num_particles}; leaving one out takes at least 2 (for one, "
                "ScoreFunction(baseline=DecayingAverage()))"
            )
        super().__init__(num_particles)

    def __repr__(self) -> str:
        return f"VIMCO(num_particles={self.num_particles})"

    def value(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
        """The bound of each column of log-weights."""
        return importance_bound(log_w)

    def costs(
        self, log_w: Float[Tensor, "K M"], value: Float[Tensor, " M"]
    ) -> Float[Tensor, "#K M"]:
        """The bound, less what it would be without the particle."""
        count = len(log_w)
        own = torch.eye(count, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
        # Left out before they are added up: taken off afterwards, a weight of zero would leave NaN.
        others = torch.where(own, 0.0, log_w.unsqueeze(0)).sum(1, keepdim=True) / (count - 1)
        without = torch.where(own, others, log_w.unsqueeze(0)).logsumexp(1)
        return value - (without - math.log(count))
