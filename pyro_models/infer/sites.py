"""Sample sites as they ran, and where particles and data lie in their shapes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero as is_zero
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer.densities import density_of
from pyro_models.infer.sums import NO_SUMS, Sums
from pyro_models.programs import DATA_PLATE

PARTICLES = "_particles"
"""Name of the plate of particles that the engine puts around a pair."""


Axis = tuple[int, str]


@dataclass(frozen=True)
class Site:
    """One sample statement of a model or guide, as it ran."""

    name: str
    """Name of the site."""
    fn: Any
    """The distribution."""
    value: Tensor
    """The value, ``(K, ..., B, *event)`` inside the data plate."""
    log_prob: Tensor
    """Unscaled log-density: ``(K, B)`` inside the data plate, ``(K,)`` outside."""
    batch_log_prob: Tensor
    """The log-density as the distribution gave it, one for each element of the site's plates."""
    local: bool
    """Whether the site lies inside the data plate."""
    observed: bool
    """Whether the value was given; factors count as observed."""
    mask: Any
    """The mask that ``poutine.mask`` put on the site, or ``None``."""
    dims: tuple[int | None, int | None]
    """Negative dimension of the particles and of the data plate in the site's batch shape."""
    deterministic: bool = False
    """Whether the site only names a value (``pyro.deterministic``): its density is 1."""
    column: int | None = None
    """Which datum the site belongs to, in a data plate that runs as a Python loop."""
    minibatch: str | None = None
    """A plate other than the data plate of which the site sees a part."""
    factor: Any = 1.0
    """Scale of this site beyond what is common to all, such as a tempering weight."""
    score: Tensor | None = None
    """What the score function differentiates: the guide's log-density, neither masked nor scaled,
    ``(K, B)`` or ``(K,)``; ``None`` where the value's path carries all of the gradient."""
    batch_score: Tensor | None = None
    """The score in the same shape; ``None`` where there is none."""
    axes: frozenset[Axis] = frozenset()
    """The site's plates, each as its dimension of ``by_plates``, 1 for the data plate, and its name
    (plates one after the other have the same dimension)."""
    stock_baseline: bool = False
    """Whether the guide asks for a baseline as stock Pyro's ``TraceGraph_ELBO`` reads it."""

    @property
    def reparameterized(self) -> bool:
        """Whether gradients flow through the value to the distribution's parameters."""
        return bool(getattr(self.fn, "has_rsample", False))


def samples(trace: Any) -> Iterator[dict[str, Any]]:
    """The sample statements of a trace, without the subsampling of plates."""
    for node in trace.nodes.values():
        if node["type"] == "sample" and not site_is_subsample(node):
            yield node


def frames_of(node: dict[str, Any]) -> list[CondIndepStackFrame]:
    """The plates around a statement, without that of the particles."""
    return [f for f in node["cond_indep_stack"] if f.name != PARTICLES]


def plate_depth(*traces: Any) -> int:
    """Number of batch dimensions that the plates of these traces use."""
    frames = [f for t in traces for n in samples(t) for f in frames_of(n)]
    return max((-f.dim for f in frames if f.dim is not None), default=0)


def data_frame(model_trace: Any) -> CondIndepStackFrame | None:
    """The data plate: named "data", else the rightmost plate that all observed sites share."""
    nodes = list(samples(model_trace))
    for node in nodes:
        for frame in frames_of(node):
            if frame.name == DATA_PLATE:
                return frame
    # Factors and deterministic values outside every plate say nothing about the data.
    observed = [n for n in nodes if n["is_observed"] and frames_of(n) and not _deterministic(n)]
    if not observed:
        return None
    shared = set.intersection(*({f.name for f in frames_of(n)} for n in observed))
    frames = [f for f in frames_of(observed[0]) if f.name in shared]
    # A plate that runs as a loop has no dimension; a vectorised one comes before it.
    return max(frames, key=lambda f: float("-inf") if f.dim is None else f.dim, default=None)


def _deterministic(node: dict[str, Any]) -> bool:
    return bool(node["infer"].get("_deterministic"))


def _is_part(frame: CondIndepStackFrame) -> bool:
    return bool(frame.full_size) and frame.full_size != frame.size


def freed(factor: Any, common: float | Tensor) -> Any:
    """A site's scale without the one that all sites share."""
    if isinstance(common, Tensor):
        return factor / common
    return 1.0 if common != 1.0 else factor


def columns_of(frame: CondIndepStackFrame | None, *traces: Any) -> dict[int, int]:
    """Column of each pass through a data plate that runs as a loop; empty for vectorised ones."""
    if frame is None or frame.vectorized:
        return {}
    counters = {
        f.counter for t in traces for n in samples(t) for f in frames_of(n) if f.name == frame.name
    }
    # A plate counts from 1, and a plate that is used again goes on counting.
    return {counter: (counter - 1) % frame.size for counter in counters}


