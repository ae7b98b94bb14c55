import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

import pyro_models.distributions.kl  # noqa: F401 (what it registers is tested)


def pair(batch: tuple[int, ...], dim: int) -> tuple[MultivariateNormal, Independent]:
    raw = torch.randn(*batch, dim, dim, dtype=torch.float64)
    tril = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
    p = MultivariateNormal(torch.randn(*batch, dim, dtype=torch.float64), scale_tril=tril)
    loc = torch.randn(dim, dtype=torch.float64)
    return p, Independent(Normal(loc, torch.rand(dim, dtype=torch.float64) + 0.5), 1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_it_equals_the_divergence_of_two_full_normals(batch: tuple[int, ...]) -> None:
    p, q = pair(batch, 4)
    full = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    assert torch.allclose(kl_divergence(p, q), kl_divergence(p, full), atol=1e-10)
    assert kl_divergence(p, q).shape == batch


def test_it_equals_its_monte_carlo_estimate() -> None:
    p, q = pair((2,), 3)
    z = p.sample(torch.Size((20_000,)))
    terms = p.log_prob(z) - q.log_prob(z)
    error = terms.std(0) / len(z) ** 0.5
    assert ((terms.mean(0) - kl_divergence(p, q)).abs() < 4 * error).all()


def test_it_serves_pyros_distributions_expanded_over_particles() -> None:
    loc, tril = torch.randn(2, 3), torch.eye(3).expand(2, 3, 3)
    p = dist.MultivariateNormal(loc, scale_tril=tril).expand((5, 2))
    q = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1).expand((5, 2))
    wanted = 0.5 * loc.square().sum(-1)
    assert torch.allclose(kl_divergence(p, q), wanted.expand(5, 2), atol=1e-6)


def test_its_gradient_agrees_with_finite_differences() -> None:
    p, q = pair((2,), 3)
    inputs = tuple(t.detach().requires_grad_() for t in (p.loc, p.scale_tril, q.mean, q.stddev))

    def divergence(*args: torch.Tensor) -> torch.Tensor:
        loc, tril, prior_loc, prior_scale = args
        posterior = MultivariateNormal(loc, scale_tril=tril.tril(), validate_args=False)
        return kl_divergence(posterior, Independent(Normal(prior_loc, prior_scale), 1))

    assert torch.autograd.gradcheck(divergence, inputs)


def test_what_it_does_not_know_it_says() -> None:
    p, _ = pair((), 3)
    with pytest.raises(NotImplementedError):
        kl_divergence(p, Independent(Laplace(torch.zeros(3), torch.ones(3)), 1))
