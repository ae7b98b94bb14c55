"""Law: the engine runs every pair, with particles, on minibatches, eager and compiled."""

from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_models.infer import Step, compiled, log_weights
from pyro_models.pairs import Pair
from tests.contract.cases import BATCH, CASES, PLAIN, latents, loss, parameters, sites, snapshot

every = pytest.mark.parametrize("name", CASES)
# The compiler takes 10 to 90 s for the others on two quiet cores; that all of them can be traced to
# a graph, and what it computes, is seen in every run.
SMALL_GRAPHS = ("gaussian", "gaussian_mixture", "regression", "vae")
ADAM = partial(torch.optim.Adam, lr=1e-2)


def make_step(pair: Pair, compiled: bool) -> Step:
    return Step(pair.model, pair.guide, pair.objective, ADAM, compiled=compiled)


@every
def test_a_finite_gradient_reaches_every_parameter(name: str) -> None:
    pair, x = CASES[name].make()
    loss(pair, x).backward()
    for key, parameter in parameters(pair).items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every
def test_particles_run_side_by_side_as_they_would_alone(name: str) -> None:
    pair, x = CASES[name].make()
    pair.model.eval()  # a scale that adapts to the draws is another one for each particle
    weights = log_weights(pair.model, pair.guide, x, num_particles=3)
    assert weights.local.shape == (3, BATCH)
    for particle in range(3):
        values = {
            site: weights.model_sites[site].value.reshape(3, *node["value"].shape)[particle]
            for site, node in latents(pair.model, x).items()
        }
        alone = sites(poutine.condition(pair.model, values), x)
        for site, log_prob in weights.log_p.items():
            wanted = alone[site]["fn"].log_prob(alone[site]["value"])
            if alone[site]["mask"] is not None:
                wanted = torch.where(alone[site]["mask"], wanted, 0.0)
            assert torch.allclose(log_prob[particle], wanted, atol=1e-4), site


@every
@pytest.mark.parametrize("size", [1, 5])
def test_batches_of_one_and_of_odd_size_pass(name: str, size: int) -> None:
    pair, x = CASES[name].make()
    weights = log_weights(pair.model, pair.guide, x[:size], num_data=60, num_particles=2)
    assert weights.local.shape == (2, size)
    assert weights.plate_scale == 60 / size
    assert loss(pair, x[:size], num_data=60).isfinite()


@every
def test_the_loss_scales_with_the_size_of_the_set(name: str) -> None:
    pair, x = CASES[name].make()
    weights = log_weights(pair.model, pair.guide, x)
    if weights.has_global_latents:
        pytest.skip("it has latents outside the data plate, which do not scale")
    assert torch.allclose(loss(pair, x, num_data=10 * BATCH), 10 * loss(pair, x), rtol=1e-4)


@every
def test_eager_steps_lower_the_loss(name: str) -> None:
    pair, x = CASES[name].make()
    seeds = range(100, 120)  # the same draws before and after, or noise would hide the gain
    before = torch.stack([loss(pair, x, seed).detach() for seed in seeds])
    step = make_step(pair, compiled=False)
    losses = torch.stack([step(x, num_data=BATCH) for _ in range(40)])
    assert losses.isfinite().all()
    gain = before - torch.stack([loss(pair, x, seed).detach() for seed in seeds])
    assert gain.mean() > 4 * gain.std() / len(seeds) ** 0.5
    assert list(pyro.get_param_store().keys()) == []


@every
def test_the_traced_step_is_the_eager_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The graph runs as it stands, not compiled, so that both draw the same numbers.
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, batch, state: graph.forward)
    trajectories = []
    for traced in (False, True):
        pair, x = CASES[name].make()
        step = make_step(pair, compiled=traced)
        pyro.set_rng_seed(3)
        losses = torch.stack([step(x, num_data=60) for _ in range(5)])
        assert step.fallback_reason is None
        trajectories.append({"losses": losses} | snapshot(pair) | buffers(pair))
    eager, graph = trajectories
    for key, value in eager.items():
        assert torch.allclose(value, graph[key], rtol=1e-4, atol=1e-4), key


def buffers(pair: Pair) -> dict[str, Tensor]:
    parts = {"model": pair.model, "guide": pair.guide}
    return {
        f"{part}.{name}": buffer.clone()
        for part, module in parts.items()
        for name, buffer in module.named_buffers()
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SMALL_GRAPHS else [pytest.mark.slow])
        for name in PLAIN
    ],
)
def test_the_compiled_step_compiles(name: str) -> None:
    pair, x = CASES[name].make()
    step = make_step(pair, compiled=True)
    before = snapshot(pair)
    losses = torch.stack([step(x) for _ in range(3)])
    assert step.fallback_reason is None
    assert losses.isfinite().all()
    after = snapshot(pair)
    assert not any(torch.equal(before[key], after[key]) for key in before)


@every
def test_an_evaluation_changes_nothing(name: str) -> None:
    pair, x = CASES[name].make()
    step = make_step(pair, compiled=False)
    step(x)
    before = {key: value.clone() for key, value in step.state_dict().items()}
    assert step.evaluate(x[:3]).isfinite()
    after = step.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
