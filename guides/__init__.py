"""The inference side q(z | x): guides for the models of ``pyro_models``, one file a family."""

from guides.amortized_bernoulli import AmortizedBernoulli
from guides.amortized_normal import AmortizedNormal
from guides.covariance import Covariance, Diagonal, Full
from guides.factors import BetaFactor, Factor, KumaraswamyFactor, NormalFactor
from guides.full_rank import FullRank
from guides.mean_field import MeanField
from guides.point import Point

__all__ = [
    "AmortizedBernoulli",
    "AmortizedNormal",
    "BetaFactor",
    "Covariance",
    "Diagonal",
    "Factor",
    "Full",
    "FullRank",
    "KumaraswamyFactor",
    "MeanField",
    "NormalFactor",
    "Point",
]
