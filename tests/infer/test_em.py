"""The loop of EM, on a mixture small enough to check everything by hand."""

import math
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pyro_models.errors import DataError, NonFiniteError, OptionError
from pyro_models.infer import Stepwise, StopReason, em


class Statistics(NamedTuple):
    mass: Tensor
    total: Tensor


class Posterior(NamedTuple):
    log_prob: Tensor
    r: Tensor


class Means(nn.Module):
    """x ~ 1/K sum_k N(m_k, 1)."""

    def __init__(self, *means: float):
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means, dtype=torch.float64))

    def posterior(self, x: Tensor) -> Posterior:
        count = len(self.means)
        joint = -0.5 * (x[:, None] - self.means) ** 2 - math.log(count * math.tau**0.5)
        return Posterior(joint.logsumexp(1), joint.softmax(1))

    def statistics(self, x: Tensor, posterior: Posterior) -> Statistics:
        return Statistics(posterior.r.mean(0), posterior.r.T @ x / len(x))

    def maximize_statistics(self, statistics: Statistics) -> None:
        self.means.copy_(statistics.total / statistics.mass)

    def maximize(self, x: Tensor, posterior: Posterior) -> None:
        self.maximize_statistics(self.statistics(x, posterior))

    def initialize(self, x: Tensor, generator: torch.Generator) -> None:
        chosen = torch.randperm(len(x), generator=generator)[: len(self.means)]
        with torch.no_grad():
            self.means.copy_(x[chosen])


class WithPrior(Means):
    """The means have the prior N(0, 1/2)."""

    def log_prior(self) -> Tensor:
        return -self.means.square().sum()

    def maximize(self, x: Tensor, posterior: Posterior) -> None:
        self.means.copy_((posterior.r.T @ x) / (posterior.r.sum(0) + 2.0))


def data(count: int = 60, *centres: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, dtype=torch.float64, generator=generator)
    return noise + torch.tensor(centres or (-2.0, 2.0), dtype=torch.float64).repeat(count)[:count]


def log_density(model: Means, x: Tensor) -> Tensor:
    found = model.posterior(x).log_prob.sum()
    return found + model.log_prior() if isinstance(model, WithPrior) else found


@pytest.mark.parametrize("model", [Means(-0.5, 0.4), WithPrior(-0.5, 0.4)])
def test_it_climbs_to_a_maximum(model: Means) -> None:
    x = data()
    start = log_density(model, x).item() / len(x)
    result = em(model, x, tolerance=1e-14, progress=False)
    bounds = [start, *(record.elbo for record in result.history)]
    assert result.stop_reason is StopReason.CONVERGED
    assert all(b >= a - 1e-13 for a, b in pairwise(bounds))
    found = log_density(model, x)
    assert result.elbo == pytest.approx(found.item() / len(x), abs=1e-12)
    (gradient,) = torch.autograd.grad(found, [model.means])
    assert gradient.abs().max() < 1e-4
    (curvature,) = [torch.autograd.functional.hessian(_of(model, x), model.means.detach())]
    assert torch.linalg.eigvalsh(curvature).max() < 0


def _of(model: Means, x: Tensor) -> Callable[[Tensor], Tensor]:
    def value(means: Tensor) -> Tensor:
        twin = type(model)(0.0)
        del twin.means
        twin.means = means  # type: ignore[assignment]
        return log_density(twin, x)

    return value


def test_the_history_has_the_bound_after_each_epoch() -> None:
    x, model = data(), Means(-0.5, 0.4)
    result = em(model, x, epochs=3, tolerance=0.0, progress=False)
    again = Means(-0.5, 0.4)
    with torch.no_grad():
        for record in result.history:
            again.maximize(x, again.posterior(x))
            assert record.elbo == again.posterior(x).log_prob.mean().item()
    assert [r.epoch for r in result.history] == [1, 2, 3]
    assert (result.steps, result.num_data, result.stop_reason) == (3, 60, StopReason.EPOCHS)
    assert torch.equal(result.parameters["model.means"], again.means)


