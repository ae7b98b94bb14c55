r"""What happens to data before a model sees it: typed values that can be chained.

A transform is called on a tensor of data, ``transform(x)``, on any device, and looks at ``x``
first. Where ``x`` is known to be in order, ``transform.apply(x)`` leaves that out: it reads no
value back from the device, so it can stand in a training loop or a compiled graph.

A transform :math:`y = T(x)` between densities also knows its inverse and its volume change:

.. math:: \log p_X(x) = \log p_Y(T(x)) + \log \left| \det \partial T(x) / \partial x \right|

so a log-likelihood of ``y`` is reported in the space of ``x`` as
``log_likelihood + transform.log_abs_det_jacobian(x, y)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import DataError, OptionError, SupportError


class Transform(ABC):
    """A map from data to data of the same shape."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether each call draws anew; then it belongs in each minibatch, not before the fit."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raise ``DataError`` if the transform has no meaning for ``x``."""

    @abstractmethod
    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """The transformed data, without a look at the values.

        Args:
            x: Data that passes :meth:`check`.
            generator: Where a random transform draws from, on the device of ``x``; torch's own
                by default.
        """

    def __call__(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """The transformed data, after a check.

        Args:
            x: Data, ``(N, ...)``.
            generator: Where a random transform draws from; torch's own by default.

        Raises:
            DataError: If the transform has no meaning for ``x``.
        """
        self.check(x)
        return self.apply(x, generator=generator)


class DensityTransform(Transform):
    """A transform that densities survive: it has an inverse and a volume change."""

    @abstractmethod
    def inverse(self, y: Float[Tensor, "num_data *datum"]) -> Float[Tensor, "num_data *datum"]:
        """The data that was transformed to ``y``."""

    @abstractmethod
    def log_abs_det_jacobian(
        self, x: Float[Tensor, "num_data *datum"], y: Float[Tensor, "num_data *datum"]
    ) -> Float[Tensor, " num_data"]:
        """The logarithm of the volume change from ``x`` to ``y``, in nats, one value a datum.

        Args:
            x: Data.
            y: What the transform made of it.
        """


@dataclass(frozen=True)
class Compose(DensityTransform):
    """One transform after another, from first to last.

    The volume change is found backwards from ``y``, so it belongs to the very draw that gave
    ``y`` even where a step is random.

    Args:
        steps: The transforms; a chain among them is unrolled.

    Raises:
        OptionError: If there are no steps, or one is no transform; and from ``inverse`` and
            ``log_abs_det_jacobian`` if a step has none.

    Example:
        >>> from pyro_models.data import Dequantization, LogitTransform
        >>> chain = Compose([Dequantization(levels=2), LogitTransform(alpha=0.05)])
        >>> chain.random
        True
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> chain.inverse(chain(x))
        tensor([[0., 1.]])
    """

    steps: Sequence[Transform]

    def __post_init__(self) -> None:
        flat: list[Transform] = []
        for step in self.steps:
            if not isinstance(step, Transform):
                raise OptionError(f"step {step!r} is no transform; see pyro_models.data")
            flat.extend(step.steps if isinstance(step, Compose) else [step])
        if not flat:
            raise OptionError("Compose has no steps; give at least one transform")
        object.__setattr__(self, "steps", tuple(flat))

    @property
    def random(self) -> bool:
        """Whether any step is random."""
        return any(step.random for step in self.steps)

    def check(self, x: Tensor) -> None:
        """Check what each step would be given, with draws from a generator of its own."""
        generator = torch.Generator(x.device).manual_seed(0)
        for step in self.steps[:-1]:
            step.check(x)
            x = step.apply(x, generator=generator)
        self.steps[-1].check(x)

    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """Apply the steps in turn."""
        for step in self.steps:
            x = step.apply(x, generator=generator)
        return x

    def inverse(self, y: Float[Tensor, "num_data *datum"]) -> Float[Tensor, "num_data *datum"]:
        """Undo the steps, last one first."""
        for step in reversed(self._densities("inverse")):
            y = step.inverse(y)
        return y

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "num_data *datum"], y: Float[Tensor, "num_data *datum"]
    ) -> Float[Tensor, " num_data"]:
        """The sum of the steps' volume changes."""
        first, *rest = self._densities("log_abs_det_jacobian")
        total = y.new_zeros(len(y))
        for step in reversed(rest):
            before = step.inverse(y)
            total = total + step.log_abs_det_jacobian(before, y)
            y = before
        return total + first.log_abs_det_jacobian(x, y)

    def _densities(self, wanted: str) -> list[DensityTransform]:
        steps = [step for step in self.steps if isinstance(step, DensityTransform)]
        if len(steps) < len(self.steps):
            lossy = [step for step in self.steps if not isinstance(step, DensityTransform)]
            raise OptionError(
                f"the chain has no {wanted}, since {lossy[0]} loses what it was given; "
                "leave that step out"
            )
        return steps


def check_floats(x: Tensor, who: str) -> None:
    """Refuse what is not a batch of floating-point data.

    Raises:
        DataError: If ``x`` is empty, has no data dimension, or is not floating-point.

    Example:
        >>> check_floats(torch.zeros(2, 3), "Standardization")
    """
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise DataError(
            f"{who} was given x of shape {tuple(x.shape)} and type {x.dtype}; expected "
            "floating-point numbers of shape (N, ...): data.as_tensor(x) makes them"
        )


def check_unit_interval(x: Tensor, who: str) -> None:
    """Refuse data outside [0, 1].

    Raises:
        SupportError: If a value is below 0, above 1, or NaN.

    Example:
        >>> check_unit_interval(torch.tensor([[0.0, 1.0]]), "LogitTransform")
    """
    check_floats(x, who)
    low, high = (float(end) for end in x.aminmax())
    if not (low >= 0 and high <= 1):
        raise SupportError(
            f"{who} needs values in [0, 1], and x runs from {low:g} to {high:g}; scale x first "
            "(grey values 0 to 255: x / 255)"
        )
