"""``ELBO(summed=...)``: latents summed over, beside sums by hand and stock Pyro."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer import ELBO, AnalyticKL, MonteCarloKL, Objective
from pyro_models.programs import announce, data_plate
from tests.infer.step_cases import make, values
from tests.unchecked import unchecked

pytestmark = pytest.mark.usefixtures("double")

X = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=torch.float64)
CLASSES, NOISE = 3, 0.8


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(x: Tensor, loc: Tensor, scale: Tensor | float) -> Tensor:
    """Log-density of a normal, written out."""
    scale = torch.as_tensor(scale)
    return -((x - loc) ** 2) / (2 * scale**2) - scale.log() - math.log(2 * math.pi) / 2


def grads(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(loss, parameters))


class First(nn.Module):
    """y, then z | y, then x | z, y, as a classifier's guide has it."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.3, 0.5]))
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.shift = nn.Parameter(torch.tensor([0.3, 0.0, -0.4]))

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "model")
        with data_plate(len(x), num_data):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0))
            pyro.sample("x", dist.Normal(1.3 * z + self.shift[y], NOISE), obs=x)


class FirstGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.5, -0.2, 0.1]))
        self.gain = nn.Parameter(torch.tensor([0.4, 0.6, 0.5]))
        self.raw = nn.Parameter(torch.tensor([-0.5, -0.3, -0.7]))

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "guide")
        with data_plate(len(x), num_data):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * self.slope))
            pyro.sample("z", dist.Normal(self.gain[y] * x, self.raw[y].exp()))


def first_by_hand(model: First, guide: FirstGuide, eps: Tensor, analytic: bool) -> Tensor:
    """The ELBO of the data from standard normal draws ``(classes, particles, data)``."""
    total = torch.zeros(())
    log_q = (X[:, None] * guide.slope).log_softmax(-1)
    log_p = model.logits.log_softmax(-1)
    for k in range(CLASSES):
        loc, scale = guide.gain[k] * X, guide.raw[k].exp()
        z = loc + scale * eps[k]
        fit = normal(X, 1.3 * z + model.shift[k], NOISE)
        if analytic:
            kl = (scale**2 + (loc - model.loc[k]) ** 2 - 1) / 2 - guide.raw[k]
        else:
            kl = normal(z, loc, scale) - normal(z, model.loc[k], 1.0)
        inner = log_p[k] - log_q[:, k] + fit - kl
        total = total + (log_q[:, k].exp() * inner).mean(0).sum()
    return total


