"""The inference side q(z | x): guides for the models of ``pyro_models``, one file a family."""

from guides.amortized_bernoulli import AmortizedBernoulli
from guides.amortized_categorical import AmortizedCategorical
from guides.amortized_normal import AmortizedNormal
from guides.amortized_sticks import (
    AmortizedBeta,
    AmortizedGammaRatio,
    AmortizedKumaraswamy,
    AmortizedLogitNormal,
    AmortizedSticks,
)
from guides.belief import Belief
from guides.class_and_code import AmortizedClassAndCode
from guides.code_posteriors import CodePosterior, NormalCodePosterior, StickCodePosterior
from guides.covariance import Covariance, Diagonal, Full
from guides.empty import Empty
from guides.factors import BetaFactor, Factor, KumaraswamyFactor, NormalFactor
from guides.full_rank import FullRank
from guides.linear_gaussian import ExactLinearGaussian, LinearGaussian
from guides.mean_field import MeanField
from guides.mixture_codes import MixtureCodes
from guides.point import Point
from guides.responsibilities import ConditionalResponsibilities, Responsibilities
from guides.stick_families import (
    BetaSticks,
    GammaRatioSticks,
    KumaraswamySticks,
    LogitNormalSticks,
    StickFamily,
)

__all__ = [
    "AmortizedBernoulli",
    "AmortizedBeta",
    "AmortizedCategorical",
    "AmortizedClassAndCode",
    "AmortizedGammaRatio",
    "AmortizedKumaraswamy",
    "AmortizedLogitNormal",
    "AmortizedNormal",
    "AmortizedSticks",
    "Belief",
    "BetaFactor",
    "BetaSticks",
    "CodePosterior",
    "ConditionalResponsibilities",
    "Covariance",
    "Diagonal",
    "Empty",
    "ExactLinearGaussian",
    "Factor",
    "Full",
    "FullRank",
    "GammaRatioSticks",
    "KumaraswamyFactor",
    "KumaraswamySticks",
    "LinearGaussian",
    "LogitNormalSticks",
    "MeanField",
    "MixtureCodes",
    "NormalCodePosterior",
    "NormalFactor",
    "Point",
    "Responsibilities",
    "StickCodePosterior",
    "StickFamily",
]
