r"""Families for the fractions of a stick, whose parameters a network gives.

Two numbers a fraction come from the network, and zeros stand for the prior Beta(1, α) or what is
nearest to it: with small outputs a guide starts where its divergence from the prior is small, and
learns to leave it. A guide whose network sees more than x, such as :math:`q(v \mid x, y)`, takes a
family as it is.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from guides.concentrations import LEAST, MOST, concentration_of, raw_concentration
from pyro_models.distributions.beta_draws import BetaDraws, GammaRatio, ImplicitBeta
from pyro_models.distributions.kumaraswamy import Kumaraswamy
from pyro_models.distributions.logit_normal import LogitNormal
from pyro_models.errors import OptionError
from pyro_models.networks import bounded_softplus
from pyro_models.options import positive_float

Outputs = Float[Tensor, "*lead outputs"]

# Log-odds beyond these are 0 or 1 to a float32, and a scale beyond is a coin that is thrown.
_FARTHEST, _NARROWEST, _WIDEST = 20.0, 1e-2, 10.0


@dataclass(frozen=True)
class StickFamily(ABC):
    r"""Parent of the families: fractions that are independent given the network's outputs.

    Args:
        concentration: :math:`\alpha` of the prior, at which outputs of zero stand.

    Raises:
        OptionError: If ``concentration`` is not between 0.02 and 50,000.
    """

    concentration: float = 5.0
    _start: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        value = positive_float("concentration", self.concentration)
        if not 2 * LEAST <= value <= MOST / 2:
            raise OptionError(
                f"concentration={value:g} is out of the families' reach; "
                f"give one from {2 * LEAST:g} to {MOST / 2:g}"
            )
        object.__setattr__(self, "_start", self._zeros_stand_for())

    @abstractmethod
    def _zeros_stand_for(self) -> tuple[float, float]:
        """What is added to the network's two numbers."""

    def num_outputs(self, sticks: int) -> int:
        """Numbers that the network gives a datum.

        Args:
            sticks: Fractions of a datum.
        """
        return 2 * sticks

    def distribution(self, outputs: Outputs) -> TorchDistributionMixin:
        """q(v), of batch shape ``(...)`` and event shape ``(sticks,)``.

        Args:
            outputs: What the network gives, ``(..., 2 * sticks)``: the first parameter of all
                fractions, then the second.

        Example:
            >>> KumaraswamySticks(concentration=5.0).distribution(torch.zeros(3, 8)).mean.shape
            torch.Size([3, 4])
        """
        return self.independent(*outputs.chunk(2, -1)).to_event(1)

    @abstractmethod
    def independent(
        self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
    ) -> TorchDistributionMixin:
        """The distribution of each fraction by itself.

        Args:
            first: The network's first number for each.
            second: The second.
        """


def _one_and(concentration: float) -> tuple[float, float]:
    """Raw numbers of the concentrations 1 and α."""
    first, second = raw_concentration(torch.tensor([1.0, concentration]).double()).tolist()
    return first, second


@final
@dataclass(frozen=True)
class KumaraswamySticks(StickFamily):
    r"""Kumaraswamy fractions: a closed form to draw by, and the paper's choice.

    .. math:: v_k \sim \mathrm{Kumaraswamy}(a_k, b_k)

    Outputs of zero are the prior itself: Kumaraswamy(1, α) is Beta(1, α).

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197
    """

    def independent(
        self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
    ) -> Kumaraswamy:
        """The Kumaraswamy of each fraction."""
        a, b = concentration_of(first + self._start[0]), concentration_of(second + self._start[1])
        return Kumaraswamy(a, b, validate_args=False)

    def _zeros_stand_for(self) -> tuple[float, float]:
        return _one_and(self.concentration)


@final
@dataclass(frozen=True)
class BetaSticks(StickFamily):
    r"""Beta fractions, whose draws are differentiated implicitly.

    .. math:: v_k \sim \mathrm{Beta}(a_k, b_k)

    Outputs of zero are the prior itself.

    References:
        Figurnov, Mohamed and Mnih 2018, https://arxiv.org/abs/1805.08498
    """

    def independent(
        self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
    ) -> BetaDraws:
        """The Beta of each fraction."""
        a, b = concentration_of(first + self._start[0]), concentration_of(second + self._start[1])
        return ImplicitBeta(a, b, validate_args=False)

    def _zeros_stand_for(self) -> tuple[float, float]:
        return _one_and(self.concentration)


@final
@dataclass(frozen=True)
class GammaRatioSticks(StickFamily):
    r"""Beta fractions, drawn as a gamma's share of two in log space.

    .. math:: v_k = \frac{g_{k1}}{g_{k1} + g_{k2}}, \qquad
              g_{k1} \sim \mathrm{Gamma}(a_k), \; g_{k2} \sim \mathrm{Gamma}(b_k)

    The density is that of ``BetaSticks``, the gradient's noise another. Outputs of zero are the
    prior itself.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197
    """

    def independent(
        self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
    ) -> BetaDraws:
        """The Beta of each fraction."""
        a, b = concentration_of(first + self._start[0]), concentration_of(second + self._start[1])
        return GammaRatio(a, b, validate_args=False)

    def _zeros_stand_for(self) -> tuple[float, float]:
        return _one_and(self.concentration)


@final
@dataclass(frozen=True)
class LogitNormalSticks(StickFamily):
    r"""Fractions whose log-odds are normal.

    .. math:: v_k = \sigma(m_k + s_k \varepsilon_k), \qquad \varepsilon_k \sim \mathcal N(0, 1)

    Outputs of zero have the mean and variance of the log-odds that the prior has,
    :math:`m = \psi(1) - \psi(\alpha)` and :math:`s^2 = \psi'(1) + \psi'(\alpha)`: 0.06 nats a
    fraction from it at α = 5.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197
    """

    def independent(
        self, first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
    ) -> LogitNormal:
        """The logit-normal of each fraction."""
        loc = _FARTHEST * torch.tanh((first + self._start[0]) / _FARTHEST)
        scale = bounded_softplus(second + self._start[1], floor=_NARROWEST, ceiling=_WIDEST)
        return LogitNormal(loc, scale, validate_args=False)

    def _zeros_stand_for(self) -> tuple[float, float]:
        both = torch.tensor([1.0, self.concentration], dtype=torch.float64)
        of_one, of_left = torch.digamma(both).tolist()
        loc = (of_one - of_left) / _FARTHEST
        rest = math.sqrt(torch.polygamma(1, both).sum().item()) - _NARROWEST
        softened = rest / (1 - rest / _WIDEST)  # what becomes of the raw number under the ceiling
        return _FARTHEST * math.atanh(max(-0.9, min(0.9, loc))), math.log(math.expm1(softened))
