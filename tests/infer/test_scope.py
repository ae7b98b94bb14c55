"""The private parameter store, the programs bound to it, and runs that leave no trace."""

import functools
import pickle
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_models.infer.dry_run import (
    dry_run,
    modules_of,
    preserved_buffers,
    preserved_rng,
    same_buffers,
)
from pyro_models.infer.scope import BoundProgram, Scope, buffers


def program(start: float = 1.0) -> Tensor:
    return pyro.param("a", torch.tensor(start), constraint=constraints.positive)


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    yield
    pyro.clear_param_store()


class TestScope:
    def test_parameters_stay_inside(self) -> None:
        scope = Scope()
        with scope():
            assert program(2.0).item() == 2.0
        assert list(pyro.get_param_store()) == []
        with scope():
            assert program(3.0).item() == 2.0
        assert set(scope.parameters) == {"a"}
        assert program(5.0).item() == 5.0

    def test_what_was_outside_comes_back(self) -> None:
        outside = program(5.0)
        leaf: Any = outside.unconstrained()  # type: ignore[attr-defined]
        scope = Scope()
        with scope():
            program(2.0)
            pyro.param("b", torch.tensor(0.0))
        store = pyro.get_param_store()
        assert list(store) == ["a"]
        again: Any = store["a"]
        assert again.unconstrained() is leaf

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_also_on_the_way_of_an_error(self, error: type[BaseException]) -> None:
        program(5.0)
        scope = Scope()

        def fail() -> None:
            with scope():
                program(2.0)
                raise error

        with pytest.raises(error):
            fail()
        assert program().item() == 5.0
        with scope():
            assert program().item() == 2.0

    def test_scopes_nest(self) -> None:
        one, two = Scope(), Scope()
        with one():
            program(1.0)
            with two():
                program(2.0)
                with one():
                    assert program(9.0).item() == 1.0
                    pyro.param("inner", torch.tensor(0.0))
                assert program(9.0).item() == 2.0
            assert program(9.0).item() == 1.0
        assert set(one.parameters) == {"a", "inner"}
        assert set(two.parameters) == {"a"}

    def test_clearing_inside_clears_this_one(self) -> None:
        program(5.0)
        scope = Scope()
        with scope():
            program(2.0)
            pyro.clear_param_store()
        assert scope.parameters == {}
        assert program().item() == 5.0


class TestCollect:
    def test_modules_first_then_what_programs_show(self) -> None:
        module = nn.Linear(2, 1)
        scope = Scope()
        found = scope.collect({"model": module, "guide": program}, program)
        assert list(found) == ["model.weight", "model.bias", "a"]
        assert found["model.weight"] is module.weight
        assert found["a"] is scope.parameters["a"]

    def test_each_tensor_once(self) -> None:
        module = nn.Linear(2, 1)

        def run() -> None:
            pyro.module("net", module)

        found = Scope().collect({"model": module, "guide": module}, run)
        assert list(found) == ["model.weight", "model.bias"]

    def test_a_network_that_no_program_shows_is_not_trained(self) -> None:
        teacher = nn.Linear(1, 1)

        def model() -> Tensor:
            return teacher(torch.ones(1)) * program()

        assert list(Scope().collect({"model": model}, model)) == ["a"]

    def test_frozen_ones_stay_frozen_though_shown(self) -> None:
        class Shown(PyroModule):
            def __init__(self) -> None:
                super().__init__()
                self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)
                self.free = nn.Parameter(torch.ones(1))

            def forward(self) -> Tensor:
                return self.fixed + self.free

        module = Shown()
        assert list(Scope().collect({"model": module}, module)) == ["model.free"]
        assert not module.fixed.requires_grad


