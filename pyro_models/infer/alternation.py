"""Variational EM: gradient steps for the guide alone and for the model alone, by turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer.arrays import Tensors
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.step import Step
from pyro_models.options import positive_int


@dataclass(frozen=True)
class Alternation:
    """E-steps and M-steps by turns, instead of steps of both.

    An E-step follows the gradient of the objective for the guide's parameters, the model's held
    fixed; an M-step the other way round. With an objective that is the ELBO this is coordinate
    ascent on it, as EM is with exact steps. A parameter of both belongs to the model.

    Args:
        e_steps: Steps of the guide in a row.
        m_steps: Steps of the model in a row, after them.

    Raises:
        OptionError: If one of them is no whole number of at least 1.

    References:
        Neal and Hinton 1998, https://doi.org/10.1007/978-94-011-5014-9_12

    Example:
        >>> by_turns = Alternation(e_steps=2, m_steps=1)
        >>> [by_turns.is_e_step(step) for step in range(6)]
        [True, True, False, True, True, False]
    """

    e_steps: int = 1
    m_steps: int = 1

    def __post_init__(self) -> None:
        positive_int("e_steps", self.e_steps)
        positive_int("m_steps", self.m_steps)

    def is_e_step(self, step: int) -> bool:
        """Whether a step, counted from 0, is the guide's."""
        return step % (self.e_steps + self.m_steps) < self.e_steps


class Turns:
    """Which parameters take a turn when.

    Args:
        alternation: How long turns are.
        step: A step whose parameters exist.
        args: A batch.
        kwargs: Keyword arguments of the programs.

    Raises:
        OptionError: If model or guide has no parameter of its own.
    """

    def __init__(
        self, alternation: Alternation, step: Step, args: Tensors, kwargs: Mapping[str, Any]
    ):
        self._alternation = alternation
        self._step = step
        self._model = _parameters_of(step, "model", args, kwargs)
        self._guide = _parameters_of(step, "guide", args, kwargs) - self._model
        for side, found in (("model", self._model), ("guide", self._guide)):
            if not found:
                raise OptionError(
                    f"alternation={alternation} needs parameters on both sides, and the {side} has "
                    "none of its own to train; leave alternation out"
                )

    def take(self, step: int) -> None:
        """Hold the parameters whose turn it is not.

        Args:
            step: Number of the next step, from 0.
        """
        self._step.held = self._model if self._alternation.is_e_step(step) else self._guide


def _parameters_of(
    step: Step, side: str, args: Tensors, kwargs: Mapping[str, Any]
) -> frozenset[str]:
    """Names of what the step trains of one program."""
    program = step.model if side == "model" else step.guide
    own: list[Tensor] = list(program.parameters()) if isinstance(program, nn.Module) else []
    with dry_run(step.model, step.guide, args, kwargs), poutine.trace(param_only=True) as seen:
        program(*args, **kwargs)
    for site in seen.trace.nodes.values():
        value: Any = site["value"]
        own.append(value.unconstrained())
    return frozenset(
        name for name, p in step.parameters().items() if any(p is other for other in own)
    )
