"""Weights by latent, free bits and KL by dimension, each held against a formula by hand."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_models.distributions.kumaraswamy import Kumaraswamy
from pyro_models.errors import OptionError
from pyro_models.infer import (
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    Beta,
    CyclicalWarmup,
    DoublyReparameterized,
    EachDimension,
    EachGroup,
    Enumerated,
    FreeBits,
    LinearWarmup,
    MonteCarloKL,
    Objective,
    Remedies,
    RenyiELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    Step,
    ThermodynamicELBO,
    Validation,
    WholeSite,
    log_weights,
)
from pyro_models.infer import compiled as compiled_module
from pyro_models.infer.diagnostics import kl_by_dimension
from pyro_models.infer.divergences import by_dimension
from pyro_models.infer.record import KLWeight
from pyro_models.infer.schedules import Progress
from pyro_models.programs import data_plate
from tests.infer.fit_cases import fit, local_guide, local_model, no_guide, normal_data
from tests.infer.step_cases import sgd
from tests.unchecked import unchecked

LOC = torch.tensor([[0.2, 1.5], [-0.4, -2.0], [0.0, 1.0]], dtype=torch.float64)
SCALE = torch.tensor([0.9, 0.5], dtype=torch.float64)
X = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]], dtype=torch.float64)

Pair = tuple[Callable[..., None], Callable[..., None], dict[str, Tensor]]


def two_latents(num_data: int = 3) -> Pair:
    """w ~ N(0, I) in 2-D, z | w ~ N(w, 4 I), x ~ N(z + w, 1); a normal guide for each."""
    parameters = {
        "w loc": LOC.clone().requires_grad_(),
        "w log_scale": SCALE.log().requires_grad_(),
        "z loc": (LOC / 2).requires_grad_(),
        "z log_scale": torch.full((2,), -0.3, dtype=torch.float64, requires_grad=True),
    }

    def model(x: Tensor) -> None:
        with data_plate(len(x), num_data):
            w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(w, 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with data_plate(len(x), num_data):
            for name in "wz":
                loc, scale = parameters[f"{name} loc"], parameters[f"{name} log_scale"].exp()
                pyro.sample(name, dist.Normal(loc[: len(x)], scale).to_event(1))

    return model, guide, parameters


def normal_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL of N(loc, scale²) from N(0, 1)."""
    return (loc.square() + scale.square() - 1) / 2 - scale.log()


