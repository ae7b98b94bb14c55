"""The stick-breaking autoencoder against quadrature, where two or three pieces allow it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import guides
from guides import AmortizedSticks
from pyro_models import pairs
from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.infer import ELBO, log_likelihood
from pyro_models.likelihoods import LearnedScale, Normal
from pyro_models.stick_breaking_vae import StickBreakingVAE
from tests.unchecked import unchecked

CLASSES = [
    guides.AmortizedKumaraswamy,
    guides.AmortizedBeta,
    guides.AmortizedLogitNormal,
    guides.AmortizedGammaRatio,
]
each = pytest.mark.parametrize("posterior", CLASSES)
two_or_three = pytest.mark.parametrize("truncation", [2, 3])
PARTICLES = 20_000
ALPHA = 3.0


def small(
    truncation: int, posterior: type[AmortizedSticks], move_guide: bool = True
) -> tuple[pairs.Pair, Tensor]:
    """A pair away from its start, in float64, and two data."""
    pyro.set_rng_seed(7)
    pair = pairs.stick_breaking_vae(4, truncation, ALPHA, hidden=(3,), posterior=posterior)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]).double()
    for module in (pair.model, pair.guide):
        module.double()
        for parameter in module.parameters():
            if move_guide or module is pair.model:
                parameter.data += 0.7 * torch.randn_like(parameter)
    return pair, x


def grid(sticks: int) -> tuple[Tensor, Tensor]:
    """Fractions at equal steps of their log-odds, and each point's share of an integral over v."""
    y = torch.linspace(-45, 30, 301, dtype=torch.float64)
    v = torch.sigmoid(y)
    share = (y[1] - y[0]) * v * torch.sigmoid(-y)
    points = torch.cartesian_prod(*[v] * sticks).reshape(-1, sticks)
    shares = torch.cartesian_prod(*[share] * sticks).reshape(-1, sticks).prod(-1)
    return points, shares


def log_bernoulli(model: Any, v: Tensor, x: Tensor) -> Tensor:
    """log p(x | v) from the weights of the network: pieces and perceptron written out."""
    if v.shape[-1] == 1:
        pieces = torch.cat([v, 1 - v], -1)
    else:
        first, second = v[:, :1], v[:, 1:]
        pieces = torch.cat([first, second * (1 - first), (1 - first) * (1 - second)], -1)
    w = dict(model.decoder.named_parameters())
    hidden = (pieces @ w["body.0.weight"].T + w["body.0.bias"]).clamp_min(0)
    logits = hidden @ w["output.weight"].T + w["output.bias"]
    return (x.unsqueeze(1) * logits - nn.functional.softplus(logits)).sum(-1)  # (data, points)


def log_prior(v: Tensor) -> Tensor:
    return (np.log(ALPHA) + (ALPHA - 1) * (-v).log1p()).sum(-1)


