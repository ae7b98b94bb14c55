"""Sticking the landing and doubly reparameterised gradients: exact means, and where they go wrong.

Every mean here is a sum over a grid of what K particles can draw (see ``multi_sample_cases``). DReG
is unbiased only as an integral, so its grids are fine.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer import ELBO, IWAE, MonteCarloKL, Objective
from tests.infer.gradient_cases import DTYPE, normal
from tests.infer.multi_sample_cases import (
    DREG,
    STL,
    Follows,
    Preset,
    importance,
    landing,
    path_followers,
    renyi,
)
from tests.infer.test_gradients import assert_mean, flat
from tests.infer.test_multi_sample import assert_same, exact, gradient, mean_of_estimator, targets

X = torch.linspace(-1.0, 2.0, 5, dtype=DTYPE)
ZERO = torch.zeros((), dtype=DTYPE)


class TestMeans:
    @pytest.mark.parametrize(("particles", "nodes"), [(2, 45), (3, 27)])
    @pytest.mark.parametrize("kl_weight", [1.0, 0.3, 0.0])
    def test_dreg_is_unbiased(self, particles: int, nodes: int, kl_weight: float) -> None:
        follows = path_followers(particles)["DReG"]
        found = mean_of_estimator("conjugate", follows, nodes, kl_weight)
        assert_same(found, exact("conjugate", follows, nodes, kl_weight), 1e-7)

    @pytest.mark.parametrize("kl_weight", [1.0, 0.3])
    def test_dreg_is_unbiased_where_a_latent_is_drawn_from_another(self, kl_weight: float) -> None:
        follows = path_followers(2)["DReG"]
        found = mean_of_estimator("chain", follows, 19, kl_weight)
        assert_same(found, exact("chain", follows, 19, kl_weight), 1e-4)

    @pytest.mark.parametrize(
        ("name", "particles", "nodes"),
        [("conjugate", 2, 8), ("conjugate", 3, 8), ("chain", 2, 6)],
    )
    @pytest.mark.parametrize("kl_weight", [1.0, 0.3])
    def test_sticking_the_landing_follows_its_formula(
        self, name: str, particles: int, nodes: int, kl_weight: float
    ) -> None:
        follows = path_followers(particles)["STL"]
        found = mean_of_estimator(name, follows, nodes, kl_weight)
        assert_same(found, exact(name, follows, nodes, kl_weight), 1e-9)

    def test_which_is_biased(self) -> None:
        landing = exact("conjugate", path_followers(2)["STL"], 61)
        bound = exact("conjugate", Follows(IWAE(2), importance), 61)
        assert abs(landing["loc"] - bound["loc"]) > 0.05

    @pytest.mark.parametrize("name", ["conjugate", "chain"])
    @pytest.mark.parametrize("kind", [STL, DREG])
    @pytest.mark.parametrize("kl_weight", [1.0, 0.3])
    def test_unbiased_with_one_particle(self, name: str, kind: Any, kl_weight: float) -> None:
        follows = Follows(IWAE(1, kind), renyi(1.0))
        found = mean_of_estimator(name, follows, 61, kl_weight)
        assert_same(found, exact(name, follows, 61, kl_weight), 1e-8)


def mean_by_grid(
    objective: Objective, model: Any, guide: Any, noise: dict[str, Tensor], mass: Tensor, args: Any
) -> dict[str, Tensor]:
    """The mean gradient of an autoguide's parameters, which are one a column."""
    with Preset(noise):
        weights = objective.weights(model, guide, args, {})
    surrogate = objective.estimate(weights).surrogate
    parameters = dict(guide.named_parameters())
    return {n: (mass * g).sum() for n, g in gradient(surrogate, parameters).items()}


@pytest.fixture(autouse=True)
def _stock_store() -> Iterator[None]:
    """Autoguides that no ``Step`` runs keep their parameters in Pyro's own store."""
    yield
    pyro.clear_param_store()


