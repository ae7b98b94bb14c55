r"""Which distributions have a path from noise to value, and which formula it is.

A draw that is a function of noise and parameters, :math:`z = g_\phi(\epsilon)` with
:math:`\epsilon` from a distribution that knows no :math:`\phi`, can be differentiated along its
path: :math:`\nabla_\phi E[f(z)] = E[\nabla_\phi f(g_\phi(\epsilon))]`. The lecture notes know three
ways to find such a :math:`g`; the implicit one needs only its derivative. The table here says which
of them a distribution of Pyro uses, or why there is none and what to use instead.
"""

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch.distributions

from pyro_models.errors import OptionError
from pyro_models.infer.reparameterization_table import (
    TABLE,
    Reparameterization,
    ReparameterizationKind,
)

_WRAPPERS = (
    torch.distributions.Independent,
    dist.MaskedDistribution,
    dist.ExpandedDistribution,
    dist.IndependentHMM,
)
_OPEN = (*_WRAPPERS, dist.MaskedMixture)
_Transformed = torch.distributions.TransformedDistribution
_ABSTRACT = (
    torch.distributions.Distribution,
    torch.distributions.ExponentialFamily,
    dist.TorchDistribution,
    dist.ExponentialFamily,
)
_HOMES = ("torch", "pyro", "pyro_models")


def reparameterization(distribution: Any) -> Reparameterization:
    r"""Say how the draws of a distribution depend on its parameters, or why they do not.

    ``Independent`` (``.to_event``), masks and expansion are taken off first. A
    ``TransformedDistribution`` is as its base distribution; where it has a name of its own
    (``LogNormal``, ``Gumbel``) the table has its formula.

    Args:
        distribution: A distribution, or a class of distributions.

    Returns:
        A record; its ``str`` is what a person wants to read.

    Raises:
        OptionError: If it is no distribution, or a class whose instances differ (a wrapper, a
            transformed distribution): give an instance.

    References:
        Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
        Figurnov, Mohamed, Mnih 2018, https://arxiv.org/abs/1805.08498

    Example:
        >>> print(reparameterization(dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        Normal: location-scale
            z = loc + scale * eps, eps ~ Normal(0, 1)
            Kingma and Welling 2014, section 2.4, https://arxiv.org/abs/1312.6114
        >>> reparameterization(dist.Bernoulli).instead
        'Enumerated (exact), VIMCO or ScoreFunction; or the continuous RelaxedBernoulli'
        >>> von_mises = reparameterization(dist.VonMises)
        >>> von_mises.kind.value, von_mises.available
        ('implicit', False)
    """
    if isinstance(distribution, type):
        return _of_class(distribution)
    if not isinstance(distribution, torch.distributions.Distribution):
        raise OptionError(f"{distribution!r} is no distribution; give one, or a class of them")
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    if isinstance(distribution, dist.MaskedMixture):
        return _masked_mixture(distribution)
    entry = _listed(type(distribution))
    if entry is None and type(distribution).rsample is _Transformed.rsample:
        return _transformed(distribution)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        entry = _mixture(entry, distribution.component_distribution)
    return _checked(entry, type(distribution), bool(distribution.has_rsample))


def _of_class(kind: type) -> Reparameterization:
    if not issubclass(kind, torch.distributions.Distribution):
        raise OptionError(f"{kind.__name__} is no class of distributions; give one, or an instance")
    entry = _listed(kind)
    path: Any = kind.has_rsample
    if entry is None and (issubclass(kind, _OPEN) or isinstance(path, property)):
        raise OptionError(
            f"whether {kind.__name__} has a path depends on what it is made of; give an instance"
        )
    if entry is None and kind in _ABSTRACT:
        raise OptionError(f"{kind.__name__} is abstract; give a distribution")
    if isinstance(path, property):
        path = entry is not None and entry.available
    return _checked(entry, kind, path)


def _listed(kind: type) -> Reparameterization | None:
    """The entry of the class or of the nearest parent, unless the class draws in its own way."""
    for parent in kind.__mro__:
        if parent.__module__.split(".")[0] in _HOMES and parent.__name__ in TABLE:
            return TABLE[parent.__name__]
        if "rsample" in vars(parent):
            return None
    return None


def _checked(entry: Reparameterization | None, kind: type, path: bool) -> Reparameterization:
    """The entry, made to agree with what the distribution says of itself."""
    name = kind.__name__
    if path and (entry is None or entry.kind is ReparameterizationKind.NONE):
        why = "it has an rsample of its own; whether its gradients are unbiased is its author's say"
        return Reparameterization(name, ReparameterizationKind.UNLISTED, True, why=why)
    if entry is None:
        why = "it has no rsample"
        return Reparameterization(
            name, ReparameterizationKind.NONE, False, why=why, instead="ScoreFunction"
        )
    if entry.available and not path:
        why = "it says of itself that it has no rsample"
        entry = replace(entry, why=why, instead="ScoreFunction")
    if path and not entry.available:  # this version of torch has what the table's did not
        entry = replace(entry, why="", instead="")
    return replace(entry, name=name, available=path)


def _transformed(distribution: Any) -> Reparameterization:
    base = reparameterization(distribution.base_dist)
    formula = "x"
    for transform in distribution.transforms:
        formula = f"{type(transform).__name__}({formula})"
    parts = (base.formula.replace("z = ", "x = ", 1), base.noise)
    law = ", ".join(part for part in parts if part)
    no_path = base.kind is ReparameterizationKind.NONE
    honest = base.kind in (
        ReparameterizationKind.NONE,
        ReparameterizationKind.PARTIAL,
        ReparameterizationKind.STRAIGHT_THROUGH,
        ReparameterizationKind.UNLISTED,
    )
    return Reparameterization(
        type(distribution).__name__,
        base.kind if honest else ReparameterizationKind.TRANSFORMATION,
        bool(distribution.has_rsample),
        "" if no_path else f"z = {formula}",
        "" if no_path else law if base.formula.startswith("z = ") else f"x ~ {base.name}",
        f"x ~ {base.name}: {base.why}" if base.why else "",
        base.instead,
        base.reference,
    )


def _masked_mixture(distribution: Any) -> Reparameterization:
    parts = [reparameterization(p) for p in (distribution.component0, distribution.component1)]
    lacking = next((p for p in parts if not p.available), None)
    if lacking is not None:
        why = f"{lacking.name}: {lacking.why}"
        return replace(lacking, name=type(distribution).__name__, why=why)
    return Reparameterization(
        type(distribution).__name__,
        ReparameterizationKind.TRANSFORMATION,
        True,
        "z = where(mask, b, a)",
        f"a ~ {parts[0].name}, b ~ {parts[1].name}",
    )


def _mixture(entry: Reparameterization | None, component: Any) -> Reparameterization | None:
    """Implicit is a mixture of continuous components only."""
    made = reparameterization(component)
    if entry is None or made.kind is not ReparameterizationKind.NONE:
        return entry
    return replace(made, why=f"its components are {made.name}: {made.why}", formula="", noise="")
