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

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models import baselines
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


def prepare(source: Source, seed: int) -> Prepared:
    """Read data and decide how a pair sees them.

    Args:
        source: Where they are.
        seed: Of the split and of all draws.

    Raises:
        FileFormatError: If they are missing or damaged.
        DataError: If there are too few.
    """
    parts = catalogue.load(source, seed)
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
