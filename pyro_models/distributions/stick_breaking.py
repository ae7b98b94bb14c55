r"""Breaking a stick of length one, in log space.

.. math::
    \pi_k = v_k \prod_{j<k} (1 - v_j), \quad k = 1, \dots, K - 1, \qquad
    \pi_K = \prod_{j<K} (1 - v_j)

The last piece takes what is left, so that the K pieces sum to one. Fractions come and go as
``Logs``, so that none is lost where a piece takes all or nothing of what is left.
"""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.nn.functional import pad

from pyro_models.distributions.kumaraswamy import Logs
from pyro_models.distributions.log_space import inside


def logs_of(v: Float[Tensor, "*shape"]) -> Logs:
    """Numbers in (0, 1) by their logarithms.

    Args:
        v: The numbers; 0 and 1 themselves give minus infinity.

    Example:
        >>> import torch
        >>> logs_of(torch.tensor(0.25))
        Logs(log_v=tensor(-1.3863), log1m_v=tensor(-0.2877))
    """
    return Logs(v.log(), (-v).log1p())


def log_weights_of_sticks(sticks: Logs) -> Float[Tensor, "*batch pieces"]:
    r""":math:`\log \pi` from the fractions that are broken off one after the other.

    Args:
        sticks: :math:`\log v` and :math:`\log(1 - v)`, both ``(..., K - 1)``.

    Returns:
        ``(..., K)``.

    Example:
        >>> import torch
        >>> log_weights_of_sticks(logs_of(torch.tensor([0.5, 0.5]))).exp()
        tensor([0.5000, 0.2500, 0.2500])
    """
    left = sticks.log1m_v.cumsum(-1)  # log of what is left after each break
    before = pad(left[..., :-1], (1, 0))
    pieces = sticks.log_v + before
    return pad(pieces, (0, 1)) + pad(left[..., -1:], (pieces.shape[-1], 0))


def sticks_of_log_weights(log_weights: Float[Tensor, "*batch pieces"]) -> Logs:
    r"""The fractions whose pieces have these weights: the inverse of ``log_weights_of_sticks``.

    .. math:: v_k = \pi_k \Big/ \sum_{j \ge k} \pi_j

    Args:
        log_weights: :math:`\log \pi`, ``(..., K)``; weights need not be normalised.

    Returns:
        :math:`\log v` and :math:`\log(1 - v)`, both ``(..., K - 1)``.

    Example:
        >>> import torch
        >>> sticks_of_log_weights(torch.tensor([0.5, 0.25, 0.25]).log()).log_v.exp()
        tensor([0.5000, 0.5000])
    """
    tails = log_weights.flip(-1).logcumsumexp(-1).flip(-1)
    # The odds of a piece against what comes after it say both logarithms without a difference of
    # near equals.
    odds = log_weights[..., :-1] - tails[..., 1:]
    return Logs(-_softplus(-odds), -_softplus(odds))


def _softplus(t: Tensor) -> Tensor:
    return t.clamp_min(0.0) + (-t.abs()).exp().log1p()


def log_abs_det(sticks: Logs) -> Float[Tensor, "*batch"]:
    r"""Logarithm of the Jacobian's determinant, of the first K - 1 weights by the fractions.

    .. math::
        \log\left|\frac{\partial(\pi_1, \dots, \pi_{K-1})}
                       {\partial(v_1, \dots, v_{K-1})}\right|
        = \sum_{k=1}^{K-1} \sum_{j<k} \log(1 - v_j)

    Args:
        sticks: :math:`\log v` and :math:`\log(1 - v)`, both ``(..., K - 1)``.

    Example:
        >>> import torch
        >>> log_abs_det(logs_of(torch.tensor([0.5, 0.2, 0.9]))).exp()  # 0.5 * (0.5 * 0.8)
        tensor(0.2000)
    """
    return sticks.log1m_v.cumsum(-1)[..., :-1].sum(-1)


@final
class StickBreaking(Transform):
    r"""The map from fractions in (0, 1) to the pieces of a stick, for ``TransformedDistribution``.

    It takes K - 1 numbers to the open simplex of K; its Jacobian is that of the first K - 1
    pieces. ``torch.distributions.StickBreakingTransform`` is another map: from all real numbers,
    of which it takes the logistic function after an offset that depends on the place, so that 0
    means equal pieces.

    Example:
        >>> import torch
        >>> from torch.distributions import Beta, TransformedDistribution
        >>> StickBreaking()(torch.tensor([0.5, 0.5]))
        tensor([0.5000, 0.2500, 0.2500])
        >>> fractions = Beta(torch.ones(4), 5 * torch.ones(4))
        >>> TransformedDistribution(fractions, [StickBreaking()]).event_shape
        torch.Size([5])
    """

    domain = constraints.independent(constraints.unit_interval, 1)
    codomain = constraints.simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StickBreaking)

    def __hash__(self) -> int:
        return hash(StickBreaking)

    def _call(self, x: Float[Tensor, "*batch sticks"]) -> Float[Tensor, "*batch pieces"]:
        return log_weights_of_sticks(logs_of(inside(x))).exp()

    def _inverse(self, y: Float[Tensor, "*batch pieces"]) -> Float[Tensor, "*batch sticks"]:
        logs = sticks_of_log_weights(y.clamp_min(torch.finfo(y.dtype).tiny).log())
        return inside(logs.log_v.exp())

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "*batch sticks"], y: Float[Tensor, "*batch pieces"]
    ) -> Float[Tensor, "*batch"]:
        """Logarithm of the determinant, of the first K - 1 pieces ``y`` by the fractions ``x``."""
        return log_abs_det(logs_of(inside(x)))

    def forward_shape(self, shape: Any) -> Any:
        """One more piece than there are fractions."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> Any:
        """One fraction fewer than there are pieces."""
        return torch.Size((*shape[:-1], shape[-1] - 1))
