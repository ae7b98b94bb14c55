"""The pictures of a run: those that what the pair has and the model shows make sense of.

=============================================== ================================================
picture                                         of a pair with
=============================================== ================================================
``samples``                                     any
``reconstructions``, ``latent``, ``traversal``  latents of each datum's own that are numbers
``responsibilities``                            a component of each datum's own
``confusion``                                   such, where the data have labels
``samples_by_cluster``                          such, of images, where the model decodes codes that
                                                come from clusters
``classes``                                     classes that it learns from labels: what it tells
                                                held-out data for, against what they are
``samples_by_class``                            such, of images: the same codes in every class
``clusters``                                    such, and weights that are latent too
``components``                                  a component of each datum's own: the model's means
                                                and covariances, or else those of the data that
                                                each component holds
``loadings``                                    a model with loadings
``sticks``                                      a model that breaks a stick for each datum
``scree``                                       a model with explained and noise variance
=============================================== ================================================
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from pyro import poutine
from torch import Tensor

from pyro_models import plots
from pyro_models.cli import classes
from pyro_models.cli.fitted import Fitted
from pyro_models.cli.latents import Latents, latents_of, new_data, responsibilities
from pyro_models.cli.recipe import Prepared
from pyro_models.clustering import cluster_means, report
from pyro_models.clustering.draws import HasClusters
from pyro_models.data import Data
from pyro_models.errors import DataError
from pyro_models.infer import Embedding, EpochRecord, embed, reconstruct, sample
from pyro_models.infer.random_state import isolated
from pyro_models.pairs.relevance import relevance
from pyro_models.plots import Picture

_OBSERVED = "x"
_IMAGES, _ROWS = 64, 500
_EMBEDDED = 1000
_WALKS, _STEPS = 6, 11
_COLUMNS = 10


def history(records: Sequence[EpochRecord]) -> Picture:
    """The bounds over the steps of a fit.

    Raises:
        DataError: If there are no records.
    """
    held_out = [(r.step, r.validation) for r in records if r.validation is not None]
    if len(held_out) == 1 < len(records):  # one value, from after the fit, is no curve
        held_out = []
    return plots.loss(
        [r.step for r in records],
        [r.elbo for r in records],
        [step for step, _ in held_out],
        [value for _, value in held_out],
    )


def draw(pair: Fitted, prepared: Prepared) -> Iterator[tuple[str, Picture]]:
    """The pictures of a fitted pair, with their names; the same at every call.

    Args:
        pair: The pair.
        prepared: The data.
    """
    latents = latents_of(pair, _placed(pair, prepared, prepared.parts.test))
    makers: dict[str, _Maker] = {"samples": _samples}
    if latents.codes:
        makers |= {
            "reconstructions": _reconstructions,
            "latent": _latent_space,
            "traversal": _traversal,
        }
    if prepared.known is not None:
        makers |= {"classes": _classes, "samples_by_class": _samples_by_class}
    elif len(latents.components) == 1:
        makers |= {
            "components": _components,
            "responsibilities": _responsibilities,
            "confusion": _confusion,
        }
        if isinstance(pair.model, HasClusters):
            makers["samples_by_cluster"] = _samples_by_cluster
        if latents.shared or hasattr(pair.model, "expected_weights"):
            makers["clusters"] = _clusters
    if isinstance(pair.model, ShowsLoadings):
        makers["loadings"] = _loadings
    if isinstance(pair.model, ShowsVariance):
        makers["scree"] = _scree
    if _pieces(pair.model) is not None and "v" in latents.codes:
        makers["sticks"] = _sticks
    for name, make in makers.items():
        with isolated(pair.device, prepared.seed), torch.no_grad():
            picture = make(pair, prepared, latents)
        if picture is not None:
            yield f"{name}.png", picture


@runtime_checkable
class ShowsComponents(Protocol):
    """A model that knows where its components lie."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


@runtime_checkable
class ShowsLoadings(Protocol):
    """A model with linear latents."""

    loadings: Tensor


@runtime_checkable
class ShowsVariance(Protocol):
    """A model that knows what its latents explain, and what is left in every direction."""

    explained_variance: Tensor
    noise_variance: Tensor


@runtime_checkable
class BreaksSticks(Protocol):
    """A model whose code is a stick broken in pieces."""

    truncation: int

    def weights(self, v: Tensor) -> Tensor:
        """The pieces of sticks broken at these fractions."""


