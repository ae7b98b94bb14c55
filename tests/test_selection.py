"""Choosing between models: scikit-learn's criteria, and a conjugate model known in closed form."""

import math
import types
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import nn

from pyro_models import selection
from pyro_models.errors import DataError, OptionError
from pyro_models.selection import (
    ParetoWarning,
    compare,
    evidence,
    held_out,
    information_criteria,
    loo,
    psis_loo,
)

X = torch.randn(40, generator=torch.Generator().manual_seed(1)) + 0.7


class Mixture(nn.Module):
    """Two normal components with the parameters of a fitted scikit-learn mixture."""

    def __init__(self, fitted: SklearnMixture):
        super().__init__()
        self.weights, self.means, self.covariances = (
            nn.Parameter(torch.from_numpy(values))
            for values in (fitted.weights_, fitted.means_, fitted.covariances_)
        )
        self.num_free_parameters = fitted._n_parameters()

    def log_prob(self, x):
        normal = dist.MultivariateNormal(self.means, self.covariances)
        return (normal.log_prob(x.unsqueeze(1)) + self.weights.log()).logsumexp(-1)


def model(x=None, num_data=None):
    """m ~ N(0, 1), x_n ~ N(m, 1)."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    size = len(x) if x is not None else num_data or 1
    with pyro.plate("data", size):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def posterior_of(x, wider=1.0, off=0.0):
    """The exact posterior of m, or one that is wider and beside it."""
    precision = 1 + len(x)
    return dist.Normal(float(x.sum()) / precision + off, wider * precision**-0.5)


def guide_for(x, **how):
    def guide(*args, **kwargs):
        pyro.sample("m", posterior_of(x, **how))

    return guide


def exact_loo(x):
    """log p(x_n | the others): the posterior without datum n, and a unit of noise."""
    precision = len(x)  # 1 of the prior, and N - 1 data
    return dist.Normal((x.sum() - x) / precision, (1 + 1 / precision) ** 0.5).log_prob(x)


def exact_evidence(x):
    covariance = torch.eye(len(x)) + torch.ones(len(x), len(x))
    return float(dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x))


def labelled(x=None, num_data=None):
    """Two clusters at -m and m, m ~ N(0, 2)."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    size = len(x) if x is not None else num_data or 1
    with pyro.plate("data", size):
        k = pyro.sample("component", dist.Bernoulli(0.5))
        return pyro.sample("x", dist.Normal((2 * k - 1) * m, 1.0), obs=x)


