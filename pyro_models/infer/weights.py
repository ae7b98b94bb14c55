r"""Run a pair with K particles: log p and log q by site, and the importance log-weights.

Everything the engine does stands on this record. It keeps the data plate apart from the particles,
and the plate's scale apart from the weights, because a bound such as
:math:`s \sum_i \log \frac1K \sum_k w_{ki}` needs the scale :math:`s = N / B` outside the log.
"""

import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.sites import (
    PARTICLES,
    Layout,
    Site,
    columns_of,
    data_frame,
    plate_depth,
    reduce_to_weights,
    samples,
)

Program = Callable[..., Any]


@dataclass(frozen=True)
class LogWeights:
    r"""A vectorised run of guide and model: one row a particle, one column a datum.

    With :math:`z_k \sim q(z \mid x)`, local latents inside the data plate and global ones outside,

    .. math::
        \log w_{ki} = \sum_{\text{local}} \log p - \sum_{\text{local}} \log q, \qquad
        \log w_k = \sum_{\text{global}} (\log p - \log q) + \tfrac NB \sum_i \log w_{ki} .
    """

    model_sites: dict[str, Site]
    """Sample sites of the model, observed ones included, in the order they ran."""
    guide_sites: dict[str, Site]
    """Sample sites of the guide, auxiliary ones included, in the order they ran."""
    num_particles: int
    """K."""
    batch_size: int
    """B: data in the minibatch; 0 where the program has no data plate."""
    num_data: int
    """N: data in the whole set; 1 where the program has no data plate."""
    common_scale: float
    """A scale that the user put on every site alike (``poutine.scale``), 1 without one."""

    @property
    def plate_scale(self) -> float:
        """N / B, the weight of one datum of the minibatch."""
        return self.num_data / self.batch_size if self.batch_size else 1.0

    @property
    def log_p(self) -> dict[str, Tensor]:
        """Log-density by model site: ``(K, B)`` inside the data plate, ``(K,)`` outside."""
        return {name: site.log_prob for name, site in self.model_sites.items()}

    @property
    def log_q(self) -> dict[str, Tensor]:
        """Log-density by guide site: ``(K, B)`` inside the data plate, ``(K,)`` outside."""
        return {name: site.log_prob for name, site in self.guide_sites.items()}

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the model's unobserved sites, in the order they ran."""
        return tuple(name for name, site in self.model_sites.items() if not site.observed)

    @property
    def has_global_latents(self) -> bool:
        """Whether a latent lies outside the data plate, so that one weight serves all data."""
        return any(not s.local and not s.observed for s in self.guide_sites.values())

    def total(self, terms: list[tuple[Site, Tensor]]) -> tuple[Tensor, Tensor]:
        """Add up terms by site: ``(K, B)`` for those in the data plate and ``(K,)`` for others."""
        like = self._like(terms)
        local = like.new_zeros(self.num_particles, self.batch_size)
        rest = like.new_zeros(self.num_particles)
        for site, term in terms:
            if site.local:
                local = local + term
            else:
                rest = rest + term
        return local, rest

    def _like(self, terms: list[tuple[Site, Tensor]]) -> Tensor:
        for _, term in terms:
            return term
        for site in (*self.model_sites.values(), *self.guide_sites.values()):
            return site.log_prob
        return torch.zeros(())

    def _terms(self) -> list[tuple[Site, Tensor]]:
        model = [(s, s.log_prob) for s in self.model_sites.values()]
        return model + [(s, -s.log_prob) for s in self.guide_sites.values()]

    @property
    def local(self) -> Float[Tensor, "K B"]:
        """Log-weight of each datum: log p - log q over the sites in the data plate."""
        return self.total(self._terms())[0]

    @property
    def global_(self) -> Float[Tensor, " K"]:
        """log p - log q over the sites outside the data plate."""
        return self.total(self._terms())[1]

    @property
    def joint(self) -> Float[Tensor, " K"]:
        """Log-weight of all data together, minibatches scaled up: global + N/B times local."""
        local, rest = self.total(self._terms())
        return rest + self.plate_scale * local.sum(-1)

    def reduce(self, site: Site, batch: Tensor) -> Tensor:
        """Bring a tensor of the site's batch shape to ``(K, B)`` or ``(K,)``, masked and scaled."""
        return reduce_to_weights(site, batch, self.num_particles, self.batch_size)


