"""Which densities depend on which draws, however the draw gets there."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import spline_coupling
from torch import Tensor, nn

from pyro_models.infer import LeaveOneOut, ScoreFunction, dependencies
from pyro_models.infer.dependencies import dependents
from tests.contract.cases import CASES
from tests.infer.gradient_cases import DTYPE
from tests.infer.test_gradients import assert_mean


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 2


def written(z: Tensor) -> Tensor:
    loc = torch.zeros(3)
    loc[0] = z
    return loc.sum()


# Seen through, so that the other latent's site stays apart.
CLEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda z: z,
    "index": lambda z: torch.arange(5.0)[(z > 0).long()],
    "where": lambda z: torch.where(z > 0, torch.tensor(1.0), torch.tensor(2.0)),
    "custom function": Twice.apply,
    "written in place": written,
    "added in place": lambda z: torch.zeros(()).add_(z),
    "out": lambda z: torch.mul(z, 2, out=torch.zeros(())),
    "vmap": lambda z: torch.vmap(lambda a: a * 2)(z.expand(3)).sum(),
    "detached": lambda z: z.detach(),
    "sorted": lambda z: z.expand(3).sort()[0][0],
}
# Lost, so that everything may depend.
HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda z: torch.tensor(z.item()),
    "branch": lambda z: torch.tensor(1.0 if z > 0 else 2.0),
    "equal": lambda z: torch.tensor(1.0 if torch.equal(z, torch.zeros(())) else 2.0),
    "numpy": lambda z: torch.as_tensor(z.numpy() * 1),
    "tolist": lambda z: torch.tensor(z.tolist()),
    "shape": lambda z: torch.tensor(float(len((z > 0).reshape(1).nonzero()))),
}


def survey(through: Callable[[Tensor], Tensor]) -> dict[str, frozenset[str]]:
    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(through(z), 1.0), obs=torch.tensor(1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(1.0))

    return dependents(model, guide, (), {})


@pytest.mark.parametrize("how", CLEAR)
def test_seen_through(how: str) -> None:
    assert survey(CLEAR[how]) == {"z": frozenset("zx"), "w": frozenset("wy")}


@pytest.mark.parametrize("how", HIDDEN)
def test_hidden(how: str) -> None:
    assert survey(HIDDEN[how]) == {}


def chain(length: int, last: bool = True) -> None:
    z = torch.zeros(())
    for i in range(length):
        z = pyro.sample(f"z{i}", dist.Normal(z, 1.0))
    pyro.factor("f", z if last else torch.zeros(()))


def test_arguments_tell_structures_apart() -> None:
    assert dependents(chain, chain, (2, False), {})["z0"] == {"z0", "z1"}
    assert dependents(chain, chain, (3, True), {})["z0"] == {"z0", "z1", "z2", "f"}
    assert dependents(chain, chain, (3, True), {})["z2"] == {"z2", "f"}


def test_branches_on_data_are_not_remembered() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if x > 0 else 0.0 * x, 1.0), obs=x)

    assert dependents(model, guide, (torch.tensor(-1.0),), {})["z"] == {"z"}
    assert dependents(model, guide, (torch.tensor(1.0),), {})["z"] == {"z", "x"}


def test_masks_depend_too() -> None:
    def guide() -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with poutine.mask(mask=k > 0):  # type: ignore[call-overload]
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    assert dependents(model, guide, (), {})["k"] == {"k", "x"}


def test_nothing_is_left_behind() -> None:
    flag, state = torch.distributions.Distribution._validate_args, torch.get_rng_state()
    survey(CLEAR["itself"])
    survey(HIDDEN["item"])
    assert torch.distributions.Distribution._validate_args is flag
    assert torch.equal(torch.get_rng_state(), state)


def two_coins(coupled: Any) -> None:
    """The second coin pays 3, if coupled only beside the first."""
    a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5, dtype=DTYPE)))
    b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5, dtype=DTYPE)))
    pyro.factor("f", 3 * b * (a if coupled else 1.0))


def coins_guide() -> None:
    logits = pyro.param("logits", torch.zeros(2, dtype=DTYPE))
    pyro.sample("a", dist.Bernoulli(logits=logits[0]))
    pyro.sample("b", dist.Bernoulli(logits=logits[1]))


class Inner(nn.Module):
    """Where a switch may be."""

    stage: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.coupled = False
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("stage", torch.tensor(0))


class Coins(nn.Module):
    def __init__(self, switch: Callable[[Inner], Any]) -> None:
        super().__init__()
        self.inner = nn.Sequential(Inner())
        self.switch = switch

    def forward(self) -> None:
        two_coins(self.switch(self.inner[0]))  # type: ignore[arg-type]

    def program(self) -> None:
        """The same by another name."""
        self.forward()


def change(coins: Coins) -> None:
    inner: Any = coins.inner[0]
    inner.coupled = True
    with torch.no_grad():
        inner.stage.fill_(1)
        inner.weight.fill_(1.0)


SWITCHES: dict[str, Callable[[Inner], Any]] = {
    "attribute": lambda inner: inner.coupled,
    "buffer": lambda inner: inner.stage > 0,
    "parameter": lambda inner: inner.weight.item() > 0,
}
COUPLED = {"a": frozenset("af"), "b": frozenset("bf")}
APART = COUPLED | {"a": frozenset("a")}

switched_on = False


@pytest.fixture
def _store() -> Iterator[None]:
    yield
    pyro.clear_param_store()


@pytest.fixture
def surveys(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each."""
    done: list[Any] = []
    survey_: Any = dependencies._survey

    def counted(*args: Any) -> Any:
        done.append(args)
        return survey_(*args)

    monkeypatch.setattr(dependencies, "_survey", counted)
    return done


