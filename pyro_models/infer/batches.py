"""Minibatches: of tensors that live on the device, or of a loader that moves them there."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pyro_models.errors import DataError, OptionError
from pyro_models.infer.arrays import Tensors, arguments, as_tensors, cast
from pyro_models.infer.random_state import Stream, derive_seed

Transform = Callable[..., Any]

_SEEDED_SAMPLERS = (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

# A set may take this share of the device's free memory; the rest is for the step.
_DEVICE_SHARE = 0.5

# Data are checked in parts of this size.
_CHECK_BATCH = 4096


class Batches(ABC):
    """Minibatches of a data set, epoch after epoch."""

    num_data: int | None
    """N, or ``None`` where a loader does not tell."""
    per_epoch: int | None
    """Batches in an epoch, or ``None`` where a loader does not tell."""
    odd: int
    """Size of a last batch that is smaller than the others; 0 if there is none, or none known."""

    @abstractmethod
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Tensors]:
        """The batches of an epoch, without the first ``skip``."""

    @abstractmethod
    def in_order(self, batch_size: int) -> "Batches":
        """The same data unshuffled, in batches of another size; a loader stays as it is."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that tells one data set from another."""

    @abstractmethod
    def mark(self) -> str:
        """Digest of the running epoch's first batch; empty where the order is sure to repeat."""

    @property
    @abstractmethod
    def generators(self) -> dict[str, torch.Generator]:
        """Generators of its own that an epoch's order depends on, besides torch's global ones."""


class TensorBatches(Batches):
    """Batches of tensors that stay in memory, in an order of their own each epoch.

    The order of epoch e is a pure function of seed and e, the same on every device, so that nothing
    needs to be stored to resume. Every datum is used once an epoch: the last batch may be smaller.

    Args:
        tensors: One row a datum.
        batch_size: B; N or more, or ``None``, make one batch of all data, in their own order.
        device: Where batches are wanted. The tensors are kept there too if they fit.
        seed: Seed of the shuffling; ``None`` keeps the data in order.

    Raises:
        OptionError: If ``batch_size`` is less than 1.

    Example:
        >>> batches = TensorBatches((torch.arange(5),), 2, torch.device("cpu"), seed=None)
        >>> [x.tolist() for (x,) in batches.epoch(0)]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self, tensors: Tensors, batch_size: int | None, device: torch.device, seed: int | None
    ):
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; give at least 1, or None for all data")
        self.num_data: int = len(tensors[0])
        self.batch_size = min(batch_size or self.num_data, self.num_data)
        self.per_epoch: int = -(-self.num_data // self.batch_size)
        self.odd = self.num_data % self.batch_size
        self.device = device
        self.seed = seed
        self.tensors = _placed(tensors, device)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Tensors]:
        """The batches of an epoch, without the first ``skip``."""
        if self.per_epoch == 1:
            if skip == 0:
                yield tuple(t.to(self.device) for t in self.tensors)
            return
        order = self._order(epoch)
        for index in order.split(self.batch_size)[skip:]:
            rows = (t.index_select(0, index) for t in self.tensors)
            yield tuple(row.to(self.device, non_blocking=True) for row in rows)

    def _order(self, epoch: int) -> Tensor:
        storage = self.tensors[0].device
        if self.seed is None:
            return torch.arange(self.num_data, device=storage)
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, Stream.SHUFFLE, epoch))
        return torch.randperm(self.num_data, generator=generator).to(storage)

    def in_order(self, batch_size: int) -> "TensorBatches":
        """The same data unshuffled, in batches of another size."""
        return TensorBatches(self.tensors, batch_size, self.device, seed=None)

    def fingerprint(self) -> str:
        """Digest of shapes, types and values."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in self.tensors:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            for chunk in tensor.split(65536):
                digest.update(_bytes(chunk))
        return digest.hexdigest()

    def mark(self) -> str:
        """Empty: the order depends on the seed alone."""
        return ""

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """None: the order depends on the seed alone."""
        return {}


