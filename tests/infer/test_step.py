"""One step, eager: what it trains, what it leaves alone, what it returns, saves and refuses."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_models.errors import CheckpointError, OptionError
from pyro_models.infer import ELBO, MonteCarloKL, Step
from pyro_models.programs import data_plate
from tests.infer.step_cases import (
    Decoder,
    Encoder,
    Mean,
    adam,
    latent_guide,
    latent_model,
    make,
    mean_model,
    no_guide,
    same,
    sgd,
    vae,
    values,
)
from tests.unchecked import unchecked

X = torch.tensor([0.3, -1.2, 2.0, 0.7])


class TestOptions:
    def test_an_objective_of_ours(self) -> None:
        message = r"give one of pyro_models.infer's, such as ELBO\(\)"
        with unchecked(), pytest.raises(OptionError, match=message):
            Step(mean_model, no_guide, Trace_ELBO(), adam)  # type: ignore[arg-type]

    def test_a_maker_of_optimisers(self) -> None:
        made = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        for wrong in (made, 1e-3):
            message = r"such as functools.partial\(torch.optim.Adam, lr=1e-3\)"
            with unchecked(), pytest.raises(OptionError, match=message):
                Step(mean_model, no_guide, ELBO(), wrong)  # type: ignore[arg-type]

    def test_something_to_train(self) -> None:
        def model(x: Tensor) -> None:
            with data_plate(len(x), None):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        with pytest.raises(OptionError, match="neither model nor guide has a parameter to train"):
            make(model)(X)

    def test_every_parameter_at_once(self) -> None:
        runs = []

        def model(x: Tensor) -> None:
            runs.append(len(x))
            late = pyro.param("late", torch.tensor(0.0)) if len(runs) > 3 else 0.0
            loc = pyro.param("loc", torch.tensor(0.5))
            with data_plate(len(x), None):
                pyro.sample("x", dist.Normal(loc + late, 1.0), obs=x)

        step = make(model)
        step(X)
        step(X)
        with pytest.raises(OptionError, match=r"\['late'\] first appeared after the first step"):
            step(X)


def value_of(program: Any, name: str, *args: Any) -> float:
    """A parameter as the program sees it, inside its constraint."""
    site: Any = pyro.poutine.trace(program).get_trace(*args).nodes[name]
    return site["value"].item()


class TestLoss:
    def test_it_is_minus_the_bound_in_nats_per_datum(self) -> None:
        for num_data in (None, 40):
            for kl in (ELBO(3), ELBO(3, kl=MonteCarloKL())):
                step = make(latent_model, latent_guide, objective=kl)
                step.initialize(X, num_data=num_data)
                pyro.set_rng_seed(5)
                expected = kl.loss(step.model, step.guide, X, num_data=num_data)
                pyro.set_rng_seed(5)
                loss = step(X, num_data=num_data)
                assert loss.shape == ()
                assert not loss.requires_grad
                torch.testing.assert_close(loss.item(), expected / (num_data or len(X)))

    def test_in_closed_form(self) -> None:
        loss = make(mean_model)(X).item()
        expected = -dist.Normal(0.5, 1.0).log_prob(X).mean()
        assert loss == pytest.approx(expected.item(), rel=1e-6)

    def test_evaluate_is_the_bound_and_changes_nothing(self) -> None:
        step = make(latent_model, latent_guide)
        step.initialize(X)
        before = step.state_dict()
        pyro.set_rng_seed(5)
        bound = step.evaluate(X)
        assert same(step.state_dict(), before)
        assert bound.shape == ()
        assert not bound.requires_grad
        pyro.set_rng_seed(5)
        assert step(X).item() == pytest.approx(-bound.item())

    def test_it_learns_the_conjugate_answer(self) -> None:
        # x_i | z_i ~ N(z_i, scale^2), so x_i ~ N(0, 1 + scale^2), at best with variance mean(x^2).
        x = 2 * torch.randn(200)
        step = make(latent_model, latent_guide, objective=ELBO(10))
        for i in range(300):
            step.lr_factor = 0.98**i
            step(x)
        scale = value_of(step.model, "scale", x)
        best = math.sqrt(x.square().mean().item() - 1)
        assert scale == pytest.approx(best, rel=0.03)
        assert value_of(step.guide, "slope", x) == pytest.approx(1 / (1 + best**2), rel=0.05)
        spread = best / math.sqrt(1 + best**2)
        assert value_of(step.guide, "spread", x) == pytest.approx(spread, rel=0.05)


class TestWeights:
    """Plain gradient descent on (x - loc)^2 / 2 shows what each step did."""

    def moved(self, factor: float | None) -> float:
        step = make(mean_model, optimizer=sgd)
        if factor is not None:
            step.lr_factor = factor  # before there is an optimiser
        step(X)
        first = step.parameters()["loc"].item() - 0.5
        before = step.parameters()["loc"].item()
        step.lr_factor = 2 * (factor or 1.0)
        step(X)
        second = step.parameters()["loc"].item() - before
        gradient = X.mean().item() - before
        assert second == pytest.approx(0.1 * 2 * (factor or 1.0) * gradient, rel=1e-5)
        return first

    def test_the_factor_of_the_learning_rate(self) -> None:
        gradient = X.mean().item() - 0.5
        assert self.moved(None) == pytest.approx(0.1 * gradient, rel=1e-5)
        assert self.moved(0.25) == pytest.approx(0.025 * gradient, rel=1e-5)

    def test_each_group_keeps_its_own_rate(self) -> None:
        def two_rates(parameters: Any) -> torch.optim.Optimizer:
            first, second = parameters
            groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.1}, {"params": [second]}]
            return torch.optim.SGD(groups, lr=0.4)

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.tensor(0.0))
                self.b = nn.Parameter(torch.tensor(0.0))

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    pyro.sample("x", dist.Normal(self.a + self.b, 1.0), obs=x)

        step = make(Two(), optimizer=two_rates)
        step.lr_factor = 0.5
        step(X)
        a, b = step.parameters().values()
        assert a.item() == pytest.approx(0.05 * X.mean().item(), rel=1e-5)
        assert b.item() == pytest.approx(0.2 * X.mean().item(), rel=1e-5)

    def test_the_weight_of_the_divergence(self) -> None:
        def slope_after(weight: float) -> tuple[float, float]:
            step = make(latent_model, latent_guide, optimizer=sgd)
            step.kl_weight = weight
            pyro.set_rng_seed(3)
            loss = step(X).item()
            return loss, step.parameters()["slope"].item() - 0.3

        losses, moves = zip(*(slope_after(w) for w in (0.0, 1.0, 3.0)), strict=True)
        assert len(set(losses)) == 1
        # KL's gradient is slope * mean(x^2), and the step is linear in the weight.
        kl = 0.1 * 0.3 * X.square().mean().item()
        assert moves[0] - moves[1] == pytest.approx(kl, rel=1e-4)
        assert moves[0] - moves[2] == pytest.approx(3 * kl, rel=1e-4)


class Counting(nn.Module):
    """A module with a batch norm."""

    net: Any

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), None):
            pyro.sample("x", dist.Normal(self.net(x), 1.0).to_event(1), obs=x)


class TestInitialize:
    def test_it_leaves_no_trace(self) -> None:
        pyro.set_rng_seed(0)
        model = Counting()
        model.net[0].weight.grad = gradient = torch.ones(2, 2)
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        state = torch.get_rng_state()
        step = make(model)
        step.initialize(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(torch.get_rng_state(), state)
        assert same(dict(model.named_buffers()), buffers)
        assert model.net[0].weight.grad is gradient

    def test_with_particles_too(self) -> None:
        step = make(latent_model, latent_guide, objective=ELBO(3))
        state = torch.get_rng_state()
        step.initialize(X)
        assert torch.equal(torch.get_rng_state(), state)

    def test_it_makes_every_parameter_once(self) -> None:
        step = make(latent_model, latent_guide)
        assert step.parameters() == {}
        step.initialize(X)
        made = step.parameters()
        assert set(made) == {"scale", "slope", "spread"}
        assert made["scale"].item() == 0.0  # the unconstrained one, log 1
        step.initialize(X)
        assert all(step.parameters()[name] is made[name] for name in made)

    def test_modules_keep_their_parameters_under_their_names(self) -> None:
        step = vae(compiled=False)
        step.initialize(torch.zeros(3, 6))
        names = {f"model.net.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")}
        assert set(step.parameters()) == names | {n.replace("model", "guide") for n in names}
        assert step.parameters()["model.net.0.weight"] is step.model.net[0].weight  # type: ignore

    def test_the_users_gradients_are_kept(self) -> None:
        model = Mean()
        model.loc.grad = gradient = torch.ones(1)
        step = make(model)
        step(X)
        assert model.loc.grad is gradient
        assert torch.equal(gradient, torch.ones(1))

    def test_guides_that_make_theirs_lazily(self) -> None:
        def model(x: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with data_plate(len(x), None):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        for kind in (AutoNormal, AutoMultivariateNormal, AutoDelta):
            for particles in (1, 4):
                step = make(model, kind(model), objective=ELBO(particles))
                for i in range(200):
                    step.lr_factor = 0.97**i
                    step(X)
                exact = X.sum() / (4 + 1)
                median = step.guide.median(X)["mean"]  # type: ignore[attr-defined]
                assert median.item() == pytest.approx(exact.item(), abs=0.05)
                assert list(pyro.get_param_store()) == []


class TestWhatIsTrained:
    def test_frozen_parameters_stay(self) -> None:
        pyro.set_rng_seed(0)
        model: Any = Decoder()
        guide = Encoder()
        model.net[0].requires_grad_(False)
        before = model.net[0].weight.clone()
        step = make(model, guide)
        for _ in range(3):
            step(torch.ones(4, 6))
        assert torch.equal(model.net[0].weight, before)
        assert not model.net[0].weight.requires_grad
        assert "model.net.0.weight" not in step.parameters()

    @pytest.mark.parametrize("wrapped", [False, True], ids=["module", "in a function"])
    def test_in_a_pyro_module_too(self, wrapped: bool) -> None:
        class Model(PyroModule):
            def __init__(self) -> None:
                super().__init__()
                self.free = nn.Parameter(torch.tensor(0.0))
                self.fixed = nn.Parameter(torch.tensor(0.5), requires_grad=False)

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    pyro.sample("x", dist.Normal(self.free + self.fixed, 1.0), obs=x)

        model = Model()
        step = make((lambda x: model(x)) if wrapped else model)
        for _ in range(3):
            step(X)
        assert model.fixed.item() == 0.5
        assert not model.fixed.requires_grad
        assert model.free.item() != 0.0
        assert len(step.parameters()) == 1

    def test_frozen_and_thawed_on_the_way(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.tensor(0.0))
                self.b = nn.Parameter(torch.tensor(0.0))

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    pyro.sample("x", dist.Normal(self.a + self.b, 1.0), obs=x)

        model = Two()
        step = make(model)
        step(X)
        a, b = model.a.item(), model.b.item()
        model.a.requires_grad_(False)
        step(X)
        assert model.a.item() == a
        assert model.b.item() != b
        model.a.requires_grad_(True)
        step(X)
        assert model.a.item() != a

    def test_tied_weights_once(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one = nn.Linear(2, 2)
                self.two = self.one

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    fn = dist.Normal(self.two(self.one(x)), 1.0).to_event(1)
                    pyro.sample("x", fn, obs=x)

        tied = Tied()
        step = make(tied)
        step(torch.randn(5, 2))
        assert set(step.parameters()) == {"model.one.weight", "model.one.bias"}
        assert tied.one.weight is tied.two.weight

    def test_a_guide_that_holds_the_model_shares_its_parameters(self) -> None:
        class Holder(nn.Module):
            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.inner = model

            def forward(self, x: Tensor) -> None:
                pass

        model = Mean()
        step = make(model, Holder(model))
        step(X)
        assert set(step.parameters()) == {"model.loc"}

    def test_parameters_that_a_batch_does_not_use(self) -> None:
        def model(x: Tensor, y: Tensor | None = None) -> None:
            a, b = (pyro.param(name, torch.tensor(0.0)) for name in "ab")
            with data_plate(len(x), None):
                pyro.sample("x", dist.Normal(a, 1.0), obs=x)
                if y is not None:
                    pyro.sample("y", dist.Normal(b, 1.0), obs=y)

        step = make(model)
        step(X)
        assert step.parameters()["b"].item() == 0.0
        step(X, X + 3)
        assert step.parameters()["b"].item() == pytest.approx(0.05, rel=1e-4)  # Adam's first step

    def test_constrained_parameters_stay_inside(self) -> None:
        class Scale(PyroModule):
            def __init__(self) -> None:
                super().__init__()
                self.scale: Any = PyroParam(torch.tensor(0.8), constraint=constraints.positive)

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    pyro.sample("x", dist.Normal(0.0, self.scale), obs=x)

        model = Scale()
        step = make(model, optimizer=sgd)
        for _ in range(200):
            step(X)
        assert model.scale.item() == pytest.approx(X.square().mean().sqrt().item(), rel=0.01)


@pytest.fixture
def global_store() -> Iterator[dict[str, Tensor]]:
    """Something of the user's in Pyro's own store."""
    pyro.param("loc", torch.tensor(7.0))
    pyro.param("other", torch.tensor(8.0), constraint=constraints.positive)
    yield {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()


def stored() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


class TestStore:
    def test_parameters_are_the_steps_own(self, global_store: dict[str, Tensor]) -> None:
        step = make(mean_model)
        step(X)
        step.evaluate(X)
        assert step.parameters()["loc"].item() != 7.0
        assert same(stored(), global_store)

    def test_two_steps_with_the_same_names(self) -> None:
        one, two = make(mean_model), make(mean_model)
        one(X)
        before = values(one)
        two(X + 5)
        two(X + 5)
        assert same(values(one), before)
        one(X)
        assert values(one)["loc"] < 0.55 < values(two)["loc"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    @pytest.mark.parametrize("when", [0, 2])
    def test_an_error_in_a_program(
        self, global_store: dict[str, Tensor], error: type[BaseException], when: int
    ) -> None:
        broken = False

        def model(x: Tensor) -> None:
            mean_model(x)
            if broken:
                raise error("from the program")

        step = make(model)
        for _ in range(when):
            step(X)
        before = step.state_dict() if when else {}
        broken = True
        with pytest.raises(error):
            step(X)
        assert same(stored(), global_store)
        broken = False
        if when:
            assert same(step.state_dict(), before)
        step(X)

    def test_rerunning_a_cell_trains_afresh(self) -> None:
        def cell() -> list[float]:
            pyro.set_rng_seed(0)
            net = nn.Linear(1, 1)

            def model(x: Tensor) -> None:
                pyro.module("net", net)
                with data_plate(len(x), None):
                    pyro.sample("x", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

            step = make(model)
            losses = [step(X).item() for _ in range(20)]
            assert losses[-1] < losses[0]
            assert set(step.parameters()) == {"net$$$weight", "net$$$bias"}
            assert step.parameters()["net$$$weight"] is net.weight
            return losses

        assert cell() == cell()

    def test_bound_programs_run_with_the_steps_parameters(self) -> None:
        step = make(latent_model, latent_guide)
        for _ in range(5):
            step(X)
        slope = step.parameters()["slope"].item()
        predictive = Predictive(step.model, guide=step.guide, num_samples=2000)
        drawn = predictive(torch.tensor([3.0]))["z"]
        assert drawn.shape == (2000, 1)
        spread = drawn.std().item()
        assert drawn.mean().item() == pytest.approx(3 * slope, abs=4 * spread / 2000**0.5)
        assert "loc" not in pyro.get_param_store()

    def test_they_take_stock_svi(self) -> None:
        step = make(mean_model)
        step(X)
        svi = SVI(step.model, step.guide, PyroOptim(torch.optim.SGD, {"lr": 0.1}), Trace_ELBO())
        before = step.parameters()["loc"].item()
        svi.step(X)
        assert step.parameters()["loc"].item() != before

    def test_modules_are_bound_as_they_are(self) -> None:
        step = vae(compiled=False)
        step(torch.zeros(3, 6))
        assert isinstance(step.model, Decoder)
        assert isinstance(step.guide, Encoder)


OPTIMIZERS: dict[str, Any] = {
    "Adam": adam,
    "SGD with momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.05),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=0.05),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.05),
    "NAdam": functools.partial(torch.optim.NAdam, lr=0.05),
    "ClippedAdam": functools.partial(ClippedAdam, lr=0.05),
}


class TestState:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("fresh", [False, True])
    def test_a_restored_step_continues_bitwise(self, name: str, fresh: bool) -> None:
        def new() -> Step:
            return vae(False, OPTIMIZERS[name])

        x = (torch.rand(5, 6) > 0.5).float()
        step = new()
        for _ in range(4):
            step(x)
        state, random = step.state_dict(), torch.get_rng_state()
        kept = {name: value.clone() for name, value in state.items()}
        for _ in range(4):
            step(x)
        expected = step.state_dict()
        assert same(state, kept)  # a copy, which later steps leave alone
        if fresh:
            step = new()
            step.initialize(x)
        step.load_state_dict(state)
        torch.set_rng_state(random)
        for _ in range(4):
            step(x)
        assert same(step.state_dict(), expected)

    def test_what_it_holds(self) -> None:
        step = make(Counting())
        step(torch.randn(5, 2))
        state = step.state_dict()
        assert state["steps"].item() == 1
        assert state["buffer/model.net.1.num_batches_tracked"].item() == 1
        assert {name.split("/")[0] for name in state} == {
            "parameter",
            "buffer",
            "optimizer",
            "steps",
        }
        assert not any(value.requires_grad for value in state.values())

    def test_numbers_of_an_optimiser(self) -> None:
        step = make(mean_model, optimizer=OPTIMIZERS["ClippedAdam"])
        for _ in range(3):
            step(X)
        assert step.state_dict()["number/loc/step"].item() == 3

    def test_buffers_of_modules_around_a_function(self) -> None:
        net = Counting().net

        def model(x: Tensor) -> None:
            pyro.module("net", net)
            with data_plate(len(x), None):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

        step = make(model)
        step.initialize(torch.randn(5, 2))
        assert net[1].num_batches_tracked == 0
        step(torch.randn(5, 2))
        assert step.state_dict()["buffer/model.net.1.num_batches_tracked"].item() == 1

    def test_before_the_first_run(self) -> None:
        with pytest.raises(OptionError, match="initialize"):
            make(mean_model).load_state_dict({})

    def test_of_another_pair(self) -> None:
        one, two = make(mean_model), make(Mean(2))
        one(X)
        two(X)
        with pytest.raises(CheckpointError, match=r"missing \['parameter/model.loc'\]"):
            two.load_state_dict(one.state_dict())
        three = make(Mean(3))
        three(X)
        with pytest.raises(CheckpointError, match=r"shape \(2,\) in the state and \(3,\) here"):
            three.load_state_dict(two.state_dict())


def test_lbfgs_gets_its_closure() -> None:
    """It evaluates the loss several times a step: on this quadratic one step is nearly enough."""
    step = make(mean_model, optimizer=functools.partial(torch.optim.LBFGS, lr=1.0))
    first = step(X).item()
    assert first == pytest.approx(-dist.Normal(0.5, 1.0).log_prob(X).mean().item(), rel=1e-6)
    step(X)
    assert step.parameters()["loc"].item() == pytest.approx(X.mean().item(), rel=1e-4)
    step.load_state_dict(step.state_dict())
    step(X)
