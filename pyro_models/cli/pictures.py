"""The pictures of a run: a pair's samples, reconstructions, latent space and a walk through it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_models import plots
from pyro_models.cli.fitted import Fitted
from pyro_models.cli.recipe import Prepared
from pyro_models.data import Data
from pyro_models.errors import DataError
from pyro_models.infer import Embedding, EpochRecord, embed, reconstruct, sample
from pyro_models.infer.random_state import isolated
from pyro_models.plots import Picture

_OBSERVED = "x"
_IMAGES, _ROWS = 64, 500
_EMBEDDED = 1000
_WALKS, _STEPS = 6, 11


def history(records: Sequence[EpochRecord]) -> Picture:
    """The bounds over the steps of a fit.

    Raises:
        DataError: If there are no records.
    """
    held_out = [(r.step, r.validation) for r in records if r.validation is not None]
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
    makers = {
        "samples": _samples,
        "reconstructions": _reconstructions,
        "latent": _latent_space,
        "traversal": _traversal,
    }
    for name, make in makers.items():
        with isolated(pair.device, prepared.seed), torch.no_grad():
            picture = make(pair, prepared)
        if picture is not None:
            yield f"{name}.png", picture


def _samples(pair: Fitted, prepared: Prepared) -> Picture:
    test = prepared.parts.test
    if test.image_shape is None:
        drawn, title = sample(pair.model, _ROWS), "Samples x from the model, beside held-out data"
    else:
        drawn, title = _decoded(pair, {}, _IMAGES), "Samples: means of p(x | z), z from the prior"
    return plots.samples(
        prepared.shown(drawn),
        test.x,
        image_shape=test.image_shape,
        names=test.feature_names,
        title=title,
    )


def _reconstructions(pair: Fitted, prepared: Prepared) -> Picture:
    test = prepared.parts.test
    made = reconstruct(pair.model, pair.guide, _placed(pair, prepared, test))
    return plots.reconstructions(
        test.x, prepared.shown(made), image_shape=test.image_shape, names=test.feature_names
    )


def _latent_space(pair: Fitted, prepared: Prepared) -> Picture | None:
    """All parts, as far as there is room: the held-out data of a small set show no clusters."""
    parts = (prepared.parts.test, prepared.parts.validation, prepared.parts.train)
    means: list[Tensor] = []
    labels: list[Tensor | None] = []
    for part in parts:
        room = _EMBEDDED - sum(len(mean) for mean in means)
        if room > 0:
            some = part.subset(slice(room))
            found = _continuous(embed(pair.guide, _placed(pair, prepared, some)))
            means.append(torch.cat([mean.flatten(1) for mean in found.values()], dim=1))
            labels.append(some.labels)
    try:
        return plots.latent_space(
            torch.cat(means),
            None if labels[0] is None else torch.cat([part for part in labels if part is not None]),
            label_names=parts[0].label_names,
            seed=prepared.seed,
        )
    except DataError:  # too few data to lay out
        return None


def _traversal(pair: Fitted, prepared: Prepared) -> Picture | None:
    """Straight lines from draws of the prior to posterior means, decoded."""
    test = prepared.parts.test.subset(slice(_WALKS))
    ends = _continuous(embed(pair.guide, _placed(pair, prepared, test)))
    if not ends:
        return None
    rows = len(test)
    path = {}
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


def _continuous(embedding: Embedding) -> dict[str, Tensor]:
    """Posterior means of the latents that each datum has of its own."""
    return {name: moments.mean for name, moments in embedding.sites.items() if moments.local}


def _decoded(pair: Fitted, latents: dict[str, Tensor], count: int) -> Tensor:
    """Means of p(x | z) for given latents; the others are drawn from the prior."""
    model = poutine.condition(pair.model, data=latents)
    likelihood: Any = poutine.trace(model).get_trace(num_data=count).nodes[_OBSERVED]["fn"]
    return likelihood.mean
