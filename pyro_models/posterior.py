"""A fitted pair as ArviZ sees it: posterior and prior draws with named dimensions, in a file."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import xarray
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm.auto import tqdm

from pyro_models.errors import DataError, OptionError
from pyro_models.infer.inspection import (
    as_arguments,
    footprint,
    human_bytes,
    is_data,
    sample_sites,
)
from pyro_models.infer.sites import PARTICLES, data_frame, frames_of
from pyro_models.infer.weights import Program, log_weights
from pyro_models.options import positive_int
from pyro_models.programs import DATA_PLATE

with warnings.catch_warnings():
    # ArviZ 0.23 announces ArviZ 1 when it is imported; there is nothing that a user should do.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    import arviz

_CHUNK = 256 * 2**20

ATTRIBUTES = {
    "inference": "variational",
    "inference_library": "pyro-models",
    "sampling": "independent draws from a variational guide, in one chain: R-hat and "
    "autocorrelation have no meaning here",
}
"""Attributes of every result, besides the time at which it was made."""


def to_arviz(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 1000,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    labels: Tensor | Sequence[Any] | None = None,
    max_memory: int = 2 * 2**30,
    progress: bool = False,
) -> Any:
    r"""Draw from posterior, prior and both predictives, and hand the draws to ArviZ.

    ============================ ================================================================
    ``posterior``                :math:`z \sim q(z \mid x)`, for each datum where z is local
    ``posterior_predictive``     :math:`x' \sim p(x \mid z)` for those z
    ``log_likelihood``           :math:`\log p(x_i \mid z)` for those z, by observed site
    ``prior``                    :math:`z \sim p(z)`
    ``prior_predictive``         :math:`x' \sim p(x \mid z)` for those z
    ``observed_data``            :math:`x`
    ============================ ================================================================

    Dimensions are ``chain`` (always one), ``draw``, then the plates by name, of which that of the
    data is called ``data``, then the event's, ``<site>_dim`` (``<site>_dim_0``, ... if there are
    several). Deterministic sites are left out. ``log_likelihood`` is conditional on local latents;
    leave-one-out estimates from it judge a model only where all latents are global.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        x: Data ``(N, ...)``, or a tuple of several arguments of the programs, as for ``fit``.
        num_samples: S, the number of draws.
        dims: Names of event dimensions by site.
        coords: Values along a dimension by the dimension's name; counted from 0 by default.
        labels: One label a datum, kept as the coordinate ``label`` of the dimension ``data``.
        max_memory: Bytes for the result and for what making it takes.
        progress: Whether to show a progress bar.

    Returns:
        An ``arviz.InferenceData`` with ArviZ 0.x, an ``xarray.DataTree`` with ArviZ 1.x.

    Raises:
        OptionError: If the result would not fit into ``max_memory``, or ``dims`` or ``coords`` do
            not fit the sites.
        DataError: If the data is empty or not finite, or the labels are not one a datum.
        SiteMismatchError: If model and guide do not fit together.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> idata = to_arviz(model, guide, torch.zeros(3, 2), num_samples=5)
        >>> dict(idata.posterior["z"].sizes)
        {'chain': 1, 'draw': 5, 'data': 3, 'z_dim': 2}
    """
    num_samples = positive_int("num_samples", num_samples)
    max_memory = positive_int("max_memory", max_memory)
    args = as_arguments(x, model, guide)
    pair = _Pair(model, guide, args)
    names = _Names(pair.data_plate, dims or {}, coords or {}, _checked_labels(labels, args))
    first = _groups(pair, 1, names)
    names.check(first)
    size = _fitting_size(first, num_samples, max_memory)
    chunk = _chunk_size(pair, names, num_samples, min(_CHUNK, max_memory - size))
    drawn: dict[str, dict[str, _Variable]] = {}
    with tqdm(total=num_samples, unit="draw", disable=not progress) as bar:
        for start in range(0, num_samples, chunk):
            count = min(chunk, num_samples - start)
            _store(drawn, _groups(pair, count, names), start, num_samples)
            bar.update(count)
    drawn["observed_data"] = pair.observed(names)
    return _container({group: names.dataset(variables) for group, variables in drawn.items()})


def write_netcdf(idata: Any, path: str | os.PathLike[str]) -> Path:
    """Write the result of `to_arviz` to a netCDF file, whole or not at all.

    Read it back with ``arviz.from_netcdf(path)``.

    Args:
        idata: An ``InferenceData`` or ``DataTree``.
        path: The file, which is replaced if it exists.

    Returns:
        The path.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        idata.to_netcdf(str(partial), engine="h5netcdf")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class _Variable:
    """An array with the names of its dimensions."""

    dims: tuple[str, ...]
    values: np.ndarray