def quadrature(pair: pairs.Pair, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expected log-likelihood and KL summed over the data, and log p(x) of each."""
    v, share = grid(int(pair.model.truncation) - 1)  # type: ignore[arg-type]
    log_x = log_bernoulli(pair.model, v, x)
    q: Any = pair.guide.posterior(x)  # type: ignore[operator]
    log_q = q.base_dist.log_prob(v.unsqueeze(1)).sum(-1).T  # (data, points)
    mass = log_q.exp() * share
    assert torch.allclose(mass.sum(-1), torch.ones(2).double(), atol=1e-6)
    divergence = (mass * (log_q - log_prior(v))).sum()
    evidence = (log_x + log_prior(v) + share.log()).logsumexp(-1)
    return (mass * log_x).sum(), divergence, evidence


@each
@two_or_three
def test_the_elbo_is_its_integral(posterior: type[AmortizedSticks], truncation: int) -> None:
    pair, x = small(truncation, posterior)
    fit, divergence, evidence = quadrature(pair, x)
    terms = [ELBO(num_particles=500).terms(pair.model, pair.guide, x) for _ in range(40)]
    assert terms[0].analytic == ("v",)
    assert abs(2 * terms[0].kl["v"] - divergence) < 1e-5 * (1 + divergence)
    found = torch.stack([2 * t.reconstruction for t in terms])
    assert abs(found.mean() - fit) < 4 * found.std() / len(found) ** 0.5
    assert fit - divergence < evidence.sum()


@each
@two_or_three
def test_so_are_its_gradients(posterior: type[AmortizedSticks], truncation: int) -> None:
    pair, x = small(truncation, posterior)
    named = [*pair.model.named_parameters(), *pair.guide.named_parameters()]
    parameters = [parameter for _, parameter in named]
    fit, divergence, _ = quadrature(pair, x)
    exact = torch.autograd.grad(fit - divergence, parameters)
    objective = ELBO(num_particles=500)
    runs = [
        torch.autograd.grad(-objective.differentiable_loss(pair.model, pair.guide, x), parameters)
        for _ in range(40)
    ]
    # 4 standard errors for one number; a fifth for the largest of about sixty.
    for (name, _), wanted, *found in zip(named, exact, *runs, strict=True):
        drawn = torch.stack(found)
        error = drawn.std(0) / len(drawn) ** 0.5
        assert ((drawn.mean(0) - wanted).abs() <= 5 * error + 1e-5).all(), name


@each
@two_or_three
def test_importance_sampling_finds_the_evidence(
    posterior: type[AmortizedSticks], truncation: int
) -> None:
    # The guide stays near the prior. A logit-normal's tails are lighter than the prior's, so that
    # weights have no variance, and a narrow one's standard error says nothing.
    pair, x = small(truncation, posterior, move_guide=False)
    evidence = quadrature(pair, x)[2]
    found = log_likelihood(pair.model, pair.guide, x, num_samples=PARTICLES)
    assert ((found.value - evidence).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.05


def test_simulated_codes_follow_the_prior() -> None:
    model = StickBreakingVAE(3, truncation=4, concentration=2.0)
    trace: Any = poutine.trace(model).get_trace(num_data=PARTICLES)
    assert trace.nodes["v"]["value"].shape == (PARTICLES, 3)
    weights = model.weights(trace.nodes["v"]["value"])
    left = (2 / 3) ** torch.arange(4)
    wanted = torch.cat([left[:3] / 3, left[3:]])
    error = weights.std(0) / PARTICLES**0.5
    assert ((weights.mean(0) - wanted).abs() < 4 * error).all()
    assert torch.allclose(weights.sum(-1), torch.ones(PARTICLES))


def test_fractions_of_zero_and_one_are_survived() -> None:
    model = StickBreakingVAE(3, truncation=4)
    v = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    model.decode(model.weights(v)).log_prob(torch.ones(3)).sum().backward()
    assert isinstance(v.grad, Tensor)
    assert v.grad.isfinite().all()
    wanted = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert torch.allclose(model.weights(v), wanted, atol=1e-6)


def test_initialised_it_starts_at_the_training_mean() -> None:
    model = StickBreakingVAE(2, 3, likelihood=Normal(), decoder=None)
    x = torch.tensor([[-5.0, 900.0], [3.0, 100.0]])
    model.initialize(x)
    assert torch.allclose(model.decoder.output_bias, x.mean(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StickBreakingVAE(0, 3), "data_dim=0"),
        (lambda: StickBreakingVAE(3, 1), "truncation=1"),
        (lambda: StickBreakingVAE(3, 3, concentration=0.0), "concentration=0.0"),
        (lambda: StickBreakingVAE(3, 3, hidden=(0,)), r"hidden\[0\]=0"),
        (lambda: StickBreakingVAE(3, 3, hidden=(4,), decoder=nn.Linear(3, 3)), "not both"),
        (lambda: StickBreakingVAE(3, 3, decoder=nn.Linear(3, 2))(), r"expects \(1, 3\)"),
        (
            lambda: StickBreakingVAE(3, 3, likelihood=Normal(LearnedScale(data_dim=4))),
            "4 dimensions.*data_dim=3",
        ),
        (
            lambda: pairs.stick_breaking_vae(3, posterior=AmortizedSticks),  # type: ignore[type-abstract]
            "no class of guides",
        ),
        (
            lambda: pairs.stick_breaking_vae(3, posterior=guides.AmortizedNormal),  # type: ignore[arg-type]
            "AmortizedKumaraswamy",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


def test_data_it_cannot_explain_are_refused() -> None:
    model = StickBreakingVAE(3, 3)
    with pytest.raises(SupportError, match="DynamicBinarization"):
        model.check(torch.full((2, 3), 0.5))
    with pytest.raises(DataError, match=r"\(batch, 3\)"):
        model.check(torch.zeros(2, 4))
