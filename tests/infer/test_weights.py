"""log_weights against stock Pyro draw by draw, its shapes, its data plate, its refusals."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer import ELBO, MonteCarloKL, log_weights
from pyro_models.infer import weights as weights_module

X = torch.tensor([0.3, -1.2, 2.0, 0.7])
N = 12


@pytest.fixture
def _stock_store() -> Iterator[None]:
    """For autoguides, which under stock Pyro show their parameters to the global store."""
    yield
    pyro.clear_param_store()


@dataclass(frozen=True)
class Pair:
    """A pair, its arguments, and the deepest plate's dimension."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...] = (X,)
    depth: int = 1


def plate(x: Tensor, total: int = N) -> Any:
    return pyro.plate("data", total, subsample=torch.arange(len(x)))


def no_guide(*_: Any) -> None:
    """The guide of a model without latents."""


def local() -> Pair:
    def model(x: Tensor) -> None:
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("z", dist.Normal(0.7 * x, 0.6))

    return Pair(model, guide)


def global_() -> Pair:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.1, 0.3))
        pyro.sample("mean", dist.Normal(0.4, 0.3))

    return Pair(model, guide)


def both() -> Pair:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with plate(x):
            z = pyro.sample("z", dist.Normal(mean[..., :1] + torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.ones(2), 0.5).to_event(1))
        with plate(x):
            loc = x.unsqueeze(-1) - mean
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return Pair(model, guide)


def nested() -> Pair:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

    def model(x: Tensor) -> None:
        with pyro.plate("groups", 30, subsample=torch.arange(3), dim=-2):
            group = pyro.sample("group", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 8, subsample=torch.arange(4), dim=-1):
                z = pyro.sample("z", dist.Normal(group, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("groups", 30, subsample=torch.arange(3), dim=-2):
            pyro.sample("group", dist.Normal(x.mean(-1, keepdim=True), 0.5))
            with pyro.plate("data", 8, subsample=torch.arange(4), dim=-1):
                pyro.sample("z", dist.Normal(x, 0.5))

    return Pair(model, guide, (x,), depth=2)


def random_subsample() -> Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 4, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4, subsample_size=2) as index:
            pyro.sample("z", dist.Normal(x[index], 1.0))

    return Pair(model, guide)


def scaled_alike() -> Pair:
    pair = local()
    return Pair(poutine.scale(pair.model, 0.25), poutine.scale(pair.guide, 0.25))


def scaled_by_site() -> Pair:
    def model(x: Tensor) -> None:
        with plate(x):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0, 4.0])):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x), poutine.scale(scale=0.1):
            pyro.sample("z", dist.Normal(x, 1.0))

    return Pair(model, guide)


def masked() -> Pair:
    mask: Any = torch.tensor([True, False, True, False])

    def model(x: Tensor) -> None:
        with plate(x):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(~mask), obs=x)
            with poutine.mask(mask=False):
                pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(x, 1.0))

    return Pair(model, guide)


def partly_observed() -> Pair:
    seen: Any = torch.tensor([True, False, True, True])

    def model(x: Tensor) -> None:
        with plate(x):
            pyro.sample("x", dist.Normal(0.5, 1.0), obs=x, obs_mask=seen)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("x_unobserved", dist.Normal(0.0, 2.0))

    return Pair(model, guide)


def factors() -> Pair:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("regulariser", -mean.square().reshape(mean.shape))
        with plate(x):
            pyro.factor("likelihood", -(x - mean).abs())

    def guide(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.5, 1.0))
        pyro.factor("jacobian", 0.3 * mean, has_rsample=True)

    return Pair(model, guide)


def auxiliary() -> Pair:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        log_jacobian = torch.full_like(noise, 0.5).log()
        pyro.sample("mean", dist.Delta(0.2 + 0.5 * noise, log_density=-log_jacobian))

    return Pair(model, guide)


def discrete() -> Pair:
    def model(x: Tensor) -> None:
        with plate(x):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("k", dist.Categorical(logits=torch.stack([x, -x, 0 * x], -1)))

    return Pair(model, guide)


def auto(kind: Callable[[Any], Any]) -> Callable[[], Pair]:
    def make() -> Pair:
        def model(x: Tensor) -> None:
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1), scale), obs=x)

        guide = kind(model)
        guide(X)  # makes the prototype, which draws
        return Pair(model, guide)

    return make


