"""What the Bayesian mixtures share: normal components with a conjugate prior, and their steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import pyro
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_models.distributions.precision_normal import PrecisionNormal
from pyro_models.distributions.wishart_factor import WishartFactor, pack, unpack
from pyro_models.errors import DataError, OptionError
from pyro_models.likelihoods.base import check_finite
from pyro_models.normal_wishart import (
    NormalWishart,
    divergence,
    expected_log_density,
    log_predictive,
    update,
)
from pyro_models.options import positive_float
from pyro_models.starts import Start

# Least variance, relative to the largest, in the prior that is taken from data.
_FLOOR = 1e-6


@final
@dataclass(frozen=True, eq=False)
class NormalWishartPrior:
    r"""What is believed of each component before the data.

    .. math::
        \Lambda_k \sim \mathrm{Wishart}(\nu_0, S_0^{-1}), \qquad
        \mu_k \mid \Lambda_k \sim \mathcal N\big(m_0, (\beta_0 \Lambda_k)^{-1}\big)

    Args:
        mean: :math:`m_0`, ``(D,)``; ``None`` is the data's mean, set by ``initialize`` (0 before).
        strength: :math:`\beta_0`, so many data the prior mean is worth.
        degrees_of_freedom: :math:`\nu_0 > D - 1`; D if not given.
        scatter: :math:`S_0`, ``(D, D)``; ``None`` is the data's covariance, set by ``initialize``
            (the identity before).

    Raises:
        OptionError: If ``strength`` or ``degrees_of_freedom`` are not finite and above 0.
    """

    mean: Tensor | None = None
    strength: float = 1.0
    degrees_of_freedom: float | None = None
    scatter: Tensor | None = None

    def __post_init__(self) -> None:
        positive_float("strength", self.strength)
        if self.degrees_of_freedom is not None:
            positive_float("degrees_of_freedom", self.degrees_of_freedom)


@final
@dataclass(frozen=True, eq=False)
class BeliefPosterior:
    """What the variational E-step gives."""

    log_prob: Float[Tensor, " num_data"]
    """Each datum's share of the bound, nats: at most log p(x_n) given the belief's other data."""
    log_responsibilities: Float[Tensor, "num_data components"]
    """log q(component)."""
    bound: Tensor
    """The evidence lower bound, nats per datum: the mean of ``log_prob`` less KL / N."""

    @property
    def responsibilities(self) -> Float[Tensor, "num_data components"]:
        """q(component)."""
        return self.log_responsibilities.exp()


@runtime_checkable
class Weights(Protocol):
    """The belief about the weights of a mixture."""

    def expected_log(self) -> Float[Tensor, " components"]:
        """E[log π]."""

    def divergence(self) -> Float[Tensor, ""]:
        """KL from the prior."""


def frozen(value: Tensor) -> nn.Parameter:
    """A parameter that coordinate ascent sets and gradients do not."""
    return nn.Parameter(value, requires_grad=False)


@final
class NormalWishartComponents(nn.Module):
    """K normal components, their prior, and the belief about them that ascent updates.

    Args:
        num_components: K.
        data_dim: D.
        prior: The same for each component.

    Raises:
        OptionError: If the prior does not fit D.
    """

    prior_mean: Tensor
    prior_scatter_tril: Tensor

    def __init__(self, num_components: int, data_dim: int, prior: NormalWishartPrior) -> None:
        super().__init__()
        if not isinstance(prior, NormalWishartPrior):
            raise OptionError(f"prior={prior!r} is none; give a NormalWishartPrior(...)")
        degrees = prior.degrees_of_freedom
        self.prior_degrees = float(data_dim if degrees is None else degrees)
        if self.prior_degrees <= data_dim - 1:
            raise OptionError(
                f"degrees_of_freedom={degrees} is not above data_dim - 1 = {data_dim - 1}"
            )
        self.prior = prior
        self.num_components, self.data_dim = num_components, data_dim
        mean, tril = torch.zeros(data_dim), torch.eye(data_dim)
        if prior.mean is not None:
            mean = _shaped("mean", prior.mean, (data_dim,))
        if prior.scatter is not None:
            scatter = _shaped("scatter", prior.scatter, (data_dim, data_dim))
            tril, failed = torch.linalg.cholesky_ex(scatter)
            if bool(failed):
                raise OptionError("scatter is no positive definite matrix; give one")
        self.register_buffer("prior_mean", mean.clone())
        self.register_buffer("prior_scatter_tril", tril.clone())
        like = mean.new_ones(num_components)
        self.strength = frozen(like * prior.strength)
        self.mean = frozen(mean.repeat(num_components, 1))
        self.degrees_of_freedom = frozen(like * self.prior_degrees)
        self.scatter_tril = frozen(tril.repeat(num_components, 1, 1))

    def sample(self) -> tuple[Tensor, Tensor]:
        """Sites "precision_factors" and "means", from the prior."""
        return self._sample(
            self.prior_mean.new_full((self.num_components,), self.prior_degrees),
            self.prior_scatter_tril,
            self.prior_mean.new_full((self.num_components,), self.prior.strength),
            self.prior_mean.expand(self.num_components, -1),
        )

    def sample_belief(self) -> tuple[Tensor, Tensor]:
        """The same sites from the belief."""
        return self._sample(self.degrees_of_freedom, self.scatter_tril, self.strength, self.mean)

    def _sample(
        self, degrees: Tensor, tril: Tensor, strength: Tensor, mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        wishart = WishartFactor(degrees, tril).to_event(1)
        factors = unpack(pyro.sample("precision_factors", wishart))
        scaled = strength.sqrt().unsqueeze(-1).unsqueeze(-1) * factors
        means = pyro.sample("means", PrecisionNormal(mean, scaled).to_event(1))
        return means, factors

    def likelihood(
        self, means: Tensor, factors: Tensor, component: Tensor
    ) -> TorchDistributionMixin:
        """p(x | component), where the component may be enumerated."""
        return PrecisionNormal(
            Vindex(means)[..., component, :], Vindex(factors)[..., component, :, :]
        )

    def center(self) -> dict[str, Tensor]:
        """Values in the middle of the belief, by site."""
        belief = self.belief()
        degrees = belief.degrees_of_freedom.sqrt().unsqueeze(-1).unsqueeze(-1)
        factors = pack(degrees * torch.linalg.inv(belief.scatter_tril))
        values = {"means": belief.mean, "precision_factors": factors}
        return {name: value.to(self.mean.dtype) for name, value in values.items()}

    def log_joint(
        self, values: Mapping[str, Tensor], log_weights: Tensor, rows: Tensor
    ) -> Float[Tensor, "*lead rows components"]:
        """log p(x_n, component | the latents that all data share).

        Args:
            values: "means" and "precision_factors", which may have particles in front.
            log_weights: Of the components, ``(..., K)``.
            rows: Data, ``(N, D)``.
        """
        means, factors = values["means"], unpack(values["precision_factors"])
        lead = means.shape[:-2] or (1,)  # of particles, and the place of the data
        index = torch.arange(self.num_components, device=means.device)
        normal = self.likelihood(means, factors, index.reshape(-1, *(1 for _ in lead)))
        weights = log_weights.movedim(-1, 0).reshape(-1, *lead)
        return (normal.log_prob(rows) + weights).movedim(0, -1)

    def _prior(self) -> NormalWishart:
        like = self.strength.new_ones(self.num_components, dtype=torch.float64)
        return NormalWishart(
            like * self.prior.strength,
            self.prior_mean.double().expand(self.num_components, -1),
            like * self.prior_degrees,
            self.prior_scatter_tril.double().expand(self.num_components, -1, -1),
        )

    def belief(self) -> NormalWishart:
        """The belief, in float64."""
        return NormalWishart(
            self.strength.double(),
            self.mean.double(),
            self.degrees_of_freedom.double(),
            self.scatter_tril.double(),
        )

    def log_predictive(self, rows: Tensor) -> Float[Tensor, "rows components"]:
        """Log-density of a new datum under each component, in float64."""
        return log_predictive(self.belief(), rows.double())

    def assign(self, rows: Tensor, weights: Weights) -> BeliefPosterior:
        """The E-step, and the bound from the same pass."""
        joint = expected_log_density(self.belief(), rows.double()) + weights.expected_log()
        log_prob = joint.logsumexp(-1)
        divergences = divergence(self.belief(), self._prior()).sum() + weights.divergence()
        bound = log_prob.mean() - divergences / len(rows)
        log_r = joint - log_prob.unsqueeze(-1)
        return BeliefPosterior(log_prob.to(rows.dtype), log_r.to(rows.dtype), bound)

    def update(self, rows: Tensor, responsibilities: Tensor) -> None:
        """The M-step.

        Raises:
            DataError: If data or responsibilities are not finite; the belief stays.
        """
        found = update(self._prior(), rows.double(), responsibilities.double())
        if not all(bool(value.isfinite().all()) for value in found):
            raise DataError(
                "data or responsibilities hold NaN, infinity or values whose squares overflow; "
                "drop or standardise them"
            )
        for name, value in found._asdict().items():
            self.get_parameter(name).copy_(value)

    def take_prior_from(self, rows: Tensor) -> None:
        """Set what the prior leaves open from the data."""
        rows = rows.double()
        center = rows.mean(0)
        if self.prior.mean is None:
            self.prior_mean.copy_(center)
        if self.prior.scatter is None:
            deviations = rows - center
            covariance = deviations.mT @ deviations / max(len(rows) - 1, 1)
            largest = covariance.diagonal().max()
            floor = _FLOOR * torch.where(largest > 0, largest, torch.ones_like(largest))
            covariance = covariance + floor * torch.eye(len(center)).to(covariance)
            self.prior_scatter_tril.copy_(torch.linalg.cholesky(covariance))

    def check(self, rows: Tensor) -> None:
        """Refuse data that are not finite, or whose squares overflow.

        Raises:
            DataError: If there are such.
        """
        check_finite(rows)
        largest = float(rows.abs().max())
        if largest > torch.finfo(rows.dtype).max ** 0.5 / 1e3 / len(rows) ** 0.5:
            raise DataError(
                f"x holds {largest:.3g}, whose square overflows {rows.dtype}; drop such values, "
                "standardise, or use model.double()"
            )


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if tensor.shape != shape or not bool(tensor.isfinite().all()):
        raise OptionError(
            f"{name} of the prior has shape {tuple(tensor.shape)}; finite numbers of shape {shape} "
            "are expected"
        )
    return tensor


def start_responsibilities(
    rows: Shaped[Tensor, "num_data dim"],
    num_components: int,
    start: Start,
    generator: torch.Generator | None,
) -> Float[Tensor, "num_data components"]:
    """A first assignment, which leaves components empty where there are fewer data."""
    found = start.log_responsibilities(rows, min(num_components, len(rows)), generator).exp()
    return nn.functional.pad(found, (0, num_components - found.shape[-1]))
