r"""How densities see a guide's draws, which is what sets gradient estimators apart.

A draw :math:`z = g_\phi(\epsilon)` carries the gradient of its path, and :math:`\log q_\phi(z)`
depends on the guide's parameters twice: through z, and through the density itself (its score).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyro import poutine
from pyro.distributions.util import is_identically_zero as is_zero
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.densities import density_of
from pyro_models.infer.sites import Layout, Site, is_point_mass, samples


@dataclass(frozen=True)
class OnPaths:
    """Draws keep their paths and densities their scores: plain differentiation."""

    and_constants: bool = False
    """Whether the model also runs at constants of the draws, in the notes under "constant"."""


@dataclass(frozen=True)
class Detached:
    """Draws are constants from the moment they are drawn: only densities are differentiated."""

    kept: frozenset[str] = frozenset()
    """Sites whose draws keep their paths all the same."""
    point_masses: bool = False
    """Whether point masses keep theirs: they are computed, from parameters or from other draws."""

    def keeps(self, name: str, fn: Any) -> bool:
        """Whether the draw of a site stays on its path."""
        return name in self.kept or (self.point_masses and is_point_mass(fn))


@dataclass(frozen=True)
class PathsOnly:
    """Draws keep their paths and log q loses its score; the paths' gradients can be reweighted.

    A guide with several latents runs thrice, the later times at the draws of the first, so that the
    score of a latent is told from its dependence on another one's path.
    """


Draws = OnPaths | Detached | PathsOnly
ON_PATHS = OnPaths()


@dataclass
class PathFactor:
    """What the gradient that arrives at each draw is multiplied by, on its way into the path.

    Factor and layout are known only after the densities: they are looked up when gradients flow.
    """

    value: Tensor | None = None
    """``(K, B)``, one a datum, or ``(K, 1)``, one for all data; ``None`` for a factor of 1."""
    layout: Layout | None = None
    """Where particles and data lie in the shapes of the draws."""

    def stand_in(self, node: dict[str, Any]) -> Tensor:
        """A tensor equal to a draw, whose gradient is multiplied before the draw receives it."""
        draw: Tensor = node["value"]
        if not draw.requires_grad:
            return draw
        alias = draw.view_as(draw)

        def multiply(gradient: Tensor) -> Tensor | None:
            if self.value is None or self.layout is None:
                return None
            return gradient * self.layout.spread(node, self.value)

        alias.register_hook(multiply)
        return alias


class Detach(Messenger):
    """Cuts draws off from their paths as they are drawn, so that later latents see constants."""

    def __init__(self, draws: Detached) -> None:
        super().__init__()
        self._draws = draws

    def _pyro_post_sample(self, msg: Any) -> None:
        drawn = not msg["is_observed"] and isinstance(msg["value"], Tensor)
        if drawn and not self._draws.keeps(msg["name"], msg["fn"]):
            msg["value"] = msg["value"].detach()


def latents_of(trace: Any) -> list[dict[str, Any]]:
    """The sites of a guide's trace that were drawn."""
    return [node for node in samples(trace) if not node["is_observed"]]


def _require_paths(trace: Any) -> None:
    """Refuse a latent without a path, or with only part of its gradient on it.

    Raises:
        OptionError: If there is one; the message names it.
    """
    for node in latents_of(trace):
        with density_of(node["name"], node["fn"], drawn=True):
            parts = node["fn"].score_parts(node["value"], *node["args"], **node["kwargs"])
        if not node["fn"].has_rsample or not is_zero(parts.score_function):
            raise OptionError(
                f"site {node['name']!r} is a {type(node['fn']).__name__}, which is not "
                "reparameterised, and this gradient needs every latent's path; take "
                "IWAE(..., gradient=StandardGradient()) or VIMCO(...)"
            )


def rerun(program: Callable[..., Any], trace: Any, values: dict[str, Tensor], inputs: Any) -> Any:
    """The trace of a program at given draws."""
    args, kwargs = inputs
    replayed = poutine.replay(program, trace=_with_values(trace, values))
    return poutine.trace(replayed).get_trace(*args, **kwargs)


def constants_of(trace: Any) -> dict[str, Tensor]:
    """The draws of a guide's trace, cut off from their paths."""
    return {node["name"]: node["value"].detach() for node in latents_of(trace)}


def _with_values(trace: Any, values: dict[str, Tensor]) -> Any:
    # A trace's copy shares the nodes with it.
    given = trace.copy()
    for name, value in values.items():
        given.nodes[name] = {**trace.nodes[name], "value": value}
    return given


def paths_only(
    guide: Callable[..., Any], trace: Any, factor: PathFactor, inputs: Any
) -> tuple[Any, dict[str, Tensor]]:
    """The guide's trace at stand-ins of its draws, and its densities at constants, by site.

    Raises:
        OptionError: If a latent has no path.
    """
    _require_paths(trace)
    latents = latents_of(trace)
    # A point mass is no draw: it is what it is computed from, a parameter or other draws.
    drawn = {node["name"]: node for node in latents if not is_point_mass(node["fn"])}
    stand_ins = {name: factor.stand_in(node) for name, node in drawn.items()}
    if len(latents) > 1:
        given = trace.copy()
        for node in latents:
            if node["name"] not in drawn:
                del given.nodes[node["name"]]
        constants = {name: node["value"].detach() for name, node in drawn.items()}
        fixed = rerun(guide, given, constants, inputs)
        trace = rerun(guide, given, stand_ins, inputs)
    else:
        fixed, trace = trace, _with_values(trace, stand_ins)
    return trace, {node["name"]: _density_at_constant(node) for node in latents_of(fixed)}


def without_score(site: Site, fixed: dict[str, Tensor]) -> Site:
    """The site with a density of which only what flows through the draws is differentiated."""
    at_constant = fixed.get(site.name)
    if at_constant is None:
        return site
    return replace(site, log_prob=site.log_prob - at_constant + at_constant.detach())


def _density_at_constant(node: dict[str, Any]) -> Tensor:
    fn, value = node["fn"], node["value"].detach()
    with density_of(node["name"], fn, drawn=True):
        log_prob: Tensor = fn.log_prob(value, *node["args"], **node["kwargs"])
    return log_prob
