"""What a person calls data, as checked tensors: arrays, records, datasets and tuples of them."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from pyro_models.arrays import NUMERIC_KINDS, Frame, check_finite, to_numpy
from pyro_models.errors import DataError

Tensors = tuple[Tensor, ...]

# Datasets up to this size are read once and kept; a fixed size, so that runs are reproducible.
_KEEP_BYTES = 2 * 1024**3


def as_tensors(data: Any, precision: torch.dtype, missing: bool = False) -> Tensors | None:
    """Checked tensors with one row a datum, or ``None`` for a dataset that must be read as it goes.

    A tuple stands for several positional arguments of the model. Floats, booleans and bytes become
    ``precision``. Other integers become ``precision`` too where they are all of the data; beside
    other tensors they stay integers, since there they are indices or labels.

    Args:
        data: A tensor, an array, a nested list of numbers, a tuple of these, a record with the
            attribute ``x``, or a ``torch.utils.data.Dataset``.
        precision: Floating-point type of the result.
        missing: Whether NaN stands for a value that is missing, and is let pass.

    Raises:
        DataError: If the data are empty, not numbers, not finite, or of unequal lengths.

    Example:
        >>> as_tensors([[1, 2], [3, 4]], torch.float32)
        (tensor([[1., 2.],
                [3., 4.]]),)
        >>> x, label = as_tensors((np.zeros((2, 3)), torch.tensor([0, 1])), torch.float32)
        >>> x.dtype, label.dtype
        (torch.float32, torch.int64)
    """
    parts = _parts(data)
    if parts is None:
        return None
    names = ["the data"] if len(parts) == 1 else [f"data[{i}]" for i in range(len(parts))]
    raw = [_tensor(part, name) for part, name in zip(parts, names, strict=True)]
    tensors = tuple(cast(t, precision, alone=len(raw) == 1) for t in raw)
    _check_lengths(tensors)
    for tensor, name in zip(tensors, names, strict=True):
        check_finite(tensor, name=name, missing=missing)
    return tensors


def cast(tensor: Tensor, precision: torch.dtype, *, alone: bool) -> Tensor:
    """A tensor in the fit's precision; integers beside other tensors stay integers."""
    kept = tensor.dtype in (torch.int16, torch.int32, torch.int64) and not alone
    return tensor.detach().to(torch.int64 if kept else precision)


def _parts(data: Any) -> tuple[Any, ...] | None:
    """The positional arguments that the data stand for."""
    if isinstance(data, tuple):
        if not data:
            raise DataError("the data are an empty tuple; give at least one tensor")
        return data
    if isinstance(data, TensorDataset):
        return data.tensors
    if isinstance(data, Dataset):
        return _read(data)
    if isinstance(data, Tensor | np.ndarray | list | Frame):
        return (data,)
    if hasattr(data, "to_numpy"):  # whose columns may be attributes, one of them x
        return (data.to_numpy(),)
    if hasattr(data, "x"):
        return (data.x,)
    raise DataError(
        f"data of type {type(data).__name__} cannot be read; give a tensor, an array, a tuple of "
        "them, a record with the attribute x, a torch Dataset or a DataLoader"
    )


def _read(dataset: Dataset) -> tuple[Any, ...] | None:
    """All items of a dataset; ``None`` if they are too many, or differ at each reading."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    count = len(dataset)
    if count == 0:
        raise DataError("the dataset is empty; give at least one datum")
    if _draws(dataset):
        return None
    first = arguments(default_collate([dataset[0]]))
    if sum(t.nbytes for t in first) * count > _KEEP_BYTES:
        return None
    return arguments(default_collate([dataset[i] for i in range(count)]))


def _draws(dataset: Dataset) -> bool:
    """Whether reading an item draws a random number, as augmentation does."""
    from_torch, from_numpy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    from_python = random.getstate()
    dataset[0]
    return (
        random.getstate() != from_python
        or repr(np.random.get_state()) != repr(from_numpy)  # noqa: NPY002
        or not torch.equal(torch.get_rng_state(), from_torch)
    )


def arguments(batch: Any) -> Tensors:
    """Positional arguments in a collated batch: a tensor, or a sequence of tensors.

    Raises:
        DataError: If it is anything else.
    """
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, tuple | list) and batch and all(isinstance(t, Tensor) for t in batch):
        return tuple(batch)
    kind = type(batch).__name__
    raise DataError(
        f"the dataset gives batches of type {kind}; let its items be a tensor or a tuple of "
        "tensors, in the order of the model's arguments"
    )


def _tensor(part: Any, name: str) -> Tensor:
    tensor = part if isinstance(part, Tensor) else torch.from_numpy(_array(part, name))
    if tensor.is_complex():
        raise DataError(f"{name}: complex numbers; give their real and imaginary parts as columns")
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise DataError(
            f"{name}: shape {tuple(tensor.shape)} holds no data; give one row a datum, N >= 1"
        )
    return tensor


def _array(part: Any, name: str) -> np.ndarray:
    if isinstance(part, list) and any(isinstance(row, Tensor) for row in part):
        raise DataError(
            f"{name}: a list of tensors; give a tuple for several arguments of the model, "
            "or torch.stack(...) for one"
        )
    array = to_numpy(part, name)
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (ValueError, TypeError) as error:
            message = f"{name}: not an array of numbers ({error}); encode it as numbers"
            raise DataError(message) from error
    if array.dtype.kind not in NUMERIC_KINDS + "c":
        raise DataError(f"{name}: values of type {array.dtype}; encode them as numbers")
    # torch hardly computes with unsigned integers beyond a byte, and shares no read-only memory.
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    return np.array(array, dtype=np.int64 if wide else array.dtype.newbyteorder("="), order="C")


def _check_lengths(tensors: Tensors) -> None:
    lengths = [len(t) for t in tensors]
    if len(set(lengths)) > 1:
        raise DataError(
            f"the tensors in the tuple have {lengths} rows; each must have one row a datum, "
            "so give all the same number"
        )
