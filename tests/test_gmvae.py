"""The Gaussian-mixture VAE against enumeration by hand, quadrature and stock Pyro."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from guides import AmortizedNormal, MixtureCodes
from pyro_models.clustering import terms
from pyro_models.errors import DataError, OptionError
from pyro_models.gmvae import GaussianMixtureVAE
from pyro_models.infer import ELBO, Enumerated, MonteCarloKL, Objective
from pyro_models.vade import VaDE
from pyro_models.vae import VAE
from tests.clustered_cases import (
    DIM,
    NUM_DATA,
    K,
    by_quadrature,
    component_joint,
    small_gmvae,
    small_vade,
    terms_at,
)
from tests.unchecked import unchecked

OBJECTIVES = {
    "summed": ELBO(summed=("component",)),
    "enumerated": Enumerated(ELBO(), over=("component",)),
}
each = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
MAKE: dict[str, Any] = {"gmvae": small_gmvae, "vade": small_vade}
both = pytest.mark.parametrize("name", MAKE)


def parameters(*modules: torch.nn.Module) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def codes(guide: Any, x: Tensor, seed: int) -> dict[str, Tensor]:
    """What the guide draws from a seed, on a path to its parameters."""
    pyro.set_rng_seed(seed)
    trace = poutine.trace(guide).get_trace(x)
    return {name: trace.nodes[name]["value"] for name in ("z", "w") if name in trace.nodes}


@both
def test_the_posterior_of_the_component_is_bayes_rule(name: str) -> None:
    model, _, _ = MAKE[name](2)
    z = 3 * torch.randn(5, 7, 2, dtype=torch.float64)
    w = torch.randn(5, 7, 1, dtype=torch.float64) if name == "gmvae" else None
    joint = component_joint(model, z, w).exp()
    wanted = joint / joint.sum(-1, keepdim=True)
    found = model.component_posterior(z, w) if w is not None else model.component_posterior(z)
    assert torch.allclose(found.probs, wanted, rtol=1e-10)


@both
def test_the_posterior_of_the_component_stays_finite_far_away(name: str) -> None:
    model, _, _ = MAKE[name](2)
    model.float()
    z = torch.full((2, 2), 1e4, requires_grad=True)
    given = {"z": z} | ({"w": torch.zeros(2, 1)} if name == "gmvae" else {})
    log_share = model.component_posterior(**given).logits
    assert log_share.isfinite().all()
    assert torch.allclose(log_share.exp().sum(-1), torch.ones(2))
    (gradient,) = torch.autograd.grad(log_share[:, 0].sum(), z)
    assert gradient.isfinite().all()


@each
@both
def test_the_bound_at_a_draw_is_the_sum_over_components_by_hand(
    name: str, objective: Objective
) -> None:
    model, guide, x = MAKE[name](2)
    both_parts = parameters(model, guide)
    drawn = codes(guide, x, seed=7)
    wanted = -terms_at(model, guide, x, drawn["z"], drawn.get("w")).elbo.sum()
    pyro.set_rng_seed(7)
    found = objective.differentiable_loss(model, guide, x)
    assert torch.allclose(found, wanted, rtol=1e-10)
    pairs = zip(
        torch.autograd.grad(found, both_parts), torch.autograd.grad(wanted, both_parts), strict=True
    )
    assert all(torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10) for ours, theirs in pairs)


@both
def test_the_bound_and_its_gradient_are_those_by_quadrature(name: str) -> None:
    model, guide, x = MAKE[name]()
    both_parts = parameters(model, guide)
    exact = -by_quadrature(model, guide, x).elbo.sum()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(exact, both_parts)])
    losses, gradients = [], []
    objective = ELBO(num_particles=200, summed=("component",))
    pyro.set_rng_seed(8)
    for _ in range(100):
        loss = objective.differentiable_loss(model, guide, x)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, both_parts)]))
        losses.append(loss.detach())
    values, rows = torch.stack(losses), torch.stack(gradients)
    assert abs(values.mean() - exact) < 4 * values.std() / len(values) ** 0.5
    error = rows.std(0) / len(rows) ** 0.5
    # Of a few dozen parameters one in a thousand would be beyond 4 standard errors by chance.
    assert ((rows.mean(0) - wanted).abs() < 4 * error + 1e-10).all()


@both
def test_the_four_terms_are_those_by_quadrature_and_add_up_to_the_bound(name: str) -> None:
    model, guide, x = MAKE[name]()
    wanted = by_quadrature(model, guide, x)
    pyro.set_rng_seed(10)
    found = [terms(model, guide, x, num_samples=200) for _ in range(50)]
    for ours, exact in (
        ("reconstruction", wanted.reconstruction),
        ("conditional_prior", wanted.z),
        ("w_prior", wanted.w),
        ("component_prior", wanted.component),
        ("elbo", wanted.elbo),
    ):
        values = torch.tensor([getattr(one, ours) or 0.0 for one in found], dtype=torch.float64)
        error = 4 * values.std() / len(values) ** 0.5 + 1e-6  # w's is exact; floats are rounded
        assert abs(values.mean() - exact.mean()) < error, ours
    for one in found:
        parts = one.conditional_prior + (one.w_prior or 0.0) + one.component_prior
        assert one.elbo == pytest.approx(one.reconstruction - parts, rel=1e-9)
    assert (found[0].w_prior is None) == (name == "vade")


@both
def test_the_four_terms_at_a_draw_are_those_by_hand(name: str) -> None:
    model, guide, x = MAKE[name](2)
    drawn = codes(guide, x, seed=7)
    wanted = terms_at(model, guide, x, drawn["z"], drawn.get("w"))
    pyro.set_rng_seed(7)
    found = ELBO(summed=("component",)).terms(model, guide, x)
    assert torch.allclose(found.reconstruction, wanted.reconstruction.mean(), rtol=1e-10)
    for site, divergence in found.kl.items():
        assert torch.allclose(divergence, getattr(wanted, site).mean(), rtol=1e-10), site
    assert set(found.kl) == set(guide.model.code_dims) | {"component"}


def test_vade_is_a_vae_with_the_mixture_as_its_prior() -> None:
    model, guide, x = small_vade(2)
    twin = VAE(DIM, 2, prior=Mixture(model), decoder=model.decoder).double()
    encoder = AmortizedNormal(DIM, 2, encoder=guide.encoder).double()
    results = []
    for program, inference, objective in (
        (model, guide, ELBO(summed=("component",))),
        (twin, encoder, ELBO()),
    ):
        pyro.set_rng_seed(11)
        loss = objective.differentiable_loss(program, inference, x)
        results.append((loss.detach(), torch.autograd.grad(loss, parameters(model, guide))))
    (ours, gradients), (theirs, wanted) = results
    assert torch.allclose(ours, theirs, rtol=1e-10)
    assert all(map(torch.allclose, gradients, wanted))


class Mixture(torch.nn.Module):
    """The prior of a VaDE, its components summed over by torch's own distribution."""

    def __init__(self, model: VaDE):
        super().__init__()
        self._held = (model,)

    def forward(self) -> Any:
        (model,) = self._held
        return dist.MixtureSameFamily(
            dist.Categorical(logits=model.weight_logits),
            dist.Normal(model.means, model.scales).to_event(1),
        )