class TestAutoguides:
    def positive(self, size: int, x: Tensor) -> None:
        """A latent with a change of variables."""
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.LogNormal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(size))

    def test_auto_normal(self) -> None:
        """Its Delta is computed from another site, whose path it passes on."""
        _, noise, mass = targets("conjugate", 2, 45)
        size = len(mass)
        args = (size, torch.tensor(0.9, dtype=DTYPE))
        means = {}
        for name, objective in (("IWAE", IWAE(2)), ("DReG", IWAE(2, DREG)), ("STL", IWAE(2, STL))):
            guide = AutoNormal(
                self.positive,
                init_loc_fn=lambda site: torch.full(site["fn"].shape(), 1.3, dtype=DTYPE),
                init_scale=0.5,
            )
            guide(*args)
            given = {"z_unconstrained": noise["z"]}
            means[name] = mean_by_grid(objective, self.positive, guide, given, mass, args)
        assert_same(means["DReG"], means["IWAE"], 5e-5)
        name = "locs.z_unconstrained"
        gap = (means["STL"][name] - means["IWAE"][name]).abs()
        assert gap > 1e-3, "the test would not notice a factor left out"

    def test_auto_multivariate_normal(self) -> None:
        """One weight for all data; the three estimators at the same draws."""

        def model(x: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(ZERO, 1.0))
            scale = pyro.sample("scale", dist.LogNormal(ZERO, 0.5))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, scale), obs=x)

        guide = AutoMultivariateNormal(
            model, init_loc_fn=lambda site: torch.full((), 1.5, dtype=DTYPE), init_scale=0.8
        )
        guide(X)
        guide.double()
        objectives = [IWAE(8), IWAE(8, DREG), IWAE(8, STL)]
        rows: list[list[Tensor]] = [[], [], []]
        parameters: dict[str, Tensor] = dict(guide.named_parameters())
        for run in range(120):
            for objective, found in zip(objectives, rows, strict=True):
                pyro.set_rng_seed(run)
                surrogate = objective.estimate(objective.weights(model, guide, (X,), {})).surrogate
                found.append(flat(gradient(surrogate, parameters).values()))
        standard, dreg, landing = (torch.stack(found) for found in rows)
        assert_mean(dreg - standard, torch.zeros(standard.shape[1], dtype=DTYPE))
        bias = landing - standard
        error = bias.std(0) / 120**0.5 + 1e-12  # some entries of a triangle are no parameters
        assert (bias.mean(0) / error).abs().max() > 4, "the test would not notice a bias"


