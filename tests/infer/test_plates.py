"""Scores by the elements of all plates: as noisy as one element's own cost, by closed form."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer import (
    ELBO,
    DecayingAverage,
    Learned,
    LeaveOneOut,
    MonteCarloKL,
    Pathwise,
    ScoreFunction,
)
from pyro_models.programs import data_plate
from tests.infer.gradient_cases import DTYPE
from tests.infer.test_gradients import assert_mean
from tests.infer.test_score_function import (
    Constant,
    assert_variance,
    gradients,
    sgd,
)

B, E, RUNS = 3, 8, 600
X = torch.linspace(-1.0, 2.0, B * E, dtype=DTYPE).reshape(E, B)
PRIOR = torch.tensor(0.3, dtype=DTYPE)


def cost(k: Tensor, x: Tensor, logit: Tensor) -> Tensor:
    """log p(x, k) - log q(k) of one element, detached."""
    joint = dist.Normal(k, 1.0).log_prob(x) + dist.Bernoulli(probs=PRIOR).log_prob(k)
    return (joint - dist.Bernoulli(logits=logit).log_prob(k)).detach()


def moments(costs: Callable[[Tensor, Tensor], Tensor], logit: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of score times cost, for draws 0 and 1 of an element."""
    q = torch.stack([1 - logit.sigmoid(), logit.sigmoid()]).detach()
    terms = torch.stack(
        [(k - logit.sigmoid()).detach() * costs(k, logit) for k in torch.tensor([0.0, 1.0])]
    )
    shape = (2, *(1,) * (terms.dim() - 1))
    mean = (q.reshape(shape) * terms).sum(0)
    return mean, (q.reshape(shape) * terms**2).sum(0) - mean**2


class TestInnerPlate:
    """A latent in a plate inside the data plate."""

    def pair(self, logit: Tensor) -> tuple[Any, Any]:
        def model() -> None:
            with data_plate(B, None), pyro.plate("inner", E, dim=-2):
                k = pyro.sample("k", dist.Bernoulli(probs=PRIOR))
                pyro.sample("x", dist.Normal(k, 1.0), obs=X)

        def guide() -> None:
            with data_plate(B, None), pyro.plate("inner", E, dim=-2):
                pyro.sample("k", dist.Bernoulli(logits=logit))

        return model, guide

    @pytest.mark.parametrize("objective", [ScoreFunction(1), ELBO(kl=MonteCarloKL())], ids=repr)
    def test_its_noise_is_that_of_its_own_elements(self, objective: Any) -> None:
        pyro.set_rng_seed(0)
        logit = torch.tensor(0.4, dtype=DTYPE, requires_grad=True)
        rows = gradients(objective, self.pair(logit), logit, RUNS).reshape(RUNS)
        mean, variance = moments(lambda k, q: cost(k, X, q), logit)
        assert_mean(rows, mean.sum())
        assert_variance(rows, variance.sum().item())

    def test_a_latent_that_sees_all_joins_them(self) -> None:
        """Each then pays for what all the others cost, too, and the mean is still right."""
        logit = torch.tensor(0.4, dtype=DTYPE, requires_grad=True)
        _, guide = self.pair(logit)

        def both() -> None:
            with data_plate(B, None), pyro.plate("inner", E, dim=-2):
                k = pyro.sample("k", dist.Bernoulli(probs=PRIOR))
                pyro.sample("x", dist.Normal(k, 1.0), obs=X)
            pyro.factor("all", 0.0 * k.sum((-1, -2)))

        pyro.set_rng_seed(1)
        rows = gradients(ScoreFunction(1), (both, guide), logit, 2 * RUNS).reshape(-1)
        mean, variance = moments(lambda k, q: cost(k, X, q), logit)
        assert_mean(rows, mean.sum())
        assert rows.var() > 10 * variance.sum()


class TestOuterPlate:
    """A latent in a plate around the data plate: one draw for the data of a group."""

    def pair(self, logit: Tensor) -> tuple[Any, Any]:
        def model() -> None:
            with pyro.plate("groups", E, dim=-2):
                k = pyro.sample("k", dist.Bernoulli(probs=PRIOR))
                with data_plate(B, None):
                    pyro.sample("x", dist.Normal(k, 1.0), obs=X)

        def guide() -> None:
            with pyro.plate("groups", E, dim=-2):
                pyro.sample("k", dist.Bernoulli(logits=logit))

        return model, guide

    @pytest.mark.parametrize("objective", [ScoreFunction(1), ELBO(kl=MonteCarloKL())], ids=repr)
    def test_its_noise_is_that_of_its_own_group(self, objective: Any) -> None:
        def costs(k: Tensor, logit: Tensor) -> Tensor:
            others = dist.Normal(k, 1.0).log_prob(X[:, 1:]).sum(-1)
            return cost(k, X[:, 0], logit) + others

        pyro.set_rng_seed(2)
        logit = torch.tensor(0.4, dtype=DTYPE, requires_grad=True)
        rows = gradients(objective, self.pair(logit), logit, RUNS).reshape(RUNS)
        mean, variance = moments(costs, logit)
        assert_mean(rows, mean.sum())
        assert_variance(rows, variance.sum().item())


