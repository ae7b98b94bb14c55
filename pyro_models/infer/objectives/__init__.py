"""Objectives: each a bound to report and a surrogate to differentiate, on the log-weights."""

from pyro_models.infer.objectives.averaged import CIWAE, MIWAE, PIWAE
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.baselines import (
    DecayingAverage,
    Learned,
    LeaveOneOut,
    NoBaseline,
    Pathwise,
)
from pyro_models.infer.objectives.elbo import ELBO, AnalyticKL, ELBOTerms, MonteCarloKL
from pyro_models.infer.objectives.enumerated import Enumerated
from pyro_models.infer.objectives.iwae import (
    IWAE,
    DoublyReparameterized,
    StandardGradient,
    StickingTheLanding,
)
from pyro_models.infer.objectives.renyi import RenyiELBO
from pyro_models.infer.objectives.score import ScoreFunction
from pyro_models.infer.objectives.supervised import Supervised
from pyro_models.infer.objectives.thermodynamic import (
    LeftRule,
    RightRule,
    ThermodynamicELBO,
    TrapezoidRule,
)
from pyro_models.infer.objectives.vimco import VIMCO
from pyro_models.infer.objectives.wake_sleep import (
    ReweightedWakeSleep,
    SleepPhase,
    WakeAndSleep,
    WakePhase,
)

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "VIMCO",
    "AnalyticKL",
    "DecayingAverage",
    "DoublyReparameterized",
    "ELBOTerms",
    "Enumerated",
    "Estimate",
    "Learned",
    "LeaveOneOut",
    "LeftRule",
    "MonteCarloKL",
    "NoBaseline",
    "Objective",
    "Pathwise",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "RightRule",
    "ScoreFunction",
    "SleepPhase",
    "StandardGradient",
    "StickingTheLanding",
    "Supervised",
    "ThermodynamicELBO",
    "TrapezoidRule",
    "WakeAndSleep",
    "WakePhase",
]
