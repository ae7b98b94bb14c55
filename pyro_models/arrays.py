"""Arrays, tables and lists as NumPy arrays of numbers, and the check that they are finite."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from pyro_models.errors import DataError

NUMERIC_KINDS = "biuf"  # numpy's codes of booleans, integers, unsigned integers and floats


@runtime_checkable
class Frame(Protocol):
    """A table with named columns, such as a ``DataFrame`` of pandas or polars."""

    @property
    def columns(self) -> Iterable[Any]:
        """The names of the columns, in their order."""

    def __getitem__(self, column: Any, /) -> Any:
        """One column."""

    def to_numpy(self) -> Any:
        """The values without the names."""


@runtime_checkable
class SupportsArray(Protocol):
    """What NumPy can turn into an array, such as a ``Series`` of pandas or an array of JAX."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """The values as an array."""


ArrayLike = Tensor | np.ndarray | Frame | SupportsArray | Sequence[Any]


def to_numpy(x: Any, name: str = "x") -> np.ndarray:
    """The values of an array, table or nested list; they are not always numbers.

    Args:
        x: The values.
        name: What messages call them.

    Raises:
        DataError: If rows differ in length, or a column of a table does not hold numbers.

    Example:
        >>> to_numpy([[1, 2], [3, 4]])
        array([[1, 2],
               [3, 4]])
    """
    if isinstance(x, Frame):
        return _from_frame(x, name)
    if isinstance(x, np.ma.MaskedArray):
        # What is masked is missing: it must not come back as the number under the mask.
        return np.ma.filled(x.astype(np.float64), np.nan)
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{name} is ragged or not numeric; give rows of one length ({error})"
        ) from error


def _from_frame(frame: Frame, name: str) -> np.ndarray:
    names = list(frame.columns)
    if len(set(names)) < len(names):
        raise DataError(f"two columns of {name} have the same name, among {names}; rename one")
    columns = [np.asarray(frame[column]) for column in names]
    for label, column in zip(names, columns, strict=True):
        if column.dtype.kind not in NUMERIC_KINDS:
            raise DataError(
                f"column {str(label)!r} is not numeric (type {column.dtype}); drop it, turn it "
                "into numbers, fill in its missing values, or give it as labels"
            )
    if not columns:
        raise DataError(f"{name} is a table without columns; give at least one")
    return np.stack(columns, axis=1)


def check_finite(
    x: Tensor,
    feature_names: Sequence[str] | None = None,
    name: str = "x",
    missing: bool = False,
) -> None:
    """Refuse data with NaN or infinity.

    Args:
        x: The data, one row a datum.
        feature_names: Names of the columns, for the message.
        name: What the message calls the data.
        missing: Whether NaN stands for a value that is missing, and is let pass.

    Raises:
        DataError: It says how many values are not finite, and where the first is.

    Example:
        >>> check_finite(Tensor([[0.0, 1.0]]))
    """
    # One number is read from the device, and none of the size of x is made.
    if not x.is_floating_point() or bool(x.sum().isfinite()):
        return
    bad = x.isinf() if missing else ~x.isfinite()
    count, nans = int(bad.sum()), int((bad & x.isnan()).sum())
    if count == 0:  # the sum overflowed, or what is not finite is missing
        return
    first = bad.nonzero()[0].tolist()
    if len(first) == 2:
        named = f" ({feature_names[first[1]]})" if feature_names else ""
        where = f"row {first[0]}, column {first[1]}{named}"
    else:
        where = f"index {tuple(first)}"
    raise DataError(
        f"{name} holds {count} value{'s that are' if count > 1 else ' that is'} not finite "
        f"({nans} NaN, {count - nans} infinite), the first at {where} (rows and columns are "
        f"counted from 0, as {str(x.dtype).removeprefix('torch.')}): drop those rows or fill in "
        "the values"
    )