@runtime_checkable
class StickOfPieces(Protocol):
    """A code of that kind, of a model that has its code beside something else."""

    truncation: int

    def features(self, latent: Tensor) -> Tensor:
        """The pieces of sticks broken at these fractions."""


_Maker = Callable[[Fitted, Prepared, Latents], Picture | None]


def _samples(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture:
    test = prepared.parts.test
    if test.image_shape is None or not latents.codes:
        train = _placed(pair, prepared, prepared.parts.train)
        drawn, title = (
            new_data(pair, train, _ROWS),
            "Samples x from the model, beside held-out data",
        )
    else:
        drawn = _decoded(pair, {}, _IMAGES)
        title = "Samples: means of p(x | latents), latents from the prior"
    return plots.samples(
        prepared.shown(drawn),
        test.x,
        image_shape=test.image_shape,
        names=test.feature_names,
        title=title,
    )


def _reconstructions(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture:
    test = prepared.parts.test
    made = reconstruct(pair.model, pair.guide, _placed(pair, prepared, test))
    return plots.reconstructions(
        test.x, prepared.shown(made), image_shape=test.image_shape, names=test.feature_names
    )


def _latent_space(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    """All parts, as far as there is room: the held-out data of a small set show no clusters."""
    x, labels = _some(pair, prepared)
    found = _codes(embed(pair.guide, x), latents)
    try:
        return plots.latent_space(
            torch.cat([mean.flatten(1) for mean in found.values()], dim=1),
            labels,
            label_names=prepared.parts.test.label_names,
            seed=prepared.seed,
        )
    except DataError:  # too few data to lay out
        return None


def _traversal(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    """Straight lines from draws of the prior to posterior means, decoded."""
    test = prepared.parts.test.subset(slice(_WALKS))
    found = embed(pair.guide, _placed(pair, prepared, test))
    ends = _codes(found, latents)
    rows = len(test)
    # What is one of several stays what the datum's is.
    path = {
        name: found[name].mean.argmax(-1).repeat_interleave(_STEPS) for name in latents.components
    }
    for name, end in ends.items():
        start = sample(pair.model, rows, site=name)
        t = torch.linspace(0, 1, _STEPS).to(end).reshape(1, -1, *[1] * (end.dim() - 1))
        path[name] = ((1 - t) * start[:, None] + t * end[:, None]).flatten(0, 1)
    decoded = _decoded(pair, path, rows * _STEPS).reshape(rows, _STEPS, -1)
    return plots.traversal(
        prepared.shown(decoded), test.x, image_shape=test.image_shape, names=test.feature_names
    )


def _placed(pair: Fitted, prepared: Prepared, part: Data) -> Tensor:
    return prepared.seen(part).to(pair.device)


def _some(pair: Fitted, prepared: Prepared) -> tuple[Tensor, Tensor | None]:
    """Data of all parts, held-out ones first, as the model sees them; with their labels."""
    parts = (prepared.parts.test, prepared.parts.validation, prepared.parts.train)
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    for part in parts:
        room = _EMBEDDED - sum(map(len, rows))
        if room > 0:
            some = part.subset(slice(room))
            rows.append(_placed(pair, prepared, some))
            labels += [] if some.labels is None else [some.labels]
    return torch.cat(rows), torch.cat(labels) if labels else None


def _codes(embedding: Embedding, latents: Latents) -> dict[str, Tensor]:
    """Posterior means of the numbers that each datum has of its own."""
    return {name: embedding[name].mean for name in latents.codes}


def _responsibilities(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    x, labels = _some(pair, prepared)
    found = responsibilities(pair, x, latents)
    if found is None:
        return None
    return plots.responsibilities(found, labels, label_names=prepared.parts.test.label_names)


def _confusion(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    x, labels = _some(pair, prepared)
    found = responsibilities(pair, x, latents)
    if found is None or labels is None:
        return None
    judged = report(found, labels)
    return plots.confusion(
        torch.tensor(judged.confusion),
        torch.tensor(judged.assigned),
        label_names=prepared.parts.test.label_names,
    )


def _samples_by_cluster(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    test, train = prepared.parts.test, _placed(pair, prepared, prepared.parts.train)
    found = responsibilities(pair, train, latents)
    model: Any = pair.model
    if found is None or test.image_shape is None:
        return None
    return plots.samples_by_cluster(
        prepared.shown(cluster_means(model, _COLUMNS)),
        image_shape=test.image_shape,
        sizes=found.sum(0).cpu(),
        data=test.x,
    )


def _classes(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    counts, names = classes.counts(pair, prepared), prepared.parts.test.label_names
    if counts is None:
        return None
    rows = names or [str(place) for place in range(len(counts))]
    return plots.confusion(
        counts,
        label_names=names,
        row_names=rows,
        rows="told",
        title="What held-out data are told for, against their labels",
    )


def _samples_by_class(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    model: Any = pair.model
    test, size = prepared.parts.test, prepared.num_classes
    if test.image_shape is None or size is None:
        return None
    code = model.code.features(sample(pair.model, _COLUMNS, site=model.code.site))
    made = model.decode(code, torch.arange(size, device=code.device).unsqueeze(-1)).mean
    names = test.label_names or [str(place) for place in range(size)]
    return plots.samples_by_cluster(
        prepared.shown(made),
        image_shape=test.image_shape,
        names=names,
        data=test.x,
        title="Means of p(x | code, class): a column has one code from the prior",
    )


def _clusters(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    found = responsibilities(pair, _placed(pair, prepared, prepared.parts.train), latents)
    return None if found is None else plots.clusters(found, seed=prepared.seed)


def _components(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture | None:
    """In the space that the model sees, where all dimensions count alike."""
    x, labels = _some(pair, prepared)
    test = prepared.parts.test
    names = [f"{name} (standardised)" for name in test.feature_names or ()]
    title, model = "Normal components", pair.model
    if isinstance(model, ShowsComponents):
        shown = (model.weights, model.means, model.covariances)
    elif (found := responsibilities(pair, x, latents)) is not None:
        title, shown = "Mean and covariance of what each component holds", _held(x, found)
    else:
        return None
    return plots.components(
        x, *shown, labels, label_names=test.label_names, names=names or None, title=title
    )


def _held(x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Part, mean and covariance of the data in each component."""
    rows, counts = x.double(), shares.double().sum(0)
    parts = shares.double() / counts.clamp_min(torch.finfo(torch.float64).tiny)
    means = parts.T @ rows  # (K, D)
    away = rows - means.unsqueeze(1)  # (K, N, D)
    covariances = torch.einsum("nk,knd,kne->kde", parts, away, away)
    return counts / len(rows), means, covariances


def _loadings(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture:
    """Of pictures in their own units: standardised, pixels that hardly change would look large."""
    model: Any = pair.model
    test = prepared.parts.test
    shape = test.image_shape
    if shape is None or shape[0] != 1:
        return plots.loadings(model.loadings, names=test.feature_names)
    return plots.loadings(model.loadings.cpu() * prepared.scale()[:, None], image_shape=shape)


def _scree(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture:
    """With what Bayesian PCA, fitted beside, would keep of as many latents as there can be."""
    model: Any = pair.model
    x = _placed(pair, prepared, prepared.parts.train).double()
    found = relevance(x)
    return plots.scree(
        model.explained_variance,
        data_variances=torch.linalg.eigvalsh(torch.cov(x.T, correction=0)),
        noise_variance=model.noise_variance,
        relevance=None if found is None else found.precision,
        num_relevant=None if found is None else found.num_active,
    )


def _sticks(pair: Fitted, prepared: Prepared, latents: Latents) -> Picture:
    """Held-out data's mean pieces, at draws of the posterior: pieces are products of fractions."""
    pieces: Any = _pieces(pair.model)
    test = prepared.parts.test
    trace = poutine.trace(pair.guide).get_trace(_placed(pair, prepared, test))
    weights = pieces(trace.nodes["v"]["value"])
    return plots.sticks(weights, test.labels, label_names=test.label_names)


def _pieces(model: Any) -> Callable[[Tensor], Tensor] | None:
    """From fractions to pieces, in a model that breaks sticks."""
    if isinstance(model, BreaksSticks):
        return model.weights
    code = getattr(model, "code", None)
    return code.features if isinstance(code, StickOfPieces) else None


def _decoded(pair: Fitted, latents: dict[str, Tensor], count: int) -> Tensor:
    """Means of p(x | z) for given latents; the others are drawn from the prior."""
    model = poutine.condition(pair.model, data=latents)
    likelihood: Any = poutine.trace(model).get_trace(num_data=count).nodes[_OBSERVED]["fn"]
    return likelihood.mean