@both
def test_stock_enumeration_gives_the_same_bound(name: str) -> None:
    model, guide, x = MAKE[name](2)
    pyro.set_rng_seed(9)
    ours = Enumerated(ELBO(kl=MonteCarloKL()), over=("component",)).loss(model, guide, x)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    pyro.set_rng_seed(9)
    in_the_guide = stock.loss(model, config_enumerate(guide, "parallel"), x)
    pyro.set_rng_seed(9)
    hidden = poutine.block(guide, hide=["component"])
    in_the_model = TraceEnum_ELBO(max_plate_nesting=1).loss(
        config_enumerate(model, "parallel"), hidden, x
    )
    assert in_the_guide == pytest.approx(ours, rel=1e-10)
    assert in_the_model == pytest.approx(ours, rel=1e-10)


@both
def test_the_joint_density_is_the_formula(name: str) -> None:
    model, guide, x = MAKE[name](2)
    drawn = codes(guide, x, seed=1)
    component = torch.tensor([0, 2, 1, 2])
    program = poutine.condition(model, {**drawn, "component": component})
    trace: Any = poutine.trace(program).get_trace(x)
    joint = component_joint(model, drawn["z"], drawn.get("w"))
    wanted = joint.gather(-1, component[:, None]).sum()
    found = trace.log_prob_sum(lambda site, _: site in ("z", "component"))
    assert torch.allclose(found, wanted, rtol=1e-10)