class LoaderBatches(Batches):
    """Batches of a ``DataLoader``, moved to the device one by one.

    The order is the loader's. It repeats, as resuming needs, where it depends on torch's generators
    (torch's own samplers do) and where items do not depend on other random numbers.

    Args:
        loader: Gives a tensor or a tuple of tensors a batch.
        device: Where batches are wanted.
        precision: Their floating-point type.
    """

    def __init__(self, loader: DataLoader, device: torch.device, precision: torch.dtype):
        self.loader = loader
        self.device = device
        self.precision = precision
        self._first: Tensors = ()
        self.num_data = _length(getattr(loader, "dataset", None))
        self.per_epoch = _length(loader)
        self.odd = 0
        if self.num_data and loader.batch_size and not loader.drop_last:
            self.odd = self.num_data % loader.batch_size
        if self.per_epoch == 0:
            raise DataError("the DataLoader gives no batch; check its dataset and drop_last")

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Tensors]:
        """The batches of an epoch; the first ``skip`` are read at once and dropped."""
        self._first = ()
        batches = map(self._ready, iter(self.loader))
        for done in range(skip):
            if next(batches, None) is None:
                raise DataError(
                    f"the DataLoader ended after {done} batches where {skip} were taken before; "
                    "resuming needs a loader that gives the same batches again"
                )
        return batches

    def _ready(self, batch: Any) -> Tensors:
        tensors = arguments(batch)
        alone = len(tensors) == 1
        moved = (t.to(self.device, non_blocking=True) for t in tensors)
        batch = tuple(cast(t, self.precision, alone=alone) for t in moved)
        self._first = self._first or batch
        return batch

    def in_order(self, batch_size: int) -> "LoaderBatches":
        """The loader itself, which has an order of its own."""
        return self

    def fingerprint(self) -> str:
        """Kind and length of the dataset; its items are not read."""
        dataset = type(getattr(self.loader, "dataset", self.loader)).__qualname__
        return f"{dataset} of {self.num_data} in {self.per_epoch} batches"

    def mark(self) -> str:
        """Digest of the running epoch's first batch.

        Later ones may have been augmented with draws that came after a step's, which are not
        repeated where batches are merely read past.
        """
        return checksum(self._first)

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """Those that the user gave to the loader or its samplers."""
        sampler = getattr(self.loader, "sampler", None)
        inner = getattr(getattr(self.loader, "batch_sampler", None), "sampler", None)
        holders = {"loader": self.loader, "sampler": sampler, "batch_sampler": inner}
        found = {name: getattr(holder, "generator", None) for name, holder in holders.items()}
        return {name: g for name, g in found.items() if isinstance(g, torch.Generator)}

    def warn_if_unrepeatable(self) -> None:
        """Warn that a checkpoint may not be able to take up the loader's order again."""
        samplers = (getattr(self.loader, n, None) for n in ("sampler", "batch_sampler"))
        foreign = [s for s in samplers if s is not None and type(s) not in _SEEDED_SAMPLERS]
        if foreign or _length(self.loader) is None:
            what = type(foreign[0]).__name__ if foreign else "an iterable dataset"
            warnings.warn(
                f"the DataLoader takes its order from {what}, whose state no checkpoint holds: a "
                "resumed fit is bit for bit the same only if it depends on torch's seed alone",
                stacklevel=2,
            )


@runtime_checkable
class CheckedTransform(Protocol):
    """A transform that can look at data once, and leave that out afterwards."""

    def check(self, *tensors: Tensor) -> None:
        """Refuse data that it has no meaning for."""

    def apply(self, *tensors: Tensor) -> Any:
        """Transform data without a look at the values."""


def _checked_once(transform: Transform, batches: Batches) -> Transform:
    """The transform without its own checks, where all that it will be given can be checked now."""
    of_its_own = isinstance(transform, nn.Module)  # a module's `apply` is for its parts
    if of_its_own or not isinstance(transform, CheckedTransform):
        return transform
    if not isinstance(batches, TensorBatches):
        return transform
    for batch in batches.in_order(_CHECK_BATCH).epoch(0):
        transform.check(*batch)
    return transform.apply


