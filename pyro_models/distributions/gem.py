"""Weights of a stick broken at Beta(1, α) fractions, kept in log space."""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_models.distributions.kumaraswamy import Logs
from pyro_models.distributions.log_space import log1mexp
from pyro_models.distributions.stick_breaking import (
    log_abs_det,
    log_weights_of_sticks,
    sticks_of_log_weights,
)
from pyro_models.errors import OptionError


@final
class GEM(TorchDistribution):
    r"""The weights of a Dirichlet process in order of their breaking, cut off at K pieces.

    .. math::
        v_k \sim \mathrm{Beta}(1, \alpha), \qquad
        \pi_k = v_k \prod_{j<k} (1 - v_j), \quad k = 1, \dots, K - 1, \qquad
        \pi_K = \prod_{j<K} (1 - v_j)

    It is named after Griffiths, Engen and McCloskey. The last piece takes what is left, so that
    the K pieces sum to one. Of the fractions, :math:`\log(1 - v) = \log(u) / \alpha` for a uniform
    u, through which gradients flow to α.

    Args:
        concentration: :math:`\alpha > 0`, ``(*batch,)``; the larger, the more pieces share.
        truncation: K, at least 2.

    Raises:
        OptionError: If ``truncation`` is below 2.

    References:
        Ishwaran and James 2001, https://doi.org/10.1198/016214501750332758

    Example:
        >>> p = GEM(torch.tensor(1.0), truncation=4)
        >>> p.mean
        tensor([0.5000, 0.2500, 0.1250, 0.1250])
        >>> p.log_prob(p.mean).exp()  # 1 / (0.5 * 0.25)
        tensor(8.)
        >>> p.rsample_log_weights(torch.Size([5])).shape
        torch.Size([5, 4])
    """

    arg_constraints: ClassVar = {"concentration": constraints.positive}
    support = constraints.simplex
    has_rsample = True

    def __init__(
        self,
        concentration: Float[Tensor, "*batch"] | float,
        truncation: int,
        validate_args: bool | None = None,
    ) -> None:
        if truncation < 2:
            raise OptionError(
                f"truncation={truncation} pieces, but a stick is broken into at least 2"
            )
        self.concentration = torch.as_tensor(concentration)
        if not self.concentration.is_floating_point():
            self.concentration = self.concentration.to(torch.get_default_dtype())
        self.truncation = truncation
        event = torch.Size((truncation,))
        super().__init__(self.concentration.shape, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: "GEM | None" = None) -> "GEM":
        """The same distribution with its concentration expanded to another batch shape."""
        concentration = self.concentration.expand(batch_shape)
        return GEM(concentration, self.truncation, self._validate_args)

    def rsample_sticks(self, sample_shape: Any = ()) -> Logs:
        r"""Draw the fractions, as :math:`\log v` and :math:`\log(1 - v)`.

        Args:
            sample_shape: Leading shape of the draws.

        Returns:
            Both ``(*sample_shape, *batch, K - 1)``.
        """
        alpha = self.concentration.unsqueeze(-1)
        shape = (*torch.Size(sample_shape), *self.batch_shape, self.truncation - 1)
        uniform = torch.rand(shape, dtype=alpha.dtype, device=alpha.device)
        # torch's uniform draws are multiples of eps / 2, below 1, and may be 0.
        lost = -uniform.clamp_min(torch.finfo(alpha.dtype).eps / 4).log() / alpha
        return Logs(log1mexp(lost), -lost)

    def rsample_log_weights(self, sample_shape: Any = ()) -> Float[Tensor, "*out pieces"]:
        r"""Draw :math:`\log \pi`, of which no piece is lost however small it is.

        Args:
            sample_shape: Leading shape of the draws.
        """
        return log_weights_of_sticks(self.rsample_sticks(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*out pieces"]:
        """Draw π; pieces too small for the type are 0. See ``rsample_log_weights``."""
        return self.rsample_log_weights(sample_shape).exp()

    def log_prob_of_log_weights(
        self, log_weights: Float[Tensor, "*value pieces"]
    ) -> Float[Tensor, "*out"]:
        r"""Log-density in nats of the first K - 1 pieces, given all K by their logarithms.

        .. math::
            \log p(\pi_1, \dots, \pi_{K-1}) = (K - 1) \log \alpha
                + (\alpha - 1) \sum_{k<K} \log(1 - v_k) - \sum_{k<K} \sum_{j<k} \log(1 - v_j)

        which is finite wherever the logarithms are; the first sum is :math:`\log \pi_K`.

        Args:
            log_weights: ``(..., K)``, which broadcasts against the batch shape.
        """
        sticks = sticks_of_log_weights(log_weights)
        alpha = self.concentration
        density = (self.truncation - 1) * alpha.log() + (alpha - 1) * sticks.log1m_v.sum(-1)
        return density - log_abs_det(sticks)

    def log_prob(self, value: Float[Tensor, "*value pieces"]) -> Float[Tensor, "*out"]:
        """Log-density in nats of the first K - 1 pieces; a piece of 0 counts as the least number.

        Below the type's least number the density is not known from the value:
        ``log_prob_of_log_weights`` is exact there too.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_log_weights(value.clamp_min(torch.finfo(value.dtype).tiny).log())

    def _products(self, taken: Tensor, left: Tensor) -> Float[Tensor, "*batch pieces"]:
        """The pieces, if each break took and left these shares."""
        before = left.unsqueeze(-1) ** torch.arange(self.truncation, device=left.device)
        return torch.cat([taken.unsqueeze(-1) * before[..., :-1], before[..., -1:]], -1)

    @property
    def mean(self) -> Float[Tensor, "*batch pieces"]:
        r""":math:`\frac{1}{1 + \alpha} \big(\frac{\alpha}{1 + \alpha}\big)^{k-1}`, then the rest.

        The rest is :math:`\big(\frac{\alpha}{1 + \alpha}\big)^{K-1}`.
        """
        alpha = self.concentration
        return self._products(1 / (1 + alpha), alpha / (1 + alpha))

    @property
    def variance(self) -> Float[Tensor, "*batch pieces"]:
        r"""From :math:`E[v^2] = \frac{2}{(1 + \alpha)(2 + \alpha)}` and
        :math:`E[(1 - v)^2] = \frac{\alpha}{2 + \alpha}`, of which the second moments are products.
        """
        alpha = self.concentration.double()
        second = self._products(2 / ((1 + alpha) * (2 + alpha)), alpha / (2 + alpha))
        mean = self._products(1 / (1 + alpha), alpha / (1 + alpha))
        return (second - mean.square()).to(self.concentration.dtype)
