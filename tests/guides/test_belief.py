"""The model's own belief as a guide."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from torch import nn

from guides import Belief, ConditionalResponsibilities
from pyro_models import pairs
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import ELBO, Enumerated, MonteCarloKL, em, log_weights
from tests.unchecked import unchecked


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-6.0, 0.0, 6.0]).repeat_interleave(15).unsqueeze(-1)
    return centres + torch.randn(45, 1, generator=generator)


@pytest.mark.parametrize("name", ["bayesian_gaussian_mixture", "dirichlet_process_mixture"])
def test_its_bound_is_no_lower_than_that_of_coordinate_ascent(name: str) -> None:
    x = data()
    option = "truncation" if name.startswith("dirichlet") else "num_components"
    pair = pairs.with_belief(pairs.build(name, x, **{option: 5}))
    fitted = em(pair.model, x, guide=pair.guide, seed=0, progress=False)
    pyro.set_rng_seed(0)
    objective = Enumerated(ELBO(2000, kl=MonteCarloKL()), over=("component",))
    weights = objective.weights(pair.model, pair.guide, (x,), {})
    draws = weights.joint / len(x)
    error = draws.std() / len(draws) ** 0.5
    assert fitted.elbo is not None
    # Each datum's component has its exact posterior here, and one for all draws there.
    assert fitted.elbo - 4 * error < draws.mean() < fitted.elbo + 0.2
    assert fitted.guide is pair.guide


def test_the_component_given_what_is_shared_is_bayes_rule() -> None:
    x = data()
    pair = pairs.with_belief(pairs.build("bayesian_gaussian_mixture", x, num_components=3))
    trace = pyro.poutine.trace(pair.guide).get_trace(x)
    nodes: dict[str, Any] = dict(trace.nodes)
    model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace)).get_trace(x)
    weights = nodes["weights"]["value"]
    found = nodes["component"]["fn"].logits.log_softmax(-1)
    component = nodes["component"]["value"]
    model.compute_log_prob()
    observed: Any = model.nodes["x"]
    joint = observed["log_prob"] + weights[component].log()
    evidence = joint - found[torch.arange(len(x)), component]
    again = pyro.poutine.trace(
        pyro.poutine.condition(
            pyro.poutine.replay(pair.model, trace), {"component": (component + 1) % 3}
        )
    ).get_trace(x)
    again.compute_log_prob()
    observed = again.nodes["x"]
    other = observed["log_prob"] + weights[(component + 1) % 3].log()
    torch.testing.assert_close(
        other - found[torch.arange(len(x)), (component + 1) % 3], evidence, atol=1e-3, rtol=1e-4
    )


def test_particles_and_stock_pyro_take_it() -> None:
    x = data()
    pair = pairs.with_belief(pairs.build("dirichlet_process_mixture", x, truncation=4))
    weights = log_weights(pair.model, pair.guide, x, num_particles=3)
    assert weights.local.shape == (3, len(x))
    assert weights.has_global_latents
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(pair.model, pair.guide, x)))
    drawn = Predictive(pair.model, guide=pair.guide, num_samples=2)(x)
    assert drawn["component"].shape == (2, len(x))
    assert list(pair.guide.parameters()) == []


def test_refusals() -> None:
    with unchecked(), pytest.raises(OptionError, match="Linear has no draw_belief"):
        Belief(nn.Linear(1, 1))  # type: ignore[arg-type]
    pair = pairs.with_belief(pairs.build("dirichlet_process_mixture", data(), truncation=4))
    with pytest.raises(DataError, match="give x"):
        pair.guide()
    with unchecked(), pytest.raises(OptionError, match="Linear has no conditional"):
        ConditionalResponsibilities(nn.Linear(1, 1))  # type: ignore[arg-type]
    plain = pairs.vae(2)
    assert pairs.with_belief(plain) is plain
