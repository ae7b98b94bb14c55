from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from pyro_models.errors import DataError
from pyro_models.infer.inspection import as_arguments, footprint, human_bytes, is_amortized
from pyro_models.infer.scope import Scope


@dataclass
class Record:
    x: Tensor


@pytest.mark.parametrize(
    "x", [[[1.0, 2.0]], np.array([[1.0, 2.0]]), Record(torch.tensor([[1.0, 2.0]]))]
)
def test_data_is_what_fit_takes(x: object) -> None:
    (tensor,) = as_arguments(x)
    torch.testing.assert_close(tensor, torch.tensor([[1.0, 2.0]]))


def test_floating_type_is_the_module_s_else_the_data_s() -> None:
    x = torch.zeros(2, 1, dtype=torch.float64)
    assert as_arguments(x)[0].dtype == torch.float64
    assert as_arguments(x, nn.Linear(1, 1))[0].dtype == torch.float32
    scope = Scope()
    with scope():
        pyro.param("p", torch.zeros(()))
    assert as_arguments(x, scope.bind(nn.Linear(1, 1)))[0].dtype == torch.float32


def test_endless_data_is_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return iter([torch.zeros(1)])

    with pytest.raises(DataError, match="item by item"):
        as_arguments(Stream())


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_which_guides_treat_each_datum_by_itself() -> None:
    def amortized(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def shared(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        amortized(x)

    args = (torch.randn(3),)
    assert is_amortized(amortized, args)
    assert not is_amortized(fixed, args)
    assert not is_amortized(shared, args)
    with pyro.get_param_store().scope():
        auto = AutoNormal(local)
        assert not is_amortized(auto, args)
        assert auto.prototype_trace is None, "an autoguide must not be set up with part of the data"


def test_footprint_counts_new_memory_only() -> None:
    x = torch.zeros(1000)

    def run() -> Tensor:
        y = x.reshape(10, 100)[:5]  # views
        y.add_(1.0)  # in place
        return y.sum(0) + 1.0  # twice 100 floats

    assert footprint(run) == 800
    assert footprint(lambda: None) == 0


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1.02e+03 B"), (2**21, "2 MiB")])
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text