CASES: dict[str, Callable[[], Pair]] = {
    "local": local,
    "global": global_,
    "both": both,
    "nested": nested,
    "random subsample": random_subsample,
    "scaled alike": scaled_alike,
    "scaled by site": scaled_by_site,
    "masked": masked,
    "partly observed": partly_observed,
    "factors": factors,
    "auxiliary": auxiliary,
    "discrete": discrete,
    "AutoNormal": auto(AutoNormal),
    "AutoMultivariateNormal": auto(AutoMultivariateNormal),
    "AutoLowRankMultivariateNormal": auto(AutoLowRankMultivariateNormal),
    "AutoDelta": auto(AutoDelta),
}


@pytest.mark.usefixtures("_stock_store")
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_joint_weights_are_those_of_stock_pyro(name: str, particles: int) -> None:
    pair = CASES[name]()
    elbo = Trace_ELBO(particles, max_plate_nesting=pair.depth, vectorize_particles=particles > 1)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        weights = log_weights(pair.model, pair.guide, *pair.args, num_particles=particles)
        pyro.set_rng_seed(seed)
        expected = -elbo.loss(pair.model, pair.guide, *pair.args)
        joint = weights.common_scale * weights.joint
        assert joint.shape == (particles,)
        torch.testing.assert_close(joint.mean().item(), expected, rtol=2e-5, atol=1e-4)


@pytest.mark.usefixtures("_stock_store")
@pytest.mark.parametrize("name", CASES)
def test_the_parts_have_their_shapes_and_add_up(name: str) -> None:
    pair = CASES[name]()
    weights = log_weights(pair.model, pair.guide, *pair.args, num_particles=3)
    for sites in (weights.model_sites, weights.guide_sites):
        for site in sites.values():
            expected = (3, weights.batch_size) if site.local else (3,)
            assert site.log_prob.shape == expected, site.name
    assert weights.log_p.keys() == weights.model_sites.keys()
    assert weights.local.shape == (3, weights.batch_size)
    assert weights.global_.shape == (3,)
    torch.testing.assert_close(
        weights.joint, weights.global_ + weights.plate_scale * weights.local.sum(-1)
    )


def test_each_weight_is_that_of_its_own_draw() -> None:
    pair = both()
    weights = log_weights(pair.model, pair.guide, X, num_particles=5)
    mean = weights.guide_sites["mean"].value
    z = weights.guide_sites["z"].value
    assert mean.shape == (5, 1, 2)
    assert z.shape == (5, 4, 2)
    log_p = dist.Normal(mean[..., :1], 1.0).log_prob(z).sum(-1)
    log_p = log_p + dist.Normal(z.sum(-1), 0.5).log_prob(X)
    log_q = dist.Normal(X.unsqueeze(-1) - mean, 0.5).log_prob(z).sum(-1)
    torch.testing.assert_close(weights.local, log_p - log_q)
    prior = dist.Normal(0.0, 1.0).log_prob(mean) - dist.Normal(1.0, 0.5).log_prob(mean)
    torch.testing.assert_close(weights.global_, prior.sum((-1, -2)))


class TestScales:
    def test_the_plate_scale_is_kept_apart(self) -> None:
        pair = local()
        weights = log_weights(pair.model, pair.guide, X, num_particles=2)
        assert (weights.plate_scale, weights.num_data, weights.batch_size) == (3.0, N, 4)
        z = weights.guide_sites["z"].value
        expected = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(X)
        torch.testing.assert_close(weights.local, expected - dist.Normal(0.7 * X, 0.6).log_prob(z))

    def test_a_scale_on_all_sites_is_kept_apart(self) -> None:
        pair, plain = scaled_alike(), local()
        pyro.set_rng_seed(0)
        weights = log_weights(pair.model, pair.guide, X)
        pyro.set_rng_seed(0)
        unscaled = log_weights(plain.model, plain.guide, X)
        assert weights.common_scale == pytest.approx(0.25)
        torch.testing.assert_close(weights.local, unscaled.local)

    def test_a_scale_on_some_sites_is_in_the_weights(self) -> None:
        pair = scaled_by_site()
        weights = log_weights(pair.model, pair.guide, X)
        assert weights.common_scale == 1.0
        z = weights.guide_sites["z"].value
        expected = torch.tensor([1.0, 2.0, 3.0, 4.0]) * dist.Normal(z, 1.0).log_prob(X)
        torch.testing.assert_close(weights.log_p["x"], expected.reshape(1, 4))
        torch.testing.assert_close(
            weights.log_q["z"], 0.1 * dist.Normal(X, 1.0).log_prob(z).reshape(1, 4)
        )

    def test_a_masked_datum_weighs_nothing(self) -> None:
        pair = masked()
        weights = log_weights(pair.model, pair.guide, X)
        assert weights.log_p["z"][0, 1] == weights.log_q["z"][0, 3] == 0
        assert weights.log_p["x"][0, 0] == 0
        assert torch.equal(weights.log_p["y"], torch.zeros(1, 4))