@dataclass(frozen=True)
class Layout:
    """Where particles and data lie in the batch shapes of one run."""

    depth: int
    particles: int
    frame: CondIndepStackFrame | None
    scale: float
    columns: dict[int, int]
    sums: Sums = NO_SUMS

    def site(self, node: dict[str, Any], *, drawn: bool, detached: bool = False) -> Site:
        """The site with densities in the shape of its batch, its scale freed of the data plate's.

        Args:
            node: The sample statement in its trace.
            drawn: Whether its value was drawn here, by the guide.
            detached: Whether its value was cut off from its path, so that all of its gradient is
                the score's.
        """
        frames = frames_of(node)
        own = next((f for f in frames if self.frame and f.name == self.frame.name), None)
        fn, given = node["fn"], (node["value"], *node["args"])
        with density_of(node["name"], fn, drawn=drawn):
            parts = fn.score_parts(*given, **node["kwargs"]) if drawn else None
            log_prob = fn.log_prob(*given, **node["kwargs"]) if parts is None else parts.log_prob
        for shape in (fn.batch_shape, log_prob.shape):
            _check_shape(node["name"], shape, frames, self.depth, self.particles, self.sums.sizes)
            self.sums.check(node["name"], shape, node["cond_indep_stack"])
        factor = node["scale"] / self.scale if own is not None else node["scale"]
        score = None if parts is None or is_zero(parts.score_function) else parts.score_function
        if node["name"] in self.sums.names:
            score = None  # a sum is differentiated through its probabilities
        elif score is not None and (sums := self.sums.among(log_prob.shape)):
            raise OptionError(
                f"site {node['name']!r} is a {type(fn).__name__}, whose draws have no path, and is "
                f"drawn for each value of {sums[0].name!r}, which is summed over; name both in "
                "summed, or neither"
            )
        return Site(
            name=node["name"],
            fn=fn,
            value=node["value"],
            log_prob=log_prob,
            batch_log_prob=log_prob,
            local=own is not None,
            observed=node["is_observed"],
            mask=node["mask"],
            dims=(-self.depth - 1, own.dim if own is not None else None),
            deterministic=_deterministic(node),
            column=self.columns.get(own.counter) if own is not None else None,
            minibatch=next((f.name for f in frames if f is not own and _is_part(f)), None),
            factor=factor,
            score=log_prob if detached else score,
            axes=self._axes(frames, own),
            stock_baseline="baseline" in node["infer"],
        )

    def _axes(
        self, frames: list[CondIndepStackFrame], own: CondIndepStackFrame | None
    ) -> frozenset[Axis]:
        others = [f for f in frames if f is not own and f.dim is not None]
        axes = {(f.dim + self.depth + 2, f.name) for f in others if f.dim is not None}
        return frozenset(axes | ({(1, own.name)} if own is not None else set()))

    def spread(self, node: dict[str, Any], factor: Tensor) -> Tensor:
        """A factor ``(K, B)`` or ``(K, 1)`` in the shape of a site's value, events included."""
        frames = frames_of(node)
        own = next((f for f in frames if self.frame and f.name == self.frame.name), None)
        shape = [1] * (self.depth + 1)
        shape[0] = len(factor)
        if own is not None and own.dim is None and factor.shape[1] > 1:
            factor = factor[:, self.columns[own.counter]]
        elif own is not None and own.dim is not None:
            shape[own.dim] = factor.shape[1]
        return factor.reshape(shape + [1] * node["fn"].event_dim)

    def fill(self, site: Site, common: float | Tensor) -> Site:
        """The site with its densities in shape, freed of a scale common to all sites."""
        batch = self.frame.size if self.frame is not None else 0
        site = replace(site, factor=freed(site.factor, common))
        score = site.score
        if score is not None:
            score = reduce_to_weights(_plain(site), score, self.particles, batch)
        log_prob = reduce_to_weights(site, site.log_prob, self.particles, batch, self.sums)
        return replace(
            site,
            log_prob=log_prob,
            score=score,
            batch_log_prob=site.log_prob,
            batch_score=site.score,
        )


def _check_shape(
    name: str,
    shape: torch.Size,
    frames: list[CondIndepStackFrame],
    depth: int,
    particles: int,
    summed: dict[int, int],
) -> None:
    """Refuse a dimension that is no plate's: it would be taken for particles, or summed away."""
    allowed = {f.dim: f.size for f in frames if f.vectorized} | {-depth - 1: particles} | summed
    for dim in range(-len(shape), 0):
        if shape[dim] not in (1, allowed.get(dim, 1)):
            hint = (
                f"; with {particles} particles values have one more dimension in front, so the "
                "program must broadcast over leading dimensions"
                if particles > 1
                else ""
            )
            raise SiteMismatchError(
                f"site {name!r} has log-densities of shape {tuple(shape)}, whose dimension {dim} "
                "belongs to no plate; declare it with .to_event(...), run the site inside "
                f"pyro.plate, or give the observed value the distribution's shape{hint}"
            )