def test_of_several_starts_the_best_is_kept() -> None:
    x = data(90, -20.0, 0.0, 20.0)
    bounds = [
        em(Means(0.0, 0.0, 0.0), x, restarts=1, seed=seed, progress=False).elbo for seed in range(8)
    ]
    one = em(Means(0.0, 0.0, 0.0), x, restarts=8, seed=0, progress=False)
    again = em(Means(0.0, 0.0, 0.0), x, restarts=8, seed=0, progress=False)
    other = em(Means(0.0, 0.0, 0.0), x, restarts=8, seed=1, progress=False)
    assert (
        len({round(b, 3) for b in bounds if b is not None}) > 1
    )  # some starts end in a worse place
    assert one.elbo == pytest.approx(max(b for b in bounds if b is not None), abs=1e-6)
    assert torch.equal(one.parameters["model.means"], again.parameters["model.means"])
    assert other.elbo == pytest.approx(one.elbo, abs=1e-6)
    assert one.elbo == one.model.posterior(x).log_prob.mean().item()  # type: ignore[attr-defined]
    assert one.stop_message.startswith("best of 8 starts")


def test_the_kind_of_start_is_handed_on() -> None:
    class Chosen(Means):
        starts: list[str]

        def initialize(self, x: Tensor, generator: torch.Generator, start: str = "own") -> None:
            self.starts.append(start)
            super().initialize(x, generator)

    model = Chosen(0.0, 0.0)
    model.starts = []
    em(model, data(), restarts=2, start="random", seed=0, progress=False)
    em(model, data(), restarts=1, seed=0, progress=False)
    assert model.starts == ["random", "random", "own"]
    with pytest.raises(OptionError, match="start='random' goes with restarts"):
        em(model, data(), start="random", progress=False)


def test_stepwise_reaches_the_same_place() -> None:
    x = data(3000)
    full = em(Means(-0.5, 0.4), x, progress=False)
    stepwise = Stepwise(100, power=1.0)
    result = em(Means(-0.5, 0.4), x, epochs=10, stepwise=stepwise, seed=0, progress=False)
    assert full.elbo is not None
    reached = result.model.posterior(x).log_prob.mean().item()  # type: ignore[attr-defined]
    assert reached == pytest.approx(full.elbo, abs=1e-4)
    # The averages follow: of weight 1/t, they are those of all batches seen.
    assert result.history[-1].lr == pytest.approx(1 / (10 * 30 - 1 + 2), rel=1e-6)


def test_stepwise_with_one_batch_and_no_memory_is_em() -> None:
    x = data()
    full = em(Means(-0.5, 0.4), x, epochs=6, tolerance=0.0, progress=False)

    class Forgetful(Stepwise):
        def weight(self, step: int) -> float:
            return 1.0

    result = em(
        Means(-0.5, 0.4), x, epochs=5, tolerance=0.0, stepwise=Forgetful(60), progress=False
    )
    # The first pass makes the first M-step, and an epoch reports the bound that it began with.
    torch.testing.assert_close(result.parameters["model.means"], full.parameters["model.means"])
    bounds = [record.elbo for record in full.history[:5]]
    assert [record.elbo for record in result.history] == pytest.approx(bounds, abs=1e-12)


