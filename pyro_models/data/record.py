"""The record of a data set, and how to make one from an array."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_models.arrays import ArrayLike
from pyro_models.data.arrays import as_labels, as_tensor, column_names
from pyro_models.errors import DataError

Index = Tensor | np.ndarray | Sequence[int] | slice


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set: what is observed, and what is known about it.

    Args:
        x: The data, ``(N, ...)``, floating-point: ``(N, data_dim)`` or
            ``(N, channels, height, width)``.
        labels: One whole number a datum, ``(N,)``, or ``None``. Models never see them; they
            colour pictures and score clusters.
        name: A short name, for titles and folders.
        image_shape: ``(channels, height, width)`` if a datum is a picture, flat or not.
        feature_names: Names of the columns, if ``x`` has two dimensions.
        label_names: The name of label 0, 1, ...

    Raises:
        DataError: If the fields do not fit together.

    Example:
        >>> data = Data(torch.zeros(3, 2), torch.tensor([0, 1, 0]), name="toy")
        >>> data
        Data('toy', x=(3, 2) float32, labels=2 classes)
        >>> len(data.subset([0, 2]))
        2
    """

    x: Shaped[Tensor, "..."]
    labels: Shaped[Tensor, "..."] | None = None
    name: str = "data"
    image_shape: tuple[int, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_x(self.x)
        if self.labels is not None:
            _check_labels(self.labels, len(self.x), self.label_names)
        if self.image_shape is not None:
            _check_image_shape(self.image_shape, self.x.shape)
        names = self.feature_names
        if names is not None and (self.x.ndim != 2 or len(names) != self.x.shape[1]):
            raise DataError(
                f"{len(names)} feature_names were given for x of shape {tuple(self.x.shape)}; "
                "give one name for each column of an x with two dimensions"
            )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        parts = [f"x={tuple(self.x.shape)} {str(self.x.dtype).removeprefix('torch.')}"]
        if self.labels is not None:
            classes = self.labels.unique().numel() if self.label_names is None else 0
            parts.append(f"labels={classes or len(self.label_names or ())} classes")
        if self.image_shape is not None:
            parts.append(f"image_shape={self.image_shape}")
        return f"Data({self.name!r}, {', '.join(parts)})"

    @property
    def data_dim(self) -> int:
        """How many numbers make up one datum."""
        return math.prod(self.x.shape[1:])

    def subset(self, index: Index) -> "Data":
        """The data at the given places, in the order given.

        Args:
            index: Whole numbers, a slice, or a boolean mask of shape ``(N,)``.

        Raises:
            DataError: If nothing is left, or a place lies outside the set.

        Example:
            >>> Data(torch.arange(4.0).reshape(4, 1)).subset(slice(1, 3)).x.squeeze(1)
            tensor([1., 2.])
        """
        where = index if isinstance(index, slice) else _places(index, len(self), self.x.device)
        x = self.x[where]
        if len(x) == 0:
            raise DataError(f"the subset of {self.name!r} is empty; choose at least one datum")
        labels = self.labels
        if labels is not None:
            labels = labels[where if isinstance(where, slice) else where.to(labels.device)]
        return replace(self, x=x, labels=labels)

    def map(self, transform: Callable[[Tensor], Tensor]) -> "Data":
        """The data with ``x`` transformed, once and all together.

        A random transform is drawn once here. For fresh draws in each minibatch give the
        transform to ``fit`` instead.

        Args:
            transform: From ``x`` to a tensor with as many data.

        Raises:
            DataError: If the number of data changes, or the transform refuses ``x``.

        Example:
            >>> Data(torch.ones(2, 1)).map(lambda x: 3 * x).x.squeeze(1)
            tensor([3., 3.])
        """
        x = transform(self.x)
        if len(x) != len(self):
            raise DataError(
                f"the transform turned {len(self)} data into {len(x)}; it must keep their number"
            )
        same_columns = x.ndim == 2 and x.shape == self.x.shape
        same_size = math.prod(x.shape[1:]) == self.data_dim
        return replace(
            self,
            x=x,
            feature_names=self.feature_names if same_columns else None,
            image_shape=self.image_shape if same_size else None,
        )


def from_array(
    x: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    name: str = "array",
    image_shape: tuple[int, ...] | None = None,
    feature_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Data:
    """Make a data set from a tensor, an array, a table or a list.

    Args:
        x: Data ``(N, ...)``; a vector becomes ``(N, 1)``. See :func:`as_tensor`.
        labels: Whole numbers or text, ``(N,)``; text is numbered in alphabetical order, or in
            that of ``label_names``.
        name: A short name for the set.
        image_shape: ``(channels, height, width)`` if a datum is a picture.
        feature_names: Names of the columns; by default a table's own.
        label_names: The name of each label.
        dtype: Floating-point type of ``x``.

    Raises:
        DataError: If ``x`` is empty, ragged, not numeric or not finite, or the parts do not fit.

    Example:
        >>> from_array([[0, 1], [2, 3]], labels=["cat", "ant"]).labels
        tensor([1, 0])
    """
    names = column_names(x) if feature_names is None else tuple(map(str, feature_names))
    tensor = as_tensor(x, dtype=dtype, feature_names=names)
    numbers, classes = (None, None) if labels is None else as_labels(labels, label_names)
    return Data(
        x=tensor,
        labels=None if numbers is None else numbers.to(tensor.device),
        name=name,
        image_shape=image_shape,
        feature_names=names,
        label_names=classes,
    )


def _places(index: Tensor | np.ndarray | Sequence[int], size: int, device: torch.device) -> Tensor:
    where = torch.as_tensor(index, device=device)
    if where.ndim != 1:
        raise DataError(
            f"the index has shape {tuple(where.shape)}, expected one dimension; "
            "for one datum give [i]"
        )
    if where.dtype == torch.bool:
        if len(where) != size:
            raise DataError(f"the mask has {len(where)} entries for {size} data; give one for each")
        return where.nonzero().squeeze(1)
    if where.numel() == 0:
        raise DataError("the index is empty; choose at least one datum")
    if where.is_floating_point() or where.is_complex():
        raise DataError(f"the index has type {where.dtype}; give whole numbers or a mask")
    low, high = int(where.min()), int(where.max())
    if low < -size or high >= size:
        raise DataError(f"the index runs from {low} to {high}, outside the {size} data")
    return where.long()


def _check_x(x: Tensor) -> None:
    if x.ndim < 2 or x.numel() == 0 or not x.is_floating_point():
        raise DataError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}; expected floating-point numbers of "
            "shape (N, ...) with at least one datum: data.from_array(x) makes them"
        )


def _check_labels(labels: Tensor, size: int, names: tuple[str, ...] | None) -> None:
    if labels.shape != (size,) or labels.dtype != torch.int64:
        raise DataError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; expected int64 of "
            f"shape ({size},), one for each datum: data.from_array(x, labels) makes them"
        )
    if names is not None and (int(labels.min()) < 0 or int(labels.max()) >= len(names)):
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but there are "
            f"{len(names)} label_names; number the labels 0 to {len(names) - 1}"
        )


def _check_image_shape(image_shape: tuple[int, ...], shape: torch.Size) -> None:
    if len(image_shape) != 3 or math.prod(image_shape) != math.prod(shape[1:]):
        raise DataError(
            f"image_shape={image_shape} does not fit a datum of shape {tuple(shape[1:])}; give "
            "(channels, height, width) with as many numbers as a datum has"
        )
