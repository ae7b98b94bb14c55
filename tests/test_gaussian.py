"""One normal: closed forms against SciPy, numerical search and the prior's own density."""

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from scipy.stats import invwishart, multivariate_normal
from torch import Tensor

from pyro_models.covariances import Covariance, Diagonal, Full, Spherical, Tied
from pyro_models.errors import DataError, OptionError
from pyro_models.gaussian import Gaussian, NormalInverseWishart
from tests.unchecked import unchecked

KINDS = (Full(), Diagonal(), Spherical())
every = pytest.mark.parametrize("covariance", KINDS, ids=repr)


def data(count: int = 30, dim: int = 3) -> Tensor:
    mixing = torch.randn(dim, dim, dtype=torch.float64)
    return torch.randn(count, dim, dtype=torch.float64) @ mixing + 5


def some_prior() -> NormalInverseWishart:
    root = torch.randn(3, 3, dtype=torch.float64)
    mean = torch.tensor([4.0, 5.0, 7.0]).double()
    return NormalInverseWishart(mean, 2.5, root @ root.T + torch.eye(3), 6.5)


def test_maximum_likelihood_is_mean_and_covariance() -> None:
    x = data()
    model = Gaussian(3).double()
    model.maximize(x, model.posterior(x))
    torch.testing.assert_close(model.mean.detach(), x.mean(0))
    torch.testing.assert_close(model.covariance_matrix, x.T.cov(correction=0))
    scipys = multivariate_normal(x.mean(0).numpy(), np.cov(x.T.numpy(), bias=True))
    wanted = torch.from_numpy(scipys.logpdf(x.numpy()))
    torch.testing.assert_close(model.log_prob(x), wanted)
    torch.testing.assert_close(model.posterior(x).log_prob, wanted)


def test_simpler_covariances_keep_what_they_can() -> None:
    x = data()
    variances = x.var(0, correction=0)
    for covariance, wanted in ((Diagonal(), variances), (Spherical(), variances.mean().expand(3))):
        model = Gaussian(3, covariance).double()
        model.initialize(x)
        torch.testing.assert_close(model.covariance_matrix, torch.diag(wanted))


