"""Classical pairs: Gaussian, mixture, linear latents, regression; exact posteriors as guides."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from guides import (
    Belief,
    ConditionalResponsibilities,
    Empty,
    ExactLinearGaussian,
    Factor,
    KumaraswamyFactor,
    LinearGaussian,
    MeanField,
    Responsibilities,
)
from pyro_models.bayesian_components import NormalWishartPrior
from pyro_models.bayesian_mixture import BayesianGaussianMixture
from pyro_models.covariances import Covariance, Full
from pyro_models.data import Data, as_tensor
from pyro_models.dirichlet_process import DirichletProcessMixture, GammaPrior
from pyro_models.errors import DataError
from pyro_models.factor_analysis import FactorAnalysis
from pyro_models.gaussian import Gaussian, NormalInverseWishart
from pyro_models.infer import ELBO, Enumerated, MonteCarloKL, Objective, ScoreFunction
from pyro_models.infer.objectives import LeaveOneOut
from pyro_models.likelihoods import Likelihood
from pyro_models.linear_gaussian import RandomAxes
from pyro_models.mixture import GaussianMixture
from pyro_models.pairs.registry import Pair, check_objective, register
from pyro_models.ppca import ProbabilisticPCA
from pyro_models.regression import SupervisedRegression

Rows = Float[Tensor, "num_data data_dim"]
Linear = ProbabilisticPCA | FactorAnalysis
Shared = BayesianGaussianMixture | DirichletProcessMixture


def gaussian(
    data_dim: int,
    covariance: Covariance = Full(),  # noqa: B008 (immutable)
    prior: NormalInverseWishart | None = None,
    objective: Objective | None = None,
) -> Pair:
    """A normal distribution: what every model with latents must beat.

    Args:
        data_dim: Numbers a datum.
        covariance: ``Full()``, ``Diagonal()`` or ``Spherical()`` of ``pyro_models.covariances``.
        prior: Of mean and covariance, for the closed form's posterior mode.
        objective: What to maximise; ``ELBO()``, the log-likelihood, if not given.

    Raises:
        OptionError: If an option has no meaning.

    Example:
        >>> gaussian(3).model.num_free_parameters
        9
    """
    check_objective(objective)
    return Pair(Gaussian(data_dim, covariance, prior), Empty(), objective or ELBO())


def gaussian_mixture(
    data_dim: int,
    num_components: int = 3,
    covariance: Covariance = Full(),  # noqa: B008 (immutable)
    guide: nn.Module | None = None,
    objective: Objective | None = None,
) -> Pair:
    """A mixture of Gaussians with point parameters, its component summed out.

    Args:
        data_dim: Numbers a datum.
        num_components: K.
        covariance: ``Full()``, ``Tied()``, ``Diagonal()`` or ``Spherical()`` of
            ``pyro_models.covariances``.
        guide: ``Responsibilities(model)``, the exact posterior, if not given; or a
            ``guides.AmortizedCategorical``.
        objective: What to maximise. With the exact posterior the marginal likelihood, and with a
            guide of your own the ELBO by score function with 5 draws, if not given.

    Raises:
        OptionError: If an option has no meaning.

    Example:
        >>> gaussian_mixture(4, num_components=3).objective
        Enumerated(ELBO(num_particles=1, kl=AnalyticKL()), over=('component',))
    """
    check_objective(objective)
    model = GaussianMixture(num_components, data_dim, covariance)
    if objective is None:
        exact = Enumerated(over=("component",))
        objective = exact if guide is None else ScoreFunction(5, LeaveOneOut())
    return Pair(model, Responsibilities(model) if guide is None else guide, objective)


def bayesian_gaussian_mixture(
    data_dim: int,
    num_components: int = 10,
    concentration: float | None = None,
    prior: NormalWishartPrior = NormalWishartPrior(),  # noqa: B008 (immutable)
    guide: nn.Module | None = None,
    objective: Objective | None = None,
) -> Pair:
    """A mixture of Gaussians with priors: more components than are used do no harm.

    Args:
        data_dim: Numbers a datum.
        num_components: K, the most components.
        concentration: Of the weights' Dirichlet prior; 1 / K if not given.
        prior: Of means and precisions.
        guide: Mean-field normals with the component's exact posterior given them, if not given.
        objective: What to maximise; the ELBO with the component summed out, if not given.

    Raises:
        OptionError: If an option has no meaning.

    Example:
        >>> sorted(bayesian_gaussian_mixture(2, num_components=3).guide.latents)
        ['means', 'precision_factors', 'weights']
    """
    check_objective(objective)
    model = BayesianGaussianMixture(num_components, data_dim, concentration, prior)
    return _with_shared_latents(model, {}, guide, objective)


def dirichlet_process_mixture(
    data_dim: int,
    truncation: int = 20,
    concentration: float | GammaPrior = GammaPrior(),  # noqa: B008 (immutable)
    prior: NormalWishartPrior = NormalWishartPrior(),  # noqa: B008 (immutable)
    sticks: Factor = KumaraswamyFactor(),  # noqa: B008 (immutable)
    guide: nn.Module | None = None,
    objective: Objective | None = None,
) -> Pair:
    """A mixture of Gaussians without a fixed number of components.

    Args:
        data_dim: Numbers a datum.
        truncation: The most components.
        concentration: Of the process, or its prior.
        prior: Of means and precisions.
        sticks: The posterior of each stick: ``guides.KumaraswamyFactor()`` or ``BetaFactor()``.
        guide: Mean-field normals and ``sticks``, with the component's exact posterior given them,
            if not given.
        objective: What to maximise; the ELBO with the component summed out, if not given.

    Raises:
        OptionError: If an option has no meaning.

    Example:
        >>> sorted(dirichlet_process_mixture(2, truncation=5).guide.latents)
        ['concentration', 'means', 'precision_factors', 'v']
    """
    check_objective(objective)
    model = DirichletProcessMixture(truncation, data_dim, concentration, prior)
    return _with_shared_latents(model, {"v": sticks}, guide, objective)


def _with_shared_latents(
    model: Shared, factors: dict[str, Factor], guide: nn.Module | None, objective: Objective | None
) -> Pair:
    if guide is None:
        guide = MeanField(model, factors=factors, local=ConditionalResponsibilities(model))
    return Pair(model, guide, objective or Enumerated(over=("component",)))


def with_belief(pair: Pair) -> Pair:
    """The pair with the belief that its model holds as the guide, where it holds one.

    ``infer.em`` then fits the pair in closed form, often in a second for what gradients take a
    minute, and what it finds is the guide.

    Args:
        pair: Any pair; one whose model holds no belief is returned as it is.

    Example:
        >>> with_belief(dirichlet_process_mixture(2)).guide
        Belief(
          (local): ConditionalResponsibilities()
        )
    """
    if not isinstance(pair.model, Shared):
        return pair
    return replace(pair, guide=Belief(pair.model))


def ppca(
    data_dim: int,
    latent_dim: int = 2,
    guide: nn.Module | None = None,
    objective: Objective | None = None,
) -> Pair:
    """Probabilistic principal component analysis.

    Args:
        data_dim: Numbers a datum.
        latent_dim: Dimension of z, below ``data_dim``.
        guide: The exact posterior, if not given, for data with missing values too; or a guide of
            your own such as ``guides.LinearGaussian(data_dim, latent_dim)``.
        objective: What to maximise; the ELBO if not given. With the exact posterior every draw of
            it is the marginal likelihood, with its gradient.

    Raises:
        OptionError: If an option has no meaning, or ``latent_dim`` is not below ``data_dim``.

    Example:
        >>> ppca(5, latent_dim=2).model.loadings.shape
        torch.Size([5, 2])
    """
    return _linear(ProbabilisticPCA(data_dim, latent_dim), guide, objective)


def factor_analysis(
    data_dim: int,
    latent_dim: int = 2,
    guide: nn.Module | None = None,
    objective: Objective | None = None,
) -> Pair:
    """Factor analysis: linear latents, noise of one variance for each dimension.

    Args:
        data_dim: Numbers a datum.
        latent_dim: Dimension of z, below ``data_dim``.
        guide: As for :func:`ppca`.
        objective: As for :func:`ppca`.

    Raises:
        OptionError: If an option has no meaning, or ``latent_dim`` is not below ``data_dim``.

    Example:
        >>> factor_analysis(5, latent_dim=2).model.noise_variance.shape
        torch.Size([5])
    """
    return _linear(FactorAnalysis(data_dim, latent_dim), guide, objective)


def _linear(model: Linear, guide: nn.Module | None, objective: Objective | None) -> Pair:
    check_objective(objective)
    if guide is None:
        # log p(x, z) - log q(z | x) is log p(x) for every z, which an analytic KL would spoil.
        return Pair(model, ExactLinearGaussian(model), objective or ELBO(kl=MonteCarloKL()))
    return Pair(model, guide, objective or ELBO())


def regression(
    in_dim: int,
    data_dim: int,
    hidden: Sequence[int] | None = None,
    likelihood: Likelihood | None = None,
    activation: type[nn.Module] | None = None,
    network: nn.Module | None = None,
    objective: Objective | None = None,
) -> Pair:
    """Supervised regression: maximum likelihood is least squares.

    Args:
        in_dim: Numbers an input.
        data_dim: Numbers an output.
        hidden: Widths of the network's hidden layers; none, a linear network, if not given.
        likelihood: What the network's outputs mean; a normal of variance 1 if not given.
        activation: Class of the network's activation; ``nn.Sigmoid`` if not given.
        network: A network of your own instead.
        objective: What to maximise; ``ELBO()``, the log-likelihood, if not given.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> import torch
        >>> regression(3, 1, hidden=(20,)).model(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    check_objective(objective)
    model = SupervisedRegression(in_dim, data_dim, hidden, likelihood, activation, network)
    return Pair(model, Empty(), objective or ELBO())


def _maybe_missing(data: Any) -> Tensor:
    return as_tensor(data.x if isinstance(data, Data) else data, missing=True).flatten(1)


def _inputs_and_outputs(data: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(data, tuple) and len(data) == 2):
        raise DataError(
            f"regression takes a tuple of inputs and outputs, and got a {type(data).__name__}; "
            "write (inputs, outputs)"
        )
    inputs, outputs = (as_tensor(part).flatten(1) for part in data)
    if len(inputs) != len(outputs):
        raise DataError(f"{len(inputs)} inputs and {len(outputs)} outputs; give one for each")
    return inputs, outputs


def _placed(pair: Pair, like: Tensor) -> Pair:
    pair.model.to(like)
    pair.guide.to(like)
    return pair


@register("gaussian", gaussian)
def _gaussian_for(x: Rows, **chosen: Any) -> Pair:
    return _placed(gaussian(x.shape[1], **chosen), x)


@register("gaussian_mixture", gaussian_mixture)
def _gaussian_mixture_for(x: Rows, **chosen: Any) -> Pair:
    pair = _placed(gaussian_mixture(x.shape[1], **chosen), x)
    cast(GaussianMixture, pair.model).initialize(x)
    return pair


@register("bayesian_gaussian_mixture", bayesian_gaussian_mixture)
def _bayesian_gaussian_mixture_for(x: Rows, **chosen: Any) -> Pair:
    return _started(bayesian_gaussian_mixture(x.shape[1], **chosen), x)


@register("dirichlet_process_mixture", dirichlet_process_mixture)
def _dirichlet_process_mixture_for(x: Rows, **chosen: Any) -> Pair:
    return _started(dirichlet_process_mixture(x.shape[1], **chosen), x)


def _started(pair: Pair, x: Rows) -> Pair:
    """At a first clustering: the belief, and the guide at its middle."""
    _placed(pair, x)
    model = cast(Shared, pair.model)
    model.initialize(x)
    if isinstance(pair.guide, MeanField):
        pair.guide.initialize(model.center())
    return pair


def _linear_for(pair: Pair, x: Rows) -> Pair:
    _placed(pair, x)
    # Not at the principal axes: there the closed form would have nothing left to fit.
    cast(Linear, pair.model).initialize(x, start=RandomAxes())
    if isinstance(pair.guide, LinearGaussian):
        pair.guide.initialize(x)
    return pair


@register("ppca", ppca, _maybe_missing)
def _ppca_for(x: Rows, **chosen: Any) -> Pair:
    return _linear_for(ppca(x.shape[1], **chosen), x)


@register("factor_analysis", factor_analysis, _maybe_missing)
def _factor_analysis_for(x: Rows, **chosen: Any) -> Pair:
    return _linear_for(factor_analysis(x.shape[1], **chosen), x)


@register("regression", regression, _inputs_and_outputs)
def _regression_for(data: tuple[Tensor, Tensor], **chosen: Any) -> Pair:
    inputs, outputs = data
    pair = _placed(regression(inputs.shape[1], outputs.shape[1], **chosen), outputs)
    if chosen.get("network") is None:
        cast(SupervisedRegression, pair.model).initialize(outputs)
    return pair