class _Simulate(Messenger):
    """Let observed sites be drawn; factors and deterministic sites stay as they are."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_data(msg):
            msg["is_observed"] = False
            msg["value"] = None
            msg["done"] = False


class _Pair:
    """A model and guide with their data, run in an outer plate of draws."""

    def __init__(self, model: Program, guide: Program, args: tuple[Tensor, ...]):
        self.model, self.guide, self.args = model, guide, args
        with torch.no_grad():
            weights = log_weights(model, guide, *args)
        # The engine found out how many dimensions the plates take: particles lie left of them.
        self.depth = max(-(site.dims[0] or -1) - 1 for site in weights.model_sites.values())
        trace = self._posterior(1)
        self.nodes = sample_sites(trace)
        self.data_sites = [name for name, node in self.nodes.items() if is_data(node)]
        self.latents = [name for name in weights.latents if name in self.nodes]
        frame = data_frame(trace)
        self.data_plate = frame.name if frame is not None else None

    def run(self, count: int) -> dict[str, dict[str, dict[str, Any]]]:
        """Trace nodes by group and site, for a number of draws."""
        posterior = sample_sites(self._posterior(count))
        known = {name: posterior[name]["value"] for name in self.latents}
        predictive = self._simulated(known, count)
        prior = self._simulated({}, count)
        return {
            "posterior": {name: posterior[name] for name in self.latents},
            "posterior_predictive": {name: predictive[name] for name in self.data_sites},
            "log_likelihood": {name: posterior[name] for name in self.data_sites},
            "prior": {name: prior[name] for name in self.latents},
            "prior_predictive": {name: prior[name] for name in self.data_sites},
        }

    def observed(self, names: "_Names") -> dict[str, _Variable]:
        """The data itself, by site; what is missing is NaN, whatever the model fills in for it."""
        found = {}
        for name in self.data_sites:
            value = self.nodes[name]["value"]
            given = [
                arg for arg in self.args if arg.shape == value.shape and bool(arg.isnan().any())
            ]
            for arg in given:
                value = torch.where(arg.isnan(), arg, value)
            found[name] = names.variable(name, self.nodes[name], value, self.depth, 0)
        return found

    def _posterior(self, count: int) -> Any:
        with torch.no_grad(), self._plate(count):
            guide = poutine.trace(self.guide).get_trace(*self.args)
            replayed = poutine.replay(self.model, trace=guide)
            return poutine.trace(replayed).get_trace(*self.args)

    def _simulated(self, known: dict[str, Tensor], count: int) -> dict[str, dict[str, Any]]:
        # The innermost handler acts first: the data is freed before the latents are fixed.
        with torch.no_grad(), self._plate(count), poutine.condition(data=known), _Simulate():
            return sample_sites(poutine.trace(self.model).get_trace(*self.args))

    def _plate(self, count: int) -> pyro.plate:
        return pyro.plate(PARTICLES, count, dim=-self.depth - 1)


@dataclass(frozen=True)
class _Names:
    """Names of dimensions and the values along them."""

    data_plate: str | None
    dims: Mapping[str, Sequence[str]]
    coords: Mapping[str, Sequence[Any]]
    labels: np.ndarray | None

    def variable(
        self, site: str, node: dict[str, Any], value: Tensor, depth: int, draws: int
    ) -> _Variable:
        """Shape a site's value as (chain, draw, plates..., event...), or without the first two."""
        return self._shaped(site, node, value, depth, draws, node["fn"].event_dim)

    def log_density(self, site: str, node: dict[str, Any], depth: int, draws: int) -> _Variable:
        """Log-density of a site's value, as (chain, draw, plates...)."""
        log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
        mask = node["mask"]
        if isinstance(mask, Tensor):
            log_prob = torch.where(mask, log_prob, log_prob.new_zeros(()))
        elif mask is False:
            log_prob = torch.zeros_like(log_prob)
        return self._shaped(site, node, log_prob, depth, draws, 0)

    def _shaped(
        self, site: str, node: dict, value: Tensor, depth: int, draws: int, event_dim: int
    ) -> _Variable:
        frames = {f.dim: f for f in frames_of(node) if f.dim is not None}
        order = sorted(frames)
        batch = [frames[d].size if d in frames else 1 for d in range(-depth, 0)]
        event = list(value.shape[value.dim() - event_dim :])
        leading = [draws] if draws else []
        value = value.expand(leading + batch + event)
        value = value.reshape(leading + [frames[d].size for d in order] + event)
        plates = [
            DATA_PLATE if frames[d].name == self.data_plate else frames[d].name for d in order
        ]
        names = (["chain", "draw"] if draws else []) + plates + self._event_dims(site, event_dim)
        values = value.detach().cpu().numpy()
        return _Variable(tuple(names), values[None] if draws else values)

    def _event_dims(self, site: str, event_dim: int) -> list[str]:
        given = self.dims.get(site)
        if given is not None and event_dim:
            if len(given) != event_dim:
                raise OptionError(
                    f"dims names {len(given)} dimensions for {site!r}, whose event has {event_dim}"
                )
            return list(given)
        if event_dim == 1:
            return [f"{site}_dim"]
        return [f"{site}_dim_{index}" for index in range(event_dim)]

    def check(self, groups: dict[str, dict[str, _Variable]]) -> None:
        """Refuse names that no site or dimension has, and coordinates that do not fit."""
        variables = [(n, v) for group in groups.values() for n, v in group.items()]
        sites = sorted({name for name, _ in variables})
        unknown = sorted(set(self.dims) - set(sites))
        if unknown:
            raise OptionError(f"dims names {unknown}; the sites are {sites}")
        sizes = {d: n for _, v in variables for d, n in zip(v.dims, v.values.shape, strict=True)}
        for dim, values in self.coords.items():
            if dim not in sizes or dim in ("chain", "draw"):
                known = sorted(set(sizes) - {"chain", "draw"})
                raise OptionError(f"coords names the dimension {dim!r}; there are {known}")
            if len(values) != sizes[dim]:
                raise OptionError(
                    f"coords gives {len(values)} values for {dim!r}, which has {sizes[dim]}"
                )

    def dataset(self, variables: dict[str, _Variable]) -> xarray.Dataset:
        """The variables of one group with the coordinates of their dimensions."""
        sizes = {
            dim: size
            for variable in variables.values()
            for dim, size in zip(variable.dims, variable.values.shape, strict=True)
        }
        coords: dict[str, Any] = {
            dim: np.asarray(self.coords.get(dim, np.arange(size))) for dim, size in sizes.items()
        }
        if self.labels is not None and sizes.get(DATA_PLATE) == len(self.labels):
            coords["label"] = (DATA_PLATE, self.labels)
        return xarray.Dataset({n: (v.dims, v.values) for n, v in variables.items()}, coords)


