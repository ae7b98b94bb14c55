"""Judging a fit: what the numbers of a bound do not say."""

from pyro_models.infer.diagnostics.active_units import ActiveUnits, active_units

__all__ = ["ActiveUnits", "active_units"]
