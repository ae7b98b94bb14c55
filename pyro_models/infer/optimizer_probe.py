"""A look at the optimiser that a step makes for itself."""

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

from pyro_models.errors import CheckpointError, OptionError
from pyro_models.infer.step import OptimizerFactory


class OptimizerProbe:
    """Makes an optimiser as the user said, and remembers it.

    Args:
        factory: Makes a torch optimiser from parameters.
    """

    def __init__(self, factory: OptimizerFactory):
        self.factory = factory
        self._made: Optimizer | None = None

    def __call__(self, parameters: Iterable[Tensor]) -> Optimizer:
        """Make the optimiser."""
        made = self.factory(parameters)
        if not isinstance(made, Optimizer):
            raise OptionError(
                f"the optimizer made a {type(made).__name__} and not a torch.optim.Optimizer; give "
                "something like functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        self._made = made
        return made

    @property
    def learning_rate(self) -> float:
        """Current learning rate of the first group; NaN before there is an optimiser."""
        return float("nan") if self._made is None else float(self._made.param_groups[0]["lr"])

    def check_saved(self) -> None:
        """Make sure that the optimiser keeps tensors and numbers, as checkpoints hold no more.

        Raises:
            CheckpointError: If it keeps something else.
        """
        states = self._made.state.values() if self._made is not None else ()
        stored = Tensor | int | float | None
        other = {k for s in states for k, v in s.items() if not isinstance(v, stored)}
        if other:
            raise CheckpointError(
                f"{type(self._made).__name__} keeps {sorted(other)}, which are neither tensors "
                "nor numbers and so in no checkpoint; fit without checkpoints, or with another "
                "optimiser"
            )
