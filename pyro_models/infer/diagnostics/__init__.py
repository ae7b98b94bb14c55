"""Judging a fit: what the numbers of a bound do not say."""

from pyro_models.infer.diagnostics.active_units import ActiveUnits, active_units
from pyro_models.infer.diagnostics.gradient_noise import MeanGradient, gradient_noise
from pyro_models.infer.diagnostics.kl import KLByDimension, LatentKL, kl_by_dimension
from pyro_models.infer.diagnostics.noise_record import GradientNoise, ParameterNoise, SideNoise

__all__ = [
    "ActiveUnits",
    "GradientNoise",
    "KLByDimension",
    "LatentKL",
    "MeanGradient",
    "ParameterNoise",
    "SideNoise",
    "active_units",
    "gradient_noise",
    "kl_by_dimension",
]
