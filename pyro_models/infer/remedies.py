"""Remedies for latents that collapse onto their prior: weights on their KL, and free bits.

A remedy changes what is optimised, never the bound that is reported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.schedules import KLSchedule, Progress


@dataclass(frozen=True)
class EachDimension:
    """Free bits for every dimension of a latent by itself."""


@dataclass(frozen=True)
class EachGroup:
    """Free bits for groups of neighbouring dimensions.

    Args:
        size: Dimensions of a group; it must divide the latent's.

    Raises:
        OptionError: If ``size`` is less than 1.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise OptionError(f"EachGroup(size={self.size}); give at least 1 dimension")


@dataclass(frozen=True)
class WholeSite:
    """Free bits for a latent as a whole."""


Share = EachDimension | EachGroup | WholeSite


@dataclass(frozen=True)
class FreeBits:
    r"""So many nats of a latent's KL cost nothing: in place of the KL stands

    .. math:: \sum_j \max \Big( \lambda, \frac1B \sum_{i \in \text{batch}} KL_{ij} \Big)

    a datum, j over the latent's dimensions, groups of them, or the latent as one. Where the mean
    over the minibatch (and over particles) is below :math:`\lambda` there is no gradient: the guide
    is not pulled to the prior. Of a latent outside the data plate there is no mean over data:
    :math:`\lambda` is then of its KL in all.

    A KL that has no closed form is estimated at the guide's draws. It is one of dimensions where
    guide and prior are both products of independent distributions (``to_event``); a full
    covariance, a one-hot vector or a mixture as prior has one KL for the whole. Data at which a
    latent is masked count as 0 in the mean.

    Args:
        nats: :math:`\lambda`, in nats a datum for each j; positive.
        each: ``EachDimension()``, ``EachGroup(size)`` or ``WholeSite()``; ``None`` is dimensions
            where the KL is made of them and else the whole.

    Raises:
        OptionError: If ``nats`` is not positive and finite, or ``each`` is something else. Before a
            fit's first step, if ``each`` asks for dimensions of a KL that is not made of any.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934; Dilokthanakul et al. 2016, "Deep Unsupervised Clustering
        with Gaussian Mixture Variational Autoencoders", https://arxiv.org/abs/1611.02648, where it
        is the KL of the clusters that has a threshold.

    Example:
        >>> import torch
        >>> terms = torch.tensor([[[0.1, 0.9]], [[0.3, 0.7]]])  # two particles, one datum, two KLs
        >>> FreeBits(0.5).floored(terms, split=True)
        tensor([[1.4000],
                [1.2000]])
    """

    nats: float
    each: Share | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.nats) and self.nats > 0):
            raise OptionError(f"FreeBits(nats={self.nats}); give a positive number of nats")
        if self.each is not None and not isinstance(self.each, Share):
            raise OptionError(
                f"each is {self.each!r}; give EachDimension(), EachGroup(size) or WholeSite()"
            )

    def floored(self, terms: Float[Tensor, "*sum D"], split: bool) -> Float[Tensor, "*sum"]:
        """The sum over groups of their KLs, where these are above the floor, else of the floor.

        Args:
            terms: KL by dimension, whose mean over all but the last dimension is compared.
            split: Whether those are the latent's dimensions; else there is one, the whole.

        Raises:
            OptionError: If the terms are not what ``each`` asks for.
        """
        groups = self._groups(terms, split)
        mean = groups.detach().flatten(0, -2).mean(0)
        return groups.where(mean > self.nats, groups.new_tensor(self.nats)).sum(-1)

    def _groups(self, terms: Tensor, split: bool) -> Tensor:
        if isinstance(self.each, WholeSite):
            return terms.sum(-1, keepdim=True)
        if self.each is not None and not split:
            raise OptionError(
                "its KL is not a sum over dimensions (guide and prior must both be products of "
                f"independent distributions), and {self!r} asks for them; take "
                f"FreeBits({self.nats:g}, WholeSite())"
            )
        if not isinstance(self.each, EachGroup):
            return terms
        if terms.shape[-1] % self.each.size:
            raise OptionError(
                f"its {terms.shape[-1]} dimensions do not make groups of {self.each.size}; give a "
                "size that divides them"
            )
        return terms.unflatten(-1, (-1, self.each.size)).sum(-1)


@dataclass(frozen=True)
class Remedies:
    """What a fit does against latents that collapse onto their prior.

    Args:
        weight: A schedule of the KL's weight for all latents, or by name of a latent; those that
            are not named keep weight 1. ``None`` is weight 1 for all.
        free_bits: ``FreeBits(nats)`` for all latents, or by name of a latent. For the ELBO only.

    Raises:
        OptionError: If a part is of another kind.

    Example:
        >>> from pyro_models.infer.schedules import LinearWarmup
        >>> remedies = Remedies({"component": LinearWarmup(100)}, FreeBits(0.1))
        >>> remedies.weights_at(Progress(step=50, epoch=0, total_epochs=1))
        {'component': 0.5}
    """

    weight: KLSchedule | Mapping[str, KLSchedule] | None = None
    free_bits: FreeBits | Mapping[str, FreeBits] | None = None

    def __post_init__(self) -> None:
        _check("weight", self.weight, KLSchedule, "LinearWarmup(1000)")
        _check("free_bits", self.free_bits, FreeBits, "FreeBits(0.1)")

    def weights_at(self, progress: Progress) -> float | dict[str, float]:
        """The weight of the step that comes next, or the weights by latent."""
        if self.weight is None:
            return 1.0
        if isinstance(self.weight, KLSchedule):
            return self.weight.weight(progress)
        return {name: schedule.weight(progress) for name, schedule in self.weight.items()}


def as_remedies(kl: KLSchedule | Remedies | None) -> Remedies:
    """What is given to ``fit`` as remedies.

    Raises:
        OptionError: If it is something else.
    """
    if kl is None:
        return Remedies()
    if isinstance(kl, KLSchedule):
        return Remedies(kl)
    if isinstance(kl, Remedies):
        return kl
    raise OptionError(
        f"kl is {kl!r}; give a schedule such as LinearWarmup(1000), CyclicalWarmup(1000) or "
        "Beta(4.0), or Remedies(weight=..., free_bits=...)"
    )


def _check(name: str, value: object, kind: type, example: str) -> None:
    by_site = isinstance(value, Mapping)
    for part in value.values() if isinstance(value, Mapping) else [value]:
        if not isinstance(part, kind) and (by_site or part is not None):
            raise OptionError(
                f"{name} is {value!r}; give {example}, or a dictionary of such by name of a latent"
            )
