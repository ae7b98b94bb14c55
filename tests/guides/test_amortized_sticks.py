"""Each family against its density, its divergence and gradients against quadrature."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Beta, kl_divergence

import guides
from guides import (
    AmortizedSticks,
    BetaSticks,
    GammaRatioSticks,
    KumaraswamySticks,
    LogitNormalSticks,
    StickFamily,
)
from pyro_models.distributions.beta_draws import GammaRatio, ImplicitBeta
from pyro_models.distributions.logit_normal import LogitNormal
from pyro_models.errors import DataError, OptionError
from tests.unchecked import unchecked

FAMILIES = [KumaraswamySticks(), BetaSticks(), LogitNormalSticks(), GammaRatioSticks()]
GUIDES = [
    guides.AmortizedKumaraswamy,
    guides.AmortizedBeta,
    guides.AmortizedLogitNormal,
    guides.AmortizedGammaRatio,
]
each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
guide_classes = pytest.mark.parametrize("kind", GUIDES)
OUTPUTS = torch.tensor([0.7, -0.4, -3.0, 1.0], dtype=torch.float64)  # two fractions
DRAWS = 20_000


def expectation(family: StickFamily, outputs: Tensor, f: Any) -> Tensor:
    """E[f(v)] of each fraction by the trapezoidal rule over log-odds, which exp(-|y|) ends."""
    y = torch.linspace(-80, 35, 20_001, dtype=torch.float64).unsqueeze(-1)
    v = torch.sigmoid(y)
    density = family.distribution(outputs).base_dist.log_prob(v).exp()
    return torch.trapezoid(density * v * torch.sigmoid(-y) * f(v), y, dim=0)


@each
def test_draws_have_the_density(family: StickFamily) -> None:
    q: Any = family.distribution(OUTPUTS)
    v = q.rsample(torch.Size([DRAWS])).detach()
    assert torch.allclose(expectation(family, OUTPUTS, torch.ones_like), torch.ones(2).double())
    for f in (lambda v: v, torch.square, torch.log):
        found = f(v)
        error = found.std(0) / DRAWS**0.5
        assert ((found.mean(0) - expectation(family, OUTPUTS, f)).abs() < 4 * error).all()
    grid = torch.sigmoid(torch.linspace(-80, 35, 40_001, dtype=torch.float64)).unsqueeze(-1)
    density = q.base_dist.log_prob(grid).exp()
    cdf = torch.cumulative_trapezoid(density, grid, dim=0)
    for stick in range(2):
        at = np.interp(v[:, stick].numpy(), grid[1:, 0].numpy(), cdf[:, stick].numpy())
        assert stats.kstest(at, "uniform").pvalue > 1e-3


@each
def test_moments_are_those_of_the_density(family: StickFamily) -> None:
    q = family.distribution(OUTPUTS)
    mean = expectation(family, OUTPUTS, lambda v: v)
    assert torch.allclose(q.mean, mean, atol=1e-6)
    variance = expectation(family, OUTPUTS, torch.square) - mean.square()
    assert torch.allclose(q.variance, variance, atol=1e-6)
    base: Any = q.base_dist
    entropy = -expectation(family, OUTPUTS, base.log_prob)
    assert torch.allclose(base.entropy(), entropy, atol=1e-5)


@each
def test_gradients_of_draws_are_those_of_expectations(family: StickFamily) -> None:
    for f in (lambda v: (3 * v).sin(), torch.log1p):
        outputs = OUTPUTS.clone().requires_grad_()
        (exact,) = torch.autograd.grad(expectation(family, outputs, f).sum(), outputs)
        copies = OUTPUTS.expand(DRAWS, -1).clone().requires_grad_()
        (found,) = torch.autograd.grad(f(family.distribution(copies).rsample()).sum(), copies)
        error = found.std(0) / DRAWS**0.5
        assert ((found.mean(0) - exact).abs() < 4 * error).all()


@each
def test_the_divergence_is_its_integral_and_so_is_its_gradient(family: StickFamily) -> None:
    prior = Beta(torch.ones(2).double(), torch.full((2,), 5.0).double())
    outputs = OUTPUTS.clone().requires_grad_()
    found = kl_divergence(family.distribution(outputs), prior_of(prior)).sum()

    def excess(v: Tensor) -> Tensor:
        log_q: Tensor = family.distribution(outputs).base_dist.log_prob(v)
        return log_q - prior.log_prob(v)

    wanted = expectation(family, outputs, excess).sum()
    assert torch.allclose(found, wanted, rtol=1e-5)
    one, other = (torch.autograd.grad(value, outputs)[0] for value in (found, wanted))
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def prior_of(prior: Beta) -> torch.distributions.Independent:
    return torch.distributions.Independent(prior, 1)


@each
def test_zeros_stand_for_the_prior_or_near_it(family: StickFamily) -> None:
    prior = prior_of(Beta(torch.ones(3), torch.full((3,), 5.0)))
    divergence = kl_divergence(family.distribution(torch.zeros(6)), prior)
    assert abs(divergence) < (3 * 0.06 if isinstance(family, LogitNormalSticks) else 1e-5)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_outputs_leave_all_finite(family: StickFamily, dtype: torch.dtype) -> None:
    sizes = [-1e30, -1e3, -10.0, 0.0, 10.0, 1e3, 1e30]
    pairs = torch.cartesian_prod(*[torch.tensor(sizes, dtype=dtype)] * 2)
    outputs = pairs.expand(50, -1, -1).clone().requires_grad_()
    q = family.distribution(outputs)
    v = q.rsample()
    prior = Beta(torch.ones(1, dtype=dtype), torch.full((1,), 5.0, dtype=dtype))
    terms = (v, q.log_prob(v), kl_divergence(q, prior_of(prior)), prior.log_prob(v))
    assert ((v > 0) & (v < 1)).all()
    for term in terms:
        (gradient,) = torch.autograd.grad(term.sum(), outputs, retain_graph=True)
        assert term.isfinite().all()
        assert gradient.isfinite().all()


def test_the_gamma_ratio_keeps_what_a_number_cannot() -> None:
    """At small shapes log v is far below what any float holds, with the moments of the Beta."""
    a, b = torch.tensor(0.02), torch.tensor(0.05)
    logs = GammaRatio(a, b).rsample_logs(torch.Size([DRAWS]))
    exact = [(torch.digamma(c) - torch.digamma(a + b)).item() for c in (a, b)]
    for found, mean in zip(logs, exact, strict=True):
        assert found.isfinite().all()
        assert found.min() < -120
        assert abs(found.mean() - mean) < 4 * found.std() / DRAWS**0.5


def test_the_gamma_ratio_draws_as_the_beta_does() -> None:
    a, b = torch.tensor(0.6), torch.tensor(2.5)
    drawn = [q(a, b).rsample(torch.Size([DRAWS])).numpy() for q in (GammaRatio, ImplicitBeta)]
    assert stats.ks_2samp(*drawn).pvalue > 1e-3
    assert stats.kstest(drawn[0], stats.beta(0.6, 2.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.4, 5.0, 10.0])
@pytest.mark.parametrize("loc", [-20.0, -2.0, 0.0, 3.0])
def test_the_logit_normals_integrals_hold_at_every_width(loc: float, scale: float) -> None:
    def integral(f: Any) -> float:
        ends = (loc - 9 * scale, loc + 9 * scale)
        points = [0.0] if ends[0] < 0 < ends[1] else None
        density = stats.norm(loc, scale).pdf
        value, _ = integrate.quad(
            lambda y: f(y) * density(y), *ends, points=points, limit=400, epsabs=1e-12
        )
        return float(value)

    q = LogitNormal(torch.tensor(loc).double(), torch.tensor(scale).double())
    assert abs(-q.mean_logs().log1m_v - integral(lambda y: np.logaddexp(0, y))) < 2e-8
    assert abs(-q.mean_logs().log_v - integral(lambda y: np.logaddexp(0, -y))) < 2e-8
    mean = integral(lambda y: 1 / (1 + math.exp(-y)))
    assert abs(q.mean - mean) < 2e-8
    spread = integral(lambda y: (1 / (1 + math.exp(-y)) - mean) ** 2)
    assert abs(q.variance - spread) < 2e-8


@guide_classes
def test_the_program_draws_the_fractions_of_each_datum(kind: type[AmortizedSticks]) -> None:
    guide = kind(12, 4, hidden=(5,))
    images = torch.randint(2, (6, 3, 2, 2), dtype=torch.uint8)
    trace: Any = poutine.trace(guide).get_trace(images, num_data=60)
    site = trace.nodes["v"]
    assert site["value"].shape == (6, 3)
    assert site["scale"] == 10
    assert site["fn"].has_rsample
    assert site["cond_indep_stack"][0].name == "data"


@guide_classes
def test_it_starts_near_the_prior(kind: type[AmortizedSticks]) -> None:
    guide = kind(64, 50, concentration=5.0)
    prior = prior_of(Beta(torch.ones(49), torch.full((49,), 5.0)))
    divergence = kl_divergence(guide.posterior(torch.randn(100, 64)), prior)
    assert divergence.mean() < (4.0 if kind is guides.AmortizedLogitNormal else 1.0)


def test_options_and_data_that_cannot_work_are_refused() -> None:
    kind = guides.AmortizedKumaraswamy
    with unchecked():
        for make, words in (
            (lambda: kind(3, 1), "truncation=1"),
            (lambda: kind(3, 3, concentration=-1.0), "concentration"),
            (lambda: kind(3, 3, concentration=1e6), "out of the families' reach"),
            (lambda: kind(3, 3, hidden=(4,), encoder=nn.Linear(3, 4)), "not both"),
            (lambda: kind(3, 3, encoder=nn.Linear(3, 5))(torch.zeros(2, 3)), "KumaraswamySticks"),
        ):
            with pytest.raises(OptionError, match=words):
                make()
        with pytest.raises(DataError, match="give x"):
            kind(3, 3)()