class TestClassThenCode:
    @pytest.mark.parametrize("particles", [1, 4])
    @pytest.mark.parametrize("kl", [AnalyticKL(), MonteCarloKL()])
    def test_value_and_gradient_are_the_sum_by_hand(
        self, particles: int, kl: AnalyticKL | MonteCarloKL
    ) -> None:
        model, guide = First(), FirstGuide()
        objective = ELBO(particles, kl, summed=("y",))
        objective.loss(model, guide, X)  # shapes are looked up at the first run
        pyro.set_rng_seed(3)
        loss = objective.differentiable_loss(model, guide, X)
        pyro.set_rng_seed(3)
        eps = torch.randn(CLASSES, particles, len(X))
        hand = first_by_hand(model, guide, eps, isinstance(kl, AnalyticKL))
        torch.testing.assert_close(-loss, hand)
        torch.testing.assert_close(grads(-loss, model, guide), grads(hand, model, guide))

    def test_a_minibatch_counts_for_all_data(self) -> None:
        model, guide = First(), FirstGuide()
        objective = ELBO(summed=("y",))
        losses = []
        for num_data in (None, 50):
            pyro.set_rng_seed(3)
            losses.append(objective.differentiable_loss(model, guide, X, num_data=num_data))
        torch.testing.assert_close(losses[1], 10 * losses[0])
        torch.testing.assert_close(
            grads(losses[1], guide), [10 * g for g in grads(losses[0], guide)]
        )

    def test_terms_by_site_add_up(self) -> None:
        model, guide = First(), FirstGuide()
        pyro.set_rng_seed(3)
        terms = ELBO(summed=("y",)).terms(model, guide, X)
        assert terms.analytic == ("y", "z")
        log_q = (X[:, None] * guide.slope).log_softmax(-1)
        kl = (log_q.exp() * (log_q - model.logits.log_softmax(-1))).sum(-1).mean()
        torch.testing.assert_close(terms.kl["y"], kl.detach())
        scale = guide.raw.exp()
        given = (scale**2 + (guide.gain * X[:, None] - model.loc) ** 2 - 1) / 2 - guide.raw
        kl = (log_q.exp() * given).sum(-1).mean()
        torch.testing.assert_close(terms.kl["z"], kl.detach())
        pyro.set_rng_seed(3)
        loss = ELBO(summed=("y",)).loss(model, guide, X)
        assert terms.elbo.item() == pytest.approx(-loss / len(X))
        assert terms.elbo == terms.reconstruction - sum(terms.kl.values())

    def test_the_mean_is_that_of_draws(self) -> None:
        """Each of 300 batches of draws against one closed form: E log N(x; W z + b)."""
        model, guide = First(), FirstGuide()
        log_q = (X[:, None] * guide.slope).log_softmax(-1)
        loc, scale = guide.gain * X[:, None], guide.raw.exp()
        fit = normal(X[:, None], 1.3 * loc + model.shift, NOISE) - (1.3 * scale / NOISE) ** 2 / 2
        kl = (scale**2 + (loc - model.loc) ** 2 - 1) / 2 - guide.raw
        inner = model.logits.log_softmax(-1) - log_q + fit - kl
        exact = (log_q.exp() * inner).sum().item()
        for objective in (ELBO(20, summed=("y",)), ELBO(20), ELBO(20, MonteCarloKL(), ("y",))):
            draws = torch.tensor([-objective.loss(model, guide, X) for _ in range(300)])
            assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / math.sqrt(300)


class Last(nn.Module):
    """Component, then z | component, then x | z; the guide draws z first."""

    def __init__(self, rows: list[int] | None = None) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.rows = [] if rows is None else rows

    def forward(self, x: Tensor) -> None:
        announce(self, "model")
        with data_plate(len(x), None):
            k = pyro.sample("component", dist.Categorical(torch.ones(CLASSES)))
            z = pyro.sample("z", dist.Normal(self.loc[k], 0.6))
            self.rows.append(z.numel())
            pyro.sample("x", dist.Normal(z.tanh(), NOISE), obs=x)


class LastGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.4))
        self.slope = nn.Parameter(torch.tensor([0.5, -0.2, 0.1]))

    def forward(self, x: Tensor) -> None:
        announce(self, "guide")
        with data_plate(len(x), None):
            z = pyro.sample("z", dist.Normal(self.gain * x, 0.5))
            pyro.sample("component", dist.Categorical(logits=z[..., None] * self.slope))