@pytest.mark.parametrize(
    "chosen",
    [LeaveOneOut(), DecayingAverage(0.5), Learned(Constant(B, -1.0), sgd, decay=0.5)],
    ids=["leave one out", "average", "learned"],
)
def test_baselines_by_plates_are_unbiased(chosen: Any) -> None:
    pyro.set_rng_seed(3)
    logit = torch.tensor(0.4, dtype=DTYPE, requires_grad=True)
    pair = TestInnerPlate().pair(logit)
    objective = ScoreFunction(2, chosen)
    rows = gradients(objective, pair, logit, RUNS).reshape(RUNS)
    mean, variance = moments(lambda k, q: cost(k, X, q), logit)
    assert_mean(rows, mean.sum())
    assert rows.var() < 0.6 * variance.sum() / 2  # of two draws without a baseline


class TestPlatesInOnePlace:
    """Plates one after the other have the same dimension, and are not the same plate."""

    weight = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=DTYPE)
    x = torch.tensor([[0.7, -0.4], [1.5, 0.2]], dtype=DTYPE)  # (b, data)

    def pair(self, logits: Tensor) -> tuple[Any, Any]:
        def model() -> None:
            with data_plate(2, None):
                with pyro.plate("a", 2, dim=-2):
                    z = pyro.sample("z", dist.Bernoulli(probs=PRIOR))
                mean = torch.einsum("ab,...an->...bn", self.weight, z.expand(*z.shape[:-2], 2, 2))
                with pyro.plate("b", 2, dim=-2):
                    pyro.sample("x", dist.Normal(mean, 1.0), obs=self.x)

        def guide() -> None:
            with data_plate(2, None), pyro.plate("a", 2, dim=-2):
                pyro.sample("z", dist.Bernoulli(logits=logits))

        return model, guide

    def exact(self, logits: Tensor) -> Tensor:
        bound = torch.zeros((), dtype=DTYPE)
        for draw in itertools.product((0.0, 1.0), repeat=2):
            z = torch.tensor(draw, dtype=DTYPE)
            for n in range(2):
                log_q = dist.Bernoulli(logits=logits[:, n]).log_prob(z).sum()
                log_p = dist.Bernoulli(probs=PRIOR).log_prob(z).sum()
                likelihood = dist.Normal(self.weight.T @ z, 1.0).log_prob(self.x[:, n]).sum()
                bound = bound + log_q.exp() * (log_p + likelihood - log_q)
        (gradient,) = torch.autograd.grad(bound, logits)
        return gradient

    @pytest.mark.parametrize("objective", [ScoreFunction(200), ELBO(200)], ids=repr)
    def test_their_terms_are_no_costs_of_elements(self, objective: Any) -> None:
        pyro.set_rng_seed(8)
        logits = torch.tensor([[0.2, -0.3], [0.5, 0.1]], dtype=DTYPE, requires_grad=True)
        rows = gradients(objective, self.pair(logits), logits, 100)
        assert_mean(rows.flatten(1), self.exact(logits).flatten())

    @pytest.mark.parametrize("objective", [ScoreFunction(500), ELBO(500)], ids=repr)
    def test_they_may_have_other_sizes(self, objective: Any) -> None:
        """Words of documents, a plate for each; and global latents in two plates."""
        topics = torch.tensor([0.3, -0.2], dtype=DTYPE, requires_grad=True)
        words = [torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0])]

        def model() -> None:
            with pyro.plate("topics", 2):
                t = pyro.sample("t", dist.Bernoulli(probs=PRIOR))
            for i in pyro.plate("documents", 2):
                with pyro.plate(f"words_{i}", len(words[int(i)])):
                    mean = t.sum(-1, keepdim=True)
                    pyro.sample(f"x_{i}", dist.Normal(mean, 1.0), obs=words[int(i)])

        def guide() -> None:
            with pyro.plate("topics", 2):
                pyro.sample("t", dist.Bernoulli(logits=topics))

        bound = torch.zeros((), dtype=DTYPE)
        for draw in itertools.product((0.0, 1.0), repeat=2):
            t = torch.tensor(draw, dtype=DTYPE)
            log_q = dist.Bernoulli(logits=topics).log_prob(t).sum()
            log_p = dist.Bernoulli(probs=PRIOR).log_prob(t).sum()
            log_p = log_p + dist.Normal(t.sum(), 1.0).log_prob(torch.cat(words)).sum()
            bound = bound + log_q.exp() * (log_p - log_q)
        pyro.set_rng_seed(9)
        rows = gradients(objective, (model, guide), topics, 60)
        assert_mean(rows, torch.autograd.grad(bound, topics)[0])


