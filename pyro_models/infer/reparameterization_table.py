"""The table behind ``infer.reparameterization``: how the draws of each distribution are made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType


class ReparameterizationKind(Enum):
    """How a value follows from noise."""

    LOCATION_SCALE = "location-scale"
    """Shifted and scaled noise, z = loc + scale * eps."""
    INVERSE_CDF = "inverse CDF"
    """Uniform noise through the inverse of the cumulative distribution function."""
    TRANSFORMATION = "transformation"
    """A function of draws that have a path themselves."""
    IMPLICIT = "implicit"
    """No formula for z, but its derivative: dz/dparam = -(dF/dparam) / p(z), F the CDF."""
    PARTIAL = "partial"
    """A path through the proposals of a rejection sampler; a score-function term is needed too."""
    STRAIGHT_THROUGH = "straight-through"
    """A discrete value with the derivative of a continuous one: the gradient is biased."""
    UNLISTED = "unlisted"
    """The distribution has an ``rsample`` of its own that this table does not know."""
    NONE = "none"
    """No path; see ``why`` and ``instead``."""


_Kind = ReparameterizationKind


@dataclass(frozen=True)
class Reparameterization:
    """How the draws of a distribution depend on its parameters."""

    name: str
    """The distribution's class."""
    kind: ReparameterizationKind
    """Which reparameterisation applies to it."""
    available: bool
    """Whether torch or Pyro implement it: whether the distribution has ``rsample``."""
    formula: str = ""
    """The value as a function of noise and of the distribution's parameters; empty without one."""
    noise: str = ""
    """What the noise in ``formula`` is drawn from."""
    why: str = ""
    """Why there is no path, or what one must know about it; empty where nothing is to be said."""
    instead: str = ""
    """What to use where there is no (unbiased) path."""
    reference: str = ""
    """The paper."""

    def __str__(self) -> str:
        missing = "" if self.available or self.kind is _Kind.NONE else ", not implemented"
        law = ", ".join(part for part in (self.formula, self.noise) if part)
        instead = f"instead: {self.instead}" if self.instead else ""
        lines = [law, self.why, instead, self.reference]
        title = f"{self.name}: {self.kind.value}{missing}"
        return "\n    ".join([title, *(line for line in lines if line)])


_VAE = "Kingma and Welling 2014, section 2.4, https://arxiv.org/abs/1312.6114"
_FIGURNOV = "Figurnov, Mohamed, Mnih 2018, https://arxiv.org/abs/1805.08498"
_TRANSPORT = "Jankowiak and Karaletsos 2018, https://arxiv.org/abs/1806.01856"
_OPTIMAL = "Jankowiak and Obermeyer 2018, https://arxiv.org/abs/1806.01851"
_CONCRETE = "Maddison, Mnih, Teh 2017, https://arxiv.org/abs/1611.00712"
_STRAIGHT = "Bengio, Léonard, Courville 2013, https://arxiv.org/abs/1308.3432"
_SCORES = "Mnih and Rezende 2016, https://arxiv.org/abs/1602.06725"
_DERIVATIVE = "dz/dparam = -(dF/dparam) / p(z)"
_UNIFORM = "u ~ Uniform(0, 1)"
_STANDARD = "eps ~ Normal(0, 1)"
_VECTOR = "eps ~ Normal(0, I)"
_SUMMED = "Enumerated (exact), VIMCO or ScoreFunction"


def _entry(
    kind: _Kind, formula: str = "", noise: str = "", why: str = "", reference: str = _VAE
) -> Reparameterization:
    return Reparameterization("", kind, True, formula, noise, why, "", reference)


def _location_scale(noise: str = _STANDARD, formula: str = "", **more: str) -> Reparameterization:
    formula = formula or "z = loc + scale * eps"
    return _entry(_Kind.LOCATION_SCALE, formula, noise, **more)


def _inverse_cdf(formula: str, **more: str) -> Reparameterization:
    return _entry(_Kind.INVERSE_CDF, formula, _UNIFORM, **more)


def _transformation(formula: str, noise: str, **more: str) -> Reparameterization:
    return _entry(_Kind.TRANSFORMATION, formula, noise, **more)


def _implicit(why: str = "", reference: str = _FIGURNOV) -> Reparameterization:
    return _entry(_Kind.IMPLICIT, _DERIVATIVE, why=why, reference=reference)