def test_the_data_are_condensed_once() -> None:
    class Condensed(Means):
        calls = 0

        def condense(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.sort().values[:4]

    model = Condensed(-0.5, 0.4)
    result = em(model, data(), progress=False)
    few = data().sort().values[:4]
    assert model.calls == 1
    assert result.elbo == model.posterior(few).log_prob.mean().item()


def test_a_bound_of_the_posterior_is_what_climbs() -> None:
    class Bounded(Means):
        def posterior(self, x: Tensor) -> Any:
            found = super().posterior(x)
            return type("Bound", (), {"bound": found.log_prob.mean() - 5.0, "r": found.r})()

    plain = em(Means(-0.5, 0.4), data(), progress=False)
    result = em(Bounded(-0.5, 0.4), data(), progress=False)
    assert result.elbo == pytest.approx(plain.elbo - 5.0)  # type: ignore[operator]


def test_steps_that_are_not_exact_are_told_of() -> None:
    class Wrong(Means):
        def maximize(self, x: Tensor, posterior: Posterior) -> None:
            super().maximize(x, posterior)
            self.means.mul_(1.5)

    with pytest.warns(UserWarning, match="the bound fell"):
        em(Wrong(-2.0, 2.0), data(), epochs=1, progress=False)


def test_a_bound_that_is_not_finite_leaves_the_parameters_before() -> None:
    class Failing(Means):
        calls = 0

        def maximize(self, x: Tensor, posterior: Posterior) -> None:
            super().maximize(x, posterior)
            self.calls += 1
            if self.calls == 3:
                self.means.fill_(math.nan)

    model = Failing(-0.5, 0.4)
    with pytest.raises(NonFiniteError, match="the bound is nan after") as caught:
        em(model, data(), progress=False)
    assert caught.value.step == 3
    twin = em(Means(-0.5, 0.4), data(), epochs=2, progress=False)
    assert torch.equal(model.means, twin.parameters["model.means"])


def test_an_interrupt_ends_it_after_a_whole_step() -> None:
    class Interrupted(Means):
        def maximize(self, x: Tensor, posterior: Posterior) -> None:
            signal.raise_signal(signal.SIGINT)
            super().maximize(x, posterior)

    model = Interrupted(-0.5, 0.4)
    result = em(model, data(), progress=False)
    twin = em(Means(-0.5, 0.4), data(), epochs=1, progress=False)
    assert (result.stop_reason, result.steps) == (StopReason.INTERRUPTED, 1)
    assert torch.equal(model.means, twin.parameters["model.means"])


def test_an_interrupt_ends_all_starts() -> None:
    class Interrupted(Means):
        def maximize(self, x: Tensor, posterior: Posterior) -> None:
            signal.raise_signal(signal.SIGINT)
            super().maximize(x, posterior)

    result = em(Interrupted(0.0, 0.0), data(), restarts=5, seed=0, progress=False)
    assert (result.stop_reason, result.steps) == (StopReason.INTERRUPTED, 1)
    assert result.stop_message.startswith("best of 1 starts")


class TestRefusals:
    def test_a_model_without_steps(self) -> None:
        with pytest.raises(OptionError, match="Linear has no exact E- and M-steps"):
            em(nn.Linear(1, 1), data())

    def test_options(self) -> None:
        model = Means(0.0, 1.0)
        for options in ({"epochs": 0}, {"tolerance": -1.0}, {"restarts": 0}):
            with pytest.raises(OptionError, match=next(iter(options))):
                em(model, data(), **options)
        for wrong in ({"batch_size": 0}, {"power": 0.5}, {"delay": 0.5}):
            with pytest.raises(OptionError, match=next(iter(wrong))):
                Stepwise(**({"batch_size": 10} | wrong))

    def test_what_the_model_lacks(self) -> None:
        class Plain(nn.Module):
            def posterior(self, x: Tensor) -> None: ...
            def maximize(self, x: Tensor, posterior: None) -> None: ...

        with pytest.raises(OptionError, match="restarts=2 needs initialize"):
            em(Plain(), data(), restarts=2)
        with pytest.raises(OptionError, match="stepwise EM needs statistics"):
            em(Plain(), data(), stepwise=Stepwise(10))

    def test_data(self) -> None:
        with pytest.raises(DataError, match="not finite"):
            em(Means(0.0, 1.0), torch.tensor([0.0, math.nan]))
        with pytest.raises(DataError, match="holds no data"):
            em(Means(0.0, 1.0), torch.zeros(0))

    def test_missing_values_pass_where_the_model_takes_them(self) -> None:
        class Missing(Means):
            accepts_missing = True

            def posterior(self, x: Tensor) -> Posterior:
                seen = super().posterior(x.nan_to_num())
                there = ~x.isnan()
                return Posterior(seen.log_prob * there, seen.r * there[:, None])

            def maximize(self, x: Tensor, posterior: Posterior) -> None:
                super().maximize(x.nan_to_num(), posterior)

        x = data(4)
        result = em(Missing(-0.5, 0.4), torch.cat([x, x.new_tensor([math.nan])]), progress=False)
        whole = em(Means(-0.5, 0.4), x, progress=False)
        for name, value in whole.parameters.items():
            torch.testing.assert_close(result.parameters[name], value, atol=1e-3, rtol=0)
        with pytest.raises(DataError, match="1 value that is not finite"):
            em(Missing(0.0, 1.0), torch.tensor([0.0, math.nan, math.inf]))

    def test_a_fit_without_a_guide_says_so(self) -> None:
        result = em(Means(0.0, 1.0), data(), progress=False)
        with pytest.raises(OptionError, match="without a guide"):
            result.guide(data())


def test_the_record_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    result = em(Means(-0.5, 0.4), data(), seed=0)
    assert "the bound rose by less than the tolerance" in repr(result)
    assert "<img" in result._repr_html_()
    assert "elbo" in capsys.readouterr().err