def test_the_codes_of_a_cluster_follow_its_component() -> None:
    model, _, _ = small_vade()
    model.set(means=torch.tensor([[-50.0], [0.0], [50.0]]))
    pyro.set_rng_seed(0)
    trace: Any = poutine.trace(model).get_trace(num_data=4000)
    component, z = trace.nodes["component"]["value"], trace.nodes["z"]["value"][:, 0]
    assert torch.equal((z / 50).round() + 1, component.double())
    counts = torch.bincount(component, minlength=K) / len(z)
    share = model.weights.detach()
    assert ((counts - share).abs() < 4 * (share * (1 - share) / len(z)).sqrt()).all()


@both
def test_components_are_set_where_they_are_asked_for(name: str) -> None:
    model, _, _ = MAKE[name](2)
    means, scales = torch.randn(K, 2).double(), torch.rand(K, 2).double() + 0.1
    model.set(means=means, scales=scales)
    wide = model.code_prior(500)
    assert torch.allclose(wide.mean.mean(0), means, atol=0.5 if name == "gmvae" else 1e-10)
    if isinstance(model, GaussianMixtureVAE):
        with torch.no_grad():
            model.components.output.weight.zero_()
        found = model.component_parameters(torch.randn(4, 1).double())
    else:
        found = model.means, model.scales
    assert torch.allclose(found[0], means.expand_as(found[0]), rtol=1e-6)
    assert torch.allclose(found[1], scales.expand_as(found[1]), rtol=1e-6)


@both
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"means": torch.zeros(2, 2), "scales": torch.ones(3, 2)}, r"means have shape \(2, 2\)"),
        ({"means": torch.zeros(3, 2), "scales": torch.zeros(3, 2)}, "numbers above 0"),
        ({"means": torch.full((3, 2), torch.nan), "scales": torch.ones(3, 2)}, "finite numbers"),
    ],
)
def test_components_that_cannot_be_are_refused(
    name: str, given: dict[str, Tensor], words: str
) -> None:
    model, _, _ = MAKE[name](2)
    with unchecked(), pytest.raises(OptionError, match=words):
        model.set(**{key: value.double() for key, value in given.items()})


def test_weights_that_are_none_are_refused() -> None:
    with pytest.raises(OptionError, match="above 0"):
        GaussianMixtureVAE(DIM, 1, K, weights=torch.tensor([0.5, 0.5, 0.0]))
    with pytest.raises(OptionError, match=r"weights have shape \(2,\)"):
        GaussianMixtureVAE(DIM, 1, K, weights=torch.ones(2))


@both
def test_data_of_another_shape_are_refused(name: str) -> None:
    model, guide, _ = MAKE[name]()
    for program in (model, guide):
        with pytest.raises(DataError, match=r"\(batch, 2\)"):
            program(torch.zeros(NUM_DATA, 3, dtype=torch.float64))
    with pytest.raises(DataError, match="got none"):
        guide()


def test_a_guide_needs_a_model_with_a_mixture() -> None:
    other: Any = torch.nn.Linear(1, 1)
    with unchecked(), pytest.raises(OptionError, match="no code_dims"):
        MixtureCodes(other)
