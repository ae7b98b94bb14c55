"""Class labels that may be missing: how they come in."""

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_models.errors import DataError

UNKNOWN = -1
"""What stands for a label that is not known."""


def as_labels(
    y: Int[Tensor, " batch"] | None, batch: int, device: torch.device
) -> Int[Tensor, " batch"]:
    """Labels of a minibatch; all unknown if there are none.

    Only shapes and types are looked at, never values: it costs nothing and can be traced.

    Args:
        y: A whole number a datum from 0 up, -1 where it is not known; or ``None``.
        batch: Data in the minibatch.
        device: Where they are.

    Raises:
        DataError: If shape, type or device do not fit.

    Example:
        >>> as_labels(None, 3, torch.device("cpu"))
        tensor([-1, -1, -1])
    """
    if y is None:
        return torch.full((batch,), UNKNOWN, device=device)
    if y.shape != (batch,):
        raise DataError(
            f"y has shape {tuple(y.shape)}, and there are {batch} data; give one label for each, "
            f"({batch},)"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(
            f"y is {y.dtype}; give whole numbers, y.long(), from 0 up and -1 where it is not known"
        )
    if y.device != device:
        raise DataError(f"y is on {y.device} and the parameters on {device}; move y there")
    return y.long()


def check_labels(y: Int[Tensor, " num_data"], num_classes: int) -> None:
    """Refuse labels of no class, once before a fit.

    Args:
        y: Labels, -1 where unknown.
        num_classes: How many classes there are.

    Raises:
        DataError: If there is one; the message names it.

    Example:
        >>> check_labels(torch.tensor([0, -1, 2]), 3)
    """
    wrong = (y < UNKNOWN) | (y >= num_classes)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise DataError(
            f"y[{place}] is {int(y[place])}, and the classes are 0 to {num_classes - 1}; give -1 "
            "where the class is not known"
        )