def gradients(
    objective: Objective, pair: Pair, kl_weight: KLWeight = 1.0, size: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """Gradient of the surrogate by parameter, at draws that depend on the seed alone."""
    model, guide, parameters = pair
    pyro.set_rng_seed(seed)
    estimate = objective.estimate(objective.weights(model, guide, (X[:size],), {}), kl_weight)
    found = torch.autograd.grad(estimate.surrogate, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# --- KL by dimension -----------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_kl_of_normals_by_dimension(particles: int) -> None:
    model, guide, _ = two_latents()
    found = kl_by_dimension(model, guide, X, num_particles=particles)
    w = found.sites["w"]
    by_hand = normal_kl(LOC, SCALE).mean(0)
    torch.testing.assert_close(
        torch.tensor(w.nats, dtype=torch.float64), by_hand, rtol=1e-12, atol=0
    )
    assert (w.exact, w.split) == (True, True)
    assert found.sites["z"].exact  # given w, which the guide draws first
    assert list(found.sites) == ["w", "z"]


def test_the_dimensions_sum_to_the_terms_of_the_bound() -> None:
    model, guide, _ = two_latents(num_data=7)
    for objective in (ELBO(), ELBO(3), ELBO(2, kl=MonteCarloKL())):
        pyro.set_rng_seed(1)
        terms = objective.terms(model, guide, X)
        pyro.set_rng_seed(1)
        run = log_weights(model, guide, X, num_particles=objective.num_particles)
        closed = not isinstance(objective.kl, MonteCarloKL)
        for name in "wz":
            kl = by_dimension(run, name, closed=closed)
            assert kl is not None
            assert kl.exact == closed
            assert kl.terms.shape == (objective.num_particles, 3, 2)
            torch.testing.assert_close(kl.terms.mean((0, 1)).sum(), terms.kl[name])


def test_estimates_at_the_draws_by_dimension() -> None:
    """Student's t has no KL from a normal: log q_j - log p_j of each dimension at the draw."""

    def model(x: Tensor) -> None:
        with data_plate(len(x), None):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide(x: Tensor) -> None:
        with data_plate(len(x), None):
            pyro.sample("z", dist.StudentT(4.0, torch.tensor([0.5, 1.0]), 0.7).to_event(1))

    run = log_weights(model, guide, X, num_particles=5)
    kl = by_dimension(run, "z")
    assert kl is not None
    z = run.guide_sites["z"].value
    q = dist.StudentT(4.0, torch.tensor([0.5, 1.0]), 0.7)
    torch.testing.assert_close(kl.terms, q.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z))
    assert (kl.exact, kl.split) == (False, True)


def one_site(prior: Any, posterior: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor) -> None:
        with data_plate(len(x), None):
            pyro.sample("z", prior)

    def guide(x: Tensor) -> None:
        with data_plate(len(x), None):
            pyro.sample("z", posterior)

    return model, guide


def test_sticks_sum_to_the_divergence_of_the_site() -> None:
    a, b = torch.tensor([0.7, 2.0, 1.3]).double(), torch.tensor([1.1, 3.0, 0.6]).double()
    sticks = dist.Beta(torch.ones(3).double(), 5.0)
    pair = one_site(sticks.to_event(1), Kumaraswamy(a, b).to_event(1))
    found = kl_by_dimension(*pair, X).sites["z"]
    expected = torch.distributions.kl_divergence(Kumaraswamy(a, b), sticks)
    torch.testing.assert_close(
        torch.tensor(found.nats, dtype=torch.float64), expected, rtol=1e-12, atol=0
    )
    assert found.exact


def test_what_is_dependent_is_one_value() -> None:
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    full = dist.MultivariateNormal(torch.tensor([0.3, -1.0], dtype=torch.float64), covariance)
    standard = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    by_hand = (covariance.trace() + 1.09 - 2 - covariance.logdet()) / 2
    pair = one_site(standard, full)
    found = kl_by_dimension(*pair, X).sites["z"]
    assert found.nats == pytest.approx([by_hand.item()], rel=1e-10)
    assert (found.exact, found.split) == (True, False)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2) / 2), dist.Normal(torch.randn(2, 2), 1.0).to_event(1)
    )
    run = log_weights(*one_site(mixture, dist.Normal(torch.zeros(2), 1.0).to_event(1)), X)
    kl = by_dimension(run, "z")
    assert kl is not None
    torch.testing.assert_close(kl.terms[..., 0], run.log_q["z"] - run.log_p["z"])
    assert (kl.exact, kl.split) == (False, False)


def test_global_latents_masks_and_other_plates() -> None:
    """A plate of three in which a latent stands is three dimensions; masked data count as 0."""
    loc = torch.tensor([0.5, 1.0, 2.0])
    seen: Any = torch.tensor([True, False, True])

    def program(x: Tensor, posterior: bool) -> None:
        shift = loc if posterior else torch.zeros(3)
        with pyro.plate("topics", 3):
            pyro.sample("t", dist.Normal(shift, 1.0))
        with data_plate(len(x), 30), pyro.poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(shift[:2].expand(3, 2), 1.0).to_event(1))

    def model(x: Tensor) -> None:
        program(x, False)

    def guide(x: Tensor) -> None:
        program(x, True)

    for particles in (1, 4):
        found = kl_by_dimension(model, guide, X, num_particles=particles).sites
        assert found["t"].nats == pytest.approx([0.125 / 30, 0.5 / 30, 2.0 / 30])
        # The mask in the guide is not the model's object: log q - log p, and not a closed form.
        assert len(found["z"].nats) == 2

    def masked(x: Tensor, shift: Tensor) -> None:
        with data_plate(len(x), None), pyro.poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(shift * torch.ones(3, 2), 1.0).to_event(1))

    one = kl_by_dimension(lambda x: masked(x, torch.zeros(2)), lambda x: masked(x, loc[:2]), X)
    assert one.sites["z"].exact
    assert one.sites["z"].nats == pytest.approx([0.125 * 2 / 3, 0.5 * 2 / 3])


