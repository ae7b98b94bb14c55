"""Law: it is Pyro. Model and guide are ordinary programs, for stock Pyro to use."""

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, RenyiELBO, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor

from pyro_models.infer import VIMCO
from pyro_models.pairs import Pair
from tests.contract.cases import BATCH, CASES, latents, parameters, sites, snapshot

every = pytest.mark.parametrize("name", CASES)


def is_discrete(site: dict[str, Any]) -> bool:
    return bool(site["fn"].support.is_discrete)


@every
def test_the_latents_of_model_and_guide_are_the_same(name: str) -> None:
    pair, x = CASES[name].make()
    model, guide = latents(pair.model, x), latents(pair.guide, x)
    assert model.keys() == guide.keys()
    for site in model:
        assert model[site]["fn"].event_shape == guide[site]["fn"].event_shape
        assert model[site]["value"].shape == guide[site]["value"].shape
    assert sites(pair.model, x)["x"]["is_observed"]


@every
def test_the_data_plate_is_named_and_rightmost(name: str) -> None:
    pair, x = CASES[name].make()
    stack = sites(pair.model, x, num_data=60)["x"]["cond_indep_stack"]
    (plate,) = [frame for frame in stack if frame.name == "data"]
    assert (plate.dim, plate.size, plate.full_size) == (-1, BATCH, 60)


@every
def test_every_trainable_parameter_is_shown_once_and_frozen_ones_never(name: str) -> None:
    pair, x = CASES[name].make()
    frozen = next(iter(pair.model.parameters()))
    frozen.requires_grad_(False)
    capture: Any
    with poutine.trace(param_only=True) as capture:
        pair.model(x)
        pair.guide(x)
    shown = [
        site["value"].unconstrained()
        for site in capture.trace.nodes.values()
        if site["type"] == "param"
    ]
    assert len(shown) == len(parameters(pair))
    assert {id(tensor) for tensor in shown} == {id(p) for p in parameters(pair).values()}


@every
@pytest.mark.parametrize("ours", [False, True], ids=["Trace_ELBO", "its own objective"])
def test_stock_svi_moves_every_parameter_and_stores_none(name: str, ours: bool) -> None:
    pair, x = CASES[name].make()
    before = snapshot(pair)
    objective = pair.objective if ours else Trace_ELBO()
    svi = SVI(pair.model, pair.guide, Adam({"lr": 1e-2}), objective)
    losses = [svi.step(x, num_data=60) for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))
    after = snapshot(pair)
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert still == []
    assert list(pyro.get_param_store().keys()) == []


@every
def test_the_objective_agrees_with_stock_pyro(name: str) -> None:
    pair, x = CASES[name].make()
    pair.model.eval()  # a scale that adapts to the draws is another one for each particle

    def mean_and_error(objective: Any) -> tuple[Tensor, Tensor]:
        losses = torch.tensor([objective.loss(pair.model, pair.guide, x) for _ in range(20)])
        return losses.mean(), losses.std() / len(losses) ** 0.5

    (ours, our_error) = mean_and_error(pair.objective)
    (stock, stock_error) = mean_and_error(
        StockBound(pair.objective.num_particles)
        if isinstance(pair.objective, VIMCO)
        else Trace_ELBO(num_particles=10, vectorize_particles=True)
    )
    # Where both are exact, rounding is left.
    assert abs(ours - stock) < 4 * (our_error**2 + stock_error**2).sqrt() + 1e-5 * abs(stock)


class StockBound:
    """Stock Pyro's bound of K particles, a datum at a time: it weighs a batch as a whole."""

    def __init__(self, num_particles: int):
        self.num_particles = num_particles

    def loss(self, model: Any, guide: Any, x: Tensor) -> float:
        bound = RenyiELBO(0, num_particles=self.num_particles, vectorize_particles=True)
        return sum(bound.loss(model, guide, datum) for datum in x.split(1))


@every
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_posterior_and_prior(name: str, parallel: bool) -> None:
    pair, x = CASES[name].make()
    found = Predictive(pair.model, guide=pair.guide, num_samples=3, parallel=parallel)(x)
    for site, node in latents(pair.guide, x).items():
        local = any(frame.name == "data" for frame in node["cond_indep_stack"])
        # Pyro leaves the place of the data to what all data share.
        place = () if local else (1,)
        assert found[site].shape == (3, *place, *node["value"].shape)
    drawn = Predictive(pair.model, num_samples=3, parallel=parallel)(num_data=4)
    assert drawn["x"].shape == (3, 4, x.shape[1])
    pair.model.check(drawn["x"][0].to(x.dtype))  # type: ignore[operator]
    assert not torch.equal(drawn["x"][0], drawn["x"][1])


@every
def test_nuts_samples_the_posterior_where_the_latents_allow(name: str) -> None:
    pair, x = CASES[name].make()
    pair.model.eval()
    if any(is_discrete(site) for site in latents(pair.model, x).values()):
        pytest.skip("it has discrete latents, which NUTS has no gradient for")
    kernel = NUTS(pair.model, max_tree_depth=4)
    mcmc = MCMC(kernel, num_samples=8, warmup_steps=8, disable_progbar=True)
    mcmc.run(x[:2])
    for site, node in latents(pair.model, x[:2]).items():
        draws = mcmc.get_samples()[site]
        assert draws.shape == (8, *node["value"].shape)
        assert draws.isfinite().all()
        assert draws.std(0).min() > 0


def joint(pair: Pair, values: dict[str, Tensor], x: Tensor, **kwargs: Any) -> Tensor:
    program = poutine.condition(pair.model, values)
    return torch.as_tensor(poutine.trace(program).get_trace(x, **kwargs).log_prob_sum())


@every
def test_a_minibatch_counts_for_the_whole_set(name: str) -> None:
    pair, x = CASES[name].make()
    pair.model.eval()
    values = {site: node["value"] for site, node in latents(pair.guide, x).items()}
    part, whole = joint(pair, values, x), joint(pair, values, x, num_data=10 * BATCH)
    shared = torch.zeros(())
    conditioned = sites(poutine.condition(pair.model, values), x)
    for site, node in ((site, conditioned[site]) for site in values):
        if not any(frame.name == "data" for frame in node["cond_indep_stack"]):
            shared = shared + node["fn"].log_prob(values[site]).sum()
    assert torch.allclose(whole - shared, 10 * (part - shared), rtol=1e-4)