def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any
) -> LogWeights:
    r"""Run a pair once with K vectorised particles and record log p and log q by site.

    The guide runs, then the model is replayed against its draws. The data plate is the one named
    ``"data"``; without one of that name, the rightmost plate shared by every observed site. Works
    for any Pyro pair, autoguides included.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments, which samples the model's latents.
        *args: Given to both.
        num_particles: K, draws from the guide.
        **kwargs: Given to both.

    Returns:
        The record; gradients flow through it.

    Raises:
        OptionError: If ``num_particles`` is less than 1.
        SiteMismatchError: If the guide misses a latent of the model or samples something else, or
            a site has dimensions that no plate and no event accounts for.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", 10, subsample=torch.arange(len(x))):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", 10, subsample=torch.arange(len(x))):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> weights = log_weights(model, guide, torch.zeros(2), num_particles=3)
        >>> weights.local.shape, weights.plate_scale
        (torch.Size([3, 2]), 5.0)
        >>> weights.local[0, 0]  # the guide is exact, so each weight is log p(x)
        tensor(-1.2655)
    """
    if num_particles < 1:
        raise OptionError(f"num_particles is {num_particles}; it must be at least 1")
    nesting = None
    if num_particles > 1:
        nesting = _plate_nesting(model, guide, args, kwargs)
        particles = pyro.plate(PARTICLES, num_particles, dim=-nesting - 1)
        model, guide = particles(model), particles(guide)
    traces = _run(model, guide, args, kwargs)
    return _record(*traces, num_particles, nesting)


def _run(model: Program, guide: Program, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)


_Depths = dict[Hashable, int]
_nesting: "weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, _Depths]]" = (
    weakref.WeakKeyDictionary()
)


def _plate_nesting(model: Program, guide: Program, args: tuple, kwargs: dict) -> int:
    """Depth of plates, found by one run without particles and remembered for the pair."""
    # A program may open other plates for other arguments, such as observations or none.
    kind = (*map(_kind, args), *((name, _kind(value)) for name, value in kwargs.items()))
    known: _Depths = {}
    with suppress(TypeError):  # for callables that cannot be keys: nothing is remembered of them
        known = _nesting.setdefault(model, weakref.WeakKeyDictionary()).setdefault(guide, known)
    if kind not in known:
        with dry_run(model, guide, args, kwargs):
            traces = _run(model, guide, args, kwargs)
            # Among K particles, a dimension of size K that is not theirs would pass unseen.
            _record(*traces, particles=1, nesting=None)
        known[kind] = plate_depth(*traces)
    return known[kind]


def _kind(argument: Any) -> tuple[type, int]:
    return type(argument), argument.dim() if isinstance(argument, Tensor) else 0


def _check_sites(model_trace: Any, guide_trace: Any) -> None:
    model = {n["name"]: n for n in samples(model_trace)}
    guide = {n["name"]: n for n in samples(guide_trace) if not n["is_observed"]}
    missing = [n for n, node in model.items() if not node["is_observed"] and n not in guide]
    if missing:
        raise SiteMismatchError(
            f"the guide does not sample {missing}, which the model leaves unobserved; "
            "sample these sites in the guide, or observe them in the model"
        )
    for name, node in guide.items():
        if node["infer"].get("is_auxiliary"):
            continue
        if name not in model:
            raise SiteMismatchError(
                f"the guide samples {name!r}, which is no site of the model; rename it, or mark it "
                'with infer={"is_auxiliary": True}'
            )
        if model[name]["is_observed"]:
            raise SiteMismatchError(
                f"the guide samples {name!r}, which the model observes; remove it from the guide"
            )
        ours, theirs = node["fn"].event_shape, model[name]["fn"].event_shape
        if ours != theirs:
            raise SiteMismatchError(
                f"site {name!r} has event shape {tuple(theirs)} in the model and {tuple(ours)} in "
                "the guide; give both the same, with .to_event where dimensions are dependent"
            )


def _record(guide_trace: Any, model_trace: Any, particles: int, nesting: int | None) -> LogWeights:
    _check_sites(model_trace, guide_trace)
    depth = plate_depth(model_trace, guide_trace) if nesting is None else nesting
    frame = data_frame(model_trace)
    batch = frame.size if frame is not None else 0
    total = frame.full_size or frame.size if frame is not None else 1
    columns = columns_of(frame, model_trace, guide_trace)
    layout = Layout(depth, particles, frame, total / batch if batch else 1.0, columns)
    model = {n["name"]: layout.site(n, drawn=False) for n in samples(model_trace)}
    guide = {n["name"]: layout.site(n, drawn=True) for n in samples(guide_trace)}
    _check_places(model, guide)
    common = _common_factor([*model.values(), *guide.values()])
    return LogWeights(
        {name: layout.fill(site, common) for name, site in model.items()},
        {name: layout.fill(site, common) for name, site in guide.items()},
        num_particles=particles,
        batch_size=batch,
        num_data=total,
        common_scale=common,
    )


def _check_places(model: dict[str, Site], guide: dict[str, Site]) -> None:
    for name, site in guide.items():
        if name in model and not model[name].observed and model[name].local != site.local:
            where = "the model" if model[name].local else "the guide"
            raise SiteMismatchError(
                f"site {name!r} is inside the data plate in {where} only; run it in a plate of the "
                "same name in both, or outside in both"
            )


def _common_factor(sites: list[Site]) -> float:
    """The scale that all sites share: it belongs outside every logarithm, not in the weights."""
    factors = [site.factor for site in sites]
    if not factors or any(isinstance(f, Tensor) for f in factors):
        return 1.0
    first = float(factors[0])
    same = all(abs(f - first) <= 1e-12 * abs(first) for f in factors)
    return first if same else 1.0
