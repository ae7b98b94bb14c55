"""Optimisers of a step: rates as inputs, two of them side by side."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_models.infer import Learned, ScoreFunction, Step
from pyro_models.infer.updates import Update


class TestUpdate:
    def make(self) -> tuple[Update, Tensor]:
        parameter = torch.tensor([1.0, 2.0], requires_grad=True)
        return Update(partial(torch.optim.SGD, lr=0.5), {"p": parameter}), parameter

    def test_a_factor_multiplies_every_rate_in_group_and_input(self) -> None:
        update, parameter = self.make()
        update.set_rates(0.1)
        assert update.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
        assert update.rate_inputs[0].item() == pytest.approx(0.05)
        parameter.grad = torch.ones(2)
        update.optimizer.step()
        assert parameter.tolist() == pytest.approx([0.95, 1.95])

    def test_a_rate_of_zero_is_no_division_by_zero_in_a_graph(self) -> None:
        update, _ = self.make()
        update.set_rates(0.0)
        assert update.optimizer.param_groups[0]["lr"] == 0.0
        assert 0 < update.rate_inputs[0].item() < 1e-20

    def test_what_is_kept_can_be_loaded(self) -> None:
        first, second = (
            Update(torch.optim.Adam, {"p": torch.tensor([1.0, 2.0], requires_grad=True)})
            for _ in range(2)
        )
        for parameter in first.parameters.values():
            parameter.grad = torch.tensor([0.3, -0.4])
        first.optimizer.step()
        second.load(first.tensors() | first.numbers())
        assert first.tensors().keys() == second.tensors().keys()
        for name, value in first.tensors().items():
            assert torch.equal(value, second.tensors()[name])


class TestTwoOptimisers:
    """Main parameters by SGD; a baseline's network, whose optimum is known, by its own SGD."""

    x = torch.tensor([0.4, 1.9, -0.5])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2.0 * k, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=logit))

    def run(self, main: float, own: float, **step: Any) -> tuple[Step, nn.Linear]:
        torch.manual_seed(0)
        network = nn.Linear(1, 1)

        class Column(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.line = network

            def forward(self, x: Tensor) -> Tensor:
                return self.line(x.unsqueeze(-1))

        objective = ScoreFunction(
            20, baseline=Learned(Column(), partial(torch.optim.SGD, lr=own), decay=0.0)
        )
        made = Step(self.model, self.guide, objective, partial(torch.optim.SGD, lr=main), **step)
        return made, network

    def test_each_has_its_own_rate(self) -> None:
        step, network = self.run(main=0.0, own=0.05, compiled=False)
        before = network.weight.item()
        step(self.x)
        start = {n: p.item() for n, p in step.parameters().items() if p.numel() == 1}
        for _ in range(20):
            step(self.x)
        moved = {
            n: abs(p.item() - start[n]) for n, p in step.parameters().items() if p.numel() == 1
        }
        assert moved.pop("logit") == 0.0
        assert max(moved.values()) > 1e-3
        assert network.weight.item() == before, "the user's network is copied, and left alone"

    def test_compiled_they_are_one_graph(self) -> None:
        step, _ = self.run(main=0.1, own=0.05)
        for _ in range(5):
            step(self.x)
        assert step.fallback_reason is None

    def test_the_state_of_both_is_saved(self) -> None:
        step, _ = self.run(main=0.1, own=0.05, compiled=False)
        for _ in range(3):
            step(self.x)
        kept = step.state_dict()
        other, _ = self.run(main=0.1, own=0.05, compiled=False)
        other.initialize(self.x)
        other.load_state_dict(kept)
        for one in (step, other):
            torch.manual_seed(5)
            one(self.x)
        for name, value in step.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
        assert any(name.startswith("parameter/objective.") for name in kept)
        assert any(name.startswith("buffer/objective.") for name in kept)
