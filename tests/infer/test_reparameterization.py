"""Every distribution of Pyro is classified; the formulas are run, and their gradients checked."""

import inspect
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
import torch.distributions as torch_dist
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from torch import Tensor
from torch.distributions import constraints, transforms

from pyro_models.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_models.errors import OptionError
from pyro_models.infer import ReparameterizationKind, reparameterization
from pyro_models.infer.reparameterization_table import TABLE

Kind = ReparameterizationKind
DTYPE = torch.float64

EXPORTED = {
    name: value
    for name, value in vars(dist).items()
    if inspect.isclass(value) and issubclass(value, torch_dist.Distribution)
}
# Whether they have a path depends on what they are made of.
OPEN = {
    "ExpandedDistribution",
    "FoldedDistribution",
    "Independent",
    "IndependentHMM",
    "MaskedDistribution",
    "MaskedMixture",
    "TransformedDistribution",
}
ABSTRACT = {"TorchDistribution", "ExponentialFamily"}


def t(*values: float) -> Tensor:
    """A scalar, or a vector, that wants gradients."""
    data = values[0] if len(values) == 1 else values
    return torch.tensor(data, dtype=DTYPE, requires_grad=True)


TRIL = [[1.0, 0.0], [0.4, 0.7]]


def matrix(rows: Any = TRIL) -> Tensor:
    return torch.tensor(rows, dtype=DTYPE, requires_grad=True)


# One number each, with a formula: parameters by the names that the formula uses.
UNIVARIATE: dict[str, dict[str, Tensor]] = {
    "Normal": {"loc": t(0.3), "scale": t(0.8)},
    "Laplace": {"loc": t(0.3), "scale": t(0.8)},
    "Cauchy": {"loc": t(0.3), "scale": t(0.8)},
    "Uniform": {"low": t(-0.5), "high": t(1.2)},
    "StudentT": {"df": t(5.0), "loc": t(0.3), "scale": t(0.8)},
    "Exponential": {"rate": t(1.4)},
    "Gumbel": {"loc": t(0.3), "scale": t(0.8)},
    "Weibull": {"scale": t(0.9), "concentration": t(1.7)},
    "Pareto": {"scale": t(0.9), "alpha": t(2.5)},
    "GeneralizedPareto": {"loc": t(0.3), "scale": t(0.8), "concentration": t(0.2)},
    "Kumaraswamy": {"concentration1": t(1.3), "concentration0": t(2.1)},
    "Logistic": {"loc": t(0.3), "scale": t(0.8)},
    "SkewLogistic": {"loc": t(0.3), "scale": t(0.8), "asymmetry": t(1.6)},
    "SoftLaplace": {"loc": t(0.3), "scale": t(0.8)},
    "ContinuousBernoulli": {"probs": t(0.7)},
    "LogNormal": {"loc": t(0.3), "scale": t(0.4)},
    "HalfNormal": {"scale": t(0.8)},
    "HalfCauchy": {"scale": t(0.8)},
    "InverseGamma": {"concentration": t(3.5), "rate": t(1.4)},
    "FisherSnedecor": {"df1": t(6.0), "df2": t(9.0)},
    "AffineBeta": {
        "concentration1": t(1.8),
        "concentration0": t(2.5),
        "loc": t(-0.5),
        "scale": t(2.0),
    },
    "AsymmetricLaplace": {"loc": t(0.3), "scale": t(0.8), "asymmetry": t(1.4)},
    "SoftAsymmetricLaplace": {
        "loc": t(0.3),
        "scale": t(0.8),
        "asymmetry": t(1.4),
        "softness": t(0.6),
    },
    "RelaxedBernoulli": {"temperature": t(0.7), "logits": t(0.4)},
    "LogitRelaxedBernoulli": {"temperature": t(0.7), "logits": t(0.4)},
}
if "GeneralizedPareto" not in EXPORTED:  # it is younger than the oldest torch that is supported
    del UNIVARIATE["GeneralizedPareto"]
# The support of these moves with the parameters, so quadrature of the score is no oracle; Pyro's
# density of the last has NaN gradients in its tails.
MOMENTS_ONLY = {"Uniform", "Pareto", "GeneralizedPareto", "AffineBeta", "SoftAsymmetricLaplace"}
IMPLICIT: dict[str, tuple[dict[str, Tensor], Callable[..., Any]]] = {
    "Gamma": (
        {"concentration": t(1.8), "rate": t(1.3)},
        lambda z, concentration, rate: scipy.stats.gamma.cdf(z, concentration, scale=1 / rate),
    ),
    "Chi2": ({"df": t(3.2)}, lambda z, df: scipy.stats.chi2.cdf(z, df)),
    "Beta": (
        {"concentration1": t(1.8), "concentration0": t(0.7)},
        lambda z, concentration1, concentration0: scipy.stats.beta.cdf(
            z, concentration1, concentration0
        ),
    ),
}


