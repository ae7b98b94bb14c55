"""Objectives: each a bound to report and a surrogate to differentiate, on the log-weights."""

from pyro_models.infer.objectives.averaged import CIWAE, MIWAE, PIWAE
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.elbo import ELBO, AnalyticKL, ELBOTerms, MonteCarloKL
from pyro_models.infer.objectives.enumerated import Enumerated
from pyro_models.infer.objectives.iwae import (
    IWAE,
    DoublyReparameterized,
    StandardGradient,
    StickingTheLanding,
)
from pyro_models.infer.objectives.renyi import RenyiELBO
from pyro_models.infer.objectives.vimco import VIMCO

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "VIMCO",
    "AnalyticKL",
    "DoublyReparameterized",
    "ELBOTerms",
    "Enumerated",
    "Estimate",
    "MonteCarloKL",
    "Objective",
    "RenyiELBO",
    "StandardGradient",
    "StickingTheLanding",
]