class TestCodeThenComponent:
    @pytest.mark.parametrize("particles", [1, 4])
    def test_value_and_gradient_are_the_sum_by_hand(self, particles: int) -> None:
        rows: list[int] = []
        model, guide = Last(rows), LastGuide()
        objective = ELBO(particles, summed=("component",))
        objective.loss(model, guide, X)
        rows.clear()
        pyro.set_rng_seed(3)
        loss = objective.differentiable_loss(model, guide, X)
        assert rows == [particles * len(X)]  # the decoder ran once, not for each component
        pyro.set_rng_seed(3)
        z = guide.gain * X + 0.5 * torch.randn(particles, len(X))
        log_q = (z[..., None] * guide.slope).log_softmax(-1)
        each = normal(z[..., None], model.loc, 0.6) - math.log(CLASSES) - log_q
        hand = normal(X, z.tanh(), NOISE) - normal(z, guide.gain * X, 0.5)
        hand = (hand + (log_q.exp() * each).sum(-1)).mean(0).sum()
        torch.testing.assert_close(-loss, hand)
        torch.testing.assert_close(grads(-loss, model, guide), grads(hand, model, guide))

    def test_the_closed_form_of_the_code_would_be_wrong(self) -> None:
        """z's prior depends on the component, which q draws from z: KL given it is no term."""
        terms = ELBO(summed=("component",)).terms(Last(), LastGuide(), X)
        assert terms.analytic == ("component",)
        assert set(terms.kl) == {"component", "z"}

    def test_stock_svi_follows_the_step(self) -> None:
        ours, stock = (Last(), LastGuide()), (Last(), LastGuide())
        step = make(*ours, objective=ELBO(2, summed=("component",)))
        optimizer = ClippedAdam({"lr": 0.05})
        svi = SVI(*stock, optimizer, ELBO(2, summed=("component",)))
        for pair, run in ((ours, step), (stock, svi.step)):
            ELBO(2, summed=("component",)).loss(*pair, X)
            pyro.set_rng_seed(5)
            for _ in range(5):
                run(X)
        torch.testing.assert_close(ours[0].loc, stock[0].loc)
        torch.testing.assert_close(ours[1].slope, stock[1].slope)
        assert (ours[0].loc - Last().loc).abs().min() > 0.01

    @pytest.mark.slow
    @inductor.patch(fallback_random=True)
    def test_the_compiled_step_follows_the_eager_one(self) -> None:
        for model, guide, summed in ((Last, LastGuide, "component"), (First, FirstGuide, "y")):
            pairs = [(model(), guide()) for _ in range(2)]
            objective = ELBO(2, summed=(summed,))
            steps = [make(*pairs[i], objective=objective, compiled=bool(i)) for i in range(2)]
            for step in steps:
                pyro.set_rng_seed(5)
                for _ in range(20):
                    step(X)
                assert step.fallback_reason is None
            torch.testing.assert_close(values(steps[0]), values(steps[1]))