def build(name: str, parameters: dict[str, Tensor], **more: Any) -> Any:
    kind: Any = EXPORTED.get(name) or getattr(torch_dist.relaxed_bernoulli, name)
    return kind(**parameters, **more)


def hidden_markov() -> dict[str, Any]:
    eye, zero = torch.eye(2), torch.zeros(2)
    noise = dist.MultivariateNormal(zero, eye)
    return {
        "GaussianHMM": dist.GaussianHMM(noise, eye, noise, eye, noise, duration=3),
        "LinearHMM": dist.LinearHMM(noise, eye, noise, eye, noise, duration=3),
        "GammaGaussianHMM": dist.GammaGaussianHMM(
            dist.Gamma(2.0, 2.0), noise, eye, noise, eye, noise, duration=3
        ),
        "GaussianMRF": dist.GaussianMRF(
            noise,
            dist.MultivariateNormal(torch.zeros(3, 4), torch.eye(4)),
            dist.MultivariateNormal(torch.zeros(3, 4), torch.eye(4)),
        ),
        "DiscreteHMM": dist.DiscreteHMM(
            torch.zeros(2), torch.zeros(3, 2, 2), dist.Normal(torch.zeros(2), 1.0)
        ),
        "IndependentHMM": dist.IndependentHMM(
            dist.GaussianHMM(
                dist.MultivariateNormal(torch.zeros(2, 1), torch.eye(1)),
                torch.eye(1),
                dist.MultivariateNormal(torch.zeros(2, 3, 1), torch.eye(1)),
                torch.eye(1),
                dist.MultivariateNormal(torch.zeros(2, 3, 1), torch.eye(1)),
                duration=3,
            )
        ),
    }