class Owner(nn.Module):
    """A module with a program as one of its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def model(self) -> None:
        """Nothing."""


class TestBoundProgram:
    def test_programs_without_parameters_stay_as_they_are(self) -> None:
        scope = Scope()
        assert scope.bind(program) is program
        with scope():
            program()
        bound: Any = scope.bind(program)
        assert isinstance(bound, BoundProgram)
        assert bound.program is program
        assert "program" in repr(bound)

    def test_it_runs_inside_the_store_and_so_do_its_methods(self) -> None:
        class Counter:
            name = "counter"

            def __call__(self) -> Tensor:
                return program(3.0)

            def twice(self) -> Tensor:
                return 2 * program(3.0)

        scope = Scope()
        with scope():
            program(2.0)
        bound: Any = scope.bind(Counter())
        assert bound().item() == 2.0
        assert bound.twice().item() == 4.0
        assert bound.name == "counter"
        assert list(pyro.get_param_store()) == []
        with pytest.raises(AttributeError, match="missing"):
            _ = bound.missing

    def test_it_survives_a_copy(self) -> None:
        bound: Any = BoundProgram(program, Scope())
        again = pickle.loads(pickle.dumps(bound))
        assert again().item() == 1.0
        assert list(pyro.get_param_store()) == []


class TestModules:
    def test_of_a_module_a_method_a_function(self) -> None:
        owner = Owner()

        def function() -> None:
            owner.model()

        assert modules_of(owner) == {"": owner}
        assert modules_of(owner.model) == {"": owner}
        assert modules_of(function) == {"owner": owner}
        assert modules_of(program) == {}
        assert modules_of(len) == {}
        assert modules_of(functools.partial(function)) == {}
        assert modules_of(torch.ones(2)) == {}

    def test_their_buffers_once(self) -> None:
        owner = Owner()
        names = ["running_mean", "running_var", "num_batches_tracked"]
        found = buffers({"model": owner.model, "guide": owner})
        assert list(found) == [f"model.norm.{name}" for name in names]


class TestDryRuns:
    def test_generators(self) -> None:
        state = torch.get_rng_state()
        with preserved_rng():
            torch.randn(3)
        assert torch.equal(torch.get_rng_state(), state)

    def test_buffers_changed_in_place_or_replaced(self) -> None:
        owner = Owner()
        mean, var = owner.norm.running_mean, owner.norm.running_var
        assert mean is not None

        def fail() -> None:
            with preserved_buffers(owner.model):
                mean.add_(1.0)
                owner.norm.running_var = torch.full((1,), 7.0)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert owner.norm.running_mean is mean
        assert owner.norm.running_var is var
        assert mean.item() == 0.0

    def test_programs_work_on_clones(self) -> None:
        """Nothing is written to an original, or graphs that it is part of would be lost."""
        owner = Owner()
        owner.register_buffer("tied", owner.norm.running_mean)
        before = {name: (b, b._version) for name, b in owner.named_buffers(remove_duplicate=False)}
        with preserved_buffers(owner.model):
            owner.norm(torch.randn(4, 1))
            assert owner.norm.running_mean is owner.tied
            assert owner.norm.running_mean is not before["tied"][0]
        assert before["norm.running_mean"][0].item() == 0.0
        for name, buffer in owner.named_buffers(remove_duplicate=False):
            assert buffer is before[name][0]
            assert buffer._version == before[name][1]

    def test_inference_tensors(self) -> None:
        owner = Owner()
        with torch.inference_mode():
            owner.norm.running_mean = kept = torch.zeros(1)
        with preserved_buffers(owner), torch.inference_mode():
            kept.add_(1.0)
        assert owner.norm.running_mean is kept
        assert kept.item() == 0.0

    def test_the_same_buffers_with_what_they_hold_now(self) -> None:
        owner = Owner()
        mean, var = owner.norm.running_mean, owner.norm.running_var
        assert mean is not None
        with same_buffers(owner.model):
            mean.add_(1.0)
            owner.norm.running_var = torch.full((1,), 7.0)
        assert owner.norm.running_mean is mean
        assert owner.norm.running_var is var
        assert mean.item() == 1.0

    def test_all_together(self) -> None:
        owner = Owner()
        state = torch.get_rng_state()
        with dry_run(owner, program, torch.ones(1)):
            assert not torch.is_grad_enabled()
            owner.norm(torch.randn(4, 1))
            pyro.sample("z", dist.Normal(0.0, 1.0))
        assert torch.is_grad_enabled()
        assert owner.norm.num_batches_tracked == 0
        assert torch.equal(torch.get_rng_state(), state)