@pytest.mark.usefixtures("_store")
class TestProgramsThatChange:
    @pytest.mark.parametrize("how", ["module", "method", "handler", "closure"])
    @pytest.mark.parametrize("switch", SWITCHES)
    def test_a_switch_in_a_module(self, switch: str, how: str) -> None:
        coins = Coins(SWITCHES[switch])
        programs: dict[str, Callable[[], None]] = {
            "module": coins,
            "method": coins.program,
            "handler": poutine.scale(coins, scale=2.0),
            "closure": lambda: coins(),
        }
        model = programs[how]
        assert dependents(model, coins_guide, (), {}) == APART
        change(coins)
        assert dependents(model, coins_guide, (), {}) == COUPLED

    def test_a_variable_around_a_function(self) -> None:
        coupled: Any = False

        def model() -> None:
            two_coins(coupled)

        assert dependents(model, coins_guide, (), {}) == APART
        coupled = True
        assert dependents(model, coins_guide, (), {}) == COUPLED

    def test_an_attribute_of_an_object(self) -> None:
        class Plain:
            coupled = False

            def model(self) -> None:
                two_coins(self.coupled)

            __call__ = model

        coins = Plain()
        method = coins.model
        for model in (coins, method):
            coins.coupled = False
            assert dependents(model, coins_guide, (), {}) == APART
            coins.coupled = True
            assert dependents(model, coins_guide, (), {}) == COUPLED

    def test_a_tensor_around_a_function(self) -> None:
        stage = torch.zeros(())
        model: Any = lambda: two_coins(stage > 0)  # noqa: E731
        assert dependents(model, coins_guide, (), {}) == APART
        stage.fill_(1.0)
        assert dependents(model, coins_guide, (), {}) == COUPLED

    def test_a_global_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def model() -> None:
            (lambda: two_coins(switched_on))()

        assert dependents(model, coins_guide, (), {}) == APART
        monkeypatch.setitem(globals(), "switched_on", True)
        assert dependents(model, coins_guide, (), {}) == COUPLED

    def test_a_parameter_in_the_store(self) -> None:
        def model() -> None:
            two_coins(pyro.param("stage", torch.tensor(0.0)) > 0)

        pyro.param("stage", torch.tensor(0.0))
        assert dependents(model, coins_guide, (), {}) == APART
        with torch.no_grad():
            pyro.param("stage").fill_(1.0)
        assert dependents(model, coins_guide, (), {}) == COUPLED

    def test_a_module_among_the_arguments(self) -> None:
        coins = Coins(SWITCHES["attribute"])

        def model(part: Coins) -> None:
            part()

        def guide(part: Coins) -> None:
            coins_guide()

        assert dependents(model, guide, (coins,), {}) == APART
        change(coins)
        assert dependents(model, guide, (coins,), {}) == COUPLED

    @pytest.mark.parametrize("switch", ["attribute", "buffer"])
    def test_the_gradient_follows(self, switch: str) -> None:
        """3 q(a) q(b) has the slope 3 / 8 in either logit at nought, and 3 q(b) none in a's."""
        coins, objective = Coins(SWITCHES[switch]), ScoreFunction(50, LeaveOneOut())

        def draws() -> Tensor:
            rows = []
            for _ in range(60):
                coins_guide()
                leaf = pyro.get_param_store()._params["logits"]
                surrogate = objective.estimate(objective.weights(coins, coins_guide, (), {}))
                rows.append(torch.autograd.grad(surrogate.surrogate, leaf)[0])
            return torch.stack(rows)

        assert_mean(draws(), torch.tensor([0.0, 0.75], dtype=DTYPE))
        change(coins)
        assert_mean(draws(), torch.tensor([0.375, 0.375], dtype=DTYPE))