def continuous() -> dict[str, Any]:
    eye, zero, two = torch.eye(2), torch.zeros(2), torch.tensor(2.0)
    normal = dist.Normal(torch.tensor(0.0), 1.0)
    mask = torch.tensor(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the class itself is deprecated
        old = dist.LKJCorrCholesky(3, two)
    return {
        "AVFMultivariateNormal": dist.AVFMultivariateNormal(zero, eye, torch.ones(2, 1, 2)),
        "OMTMultivariateNormal": dist.OMTMultivariateNormal(zero, eye),
        "MultivariateNormal": dist.MultivariateNormal(zero, eye),
        "NanMaskedMultivariateNormal": dist.NanMaskedMultivariateNormal(zero, eye),
        "NanMaskedNormal": dist.NanMaskedNormal(zero, 1.0),
        "LowRankMultivariateNormal": dist.LowRankMultivariateNormal(
            zero, torch.ones(2, 1), torch.ones(2)
        ),
        "MultivariateStudentT": dist.MultivariateStudentT(two, zero, eye),
        "Gamma": dist.Gamma(two, 1.0),
        "Chi2": dist.Chi2(two),
        "Beta": dist.Beta(two, two),
        "Dirichlet": dist.Dirichlet(torch.ones(3)),
        "GaussianScaleMixture": dist.GaussianScaleMixture(torch.ones(2), zero, torch.ones(2)),
        "MixtureOfDiagNormals": dist.MixtureOfDiagNormals(eye, torch.ones(2, 2), zero),
        "MixtureOfDiagNormalsSharedCovariance": dist.MixtureOfDiagNormalsSharedCovariance(
            eye, torch.ones(2), zero
        ),
        "LogisticNormal": dist.LogisticNormal(zero, torch.ones(2)),
        "ProjectedNormal": dist.ProjectedNormal(torch.ones(3)),
        "Stable": dist.Stable(torch.tensor(1.5), torch.tensor(0.2)),
        "StableWithLogProb": dist.StableWithLogProb(torch.tensor(1.5), torch.tensor(0.2)),
        "Wishart": dist.Wishart(torch.tensor(4.0), eye),
        "RelaxedOneHotCategorical": dist.RelaxedOneHotCategorical(two, logits=zero),
        "Delta": dist.Delta(zero),
        "Rejector": RejectionStandardGamma(two),
        "FoldedDistribution": dist.FoldedDistribution(normal),
        "TransformedDistribution": dist.TransformedDistribution(
            normal, [transforms.AffineTransform(0.0, 2.0), transforms.ExpTransform()]
        ),
        "Independent": dist.Normal(zero, 1.0).to_event(1),
        "MaskedDistribution": dist.Poisson(two).mask(False),
        "ExpandedDistribution": dist.ExpandedDistribution(dist.Gamma(two, 1.0), torch.Size([3])),
        "MaskedMixture": dist.MaskedMixture(mask, normal, dist.Gamma(two, 1.0)),
        "MixtureSameFamily": dist.MixtureSameFamily(
            dist.Categorical(logits=zero), dist.Normal(zero, 1.0)
        ),
        "VonMises": dist.VonMises(two, two),
        "VonMises3D": dist.VonMises3D(torch.tensor([1.0, 0.0, 0.0])),
        "SineBivariateVonMises": dist.SineBivariateVonMises(two, two, two, two, correlation=0.1),
        "SineSkewed": dist.SineSkewed(dist.VonMises(zero, 1.0).to_event(1), torch.full((2,), 0.1)),
        "LKJ": dist.LKJ(3, two),
        "LKJCholesky": dist.LKJCholesky(3, two),
        "LKJCorrCholesky": old,
        "CoalescentTimes": dist.CoalescentTimes(torch.zeros(3)),
        "CoalescentTimesWithRate": dist.CoalescentTimesWithRate(torch.zeros(3), torch.ones(4)),
        "GroupedNormalNormal": dist.GroupedNormalNormal(
            zero, torch.ones(2), torch.ones(3), torch.tensor([0, 1, 1])
        ),
        "ImproperUniform": dist.ImproperUniform(constraints.real, (), ()),
        "TruncatedPolyaGamma": dist.TruncatedPolyaGamma(two),
        "Unit": dist.Unit(two),
    }


def discrete() -> dict[str, Any]:
    two, half, zero = torch.tensor(2.0), torch.tensor(0.5), torch.zeros(2)
    return {
        "Bernoulli": dist.Bernoulli(half),
        "BetaBinomial": dist.BetaBinomial(two, two, 3),
        "Binomial": dist.Binomial(3, half),
        "Categorical": dist.Categorical(logits=zero),
        "DirichletMultinomial": dist.DirichletMultinomial(torch.ones(3), 4),
        "Empirical": dist.Empirical(zero, zero),
        "ExtendedBetaBinomial": dist.ExtendedBetaBinomial(two, two, torch.tensor(3.0)),
        "ExtendedBinomial": dist.ExtendedBinomial(torch.tensor(3.0), half),
        "GammaPoisson": dist.GammaPoisson(two, two),
        "Geometric": dist.Geometric(half),
        "LogNormalNegativeBinomial": dist.LogNormalNegativeBinomial(two, half, half),
        "Multinomial": dist.Multinomial(3, torch.ones(2)),
        "NegativeBinomial": dist.NegativeBinomial(two, half),
        "OneHotCategorical": dist.OneHotCategorical(logits=zero),
        "OneHotCategoricalStraightThrough": dist.OneHotCategoricalStraightThrough(logits=zero),
        "OneOneMatching": dist.OneOneMatching(torch.zeros(2, 2)),
        "OneTwoMatching": dist.OneTwoMatching(torch.zeros(4, 2)),
        "OrderedLogistic": dist.OrderedLogistic(half, torch.tensor([0.0, 1.0])),
        "Poisson": dist.Poisson(two),
        "RelaxedBernoulliStraightThrough": dist.RelaxedBernoulliStraightThrough(two, probs=half),
        "RelaxedOneHotCategoricalStraightThrough": dist.RelaxedOneHotCategoricalStraightThrough(
            two, logits=zero
        ),
        "SpanningTree": dist.SpanningTree(torch.zeros(3)),
        "ZeroInflatedDistribution": dist.ZeroInflatedDistribution(dist.Poisson(two), gate=half),
        "ZeroInflatedNegativeBinomial": dist.ZeroInflatedNegativeBinomial(
            two, probs=half, gate=half
        ),
        "ZeroInflatedPoisson": dist.ZeroInflatedPoisson(two, gate=half),
    }


def instances() -> dict[str, Any]:
    found = {n: build(n, p) for n, p in UNIVARIATE.items() if n in EXPORTED}
    return found | hidden_markov() | continuous() | discrete()


class TestTheTable:
    def test_every_exported_distribution_is_made_here(self) -> None:
        assert set(instances()) == set(EXPORTED) - ABSTRACT

    def test_every_exported_distribution_is_classified_as_it_says_of_itself(self) -> None:
        for name, instance in instances().items():
            record = reparameterization(instance)
            assert record.available == instance.has_rsample, name
            assert record.kind is not Kind.UNLISTED, name
            if record.available:
                assert record.kind is not Kind.NONE, name
                assert record.formula, name
                assert record.reference or name in OPEN, name
            else:
                assert record.why, name
                assert record.instead, name

    def test_classes_are_classified_as_their_instances(self) -> None:
        for name, instance in instances().items():
            kind = EXPORTED[name]
            if name in OPEN:
                with pytest.raises(OptionError, match="give an instance"):
                    reparameterization(kind)
            else:
                record = reparameterization(instance)
                expected = replace(record, name=kind.__name__)
                assert reparameterization(kind) == expected, name
        for name in ABSTRACT:
            with pytest.raises(OptionError, match="abstract"):
                reparameterization(EXPORTED[name])

    def test_what_has_no_path_draws_no_gradient(self) -> None:
        for name, instance in instances().items():
            if not reparameterization(instance).available and name != "Unit":
                with pytest.raises(NotImplementedError):
                    instance.rsample()

    def test_every_entry_names_a_distribution(self) -> None:
        beyond = {"LogitRelaxedBernoulli", "ExpRelaxedCategorical", "GeneralizedPareto"}
        assert set(TABLE) - beyond <= set(EXPORTED)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("Normal", Kind.LOCATION_SCALE),
            ("Exponential", Kind.INVERSE_CDF),
            ("Kumaraswamy", Kind.INVERSE_CDF),
            ("Gumbel", Kind.INVERSE_CDF),
            ("LogNormal", Kind.TRANSFORMATION),
            ("TransformedDistribution", Kind.TRANSFORMATION),
            ("Gamma", Kind.IMPLICIT),
            ("Beta", Kind.IMPLICIT),
            ("Dirichlet", Kind.IMPLICIT),
            ("VonMises", Kind.IMPLICIT),
            ("Rejector", Kind.PARTIAL),
            ("Bernoulli", Kind.NONE),
        ],
    )
    def test_the_classes_of_the_notes(self, name: str, kind: Kind) -> None:
        assert reparameterization(instances()[name]).kind is kind