class Transformed(Batches):
    """Batches with a function applied to each, such as a fresh binarisation.

    Args:
        batches: What it is applied to.
        transform: Takes the batch's tensors as arguments, returns a tensor or a tuple of them.
    """

    def __init__(self, batches: Batches, transform: Transform):
        self.batches = batches
        self.transform = transform
        self.num_data = batches.num_data
        self.per_epoch = batches.per_epoch
        self.odd = batches.odd

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Tensors]:
        """The transformed batches of an epoch, without the first ``skip``."""
        return (self._apply(batch) for batch in self.batches.epoch(epoch, skip))

    def _apply(self, batch: Tensors) -> Tensors:
        changed = self.transform(*batch)
        changed = changed if isinstance(changed, tuple) else (changed,)
        rows = [len(t) if isinstance(t, Tensor) else None for t in changed]
        if set(rows) != {len(batch[0])}:
            raise DataError(
                f"the transform was given {len(batch[0])} data and returned tensors of {rows} rows "
                "(None for what is no tensor); return a tensor or a tuple of tensors with as many "
                "rows as it was given"
            )
        return changed

    def in_order(self, batch_size: int) -> "Transformed":
        """The same data unshuffled, in batches of another size, transformed."""
        return Transformed(self.batches.in_order(batch_size), self.transform)

    def fingerprint(self) -> str:
        """That of the data before the transform."""
        return self.batches.fingerprint()

    def mark(self) -> str:
        """That of the batches below."""
        return self.batches.mark()

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """Those of the batches below."""
        return self.batches.generators


def make_batches(
    data: Any,
    batch_size: int | None,
    device: torch.device,
    precision: torch.dtype,
    seed: int | None,
    transform: Transform | None = None,
    missing: bool = False,
) -> Batches:
    """Minibatches of whatever a person calls data; see ``fit`` for the kinds.

    Args:
        data: The data.
        batch_size: B, or ``None`` for all data at once; a ``DataLoader`` has its own.
        device: Where batches are wanted.
        precision: Their floating-point type.
        seed: Seed of the shuffling; ``None`` keeps the data in order.
        transform: Applied to each batch on the device. One with the methods ``check`` and
            ``apply``, as those of ``pyro_models.data``, checks tensors once and then only applies.
        missing: Whether NaN stands for a value that is missing, and is let pass.

    Raises:
        DataError: If the data cannot be read or used, or the transform refuses them.
        OptionError: If the batch size is less than 1.
    """
    batches: Batches
    if isinstance(data, DataLoader):
        batches = LoaderBatches(data, device, precision)
    else:
        tensors = as_tensors(data, precision, missing)
        if tensors is not None:
            batches = TensorBatches(tensors, batch_size, device, seed)
        else:
            size = batch_size or _length(data) or 1
            shuffle = seed is not None and _length(data) is not None
            loader = DataLoader(data, batch_size=size, shuffle=shuffle)
            batches = LoaderBatches(loader, device, precision)
    return batches if transform is None else Transformed(batches, _checked_once(transform, batches))


def checksum(batch: Tensors) -> str:
    """Digest of a batch, to see whether a loader gives the same one again."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in batch:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _length(sized: Any) -> int | None:
    """Length of a dataset or loader; ``None`` where it has none."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _placed(tensors: Tensors, device: torch.device) -> Tensors:
    """The tensors on the device, or in the host's memory if they would fill the device's."""
    if device.type == "cuda":
        needed = sum(t.nbytes for t in tensors if t.device != device)
        free, _ = torch.cuda.mem_get_info(device)
        if needed > _DEVICE_SHARE * free:
            return tuple(t.cpu().pin_memory() for t in tensors)
    return tuple(t.to(device).contiguous() for t in tensors)
