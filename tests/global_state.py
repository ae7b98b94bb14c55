"""A picture of the global state that nothing here may change."""

import logging
import random
import warnings
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK


def settings() -> dict[str, Any]:
    """What a test must leave as it was: the switches of torch and Pyro, and the two stores."""
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch grad mode": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch anomaly mode": torch.is_anomaly_enabled(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch threads": torch.get_num_threads(),
        "Pyro settings (validation among them)": pyro.settings.get(),
        "Pyro handler stack": list(_PYRO_STACK),
        "Pyro parameter store": sorted(pyro.get_param_store().keys()),
    }


def everything() -> dict[str, Any]:
    """`settings`, and what an import must leave as it was besides."""
    root = logging.getLogger()
    return settings() | {
        "torch generator": torch.get_rng_state().tolist(),
        "NumPy generator": repr(np.random.get_state()),  # noqa: NPY002
        "Python generator": random.getstate(),
        "matplotlib backend": matplotlib.rcParams._get(
            "backend"
        ),  # reading it normally resolves it
        "matplotlib rcParams": {k: repr(matplotlib.rcParams._get(k)) for k in matplotlib.rcParams},
        "warning filters": [repr(entry) for entry in warnings.filters],
        "root logger": (root.level, [repr(handler) for handler in root.handlers]),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what differs between two pictures."""
    return [name for name in before if before[name] != after[name]]