class Chain(nn.Module):
    """A class for all data, a label a datum given it, a switch for each of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.table = nn.Parameter(torch.tensor([[0.1, 0.5, -0.4], [0.0, -0.3, 0.6]]))
        self.means = nn.Parameter(torch.tensor([[-1.0, 0.2], [0.5, 1.0], [2.0, -0.5]]))

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "model")
        top = pyro.sample("top", dist.Bernoulli(logits=self.top[0])).long()
        features = pyro.plate("features", 2, dim=-2)
        with data_plate(len(x), num_data):
            label = pyro.sample("label", dist.Categorical(logits=self.table[top]))
            with features:
                switch = pyro.sample("switch", dist.Bernoulli(probs=0.2 + 0.2 * label)).long()
                pyro.sample("x", dist.Normal(self.means[label, switch] + top, NOISE), obs=x.T)


class ChainGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Parameter(torch.tensor(0.4))
        self.slope = nn.Parameter(torch.tensor([[0.5, -0.2, 0.1], [0.2, 0.3, -0.6]]))
        self.switch = nn.Parameter(torch.tensor([0.3, -0.1, 0.8]))

    def forward(self, x: Tensor, num_data: int | None = None) -> None:
        announce(self, "guide")
        top = pyro.sample("top", dist.Bernoulli(logits=self.top)).long()
        features = pyro.plate("features", 2, dim=-2)
        with data_plate(len(x), num_data):
            logits = self.slope[top] * x.sum(-1, keepdim=True)
            label = pyro.sample("label", dist.Categorical(logits=logits))
            with features:
                pyro.sample("switch", dist.Bernoulli(logits=self.switch[label] * x.T))


class TestStockEnumeration:
    """TraceEnum_ELBO with the guide enumerated in parallel is exact where all is discrete."""

    data = torch.stack([X, X.flip(0) - 0.5], -1)

    @pytest.mark.parametrize("particles", [1, 3])
    @pytest.mark.parametrize("kl", [AnalyticKL(), MonteCarloKL()])
    @pytest.mark.parametrize("num_data", [None, 20])
    def test_three_latents_in_nested_plates(
        self, particles: int, kl: AnalyticKL | MonteCarloKL, num_data: int | None
    ) -> None:
        model, guide = Chain(), ChainGuide()
        ours = ELBO(particles, kl, summed=("label", "switch", "top"))
        loss = ours.differentiable_loss(model, guide, self.data, num_data=num_data)
        stock = TraceEnum_ELBO(max_plate_nesting=2)
        theirs = stock.differentiable_loss(
            model, config_enumerate(guide), self.data, num_data=num_data
        )
        torch.testing.assert_close(loss, theirs)
        torch.testing.assert_close(grads(loss, model, guide), grads(theirs, model, guide))

    def test_what_is_not_summed_keeps_its_score_function(self) -> None:
        """With "top" drawn, the mean gradient is that of the sum over it."""
        model, guide = Chain(), ChainGuide()
        exact = ELBO(summed=("top", "label", "switch"))
        truth = grads(exact.differentiable_loss(model, guide, self.data), model, guide)
        partly = ELBO(10, summed=("label", "switch"))
        draws = [
            grads(partly.differentiable_loss(model, guide, self.data), model, guide)
            for _ in range(400)
        ]
        for place, expected in enumerate(truth):
            found = torch.stack([draw[place] for draw in draws])
            error = found.std(0) / math.sqrt(len(found)) + 1e-12
            assert ((found.mean(0) - expected).abs() < 4.5 * error).all()
        assert torch.stack([draw[-3] for draw in draws]).std() > 0


def partly_labelled(seen: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """A pair whose label is known where ``seen``, by Pyro's idiom."""
    logits, means = torch.tensor([0.2, -0.3, 0.5]), torch.tensor([-1.0, 0.5, 2.0])

    def model(x: Tensor, y: Tensor) -> None:
        with data_plate(len(x), None):
            fn = dist.Categorical(logits=logits)
            label = pyro.sample("y", fn, obs=y, obs_mask=seen)
            pyro.sample("x", dist.Normal(means[label], NOISE), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        slope = torch.tensor([0.5, -0.2, 0.1])
        with data_plate(len(x), None), poutine.mask(mask=~seen):
            pyro.sample("y_unobserved", dist.Categorical(logits=slope * x[:, None]))

    return model, guide


class TestMask:
    @pytest.mark.parametrize("kl", [AnalyticKL(), MonteCarloKL()])
    def test_labels_that_are_known(self, kl: AnalyticKL | MonteCarloKL) -> None:
        seen = torch.tensor([True, False, True, False, False])
        y = torch.tensor([2, 0, 1, 0, 0])
        loss = ELBO(kl=kl, summed=("y_unobserved",)).loss(*partly_labelled(seen), X, y)
        log_p = torch.tensor([0.2, -0.3, 0.5]).log_softmax(-1)
        joint = log_p + normal(X[:, None], torch.tensor([-1.0, 0.5, 2.0]), NOISE)
        log_q = (torch.tensor([0.5, -0.2, 0.1]) * X[:, None]).log_softmax(-1)
        unknown = (log_q.exp() * (joint - log_q)).sum(-1)
        known = joint[torch.arange(len(X)), y]
        assert -loss == pytest.approx(torch.where(seen, known, unknown).sum().item())

    def test_a_value_of_probability_zero_counts_nothing(self) -> None:
        logits = nn.Parameter(torch.tensor([0.0, 1.0, -torch.inf]))

        def model(x: Tensor) -> None:
            with data_plate(len(x), None):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
                pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with data_plate(len(x), None):
                pyro.sample("k", dist.Categorical(logits=logits))

        log_q = logits[:2].log_softmax(-1)
        each = math.log(0.5) + normal(X[:, None], torch.arange(2.0), 1.0) - log_q
        hand = (log_q.exp() * each).sum()
        loss = ELBO(kl=MonteCarloKL(), summed=("k",)).differentiable_loss(model, guide, X)
        torch.testing.assert_close(-loss, hand)
        gradient = torch.autograd.grad(-loss, logits)[0]
        torch.testing.assert_close(gradient, torch.autograd.grad(hand, logits)[0])


class TestRefusals:
    def refused(self, match: str, objective: Objective, model: Any, guide: Any) -> None:
        with pytest.raises((OptionError, SiteMismatchError), match=match):
            objective.loss(model, guide, X)

    def test_no_tuple(self) -> None:
        with unchecked(), pytest.raises(OptionError, match='write \\("component",\\)'):
            ELBO(summed="component")  # type: ignore[arg-type]

    def test_a_name_that_the_guide_does_not_sample(self) -> None:
        for name in ("component", "x"):
            self.refused(
                f"'{name}', which the guide does not sample; its sites are 'y', 'z'",
                ELBO(summed=("y", name)),
                First(),
                FirstGuide(),
            )

    def test_a_latent_that_is_continuous(self) -> None:
        self.refused("'z', a Normal", ELBO(summed=("z",)), First(), FirstGuide())

    def test_several_in_one_event(self) -> None:
        def program(x: Tensor, obs: bool = False) -> None:
            with data_plate(len(x), None):
                z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
                if obs:
                    pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

        self.refused(
            "'z', a Independent of event shape \\(2,\\)",
            ELBO(summed=("z",)),
            lambda x: program(x, True),
            program,
        )

    def test_a_latent_without_path_that_is_drawn_for_each_value(self) -> None:
        def program(x: Tensor, obs: bool = False) -> None:
            with data_plate(len(x), None):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                u = pyro.sample("u", dist.Bernoulli(0.3 + 0.2 * k))
                if obs:
                    pyro.sample("x", dist.Normal(u + k, 1.0), obs=x)

        self.refused(
            "'u' is a Bernoulli, whose draws have no path", ELBO(summed=("k",)),
            lambda x: program(x, True), program,
        )  # fmt: skip
        both = ELBO(summed=("k", "u")).loss(lambda x: program(x, True), program, X)
        assert math.isfinite(both)

    def test_a_site_that_gathers_the_plate_of_a_summed_latent(self) -> None:
        def program(x: Tensor, obs: bool = False) -> None:
            with pyro.plate("parts", 2, dim=-2):
                k = pyro.sample("k", dist.Bernoulli(torch.tensor([[0.5], [0.4]])))
            with data_plate(len(x), None):
                if obs:
                    pyro.sample("x", dist.Normal(k.sum(-2, keepdim=True), 1.0), obs=x)

        self.refused(
            "'x' depends on 'k', which is summed over, but lies outside its plate \\['parts'\\]",
            ELBO(summed=("k",)),
            lambda x: program(x, True),
            program,
        )


def test_the_repr_names_the_latents() -> None:
    assert repr(ELBO()) == "ELBO(num_particles=1, kl=AnalyticKL())"
    assert repr(ELBO(summed=("k",))).endswith("kl=AnalyticKL(), summed=('k',))")


@pytest.mark.slow
def test_a_latent_drawn_instead_has_the_same_bound() -> None:
    """Stock Trace_ELBO draws the label; its mean over draws is the sum."""
    model, guide = Chain(), ChainGuide()
    data = TestStockEnumeration.data
    exact = ELBO(summed=("top", "label", "switch")).loss(model, guide, data)
    draws = torch.tensor([Trace_ELBO().loss(model, guide, data) for _ in range(2000)])
    assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / math.sqrt(len(draws))
