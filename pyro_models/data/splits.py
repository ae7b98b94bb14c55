"""Parts of a data set: training, validation, test; by seed, each datum in exactly one."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from pyro_models.data.arrays import as_labels
from pyro_models.data.record import Data
from pyro_models.errors import DataError, OptionError


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint parts that make up a data set.

    Args:
        train: What a model is fitted to.
        validation: What decides when to stop and which options to take.
        test: What is looked at once, at the end.
    """

    train: Data
    validation: Data
    test: Data


@dataclass(frozen=True, eq=False)
class Holdout:
    """Two disjoint parts that make up a data set.

    Args:
        train: What a model is fitted to.
        held_out: What it is judged by.
    """

    train: Data
    held_out: Data


def split(
    data: Data,
    validation: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
    *,
    stratify: bool = False,
) -> Split:
    """Cut a data set in three at random: training, validation and test.

    Args:
        data: The set, of ``N`` data.
        validation: Share of the set as a ``float`` in (0, 1), or number of data as an ``int``.
        test: Likewise.
        seed: Decides who goes where; torch's own generator is not touched.
        stratify: Whether each label has the same share of every part, to within one datum.

    Raises:
        OptionError: If a size is no share and no number, or there are no labels to stratify by.
        DataError: If a part would be empty.

    Example:
        >>> parts = split(Data(torch.arange(10.0).reshape(10, 1)), validation=0.2, test=3)
        >>> [len(part) for part in (parts.train, parts.validation, parts.test)]
        [5, 2, 3]
    """
    train, second, third = _cut(data, {"validation": validation, "test": test}, seed, stratify)
    return Split(train, second, third)


def holdout(
    data: Data, held_out: float | int = 0.1, seed: int = 0, *, stratify: bool = False
) -> Holdout:
    """Cut a data set in two at random, for sets that come with a test set of their own.

    Args:
        data: The set, of ``N`` data.
        held_out: Share of the set as a ``float`` in (0, 1), or number of data as an ``int``.
        seed: Decides who goes where; torch's own generator is not touched.
        stratify: Whether each label has the same share of both parts, to within one datum.

    Raises:
        OptionError: If the size is no share and no number, or there are no labels to stratify by.
        DataError: If a part would be empty.

    Example:
        >>> parts = holdout(Data(torch.arange(10.0).reshape(10, 1)), 0.3)
        >>> len(parts.train), len(parts.held_out)
        (7, 3)
    """
    train, second = _cut(data, {"held_out": held_out}, seed, stratify)
    return Holdout(train, second)


def hide_labels(
    labels: Shaped[Tensor, "..."], keep: float | int = 0.1, seed: int = 0
) -> Int[Tensor, " num_data"]:
    """Labels of which few are left, as many of each class as far as it has so many; else -1.

    What a semi-supervised pair learns from: ``(x, hide_labels(labels))``.

    Args:
        labels: Whole numbers from 0, ``(N,)``; -1 is hidden already.
        keep: Share of the known labels as a ``float`` in (0, 1), or number of labels as an
            ``int``. Each class keeps at least one.
        seed: Decides who keeps its label; torch's own generator is not touched.

    Returns:
        The labels ``(N,)``, -1 where hidden.

    Raises:
        OptionError: If ``keep`` is no share and no number.
        DataError: If labels are no such numbers, none is known, or fewer are than ``keep``.

    Example:
        >>> y = hide_labels(torch.tensor([0, 0, 0, 1, 1, 1]), keep=2)
        >>> sorted(y.tolist())
        [-1, -1, -1, -1, 0, 1]
    """
    _check_size("keep", keep)
    device = labels.device
    labels, _ = as_labels(labels)
    is_known = labels >= 0
    total = int(is_known.sum())
    if total == 0:
        raise DataError("no label is known, so that none can be kept; give labels from 0 up")
    classes, number = labels.unique(return_inverse=True)
    wanted = keep if isinstance(keep, int) else round(keep * total)
    count = max(int((classes >= 0).sum()), wanted)
    if count > total:
        raise DataError(f"keep={keep} of {total} labels that are known; keep fewer")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.int64)  # of a datum within its class
    for value in range(len(classes)):
        own = order[number[order] == value]
        place[own] = torch.arange(len(own))
    # Class by class in turn, until there are enough.
    turn = (place * len(classes) + number).masked_fill(~is_known, len(labels) * len(classes))
    kept = torch.argsort(turn, stable=True)[:count]
    return torch.full_like(labels, -1).index_copy(0, kept, labels[kept]).to(device)


def _cut(data: Data, sizes: dict[str, float | int], seed: int, stratify: bool) -> list[Data]:
    """The parts of a set: what is left over first, then one for each size."""
    total = len(data)
    counts = [_count(name, size, total) for name, size in sizes.items()]
    if sum(counts) >= total:
        raise DataError(
            f"{' + '.join(map(str, counts))} data of {total} are set aside for "
            f"{' and '.join(sizes)}, so that none is left for train; set aside fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator)  # (N,)
    part = torch.zeros(total, dtype=torch.int64)  # part[i]: where datum order[i] goes
    free = torch.arange(total)  # places in `order` that no part has taken yet
    if stratify:
        free = torch.argsort(_labels(data)[order], stable=True)
    for number, count in enumerate(counts, start=1):
        taken = _spread(len(free), count)
        part[free[taken]] = number
        free = free[~torch.isin(torch.arange(len(free)), taken)]
    # `order` is kept within each part, so that even a part of a sorted set is well mixed.
    return [data.subset(order[part == number]) for number in range(len(counts) + 1)]


def _labels(data: Data) -> Int[Tensor, " num_data"]:
    if data.labels is None:
        raise OptionError(f"{data.name!r} has no labels to stratify by; give stratify=False")
    return data.labels.cpu()


def _spread(total: int, count: int) -> Int[Tensor, " count"]:
    """``count`` places spread evenly over ``total``: a run of n holds n count / total, within 1."""
    return torch.tensor([(2 * i + 1) * total // (2 * count) for i in range(count)])


def _check_size(name: str, size: float | int) -> None:
    if isinstance(size, bool) or not isinstance(size, int | float) or not math.isfinite(size):
        raise OptionError(f"{name}={size!r} is neither a share (0.1) nor a number of data (100)")
    if isinstance(size, float) and not 0 <= size < 1:
        raise OptionError(f"{name}={size} is no share between 0 and 1; for a number give an int")
    if size < 0:
        raise OptionError(f"{name}={size} is negative; give a share (0.1) or a number (100)")


def _count(name: str, size: float | int, total: int) -> int:
    _check_size(name, size)
    count = size if isinstance(size, int) else round(size * total)
    if count < 1:
        raise DataError(
            f"{name}={size} of {total} data leaves the part {name!r} empty; give a larger share "
            f"or number, or cut in two with data.holdout"
        )
    return count
