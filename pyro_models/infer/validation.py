"""The bound on held-out data, over all of it, with draws that leave training alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer.batches import Batches
from pyro_models.infer.random_state import RandomState, seed_all
from pyro_models.infer.step import Step


@dataclass(frozen=True, eq=False)
class Validation:
    """Held-out data, and how often to look at them.

    Args:
        data: Of the same kinds as the training data.
        every: Evaluate at the end of each ``every``-th epoch.

    Raises:
        OptionError: If ``every`` is less than 1.
    """

    data: Any
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise OptionError(f"Validation every={self.every}; give at least 1 epoch")


class Judgement(NamedTuple):
    """What held-out data say of a pair, in nats per datum."""

    bound: float
    """The objective's bound."""
    kl: dict[str, tuple[float, ...]]
    """KL of guide from prior by latent and dimension."""


class HeldOut:
    r"""Evaluates the bound on the whole held-out set, in nats per datum.

    .. math:: \\frac1M \\sum_b B_b \\, \\mathcal L_b

    over its batches of :math:`B_b` data, M in all, so that a smaller last batch counts for what it
    is. Latents outside the data plate are charged as in training, a share of 1/N a datum. Modules
    are in evaluation mode meanwhile. Each evaluation has the same seed: what changes from one to
    the next is due to the parameters, not to the draws.

    Args:
        batches: The held-out data, in order.
        every: Evaluate at the end of each ``every``-th epoch.
        step: Holds the pair.
        modules: Modules to put into evaluation mode.
        kwargs: Keyword arguments of the programs.
        device: Where it runs.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        batches: Batches,
        every: int,
        step: Step,
        modules: tuple[nn.Module, ...],
        kwargs: Mapping[str, Any],
        device: torch.device,
        seed: int,
    ):
        self.batches = batches
        self.every = every
        self._step = step
        self._modules = modules
        self._kwargs = kwargs
        self._device = device
        self._seed = seed
        self._generators = RandomState(device, batches.generators)
        self._beginning = self._generators.capture()

    def __call__(self) -> Judgement:
        """The bound per datum, and the KL by dimension in the same runs."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        totals: dict[str, Tensor] = {}
        seen = 0
        with self._generators.preserved(), evaluation_mode(self._modules):
            self._generators.restore(self._beginning)
            seed_all(self._device, self._seed)
            for batch in self.batches.epoch(0):
                size = len(batch[0])
                bound, kl = self._step.evaluate_with_kl(*batch, **self._kwargs)
                total += size * bound
                for name, terms in kl.items():
                    part = size * terms.double()
                    totals[name] = totals[name] + part if name in totals else part
                seen += size
        means = {name: tuple((sums / seen).tolist()) for name, sums in totals.items()}
        return Judgement(float(total) / seen, means)


@contextmanager
def evaluation_mode(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Put modules into evaluation mode, and each of their parts back into its own mode after."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in before:
            part.training = mode