class TestPointMasses:
    """A parameter that the guide names by a Delta is no draw: it has the standard gradient."""

    def model(self, x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", 30, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(t, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def gradients(self, objective: Objective, guide: Any) -> dict[str, Tensor]:
        pyro.set_rng_seed(3)
        weights = objective.weights(self.model, guide, (X,), {})
        assert not weights.is_joint
        return gradient(objective.estimate(weights).surrogate, dict(guide.named_parameters()))

    @pytest.mark.parametrize("kind", [STL, DREG])
    def test_auto_delta_beside_local_latents(self, kind: Any) -> None:
        guide = AutoGuideList(self.model)
        guide.append(AutoDelta(poutine.block(self.model, hide=["z"])))
        guide.append(AutoNormal(poutine.block(self.model, hide=["t"])))
        guide(X)
        standard = self.gradients(IWAE(6), guide)
        found = self.gradients(IWAE(6, kind), guide)
        (name,) = (n for n in standard if n.startswith("0."))
        torch.testing.assert_close(found[name], standard[name])

    @pytest.mark.parametrize("kl_weight", [1.0, 0.3])
    def test_latents_drawn_from_one(self, kl_weight: float) -> None:
        """The Delta's value also moves the guide's other latent: the mean is still exact."""
        _, noise, mass = targets("conjugate", 2, 45)
        size = len(mass)

        def model(p: dict[str, Tensor]) -> None:
            with pyro.plate("data", size):
                t = pyro.sample("t", dist.Normal(ZERO, 1.0))
                z = pyro.sample("z", dist.Normal(t, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full((size,), 0.9, dtype=DTYPE))

        def guide(p: dict[str, Tensor]) -> None:
            with pyro.plate("data", size):
                t = pyro.sample("t", dist.Delta(p["t"]))
                pyro.sample("z", dist.Normal(p["a"] * t + 0.2, 0.6 + 0.1 * t**2))

        means = []
        for objective in (IWAE(2), IWAE(2, DREG)):
            p = {
                n: torch.full((size,), v, dtype=DTYPE, requires_grad=True)
                for n, v in (("t", 0.7), ("a", -0.4))
            }
            with Preset({"z": noise["z"]}):
                weights = objective.weights(model, guide, (p,), {})
            surrogate = objective.estimate(weights, kl_weight).surrogate
            means.append({n: (mass * g).sum() for n, g in gradient(surrogate, p).items()})
        assert_same(means[1], means[0], 1e-7)

    def test_sticking_the_landing_drops_the_score_of_what_it_moves(self) -> None:
        """In the density of a latent drawn from it a Delta is a parameter as any other."""
        noise = torch.tensor([[0.3, -1.2, 0.5], [1.1, 0.2, -0.4]], dtype=DTYPE)
        x = X[:3]

        def model(p: dict[str, Tensor]) -> None:
            with pyro.plate("data", 3):
                t = pyro.sample("t", dist.Normal(ZERO, 1.0))
                z = pyro.sample("z", dist.Normal(t, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(p: dict[str, Tensor]) -> None:
            with pyro.plate("data", 3):
                t = pyro.sample("t", dist.Delta(p["t"]))
                pyro.sample("z", dist.Normal(p["a"] * t + 0.2, 0.6 + 0.1 * t**2))

        p = {n: torch.full((3,), v, dtype=DTYPE, requires_grad=True) for n, v in PLACES.items()}
        with Preset({"z": noise}):
            weights = IWAE(2, STL).weights(model, guide, (p,), {})
        found = gradient(IWAE(2, STL).estimate(weights).surrogate, p)
        loc, scale = p["a"] * p["t"] + 0.2, 0.6 + 0.1 * p["t"] ** 2
        z = loc + scale * noise
        log_p = normal(p["t"], 0.0, 1.0) + normal(z, p["t"], 1.0) + normal(x, z, 1.0)
        log_w = log_p - normal(z, loc.detach(), scale.detach())
        torch.testing.assert_close(found, gradient(landing(log_w).sum(), p))


PLACES = {"t": 0.7, "a": -0.4}


class TestScalesAndMasks:
    """What tempers one site's density only tempers its score too."""

    def mean(self, objective: Objective, handler: Callable[[], Any]) -> dict[str, Tensor]:
        return {n: g.sum() for n, g in self.columns(objective, handler).items()}

    def columns(self, objective: Objective, handler: Callable[[], Any]) -> dict[str, Tensor]:
        """The gradient at each pair of draws times their probability."""
        _, noise, mass = targets("conjugate", 2, 45)
        size = len(mass)

        def model(p: dict[str, Tensor]) -> None:
            with pyro.plate("data", size):
                with handler():
                    z = pyro.sample("z", dist.Normal(ZERO, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full((size,), 0.9, dtype=DTYPE))

        def guide(p: dict[str, Tensor]) -> None:
            with pyro.plate("data", size), handler():
                pyro.sample("z", dist.Normal(p["loc"], p["log_scale"].exp()))

        p = {
            n: torch.full((size,), v, dtype=DTYPE, requires_grad=True)
            for n, v in (("loc", -0.3), ("log_scale", -0.2))
        }
        with Preset({"z": noise["z"]}):
            weights = objective.weights(model, guide, (p,), {})
        surrogate = objective.estimate(weights).surrogate
        return {n: mass * g for n, g in gradient(surrogate, p).items()}

    def test_a_scale_of_one_latent(self) -> None:
        handler = functools.partial(poutine.scale, scale=0.3)
        with pytest.raises(OptionError, match=r"'z'.*scale"):
            self.mean(IWAE(2, DREG), handler)
        assert self.mean(IWAE(2), handler)["loc"].abs() > 0.01

    def test_one_particle_may_have_one(self) -> None:
        """It is the ELBO with 0.3 times the KL, whose gradient has a closed form."""
        _, _, mass = targets("conjugate", 2, 45)
        handler = functools.partial(poutine.scale, scale=0.3)
        found = self.mean(IWAE(1, DREG), handler)
        loc, scale = torch.tensor(-0.3, dtype=DTYPE), torch.tensor(-0.2, dtype=DTYPE).exp()
        fit = {"loc": 0.9 - loc, "log_scale": -(scale**2)}
        kl = {"loc": loc, "log_scale": scale**2 - 1}
        expected = {name: (fit[name] - 0.3 * kl[name]) * mass.sum() for name in fit}
        assert_same(found, expected, 1e-7)

    @pytest.mark.parametrize("shown", [False, True])
    def test_data_whose_latents_are_masked_have_no_score(self, shown: bool) -> None:
        """Their weights are p(x | z): all of the gradient is on the path, weighted once."""
        _, _, mass = targets("conjugate", 2, 45)
        for mask in (shown, torch.full((len(mass),), shown)):
            handler = functools.partial(poutine.mask, mask=mask)
            assert_same(self.mean(IWAE(2, DREG), handler), self.mean(IWAE(2), handler), 1e-7)

    def test_a_mask_is_each_datums_own(self) -> None:
        _, _, mass = targets("conjugate", 2, 45)
        some = torch.arange(len(mass)) % 3 > 0
        mixed, full, none = (
            self.columns(IWAE(2, DREG), functools.partial(poutine.mask, mask=mask))
            for mask in (some, True, False)
        )
        for name, value in mixed.items():
            torch.testing.assert_close(value, torch.where(some, full[name], none[name]))

    @pytest.mark.parametrize("mask", [None, True, False])
    def test_a_mask_around_latents_drawn_from_each_other(self, mask: bool | None) -> None:
        case, noise, mass = targets("chain", 2, 19)
        means = []
        for objective in (IWAE(2), IWAE(2, DREG)):
            p = case.start(len(mass))
            shown: Any = torch.ones(len(mass), dtype=torch.bool) if mask is None else mask
            guide = poutine.mask(case.guide, mask=shown)
            with Preset(noise):
                weights = objective.weights(case.model, guide, (p,), {})
            found = gradient(objective.estimate(weights).surrogate, p)
            means.append({n: (mass * g).sum() for n, g in found.items()})
        assert_same(means[1], means[0], 1e-3)

    def inner(self, kind: str) -> tuple[Any, Any]:
        """Two latents a datum, of which one is masked, or both by parts of a datum."""
        flags = torch.tensor([True, False, True, True, False])

        def program(x: Tensor, guide: bool) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(ZERO, 1.0))
                if kind == "site":
                    with poutine.mask(mask=flags):  # type: ignore[call-overload]
                        w = pyro.sample("w", dist.Normal(ZERO, 1.0))
                elif kind == "distribution":
                    one = dist.Normal(torch.zeros(2, dtype=DTYPE), 1.0)
                    part = one.expand([len(x), 2]).mask(torch.tensor([True, False]))
                    w = pyro.sample("w", part.to_event(1)).sum(-1)
                else:
                    mask = flags[:2].unsqueeze(-1)
                    with poutine.mask(mask=mask), pyro.plate("inner", 2):  # type: ignore[call-overload]
                        w = pyro.sample("w", dist.Normal(ZERO, 1.0)).sum(-2, keepdim=True)
                if not guide:
                    pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

        return functools.partial(program, guide=False), functools.partial(program, guide=True)

    @pytest.mark.parametrize("kind", ["site", "distribution", "inner plate"])
    def test_a_mask_of_one_latent_is_refused(self, kind: str) -> None:
        model, guide = self.inner(kind)
        with pytest.raises(OptionError, match=r"'w' has a mask.*StandardGradient"):
            IWAE(2, DREG).loss(model, guide, X)
        for objective in (IWAE(2), IWAE(2, STL), IWAE(1, DREG)):
            assert objective.loss(model, guide, X) > 0

    def test_a_mask_along_the_data_beside_a_latent_of_all(self) -> None:
        """One weight serves all data, and of that weight's scores only some are hidden."""
        shown = torch.tensor([True, False, True, True, False])

        def program(x: Tensor, guide: bool) -> None:
            data = pyro.plate("data", len(x))
            with poutine.mask(mask=shown), data:  # type: ignore[call-overload]
                z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            total = z.sum(-1, keepdim=z.dim() > 1)
            if not guide:
                pyro.sample("t", dist.Normal(total, 1.0), obs=torch.ones((), dtype=DTYPE))
                with data:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        parts = [functools.partial(program, guide=flag) for flag in (False, True)]
        with pytest.raises(OptionError, match=r"'z' has a mask of shape \(5,\)"):
            IWAE(2, DREG).loss(*parts, X)


@pytest.mark.parametrize("kind", [STL, DREG])
class TestErrors:
    def test_a_discrete_latent_is_named(self, kind: Any) -> None:
        def model() -> None:
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(1.0))

        def guide() -> None:
            pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)))

        with pytest.raises(OptionError, match=r"'c' is a Bernoulli.*VIMCO"):
            IWAE(2, kind).loss(model, guide)

    def test_without_gradients(self, kind: Any) -> None:
        """The loss alone is the standard one."""
        case, _, _ = targets("chain", 2, 2)
        losses = []
        for objective in (IWAE(4), IWAE(4, kind)):
            pyro.set_rng_seed(0)
            losses.append(objective.loss(case.model, case.guide, case.start(7)))
        assert losses[0] == pytest.approx(losses[1])

    def test_other_estimators_agree_with_one_particle(self, kind: Any) -> None:
        """The model's gradient is the ELBO's at every draw."""
        case, _, _ = targets("chain", 2, 2)
        found = []
        for objective in (ELBO(kl=MonteCarloKL()), IWAE(1, kind)):
            pyro.set_rng_seed(0)
            p = case.start(7)
            weights = objective.weights(case.model, case.guide, (p,), {})
            found.append(gradient(objective.estimate(weights).surrogate, p)["slope"])
        torch.testing.assert_close(*found)