def _straight_through(formula: str, noise: str, relaxed: str, reference: str) -> Reparameterization:
    why = "the value is discrete and its derivative that of a continuous one: gradients are biased"
    made = _entry(_Kind.STRAIGHT_THROUGH, formula, noise, why, reference)
    return replace(made, instead=f"for unbiased gradients {_SUMMED}; or {relaxed}")


def _none(why: str, instead: str = "ScoreFunction", reference: str = "") -> Reparameterization:
    return Reparameterization("", _Kind.NONE, False, "", "", why, instead, reference)


def _discrete(instead: str = "ScoreFunction", relaxed: str = "") -> Reparameterization:
    why = "its values are discrete: a small change of a parameter moves none of them, or makes jump"
    return _none(why, f"{instead}; or the continuous {relaxed}" if relaxed else instead, _SCORES)


def _missing(entry: Reparameterization, why: str, instead: str) -> Reparameterization:
    """A reparameterisation that is known to science and not to torch."""
    return replace(entry, available=False, why=why, instead=instead)


_LKJ = _missing(
    _transformation("rows of the Cholesky factor from Beta and Normal draws", "", reference=""),
    "its Beta and normal draws have paths, but torch implements only sample",
    "ScoreFunction, or parameters of the Cholesky factor with a normal guide and a transform",
)
_ATOM = _none("it is a mixture with an atom: whether a draw lies in the atom is discrete")
_NO_SAMPLER = _none("it has a density and no sampler", "a guide of another family")

_LOCATION_SCALES: dict[str, Reparameterization] = {
    "Normal": _location_scale(),
    "Laplace": _location_scale("eps ~ Laplace(0, 1)"),
    "Cauchy": _location_scale("eps ~ Cauchy(0, 1)"),
    "Uniform": _location_scale(_UNIFORM, "z = low + (high - low) * u"),
    "StudentT": _location_scale(
        f"{_STANDARD}, g ~ Chi2(df)",
        "z = loc + scale * eps / sqrt(g / df)",
        why="location-scale in loc and scale; the derivative in df is implicit, that of g",
    ),
    "MultivariateNormal": _location_scale(_VECTOR, "z = loc + scale_tril @ eps"),
    "LowRankMultivariateNormal": _location_scale(
        f"{_VECTOR}, xi ~ Normal(0, I)", "z = loc + cov_factor @ eps + sqrt(cov_diag) * xi"
    ),
    "MultivariateStudentT": _location_scale(
        f"{_VECTOR}, g ~ Chi2(df)",
        "z = loc + scale_tril @ eps / sqrt(g / df)",
        why="location-scale in loc and scale_tril; the derivative in df is implicit, that of g",
    ),
    "AVFMultivariateNormal": _location_scale(
        _VECTOR,
        "z = loc + scale_tril @ eps",
        why="its derivative in scale_tril has a learned control variate added, of mean zero",
        reference=_TRANSPORT,
    ),
    "OMTMultivariateNormal": _location_scale(
        _VECTOR,
        "z = loc + scale_tril @ eps",
        why="its derivative in scale_tril follows optimal transport: same mean, less variance",
        reference=_OPTIMAL,
    ),
    "GaussianHMM": _location_scale(_VECTOR, "states and observations, linear in eps"),
}

_INVERSE_CDFS: dict[str, Reparameterization] = {
    "Exponential": _inverse_cdf("z = -log(1 - u) / rate"),
    "Gumbel": _inverse_cdf("z = loc - scale * log(-log(u))"),
    "Weibull": _inverse_cdf("z = scale * (-log(1 - u)) ** (1 / concentration)"),
    "Pareto": _inverse_cdf("z = scale * (1 - u) ** (-1 / alpha)"),
    "GeneralizedPareto": _inverse_cdf(
        "z = loc + scale * ((1 - u) ** (-concentration) - 1) / concentration",
        why="z = loc - scale * log(1 - u) where concentration is 0",
    ),
    "Kumaraswamy": _inverse_cdf(
        "z = (1 - u ** (1 / concentration0)) ** (1 / concentration1)",
        why="torch's own rounds draws to 1 where concentrations are small: their gradients are NaN",
        reference="Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197",
    ),
    "Logistic": _inverse_cdf("z = loc + scale * logit(u)"),
    "SkewLogistic": _inverse_cdf("z = loc + scale * logit(u ** (1 / asymmetry))"),
    "SoftLaplace": _inverse_cdf("z = loc + scale * log(tan(pi * u / 2))"),
    "ContinuousBernoulli": _inverse_cdf(
        "z = log(1 + u * (2 * probs - 1) / (1 - probs)) / log(probs / (1 - probs))",
        why="z = u where probs is 1/2",
        reference="Loaiza-Ganem and Cunningham 2019, https://arxiv.org/abs/1907.06845",
    ),
    "LogitRelaxedBernoulli": _inverse_cdf("z = (logits + logit(u)) / temperature"),
}

