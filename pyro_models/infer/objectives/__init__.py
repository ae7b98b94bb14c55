"""Objectives: each a bound to report and a surrogate to differentiate, on the log-weights."""

from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.elbo import ELBO, AnalyticKL, ELBOTerms, MonteCarloKL
from pyro_models.infer.objectives.enumerated import Enumerated

__all__ = ["ELBO", "AnalyticKL", "ELBOTerms", "Enumerated", "Estimate", "MonteCarloKL", "Objective"]
