"""The compiled step beside the eager one, what it freezes and what not, and how it falls back.

Compiling takes seconds, so programs are tiny and one compiled step serves where it can.
"""

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_models.infer import ELBO, Step
from pyro_models.infer import compiled as compiled_module
from pyro_models.infer import step as step_module
from pyro_models.programs import data_plate
from tests.infer.step_cases import (
    Mean,
    Mixture,
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

X = torch.tensor([0.3, -1.2, 2.0, 0.7])
IMAGES = (torch.arange(48).reshape(8, 6) % 5 < 2).float()


class Compilations:
    """Counts the graphs that are compiled, again or for the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        compile_graph = compiled_module.compile_graph

        def counting(*args: Any) -> Any:
            self.count += 1
            return compile_graph(*args)

        monkeypatch.setattr(compiled_module, "compile_graph", counting)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    return Compilations(monkeypatch)


def assert_same_trajectory(one: Step, other: Step, tolerance: float = 2e-4) -> None:
    """Parameters agree to float32 rounding, as it grows over the steps."""
    assert one.fallback_reason is other.fallback_reason is None
    theirs = values(other)
    for name, value in values(one).items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance)


def both(
    model: Any, guide: Any = no_guide, optimizer: Any = adam, objective: ELBO | None = None
) -> tuple[Step, Step]:
    """An eager and a compiled step of programs that keep nothing themselves."""
    eager = make(model, guide, optimizer, objective)
    return eager, make(model, guide, optimizer, objective, compiled=True)


class TestParity:
    """With ``fallback_random`` the compiled step draws what the eager one draws."""

    @inductor.patch(fallback_random=True)
    def test_a_vae_over_200_steps(self) -> None:
        steps = vae(False), vae(True)
        losses = []
        for step in steps:
            pyro.set_rng_seed(2)
            losses.append(torch.stack([step(IMAGES) for _ in range(200)]))
        assert_same_trajectory(*steps)
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-3)
        assert losses[1][-20:].mean() < losses[1][:20].mean() - 0.5

    def test_a_mixture_over_200_steps(self) -> None:
        x = torch.randn(60, 2) * 2
        models = []
        for _ in range(2):
            pyro.set_rng_seed(3)
            models.append(Mixture())
        steps = make(models[0]), make(models[1], compiled=True)
        losses = [torch.stack([step(x) for _ in range(200)]) for step in steps]
        assert_same_trajectory(*steps)
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)

    @inductor.patch(fallback_random=True)
    def test_discrete_sites_particles_and_random_subsamples(self) -> None:
        data = torch.linspace(-2, 2, 6)

        def model() -> None:
            mean = pyro.param("mean", torch.tensor([-0.5, 0.5]))
            with pyro.plate("data", 6, subsample_size=3) as index:
                k = pyro.sample("k", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Normal(mean[k], 1.0), obs=data[index])

        def guide() -> None:
            logits = pyro.param("logits", torch.zeros(6, 2))
            with pyro.plate("data", 6, subsample_size=3) as index:
                pyro.sample("k", dist.Categorical(logits=logits[index]))

        steps = both(model, guide, sgd, ELBO(3))
        for step in steps:
            pyro.set_rng_seed(2)
            for _ in range(20):
                step()
        assert_same_trajectory(*steps)

    @inductor.patch(fallback_random=True)
    def test_batch_norm_and_dropout(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(
                    nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5)
                )

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    fn = dist.Normal(self.net(x), 1.0).to_event(1)
                    pyro.sample("x", fn, obs=x)

        nets = []
        for _ in range(2):
            pyro.set_rng_seed(3)
            nets.append(Net())
        steps = make(nets[0]), make(nets[1], compiled=True)
        for step in steps:
            pyro.set_rng_seed(2)
            for _ in range(20):
                step(IMAGES)
        assert_same_trajectory(*steps)
        buffers = [dict(net.named_buffers()) for net in nets]
        assert buffers[1]["net.1.num_batches_tracked"] == 20
        for name, buffer in buffers[0].items():
            torch.testing.assert_close(buffers[1][name], buffer, rtol=1e-4, atol=1e-4)
        # Its own training mode has a graph of its own: without dropout nothing is random.
        nets[1].eval()
        kept = buffers[1]["net.1.running_mean"].clone()
        one, other = (Step.evaluate(steps[1], IMAGES).item() for _ in range(2))
        assert one == other
        assert steps[1](IMAGES).item() == pytest.approx(-one, rel=1e-5)
        assert torch.equal(buffers[1]["net.1.running_mean"], kept)

    @pytest.mark.parametrize(
        "optimizer",
        [
            functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
            functools.partial(torch.optim.AdamW, lr=0.05, amsgrad=True),
            functools.partial(torch.optim.RMSprop, lr=0.05, momentum=0.5, centered=True),
            functools.partial(torch.optim.Adagrad, lr=0.05, lr_decay=0.1),
            functools.partial(torch.optim.NAdam, lr=0.05),
        ],
        ids=["SGD", "AdamW", "RMSprop", "Adagrad", "NAdam"],
    )
    def test_optimisers(self, optimizer: Any) -> None:
        steps = make(Mean(2), no_guide, optimizer), make(Mean(2), no_guide, optimizer, None, True)
        for i in range(12):
            for step in steps:
                step.lr_factor = 0.8**i
                step(X)
        assert_same_trajectory(*steps, tolerance=1e-5)


class TestRepeats:
    def test_the_same_seed_gives_the_same_run_and_a_restored_step_continues_it(
        self, compilations: Compilations
    ) -> None:
        """Three runs: one, the same again, and one from the middle in a fresh step."""

        def start() -> Step:
            step = vae(compiled=True, particles=2)
            pyro.set_rng_seed(4)
            return step

        ends, middle, random = [], {}, torch.get_rng_state()
        for _ in range(2):
            step = start()
            for i in range(8):
                if i == 4:
                    middle, random = step.state_dict(), torch.get_rng_state()
                step(IMAGES)
            assert step.fallback_reason is None
            ends.append(step.state_dict())
        assert same(*ends)
        fresh = start()
        fresh.initialize(IMAGES)
        fresh.load_state_dict(middle)
        torch.set_rng_state(random)
        for _ in range(4):
            fresh(IMAGES)
        assert same(fresh.state_dict(), ends[0])
        # Back again in place: the graphs still serve.
        compiled = compilations.count
        step.load_state_dict(middle)
        torch.set_rng_state(random)
        for _ in range(4):
            step(IMAGES)
        assert same(step.state_dict(), ends[0])
        assert compilations.count == compiled

    def test_draws_differ_from_step_to_step(self) -> None:
        step = make(latent_model, latent_guide, functools.partial(torch.optim.SGD, lr=0.0))
        step.compiled, step._stays_eager = True, False
        losses = {step(X).item() for _ in range(6)}
        assert step.fallback_reason is None
        assert len(losses) == 6


class TestGraphs:
    def test_batches_rates_and_weights(self, compilations: Compilations) -> None:
        """One step through it all, an eager one beside it; nothing but a new shape compiles."""

        def model(x: Tensor, num_data: int | None = None) -> None:
            with data_plate(len(x), num_data):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor, num_data: int | None = None) -> None:
            loc = pyro.param("loc", torch.tensor(0.3))
            with data_plate(len(x), num_data):
                pyro.sample("z", dist.Delta(loc, log_density=0.5 * loc.square()))

        eager, compiled = both(model, guide, sgd)
        course = [(4, 1.0, 1.0)] * 3 + [(4, 0.5, 1.0), (4, 0.25, 0.5), (3, 0.25, 0.1)]
        course += [(4, 0.1, 0.7), (3, 2.0, 0.0), (4, 2.0, 1.0), (3, 0.3, 0.3)]
        seen = []
        for size, rate, weight in course:
            losses = []
            for step in (eager, compiled):
                step.lr_factor, step.kl_weight = rate, weight
                losses.append(step(X[:size], num_data=12))
            torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                compiled.parameters()["loc"], eager.parameters()["loc"], rtol=1e-5, atol=1e-6
            )
            seen.append(compilations.count)
        assert compiled.fallback_reason is None
        assert seen == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2]

    def test_one_tensor_given_twice_and_other_strides(self) -> None:
        def model(x: Tensor, y: Tensor) -> None:
            loc = pyro.param("loc", torch.tensor(0.5))
            with data_plate(6, None):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x.reshape(-1))
                pyro.sample("y", dist.Normal(-loc, 2.0), obs=y.reshape(-1))

        x, y = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3) * 10
        turned = torch.arange(6.0).reshape(3, 2).t()
        eager, compiled = both(model, no_guide, sgd)
        for one, other in ((x, x), (x, x), (x, y), (y, x), (turned, x), (x, y)):
            losses = [step(one, other) for step in (eager, compiled)]
            torch.testing.assert_close(*losses)
        assert compiled.fallback_reason is None

    def test_nested_and_named_arguments(self) -> None:
        def model(batch: dict[str, Any], shift: float = 0.0) -> None:
            loc = pyro.param("loc", torch.tensor(0.5))
            with data_plate(4, None):
                pyro.sample("x", dist.Normal(loc + shift, 1.0), obs=batch["x"][0])

        eager, compiled = both(model, no_guide, sgd)
        for shift in (0.0, 0.0, 1.0, 0.0):
            losses = [step({"x": (X, None)}, shift=shift) for step in (eager, compiled)]
            torch.testing.assert_close(*losses)
        assert compiled.fallback_reason is None

    def test_parameters_that_a_later_kind_of_batch_brings_in(self) -> None:
        """Semi-supervised batches: the optimiser has no state for the labels' parameter yet."""

        def model(x: Tensor, y: Tensor | None = None) -> None:
            a, b = (pyro.param(name, torch.tensor(0.0)) for name in "ab")
            with data_plate(len(x), None):
                pyro.sample("x", dist.Normal(a, 1.0), obs=x)
                if y is not None:
                    pyro.sample("y", dist.Normal(b, 1.0), obs=y)

        eager, compiled = both(model, no_guide, adam)
        for step in (eager, compiled):
            step(X)
            for _ in range(5):
                step(X, X + 3)
        assert_same_trajectory(eager, compiled, tolerance=1e-6)

    def test_frozen_swapped_and_thawed_parameters(self) -> None:
        models = Mean(2), Mean(2)
        eager, compiled = make(models[0]), make(models[1], compiled=True)

        def run() -> None:
            for step in (eager, compiled):
                for _ in range(3):
                    step(X)
            assert_same_trajectory(eager, compiled, tolerance=1e-5)

        run()
        for model in models:
            model.loc.data = torch.tensor([3.0, 1.0])  # new storage, not a copy into the old
        run()
        assert models[1].loc[0] > 2

    def test_a_frozen_parameter_stays(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.tensor(0.0))
                self.b = nn.Parameter(torch.tensor(0.0))

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    pyro.sample("x", dist.Normal(self.a + self.b, 1.0), obs=x)

        model = Two()
        step = make(model, compiled=True)
        for _ in range(3):
            step(X)
        kept = model.a.item()
        model.a.requires_grad_(False)
        moved = model.b.item()
        for _ in range(3):
            step(X)
        assert step.fallback_reason is None
        assert model.a.item() == kept
        assert model.b.item() != moved

    def test_no_more_than_a_number_of_them(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        compilations: Compilations,
    ) -> None:
        monkeypatch.setattr(step_module, "MOST_GRAPHS", 1)
        step = make(mean_model, compiled=True)
        with caplog.at_level(logging.WARNING, "pyro_models"):
            for size in (4, 4, 3, 2, 4, 3):
                step(X[:size])
        assert step.fallback_reason == "1 kinds of batch have a graph, and no further ones get any"
        assert len(caplog.records) == 1
        step(X)
        assert compilations.count == 1

    def test_a_precision_that_changes(self, compilations: Compilations) -> None:
        """Compiled code would read the bits of double precision as single precision."""
        models = Mean(3), Mean(3)
        eager, compiled = make(models[0], no_guide, sgd), make(models[1], no_guide, sgd, None, True)
        for dtype in (torch.float32, torch.float64, torch.float32):
            for model in models:
                model.to(dtype)
            for _ in range(3):
                losses = [step(X) for step in (eager, compiled)]
                assert losses[1].dtype == dtype
                torch.testing.assert_close(*losses)
        assert compiled.fallback_reason is None
        assert compilations.count == 3
        assert torch.allclose(models[0].loc, models[1].loc)

    def test_a_number_of_threads_that_changes(self, compilations: Compilations) -> None:
        eager, compiled = make(Mean(3)), make(Mean(3), compiled=True)
        threads, seen = torch.get_num_threads(), []
        try:
            for number in (1, 1, 2, 2, 1):
                torch.set_num_threads(number)
                torch.testing.assert_close(compiled(X), eager(X))
                seen.append(compilations.count)
        finally:
            torch.set_num_threads(threads)
        assert seen == [0, 1, 2, 2, 2]


def leaves(step: Step) -> dict[str, Any]:
    """What tracing must leave as it was."""
    return {
        "state": step.state_dict(),
        "gradients": [p.grad for p in step.parameters().values()],
        "generator": torch.get_rng_state(),
        "validation": pyro.settings.get(),
        "torch validation": Distribution._validate_args,
        "flag": torch.compiler.is_compiling(),
        "groups": [
            {k: v for k, v in group.items() if k != "params"}
            for update in step._made_updates()
            for group in update.optimizer.param_groups
        ],
        "store": list(pyro.get_param_store()),
    }


def assert_left_alone(step: Step, before: dict[str, Any]) -> None:
    after = leaves(step)
    assert same(after.pop("state"), before.pop("state"))
    assert torch.equal(after.pop("generator"), before.pop("generator"))
    assert after == before


class TestTracing:
    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_it_leaves_everything(self, error: type[BaseException] | None) -> None:
        """Also where the program fails in the middle of it."""
        broken = False

        class Guide(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(1)

            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    loc = self.norm(x.unsqueeze(-1)).squeeze(-1)
                    pyro.sample("z", dist.Normal(loc, 1.0))
                if broken and error is not None:
                    raise error("from the program")

        step = make(latent_model, Guide(), compiled=True)
        step(X)
        step._trace((X,), {}, [X])  # step counts are in double precision from here on
        before = leaves(step)
        broken = True
        if error is None:
            step._trace((X,), {}, [X])
        else:
            with pytest.raises(error):
                step._trace((X,), {}, [X])
        assert_left_alone(step, before)

    def test_torchs_own_validation_is_kept(self) -> None:
        step = make(mean_model, compiled=True)
        step(X)
        Distribution.set_default_validate_args(False)
        try:
            step._trace((X,), {}, [X])
            assert Distribution._validate_args is False
        finally:
            Distribution.set_default_validate_args(True)

    def test_an_error_of_the_program_is_no_reason_to_stay_eager(self) -> None:
        def model(x: Tensor) -> None:
            if len(x) == 3:
                raise ValueError("three are too few")
            mean_model(x)

        step = make(model, compiled=True)
        step(X)
        with pytest.raises(ValueError, match="three are too few"):
            step(X[:3])
        assert step.fallback_reason is None


def with_value(read: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """A model whose location is multiplied by what Python read from the data."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        with data_plate(len(x), None):
            pyro.sample("x", dist.Normal(loc * read(x), 1.0), obs=x)

    return model


class Replaced(nn.Module):
    """A model that replaces its buffer, which no graph can see."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("average", torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        self.average = 0.9 * self.average + 0.1 * x.mean()
        with data_plate(len(x), None):
            pyro.sample("x", dist.Normal(self.loc + self.average, 1.0), obs=x)


VALUE = "a tensor's value is asked for in Python"
FALLBACKS: dict[str, tuple[Any, Any, str]] = {
    "item": (with_value(lambda x: x.mean().item()), adam, VALUE),
    "branch": (with_value(lambda x: 2.0 if x.mean() > 0 else -1.0), adam, VALUE),
    "masked_select": (with_value(lambda x: x.masked_select(x > 0).mean()), adam, "masked_select"),
    "boolean index": (with_value(lambda x: x[x > 0].mean()), adam, "aten.index.Tensor"),
    "nonzero": (with_value(lambda x: x[x.gt(0).nonzero()].mean()), adam, "nonzero"),
    "numpy": (with_value(lambda x: float(x.numpy().max())), adam, "Tensor.numpy"),
    "asarray": (with_value(lambda x: float(np.asarray(x).max())), adam, "Tensor.__array__"),
    "tolist": (with_value(lambda x: max(x.tolist())), adam, "Tensor.tolist"),
    "replaced buffer": (Replaced, adam, "buffer model.average is replaced"),
    "ClippedAdam": (mean_model, functools.partial(ClippedAdam, lr=0.05), VALUE),
    "LBFGS": (mean_model, functools.partial(torch.optim.LBFGS, lr=0.1), VALUE),
}


class TestFallbacks:
    @pytest.mark.parametrize("name", FALLBACKS)
    def test_the_reason_is_named_once_and_training_goes_on(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        model, optimizer, words = FALLBACKS[name]
        pairs = [model() if isinstance(model, type) else model for _ in range(2)]
        eager, compiled = (
            make(m, no_guide, optimizer, None, c) for m, c in zip(pairs, (False, True), strict=True)
        )
        batches = [X, X + 1, X - 1, X, 2 * X]
        for x in batches:
            eager(x)
        with caplog.at_level(logging.WARNING, "pyro_models"):
            for x in batches:
                compiled(x)
        assert compiled.fallback_reason is not None
        assert words in compiled.fallback_reason
        assert "\n" not in compiled.fallback_reason
        messages = [record.getMessage() for record in caplog.records]
        expected = f"the step stays eager, it cannot be compiled: {compiled.fallback_reason}"
        assert messages == [expected]
        ours, theirs = compiled.state_dict(), eager.state_dict()
        assert all(torch.equal(ours[n].to(theirs[n].dtype), theirs[n]) for n in theirs)

    def test_arguments_whose_contents_a_graph_would_freeze(self) -> None:
        model = with_value(lambda x: 1.0)

        def given_array(x: Any) -> None:
            model(torch.as_tensor(x))

        eager, compiled = both(given_array, no_guide, adam)
        # As text these arrays are alike: [0. 0. 0. ... 0. 0. 0.]
        for middle in (1.0, 2.0, 3.0):
            x = np.zeros(2000, dtype=np.float32)
            x[1000] = middle
            assert torch.equal(eager(x), compiled(x))
        assert compiled.fallback_reason is not None
        assert "an argument is a ndarray" in compiled.fallback_reason

    def test_without_a_compiler(self, caplog: pytest.LogCaptureFixture) -> None:
        eager, compiled = make(Mean(3)), make(Mean(3), compiled=True)
        settings = {"cpp.cxx": ("/nowhere/c++",), "fx_graph_cache": False}
        with inductor.patch(settings), caplog.at_level(logging.WARNING, "pyro_models"):
            for step in (eager, compiled):
                for _ in range(4):
                    step(X)
        assert compiled.fallback_reason is not None
        assert "compiler" in compiled.fallback_reason.lower()
        ours = [r for r in caplog.records if r.name.startswith("pyro_models")]
        assert len(ours) == 1  # torch's own loggers may have said something before
        assert same(values(eager), values(compiled))

    @pytest.mark.slow
    def test_on_a_machine_without_a_compiler(self) -> None:
        """The same in a process of its own, told so by its environment."""
        program = (
            "import functools, logging, torch; from pyro_models.infer import ELBO, Step;"
            "from tests.infer.step_cases import make, mean_model;"
            "logging.basicConfig(format='LOG %(message)s');"
            "step = make(mean_model, compiled=True);"
            "[step(torch.ones(5)) for _ in range(5)];"
            "print('REASON', step.fallback_reason)"
        )
        environment = os.environ | {
            "CXX": "/nowhere/c++",
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        assert "REASON" in done.stdout
        assert "REASON None" not in done.stdout
        assert done.stderr.count("the step stays eager, it cannot be compiled") == 1
