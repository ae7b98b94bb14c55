"""The engine: it fits, judges and uses any Pyro model/guide pair, and knows none of ours."""

from pyro_models.infer.objectives import (
    ELBO,
    AnalyticKL,
    ELBOTerms,
    Estimate,
    MonteCarloKL,
    Objective,
)
from pyro_models.infer.step import Step
from pyro_models.infer.weights import LogWeights, Site, log_weights

__all__ = [
    "ELBO",
    "AnalyticKL",
    "ELBOTerms",
    "Estimate",
    "LogWeights",
    "MonteCarloKL",
    "Objective",
    "Site",
    "Step",
    "log_weights",
]