def test_an_autoguides_point_masses_have_no_kl_of_their_own() -> None:
    guide = AutoNormal(local_model)
    x = X[:, 0].float()
    fitted = fit(local_model, guide, x, epochs=2, batch_size=None, validation=x)
    assert fitted.history[-1].kl == {}
    assert len(fitted.plot().axes) == 2
    with pytest.raises(OptionError, match="'z', whose density in the guide is that of"):
        fit(local_model, guide, x, batch_size=None, kl=Remedies({"z": Beta(2.0)}))
    with pytest.raises(OptionError, match="no KL of its own"):
        fit(local_model, guide, x, batch_size=None, kl=Remedies(free_bits=FreeBits(0.1)))


# --- weights by latent ---------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [{"w": 0.25}, {"w": 0.0, "z": 3.0}])
def test_weights_by_latent_in_the_elbo(kl: dict[str, float]) -> None:
    model, guide, _ = two_latents(num_data=12)
    objective = ELBO(2, kl=MonteCarloKL())
    run = objective.weights(model, guide, (X,), {})
    estimate = objective.estimate(run, kl)
    p, q = run.log_p, run.log_q

    def by_hand(w: float, z: float) -> Tensor:
        term = p["x"] - w * (q["w"] - p["w"]) - z * (q["z"] - p["z"])
        return 12 / 3 * term.sum(-1).mean()

    # Both latents are on paths, so the surrogate is what is optimised itself.
    torch.testing.assert_close(estimate.surrogate, by_hand(kl["w"], kl.get("z", 1.0)))
    torch.testing.assert_close(estimate.bound, by_hand(1.0, 1.0))


def test_weights_by_latent_in_the_importance_weighted_bound() -> None:
    model, guide, _ = two_latents()
    objective = IWAE(4)
    run = objective.weights(model, guide, (X,), {})
    estimate = objective.estimate(run, {"z": 0.3})
    p, q = run.log_p, run.log_q
    log_w = p["x"] + p["w"] - q["w"] + 0.3 * (p["z"] - q["z"])
    torch.testing.assert_close(estimate.surrogate, (log_w.logsumexp(0) - math.log(4)).sum())
    plain = p["x"] + p["w"] - q["w"] + p["z"] - q["z"]
    torch.testing.assert_close(estimate.bound, (plain.logsumexp(0) - math.log(4)).sum())


def test_weights_by_latent_in_wake_sleep() -> None:
    """Weights q * p(x) p(w)^a q(w)^(1-a) ... : the model's gradient has w's density a times."""
    model, guide, _ = two_latents()
    objective = ReweightedWakeSleep(4)
    run = objective.weights(model, guide, (X,), {})
    surrogate = objective.estimate(run, {"w": 0.3}).surrogate
    p, q = run.log_p, run.log_q
    log_w = p["x"] + 0.3 * (p["w"] - q["w"]) + p["z"] - q["z"]
    model_side = p["x"] + 0.3 * p["w"] + p["z"]
    by_hand = (log_w.softmax(0).detach() * (model_side + q["w"] + q["z"])).sum()
    torch.testing.assert_close(surrogate, by_hand)


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(2),
        ELBO(2, kl=MonteCarloKL()),
        IWAE(3),
        MIWAE(2, 2),
        PIWAE(2, 2),
        RenyiELBO(0.5, 3),
        VIMCO(3),
        ScoreFunction(2),
        ReweightedWakeSleep(3),
        ThermodynamicELBO(3),
        Enumerated(),
    ],
    ids=repr,
)
def test_the_same_weight_by_latent_as_for_all(objective: Objective) -> None:
    pair = two_latents()
    for weight in (0.3, 2.0):
        one, other = ({"w": weight, "z": weight}, weight)
        assert_close(gradients(objective, pair, one), gradients(objective, pair, other))
    other_way = gradients(objective, pair, {"w": 0.3, "z": 2.0})
    same = gradients(objective, pair, {"w": 2.0, "z": 0.3})
    assert any(not torch.allclose(other_way[n], same[n]) for n in same)