def _groups(pair: _Pair, count: int, names: _Names) -> dict[str, dict[str, _Variable]]:
    groups = {}
    for group, nodes in pair.run(count).items():
        groups[group] = {
            site: names.log_density(site, node, pair.depth, count)
            if group == "log_likelihood"
            else names.variable(site, node, node["value"], pair.depth, count)
            for site, node in nodes.items()
        }
    return {group: variables for group, variables in groups.items() if variables}


def _store(
    drawn: dict[str, dict[str, _Variable]],
    groups: dict[str, dict[str, _Variable]],
    start: int,
    total: int,
) -> None:
    """Copy a chunk of draws to its place in the whole."""
    for group, variables in groups.items():
        for name, part in variables.items():
            whole = drawn.setdefault(group, {})
            if name not in whole:
                shape = (1, total, *part.values.shape[2:])
                whole[name] = _Variable(part.dims, np.empty(shape, part.values.dtype))
            whole[name].values[:, start : start + part.values.shape[1]] = part.values


def _fitting_size(first: dict[str, dict[str, _Variable]], num_samples: int, max_memory: int) -> int:
    """Bytes of the whole result, known from that of one draw."""
    draw = sum(v.values.nbytes for group in first.values() for v in group.values())
    if draw * num_samples > max_memory:
        raise OptionError(
            f"{num_samples} draws take {human_bytes(draw * num_samples)}, more than max_memory="
            f"{max_memory} ({human_bytes(max_memory)}); ask for at most {max_memory // draw} "
            "draws, or for fewer data"
        )
    return draw * num_samples


def _chunk_size(pair: _Pair, names: _Names, num_samples: int, memory: int) -> int:
    """How many draws to make at a time."""
    draw = footprint(lambda: _groups(pair, 1, names))
    return max(1, min(num_samples, memory // max(1, draw)))


def _checked_labels(
    labels: Tensor | Sequence[Any] | None, args: tuple[Tensor, ...]
) -> np.ndarray | None:
    if labels is None:
        return None
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (len(args[0]),):
        raise DataError(
            f"the labels have shape {values.shape}; give one for each of {len(args[0])} data"
        )
    return values


def _container(datasets: dict[str, xarray.Dataset]) -> Any:
    """What this version of ArviZ works with."""
    attrs = ATTRIBUTES | {"created_at": datetime.now(UTC).isoformat()}
    datasets = {group: dataset.assign_attrs(attrs) for group, dataset in datasets.items()}
    # ArviZ 1 still answers to the old name, with a warning and another class: look, don't ask.
    old: Any = vars(arviz).get("InferenceData")
    if old is not None:
        return old(attrs=attrs, **datasets)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **datasets})