def test_a_factor_of_the_guide_may_be_the_score() -> None:
    """A draw without a path, whose density the guide adds by hand."""
    mean = torch.tensor(0.5, dtype=DTYPE, requires_grad=True)

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))

    def guide() -> None:
        z = torch.normal(mean.detach(), 1.0)
        pyro.sample("z", dist.Delta(z))
        pyro.factor("log_q", dist.Normal(mean, 1.0).log_prob(z), has_rsample=False)

    pyro.set_rng_seed(10)
    rows = gradients(ELBO(), (model, guide), mean, 3000).reshape(-1)
    assert_mean(rows, torch.tensor(-0.5, dtype=DTYPE))  # of -KL = -mean^2 / 2


class TestColumnsAndMasks:
    """A running mean is one of costs that there are."""

    def variance(self, loop: bool, chosen: Any) -> float:
        logits = torch.zeros(6, dtype=DTYPE, requires_grad=True)
        plate: Any = pyro.plate("data", 6)

        def model() -> None:
            if loop:
                for i in plate:
                    k = pyro.sample(f"k{i}", dist.Bernoulli(logits=torch.zeros((), dtype=DTYPE)))
                    pyro.factor(f"f{i}", 5.0 + k)
            else:
                with data_plate(6, None):
                    k = pyro.sample("k", dist.Bernoulli(logits=torch.zeros(6, dtype=DTYPE)))
                    pyro.factor("f", 5.0 + k)

        def guide() -> None:
            if loop:
                for i in plate:
                    pyro.sample(f"k{i}", dist.Bernoulli(logits=logits[i]))
            else:
                with data_plate(6, None):
                    pyro.sample("k", dist.Bernoulli(logits=logits))

        pyro.set_rng_seed(4)
        rows = gradients(ScoreFunction(1, chosen), (model, guide), logits, 300)[100:]
        return rows.var(0).mean().item()

    @pytest.mark.parametrize("loop", [False, True], ids=["vectorised", "loop"])
    @pytest.mark.parametrize(
        "chosen", [DecayingAverage(), Learned(Constant(6), sgd)], ids=["average", "learned"]
    )
    def test_plates_that_run_as_a_loop(self, loop: bool, chosen: Any) -> None:
        # Costs 5 and 6 at scores -1/2 and 1/2: the variance is 2.75^2, and 0 less 5.5 from each.
        assert self.variance(loop, chosen) < 0.1

    def test_masked_data_cost_nothing(self) -> None:
        logits = torch.zeros(6, dtype=DTYPE, requires_grad=True)
        mask: Any = torch.tensor([True, True, False, True, False, False])

        def model() -> None:
            with data_plate(6, None), poutine.mask(mask=mask):
                k = pyro.sample("k", dist.Bernoulli(logits=torch.zeros(6, dtype=DTYPE)))
                pyro.factor("f", 5.0 + k)

        def guide() -> None:
            with data_plate(6, None), poutine.mask(mask=mask):
                pyro.sample("k", dist.Bernoulli(logits=logits))

        pyro.set_rng_seed(5)
        objective = ScoreFunction(1, DecayingAverage())
        rows = gradients(objective, (model, guide), logits, 400)[100:]
        assert not rows[:, ~mask].any()
        assert_mean(rows[:, mask], torch.full((3,), 0.25, dtype=DTYPE))
        assert rows[:, mask].var(0).max() < 0.1


