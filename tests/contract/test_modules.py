"""Law: model and guide are ordinary modules, to be saved, copied, converted and moved."""

import copy
import io
import pickle
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_models import pairs
from tests.contract.cases import CASES, loss, parameters

every = pytest.mark.parametrize("name", CASES)


def train(pair: pairs.Pair, x: Tensor, steps: int = 3) -> None:
    """A few steps, so that what is kept is not what a new pair starts with."""
    modules = torch.nn.ModuleList([pair.model, pair.guide])
    optimizer = torch.optim.Adam(modules.parameters(), lr=1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        loss(pair, x, seed).backward()
        optimizer.step()
    optimizer.zero_grad()


def outputs(pair: pairs.Pair, x: Tensor) -> list[Tensor]:
    """What a pair gives from a fixed seed: its loss in use and in training, and a draw."""
    pair = copy.deepcopy(pair)  # in training a run may change buffers
    modes = []
    for mode in (False, True):
        pair.model.train(mode)
        modes.append(loss(pair, x).detach())
    pyro.set_rng_seed(4)
    with torch.no_grad():
        return [*modes, pair.model(num_data=3)]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


@every
def test_the_same_seed_gives_the_same_result(name: str) -> None:
    results = []
    for _ in range(2):
        pair, x = CASES[name].make()
        train(pair, x)
        results.append(outputs(pair, x))
    assert_same(*results)


@every
def test_another_seed_gives_another(name: str) -> None:
    pair, x = CASES[name].make()
    draws = []
    for seed in (5, 6):
        pyro.set_rng_seed(seed)
        draws.append(pair.model(num_data=len(x)))
    assert not torch.equal(*draws)
    losses = loss(pair, x, seed=5), loss(pair, x, seed=6)
    if CASES[name].exact:
        assert torch.allclose(*losses, rtol=1e-5)
    else:
        assert not torch.equal(*losses)


@every
def test_a_saved_state_loads_into_a_new_pair(name: str) -> None:
    pair, x = CASES[name].make()
    train(pair, x)
    states = []
    for module in (pair.model, pair.guide):
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        states.append(torch.load(file, weights_only=True))
    pyro.set_rng_seed(9)
    fresh = CASES[name].build(x.flip(0))
    assert not torch.equal(outputs(fresh, x)[0], outputs(pair, x)[0])
    for module, state in zip((fresh.model, fresh.guide), states, strict=True):
        module.load_state_dict(state)
    assert_same(outputs(fresh, x), outputs(pair, x))


def pickled(pair: pairs.Pair) -> pairs.Pair:
    clone: Any = pickle.loads(pickle.dumps(pair))
    return clone


@every
@pytest.mark.parametrize("clone", [copy.deepcopy, pickled])
def test_a_copy_is_equal_and_apart(name: str, clone: Any) -> None:
    pair, x = CASES[name].make()
    train(pair, x)
    twin = clone(pair)
    assert_same(outputs(twin, x), outputs(pair, x))
    before = outputs(pair, x)
    train(twin, x)
    assert_same(outputs(pair, x), before)
    assert not torch.equal(outputs(twin, x)[0], before[0])


@every
def test_double_precision_runs_through(name: str) -> None:
    pair, x = CASES[name].make()
    single = loss(pair, x)
    twin = copy.deepcopy(pair)
    twin.model.double()
    twin.guide.double()
    double = loss(twin, x.double())
    assert double.dtype == torch.float64
    double.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in parameters(twin).values())
    for module in (twin.model, twin.guide):
        assert all(p.dtype == torch.float64 for p in module.parameters())
    assert single.isfinite()
    assert double.isfinite()
    assert twin.model(num_data=2).isfinite().all()  # simulated in double throughout


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_it_runs_on_the_device(name: str) -> None:
    pair, x = CASES[name].make()
    pair.model.cuda()
    pair.guide.cuda()
    train(pair, x.cuda())
    assert all(tensor.is_cuda and tensor.isfinite().all() for tensor in outputs(pair, x.cuda()))
