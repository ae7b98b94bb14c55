r"""Probabilities near 0 and near 1 without loss, by their logarithms.

Three scales are used for a probability p. On its own scale a float32 cannot tell 1 from 1 - 3e-8.
Its logarithm keeps everything near 0. :math:`\ell = \log(-\log p)` keeps both ends: near 1 it is
:math:`\log(1 - p)`, near 0 it is :math:`\log|\log p|`. Here p and 1 - p change places on it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_SMALL = 1e-2  # below it four terms of a series in t have float64's precision
_LARGE = 20.0  # beyond it exp(-t)² is under float64's rounding
_LOG_CEILING = 10.0  # exp(-exp(10)) is 0 in float64, and exp(10) is far from overflow


def log1mexp(t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The logarithm of a complement, of which neither end is lost:

    .. math:: \log(1 - e^{-t}), \qquad t > 0

    Args:
        t: Minus the logarithm of a probability; at 0 the result is minus infinity.

    References:
        Mächler 2012, https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf

    Example:
        >>> log1mexp(torch.tensor([1e-10, 1.0, 50.0]))
        tensor([-2.3026e+01, -4.5868e-01, -1.9287e-22])
    """
    near = t < math.log(2)
    half = torch.full_like(t, math.log(2))
    # Each branch sees only what it can differentiate.
    small = torch.log(-torch.expm1(-torch.where(near, t, half)))
    large = torch.log1p(-torch.exp(-torch.where(near, half, t)))
    return torch.where(near, small, large)


def log_complement(loglog: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r""":math:`\log(1 - p)` of a probability given as :math:`\ell = \log(-\log p)`.

    .. math:: \log\big(1 - \exp(-e^\ell)\big)

    It is finite, with a derivative between 0 and 1, however near p is to 1.

    Args:
        loglog: :math:`\ell`, any finite numbers.

    Example:
        >>> log_complement(torch.tensor([-1000.0, 0.0]))  # p = 1 - exp(-1000), p = 1/e
        tensor([-1.0000e+03, -4.5868e-01])
    """
    loglog_low = loglog.clamp_max(_LOG_CEILING)
    t = torch.exp(loglog_low)
    tiny = t < _SMALL
    squared = t * t
    series = loglog_low - t / 2 + squared / 24 - squared * squared / 2880
    return torch.where(tiny, series, log1mexp(torch.where(tiny, torch.ones_like(t), t)))


def complement(loglog: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r""":math:`\log(-\log(1 - p))` of a probability given as :math:`\ell = \log(-\log p)`.

    It is its own inverse.

    Args:
        loglog: :math:`\ell`, such that :math:`e^\ell` does not overflow.

    Example:
        >>> complement(torch.tensor([5.0, -148.41316]))
        tensor([-148.4132,    5.0000])
    """
    t = torch.exp(loglog)
    large = t > _LARGE
    # -log(1 - y) = y (1 + y/2 + ...) with y = exp(-t)
    vanishing = torch.exp(-torch.where(large, t, torch.full_like(t, _LARGE)))
    far = -t + vanishing / 2
    near = torch.log(-log_complement(torch.where(large, torch.zeros_like(loglog), loglog)))
    return torch.where(large, far, near)


def loglog_of(
    log_p: Float[Tensor, "*shape"], log1m_p: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r""":math:`\log(-\log p)` from :math:`\log p` and :math:`\log(1 - p)`, whichever keeps more.

    Args:
        log_p: :math:`\log p`; it may have rounded to 0 where p is near 1.
        log1m_p: :math:`\log(1 - p)`; it may have rounded to 0 where p is near 0.

    Example:
        >>> loglog_of(torch.tensor([0.0, -300.0]), torch.tensor([-300.0, 0.0]))
        tensor([-300.0000,    5.7038])
    """
    below = log_p < -math.log(2)
    half = torch.full_like(log_p, -math.log(2))
    small = torch.log(-torch.where(below, log_p, half))
    t = -torch.where(below, half, log1m_p)  # p = 1 - exp(-t)
    large = t > _LARGE
    vanishing = torch.exp(-torch.where(large, t, torch.full_like(t, _LARGE)))
    near = torch.log(-torch.log1p(-torch.exp(-torch.where(large, torch.ones_like(t), t))))
    return torch.where(below, small, torch.where(large, -t + vanishing / 2, near))


def inside(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Numbers moved to the nearest one strictly between 0 and 1 that the type has.

    Args:
        value: Numbers, of which 0 and 1 and those beyond are moved.

    Example:
        >>> inside(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [1.1754943508222875e-38, 0.5, 0.9999999403953552]
    """
    limits = torch.finfo(value.dtype)
    return value.clamp(limits.tiny, 1 - limits.eps / 2)
