"""The inference side q(z | x): guides for the models of ``pyro_models``, one file a family."""

from guides.amortized_bernoulli import AmortizedBernoulli
from guides.amortized_normal import AmortizedNormal
from guides.covariance import Covariance, Diagonal, Full

__all__ = ["AmortizedBernoulli", "AmortizedNormal", "Covariance", "Diagonal", "Full"]