def own_latents(x=None, num_data=None):
    """m ~ N(0, 1), z_n ~ N(m, 1), x_n ~ N(z_n, 1)."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    size = len(x) if x is not None else num_data or 1
    with pyro.plate("data", size):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def own_guide(x, num_data=None):
    m = pyro.sample("m", dist.Normal(0.5, 0.2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + m) / 2, 0.5**0.5))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_aic_and_bic_are_scikit_learns(covariance):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    fitted = SklearnMixture(2, covariance_type=covariance, random_state=0).fit(x.numpy())
    aic, bic = fitted.aic(x.numpy()), fitted.bic(x.numpy())
    if covariance == "tied":
        fitted.covariances_ = np.stack([fitted.covariances_] * 2)
    elif covariance == "diag":
        fitted.covariances_ = np.stack([np.diag(row) for row in fitted.covariances_])
    elif covariance == "spherical":
        fitted.covariances_ = np.stack([size * np.eye(3) for size in fitted.covariances_])
    found = information_criteria(Mixture(fitted), x)
    assert found.aic == pytest.approx(aic, rel=1e-10)
    assert found.bic == pytest.approx(bic, rel=1e-10)


def test_loo_is_the_closed_form_where_the_guide_is_exact():
    found = psis_loo(model, guide_for(X), X, num_samples=4000)
    error = (found.value - exact_loo(X)).abs()
    assert error.max() < 0.02
    assert error.mean() < 0.003
    assert found.guide_k <= 0.1
    assert found.num_bad == 0
    # One parameter: all of it is learned, but for what the prior knows.
    assert found.effective_parameters == pytest.approx(1.0, abs=0.35)


def test_loo_corrects_for_a_guide_that_is_not_the_posterior():
    guide = guide_for(X, wider=1.5, off=0.1)
    found = psis_loo(model, guide, X, num_samples=20_000)
    corrected = (found.value - exact_loo(X)).abs()
    plain = (found.uncorrected - exact_loo(X)).abs()
    assert corrected.max() < 0.02
    assert plain.mean() > 3 * corrected.mean()
    assert found.guide_k < 0.7


def test_uncorrected_loo_is_arvizs():
    arviz = loo.arviz
    draws = selection.draws.draw(model, guide_for(X), (X,), 500, 2**30)
    found = loo._estimate(draws)
    data = arviz.from_dict(
        posterior={"m": np.zeros((1, 500))}, log_likelihood={"x": draws.local.numpy()[None]}
    )
    theirs = arviz.loo(data, pointwise=True, reff=1.0)
    np.testing.assert_allclose(found.uncorrected.numpy(), theirs.loo_i.values, atol=1e-6)


def test_a_guide_far_from_the_posterior_is_told():
    with pytest.warns(ParetoWarning, match="far from the posterior"):
        found = psis_loo(model, guide_for(X, wider=0.2, off=0.3), X, num_samples=1000)
    assert found.guide_k > found.good_k


def test_one_datum_that_moves_everything_is_told():
    x = torch.cat([X[:10], torch.tensor([12.0])])
    with pytest.warns(ParetoWarning, match=r"of 11 leave-one-out values"):
        found = psis_loo(model, guide_for(x), x, num_samples=2000)
    assert found.pareto_k.argmax() == 10


def test_discrete_latents_are_summed_out_of_loo():
    x = torch.cat([X[:20] + 2, -2 - X[20:]])

    def sampled(*args):
        pyro.sample("m", dist.Normal(2.5, 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("component", dist.Bernoulli(0.5))  # never looked at

    def bare(*args):
        pyro.sample("m", dist.Normal(2.5, 0.2))

    results = []
    for guide in (sampled, bare):
        found = psis_loo(labelled, guide, x, num_samples=4000)
        results.append(found.value)
    assert (results[0] - results[1]).abs().max() < 0.02
    grid = torch.linspace(-6, 6, 2001).double()
    prior = dist.Normal(0.0, 2.0).log_prob(grid)
    # Of the two mirror images of the posterior, which predict the same, the guide has one.
    prior = torch.where(grid > 0, prior, -math.inf)
    each = (dist.Normal(grid, 1.0).log_prob(x[:, None].double())).exp()
    each = (0.5 * each + 0.5 * dist.Normal(-grid, 1.0).log_prob(x[:, None].double()).exp()).log()
    joint = prior + each.sum(0)
    exact = joint.logsumexp(0) - (joint - each).logsumexp(1)
    assert (results[1] - exact).abs().max() < 0.02


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: psis_loo(own_latents, own_guide, X), r"\['z'\] are each datum's own"),
        (
            lambda: psis_loo(model, lambda x: pyro.sample("m", dist.Delta(torch.tensor(0.5))), X),
            "at a point",
        ),
        (
            lambda: evidence(model, lambda x: pyro.sample("m", dist.Delta(torch.tensor(0.5))), X),
            "at a point",
        ),
        (lambda: psis_loo(lambda x: None, lambda x: None, X), "no latent lies outside"),
        (lambda: psis_loo(model, guide_for(X), X, num_samples=10), "at least 25"),
        (lambda: psis_loo(model, guide_for(X), X, max_memory=1000), "fewer draws"),
        (lambda: held_out(model, X), "give the guide"),
        (lambda: information_criteria(nn.Linear(1, 1), X), "lacks log_prob"),
        (lambda: compare({}, X, X), "nothing to compare"),
        (lambda: compare({"net": nn.Linear(1, 1)}, X, X), "no log_prob"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(call, words):
    with pytest.raises(OptionError, match=words):
        call()


def test_a_log_prob_that_is_no_number_a_datum_is_refused():
    class Summed(nn.Module):
        num_free_parameters = 1

        def log_prob(self, x):
            return x.sum()

    with pytest.raises(DataError, match="one number a datum"):
        information_criteria(Summed(), X)


def test_the_predictive_density_is_the_closed_form():
    train, new = X[:30], X[30:]
    found = held_out(model, new, guide_for(train), num_samples=20_000)
    known = posterior_of(train)
    exact = dist.Normal(known.loc, (1 + known.scale**2) ** 0.5).log_prob(new)
    assert ((found.value - exact).abs() < 4 * found.monte_carlo_error + 1e-6).all()
    assert found.monte_carlo_error.max() < 0.02
    assert found.bound is not None
    assert (found.bound < exact).all()
    assert found.standard_error == pytest.approx(float(found.value.std()) / 10**0.5)


def test_the_predictive_density_weighs_latents_of_each_datums_own():
    new = X[30:]
    found = held_out(own_latents, new, own_guide, num_samples=20_000)
    exact = dist.Normal(0.5, (1 + 1 + 0.04) ** 0.5).log_prob(new)
    assert ((found.value - exact).abs() < 4.5 * found.monte_carlo_error + 1e-6).all()
    assert found.monte_carlo_error.max() < 0.02


def test_evidence_is_the_closed_form_and_the_elbo_below_it():
    found = evidence(model, guide_for(X), X, num_samples=50)
    assert found.value == pytest.approx(exact_evidence(X), abs=1e-3)
    assert found.elbo == pytest.approx(exact_evidence(X), abs=1e-3)
    rough = evidence(model, guide_for(X, wider=1.5, off=0.1), X, num_samples=20_000)
    assert abs(rough.value - exact_evidence(X)) < 4 * rough.standard_error
    mean, q = posterior_of(X), posterior_of(X, wider=1.5, off=0.1)
    gap = float(torch.distributions.kl_divergence(q, mean))
    assert abs(exact_evidence(X) - gap - rough.elbo) < 4 * rough.elbo_standard_error


def test_autoguides_have_a_density_and_auto_deltas_have_none():
    spread = pyro.infer.autoguide.AutoNormal(model, init_scale=0.2)
    found = evidence(model, spread, X, num_samples=20)
    assert found.elbo < exact_evidence(X)
    with pytest.raises(OptionError, match="at a point"):
        evidence(model, pyro.infer.autoguide.AutoDelta(model), X)
    pyro.clear_param_store()


def test_a_comparison_tells_what_each_model_allows():
    class Bell(nn.Module):
        num_free_parameters = 2

        def log_prob(self, x):
            return dist.Normal(3.0, 1.0).log_prob(x)

    train, new = X[:30], X[30:]
    found = compare({"bell": Bell(), "bayes": (model, guide_for(train))}, train, new)
    assert found.best == "bayes"
    assert found["bell"].criteria is not None
    assert found["bell"].loo is None
    assert found["bayes"].criteria is None
    assert found["bayes"].evidence is not None
    gap = found["bayes"].held_out.value - found["bell"].held_out.value
    assert found.behind("bell").mean == pytest.approx(float(gap.mean()))
    header, bell, bayes = repr(found).splitlines()
    assert [w for w in ("AIC", "leave one out", "evidence", "behind by") if w not in header] == []
    assert bell.startswith("bell")
    assert bayes.endswith("best")
    assert "<td style='text-align:left;font-weight:bold'>bayes</td>" in found._repr_html_()
    assert {line.get_label() for line in found.plot().axes[0].lines} >= {
        "training log p(x)",
        "leave one out",
        "held-out log p(x)",
    }
    with pytest.raises(KeyError, match="no model 'bel'"):
        found["bel"]


def test_the_other_version_of_arviz_is_asked_in_its_own_words(monkeypatch):
    """ArviZ 1 has no psislw of its own: an accessor of arrays has, which takes log-densities."""
    asked = []

    class Accessor:
        def __init__(self, array):
            self.array = array

        def psislw(self, dim):
            asked.append(dim)
            weights, k = old(-self.array.values)
            return xarray.DataArray(weights), xarray.DataArray(k)

    if not hasattr(loo.arviz, "InferenceData"):
        pytest.skip(
            "this ArviZ has no InferenceData: it is the version that would be compared with"
        )
    old = loo.arviz.psislw
    here = loo._psis(np.random.default_rng(0).normal(size=(2, 100)))
    monkeypatch.setattr(loo, "arviz", types.ModuleType("arviz"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(xarray.DataArray, "azstats", property(Accessor), raising=False)
    there = loo._psis(np.random.default_rng(0).normal(size=(2, 100)))
    assert asked == ["draw"]
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)