def test_different_weights_have_no_doubly_reparameterised_gradient() -> None:
    objective = IWAE(3, gradient=DoublyReparameterized())
    model, guide, _ = two_latents()
    step = Step(model_with_parameter(model), guide, objective, sgd, compiled=False)
    step.kl_weight = {"w": 0.5}
    with pytest.raises(OptionError, match="StandardGradient"):
        step.initialize(X)
    x = normal_data(5)
    options: Any = {"objective": objective, "epochs": 2}
    one = fit(local_model, local_guide, x, kl=Remedies({"z": Beta(0.4)}), **options)
    two = fit(local_model, local_guide, x, kl=Beta(0.4), **options)
    assert one.parameters["slope"] == two.parameters["slope"]


def model_with_parameter(model: Callable[..., None]) -> Callable[..., None]:
    def trained(x: Tensor) -> None:
        pyro.param("unused", torch.tensor(0.0))
        model(x)

    return trained


# --- free bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_free_bits_by_hand(particles: int) -> None:
    """KL of w is (0.08, 1.5) nats a datum: with a floor between them, the first has no gradient."""
    kl = normal_kl(LOC, SCALE).mean(0)
    floor = 0.5
    assert kl[0] < floor < kl[1]
    pair = two_latents(num_data=30)
    for size in (3, 2):  # a minibatch counts 30 / B times
        mean = normal_kl(LOC[:size], SCALE).mean(0)
        assert mean[0] < floor < mean[1]
        free = ELBO(particles).with_free_bits({"w": FreeBits(floor)})
        found = gradients(free, pair, size=size)
        plain = gradients(ELBO(particles), pair, size=size)
        scale = 30 / size
        gate = torch.tensor([1.0, 0.0]).double()
        # Where it is free, the gradient of - KL is missing: d KL / d loc = loc, and that of the
        # log of the scale is scale² - 1.
        missing = torch.zeros_like(LOC)
        missing[:size] = scale * gate * LOC[:size]
        torch.testing.assert_close(found["w loc"] - plain["w loc"], missing)
        by_scale = scale * size * gate * (SCALE.square() - 1)
        torch.testing.assert_close(found["w log_scale"] - plain["w log_scale"], by_scale)
        for name in ("z loc", "z log_scale"):
            torch.testing.assert_close(found[name], plain[name])


def test_the_value_is_the_floor_where_it_is_active() -> None:
    model, guide, _ = two_latents(num_data=30)
    plain = ELBO(2)
    run = plain.weights(model, guide, (X,), {})
    kl = normal_kl(LOC, SCALE).mean(0)
    for free, expected in (
        (FreeBits(0.5), 0.5 + kl[1]),
        (FreeBits(0.5, EachGroup(1)), 0.5 + kl[1]),
        (FreeBits(0.5, EachGroup(2)), kl.sum()),
        (FreeBits(0.5, WholeSite()), kl.sum()),
        (FreeBits(9.0, WholeSite()), torch.tensor(9.0).double()),
        (FreeBits(9.0, EachDimension()), torch.tensor(18.0).double()),
    ):
        for weight in (1.0, 0.5):
            floored = plain.with_free_bits({"w": free}).estimate(run, {"w": weight})
            without = plain.estimate(run, {"w": 0.0})
            difference = without.surrogate - floored.surrogate
            torch.testing.assert_close(difference, 30 * weight * expected)
            torch.testing.assert_close(floored.bound, without.bound)


def test_all_below_the_floor_is_a_kl_of_weight_zero() -> None:
    pair = two_latents()
    free = ELBO(2).with_free_bits(FreeBits(100.0))
    assert_close(gradients(free, pair), gradients(ELBO(2), pair, 0.0))
    none = ELBO(2).with_free_bits(FreeBits(1e-9, WholeSite()))
    assert_close(gradients(none, pair), gradients(ELBO(2), pair))


