"""Torch's random state during a fit: one seed, streams that do not disturb each other.

The draws of training come from torch's own generators, so that any Pyro program takes part. What
else draws (shuffling, validation, callbacks) has a seed of its own, derived from the fit's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from pyro_models.errors import OptionError


class Stream(IntEnum):
    """What draws numbers in a fit; each has its own seed."""

    TRAINING = 0
    SHUFFLE = 1
    VALIDATION = 2
    CALLBACKS = 3
    STARTS = 4


def derive_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """Seed of one stream of a fit, well mixed, so that near seeds give unlike streams.

    Example:
        >>> derive_seed(0, Stream.SHUFFLE, 1) == derive_seed(0, Stream.SHUFFLE, 1)
        True
        >>> derive_seed(0, Stream.SHUFFLE, 1) == derive_seed(0, Stream.SHUFFLE, 2)
        False
    """
    words = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def choose_seed(seed: int | None) -> int:
    """The seed as given, or one drawn from torch's global generator.

    Raises:
        OptionError: If the seed is negative.
    """
    if seed is None:
        return int(torch.randint(2**31, ()))
    if seed < 0:
        raise OptionError(f"seed is {seed}; give an integer of 0 or more, or None to draw one")
    return seed


@contextmanager
def isolated(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators inside, and leave them outside as they were.

    Only the CPU's generator and that of ``device`` are touched.
    """
    with RandomState(device, {}).preserved():
        seed_all(device, seed)
        yield


def seed_all(device: torch.device, seed: int) -> None:
    """Seed the CPU's generator and that of ``device``; those of other devices stay as they are."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class RandomState:
    """The state of everything that a fit's training draws from, as tensors of bytes.

    Args:
        device: Where the fit runs.
        generators: Further generators, such as a loader's own, by name.
    """

    def __init__(self, device: torch.device, generators: Mapping[str, torch.Generator]):
        self.device = device
        self.generators = generators

    def capture(self) -> dict[str, Tensor]:
        """The states as they are."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states | {name: g.get_state() for name, g in self.generators.items()}

    def restore(self, states: dict[str, Tensor]) -> None:
        """Go back to captured states."""
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)
        for name, generator in self.generators.items():
            generator.set_state(states[name])

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Whatever draws inside leaves no mark on what is drawn after."""
        states = self.capture()
        try:
            yield
        finally:
            self.restore(states)
