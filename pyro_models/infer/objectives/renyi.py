"""Rényi bounds of every order."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.objectives.multi_sample import MultiSampleBound

# So near to 1 the logarithm of the mean has lost its digits, and its expansion has all of them.
_NEAR_ONE = 1e-4


class RenyiELBO(MultiSampleBound):
    r"""The variational Rényi bound of order :math:`\alpha`,

    .. math::
        \mathcal L_\alpha = \frac{1}{1 - \alpha} E \log \frac1K \sum_k w_k^{1 - \alpha},
        \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x),

    a datum, summed over the data. It falls with :math:`\alpha`: 0 is the importance-weighted bound,
    1 the ELBO (its limit), :math:`\infty` the smallest and :math:`-\infty` the largest log-weight
    (VR-max). For :math:`\alpha \ge 0` it never exceeds log p(x); below 0 it may.

    Sites with ``rsample`` are differentiated along their path, others by the score function without
    a baseline; both are unbiased for :math:`\mathcal L_\alpha` at this K. ``VIMCO`` has a baseline.

    Args:
        alpha: The order, any number or infinity.
        num_particles: K.

    Raises:
        OptionError: If alpha is NaN or K less than 1.

    References:
        Li and Turner 2016, "Rényi Divergence Variational Inference",
        https://arxiv.org/abs/1602.02311

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.zeros(4)
        >>> round(RenyiELBO(0.5, num_particles=3).loss(model, guide, x) / 4, 4)  # exact guide
        1.2655
    """

    def __init__(self, alpha: float, num_particles: int):
        super().__init__(num_particles)
        if math.isnan(alpha):
            raise OptionError("alpha is NaN; give a number, or infinity with either sign")
        self.alpha = float(alpha)

    def __repr__(self) -> str:
        return f"RenyiELBO(alpha={self.alpha:g}, num_particles={self.num_particles})"

    def value(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
        """The bound of each column of log-weights."""
        power = 1.0 - self.alpha
        # Beyond this, products with log-weights may overflow, and log K / power is below rounding.
        if abs(power) > torch.finfo(log_w.dtype).max ** 0.5:
            return log_w.amax(0) if power > 0 else log_w.amin(0)
        if abs(power) < _NEAR_ONE:
            mean = log_w.mean(0)
            return mean + 0.5 * power * (log_w - mean).square().mean(0)
        return ((power * log_w).logsumexp(0) - math.log(len(log_w))) / power

    def costs(
        self, log_w: Float[Tensor, "K M"], value: Float[Tensor, " M"]
    ) -> Float[Tensor, "#K M"]:
        """The bound; at order 1, where it is a sum over particles, each one's own term."""
        return log_w / len(log_w) if self.alpha == 1.0 else super().costs(log_w, value)