def test_the_threshold_on_the_clusters() -> None:
    """A discrete latent: closed form, its own gradient gone below the floor and kept above."""
    logits = torch.tensor([[0.5, 0.0, -0.5]] * 3).double().requires_grad_()
    locs = torch.tensor([-1.0, 0.5, 2.0]).double()

    def model(x: Tensor) -> None:
        with data_plate(len(x), None):
            k = pyro.sample("component", dist.Categorical(torch.ones(3).double() / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with data_plate(len(x), None):
            pyro.sample("component", dist.Categorical(logits=logits[: len(x)]))

    pair = (model, guide, {"logits": logits})
    q = logits.softmax(-1)
    kl = (q * (q.log() + math.log(3))).sum(-1).mean()
    plain = gradients(ELBO(), pair)["logits"]
    off = gradients(ELBO(), pair, 0.0)["logits"]
    assert not torch.allclose(plain, off)
    below = ELBO().with_free_bits({"component": FreeBits(kl.item() * 0.99)})
    torch.testing.assert_close(gradients(below, pair)["logits"], plain)
    above = ELBO().with_free_bits({"component": FreeBits(kl.item() * 1.01)})
    found = gradients(above, pair)["logits"]
    # What is left is the score's, of a cost with the constant floor in it.
    pyro.set_rng_seed(0)
    run = ELBO().weights(model, guide, (X,), {})
    score = run.guide_sites["component"].score
    assert score is not None
    (by_constant,) = torch.autograd.grad(score.sum() * kl.item() * 1.01, logits)
    torch.testing.assert_close(found, off - by_constant)


def test_a_latent_outside_the_data_plate_has_its_floor_in_all() -> None:
    loc = torch.tensor([0.5, 2.0]).double().requires_grad_()

    def model(x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with data_plate(len(x), 30):
            pyro.sample("x", dist.Normal(t, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        del x
        pyro.sample("t", dist.Normal(loc, 1.0).to_event(1))

    pair = (model, guide, {"loc": loc})
    found = gradients(ELBO().with_free_bits(FreeBits(1.0)), pair)["loc"]
    plain = gradients(ELBO(), pair)["loc"]
    # KL is (0.125, 2) nats.
    torch.testing.assert_close(found - plain, torch.tensor([0.5, 0.0]).double())


def test_dimensions_that_are_asked_for_must_be_there() -> None:
    full = dist.MultivariateNormal(torch.ones(2), torch.eye(2))
    model, guide = one_site(dist.Normal(torch.zeros(2), 1.0).to_event(1), full)
    run = ELBO().weights(model, guide, (X,), {})
    whole = ELBO().with_free_bits(FreeBits(0.1))
    whole.check_latents(run, 1.0)
    asked = ELBO().with_free_bits(FreeBits(0.1, EachDimension()))
    with pytest.raises(OptionError, match=r"site 'z'.*WholeSite\(\)"):
        asked.check_latents(run, 1.0)
    pair = two_latents()
    odd = ELBO().with_free_bits(FreeBits(0.1, EachGroup(3)))
    with pytest.raises(OptionError, match="do not make groups of 3"):
        odd.check_latents(odd.weights(pair[0], pair[1], (X,), {}), 1.0)


@pytest.mark.parametrize(
    "objective", [IWAE(2), ScoreFunction(), VIMCO(2), Enumerated(IWAE(2)), RenyiELBO(0.5, 2)]
)
def test_free_bits_are_the_elbos(objective: Objective) -> None:
    with pytest.raises(OptionError, match=r"has no meaning for .*; take ELBO\(\)"):
        Step(local_model, local_guide, objective, sgd, free_bits=FreeBits(0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FreeBits(0.0),
        lambda: FreeBits(math.nan),
        lambda: FreeBits(1.0, "dimension"),  # type: ignore[arg-type]
        lambda: EachGroup(0),
        lambda: Remedies(0.5),  # type: ignore[arg-type]
        lambda: Remedies({"z": 0.5}),  # type: ignore[dict-item]
        lambda: Remedies(free_bits=0.1),  # type: ignore[arg-type]
        lambda: Remedies({"z": None}),  # type: ignore[dict-item]
        lambda: fit(local_model, local_guide, normal_data(4), kl=0.5),
        lambda: fit(local_model, local_guide, normal_data(4), kl=Remedies({"y": Beta(1.0)})),
        lambda: fit(
            local_model, local_guide, normal_data(4), kl=Remedies(free_bits={"y": FreeBits(1.0)})
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_work(make: Callable[[], object]) -> None:
    with pytest.raises(OptionError, match=r"give|names 'y'"), unchecked():
        make()


# --- the step and the fit ------------------------------------------------------------------------


@inductor.patch(fallback_random=True)
def test_compiled_equals_eager_and_schedules_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    compile_graph = compiled_module.compile_graph

    def counting(*args: Any) -> Any:
        nonlocal count
        count += 1
        return compile_graph(*args)

    monkeypatch.setattr(compiled_module, "compile_graph", counting)
    model = two_latents()[0]

    def trained(x: Tensor) -> None:
        loc = pyro.param("loc", LOC.clone())
        spread = pyro.param("spread", torch.tensor([0.1, -0.5]).double())
        with data_plate(len(x), 3):
            for name in "wz":
                pyro.sample(name, dist.Normal(loc, spread.exp()).to_event(1))

    free = {"w": FreeBits(0.4)}
    eager, compiled = (
        Step(model, trained, ELBO(), sgd, compiled=c, free_bits=free) for c in (False, True)
    )
    schedules = {"w": LinearWarmup(4, end=2.0), "z": CyclicalWarmup(3, top=0.5)}
    remedies = Remedies(schedules, free)
    for t in range(8):
        losses = []
        for step in (eager, compiled):
            pyro.set_rng_seed(t)
            step.kl_weight = remedies.weights_at(Progress(t, 0, 1))
            losses.append(step(X))
        torch.testing.assert_close(*losses)
        for name, value in eager.parameters().items():
            torch.testing.assert_close(compiled.parameters()[name], value)
    assert compiled.fallback_reason is None
    assert count == 1
    for step in (eager, compiled):  # one weight for all is another graph
        pyro.set_rng_seed(9)
        step.kl_weight = 0.25
        step(X)
    assert count == 2
    for name, value in eager.parameters().items():
        torch.testing.assert_close(compiled.parameters()[name], value)


def test_what_is_reported_has_no_remedies() -> None:
    x = normal_data(20)
    still = torch.optim.SGD
    kept = []
    for kl in (None, Remedies({"z": Beta(7.0)}, FreeBits(3.0))):
        result = fit(
            local_model,
            local_guide,
            x,
            epochs=2,
            validation=x,
            optimizer=lambda p: still(p, lr=0.0),
            kl=kl,
        )
        kept.append([(e.elbo, e.validation, e.kl) for e in result.history])
    assert kept[0] == kept[1]


def test_history_has_the_kl_where_held_out_data_were_evaluated() -> None:
    x, held_out = normal_data(20), normal_data(2100, seed=1)
    schedule = Remedies({"z": LinearWarmup(4)})
    validation = Validation(held_out, every=2)
    result = fit(local_model, local_guide, x, epochs=4, validation=validation, kl=schedule)
    assert [e.kl_weight for e in result.history] == [{"z": t / 4} for t in range(4)]
    assert [e.kl is None for e in result.history] == [True, False, True, False]
    slope, shift, scale = (result.parameters[n] for n in ("slope", "shift", "scale"))
    by_hand = normal_kl(slope * held_out + shift, scale.exp()).mean().item()
    assert result.history[-1].kl is not None
    assert result.history[-1].kl["z"] == pytest.approx([by_hand], rel=1e-5)
    assert len(result.plot().axes) == 3
    assert len(fit(local_model, local_guide, x, epochs=1).plot().axes) == 2
    without = fit(no_latents, no_guide, x, epochs=1, validation=x)
    assert without.history[0].kl == {}
    assert len(without.plot().axes) == 2


def no_latents(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with data_plate(len(x), None):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