class TestComposed:
    def test_wrappers_come_off(self) -> None:
        wrapped = dist.Gamma(torch.ones(3), 1.0).expand([2, 3]).mask(True).to_event(1)
        assert reparameterization(wrapped) == reparameterization(dist.Gamma)
        inner = torch_dist.Independent(torch_dist.Poisson(torch.ones(3)), 1)
        assert reparameterization(inner).kind is Kind.NONE

    def test_a_transformed_distribution_is_as_its_base(self) -> None:
        exp = transforms.ExpTransform()
        made = reparameterization(dist.TransformedDistribution(dist.Logistic(0.0, 1.0), [exp]))
        assert made.formula == "z = ExpTransform(x)"
        assert made.noise == "x = loc + scale * logit(u), u ~ Uniform(0, 1)"
        gamma = dist.TransformedDistribution(dist.Gamma(1.0, 1.0), [exp])
        assert reparameterization(gamma).noise == "x ~ Gamma"
        von_mises = dist.TransformedDistribution(dist.VonMises(0.0, 1.0), [exp])
        record = reparameterization(von_mises)
        assert (record.available, record.kind) == (False, Kind.TRANSFORMATION)
        assert "VonMises: torch draws it by rejection" in record.why
        discrete = dist.TransformedDistribution(dist.Poisson(1.0), [exp])
        assert reparameterization(discrete).kind is Kind.NONE
        biased = dist.OneHotCategoricalStraightThrough(torch.ones(2))
        record = reparameterization(dist.TransformedDistribution(biased, [exp]))
        assert record.kind is Kind.STRAIGHT_THROUGH

    def test_mixtures_are_as_their_components(self) -> None:
        mask, rates = torch.tensor(True), torch.ones(2)
        mixed = dist.MaskedMixture(mask, dist.Normal(0.0, 1.0), dist.Poisson(1.0))
        assert reparameterization(mixed).kind is Kind.NONE
        counts = dist.MixtureSameFamily(dist.Categorical(rates), dist.Poisson(rates))
        record = reparameterization(counts)
        assert record.kind is Kind.NONE
        assert "its components are Poisson" in record.why

    def test_a_distribution_of_the_users(self) -> None:
        class Own(dist.TorchDistribution):
            has_rsample = True
            arg_constraints: ClassVar[dict[str, Any]] = {}

            def rsample(self, sample_shape: Any = ()) -> Tensor:
                return torch.zeros(sample_shape)

        class Shifted(dist.Normal):
            pass

        class Redrawn(dist.Normal):
            def rsample(self, sample_shape: Any = ()) -> Tensor:
                return super().rsample(sample_shape).round()

        class Without(dist.Normal):
            has_rsample = False

        class Bare(dist.TorchDistribution):
            pass

        assert reparameterization(Own).kind is Kind.UNLISTED
        assert reparameterization(Own()).available
        assert reparameterization(Shifted(0.0, 1.0)).formula == "z = loc + scale * eps"
        assert reparameterization(Shifted).name == "Shifted"
        assert reparameterization(Redrawn).kind is Kind.UNLISTED
        assert not reparameterization(Without(0.0, 1.0)).available
        assert "it says of itself" in reparameterization(Without).why
        assert reparameterization(Bare).kind is Kind.NONE
        # A namesake of a listed class is not that class.
        namesake = type("Gamma", (Own,), {})
        assert reparameterization(namesake).kind is Kind.UNLISTED

    def test_ours(self) -> None:
        assert reparameterization(ContinuousBernoulli).kind is Kind.INVERSE_CDF

    @pytest.mark.parametrize("given", [3, int, "Normal", None])
    def test_what_is_no_distribution(self, given: object) -> None:
        with pytest.raises(OptionError, match=r"no distribution|no class"):
            reparameterization(given)

    def test_a_person_can_read_it(self) -> None:
        text = str(reparameterization(dist.VonMises))
        assert text.startswith("VonMises: implicit, not implemented\n")
        assert "instead: ProjectedNormal" in text
        assert str(reparameterization(dist.Poisson)).startswith("Poisson: none\n")