class TestDataPlate:
    def test_a_plate_of_that_name_wins(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", 9, subsample=torch.arange(3), dim=-2), pyro.plate("d", 4):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        weights = log_weights(model, no_guide, torch.zeros(3, 4))
        assert (weights.batch_size, weights.num_data) == (3, 9)
        assert weights.local.shape == (1, 3)
        assert weights.plate_scale == 3.0

    @pytest.mark.parametrize("beside", ["nothing", "deterministic", "factor", "condition"])
    def test_else_the_rightmost_that_all_data_share(self, beside: str) -> None:
        def model(x: Tensor, y: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0), obs=None)
            if beside == "deterministic":
                pyro.deterministic("twice", 2 * mean)
            if beside == "factor":
                pyro.factor("penalty", -mean.square())
            with pyro.plate("rows", 3, dim=-2):
                with pyro.plate("left", 2, dim=-1):
                    pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
                with pyro.plate("right", 5, dim=-1):
                    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        def guide(x: Tensor, y: Tensor) -> None:
            if beside != "condition":
                pyro.sample("mean", dist.Normal(0.0, 1.0))

        if beside == "condition":
            model = poutine.condition(model, {"mean": torch.tensor(0.1)})
        x, y = torch.zeros(3, 2), torch.zeros(3, 5)
        for particles in (1, 2):
            weights = log_weights(model, guide, x, y, num_particles=particles)
            assert weights.batch_size == weights.num_data == 3
            assert weights.local.shape == (particles, 3)

    def test_there_need_be_none(self) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

        def guide() -> None:
            pyro.sample("z", dist.Normal(0.5, 0.5**0.5))

        weights = log_weights(model, guide, num_particles=4)
        assert weights.local.shape == (4, 0)
        assert (weights.batch_size, weights.num_data, weights.plate_scale) == (0, 1, 1.0)
        exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))
        torch.testing.assert_close(weights.joint, exact.expand(4))

    def test_global_latents_are_seen(self) -> None:
        for make, expected in ((local, False), (global_, True), (both, True)):
            pair = make()
            weights = log_weights(pair.model, pair.guide, X)
            assert weights.has_global_latents is expected