_TRANSFORMATIONS: dict[str, Reparameterization] = {
    "LogNormal": _transformation("z = exp(loc + scale * eps)", _STANDARD),
    "LogisticNormal": _transformation("z = stick_breaking(loc + scale * eps)", _STANDARD),
    "HalfNormal": _transformation("z = abs(scale * eps)", _STANDARD),
    "HalfCauchy": _transformation("z = abs(scale * eps)", "eps ~ Cauchy(0, 1)"),
    "InverseGamma": _transformation("z = 1 / g", "g ~ Gamma(concentration, rate)"),
    "FisherSnedecor": _transformation(
        "z = g / h", "g ~ Gamma(df1 / 2, df1 / 2), h ~ Gamma(df2 / 2, df2 / 2)"
    ),
    "AffineBeta": _transformation(
        "z = loc + scale * v",
        "v ~ Beta(concentration1, concentration0)",
    ),
    "AsymmetricLaplace": _transformation(
        "z = loc - scale * asymmetry * e + scale / asymmetry * h",
        "e ~ Exponential(1), h ~ Exponential(1)",
    ),
    "SoftAsymmetricLaplace": _transformation(
        "z = loc + scale * (softness * eps - asymmetry * e + h / asymmetry)",
        f"{_STANDARD}, e ~ Exponential(1), h ~ Exponential(1)",
    ),
    "ProjectedNormal": _transformation(
        "z = (concentration + eps) / norm(concentration + eps)", _VECTOR
    ),
    "Wishart": _transformation(
        "z = L A Aᵀ Lᵀ, L = scale_tril",
        "A lower triangular, A_ij ~ Normal(0, 1), A_ii² ~ Chi2(df - i)",
    ),
    "Stable": _transformation(
        "z = loc + scale * g(u, e; stability, skew)",
        "u ~ Uniform(-pi/2, pi/2), e ~ Exponential(1)",
        why="its density is an integral: cheap to draw, costly to evaluate",
        reference="Chambers, Mallows, Stuck 1976, https://doi.org/10.1080/01621459.1976.10480344",
    ),
    "RelaxedBernoulli": _transformation(
        "z = sigmoid((logits + logit(u)) / temperature)", _UNIFORM, reference=_CONCRETE
    ),
    "RelaxedOneHotCategorical": _transformation(
        "z = softmax((logits + g) / temperature)", "g ~ Gumbel(0, 1)", reference=_CONCRETE
    ),
    "ExpRelaxedCategorical": _transformation(
        "z = log_softmax((logits + g) / temperature)", "g ~ Gumbel(0, 1)", reference=_CONCRETE
    ),
    "LinearHMM": _transformation("states and observations in turn", "from their distributions"),
    "Delta": _transformation("z = v", "", why="there is no noise: the value is its parameter"),
}

_IMPLICITS: dict[str, Reparameterization] = {
    "Gamma": _implicit("in concentration; in rate it is a scale, z = g / rate"),
    "Chi2": _implicit("of Gamma(df / 2, 1 / 2)"),
    "Beta": _implicit(),
    "Dirichlet": _implicit(
        "a solution of the transport equation, component by component", _OPTIMAL
    ),
    **dict.fromkeys(
        ("MixtureOfDiagNormals", "MixtureOfDiagNormalsSharedCovariance"),
        _implicit(
            "a transport equation; Pyro 1.9 solves it for component_logits only where the line "
            "through each two means passes the origin (gradients of locs and scales are right)",
            _TRANSPORT,
        ),
    ),
    "GaussianScaleMixture": _implicit("a transport equation in several dimensions", _TRANSPORT),
    "VonMises": _missing(
        _implicit(),
        "torch draws it by rejection, without a derivative",
        "ProjectedNormal, a normal guide on the unwrapped angle, or ScoreFunction",
    ),
    "MixtureSameFamily": _missing(
        _implicit(reference="Graves 2016, https://arxiv.org/abs/1607.05690"),
        "torch draws the component first, which is discrete, and has no derivative",
        "MixtureOfDiagNormals, or a component of its own as a latent with Enumerated",
    ),
}

