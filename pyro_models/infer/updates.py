"""An optimiser, the parameters it updates, and its learning rates as inputs of a graph."""

import torch
from torch import Tensor

from pyro_models.infer import optimizer_state
from pyro_models.infer.objectives.base import OptimizerFactory

_SMALLEST_RATE = 1e-30


class Update:
    """One optimiser of a step, over named parameters.

    Args:
        make: Makes the optimiser.
        parameters: What it updates, by name.
    """

    def __init__(self, make: OptimizerFactory, parameters: dict[str, Tensor]):
        self.parameters = parameters
        self.optimizer = make(list(parameters.values()))
        self.needs_closure = optimizer_state.needs_closure(self.optimizer)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        device = next(iter(parameters.values())).device
        self.rate_inputs = [
            torch.tensor(rate, dtype=torch.float64, device=device) for rate in self._rates
        ]
        if device.type == "cuda":
            for group in self.optimizer.param_groups:
                # Step counts on the device: no step ever waits for it, eager or compiled.
                group.update({"capturable": True} if "capturable" in group else {})

    def set_rates(self, factor: float) -> None:
        """Multiply every learning rate."""
        groups = self.optimizer.param_groups
        for group, rate, tensor in zip(groups, self._rates, self.rate_inputs, strict=True):
            group["lr"] = rate * factor
            # Adam and its kin divide by a rate that is a tensor: zero would give 0 / 0.
            tensor.fill_(max(group["lr"], _SMALLEST_RATE))

    def count_in_double(self) -> None:
        """Let bias corrections ``1 - beta**t`` keep more digits than float32 has."""
        for values in self.optimizer.state.values():
            if isinstance(values.get("step"), Tensor):
                values["step"] = values["step"].double()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the optimiser keeps, by name; the tensors themselves."""
        return optimizer_state.tensors(self.optimizer, self.parameters)

    def numbers(self) -> dict[str, Tensor]:
        """The plain numbers that the optimiser keeps, as tensors by name."""
        return optimizer_state.numbers(self.optimizer, self.parameters)

    def load(self, state: dict[str, Tensor]) -> bool:
        """Give the optimiser back what it kept; whether its tensors are still the same ones."""
        return optimizer_state.load(self.optimizer, self.parameters, state)