def by_plates(site: Site, batch: Tensor, size: int, sums: Sums = NO_SUMS) -> Tensor:
    """Mask, scale and average a tensor of a site's batch shape, and give each plate its dimension.

    Returns:
        ``(K, B, *plates)``: particles, data, and a dimension for each place at which a plate other
        than the data's may lie. All but B are 1 where the tensor is the same; B is, outside.
    """
    return _in_columns(site, _placed(site, batch, sums), size)


def _placed(site: Site, batch: Tensor, sums: Sums) -> Tensor:
    """``by_plates`` with 1 for B, where the tensor is the same for all data or is one datum's."""
    if site.mask is not None and site.mask is not True:
        batch = (
            torch.zeros_like(batch)
            if site.mask is False
            else torch.where(
                site.mask, batch, torch.zeros((), dtype=batch.dtype, device=batch.device)
            )
        )
    if isinstance(site.factor, Tensor) or site.factor != 1.0:
        batch = batch * site.factor
    batch = sums.expectation(batch)
    particle_dim, data_dim = site.dims
    depth = -(particle_dim or -1)
    # Further dimensions on the left, as a latent of one value has, are of size 1.
    shape = batch.shape[max(0, batch.dim() - depth) :]
    batch = batch.reshape((1,) * (depth - len(shape)) + shape).unsqueeze(1)
    return batch if data_dim is None else batch.transpose(1, data_dim)


def _in_columns(site: Site, batch: Tensor, size: int) -> Tensor:
    """A tensor ``(K, 1 or B, ...)`` of a local site as ``(K, B, ...)``; others stay."""
    if site.column is not None:
        around = (0, 0) * (batch.dim() - 2) + (site.column, size - 1 - site.column)
        return nn.functional.pad(batch, around)
    return batch.expand(-1, size, *(-1,) * (batch.dim() - 2)) if site.local else batch


def scores_by_plates(site: Site, size: int) -> Tensor:
    """The score of a latent by its plates; see ``by_plates``.

    Raises:
        OptionError: If it has none.
    """
    if site.batch_score is None:
        raise OptionError(f"site {site.name!r} has no score")
    return by_plates(_plain(site), site.batch_score, size)


def _plain(site: Site) -> Site:
    """The site as it was drawn: a draw knows nothing of masks and scales."""
    return replace(site, mask=None, factor=1.0)


def reduce_to_weights(
    site: Site, batch: Tensor, particles: int, size: int, sums: Sums = NO_SUMS
) -> Tensor:
    """Mask, scale, average and sum a tensor of a site's batch shape to ``(K, B)`` or ``(K,)``."""
    batch = _placed(site, batch, sums)
    if any(count > 1 for count in batch.shape[2:]):
        batch = batch.sum(tuple(range(2, batch.dim())))
    batch = _in_columns(site, batch.reshape(batch.shape[:2]), size)
    return batch.expand(particles, size) if site.local else batch.squeeze(1).expand(particles)


def spread_to_weights(
    site: Site, batch: Tensor, events: int, particles: int, size: int, sums: Sums = NO_SUMS
) -> Tensor:
    """As ``reduce_to_weights``, with all that would be summed in a last dimension instead.

    Args:
        site: The site.
        batch: Of the site's batch shape, and ``events`` dimensions of its event after it.
        events: How many.
        particles: K.
        size: B.
        sums: What is averaged over.

    Returns:
        ``(K, B, D)`` or ``(K, D)``.
    """
    inner = (..., *[None] * events)
    if site.mask is not None and site.mask is not True:
        zero = torch.zeros_like(batch)
        batch = zero if site.mask is False else torch.where(site.mask[inner], batch, zero)
    factor = site.factor[inner] if isinstance(site.factor, Tensor) else site.factor
    batch = sums.expectation(batch * factor, events)
    particle_dim, data_dim = site.dims
    depth = events - (particle_dim or -1)
    batch = batch.reshape((1,) * (depth - batch.dim()) + batch.shape)
    if data_dim is not None:
        batch = batch.movedim((-depth, data_dim - events), (0, 1)).unsqueeze(-1).flatten(2)
        return batch.expand(particles, size, -1)
    batch = batch.movedim(-depth, 0).unsqueeze(-1).flatten(1).expand(particles, -1)
    if site.column is None:
        return batch
    return nn.functional.pad(batch.unsqueeze(1), (0, 0, site.column, size - 1 - site.column))


def is_point_mass(fn: Any) -> bool:
    """Whether a distribution is a Delta, beneath whatever reshapes it."""
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    return hasattr(base, "log_density")
