"""Discrete latents summed out: against sums over all their values, forward recursions, stock Pyro.

The oracle of a case conditions the model on every assignment of its latents, element by element of
their plates, and adds up the joint densities: nothing is shared with the code under test.
"""

import copy
import gc
import itertools
import math
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.optim.optim import PyroOptim
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer import (
    ELBO,
    IWAE,
    DoublyReparameterized,
    Enumerated,
    MonteCarloKL,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    SleepPhase,
    Step,
    Supervised,
    WakeAndSleep,
    fit,
    log_likelihood,
    log_weights,
    marginal,
)
from pyro_models.infer.enumeration import _cache, remembered_hidden, remembered_marginal
from pyro_models.infer.summation import Term, Variable, sum_out
from pyro_models.programs import announce, data_plate
from tests.infer.step_cases import Mixture, adam, no_guide, sgd, values
from tests.unchecked import unchecked

DTYPE = torch.float64
Parameters = dict[str, Tensor]


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)


def mask(*values: bool) -> Any:
    return poutine.mask(mask=torch.tensor(values))  # type: ignore[call-overload]


X = tensor(0.4, 1.9, -0.7)
ROWS = torch.stack([X, X + 0.5])
START = {
    "prior": tensor(0.2, -0.1, 0.4),
    "move": tensor([0.7, 0.2, 0.1], [-0.3, 0.3, 0.4], [0.1, 0.1, 0.8]),
    "mean": tensor(-1.0, 0.5, 2.0),
    "shift": tensor(0.3, 1.4),
    "logit": tensor(0.4, -0.8, 0.1),
}


def parameters() -> Parameters:
    return {name: value.clone().requires_grad_() for name, value in START.items()}


def normal(loc: Any, scale: float = 1.0) -> dist.Normal:
    return dist.Normal(torch.as_tensor(loc, dtype=DTYPE), torch.tensor(scale, dtype=DTYPE))


def flip(p: float) -> dist.Bernoulli:
    return dist.Bernoulli(torch.tensor(p, dtype=DTYPE))


def categorical(logits: Tensor) -> dist.Categorical:
    return dist.Categorical(logits=logits)


def data(**options: Any) -> Any:
    return pyro.plate("data", 3, dim=-1, **options)


@dataclass(frozen=True)
class Case:
    """A model without continuous latents, and its discrete ones: numbers of values and shapes."""

    model: Callable[[Parameters], Any]
    latents: Mapping[str, tuple[int, tuple[int, ...]]]
    numbers: tuple[str, ...] = ()
    """Those whose values are no indices but floats."""
    one_hot: bool = False

    def exact(self, p: Parameters) -> Tensor:
        """Log of the sum of the joint density over all assignments."""
        logs: list[Any] = []
        spaces = [
            itertools.product(range(count), repeat=math.prod(shape))
            for count, shape in self.latents.values()
        ]
        for assignment in itertools.product(*spaces):
            given = {
                name: torch.tensor(values).reshape(self.latents[name][1])
                for name, values in zip(self.latents, assignment, strict=True)
            }
            if self.one_hot:
                given = {name: torch.eye(3, dtype=DTYPE)[k] for name, k in given.items()}
            given |= {name: given[name].to(DTYPE) for name in self.numbers}
            conditioned = poutine.condition(self.model, data=given)
            logs.append(poutine.trace(conditioned).get_trace(p).log_prob_sum())
        return torch.stack(logs).logsumexp(0)


