"""Families for one latent outside the data plate, for ``MeanField``."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from guides.concentrations import LEAST, MOST, concentration_of, raw_concentration
from guides.global_latents import Latent
from pyro_models.distributions.kumaraswamy import Kumaraswamy
from pyro_models.errors import OptionError
from pyro_models.networks import bounded_softplus
from pyro_models.options import positive_float


class FactorModule(nn.Module, ABC):
    """Parameters of q for one latent, and the distribution they make."""

    @abstractmethod
    def forward(self) -> TorchDistributionMixin:
        """The distribution, with the latent's event shape."""

    @abstractmethod
    def center(self) -> Tensor:
        """A value in the middle of the distribution."""

    @abstractmethod
    def move(self, real: Tensor) -> None:
        """Put the middle where these real numbers stand for it, with the width of the start."""


@dataclass(frozen=True)
class Factor(ABC):
    """Parent of the families."""

    @abstractmethod
    def module(self, latent: Latent) -> FactorModule:
        """Parameters for one latent.

        Raises:
            OptionError: If the family has another support than the latent.
        """


@final
@dataclass(frozen=True)
class NormalFactor(Factor):
    r"""Independent normals of the real numbers that stand for the latent.

    .. math:: \theta = T(\eta), \qquad \eta \sim \mathcal N(m, \mathrm{diag}(s^2))

    with T torch's transform of the real numbers onto the latent's support.

    Args:
        scale: s at the start.

    Raises:
        OptionError: If ``scale`` is not finite and above 0.

    References:
        Kucukelbir et al. 2017, https://arxiv.org/abs/1603.00788
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        positive_float("scale", self.scale)

    def module(self, latent: Latent) -> FactorModule:
        """Parameters for one latent; every support will do."""
        return _Normal(latent, self.scale)


@final
class _Normal(FactorModule):
    def __init__(self, latent: Latent, scale: float) -> None:
        super().__init__()
        self._latent = latent
        self._start = raw_scale(scale)
        self.loc = nn.Parameter(latent.start.clone())
        self.raw_scale = nn.Parameter(torch.full_like(latent.start, self._start))

    def forward(self) -> TorchDistributionMixin:
        normal = dist.Normal(self.loc, bounded_softplus(self.raw_scale))
        normal = normal.to_event(self._latent.real_event_dim)
        if isinstance(self._latent.elementary_support, type(constraints.real)):
            return normal
        # The cache gives log q its draw's own real numbers, not those that its rounded value has.
        return dist.TransformedDistribution(normal, [self._latent.transform.with_cache()])

    def center(self) -> Tensor:
        return self._latent.transform(self.loc)

    def move(self, real: Tensor) -> None:
        self.loc.copy_(real)
        self.raw_scale.fill_(self._start)


def raw_scale(scale: float) -> float:
    """What ``bounded_softplus`` makes ``scale`` of, but for its floor."""
    return float(torch.tensor(scale, dtype=torch.float64).expm1().log())


@final
@dataclass(frozen=True)
class BetaFactor(Factor):
    r"""A Beta for each fraction in (0, 1), the conjugate choice for the sticks of a Dirichlet
    process.

    .. math:: v_k \sim \mathrm{Beta}(a_k, b_k)

    Args:
        strength: a + b at the start.

    Raises:
        OptionError: If ``strength`` is not finite and above 0.

    References:
        Blei and Jordan 2006, https://doi.org/10.1214/06-BA104
    """

    strength: float = 10.0

    def __post_init__(self) -> None:
        positive_float("strength", self.strength)

    def module(self, latent: Latent) -> FactorModule:
        """Parameters for one latent of fractions in (0, 1)."""
        return _Fractions(latent, self.strength, dist.Beta)


@final
@dataclass(frozen=True)
class KumaraswamyFactor(Factor):
    r"""A Kumaraswamy for each fraction in (0, 1): like a Beta, with draws in closed form.

    .. math:: v_k \sim \mathrm{Kumaraswamy}(a_k, b_k)

    Args:
        strength: a + b at the start.

    Raises:
        OptionError: If ``strength`` is not finite and above 0.

    References:
        Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197
    """

    strength: float = 10.0

    def __post_init__(self) -> None:
        positive_float("strength", self.strength)

    def module(self, latent: Latent) -> FactorModule:
        """Parameters for one latent of fractions in (0, 1)."""
        return _Fractions(latent, self.strength, Kumaraswamy)


@final
class _Fractions(FactorModule):
    def __init__(
        self, latent: Latent, strength: float, family: type[dist.Beta] | type[Kumaraswamy]
    ) -> None:
        super().__init__()
        support = latent.elementary_support
        bounds = (getattr(support, "lower_bound", None), getattr(support, "upper_bound", None))
        if bounds != (0, 1):
            raise OptionError(
                f"the latent {latent.name!r} has the support {latent.support}, but a Beta or "
                "Kumaraswamy is of fractions in (0, 1); take NormalFactor() for it"
            )
        self._latent = latent
        self._family = family
        self._strength = strength
        self.log_a = nn.Parameter(torch.zeros_like(latent.start))
        self.log_b = nn.Parameter(torch.zeros_like(latent.start))
        with torch.no_grad():
            self.move(latent.start)

    def forward(self) -> TorchDistributionMixin:
        return self._family(*self._concentrations()).to_event(self._latent.event_dim)

    def _concentrations(self) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return concentration_of(self.log_a), concentration_of(self.log_b)

    def center(self) -> Tensor:
        return self._family(*self._concentrations()).mean

    def move(self, real: Tensor) -> None:
        a = (self._strength * real.sigmoid()).clamp(2 * LEAST, MOST / 2)
        b = (self._strength * (-real).sigmoid()).clamp(2 * LEAST, MOST / 2)
        if self._family is Kumaraswamy:
            # Its median is where the Beta's mean is.
            b = -math.log(2) / torch.log1p(-(real.sigmoid().clamp(1e-6, 1 - 1e-6) ** a))
            b = b.clamp(2 * LEAST, MOST / 2)
        self.log_a.copy_(raw_concentration(a))
        self.log_b.copy_(raw_concentration(b))
