"""Whatever a user holds, as a checked tensor: arrays, tables and lists in, floats out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_models.arrays import NUMERIC_KINDS, ArrayLike, Frame, check_finite, to_numpy
from pyro_models.errors import DataError


def as_tensor(
    x: ArrayLike,
    *,
    dtype: torch.dtype | None = None,
    feature_names: Sequence[str] | None = None,
    missing: bool = False,
) -> Float[Tensor, "num_data *datum"]:
    """Turn data into a floating-point tensor with the data along the first dimension.

    Arrays, tables and lists are copied, so that later changes to them do not reach the model. A
    floating-point tensor is taken as it is (detached, on its device). A vector of ``N`` numbers
    becomes ``(N, 1)``.

    Args:
        x: Tensor, array, table with named columns, or nested list, of shape ``(N, ...)``.
        dtype: Floating-point type of the result; by default a floating-point tensor keeps its
            own, and all else takes torch's default type.
        feature_names: Names of the columns, for messages.
        missing: Whether NaN stands for a value that is missing, and is let pass.

    Raises:
        DataError: If the data is empty, ragged, not numeric, or holds NaN or infinity. The
            message says how many such values there are and where the first is.

    Example:
        >>> as_tensor([1, 2, 3])
        tensor([[1.],
                [2.],
                [3.]])
        >>> as_tensor([[1.0, 2.0], [float("nan"), 4.0]])
        Traceback (most recent call last):
            ...
        pyro_models.errors.DataError: x holds 1 value that is not finite (1 NaN, 0 infinite), the \
first at row 1, column 0 (rows and columns are counted from 0, as float32): drop those rows or \
fill in the values
    """
    if dtype is not None and not dtype.is_floating_point:
        raise DataError(f"dtype={dtype} is not a floating-point type; give, say, torch.float32")
    if isinstance(x, Tensor):
        tensor = _from_tensor(x, dtype)
    elif isinstance(x, list | tuple) and x and all(isinstance(row, Tensor) for row in x):
        tensor = _from_tensor(_stack(x), dtype)
    else:
        tensor = _from_numpy(to_numpy(x), dtype or torch.get_default_dtype())
    if tensor.ndim == 0:
        raise DataError("x is a single number; give data of shape (N, ...)")
    if tensor.numel() == 0:
        raise DataError(f"x is empty, of shape {tuple(tensor.shape)}; give at least one datum")
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(1)  # (N, 1)
    names = feature_names if feature_names is not None else column_names(x)
    check_finite(tensor, names, missing=missing)
    return tensor


def column_names(x: ArrayLike) -> tuple[str, ...] | None:
    """The names of a table's columns; ``None`` for what is no table.

    Example:
        >>> column_names([[1.0, 2.0]]) is None
        True
    """
    return tuple(map(str, x.columns)) if isinstance(x, Frame) else None


def as_labels(
    labels: ArrayLike, label_names: Sequence[str] | None = None
) -> tuple[Int[Tensor, " num_data"], tuple[str, ...] | None]:
    """Turn labels into integers, and text into integers with names.

    Args:
        labels: Whole numbers, which are kept, or text, which is numbered in alphabetical order or
            in that of ``label_names``; shape ``(N,)``.
        label_names: The name of each label.

    Returns:
        The labels ``(N,)`` as ``int64``, and their names, if known.

    Raises:
        DataError: If labels are not a vector, neither whole numbers nor text, or unnamed.

    Example:
        >>> as_labels(["rose", "iris", "rose"])
        (tensor([1, 0, 1]), ('iris', 'rose'))
    """
    names = None if label_names is None else tuple(map(str, label_names))
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1:
        raise DataError(
            f"labels have shape {array.shape}, expected (N,), one label a datum; "
            "for one-hot rows give labels.argmax(1)"
        )
    if array.dtype.kind in "OUT":
        return _number_text([*array], names)
    if array.dtype.kind not in NUMERIC_KINDS:
        raise DataError(f"labels have type {array.dtype}; give whole numbers or text")
    if array.dtype.kind == "f" and not _is_whole(array):
        raise DataError("labels hold fractions, NaN or infinity; give whole numbers or text")
    return torch.from_numpy(array.astype(np.int64)), names


def _is_whole(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all() and (array == np.round(array)).all())


def _number_text(
    cells: list[Any], names: tuple[str, ...] | None
) -> tuple[Int[Tensor, " num_data"], tuple[str, ...]]:
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise DataError(
                f"label {cell!r} in row {row} (from 0) is not text; give an array of whole "
                "numbers, or text throughout"
            )
    names = tuple(map(str, sorted(set(cells)))) if names is None else names
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted(map(str, set(cells) - set(names)))
    if unknown:
        raise DataError(f"labels {unknown} are not among label_names={names}")
    return torch.tensor([numbers[cell] for cell in cells], dtype=torch.int64), names


def _from_tensor(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if x.layout != torch.strided:
        raise DataError(f"x is a tensor of layout {x.layout}; give x.to_dense()")
    if x.is_complex():
        raise DataError(f"x has type {x.dtype}; give real numbers, say torch.view_as_real(x)")
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return x.detach().to(dtype)


def _stack(rows: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(row.shape) for row in rows]
    for row, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise DataError(
                f"x is ragged: row 0 has shape {shapes[0]}, row {row} has shape {shape}; "
                "give rows of one shape"
            )
    return torch.stack(tuple(rows))


def _from_numpy(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    if array.dtype.kind not in NUMERIC_KINDS:
        raise DataError(
            f"x has type {array.dtype}, which is not numeric (object arrays, text and records "
            "are not read); give an array of numbers with rows of one length"
        )
    kind = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(over="ignore"):  # what overflows is infinite, and is refused with its place
        return torch.from_numpy(np.array(array, dtype=kind, order="C")).to(dtype)