class TestSequentialPlates:
    values = torch.tensor([0.4, -0.9, 1.5, 0.2])

    def loop(self, x: Tensor) -> Any:
        return pyro.plate("data", N, subsample=torch.arange(len(x)))

    def sequential(self, x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for i in self.loop(x):
            z = pyro.sample(f"z_{i}", dist.Normal(mean, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=x[i])

    def sequential_guide(self, x: Tensor) -> None:
        pyro.sample("mean", dist.Delta(torch.tensor(0.3)))
        for i in self.loop(x):
            pyro.sample(f"z_{i}", dist.Delta(self.values[i], log_density=0.1 * float(i)))

    def vectorised(self, x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with plate(x):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def vectorised_guide(self, x: Tensor) -> None:
        pyro.sample("mean", dist.Delta(torch.tensor(0.3)))
        with plate(x):
            pyro.sample("z", dist.Delta(self.values, log_density=0.1 * torch.arange(4.0)))

    @pytest.mark.parametrize("particles", [1, 3])
    def test_they_have_the_weights_of_vectorised_ones(self, particles: int) -> None:
        loop = log_weights(self.sequential, self.sequential_guide, X, num_particles=particles)
        whole = log_weights(self.vectorised, self.vectorised_guide, X, num_particles=particles)
        assert (loop.batch_size, loop.num_data) == (whole.batch_size, whole.num_data) == (4, N)
        torch.testing.assert_close(loop.local, whole.local)
        torch.testing.assert_close(loop.global_, whole.global_)
        torch.testing.assert_close(loop.joint, whole.joint)

    def test_stock_pyro_agrees(self) -> None:
        weights = log_weights(self.sequential, self.sequential_guide, X)
        expected = -Trace_ELBO().loss(self.sequential, self.sequential_guide, X)
        assert weights.joint.item() == pytest.approx(expected, rel=1e-5)


def refused(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, k: int = 1) -> str:
    with pytest.raises(SiteMismatchError) as caught:
        log_weights(model, guide, *args, num_particles=k)
    return str(caught.value)


class TestRefusals:
    def test_particles(self) -> None:
        pair = local()
        with pytest.raises(OptionError, match="num_particles is 0; it must be at least 1"):
            log_weights(pair.model, pair.guide, X, num_particles=0)

    def test_a_latent_that_the_guide_misses(self) -> None:
        message = refused(local().model, no_guide, X)
        assert "does not sample ['z']" in message
        assert "observe them in the model" in message

    def test_a_site_that_is_not_the_models(self) -> None:
        def guide(x: Tensor) -> None:
            local().guide(x)
            pyro.sample("zz", dist.Normal(0.0, 1.0))

        message = refused(local().model, guide, X)
        assert "'zz'" in message
        assert "is_auxiliary" in message

    def test_a_site_that_the_model_observes(self) -> None:
        def guide(x: Tensor) -> None:
            with plate(x):
                pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(0.0, 1.0))

        assert "'x', which the model observes" in refused(local().model, guide, X)

    def test_different_event_shapes(self) -> None:
        def model(x: Tensor) -> None:
            with plate(x):
                pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with plate(x):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

        message = refused(model, guide, X)
        assert "event shape () in the model and (3,) in the guide" in message

    @pytest.mark.parametrize("k", [1, 4])
    def test_a_latent_in_a_plate_of_another_name(self, k: int) -> None:
        def guide(x: Tensor) -> None:
            with pyro.plate("batch", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0))

        assert "'z' is inside the data plate in the model only" in refused(
            local().model, guide, X, k=k
        )

    @pytest.mark.parametrize("k", [1, 4])
    def test_a_data_plate_of_another_size(self, k: int) -> None:
        """The guide's densities would count B / N of what they should, in silence."""

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0))

        message = refused(local().model, guide, X, k=k)
        assert "'z' lies in plate 'data', of which there are 4 of 12 in the model" in message
        assert "4 of 4 in the guide" in message

    def test_another_plate_of_another_size(self) -> None:
        def guide(x: Tensor) -> None:
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("group", dist.Normal(0.0, 0.5))
                with pyro.plate("data", 8, subsample=torch.arange(4), dim=-1):
                    pyro.sample("z", dist.Normal(x, 0.5))

        pair = nested()
        message = refused(pair.model, guide, *pair.args)
        assert "'group' lies in plate 'groups', of which there are 3 of 30 in the model" in message

    def test_a_plate_of_another_size_around_what_the_model_has_not(self) -> None:
        def guide(x: Tensor) -> None:
            global_().guide(x)
            with pyro.plate("data", len(x)):
                pyro.sample("noise", dist.Normal(x, 0.5), infer={"is_auxiliary": True})

        assert "'noise' lies in plate 'data'" in refused(global_().model, guide, X)

    @pytest.mark.parametrize("k", [1, 4])
    def test_a_dimension_without_plate(self, k: int) -> None:
        def model(x: Tensor) -> None:
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0), obs=x)

        message = refused(model, no_guide, X, k=k)
        assert "'x'" in message
        assert ".to_event" in message

    @pytest.mark.parametrize("k", [1, 4])
    def test_data_wider_than_their_distribution(self, k: int) -> None:
        # Four particles, four data: the mistake has the shape that particles would have.
        def scalar(x: Tensor) -> None:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def column(x: Tensor) -> None:
            with plate(x):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.unsqueeze(-1))

        assert "(4,)" in refused(scalar, no_guide, X, k=k)
        assert "(4, 4)" in refused(column, no_guide, X, k=k)

    def test_particles_that_the_program_cannot_carry(self) -> None:
        def model(x: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean.reshape(-1), 1.0).mask(False), obs=x[:1])
            with plate(x):
                pyro.sample("w", dist.Normal(0.0, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            pyro.sample("mean", dist.Normal(0.0, 1.0))

        message = refused(model, guide, X, k=2)
        assert "dimension -1 belongs to no plate" in message
        assert "with 2 particles values have one more dimension in front" in message


class Noisy(nn.Module):
    """A model with a buffer that changes in place, and one that is replaced, at each run."""

    runs: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        self.runs.add_(1)
        self.last = x.mean()
        local().model(x)


class TestTheGuessOfTheDepth:
    def test_it_leaves_generators_and_buffers(self) -> None:
        model, guide = Noisy(), local().guide
        pyro.set_rng_seed(3)
        first = log_weights(model, guide, X, num_particles=3)
        after = torch.get_rng_state()
        assert model.runs == 1
        pyro.set_rng_seed(3)
        second = log_weights(model, guide, X, num_particles=3)
        assert torch.equal(first.local, second.local)
        assert torch.equal(after, torch.get_rng_state())

    def test_it_runs_once_a_pair(self) -> None:
        runs = []

        def model(x: Tensor) -> None:
            runs.append(len(x))
            local().model(x)

        pair = local()
        for _ in range(3):
            log_weights(model, pair.guide, X, num_particles=2)
        assert len(runs) == 4

    def test_it_is_made_anew_where_arguments_open_other_plates(self) -> None:
        def model(x: Tensor, y: Tensor | None = None) -> None:
            with pyro.plate("data", 4, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
                if y is not None:
                    with pyro.plate("repeats", 2, dim=-2):
                        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        def guide(x: Tensor, y: Tensor | None = None) -> None:
            with pyro.plate("data", 4, dim=-1):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        y = torch.zeros(2, 4)
        assert log_weights(model, guide, X, num_particles=3).local.shape == (3, 4)
        weights = log_weights(model, guide, X, y, num_particles=3)
        z = weights.guide_sites["z"].value
        assert z.shape == (3, 1, 4)
        expected = 2 * dist.Normal(z.squeeze(1), 1.0).log_prob(torch.zeros(4))
        torch.testing.assert_close(weights.log_p["y"], expected)

    @pytest.mark.parametrize(("shallow", "deep"), [(False, True), (0, 1), ("a", "b")])
    def test_flags_may_open_other_plates(self, shallow: Any, deep: Any) -> None:
        def program(x: Tensor, flag: Any, guide: bool) -> None:
            with pyro.plate("data", 4, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if flag == deep:
                    with pyro.plate("inner", 2, dim=-2):
                        pyro.sample("w", dist.Normal(z, 1.0))
                if not guide:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def model(x: Tensor, flag: Any) -> None:
            program(x, flag, guide=False)

        def guide(x: Tensor, flag: Any) -> None:
            program(x, flag, guide=True)

        assert log_weights(model, guide, X, shallow, num_particles=2).local.shape == (2, 4)
        assert log_weights(model, guide, X, flag=shallow, num_particles=2).local.shape == (2, 4)
        for weights in (
            log_weights(model, guide, X, deep, num_particles=2),
            log_weights(model, guide, X, flag=deep, num_particles=2),
        ):
            assert weights.guide_sites["w"].value.shape == (2, 2, 4)

    def test_it_does_not_grow_without_end(self) -> None:
        known: dict[Any, int] = {}
        for kind in range(1000):
            weights_module.remember(known, kind, 1)
            assert known[kind] == 1
            assert len(known) <= weights_module.REMEMBERED

    def test_a_number_that_is_annealed_makes_no_other_kind(self) -> None:
        kinds = [weights_module.kind_of((X, beta), {}) for beta in (0.1, 0.2)]
        assert kinds[0] == kinds[1]

    def test_callables_that_cannot_be_keys(self) -> None:
        @dataclass
        class Model:
            scale: float

            def __call__(self, x: Tensor) -> None:
                local().model(x)

        assert log_weights(Model(1.0), local().guide, X, num_particles=2).local.shape == (2, 4)

    def test_it_keeps_no_pair_alive(self) -> None:
        pair = local()
        log_weights(pair.model, pair.guide, X, num_particles=2)
        alive = weakref.ref(pair.model)
        assert pair.model in weights_module._nesting
        del pair
        gc.collect()
        assert alive() is None


def test_one_objective_serves_pairs_of_different_depth() -> None:
    flat, deep = local(), nested()
    for particles in (1, 3):
        shared = ELBO(particles, kl=MonteCarloKL())
        for pair in (flat, deep, flat):
            fresh = ELBO(particles, kl=MonteCarloKL())
            pyro.set_rng_seed(1)
            loss = shared.loss(pair.model, pair.guide, *pair.args)
            pyro.set_rng_seed(1)
            assert loss == fresh.loss(pair.model, pair.guide, *pair.args)
        assert vars(shared) == vars(ELBO(particles, kl=MonteCarloKL())) | {"kl": shared.kl}


def test_modules_leave_nothing_in_the_global_store() -> None:
    log_weights(Noisy(), local().guide, X, num_particles=2)
    assert list(pyro.get_param_store()) == []


def test_gradients_flow() -> None:
    loc = torch.zeros(4, requires_grad=True)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("z", dist.Normal(loc, 1.0))

    weights = log_weights(local().model, guide, X, num_particles=2)
    (gradient,) = torch.autograd.grad(weights.joint.sum(), loc)
    assert gradient.isfinite().all()
    assert gradient.abs().min() > 0