class Usual(nn.Module):
    """What an ordinary program has: parameters in densities, layers with buffers, masks."""

    shown: Tensor

    def __init__(self, guide: bool) -> None:
        super().__init__()
        self.guide = guide
        self.covariance = nn.Parameter(torch.eye(2))
        self.weights = nn.Parameter(torch.ones(3))
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))
        self.out = nn.Linear(4, 2)
        self.register_buffer("shown", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> None:
        covariance = self.covariance @ self.covariance.T
        t = pyro.sample("t", dist.MultivariateNormal(torch.zeros(2), covariance))
        p = pyro.sample("p", dist.Dirichlet(self.weights.exp()))
        pyro.sample("L", dist.LKJCholesky(2, self.weights[0].exp()))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(p))
            h = torch.where(self.shown, self.out(self.net(x)), 0.0)
            if not self.guide:
                pyro.sample("x", dist.MultivariateNormal(h + t, scale_tril=covariance), obs=x)


class TestRemembered:
    """What is known of a pair is not looked for at every step."""

    X = torch.linspace(-1.0, 1.0, 6).reshape(3, 2)

    def test_usual_programs(self, surveys: list[Any]) -> None:
        model, guide = Usual(guide=False), Usual(guide=True)
        for _ in range(3):
            found = dependents(model, guide, (self.X,), {})
        assert found == {"t": {"t", "x"}, "p": {"p", "k"}, "L": {"L"}, "k": {"k"}}
        assert len(surveys) == 1
        model.eval()
        dependents(model, guide, (self.X,), {})
        assert len(surveys) == 2

    def test_flows(self, surveys: list[Any]) -> None:
        """They remember their last value, which is at first none."""
        flow = spline_coupling(2)

        def program(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                pyro.sample("z", dist.TransformedDistribution(base, [flow]))

        for _ in range(4):
            dependents(program, program, (self.X,), {})
        assert len(surveys) == 2

    @pytest.mark.parametrize(
        "name",
        ["vae", "belief_network", "gmvae", "stick_breaking_vae", "bayesian_gaussian_mixture"],
    )
    def test_ready_pairs(self, surveys: list[Any], name: str) -> None:
        pair, x = CASES[name].make()
        for _ in range(3):
            assert dependents(pair.model, pair.guide, (x,), {})
        assert len(surveys) == 1