# What the formulas may use.
FUNCTIONS = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "logit": scipy.special.logit,
    "pi": math.pi,
    "sigmoid": scipy.special.expit,
    "softmax": lambda x: scipy.special.softmax(x, -1),
    "log_softmax": lambda x: scipy.special.log_softmax(x, -1),
    "sqrt": np.sqrt,
    "tan": np.tan,
    "norm": lambda x: np.linalg.norm(x, axis=-1, keepdims=True),
    "round": np.round,
}


class Column(np.ndarray):
    """A row a draw, multiplied from the left as if each were a column."""

    def __rmatmul__(self, matrix: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return np.asarray(self) @ np.asarray(matrix).T


def law(name: str, parameters: dict[str, Tensor], count: int, event: tuple[int, ...]) -> Any:
    """Draws by the text of the table alone: its noise, put through its formula."""
    record = TABLE[name]
    values = {n: p.detach().numpy() for n, p in parameters.items()}
    noises = {}
    for text in re.split(r", (?=\w+ ~)", record.noise):
        noise, _, source = text.partition(" ~ ")
        vector = "Normal(0, I)" in source
        source = source.replace("I)", "1)")
        drawn = eval(source, {n: _double(v) for n, v in EXPORTED.items()}, dict(values))
        wide = vector or (record.kind is Kind.TRANSFORMATION and event)
        shape = (count, *event) if wide else (count, *(1 for _ in event))
        noises[noise] = drawn.sample(shape).double().numpy()
    columns = {n: v.view(Column) for n, v in noises.items()}
    formula = record.formula.removeprefix("z = ")
    return np.asarray(eval(formula, FUNCTIONS, values | columns))


def _double(kind: type) -> Callable[..., Any]:
    def make(*parameters: Any) -> Any:
        return kind(*(torch.as_tensor(p, dtype=DTYPE) for p in parameters))

    return make


def assert_same_law(one: np.ndarray, other: np.ndarray) -> None:
    assert scipy.stats.ks_2samp(one, other).pvalue > 1e-3


class TestFormulas:
    """The text of the table, evaluated, has the distribution of ``rsample``."""

    @pytest.mark.parametrize("name", UNIVARIATE)
    def test_one_number(self, name: str) -> None:
        torch.manual_seed(0)
        parameters = UNIVARIATE[name]
        drawn = build(name, parameters).rsample((20_000,)).detach().numpy()
        assert_same_law(law(name, parameters, 20_000, ()), drawn)

    @pytest.mark.parametrize("name", UNIVARIATE)
    def test_another_formula_would_be_noticed(self, name: str) -> None:
        torch.manual_seed(0)
        parameters = UNIVARIATE[name]
        drawn = build(name, parameters).rsample((20_000,)).detach().numpy()
        changed = {n: p * 1.2 for n, p in parameters.items()}
        other = law(name, changed, 20_000, ())
        assert scipy.stats.ks_2samp(other, drawn).pvalue < 1e-3

    vectors: dict[str, dict[str, Tensor]] = {  # noqa: RUF012
        "MultivariateNormal": {"loc": t(0.3, -0.2), "scale_tril": matrix()},
        "LowRankMultivariateNormal": {
            "loc": t(0.3, -0.2),
            "cov_factor": matrix([[1.0, 0.2], [0.5, -0.6]]),
            "cov_diag": t(0.4, 0.9),
        },
        "MultivariateStudentT": {"df": t(5.0), "loc": t(0.3, -0.2), "scale_tril": matrix()},
        "ProjectedNormal": {"concentration": t(0.6, -0.3)},
        "RelaxedOneHotCategorical": {"temperature": t(0.7), "logits": t(0.2, -0.4, 0.5)},
    }

    @pytest.mark.parametrize("name", vectors)
    def test_vectors(self, name: str) -> None:
        torch.manual_seed(0)
        parameters = self.vectors[name]
        instance = build(name, parameters)
        drawn = instance.rsample((20_000,)).detach().numpy()
        ours = law(name, parameters, 20_000, tuple(instance.event_shape))
        for direction in ([1.0, 0.0, 0.0], [0.3, -0.8, 0.4]):
            onto = np.array(direction[: drawn.shape[-1]])
            assert_same_law(ours @ onto, drawn @ onto)

    def test_wishart(self) -> None:
        """Bartlett's decomposition, as the table has it."""
        torch.manual_seed(0)
        df, tril = 4.0, np.array(TRIL)
        rng = np.random.default_rng(0)
        a = np.zeros((20_000, 2, 2))
        a[:, 1, 0] = rng.normal(size=20_000)
        for i in range(2):
            a[:, i, i] = np.sqrt(rng.chisquare(df - i, size=20_000))
        root = tril @ a
        ours = root @ np.swapaxes(root, -1, -2)
        reference = scipy.stats.wishart(df, tril @ tril.T).rvs(20_000, random_state=rng)
        assert_same_law(ours[:, 0, 1], reference[:, 0, 1])

    def test_stable(self) -> None:
        torch.manual_seed(0)
        made = dist.Stable(t(1.6), t(0.3), t(0.8), t(0.2), coords="S")
        theirs = scipy.stats.levy_stable(1.6, 0.3, 0.2, 0.8)
        theirs.random_state = np.random.default_rng(0)
        assert_same_law(made.rsample((20_000,)).detach().numpy(), theirs.rvs(20_000))

    def test_straight_through_values_are_discrete(self) -> None:
        for name, instance in discrete().items():
            if reparameterization(instance).kind is Kind.STRAIGHT_THROUGH:
                value = instance.rsample((100,))
                assert torch.equal(value, value.round()), name


def expectation(made: Any, f: Callable[[Tensor], Tensor]) -> Tensor:
    """E[f(z)] by double-exponential quadrature over the support, differentiable by the density."""
    nodes = torch.linspace(-4.5, 4.5, 6001, dtype=DTYPE, requires_grad=True)
    stretched = math.pi / 2 * torch.sinh(nodes)
    support = made.support
    if isinstance(support, constraints.interval):
        low, high = support.lower_bound, support.upper_bound
        z = low + (high - low) * torch.sigmoid(2 * stretched)
    elif support in (constraints.positive, constraints.nonnegative):
        z = stretched.clamp(-200, 200).exp()
    else:
        z = stretched.clamp(-200, 200).sinh()
    (width,) = torch.autograd.grad(z.sum(), nodes)
    inside = (width > 0) & torch.isfinite(width) & support.check(z)
    z, width = z[inside].detach(), width[inside]
    with torch.no_grad():
        seen = made.log_prob(z) > -40  # further out, derivatives of densities overflow
    z, width, spacing = z[seen], width[seen], (nodes[1] - nodes[0]).detach()
    density = made.log_prob(z).exp()
    assert abs((density * width).sum() * spacing - 1) < 1e-3
    return (f(z) * density * width).sum() * spacing


def bounded(z: Tensor) -> Tensor:
    """A function with an expectation under every distribution, and one that sees both tails."""
    return torch.tanh(z) + torch.tanh(z / 2) ** 2


def gradient_draws(
    make: Callable[[], Any], f: Callable[[Tensor], Tensor], parameters: list[Tensor], runs: int = 50
) -> Tensor:
    """Pathwise estimates of the gradient of E[f(z)], a row a run of 2000 draws."""
    rows = []
    for _ in range(runs):
        value = f(make().rsample((2000,))).mean(0)
        found = torch.autograd.grad(value, parameters)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def assert_mean(draws: Tensor, expected: Tensor) -> None:
    error = draws.std(0) / math.sqrt(len(draws))
    gap = (draws.mean(0) - expected).abs()
    assert (gap <= 4 * error + 1e-6).all(), f"off by {(gap / error).tolist()} standard errors"


class TestGradients:
    """The pathwise gradient of E[f(z)] is that of the expectation itself."""

    @pytest.mark.parametrize("name", sorted(set(UNIVARIATE) - MOMENTS_ONLY) + sorted(IMPLICIT))
    def test_against_quadrature(self, name: str) -> None:
        torch.manual_seed(1)
        parameters = UNIVARIATE.get(name) or IMPLICIT[name][0]
        leaves = list(parameters.values())
        exact = expectation(build(name, parameters, validate_args=False), bounded)
        expected = torch.stack(torch.autograd.grad(exact, leaves))
        draws = gradient_draws(lambda: build(name, parameters), bounded, leaves)
        assert_mean(draws, expected)

    moments: dict[str, Callable[..., Tensor]] = {  # noqa: RUF012
        "Normal": lambda loc, scale: loc**2 + scale**2,
        "Laplace": lambda loc, scale: loc**2 + 2 * scale**2,
        "Uniform": lambda low, high: (low**2 + low * high + high**2) / 3,
        "Exponential": lambda rate: 2 / rate**2,
        "SoftAsymmetricLaplace": lambda loc, scale, asymmetry, softness: (
            (loc + scale / asymmetry - scale * asymmetry) ** 2
            + scale**2 * (asymmetry**2 + asymmetry**-2 + softness**2)
        ),
        "LogNormal": lambda loc, scale: (2 * loc + 2 * scale**2).exp(),
        "HalfNormal": lambda scale: scale**2,
        "Gamma": lambda concentration, rate: concentration * (concentration + 1) / rate**2,
        "Logistic": lambda loc, scale: loc**2 + scale**2 * math.pi**2 / 3,
        "StudentT": lambda df, loc, scale: loc**2 + scale**2 * df / (df - 2),
        "AffineBeta": lambda concentration1, concentration0, loc, scale: (
            loc**2
            + 2 * loc * scale * concentration1 / (concentration1 + concentration0)
            + scale**2
            * concentration1
            * (concentration1 + 1)
            / (concentration1 + concentration0)
            / (concentration1 + concentration0 + 1)
        ),
    }

    @pytest.mark.parametrize("name", moments)
    def test_second_moment(self, name: str) -> None:
        torch.manual_seed(9)
        parameters = UNIVARIATE.get(name) or IMPLICIT[name][0]
        leaves = list(parameters.values())
        exact = self.moments[name](**parameters)
        expected = torch.stack(torch.autograd.grad(exact, leaves))
        assert_mean(gradient_draws(lambda: build(name, parameters), torch.square, leaves), expected)

    @pytest.mark.parametrize("name", sorted({"Pareto", "GeneralizedPareto"} & set(UNIVARIATE)))
    def test_moving_supports(self, name: str) -> None:
        """E[1/z] of a Pareto and E[z] of a generalised one, in closed form."""
        torch.manual_seed(3)
        parameters = UNIVARIATE[name]
        leaves = list(parameters.values())
        p = parameters
        if name == "Pareto":
            f, exact = torch.reciprocal, p["alpha"] / (p["alpha"] + 1) / p["scale"]
        else:
            f, exact = torch.abs, p["loc"] + p["scale"] / (1 - p["concentration"])
        expected = torch.stack(torch.autograd.grad(exact, leaves))
        assert_mean(gradient_draws(lambda: build(name, parameters), f, leaves), expected)

    @pytest.mark.parametrize("kind", [dist.OMTMultivariateNormal, dist.AVFMultivariateNormal])
    def test_other_velocities_of_the_normal(self, kind: Any) -> None:
        torch.manual_seed(4)
        loc, tril = t(0.3, -0.2), matrix()
        control = torch.full((2, 1, 2), 0.3, dtype=DTYPE)
        more = (control,) if kind is dist.AVFMultivariateNormal else ()
        sums = torch.tensor([1.0, 0.5], dtype=DTYPE)
        exact = ((loc @ sums) ** 2) + ((tril.tril().T @ sums) ** 2).sum()
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(exact, [loc, tril])])
        draws = gradient_draws(
            lambda: kind(loc, tril, *more), lambda z: (z @ sums) ** 2, [loc, tril]
        )
        assert_mean(draws, expected)

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize(
        "means",
        [
            [[1.0, 0.5], [-0.6, -0.3]],
            pytest.param(
                [[1.0, 0.5], [-0.7, 0.2]],
                marks=pytest.mark.xfail(
                    raises=AssertionError,
                    reason="Pyro measures the distance of a draw to the line through two means "
                    "as if that line passed the origin: the gradient in component_logits is biased",
                ),
            ),
        ],
        ids=["line through the origin", "line beside the origin"],
    )
    def test_mixtures_by_a_transport_equation(self, means: Any, shared: bool) -> None:
        torch.manual_seed(5)
        locs, scales, logits = matrix(means), t(0.6, 0.9), t(0.3, -0.2)
        leaves = [locs, scales, logits]

        def f(z: Tensor) -> Tensor:
            return z[..., 0] ** 2 + z[..., 1]

        weights = logits.softmax(-1)
        exact = (weights * (locs[:, 0] ** 2 + scales[0] ** 2 + locs[:, 1])).sum()
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(exact, leaves)])

        def make() -> Any:
            if shared:
                return dist.MixtureOfDiagNormalsSharedCovariance(*leaves)
            return dist.MixtureOfDiagNormals(locs, scales.expand(2, 2), logits)

        assert_mean(gradient_draws(make, f, leaves), expected)

    def test_scale_mixtures(self) -> None:
        torch.manual_seed(10)
        leaves = [t(0.6, 0.9), t(0.3, -0.2), t(0.5, 1.5)]
        coordinates, logits, components = leaves
        exact = (logits.softmax(-1) * components**2).sum() * coordinates[0] ** 2
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(exact, leaves)])

        def make() -> Any:
            return dist.GaussianScaleMixture(*leaves)

        assert_mean(gradient_draws(make, lambda z: z[..., 0] ** 2, leaves), expected)

    def test_a_straight_through_gradient_is_biased(self) -> None:
        """E[z (1 - z)] is zero for every parameter of a discrete z; the gradient says otherwise."""
        torch.manual_seed(6)
        logits = t(0.4)

        def make() -> Any:
            return dist.RelaxedBernoulliStraightThrough(
                torch.tensor(0.5, dtype=DTYPE), logits=logits
            )

        draws = gradient_draws(make, lambda z: z * (1 - z), [logits])
        assert (draws.mean(0).abs() > 10 * draws.std(0) / math.sqrt(len(draws))).all()


