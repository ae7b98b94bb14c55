"""Rows of TRAPS that the engine answers: stock Pyro's failure, expected, beside our own right one.

Every ``xfail`` is strict: should a later Pyro be right, its test fails here and can go.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.nn import PyroModule
from pyro.optim.optim import PyroOptim
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import guides
from pyro_models.infer import ELBO, MonteCarloKL, log_weights
from pyro_models.vae import VAE
from tests.infer.gradient_cases import CASES
from tests.infer.step_cases import latent_guide, latent_model, make, mean_model
from tests.infer.test_gradients import RUNS, assert_mean, exact_gradient, flat


def pyro_adam(options: dict[str, float]) -> PyroOptim:
    """Pyro's own."""
    return PyroOptim(torch.optim.Adam, options)


X = torch.tensor([0.3, -1.2, 2.0, 0.7])


@pytest.fixture(autouse=True)
def _stock_store() -> Iterator[None]:
    yield
    pyro.clear_param_store()


class TestScaleOutsideTheLogarithm:
    """Row 2: N / B and ``poutine.scale`` belong outside the logsumexp over particles."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=torch.arange(10)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.8))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=torch.arange(10)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def test_weights_keep_it_apart(self) -> None:
        x = torch.linspace(-1, 1, 10)
        weights = log_weights(self.model, self.guide, x, num_particles=5000)
        per_datum = weights.local.logsumexp(0) - math.log(5000)
        bound = weights.plate_scale * per_datum.sum().item()
        exact = 100 * dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
        # One weight a datum: the relative error of its mean, over 10 data, 100 times.
        error = 100 * math.sqrt(10 * weights.local.exp().var(0).max().item() * 40 / 5000)
        assert bound == pytest.approx(exact, abs=4 * error)
        assert weights.plate_scale == 100.0

    def test_a_common_scale_too(self) -> None:
        model, guide = (poutine.scale(f, 0.01) for f in (self.model, self.guide))
        weights = log_weights(model, guide, torch.zeros(10), num_particles=3)
        assert weights.common_scale == pytest.approx(0.01)
        assert weights.local.abs().max() > 0.1


class TestDifferentiableLoss:
    """Row 3: ``elbo(model, guide)`` needs ``differentiable_loss``."""

    def run(self, elbo: Any) -> Tensor:
        guide = nn.Module()
        guide.forward = latent_guide
        model = nn.Module()
        model.forward = latent_model
        return elbo(model, guide)(X)

    @pytest.mark.xfail(reason="TraceGraph_ELBO has no differentiable_loss", raises=AttributeError)
    def test_stock(self) -> None:
        assert self.run(TraceGraph_ELBO()).requires_grad

    def test_ours(self) -> None:
        assert self.run(ELBO()).requires_grad


class TestDiscreteLatentsBesideClosedForms:
    """Row 6: closed-form divergences and discrete latents in one pair."""

    @pytest.mark.xfail(reason="it demands reparameterised sites", raises=NotImplementedError)
    def test_stock(self) -> None:
        case = CASES["path below score"]()
        TraceMeanField_ELBO().loss(case.model, case.guide, case.start())

    def test_ours(self) -> None:
        case = CASES["path below score"]()
        weights = log_weights(case.model, case.guide, case.start(), num_particles=2)
        assert weights.latents == ("k", "z")
        terms = ELBO().terms(case.model, case.guide, case.start())
        assert terms.analytic == ("k", "z")


class TestOneInstanceManyPairs:
    """Row 7: an ELBO object must not remember the plates of the last pair."""

    def losses(self, elbo: Any) -> tuple[float, float]:
        def flat_model() -> None:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

        def deep_model() -> None:
            with pyro.plate("b", 2, dim=-2), pyro.plate("a", 3, dim=-1):
                pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0), obs=torch.ones(2, 3))

        def empty() -> None:
            pass

        one = elbo.loss(flat_model, empty)
        return one, elbo.loss(deep_model, empty)

    @pytest.mark.xfail(reason="stock ELBOs cache max_plate_nesting", raises=ValueError)
    def test_stock(self) -> None:
        one, six = self.losses(Trace_ELBO(4, vectorize_particles=True))
        assert six == pytest.approx(6 * one)

    @pytest.mark.parametrize("particles", [1, 4])
    def test_ours(self, particles: int) -> None:
        one, six = self.losses(ELBO(particles))
        assert six == pytest.approx(6 * one)


class TestFrozenParameters:
    """Row 8: ``PyroModule`` makes a frozen weight trainable again."""

    class Model(PyroModule):
        """x ~ N(free + fixed, 1)."""

        def __init__(self) -> None:
            super().__init__()
            self.free = nn.Parameter(torch.tensor(0.0))
            self.fixed = nn.Parameter(torch.tensor(0.5), requires_grad=False)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.free + self.fixed, 1.0), obs=x)

    def empty(self, x: Tensor) -> None:
        pass

    @pytest.mark.xfail(reason="issue 3438: the parameter store thaws it", raises=AssertionError)
    def test_stock(self) -> None:
        model = self.Model()
        svi = SVI(model, self.empty, pyro_adam({"lr": 0.1}), Trace_ELBO())
        svi.step(X)
        assert model.fixed.item() == 0.5

    def test_ours(self) -> None:
        model = self.Model()
        step = make(model, self.empty)
        step(X)
        assert model.fixed.item() == 0.5
        assert model.free.item() != 0.0


class TestRerunningACell:
    """Row 9: with ``pyro.module`` and the global store, the second run trains nothing."""

    def cell(self, train: Callable[[Any, Any], Callable[[Tensor], Any]]) -> tuple[float, float]:
        net = nn.Linear(1, 1)
        with torch.no_grad():
            net.weight.fill_(2.0)
            net.bias.fill_(1.0)

        def model(x: Tensor) -> None:
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

        def guide(x: Tensor) -> None:
            pass

        step = train(model, guide)
        losses = [float(step(X)) for _ in range(50)]
        return losses[0], losses[-1]

    def assert_second_run_learns(self, train: Any) -> None:
        first, second = self.cell(train), self.cell(train)
        assert first[1] < first[0] - 0.1
        assert second == pytest.approx(first)

    @pytest.mark.xfail(reason="the store keeps the first net's parameters", raises=AssertionError)
    def test_stock(self) -> None:
        self.assert_second_run_learns(
            lambda model, guide: SVI(model, guide, pyro_adam({"lr": 0.05}), Trace_ELBO()).step
        )

    def test_ours(self) -> None:
        self.assert_second_run_learns(make)


class TestChangedBatchSize:
    """Row 11: a traced ELBO must take another batch size. (Ours: test_compiled.py, TestGraphs.)"""

    @pytest.mark.xfail(reason="JitTrace_ELBO is traced for one size", raises=RuntimeError)
    def test_stock(self) -> None:
        svi = SVI(latent_model, latent_guide, pyro_adam({"lr": 0.1}), JitTrace_ELBO())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of traces and of their end
            svi.step(X)
            svi.step(X[:3])


class TestDecodersThatFold:
    """Row 12: vectorised prediction breaks decoders that flatten; ours fold leading dimensions."""

    def test_ours(self) -> None:
        model = VAE(6, latent_dim=2, hidden=(5,))
        guide = guides.AmortizedNormal(6, latent_dim=2, hidden=(5,))
        x = torch.ones(3, 6)
        drawn = Predictive(model, guide=guide, num_samples=7, parallel=True)(x)
        assert drawn["z"].shape == (7, 3, 2)
        prior = Predictive(model, num_samples=7, parallel=True)(num_data=4)
        assert prior["x"].shape == (7, 4, 6)
        weights = log_weights(model, guide, x, num_particles=5)
        assert weights.local.shape == (5, 3)


class TestOneOptimiser:
    """Row 14: one optimiser for all tensors."""

    def test_stock_has_one_a_tensor(self) -> None:
        optimizer = pyro_adam({"lr": 0.1})
        SVI(latent_model, latent_guide, optimizer, Trace_ELBO()).step(X)
        assert len(optimizer.optim_objs) == 3

    def test_ours(self) -> None:
        made = []

        def factory(parameters: Any) -> torch.optim.Optimizer:
            made.append(torch.optim.Adam(parameters, lr=0.1))
            return made[-1]

        step = make(latent_model, latent_guide, factory)
        step(X)
        step(X)
        (optimizer,) = made
        (group,) = optimizer.param_groups
        assert len(group["params"]) == 3


class TestTraceable:
    """Row 15: no ``.item()`` on the way from parameters to the loss."""

    def graph(self, elbo: Any) -> Any:
        model, guide = (poutine.block(f, hide_types=["param"]) for f in (mean_model, self.empty))

        def loss(x: Tensor) -> Tensor:
            return elbo.differentiable_loss(model, guide, x)

        with pyro.validation_enabled(False):
            return make_fx(loss)(X)

    def empty(self, x: Tensor) -> None:
        pass

    @pytest.mark.xfail(reason="Trace_ELBO calls .item()", raises=RuntimeError)
    def test_stock(self) -> None:
        self.graph(Trace_ELBO())

    def test_ours(self) -> None:
        graph = self.graph(ELBO())
        with torch.no_grad():
            expected = -dist.Normal(0.5, 1.0).log_prob(X + 1).sum()
            torch.testing.assert_close(graph(X + 1), expected)


class TestGlobalDrawnFromLocals:
    """Not yet a row: costs dropped by plates, though a global latent carries z_i to other data."""

    def gradients(self, elbo: Any) -> tuple[Tensor, Tensor]:
        case = CASES["global below local"]()
        parameters = case.start()
        rows = []
        for _ in range(RUNS):
            loss = elbo.differentiable_loss(case.model, case.guide, parameters)
            rows.append(-flat(torch.autograd.grad(loss, list(parameters.values()))))
        return torch.stack(rows), exact_gradient(case, 1.0)[1]

    @pytest.mark.xfail(reason="Trace_ELBO drops other data by plate alone", raises=AssertionError)
    def test_stock(self) -> None:
        elbo = Trace_ELBO(1000, vectorize_particles=True, max_plate_nesting=1)
        assert_mean(*self.gradients(elbo))

    def test_ours(self) -> None:
        assert_mean(*self.gradients(ELBO(1000, kl=MonteCarloKL())))
