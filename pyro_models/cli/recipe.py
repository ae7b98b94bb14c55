"""How a pair sees data: transform, likelihood and baselines that go together.

The three must be of one kind, so that the rows of the table can be compared: probabilities of 0
and 1, or densities over one and the same space.

========================= ============================================ ==================
data                      what the model sees                          likelihood
========================= ============================================ ==================
all 0 or 1                the data                                     Bernoulli
images of 28 by 28        pixels white with the probability of their   Bernoulli
(torchvision's sets)      grey value, drawn once
digits                    dequantised anew in each minibatch, then     Normal, a learned
whole numbers from 0      standardised                                 scale a feature
all else                  standardised                                 Normal, likewise
========================= ============================================ ==================
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyro_models import baselines, data
from pyro_models.baselines import Baseline
from pyro_models.cli import catalogue
from pyro_models.cli.catalogue import Source
from pyro_models.data import (
    Compose,
    Data,
    DensityTransform,
    Dequantization,
    Split,
    Standardization,
    StaticBinarization,
    Stochastic,
)
from pyro_models.errors import DataError
from pyro_models.likelihoods import Bernoulli, LearnedScale, Likelihood, Normal

MOST_LEVELS = 65536
# The correlated baseline of binary data draws this often in all.
_MASS_DRAWS = 200_000


@dataclass(frozen=True, eq=False)
class Prepared:
    """Data, cut and ready for a pair."""

    parts: Split
    """Training, validation and test part, in the data's own units."""
    transform: Compose | None
    """From the data's units to what the model sees; applied to each minibatch."""
    kind: str
    """What log p(x) is of, for the table."""
    seed: int
    """Of the draws that a random transform makes for evaluation."""
    known: Int[Tensor, " n"] | None = None
    """Labels of the training part for a pair that learns from them, -1 where hidden or unknown."""

    @property
    def binary(self) -> bool:
        """Whether the model gives probabilities of 0 and 1."""
        return self.transform is None

    def likelihood(self) -> Likelihood:
        """A new likelihood for a model of these data."""
        if self.binary:
            return Bernoulli()
        return Normal(LearnedScale(data_dim=self.parts.train.data_dim))

    def seen(self, part: Data) -> Float[Tensor, "n data_dim"]:
        """What the model sees of a part; the same at every call."""
        if self.transform is None:
            return part.x
        return self.transform(part.x, generator=torch.Generator().manual_seed(self.seed))

    def shown(self, seen: Float[Tensor, "*n data_dim"]) -> Float[Tensor, "*n data_dim"]:
        """Back to the data's own units."""
        flat = seen.detach().cpu().reshape(-1, seen.shape[-1])
        flat = flat if self.transform is None else self.transform.inverse(flat)
        return flat.reshape(seen.shape)

    def scale(self) -> Float[Tensor, " data_dim"]:
        """What one unit of what the model sees is in the data's own units, column by column."""
        data_dim = self.parts.train.data_dim
        steps = [] if self.transform is None else list(self.transform.steps)
        scale = torch.ones(data_dim)
        for step in steps:
            if isinstance(step, Standardization):
                scale = scale * step.scale.flatten()
        return scale

    def shown_to_guide(self) -> nn.Module | None:
        """What makes of the pixels a model sees those a classifier should: of one size.

        A pixel that hardly ever changes is mere noise, which standardised is as large as any.
        """
        steps = [] if self.transform is None else list(self.transform.steps)
        if self.parts.train.image_shape is None or not steps:
            return None
        last = steps[-1]
        return _Restored(last.mean, last.scale) if isinstance(last, Standardization) else None

    @property
    def num_classes(self) -> int | None:
        """Classes of the labels; None where no pair sees them."""
        if self.known is None:
            return None
        parts = (self.parts.train, self.parts.validation, self.parts.test)
        return 1 + max(int(part.labels.max()) for part in parts if part.labels is not None)

    def made_for(self) -> Any:
        """What a pair is made for: the training part as the model sees it, with known labels."""
        x = self.seen(self.parts.train)
        return x if self.known is None else (x, self.known)

    def training(self) -> tuple[Any, Any, Callable[..., Any] | None]:
        """Training and held-out data for a fit, in the data's own units, and their transform.

        The transform does not look at values again: ``seen`` has.
        """
        train, held_out = self.parts.train.x, self.parts.validation.x
        change = None if self.transform is None else self.transform.apply
        if self.known is None:
            return train, held_out, change
        unknown = torch.full((len(held_out),), -1)
        beside = None if self.transform is None else _BesideLabels(self.transform).apply
        return (train, self.known), (held_out, unknown), beside

    def baselines(self) -> tuple[Baseline, ...]:
        """The models to beat, fitted to the training part and judged on the test part.

        Raises:
            DataError: If the data leave them undetermined.
        """
        train, test = self.seen(self.parts.train), self.seen(self.parts.test)
        if self.binary:
            draws = min(100, max(10, _MASS_DRAWS // len(test)))
            found = baselines.masses(train, test, num_samples=draws, seed=self.seed)
        else:
            found = baselines.densities(train, test)
        if self.parts.test.image_shape is not None:
            return found
        return tuple(replace(b, name=b.name.replace("pixels", "features")) for b in found)


class _Restored(nn.Module):
    """Standardised data as they were before."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.flatten())
        self.register_buffer("scale", scale.flatten())

    def forward(self, x: Float[Tensor, "*n data_dim"]) -> Float[Tensor, "*n data_dim"]:
        return x * self.scale + self.mean


@dataclass(frozen=True)
class _BesideLabels:
    """A transform of the first of two tensors."""

    transform: Compose

    def apply(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.apply(x), y


def prepare(source: Source, seed: int, labelled: float | None = None) -> Prepared:
    """Read data and decide how a pair sees them.

    Args:
        source: Where they are.
        seed: Of the split and of all draws.
        labelled: Share of the known labels that the pair learns from; None if it sees none.

    Raises:
        FileFormatError: If they are missing or damaged.
        DataError: If there are too few, or no labels for a pair that needs them.
    """
    parts = catalogue.load(source, seed)
    prepared = _prepare(parts, source, seed)
    return prepared if labelled is None else replace(prepared, known=_known(parts, labelled, seed))


def _known(parts: Split, labelled: float, seed: int) -> Tensor:
    labels = parts.train.labels
    if labels is None:
        raise DataError(
            f"the pair learns from labels too, and {parts.train.name!r} has none; name their "
            "column or array with --labels, with -1 where a label is not known"
        )
    _check_classes(parts)
    if not bool((labels >= 0).any()):
        raise DataError(
            f"no label is known in the training part of {parts.train.name!r}; give some"
        )
    if labelled == 1:
        return labels
    return data.hide_labels(labels, labelled, seed)


def _check_classes(parts: Split) -> None:
    """Refuse labels that are not the numbers of classes, where a model is to have those classes."""
    every = [p.labels for p in (parts.train, parts.validation, parts.test) if p.labels is not None]
    found = torch.cat(every).unique()
    classes = found[found >= 0].tolist()
    name = parts.train.name
    if classes and classes != list(range(len(classes))):
        some = ", ".join(map(str, classes[:5]))
        raise DataError(
            f"the labels of {name!r} are {some}{', ...' if len(classes) > 5 else ''}; number the "
            "classes 0, 1, ..., with -1 where a label is not known"
        )
    if len(classes) == 1:
        raise DataError(
            f"all labels of {name!r} are {classes[0]}; give data of two classes or more"
        )
    if "-1" in (parts.train.label_names or ()):
        raise DataError(
            f"the labels of {name!r} are text, which has no -1 for one that is not known; number "
            "the classes 0, 1, ..."
        )


def _prepare(parts: Split, source: Source, seed: int) -> Prepared:
    if source.name in catalogue.TORCHVISION:
        parts = Split(
            *(
                part.map(StaticBinarization(Stochastic(3 * seed + number)))
                for number, part in enumerate((parts.train, parts.validation, parts.test))
            )
        )
        return Prepared(parts, None, "log-probability of the binarised pixels", seed)
    x = torch.cat([part.x for part in (parts.train, parts.validation, parts.test)])
    if bool(((x == 0) | (x == 1)).all()):
        return Prepared(parts, None, "log-probability of the zeros and ones", seed)
    steps = [Dequantization(17)] if source.name == "digits" else _levels(x)
    train, generator = parts.train.x, torch.Generator().manual_seed(seed)
    for step in steps:
        train = step(train, generator=generator)
    how = "dequantised, standardised" if steps else "standardised"
    transform = Compose([*steps, Standardization.fit(train)])
    return Prepared(parts, transform, f"log-density of the {how} data", seed)


def _levels(x: Tensor) -> list[DensityTransform]:
    """Steps that spread whole numbers from 0 over their cells; none for other data."""
    if bool((x != x.round()).any()) or bool((x < 0).any()) or x.max() >= MOST_LEVELS:
        return []
    most = x.max().reshape(1)
    return [Standardization(torch.zeros(1), most), Dequantization(int(most) + 1)]