class TestAutoguides:
    """Autoguides draw a site beside the latent, which is then computed."""

    def model(self) -> None:
        z = pyro.sample("z", dist.Gamma(torch.tensor(2.0, dtype=DTYPE), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.5, dtype=DTYPE))

    def gradients(self, guide: Any, objective: Any) -> Tensor:
        """Of location and scale, a row a run."""
        pyro.set_rng_seed(6)
        parameters = list(guide.parameters())
        rows = []
        for _ in range(400):
            loss = objective.differentiable_loss(self.model, guide)
            rows.append(torch.stack(torch.autograd.grad(loss, parameters)).reshape(-1))
        return torch.stack(rows)

    def test_a_path_beside_keeps_the_latents(self) -> None:
        pyro.clear_param_store()
        guide = AutoNormal(self.model, init_scale=0.5)
        guide()
        stock = self.gradients(guide, Trace_ELBO(16, vectorize_particles=True, max_plate_nesting=0))
        by_path = ScoreFunction(16, sites={"z_unconstrained": Pathwise()})
        found = {"path": self.gradients(guide, by_path)}
        found["score"] = self.gradients(guide, ScoreFunction(16))
        for rows in found.values():
            error = ((rows.var(0) + stock.var(0)) / len(rows)).sqrt()
            assert ((rows.mean(0) - stock.mean(0)).abs() < 4 * error).all()
        # With the path ours is stock's estimator, and as noisy.
        squares = [(rows - rows.mean(0)) ** 2 for rows in (found["path"], stock)]
        error = sum(square.var(0) / len(square) for square in squares) ** 0.5
        assert ((squares[0].mean(0) - squares[1].mean(0)).abs() < 4 * error).all()
        pyro.clear_param_store()

    @pytest.mark.parametrize("chosen", [Pathwise(), LeaveOneOut()], ids=repr)
    def test_a_choice_for_what_is_computed_is_refused(self, chosen: Any) -> None:
        pyro.clear_param_store()
        guide = AutoNormal(self.model)
        with pytest.raises(OptionError, match=r"'z', a Delta.*name 'z_unconstrained' instead"):
            ScoreFunction(4, sites={"z": chosen}).loss(self.model, guide)
        pyro.clear_param_store()


def test_a_baseline_for_stock_pyro_is_refused() -> None:
    def program() -> None:
        told: Any = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("k", dist.Bernoulli(0.5), infer=told)

    with pytest.raises(OptionError, match=r"site 'k'.*TraceGraph_ELBO.*DecayingAverage"):
        ScoreFunction(1).loss(program, program)


def test_the_gradient_of_an_exact_guide_and_enumeration_agree() -> None:
    """Two plates that cross, with a latent in each and one in both."""
    a = torch.tensor([0.2, -0.3], dtype=DTYPE, requires_grad=True)
    b = torch.tensor([0.5, 0.1], dtype=DTYPE, requires_grad=True)
    x = torch.tensor([[0.3, 1.2], [-0.4, 2.0]], dtype=DTYPE)

    def model() -> None:
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("data", 2, dim=-1)
        with rows:
            j = pyro.sample("j", dist.Bernoulli(probs=PRIOR))
        with columns:
            k = pyro.sample("k", dist.Bernoulli(probs=PRIOR))
        with rows, columns:
            pyro.sample("x", dist.Normal(j + 2 * k, 1.0), obs=x)

    def guide() -> None:
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("j", dist.Bernoulli(logits=a.unsqueeze(-1)))
        with pyro.plate("data", 2, dim=-1):
            pyro.sample("k", dist.Bernoulli(logits=b))

    bound = torch.zeros((), dtype=DTYPE)
    for draw in itertools.product((0.0, 1.0), repeat=4):
        j = torch.tensor(draw[:2], dtype=DTYPE)
        k = torch.tensor(draw[2:], dtype=DTYPE)
        log_q = dist.Bernoulli(logits=a).log_prob(j).sum()
        log_q = log_q + dist.Bernoulli(logits=b).log_prob(k).sum()
        log_p = dist.Bernoulli(probs=PRIOR).log_prob(torch.cat([j, k])).sum()
        log_p = log_p + dist.Normal(j[:, None] + 2 * k, 1.0).log_prob(x).sum()
        bound = bound + log_q.exp() * (log_p - log_q)
    exact = torch.cat(torch.autograd.grad(bound, (a, b)))
    for objective in (ScoreFunction(100), ELBO(100), ELBO(100, kl=MonteCarloKL())):
        pyro.set_rng_seed(7)
        rows = []
        for _ in range(100):
            surrogate = objective.estimate(objective.weights(model, guide, (), {})).surrogate
            rows.append(torch.cat(torch.autograd.grad(surrogate, (a, b))))
        assert_mean(torch.stack(rows), exact)