def search(model: Gaussian, x: Tensor) -> float:
    """The best log joint density that gradients find, from where the model is."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = -model.log_prob(x).sum() - model.log_prior()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return -closure()


@every
@pytest.mark.parametrize("with_prior", [False, True])
def test_no_search_finds_a_better_one(covariance: Covariance, with_prior: bool) -> None:
    x = data(8)
    prior = some_prior() if with_prior else None
    model = Gaussian(3, covariance, prior).double()
    found = search(model, x)  # from unit covariance at the origin
    model.initialize(x)
    best = (model.log_prob(x).sum() + model.log_prior()).item()
    assert best >= found - 1e-9
    assert best == pytest.approx(found, abs=1e-4)


def test_the_mode_is_its_formula() -> None:
    # Normal-inverse-gamma in one dimension, with numbers one can do by hand: x = 1, 3 and a prior
    # worth two data at 0, Psi = 3, nu = 4: mu = 4 / 4, Sigma = (3 + 2 + (2 * 2 / 4) * 4) / 9 = 1.
    model = Gaussian(1, prior=NormalInverseWishart(strength=2.0, scale=3.0, degrees=4.0)).double()
    model.initialize(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    assert model.mean.item() == pytest.approx(1.0)
    assert model.covariance_matrix.item() == pytest.approx(1.0)


def test_scipy_has_the_priors_density() -> None:
    prior = some_prior()
    mean, sigma = torch.randn(3).double(), torch.eye(3).double() * 2 + 0.3
    scale = torch.as_tensor(prior.scale).numpy()
    wanted = invwishart(prior.degrees, scale).logpdf(sigma.numpy())
    wanted += multivariate_normal(
        torch.as_tensor(prior.mean).numpy(), sigma.numpy() / prior.strength
    ).logpdf(mean.numpy())
    assert prior.log_prob(mean, sigma).item() == pytest.approx(wanted)


def test_with_many_data_the_prior_is_forgotten_and_with_few_it_rules() -> None:
    prior = NormalInverseWishart(strength=1.0, scale=1.0)
    x = data(100_000)
    model = Gaussian(3, prior=prior).double()
    model.initialize(x)
    torch.testing.assert_close(model.covariance_matrix, x.T.cov(), rtol=1e-2, atol=1e-2)
    model.initialize(x[:1])
    assert torch.linalg.eigvalsh(model.covariance_matrix).min() > 1 / 12


@every
def test_the_program_has_the_same_density(covariance: Covariance) -> None:
    x = data(5)
    model = Gaussian(3, covariance).double()
    model.initialize(x)
    trace: Any = poutine.trace(model).get_trace(x, num_data=50)
    exact = 10 * model.log_prob(x).sum()
    torch.testing.assert_close(trace.log_prob_sum(), exact)
    with torch.no_grad():
        drawn = model(num_data=40_000)
    sigma = model.covariance_matrix
    variances = sigma.diagonal()
    error = ((variances.outer(variances) + sigma.square()) / len(drawn)).sqrt()
    assert ((drawn.T.cov() - sigma).abs() < 4.5 * error).all()


def test_stock_svi_finds_the_closed_form() -> None:
    x = torch.randn(50, 2) * torch.tensor([0.5, 2.0]) + 1
    model, closed = Gaussian(2), Gaussian(2)
    closed.initialize(x)
    svi = SVI(model, lambda x: None, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step(x)
    assert (closed.log_prob(x).mean() - model.log_prob(x).mean()).item() == pytest.approx(
        0.0, abs=1e-3
    )
    assert list(pyro.get_param_store().keys()) == []


@every
def test_degrees_of_freedom(covariance: Covariance) -> None:
    wanted = {Full: 3 + 6, Diagonal: 3 + 3, Spherical: 3 + 1}[type(covariance)]
    assert Gaussian(3, covariance).num_free_parameters == wanted


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "x",
    [
        torch.full((1, 2), 3.0),  # one datum
        torch.full((9, 2), 1e5),  # duplicates
        torch.stack([torch.arange(9.0), torch.full((9,), 7.0)], -1),  # a constant column
        torch.tensor([[0.0, 1.0], [1.0, 0.0], [1e8, 1e8]]),  # an outlier
    ],
)
def test_edges(covariance: Covariance, dtype: torch.dtype, x: Tensor) -> None:
    model = Gaussian(2, covariance).to(dtype)
    x = x.to(dtype)
    model.initialize(x)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(model.mean.detach(), x.double().mean(0).to(dtype))
    variances = x.double().var(0, correction=0)
    if isinstance(covariance, Spherical):
        variances = variances.mean().expand(2)
    torch.testing.assert_close(
        model.covariance_matrix.diagonal().double(), variances.clamp_min(1e-6), rtol=1e-3, atol=0.0
    )
    assert model.posterior(x).log_prob.isfinite().all()


def test_far_from_the_origin_float32_keeps_its_digits() -> None:
    x = (torch.randn(1000, 2) / 8).round(decimals=3)
    away = (x.double() + 4096).float()  # multiples of 1/2048 are left
    model = Gaussian(2)
    model.initialize(away)
    torch.testing.assert_close(
        model.covariance_matrix.double(), away.double().T.cov(correction=0), rtol=1e-4, atol=1e-6
    )


def test_whole_numbers_and_one_dimension() -> None:
    model = Gaussian(1)
    model.initialize(torch.tensor([[1], [3]]))
    assert model.covariance_matrix.item() == pytest.approx(1.0)


def test_parameters_can_be_set() -> None:
    model = Gaussian(2)
    model.set(mean=torch.tensor([1.0, 2.0]), covariance=torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    torch.testing.assert_close(model.covariance_matrix, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    with pytest.raises(OptionError, match=r"\(2,\)"), unchecked():
        model.set(mean=torch.zeros(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing(bad: float) -> None:
    model = Gaussian(2)
    x = torch.tensor([[0.0, 1.0], [bad, 2.0]])
    with pytest.raises(DataError, match="not finite"):
        model.initialize(x)
    with pytest.raises(DataError, match="NaN or infinity"):
        model.maximize(x)
    assert torch.equal(model.mean, torch.zeros(2))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 3), r"\(batch, 2\)"),
        (torch.zeros(0, 2), "neither of them 0"),
        (torch.zeros(2, 2).double(), "torch.float64"),
        (torch.full((2, 2), 1e18), "overflows"),
    ],
)
def test_data_it_cannot_explain_are_refused(x: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Gaussian(2).check(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gaussian(0), "data_dim=0"),
        (lambda: Gaussian(2, Tied()), "single normal"),
        (lambda: Gaussian(2, "full"), "Full()"),  # type: ignore[arg-type]
        (lambda: NormalInverseWishart(strength=0.0), "strength"),
        (lambda: NormalInverseWishart(scale=-1.0), "scale"),
        (lambda: Gaussian(2, prior=NormalInverseWishart(degrees=1.0)), "degrees=1"),
        (lambda: Gaussian(2, prior=NormalInverseWishart(mean=torch.zeros(3))), r"\(3,\)"),
        (lambda: Gaussian(2, prior=NormalInverseWishart(scale=-torch.eye(2))), "definite"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()
