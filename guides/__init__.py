"""The inference side q(z | x): guides for the models of ``pyro_models``, one file a family."""

from guides.amortized_bernoulli import AmortizedBernoulli
from guides.amortized_categorical import AmortizedCategorical
from guides.amortized_normal import AmortizedNormal
from guides.belief import Belief
from guides.covariance import Covariance, Diagonal, Full
from guides.empty import Empty
from guides.factors import BetaFactor, Factor, KumaraswamyFactor, NormalFactor
from guides.full_rank import FullRank
from guides.linear_gaussian import ExactLinearGaussian, LinearGaussian
from guides.mean_field import MeanField
from guides.mixture_codes import MixtureCodes
from guides.point import Point
from guides.responsibilities import ConditionalResponsibilities, Responsibilities

__all__ = [
    "AmortizedBernoulli",
    "AmortizedCategorical",
    "AmortizedNormal",
    "Belief",
    "BetaFactor",
    "ConditionalResponsibilities",
    "Covariance",
    "Diagonal",
    "Empty",
    "ExactLinearGaussian",
    "Factor",
    "Full",
    "FullRank",
    "KumaraswamyFactor",
    "LinearGaussian",
    "MeanField",
    "MixtureCodes",
    "NormalFactor",
    "Point",
    "Responsibilities",
]
