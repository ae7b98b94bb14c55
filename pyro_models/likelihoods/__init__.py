"""Likelihoods p(x | z): what a decoder's outputs mean, and which data they can explain."""

from pyro_models.likelihoods.base import Likelihood
from pyro_models.likelihoods.discrete import Categorical, Poisson
from pyro_models.likelihoods.normal import Normal
from pyro_models.likelihoods.scales import FixedScale, LearnedScale, OptimalScale, Scale
from pyro_models.likelihoods.unit import Bernoulli, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "FixedScale",
    "LearnedScale",
    "Likelihood",
    "Normal",
    "OptimalScale",
    "Poisson",
    "Scale",
]
