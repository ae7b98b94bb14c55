"""What a fitted pair is for: draw new data, rebuild given data, and make more like it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer.inspection import (
    as_arguments,
    is_data,
    sample_sites,
    signature,
)
from pyro_models.infer.sites import PARTICLES, plate_depth
from pyro_models.infer.weights import Program

_OBSERVED = "x"


@dataclass(frozen=True)
class Posterior:
    """Perturb by the posterior's own deviation: a draw minus the mean, in unconstrained space."""


@dataclass(frozen=True)
class Standard:
    """Perturb by standard normal noise in unconstrained space, whatever the posterior's width."""


def sample(model: Program, n: int, *, site: str | None = None) -> Tensor:
    r"""Draw new data from the model: :math:`z \sim p(z)`, then :math:`x \sim p(x \mid z)`.

    A model that takes ``num_data`` is run once for a set of ``n`` data, which share its global
    latents, if it has any. Any other model is run once in an outer plate of ``n``, so that it must
    broadcast, as under ``pyro.infer.Predictive(parallel=True)``.

    Args:
        model: A Pyro program that simulates when its data is ``None``.
        n: How many draws.
        site: The sample site that is wanted; by default ``"x"``, else the value that the model
            returns.

    Returns:
        The draws, ``(n, ...)``.

    Raises:
        OptionError: If ``n`` is less than 1, or the model cannot run without data.
        SiteMismatchError: If there is no such site and the model returns no tensor.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x=None):
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> _ = torch.manual_seed(0)
        >>> sample(model, 5).shape
        torch.Size([5, 2])
    """
    if n < 1:
        raise OptionError(f"n is {n}; ask for at least 1 draw")
    parameters = signature(model).parameters
    _check_simulates(parameters)
    with torch.no_grad():
        if "num_data" in parameters:
            trace = poutine.trace(model).get_trace(num_data=n)
            return _simulated(trace, site)
        depth = plate_depth(poutine.trace(model).get_trace())
        with pyro.plate(PARTICLES, n, dim=-depth - 1):
            trace = poutine.trace(model).get_trace()
        value = _simulated(trace, site)
    # (n, 1, ..., 1, *event): plates of one datum say nothing.
    for _ in range(depth):
        value = value.squeeze(1) if value.dim() > 1 and value.shape[1] == 1 else value
    return value


def reconstruct(model: Program, guide: Program, x: Any, *, site: str | None = None) -> Tensor:
    r"""Encode data and decode it again: the mean of :math:`p(x \mid z = \mathbb E_q[z \mid x])`.

    Continuous latents are put at the guide's mean, discrete ones at its mode; a latent whose
    distribution knows neither is drawn. Latents of the model that the guide lacks are drawn too.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        x: Data ``(N, ...)``, or a tuple of several arguments of the programs, as for ``fit``.
        site: The observed site to rebuild; by default ``"x"``, else the only observed one.

    Returns:
        Means ``(N, ...)``; the mode where the likelihood has no mean, as for categories.

    Raises:
        DataError: If the data is empty or not finite.
        SiteMismatchError: If the model has no such observed site.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> reconstruct(model, guide, torch.tensor([1.0, 2.0]))
        tensor([0.5000, 1.0000])
    """
    return _decode(model, guide, as_arguments(x, model, guide), _Placed(_center), site)