def mixture(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        pyro.sample("x", normal(p["mean"][k]), obs=X)


def bernoulli(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", dist.Bernoulli(logits=p["logit"]))
        pyro.sample("x", normal(p["shift"][0] * k), obs=X)


def one_hot(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", dist.OneHotCategorical(logits=p["prior"]))
        pyro.sample("x", normal(k @ p["mean"]), obs=X)


def binomial(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", dist.Binomial(3, logits=p["logit"][0]))
        pyro.sample("x", normal(p["shift"][0] * k), obs=X)


def one_value(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", categorical(p["prior"][:1]))
        pyro.sample("x", normal(p["mean"][k]), obs=X)


def two_parents(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        j = pyro.sample("j", dist.Bernoulli(logits=p["logit"]))
        pyro.sample("x", normal(p["mean"][k] + p["shift"][1] * j), obs=X)


def apart(p: Parameters) -> None:
    """Two sums that share nothing, and an observation that depends on neither."""
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        j = pyro.sample("j", dist.Bernoulli(logits=p["logit"]))
        pyro.sample("x", normal(p["mean"][k]), obs=X)
        pyro.sample("y", normal(p["shift"][1] * j), obs=X + 1)
        pyro.sample("w", normal(p["shift"][0]), obs=X - 1)


def two_children(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        mean = pyro.deterministic("chosen", p["mean"][k])
        pyro.deterministic("again", p["mean"][k], event_dim=0)
        pyro.sample("x", normal(mean), obs=X)
        pyro.factor("f", p["shift"][0] * k)


def nothing_below(p: Parameters) -> None:
    """A latent that nothing depends on, and a discrete observation that is missing."""
    pyro.sample("c", categorical(p["prior"]))
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        pyro.sample("y", dist.Bernoulli(logits=p["mean"][k]))
        pyro.sample("x", normal(p["mean"][k]), obs=X)


def chain(p: Parameters) -> None:
    with data():
        k = pyro.sample("k0", categorical(p["prior"]))
        pyro.sample("x0", normal(p["mean"][k]), obs=X)
        k = pyro.sample("k1", categorical(p["move"][k]))
        pyro.sample("x1", normal(p["mean"][k]), obs=X + 0.2)


def above_plate(p: Parameters) -> None:
    c = pyro.sample("c", categorical(p["prior"]))
    with data():
        pyro.sample("x", normal(p["mean"][c]), obs=X)


def above_and_in_plate(p: Parameters) -> None:
    c = pyro.sample("c", categorical(p["prior"]))
    d = pyro.sample("d", dist.Bernoulli(logits=p["mean"][c]))
    with data():
        k = pyro.sample("k", dist.Bernoulli(logits=p["logit"] + c))
        pyro.sample("x", normal(p["mean"][c] + p["shift"][0] * k + d), obs=X)


def nested(p: Parameters) -> None:
    with data():
        k = pyro.sample("k", dist.Bernoulli(logits=p["logit"]))
        with pyro.plate("words", 2, dim=-2):
            j = pyro.sample("j", dist.Bernoulli(logits=p["shift"].unsqueeze(-1) * (k - 0.3)))
            pyro.sample("x", normal(p["shift"][1] * j + k), obs=ROWS)


def repeated(p: Parameters) -> None:
    """What depends on the outer latent alone is the same for each element of the inner plate."""
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        with pyro.plate("words", 2, dim=-2):
            pyro.sample("x", normal(p["mean"][k]), obs=ROWS)
            pyro.factor("f", p["shift"][0] * k)


def two_plates(p: Parameters) -> None:
    """A latent above two plates side by side."""
    c = pyro.sample("c", categorical(p["prior"]))
    with data():
        pyro.sample("x", normal(p["mean"][c]), obs=X)
    with pyro.plate("others", 2, dim=-1):
        j = pyro.sample("j", dist.Bernoulli(logits=p["mean"][c]))
        pyro.sample("y", normal(j), obs=X[:2])


def loop(p: Parameters) -> None:
    c = pyro.sample("c", dist.Bernoulli(logits=p["logit"][0]))
    indices: Any = pyro.plate("data", 3)
    for i in indices:
        k = pyro.sample(f"k{i}", categorical(p["prior"]))
        pyro.sample(f"x{i}", normal(p["mean"][k] + c), obs=X[i])


def masked(p: Parameters) -> None:
    with data(), mask(True, False, True):
        k = pyro.sample("k0", categorical(p["prior"]))
        pyro.sample("x0", normal(p["mean"][k]), obs=X)
        with mask(True, True, False):
            k = pyro.sample("k1", categorical(p["move"][k]))
            pyro.sample("x1", normal(p["mean"][k]), obs=X)


def mask_by_latent(p: Parameters) -> None:
    """A latent that says which observations count at all."""
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        with poutine.mask(mask=k > 0):  # type: ignore[call-overload]
            pyro.sample("x", normal(p["shift"][0]), obs=X)


def impossible(p: Parameters) -> None:
    """Values of the latent that the data exclude."""
    with data():
        k = pyro.sample("k", categorical(p["prior"]))
        pyro.sample("x", normal(p["mean"][k]), obs=X)
        pyro.factor("f", tensor(-math.inf, 0.0, -math.inf)[k])


LOCAL: dict[str, tuple[int, tuple[int, ...]]] = {"k": (3, (3,))}
CASES = {
    "mixture": Case(mixture, LOCAL),
    "bernoulli": Case(bernoulli, {"k": (2, (3,))}, ("k",)),
    "one hot": Case(one_hot, LOCAL, one_hot=True),
    "binomial": Case(binomial, {"k": (4, (3,))}, ("k",)),
    "one value": Case(one_value, {"k": (1, (3,))}),
    "two parents": Case(two_parents, LOCAL | {"j": (2, (3,))}, ("j",)),
    "apart": Case(apart, LOCAL | {"j": (2, (3,))}, ("j",)),
    "two children": Case(two_children, LOCAL),
    "nothing below": Case(nothing_below, LOCAL | {"c": (3, ()), "y": (2, (3,))}, ("y",)),
    "mask by latent": Case(mask_by_latent, LOCAL),
    "impossible": Case(impossible, LOCAL),
    "chain": Case(chain, {"k0": (3, (3,)), "k1": (3, (3,))}),
    "above a plate": Case(above_plate, {"c": (3, ())}),
    "above and in a plate": Case(
        above_and_in_plate, {"c": (3, ()), "d": (2, ()), "k": (2, (3,))}, ("d", "k")
    ),
    "nested": Case(nested, {"k": (2, (3,)), "j": (2, (2, 3))}, ("k", "j")),
    "repeated": Case(repeated, LOCAL),
    "two plates": Case(two_plates, {"c": (3, ()), "j": (2, (2,))}, ("j",)),
    "loop": Case(loop, {"c": (2, ()), "k0": (3, ()), "k1": (3, ()), "k2": (3, ())}, ("c",)),
}


def gradient(value: Tensor, p: Parameters) -> tuple[Tensor, ...]:
    """By all parameters, zero for those that do not matter."""
    wanted = list(p.values())
    return torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_sum(name: str) -> None:
    case, p = CASES[name], parameters()
    exact = case.exact(p)
    wanted = gradient(exact, p)
    for particles in (1, 4):
        loss = Enumerated(ELBO(particles)).differentiable_loss(case.model, no_guide, p)
        torch.testing.assert_close(-loss, exact, rtol=0, atol=1e-9)
        torch.testing.assert_close(gradient(-loss, p), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["mixture", "two parents", "chain", "nested", "two plates"])
def test_stock_pyro_agrees(name: str) -> None:
    p = parameters()
    model = config_enumerate(CASES[name].model)
    stock = TraceEnum_ELBO(max_plate_nesting=2).differentiable_loss(model, no_guide, p)
    ours = Enumerated().differentiable_loss(CASES[name].model, no_guide, p)
    torch.testing.assert_close(ours, stock)


class TestSummation:
    """The contraction itself, on terms that programs hardly make."""

    plate = CondIndepStackFrame("data", -1, 4, 0)

    def term(self, log: Tensor, ids: dict[int, int], *frames: CondIndepStackFrame) -> Term:
        return Term.make(log, -2, ids, frames, "site")

    def test_a_factor_that_is_the_same_for_all_of_a_plate(self) -> None:
        prior, fit = torch.randn(3, 1), torch.randn(3, 1)
        terms = [self.term(prior, {-2: 0}), self.term(fit, {-2: 0}, self.plate)]
        found = sum_out(terms, {0: Variable("c", frozenset())})
        assert found.dims == ()
        torch.testing.assert_close(found.unnamed(), (prior + 4 * fit).logsumexp(0).squeeze())

    def test_dimensions_in_another_order(self) -> None:
        logs = torch.randn(2, 3, 4), torch.randn(3, 2, 4)
        terms = [
            self.term(logs[0], {-3: 0, -2: 1}, self.plate),
            self.term(logs[1], {-3: 1, -2: 0}, self.plate),
        ]
        latents = {i: Variable(str(i), frozenset([self.plate])) for i in range(2)}
        exact = (logs[0] + logs[1].transpose(0, 1)).logsumexp((0, 1))
        torch.testing.assert_close(sum_out(terms, latents).unnamed(), exact)

    def test_a_chain_is_never_built_whole(self) -> None:
        """Twenty variables of ten values: their joint would have 1e20 elements."""
        log = torch.randn(20, 10, 10)
        terms = [Term(log[i], (i, i + 1), frozenset()) for i in range(20)]
        latents = {i: Variable(str(i), frozenset()) for i in range(21)}
        alpha = torch.zeros(10)
        for i in range(20):
            alpha = (alpha.unsqueeze(-1) + log[i]).logsumexp(0)
        torch.testing.assert_close(sum_out(terms, latents).unnamed(), alpha.logsumexp(0))


def forward_recursion(p: Parameters, x: Tensor) -> Tensor:
    """Log-likelihood of each sequence by the forward algorithm."""
    emit = [normal(p["mean"]).log_prob(x[:, t].unsqueeze(-1)) for t in range(x.shape[1])]
    alpha = p["prior"].log_softmax(-1) + emit[0]
    for log in emit[1:]:
        alpha = (alpha.unsqueeze(-1) + p["move"].log_softmax(-1)).logsumexp(1) + log
    return alpha.logsumexp(-1)


@pytest.mark.parametrize("steps", ["range", "markov"])
@pytest.mark.parametrize("particles", [1, 3])
def test_a_hidden_markov_model(steps: str, particles: int) -> None:
    """Twelve steps, one variable at a time; with ``pyro.markov``, whose dimensions repeat, 80."""
    length = 12 if steps == "range" else 80
    sequences = torch.randn(5, length, dtype=DTYPE)
    p = parameters()

    def model(p: Parameters) -> None:
        times = range(length) if steps == "range" else pyro.markov(range(length))
        with pyro.plate("data", 50, subsample=torch.arange(5)):
            k = None
            for t in times:
                logits = p["prior"] if k is None else p["move"][k]
                k = pyro.sample(f"k{t}", categorical(logits))
                pyro.sample(f"x{t}", normal(p["mean"][k]), obs=sequences[:, t])

    weights = log_weights(marginal(model), no_guide, p, num_particles=particles)
    exact = forward_recursion(p, sequences)
    torch.testing.assert_close(weights.local, exact.expand(particles, -1))
    assert weights.plate_scale == 10.0
    loss = Enumerated(ELBO(particles)).differentiable_loss(model, no_guide, p)
    torch.testing.assert_close(-loss, 10 * exact.sum())
    names = ["prior", "move", "mean"]
    found = torch.autograd.grad(-loss, [p[n] for n in names])
    wanted = torch.autograd.grad(10 * exact.sum(), [p[n] for n in names])
    torch.testing.assert_close(found, wanted)


def test_densities_far_below_the_smallest_number() -> None:
    """Stock Pyro multiplies densities shifted one by one, which leaves nothing of either here."""
    logits = tensor(0.0, -900.0)

    def model() -> None:
        with pyro.plate("data", 1):
            k = pyro.sample("k", categorical(logits))
            pyro.factor("f", torch.where(k == 0, -2000.0, 0.0).to(DTYPE))

    assert Enumerated().loss(model, no_guide) == pytest.approx(900.0)
    stock = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), no_guide)
    assert stock == math.inf or stock > 901


def test_masks() -> None:
    """By hand: datum 0 has both steps, datum 1 none, datum 2 the first alone."""
    p = parameters()
    prior, move = p["prior"].log_softmax(-1), p["move"].log_softmax(-1)
    both = prior + normal(p["mean"]).log_prob(X[0])
    both = (both.unsqueeze(-1) + move).logsumexp(0) + normal(p["mean"]).log_prob(X[0])
    one = prior + normal(p["mean"]).log_prob(X[2])
    exact = both.logsumexp(0) + one.logsumexp(0)
    weights = log_weights(marginal(masked), no_guide, p, num_particles=2)
    assert weights.local[:, 1].abs().max() < 1e-15
    torch.testing.assert_close(weights.local.sum(-1), exact.expand(2))


@pytest.mark.parametrize("particles", [1, 3])
def test_data_that_are_missing(particles: int) -> None:
    """A discrete observation with gaps, on which another one depends: the gaps are summed out."""
    p = parameters()
    seen: Any = torch.tensor([True, False, True])

    def model() -> None:
        with data():
            k = pyro.sample("k", categorical(p["prior"]))
            y = pyro.sample(
                "y", dist.Bernoulli(logits=p["mean"][k]), obs=tensor(1.0, 1.0, 0.0), obs_mask=seen
            )
            pyro.sample("x", normal(y), obs=X)

    yes = (p["prior"].softmax(-1) * p["mean"].sigmoid()).sum()
    both = torch.stack(
        [yes.log() + normal(1.0).log_prob(X), (1 - yes).log() + normal(0.0).log_prob(X)]
    )
    exact = torch.stack([both[0, 0], both[:, 1].logsumexp(0), both[1, 2]])
    weights = log_weights(marginal(model), no_guide, num_particles=particles)
    torch.testing.assert_close(weights.local, exact.expand(particles, -1))


def test_inside_other_handlers() -> None:
    """A plate, a Markov context and a scale around the program count as around the model."""
    p = parameters()

    def model() -> None:
        k = pyro.sample("k", categorical(p["prior"]))
        pyro.sample("x", normal(p["mean"][k]), obs=X)

    program = marginal(model)
    with poutine.trace() as seen, pyro.markov(), data(), poutine.scale(scale=0.5):
        program()
    exact = (p["prior"].log_softmax(-1) + normal(p["mean"]).log_prob(X[:, None])).logsumexp(-1)
    torch.testing.assert_close(seen.trace.log_prob_sum(), 0.5 * exact.sum())
    assert set(seen.trace.nodes) >= {"x"}
    assert "k" not in seen.trace.nodes


class TestScales:
    """A scale on all sites of a sum multiplies its logarithm; others are powers inside."""

    def model(self, p: Parameters, prior: Any, likelihood: Any) -> None:
        with pyro.plate("data", 12, subsample=torch.arange(3)):
            with poutine.scale(scale=prior):
                k = pyro.sample("k", categorical(p["prior"]))
            with poutine.scale(scale=likelihood):
                pyro.sample("x", normal(p["mean"][k]), obs=X)

    def parts(self, p: Parameters) -> tuple[Tensor, Tensor]:
        return p["prior"].log_softmax(-1), normal(p["mean"]).log_prob(X.unsqueeze(-1))

    def test_a_minibatch(self) -> None:
        p = parameters()
        prior, fit = self.parts(p)
        weights = log_weights(marginal(self.model), no_guide, p, 1.0, 1.0, num_particles=2)
        assert weights.plate_scale == 4.0
        torch.testing.assert_close(weights.local[1], (prior + fit).logsumexp(-1))

    def test_a_common_scale(self) -> None:
        p = parameters()
        prior, fit = self.parts(p)
        weights = log_weights(marginal(self.model), no_guide, p, 0.5, 0.5, num_particles=2)
        assert weights.common_scale == pytest.approx(0.5)
        torch.testing.assert_close(weights.local[1], (prior + fit).logsumexp(-1))
        loss = Enumerated().loss(self.model, no_guide, p, 0.5, 0.5)
        assert loss == pytest.approx(-0.5 * 4 * (prior + fit).logsumexp(-1).sum().item())
        stock = TraceEnum_ELBO(max_plate_nesting=1)
        assert loss == pytest.approx(
            stock.loss(config_enumerate(self.model), no_guide, p, 0.5, 0.5)
        )

    @pytest.mark.parametrize("kind", ["number", "tensor"])
    def test_scales_that_differ(self, kind: str) -> None:
        p = parameters()
        prior, fit = self.parts(p)
        power: Any = 0.5 if kind == "number" else tensor(0.5)[0]
        loss = Enumerated().differentiable_loss(self.model, no_guide, p, power, 1.0)
        torch.testing.assert_close(-loss, 4 * (0.5 * prior + fit).logsumexp(-1).sum())

    def test_a_scale_for_each_datum_inside_a_sum(self) -> None:
        with pytest.raises(SiteMismatchError, match=r"'k' is part of a sum.*one number each"):
            Enumerated().loss(self.model, no_guide, parameters(), tensor(0.5, 0.2, 0.1), 1.0)
        with pytest.raises(SiteMismatchError, match=r"'x' is part of a sum.*one number each"):
            Enumerated().loss(self.model, no_guide, parameters(), 1.0, tensor(0.5, 0.2, 0.1))

    @pytest.mark.parametrize(
        "prior", [0.3, tensor(0.3)[0], tensor(0.3)], ids=["number", "0-dim", "1-dim"]
    )
    def test_a_common_scale_that_is_a_tensor(self, prior: Any) -> None:
        p = parameters()
        terms = self.parts(p)
        exact = 0.3 * 4 * (terms[0] + terms[1]).logsumexp(-1).sum()
        expected = gradient(exact, p)
        for objective in (Enumerated(), Enumerated(IWAE(3))):
            loss = objective.differentiable_loss(self.model, no_guide, p, prior, tensor(0.3)[0])
            torch.testing.assert_close(-loss, exact)
            torch.testing.assert_close(gradient(-loss, p), expected)

    def test_one_graph_for_scales_that_agree_and_differ(self) -> None:
        p = {name: value.detach() for name, value in parameters().items()}
        prior, fit = self.parts(p)

        def loss(one: Tensor, other: Tensor) -> Tensor:
            return Enumerated().differentiable_loss(self.model, no_guide, p, one, other)

        with pyro.validation_enabled(False):
            graph = make_fx(loss)(tensor(0.5)[0], tensor(0.5)[0])
        common = -graph(tensor(0.3)[0], tensor(0.3)[0])
        torch.testing.assert_close(common, 4 * 0.3 * (prior + fit).logsumexp(-1).sum())
        apart = -graph(tensor(0.3)[0], tensor(0.9)[0])
        torch.testing.assert_close(apart, 4 * (0.3 * prior + 0.9 * fit).logsumexp(-1).sum())


def clustered(p: Parameters, n: int | None = None) -> None:
    """A normal latent whose prior is a mixture, and one that has nothing to do with it."""
    with pyro.plate("data", n or 3, subsample=torch.arange(3)):
        k = pyro.sample("k", categorical(p["prior"]))
        z = pyro.sample("z", normal(p["mean"][k], 0.5))
        w = pyro.sample("w", normal(p["shift"][0]))
        pyro.sample("x", normal(z + w, 0.8), obs=X)


def clustered_guide(p: Parameters, n: int | None = None) -> None:
    with pyro.plate("data", n or 3, subsample=torch.arange(3)):
        pyro.sample("z", normal(X / 2 + p["logit"], 0.4))
        pyro.sample("w", normal(p["shift"][1], 0.6))


def clustered_by_hand(p: Parameters, n: int | None = None) -> None:
    with pyro.plate("data", n or 3, subsample=torch.arange(3)):
        prior = dist.MixtureSameFamily(categorical(p["prior"]), normal(p["mean"], 0.5))
        z = pyro.sample("z", prior)
        w = pyro.sample("w", normal(p["shift"][0]))
        pyro.sample("x", normal(z + w, 0.8), obs=X)


class TestBesideOtherLatents:
    """Latents that the guide samples, some with a prior that is a sum."""

    @pytest.mark.parametrize("particles", [1, 5])
    @pytest.mark.parametrize("weight", [1.0, 0.3])
    def test_a_prior_that_is_a_sum(self, particles: int, weight: float) -> None:
        """It belongs to the divergence, so that a warm-up weighs it as one."""
        results = []
        for model, objective in [
            (clustered, Enumerated(ELBO(particles))),
            (clustered_by_hand, ELBO(particles)),
        ]:
            pyro.set_rng_seed(1)
            p = parameters()
            weights = objective.weights(model, clustered_guide, (p, 30), {})
            assert set(weights.log_p) == {"z", "w", "x"}
            bound, surrogate = objective.estimate(weights, weight)
            gradient = torch.autograd.grad(surrogate, list(p.values()), allow_unused=True)
            results.append((bound, [g for g in gradient if g is not None]))
        torch.testing.assert_close(results[0], results[1])

    @pytest.mark.parametrize(
        "inner",
        [IWAE(5), IWAE(5, gradient=DoublyReparameterized()), RenyiELBO(0.5, 5)],
        ids=["IWAE", "DReG", "Renyi"],
    )
    def test_bounds_of_many_particles(self, inner: Objective) -> None:
        """Draw by draw what they are on the model that was summed by hand."""
        results = []
        for model, objective in [(clustered, Enumerated(inner)), (clustered_by_hand, inner)]:
            pyro.set_rng_seed(1)
            p = parameters()
            loss = objective.differentiable_loss(model, clustered_guide, p, 30)
            results.append((loss, gradient(loss, p)))
        torch.testing.assert_close(results[0], results[1])

    def test_a_sum_that_ties_all_data_together(self) -> None:
        """A global latent summed out above local ones of the guide: one weight for all data."""

        def model(p: Parameters) -> None:
            c = pyro.sample("c", categorical(p["prior"]))
            with data():
                z = pyro.sample("z", normal(p["mean"][c], 0.5))
                pyro.sample("x", normal(z, 0.8), obs=X)

        p = parameters()
        weights = Enumerated(IWAE(6)).weights(model, no_w, (p,), {})
        z = weights.guide_sites["z"].value  # 6 particles, 3 data
        prior = normal(p["mean"], 0.5).log_prob(z.unsqueeze(-1)).sum(1) + p["prior"].log_softmax(-1)
        rest = normal(z, 0.8).log_prob(X) - normal(X / 2 + p["logit"], 0.4).log_prob(z)
        exact = (prior.logsumexp(-1) + rest.sum(-1)).logsumexp(0) - math.log(6)
        assert Enumerated(IWAE(6)).estimate(weights).bound.item() == pytest.approx(exact.item())

    def test_inner_plates(self) -> None:
        """Latents of the guide above discrete ones in a plate within the data's."""

        def model(p: Parameters) -> None:
            with data():
                z = pyro.sample("z", normal(0.0))
                with pyro.plate("words", 2, dim=-2):
                    j = pyro.sample("j", dist.Bernoulli(logits=z))
                    pyro.sample("x", normal(p["shift"][1] * j), obs=ROWS)

        p = parameters()
        weights = log_weights(marginal(model), no_w, p, num_particles=4)
        z = weights.guide_sites["z"].value.squeeze(1)  # 4 particles, 3 data
        yes = torch.nn.functional.logsigmoid(z).unsqueeze(1) + normal(p["shift"][1]).log_prob(ROWS)
        no = torch.nn.functional.logsigmoid(-z).unsqueeze(1) + normal(0.0).log_prob(ROWS)
        torch.testing.assert_close(weights.log_p["x"], torch.logaddexp(yes, no).sum(1))

    def test_stock_pyro_agrees(self) -> None:
        p = parameters()
        pyro.set_rng_seed(1)
        ours = Enumerated(ELBO(kl=MonteCarloKL())).differentiable_loss(
            clustered, clustered_guide, p
        )
        pyro.set_rng_seed(1)
        stock = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
            config_enumerate(clustered), clustered_guide, p
        )
        torch.testing.assert_close(ours, stock)

    def test_one_latent_in_prior_and_likelihood(self) -> None:
        """Then neither site has a density of its own: a factor has the sum."""

        def model(p: Parameters) -> None:
            with data():
                k = pyro.sample("k", categorical(p["prior"]))
                z = pyro.sample("z", normal(p["mean"][k], 0.5))
                pyro.sample("x", normal(z + k, 0.8), obs=X)

        p = parameters()
        weights = log_weights(marginal(model), no_w, p, num_particles=4)
        z = weights.guide_sites["z"].value
        k = torch.arange(3, dtype=DTYPE)
        parts = p["prior"].log_softmax(-1) + normal(p["mean"], 0.5).log_prob(z.unsqueeze(-1))
        parts = parts + normal(z.unsqueeze(-1) + k, 0.8).log_prob(X.unsqueeze(-1))
        torch.testing.assert_close(weights.log_p["marginal_k"], parts.logsumexp(-1))
        assert weights.log_p["z"].abs().max() == weights.log_p["x"].abs().max() == 0
        assert weights.model_sites["x"].observed
        assert not weights.model_sites["z"].observed

    def test_global_and_local_ones(self) -> None:
        """A global latent on its path above local discrete ones, and a minibatch."""

        def model(p: Parameters) -> None:
            t = pyro.sample("t", normal(0.0))
            with pyro.plate("data", 30, subsample=torch.arange(3)):
                k = pyro.sample("k", dist.Bernoulli(logits=p["shift"][0] * t))
                pyro.sample("x", normal(p["shift"][1] * k + t), obs=X)

        def guide(p: Parameters) -> None:
            pyro.sample("t", normal(p["logit"][0], 0.3))

        p = parameters()
        weights = log_weights(marginal(model), guide, p, num_particles=4)
        t = weights.guide_sites["t"].value
        odds = dist.Bernoulli(logits=p["shift"][0] * t)
        fits = [
            odds.log_prob(tensor(k)[0]) + normal(p["shift"][1] * k + t).log_prob(X)
            for k in (0.0, 1.0)
        ]
        torch.testing.assert_close(weights.local, torch.logaddexp(*fits))
        assert weights.has_global_latents

    def test_the_guide_wins(self) -> None:
        def guide(p: Parameters) -> None:
            with data():
                pyro.sample("k", categorical(p["mean"]), infer={"enumerate": "parallel"})

        p = parameters()
        weights = log_weights(marginal(two_parents), guide, p, num_particles=6)
        k = weights.guide_sites["k"].value
        assert set(weights.log_p) == {"k", "x"}
        torch.testing.assert_close(weights.log_p["k"], p["prior"].log_softmax(-1)[k])
        odds = dist.Bernoulli(logits=p["logit"])
        fits = [
            odds.log_prob(tensor(j)[0]) + normal(p["mean"][k] + p["shift"][1] * j).log_prob(X)
            for j in (0.0, 1.0)
        ]
        torch.testing.assert_close(weights.log_p["x"], torch.logaddexp(*fits))

    def test_what_is_conditioned_from_outside(self) -> None:
        def model(p: Parameters) -> None:
            with data():
                k = pyro.sample("k", categorical(p["prior"]))
                j = pyro.sample("j", categorical(p["move"][k]))
                pyro.sample("x", normal(p["mean"][j]))

        p = parameters()
        k = torch.tensor([0, 2, 1])
        given = poutine.condition(marginal(model), {"k": k, "x": X})
        weights = log_weights(given, no_guide, p, num_particles=2)
        prior, move = p["prior"].log_softmax(-1), p["move"].log_softmax(-1)
        fit = (move[k] + normal(p["mean"]).log_prob(X.unsqueeze(-1))).logsumexp(-1)
        torch.testing.assert_close(weights.local[0], prior[k] + fit)


def no_w(p: Parameters) -> None:
    with data():
        pyro.sample("z", normal(X / 2 + p["logit"], 0.4))


class TestRefusals:
    """By the name of the site, with what to do."""

    def loss(self, model: Any, guide: Any = no_guide) -> None:
        Enumerated().loss(model, guide)

    def test_values_without_end(self) -> None:
        def model() -> None:
            with data():
                n = pyro.sample("n", dist.Poisson(torch.ones(())))
                pyro.sample("x", dist.Normal(n, 1.0), obs=X)

        with pytest.raises(SiteMismatchError, match=r"'n'.*Poisson cannot be listed.*the guide"):
            self.loss(model)

    def test_dependent_dimensions(self) -> None:
        def model() -> None:
            with data():
                b = pyro.sample("b", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
                pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=X)

        with pytest.raises(SiteMismatchError, match=r"'b'.*Bernoulli.*\(4,\).*in a plate"):
            self.loss(model)

    def test_values_that_differ_by_datum(self) -> None:
        def model() -> None:
            with data():
                pyro.sample("n", dist.Binomial(torch.tensor([2, 3, 4]), torch.tensor(0.5)))

        with pytest.raises(SiteMismatchError, match=r"'n'.*Binomial"):
            self.loss(model)

    def test_a_minibatch_below_a_global_latent(self) -> None:
        def model() -> None:
            c = pyro.sample("c", flip(0.3))
            with pyro.plate("data", 30, subsample=torch.arange(3)):
                pyro.sample("x", normal(c), obs=X)

        with pytest.raises(OptionError, match=r"'c'.*'x'.*'data'.*3 of 30.*minibatches"):
            self.loss(model)

    def test_plates_that_cross(self) -> None:
        def model() -> None:
            rows, columns = pyro.plate("rows", 2, dim=-2), data()
            with rows:
                a = pyro.sample("a", flip(0.3))
            with columns:
                b = pyro.sample("b", flip(0.3))
            with rows, columns:
                pyro.sample("x", normal(a + b), obs=ROWS)

        with pytest.raises(SiteMismatchError, match=r"cross.*'a' in \['rows'\].*'b' in \['data'\]"):
            self.loss(model)

    def test_a_local_latent_outside_its_plate(self) -> None:
        def model() -> None:
            with data():
                k = pyro.sample("k", flip(0.3))
            pyro.factor("f", k)

        with pytest.raises(SiteMismatchError, match=r"'f' depends on 'k'.*outside its plate"):
            self.loss(model)

    @pytest.mark.parametrize("particles", [1, 3])
    def test_a_latent_below_without_a_value(self, particles: int) -> None:
        objective = Enumerated(ELBO(particles))
        with pytest.raises(SiteMismatchError, match=r"'z' depends.*sample it in the guide"):
            objective.loss(clustered, no_guide, parameters())

    def test_a_dimension_of_nobody(self) -> None:
        def model() -> None:
            with data():
                k = pyro.sample("k", flip(0.3))
                pyro.factor("f", torch.ones(4, 1, 1) * k)

        with pytest.raises(SiteMismatchError, match=r"'f'.*belongs to no plate"):
            self.loss(model)

    def test_enumeration_in_the_guide_too(self) -> None:
        def guide(p: Parameters) -> None:
            with data():
                pyro.sample("k", categorical(p["mean"]), infer={"enumerate": "parallel"})

        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        with pytest.raises(SiteMismatchError, match=r"'k'.*not in both"):
            elbo.loss(marginal(two_parents), guide, parameters())

    def test_plates_that_come_later(self) -> None:
        deep = False

        def model() -> None:
            with data():
                k = pyro.sample("k", flip(0.3))
                if deep:
                    with pyro.plate("words", 2, dim=-2):
                        pyro.sample("x", normal(k), obs=ROWS)

        program = marginal(model)
        program()
        deep = True
        with pytest.raises(SiteMismatchError, match="'x' lies in more plates"):
            program()

    @pytest.mark.parametrize("phase", [SleepPhase(), WakeAndSleep()])
    def test_a_model_that_cannot_simulate(self, phase: Any) -> None:
        inner = ReweightedWakeSleep(2, phase)
        for objective in (inner, Supervised(inner)):
            with pytest.raises(OptionError, match=r"sleep phase simulates.*WakePhase"):
                Enumerated(objective)
        assert Enumerated(ReweightedWakeSleep(2)).num_particles == 2

    def test_an_objective_that_is_none(self) -> None:
        with unchecked(), pytest.raises(OptionError, match="objective is 5"):
            Enumerated(5)  # type: ignore[arg-type]


class TestTheWrapper:
    """One a model, that goes with it, and shows what the model has."""

    @pytest.mark.parametrize("particles", [1, 3])
    def test_one_run_a_step(self, particles: int) -> None:
        runs = 0

        def model(p: Parameters) -> None:
            nonlocal runs
            runs += 1
            mixture(p)

        p = parameters()
        for objective in (Enumerated(ELBO(particles)), Enumerated(ELBO(particles))):
            before = runs
            for _ in range(3):
                objective.loss(model, no_guide, p)
        assert runs - before == 3

    def test_it_does_not_keep_the_model(self) -> None:
        def model() -> None:
            with data():
                pyro.sample("k", flip(0.3))

        gc.collect()
        known = len(_cache)
        Enumerated(ELBO(2)).loss(model, no_guide)
        assert len(_cache) == known + 1
        alive = weakref.ref(model)
        del model
        gc.collect()
        assert alive() is None
        assert len(_cache) == known

    def test_callables_that_cannot_be_keys(self) -> None:
        class Slotted:
            __slots__ = ()

            def __call__(self, p: Parameters) -> None:
                mixture(p)

        p = parameters()
        objective = Enumerated(ELBO(2))
        assert objective.loss(Slotted(), no_guide, p) == objective.loss(mixture, no_guide, p)

    def test_methods_that_equal_each_other(self) -> None:
        """The one is remembered and gone, where the other is still here."""

        class Programs:
            def model(self, p: Parameters) -> None:
                mixture(p)

            def guide(self, p: Parameters) -> None:
                pass

        programs, p = Programs(), parameters()
        first = programs.model, programs.guide
        second = programs.model, programs.guide
        for model, guide in (first, second):
            made = remembered_marginal(model), remembered_hidden(guide, ("k",))
        del first, model, guide
        gc.collect()
        assert ELBO().loss(*made, p) == Enumerated().loss(mixture, no_guide, p)
        assert second

    def test_the_models_generator_and_buffers_stay(self) -> None:
        class Normed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(1)

            def forward(self, x: Tensor) -> None:
                with data():
                    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
                    loc = self.norm(x.unsqueeze(-1)).squeeze(-1)
                    pyro.sample("x", dist.Normal(loc + k, 1.0), obs=x)

        for program in (Normed(), marginal(Normed())):
            state = torch.get_rng_state()
            Enumerated(ELBO(2)).loss(program, no_guide, X.float())
            assert torch.equal(torch.get_rng_state(), state)
            buffers = dict(program.named_buffers())  # type: ignore[attr-defined]
            counts = [b for n, b in buffers.items() if n.endswith("num_batches_tracked")]
            assert [int(c) for c in counts] == [1]

    def test_a_module(self) -> None:
        """Its parameters are the model's, and it can be copied and stored."""
        model = Components()
        program: Any = marginal(model)
        assert dict(program.named_parameters()).keys() == {"model.logits", "model.loc"}
        x = torch.randn(5)
        expected = Enumerated().loss(model, no_guide, x)
        step = Step(program, no_guide, ELBO(), sgd, compiled=False)
        assert step(x).item() == pytest.approx(expected / 5)
        assert set(step.parameters()) == {"model.model.logits", "model.model.loc"}
        assert ELBO().loss(program, no_guide, x) < expected
        copied = pickle.loads(pickle.dumps(copy.deepcopy(program)))
        with torch.no_grad():
            copied.model.loc.add_(1.0)
        assert ELBO().loss(copied, no_guide, x) != ELBO().loss(program, no_guide, x)

    def test_of_a_marginal(self) -> None:
        p = parameters()
        once = Enumerated().loss(two_parents, no_guide, p)
        assert Enumerated().loss(marginal(two_parents), no_guide, p) == pytest.approx(once)

    def test_the_users_options_of_a_site_stay_theirs(self) -> None:
        infer: Any = {"enumerate": "parallel", "num_samples": 7, "tmc": "diagonal"}

        def model() -> None:
            with data():
                k = pyro.sample("k", flip(0.3), infer=infer)
                pyro.sample("x", normal(k), obs=X)

        loss = Enumerated().loss(model, no_guide)
        exact = torch.logaddexp(
            normal(0.0).log_prob(X) + math.log(0.7), normal(1.0).log_prob(X) + math.log(0.3)
        )
        assert loss == pytest.approx(-exact.sum().item())
        assert infer == {"enumerate": "parallel", "num_samples": 7, "tmc": "diagonal"}

    def test_arguments_that_open_other_plates(self) -> None:
        def model(rows: Tensor | None = None) -> None:
            with data():
                k = pyro.sample("k", flip(0.3))
                if rows is not None:
                    with pyro.plate("words", 2, dim=-2):
                        pyro.sample("rows", normal(k), obs=rows)

        for particles in (1, 2):
            assert Enumerated(ELBO(particles)).loss(model, no_guide) == pytest.approx(0.0)
            assert Enumerated(ELBO(particles)).loss(model, no_guide, ROWS) > 1.0

    def test_flags_that_open_other_plates(self) -> None:
        def model(deep: int) -> None:
            with data():
                k = pyro.sample("k", flip(0.3))
                if deep:
                    with pyro.plate("words", 2, dim=-2):
                        pyro.sample("rows", normal(k), obs=ROWS)

        for particles in (1, 2):
            assert Enumerated(ELBO(particles)).loss(model, no_guide, 0) == pytest.approx(0.0)
            assert Enumerated(ELBO(particles)).loss(model, no_guide, 1) > 1.0


class Components(nn.Module):
    """Four Gaussians in a line, their component a discrete site."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(4))
        self.loc = nn.Parameter(torch.linspace(-2, 2, 4))

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "model")
        with data_plate(len(x), num_data):
            k = pyro.sample("component", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.loc[k], 1.0), obs=x)


@pytest.fixture
def _stock_store() -> Iterator[None]:
    yield
    pyro.clear_param_store()


class TestInPyro:
    """The program and the objective are Pyro's too."""

    def test_the_likelihood(self) -> None:
        p = parameters()
        exact = (p["prior"].log_softmax(-1) + normal(p["mean"]).log_prob(X[:, None])).logsumexp(-1)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", categorical(p["prior"]))
                pyro.sample("x", normal(p["mean"][k]), obs=x)

        found = log_likelihood(marginal(model), no_guide, X, num_samples=2)
        torch.testing.assert_close(found.value, exact)

    def test_a_fit(self) -> None:
        x = torch.cat([torch.full((30,), -1.5), torch.full((70,), 1.5)]) + 0.1 * torch.randn(100)
        model = Components()
        exact = -Enumerated().loss(model, no_guide, x) / 100
        found = fit(model, no_guide, x, objective=Enumerated(), epochs=20, batch_size=25)
        assert found.history[-1].elbo > exact
        after = -Enumerated().loss(found.model, no_guide, x) / 100
        assert after > exact

    @pytest.mark.usefixtures("_stock_store")
    @pytest.mark.parametrize("route", ["objective", "program"])
    def test_stock_svi(self, route: str) -> None:
        model, x = Components(), torch.randn(20)
        adam = PyroOptim(torch.optim.Adam, {"lr": 0.1})
        if route == "objective":
            svi = SVI(model, no_guide, adam, Enumerated())
        else:
            svi = SVI(marginal(model), no_guide, adam, Trace_ELBO())
        losses = [svi.step(x) for _ in range(30)]
        assert losses[-1] < losses[0] - 0.5

    @pytest.mark.usefixtures("_stock_store")
    @pytest.mark.parametrize("whole", [False, True])
    def test_an_autoguide(self, whole: bool) -> None:
        def model(x: Tensor) -> None:
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(t + 4 * k, 0.5), obs=x)

        x = torch.tensor([0.9, 1.1, 5.0, 1.0, 4.9])
        guide = AutoNormal(marginal(model) if whole else poutine.block(model, hide=["k"]))
        step = Step(model, guide, Enumerated(ELBO(4)), adam, compiled=False)
        for _ in range(150):
            step(x)
        fitted: Any = step.guide
        assert fitted.median(x)["t"].item() == pytest.approx(0.98, abs=0.1)

    def test_hamiltonian_monte_carlo(self) -> None:
        """Its own enumeration finds nothing left to do."""
        x = torch.tensor([0.9, 1.1, 5.0, 1.0, 4.9])

        def model() -> None:
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(t + 4 * k, 0.5), obs=x)

        chain = MCMC(NUTS(marginal(model)), 40, 40, disable_progbar=True)
        chain.run()
        draws = chain.get_samples()
        assert set(draws) == {"t"}
        assert draws["t"].mean().item() == pytest.approx(0.93, abs=0.2)


class TestCompiled:
    """One graph, and the eager trajectory."""

    def both(self, make: Callable[[bool], Step], *args: Any, steps: int = 20) -> list[Step]:
        pair = []
        for compiled in (False, True):
            step = make(compiled)
            pyro.set_rng_seed(2)
            for _ in range(steps):
                step(*args)
            assert step.fallback_reason is None
            pair.append(step)
        torch.testing.assert_close(values(pair[0]), values(pair[1]), rtol=2e-4, atol=2e-4)
        return pair

    def test_a_mixture(self) -> None:
        """Twenty steps, also beside the mixture whose components were summed by hand."""

        class Planar(Mixture):
            def forward(self, x: Tensor) -> None:
                with data_plate(len(x), None):
                    k = pyro.sample("component", dist.Categorical(logits=self.logits))
                    scale = self.log_scale[k].exp()
                    pyro.sample("x", dist.Normal(self.loc[k], scale).to_event(1), obs=x)

        x = torch.randn(40, 2) * 2

        def make(compiled: bool, kind: Any = Planar) -> Step:
            pyro.set_rng_seed(1)
            objective = Enumerated() if kind is Planar else ELBO()
            return Step(kind(), no_guide, objective, adam, compiled=compiled)

        ours = self.both(make, x)[1]
        by_hand = make(False, Mixture)
        for _ in range(20):
            by_hand(x)
        torch.testing.assert_close(values(ours), values(by_hand), rtol=2e-4, atol=2e-4)

    @pytest.mark.slow
    @inductor.patch(fallback_random=True)
    def test_everything_at_once(self) -> None:
        """Particles, a minibatch, masks, chains, inner plates and latents of the guide."""

        def model(x: Tensor) -> None:
            mean = pyro.param("mean", torch.tensor([-1.0, 0.5, 1.5]))
            move = pyro.param("move", torch.eye(3))
            with pyro.plate("data", 12, subsample=torch.arange(4)):
                k = pyro.sample("k0", dist.Categorical(logits=mean))
                z = pyro.sample("z", dist.Normal(mean[k], 1.0))
                with mask(True, True, False, True):
                    k = pyro.sample("k1", dist.Categorical(logits=move[k]))
                    pyro.sample("x", dist.Normal(z + mean[k], 1.0), obs=x[0])
                with pyro.plate("words", 2, dim=-2):
                    j = pyro.sample("j", dist.Bernoulli(logits=z))
                    pyro.sample("y", dist.Normal(j + mean[k], 1.0), obs=x)

        def guide(x: Tensor) -> None:
            slope = pyro.param("slope", torch.tensor(0.3))
            with pyro.plate("data", 12, subsample=torch.arange(4)):
                pyro.sample("z", dist.Normal(slope * x[0], 0.8))

        x = torch.linspace(-1, 2, 8).reshape(2, 4)
        self.both(lambda c: Step(model, guide, Enumerated(ELBO(3)), sgd, compiled=c), x)


class TestTraceable:
    """TRAPS row 15: enumeration without ``mask.all()`` and ``masked_select``."""

    def graph(self, elbo: Any) -> Any:
        def loss(mean: Tensor) -> Tensor:
            return elbo.differentiable_loss(model, no_guide, mean)

        def model(mean: Tensor) -> None:
            with data(), poutine.mask(mask=mean < 100):  # type: ignore[call-overload]
                k = pyro.sample("k", dist.Bernoulli(mean.sigmoid()))
                pyro.sample("x", dist.Normal(k, 1.0), obs=X.float())

        with pyro.validation_enabled(False):
            return make_fx(loss)(torch.zeros(3))

    @pytest.mark.xfail(reason="TraceEnum_ELBO asks tensors for their values", raises=RuntimeError)
    def test_stock(self) -> None:
        self.graph(MarkedTraceEnum())

    def test_ours(self) -> None:
        graph = self.graph(Enumerated())
        mean = torch.tensor([0.3, -1.0, 0.7])
        fits = [dist.Normal(k, 1.0).log_prob(X.float()) for k in (0.0, 1.0)]
        p = mean.sigmoid()
        exact = torch.logaddexp(fits[0] + (1 - p).log(), fits[1] + p.log()).sum()
        torch.testing.assert_close(graph(mean), -exact)


class MarkedTraceEnum(TraceEnum_ELBO):
    """Stock enumeration, told to enumerate in the model."""

    def __init__(self) -> None:
        super().__init__(max_plate_nesting=1)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any) -> Any:
        return super().differentiable_loss(config_enumerate(model), guide, *args)
