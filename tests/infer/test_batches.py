"""Minibatches: every datum once an epoch, orders that repeat, and data that are refused."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from pyro_models.errors import DataError, OptionError
from pyro_models.infer.arrays import as_tensors
from pyro_models.infer.batches import (
    LoaderBatches,
    TensorBatches,
    Transformed,
    checksum,
    make_batches,
)

CPU = torch.device("cpu")


def tensor_batches(count: int, size: int | None, seed: int | None = 0) -> TensorBatches:
    return TensorBatches((torch.arange(count),), size, CPU, seed)


class Record:
    def __init__(self, x: Tensor):
        self.x = x


class Table:
    """Like a data frame: columns are attributes, one of them is named x."""

    x = "a column"

    def to_numpy(self) -> np.ndarray:
        return np.arange(4).reshape(2, 2)


class Items(Dataset):
    """A dataset with items made one by one."""

    def __init__(self, count: int, jitter: str | None = None):
        self.count = count
        self.jitter = jitter

    def __repr__(self) -> str:
        return f"Items({self.count})"  # in the names of tests, the same in every process

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.count:
            raise IndexError(index)
        noise = {
            None: lambda: 0.0,
            "torch": lambda: float(torch.rand(())),
            "numpy": lambda: np.random.rand(),  # noqa: NPY002
            "python": random.random,
        }[self.jitter]()
        return torch.tensor([float(index), noise])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(5.0))


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (10, 10), (10, 99), (1, 1)])
def test_every_datum_is_used_once_an_epoch(count: int, size: int) -> None:
    batches = tensor_batches(count, size)
    for epoch in range(3):
        found = [x for (x,) in batches.epoch(epoch)]
        assert len(found) == batches.per_epoch
        assert torch.cat(found).sort().values.tolist() == list(range(count))
        assert {len(x) for x in found[:-1]} <= {batches.batch_size}
        assert len(found[-1]) == (batches.odd or batches.batch_size)


def test_no_batch_size_is_one_batch_in_order() -> None:
    assert [x.tolist() for (x,) in tensor_batches(5, None).epoch(3)] == [[0, 1, 2, 3, 4]]


def test_orders_differ_by_epoch_and_seed_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([x for (x,) in tensor_batches(50, 7, seed).epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_shuffling_is_uniform() -> None:
    # Where datum 0 lands is uniform on 5 places: chi-squared with 4 degrees of freedom.
    places = torch.zeros(5)
    for epoch in range(2000):
        order = torch.cat([x for (x,) in tensor_batches(5, 2, seed=7).epoch(epoch)])
        places[order.tolist().index(0)] += 1
    assert float(((places - 400) ** 2 / 400).sum()) < 23.5  # p = 1e-4


def test_shuffling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(tensor_batches(20, 3).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_skipping_gives_the_rest_of_the_epoch(skip: int) -> None:
    batches = tensor_batches(10, 3)
    whole = [x.tolist() for (x,) in batches.epoch(2)]
    assert [x.tolist() for (x,) in batches.epoch(2, skip)] == whole[skip:]
    one = tensor_batches(10, None)
    assert list(one.epoch(0, 1)) == []


def test_tensors_of_a_tuple_stay_in_step() -> None:
    x = torch.arange(10.0)
    batches = make_batches((x, -x), 4, CPU, torch.float32, seed=0)
    assert all(torch.equal(a, -b) for a, b in batches.epoch(0))


@pytest.mark.parametrize(
    "data",
    [
        torch.arange(6).reshape(3, 2),
        np.arange(6).reshape(3, 2),
        np.arange(6, dtype=">f8").reshape(3, 2),
        np.arange(6, dtype=np.uint16).reshape(3, 2),
        np.arange(6).reshape(3, 2).astype(object),
        [[0, 1], [2, 3], [4, 5]],
        (torch.arange(6).reshape(3, 2),),
        Record(torch.arange(6).reshape(3, 2)),
        TensorDataset(torch.arange(6).reshape(3, 2)),
    ],
    ids=lambda data: type(data).__name__,
)
def test_kinds_of_data(data: object) -> None:
    tensors = as_tensors(data, torch.float64)
    assert tensors is not None
    assert tensors[0].dtype == torch.float64
    assert tensors[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_table_is_read_whole_also_with_a_column_x() -> None:
    tensors = as_tensors(Table(), torch.float32)
    assert tensors is not None
    assert tensors[0].tolist() == [[0, 1], [2, 3]]


def test_integers_beside_other_tensors_stay_integers() -> None:
    tensors = as_tensors((torch.zeros(3, dtype=torch.uint8), np.arange(3)), torch.float32)
    assert tensors is not None
    assert [t.dtype for t in tensors] == [torch.float32, torch.int64]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(0, 3), "holds no data"),
        (torch.tensor(1.0), "holds no data"),
        ((), "empty tuple"),
        (np.array([["a", "b"]]), "encode"),
        (np.array([["a", 1]], dtype=object), "encode"),
        ([[1, 2], [3]], "ragged"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
        ((torch.zeros(2), torch.zeros(3)), r"\[2, 3\] rows"),
        ([torch.zeros(2), torch.zeros(2)], "torch.stack"),
        (torch.tensor([[0.0, 1.0], [2.0, float("nan")]]), "data holds 1 value .*row 1, column 1"),
        ((torch.zeros(2), torch.tensor([1.0, -float("inf")])), r"data\[1\].* index \(1,\)"),
        (np.array([1e300]), "infinite"),
        (Items(0), "empty"),
        ({"x": 1}, "dict"),
    ],
    ids=str,
)
def test_data_that_are_refused(data: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_tensors(data, torch.float32)


def test_finite_data_whose_sum_overflows_are_not_refused() -> None:
    assert as_tensors(torch.full((4,), 3e38), torch.float32) is not None


@pytest.mark.parametrize("size", [0, -3])
def test_an_impossible_batch_size(size: int) -> None:
    with pytest.raises(OptionError, match="batch_size"):
        tensor_batches(5, size)


def test_a_dataset_without_randomness_is_read_once() -> None:
    batches = make_batches(Items(5), 2, CPU, torch.float32, seed=0)
    assert isinstance(batches, TensorBatches)
    assert sorted(batches.tensors[0][:, 0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("jitter", ["torch", "numpy", "python"])
def test_a_dataset_that_draws_is_read_afresh_each_time(jitter: str) -> None:
    batches = make_batches(Items(5, jitter), 2, CPU, torch.float32, seed=0)
    assert isinstance(batches, LoaderBatches)
    first, second = (torch.cat([x for (x,) in batches.epoch(e)]) for e in range(2))
    assert first[:, 0].sort().values.tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(first[:, 1], second[:, 1])


def test_a_stream_of_unknown_length() -> None:
    batches = make_batches(DataLoader(Stream(), batch_size=2), None, CPU, torch.float64, seed=0)
    assert (batches.num_data, batches.per_epoch, batches.odd) == (None, None, 0)
    assert [x.tolist() for (x,) in batches.epoch(0)] == [[0, 1], [2, 3], [4]]
    assert next(batches.epoch(0))[0].dtype == torch.float64


def test_a_loader_tells_of_its_odd_batch() -> None:
    data = TensorDataset(torch.arange(5.0))
    assert make_batches(DataLoader(data, batch_size=2), None, CPU, torch.float32, 0).odd == 1
    dropping = DataLoader(data, batch_size=2, drop_last=True)
    assert make_batches(dropping, None, CPU, torch.float32, 0).odd == 0


def test_a_loader_that_ends_early_cannot_be_resumed() -> None:
    batches = make_batches(
        DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2), None, CPU, torch.float32, 0
    )
    with pytest.raises(DataError, match="ended after 2"):
        batches.epoch(0, skip=3)


def test_batches_that_are_no_tensors_are_refused() -> None:
    class Mappings(Items):
        def __getitem__(self, index: int):
            return {"x": torch.zeros(2)}

    with pytest.raises(DataError, match="dict"):
        make_batches(Mappings(3), 2, CPU, torch.float32, seed=0)


def test_a_loader_with_a_foreign_order_gets_a_warning() -> None:
    class Backwards(Sampler):
        def __iter__(self):
            return iter([2, 1, 0])

        def __len__(self) -> int:
            return 3

    data = TensorDataset(torch.arange(3.0))
    foreign = LoaderBatches(DataLoader(data, sampler=Backwards()), CPU, torch.float32)
    with pytest.warns(UserWarning, match="Backwards"):
        foreign.warn_if_unrepeatable()
    LoaderBatches(DataLoader(data, shuffle=True), CPU, torch.float32).warn_if_unrepeatable()


def test_generators_of_a_loader_are_found() -> None:
    own = torch.Generator()
    loader = DataLoader(TensorDataset(torch.arange(3.0)), shuffle=True, generator=own)
    found = LoaderBatches(loader, CPU, torch.float32).generators
    assert all(g is own for g in found.values())
    assert found


def test_a_transform_is_applied_to_each_batch() -> None:
    batches = Transformed(tensor_batches(5, 2, None), lambda x: (x, x + 10))
    assert [y.tolist() for _, y in batches.epoch(0)] == [[10, 11], [12, 13], [14]]
    assert (batches.num_data, batches.per_epoch, batches.odd) == (5, 3, 1)


@pytest.mark.parametrize("transform", [lambda x: x[:1], lambda x: None, lambda x: ()])
def test_a_transform_must_keep_the_rows(transform: object) -> None:
    batches = Transformed(tensor_batches(4, 2), transform)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="transform"):
        next(batches.epoch(0))


class Counting:
    """A transform that notes how many data it is given, and where."""

    def __init__(self) -> None:
        self.checked: list[int] = []
        self.called: list[int] = []

    def check(self, x: Tensor) -> None:
        self.checked.append(len(x))
        if bool((x < 0).any()):
            raise DataError("negative data")

    def apply(self, x: Tensor) -> Tensor:
        return x + 1

    def __call__(self, x: Tensor) -> Tensor:
        self.called.append(len(x))
        return self.apply(x)


def test_a_transform_looks_at_tensors_once() -> None:
    transform = Counting()
    batches = make_batches(torch.arange(10.0), 4, CPU, torch.float32, seed=0, transform=transform)
    assert transform.checked == [10]
    for epoch in range(2):
        values = torch.cat([x for (x,) in batches.epoch(epoch)])
        assert sorted(values.tolist()) == list(range(1, 11))
    list(batches.in_order(3).epoch(0))
    assert (transform.checked, transform.called) == ([10], [])
    with pytest.raises(DataError, match="negative"):
        make_batches(torch.arange(-1.0, 2.0), 2, CPU, torch.float32, seed=0, transform=transform)


def test_a_transform_looks_at_each_batch_of_a_loader() -> None:
    transform = Counting()
    loader = DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2)
    batches = make_batches(loader, None, CPU, torch.float32, seed=0, transform=transform)
    assert [x.tolist() for (x,) in batches.epoch(0)] == [[1, 2], [3, 4]]
    assert transform.called == [2, 2]


def test_a_module_is_called_like_any_function() -> None:
    """Its `apply` is something else."""

    class Shift(torch.nn.Module):
        def check(self, x: Tensor) -> None:
            raise AssertionError

        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    batches = make_batches(torch.zeros(2, 1), 2, CPU, torch.float32, seed=0, transform=Shift())
    assert [x.tolist() for (x,) in batches.epoch(0)] == [[[1], [1]]]


def test_fingerprints_tell_data_apart() -> None:
    def fingerprint(x: Tensor) -> str:
        return TensorBatches((x,), 2, CPU, seed=0).fingerprint()

    x = torch.arange(6.0)
    assert fingerprint(x) == fingerprint(x.clone())
    others = [x + 1e-6 * (x == 3), x.reshape(3, 2), x.double()]
    assert len({fingerprint(x), *map(fingerprint, others)}) == 4
    assert checksum((x,)) != checksum((x + 1,))