@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_derivatives_are_those_of_the_cdf(name: str) -> None:
    """dz/dparam = -(dF/dparam) / p(z), F from scipy by central differences."""
    torch.manual_seed(7)
    parameters, cdf = IMPLICIT[name]
    values = {n: p.item() for n, p in parameters.items()}
    wide = {n: p.detach().expand(200).clone().requires_grad_() for n, p in parameters.items()}
    made = build(name, wide)
    z = made.rsample()
    found = dict(zip(wide, torch.autograd.grad(z.sum(), list(wide.values())), strict=True))
    density = made.log_prob(z).exp().detach().numpy()
    at, step = z.detach().numpy(), 1e-5
    for parameter in parameters:
        up = cdf(at, **(values | {parameter: values[parameter] + step}))
        down = cdf(at, **(values | {parameter: values[parameter] - step}))
        expected = -(up - down) / (2 * step) / density
        np.testing.assert_allclose(found[parameter].numpy(), expected, rtol=2e-3, atol=1e-6)


def test_implicit_derivatives_of_the_dirichlet() -> None:
    """The first component is a Beta of its own concentration and of the sum of the others."""
    torch.manual_seed(8)
    concentration = t(1.4, 0.8, 2.2)
    leaves = [concentration]
    total = concentration.sum()
    first = concentration[0]
    exact = first * (first + 1) / total / (total + 1)
    (expected,) = torch.autograd.grad(exact, leaves)
    draws = gradient_draws(lambda: dist.Dirichlet(concentration), lambda z: z[..., 0] ** 2, leaves)
    assert_mean(draws, expected)
