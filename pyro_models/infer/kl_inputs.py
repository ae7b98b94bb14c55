"""The weights of the KL as they are set from step to step: as numbers, and as inputs of a graph."""

from collections.abc import Mapping

import torch
from torch import Tensor

_ALL = ""


class KLInputs:
    """One weight for all latents, or one for each of some, which a schedule changes at will.

    A graph reads them from tensors that stay the same, so that no change of a weight recompiles.

    Example:
        >>> inputs = KLInputs()
        >>> inputs.set({"z": 0.5})
        >>> inputs.weight, inputs.as_inputs()
        ({'z': 0.5}, {'z': tensor(0.5000, dtype=torch.float64)})
    """

    def __init__(self) -> None:
        self.weight: float | dict[str, float] = 1.0
        """The weight, or the weights by name of a latent."""
        self._tensors: dict[str, Tensor] = {}
        self._device = torch.device("cpu")
        self._fill(1.0, _ALL)

    def set(self, weight: float | Mapping[str, float]) -> None:
        """Change the weights."""
        if weight == self.weight:
            return
        if isinstance(weight, Mapping):
            self.weight = {name: float(value) for name, value in weight.items()}
        else:
            self.weight = float(weight)
        values = self.weight if isinstance(self.weight, dict) else {_ALL: self.weight}
        for name, value in values.items():
            self._fill(value, name)

    def to(self, device: torch.device) -> None:
        """Bring the tensors to where a graph runs, before there is one."""
        self._device = device
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}

    def names(self) -> tuple[str, ...] | None:
        """The latents that have a weight of their own; ``None`` if one is for all."""
        return tuple(self.weight) if isinstance(self.weight, dict) else None

    def as_inputs(self) -> Tensor | dict[str, Tensor]:
        """The weights as tensors."""
        names = self.names()
        return self._tensors[_ALL] if names is None else {n: self._tensors[n] for n in names}

    def tensors(self) -> list[Tensor]:
        """The tensors that a graph of these weights reads."""
        names = self.names()
        return [self._tensors[name] for name in ((_ALL,) if names is None else names)]

    def _fill(self, value: float, name: str) -> None:
        if name in self._tensors:
            self._tensors[name].fill_(value)
            return
        self._tensors[name] = torch.tensor(value, dtype=torch.float64, device=self._device)