_OTHERS: dict[str, Reparameterization] = {
    "Rejector": replace(
        _entry(
            _Kind.PARTIAL,
            "z is the first accepted draw of propose",
            "accepted with probability exp(log_prob_accept)",
            "the path of the proposal is not all: score_parts has the score of acceptance, which "
            "pyro_models.infer and Pyro's Trace_ELBO add",
            "Naesseth, Ruiz, Linderman, Blei 2017, https://arxiv.org/abs/1610.05683",
        ),
        instead="objectives that use score_parts, such as ELBO",
    ),
    "OneHotCategoricalStraightThrough": _straight_through(
        "z = one_hot + probs - stop_gradient(probs)",
        "one_hot ~ OneHotCategorical(probs)",
        "RelaxedOneHotCategorical",
        _STRAIGHT,
    ),
    "RelaxedBernoulliStraightThrough": _straight_through(
        "z = round(sigmoid((logits + logit(u)) / temperature))",
        _UNIFORM,
        "RelaxedBernoulli",
        _CONCRETE,
    ),
    "RelaxedOneHotCategoricalStraightThrough": _straight_through(
        "z = one_hot(argmax(logits + g))",
        "g ~ Gumbel(0, 1)",
        "RelaxedOneHotCategorical",
        "Jang, Gu, Poole 2017, https://arxiv.org/abs/1611.01144",
    ),
}

_NONES: dict[str, Reparameterization] = {
    "Bernoulli": _discrete(_SUMMED, "RelaxedBernoulli"),
    "Categorical": _discrete(_SUMMED, "RelaxedOneHotCategorical"),
    "OneHotCategorical": _discrete(_SUMMED, "RelaxedOneHotCategorical"),
    **dict.fromkeys(
        ("OrderedLogistic", "Binomial", "BetaBinomial", "Empirical"), _discrete(_SUMMED)
    ),
    **dict.fromkeys(
        (
            *("DirichletMultinomial", "DiscreteHMM", "GammaPoisson", "Geometric", "Multinomial"),
            *("LogNormalNegativeBinomial", "NegativeBinomial", "Poisson"),
            *("OneOneMatching", "OneTwoMatching", "SpanningTree"),
        ),
        _discrete(),
    ),
    "ZeroInflatedDistribution": _ATOM,
    "LKJCholesky": _LKJ,
    "LKJ": _LKJ,
    **dict.fromkeys(
        ("GammaGaussianHMM", "GaussianMRF", "GroupedNormalNormal", "ImproperUniform", "VonMises3D"),
        _NO_SAMPLER,
    ),
    **dict.fromkeys(
        ("CoalescentTimes", "CoalescentTimesWithRate"),
        _none("its sampler walks from event to event in Python numbers, without a derivative"),
    ),
    "SineBivariateVonMises": _none(
        "it is drawn by rejection, without a derivative",
        "ProjectedNormal for each angle, or ScoreFunction",
    ),
    "SineSkewed": _none("a coin mirrors each draw, which is discrete"),
    "TruncatedPolyaGamma": _none(
        "it has no parameters, so no gradient is lost", "nothing: there is none to differentiate"
    ),
    "Unit": _none("it has no value, only a density factor", "nothing: there is no value"),
}

TABLE: Mapping[str, Reparameterization] = MappingProxyType(
    {
        name: replace(entry, name=name)
        for part in (
            *(_LOCATION_SCALES, _INVERSE_CDFS, _TRANSFORMATIONS),
            *(_IMPLICITS, _OTHERS, _NONES),
        )
        for name, entry in part.items()
    }
)
"""Class name -> its reparameterisation, for the distributions of torch, Pyro and this library."""