def variations(
    model: Program,
    guide: Program,
    x: Any,
    spread: float,
    n: int,
    *,
    perturbation: Posterior | Standard = Posterior(),
    site: str | None = None,
) -> Tensor:
    r"""Make data like the given data: the mean of :math:`p(x \mid z = \mathbb E_q[z|x] + \delta)`.

    The perturbation :math:`\delta` is ``spread`` times either the posterior's deviation
    :math:`z' - \mathbb E_q[z|x], z' \sim q(z \mid x)`, or standard normal noise. Latents with a
    constrained support are perturbed in unconstrained space. Discrete latents are drawn from the
    guide, unless the spread is 0.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        x: Data ``(N, ...)``, or a tuple of several arguments of the programs, as for ``fit``.
        spread: Size of the perturbation; 0 gives reconstructions.
        n: How many variations of each datum.
        perturbation: ``Posterior()`` or ``Standard()``.
        site: The observed site to decode; by default ``"x"``, else the only observed one.

    Returns:
        Means ``(n, N, ...)``.

    Raises:
        OptionError: If ``n`` is less than 1, or ``spread`` is negative or not finite.
        DataError: If the data is empty or not finite.
        SiteMismatchError: If the model has no such observed site.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> variations(model, guide, torch.tensor([1.0, 2.0]), spread=0.0, n=2)
        tensor([[0.5000, 1.0000],
                [0.5000, 1.0000]])
    """
    if n < 1:
        raise OptionError(f"n is {n}; ask for at least 1 variation")
    if not 0 <= spread < float("inf"):
        raise OptionError(f"spread is {spread}; it must be zero or a positive number")
    args = as_arguments(x, model, guide)
    place = _Placed(lambda fn: _perturbed(fn, spread, perturbation))
    return torch.stack([_decode(model, guide, args, place, site) for _ in range(n)])


class _Placed(Messenger):
    """Give each latent the value that a function makes of its distribution."""

    def __init__(self, place: Callable[[Any], Tensor]):
        super().__init__()
        self.place = place

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        msg["value"] = self.place(msg["fn"])
        msg["done"] = True


def _decode(
    model: Program, guide: Program, args: tuple[Tensor, ...], place: _Placed, site: str | None
) -> Tensor:
    with torch.no_grad():
        with place:
            latents = poutine.trace(guide).get_trace(*args)
        trace = poutine.trace(poutine.replay(model, trace=latents)).get_trace(*args)
        fn = _observed(trace, site)["fn"]
        mean = _defined(lambda: fn.mean)
        if mean is None or not bool(torch.isfinite(mean).all()):
            mean = _defined(lambda: fn.mode)
    if mean is None:
        raise SiteMismatchError(f"the likelihood {fn} has neither a mean nor a mode to show")
    return mean


def _center(fn: Any) -> Tensor:
    """Mean of a continuous distribution, mode of a discrete one; a draw where there is none."""
    center = _defined(lambda: fn.mode if fn.support.is_discrete else fn.mean)
    if center is None:
        return fn.sample()
    known = torch.isfinite(center)
    return center if bool(known.all()) else torch.where(known, center, fn.sample())


def _perturbed(fn: Any, spread: float, perturbation: Posterior | Standard) -> Tensor:
    center = _center(fn)
    if spread == 0 or isinstance(fn, Delta):
        return center
    if fn.support.is_discrete:
        return fn.sample()
    transform = biject_to(fn.support)
    middle = transform.inv(center)
    if isinstance(perturbation, Standard):
        return transform(middle + spread * torch.randn_like(middle))
    return transform(middle + spread * (transform.inv(fn.sample()) - middle))


def _defined(statistic: Callable[[], Tensor]) -> Tensor | None:
    """A statistic of a distribution, or ``None`` where the distribution does not have it."""
    try:
        return statistic()
    except NotImplementedError:
        return None


def _check_simulates(parameters: Mapping[str, inspect.Parameter]) -> None:
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in free
    ]
    if needed:
        raise OptionError(
            f"the model cannot run without {needed}; to sample from it, give them default values, "
            "such as x=None, and let it simulate then"
        )


def _simulated(trace: Any, site: str | None) -> Tensor:
    nodes = trace.nodes
    name = site if site is not None else _OBSERVED
    if name in nodes and nodes[name]["type"] == "sample":
        return nodes[name]["value"]
    returned = nodes["_RETURN"]["value"]
    if site is None and isinstance(returned, Tensor):
        return returned
    raise SiteMismatchError(
        f"the model has no sample site {name!r}; its sites are {sorted(sample_sites(trace))}; "
        "name the wanted one by site=..."
    )


def _observed(trace: Any, site: str | None) -> dict[str, Any]:
    nodes = {name: node for name, node in sample_sites(trace).items() if is_data(node)}
    if site is None and len(nodes) == 1:
        return next(iter(nodes.values()))
    name = site if site is not None else _OBSERVED
    if name not in nodes:
        raise SiteMismatchError(
            f"the model observes {sorted(nodes)}, not {name!r}; name one of them by site=..."
        )
    return nodes[name]
