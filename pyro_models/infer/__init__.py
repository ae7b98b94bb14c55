"""The engine: it fits, judges and uses any Pyro model/guide pair, and knows none of ours."""

from pyro_models.infer import diagnostics
from pyro_models.infer.alternation import Alternation
from pyro_models.infer.checkpoint import Checkpoint
from pyro_models.infer.em import SupportsEM, em
from pyro_models.infer.embedding import Embedding, embed
from pyro_models.infer.enumeration import marginal
from pyro_models.infer.fit import fit
from pyro_models.infer.history import EpochRecord, Fit
from pyro_models.infer.likelihood import (
    EffectiveSampleSizeWarning,
    ImportanceSampling,
    LogLikelihood,
    NaiveMonteCarlo,
    log_likelihood,
)
from pyro_models.infer.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    AnalyticKL,
    DecayingAverage,
    DoublyReparameterized,
    ELBOTerms,
    Enumerated,
    Estimate,
    Learned,
    LeaveOneOut,
    LeftRule,
    MonteCarloKL,
    NoBaseline,
    Objective,
    Pathwise,
    RenyiELBO,
    ReweightedWakeSleep,
    RightRule,
    ScoreFunction,
    SleepPhase,
    StandardGradient,
    StickingTheLanding,
    ThermodynamicELBO,
    TrapezoidRule,
    WakeAndSleep,
    WakePhase,
)
from pyro_models.infer.predict import Posterior, Standard, reconstruct, sample, variations
from pyro_models.infer.record import LogWeights
from pyro_models.infer.remedies import EachDimension, EachGroup, FreeBits, Remedies, WholeSite
from pyro_models.infer.reparameterization import reparameterization
from pyro_models.infer.reparameterization_table import Reparameterization, ReparameterizationKind
from pyro_models.infer.run import Callback, EpochEnd
from pyro_models.infer.schedules import (
    Beta,
    Burda,
    Constant,
    Cosine,
    CyclicalWarmup,
    Exponential,
    InverseEpoch,
    KLSchedule,
    LinearWarmup,
    Schedule,
    Warmup,
)
from pyro_models.infer.sites import Site
from pyro_models.infer.step import Step
from pyro_models.infer.stepwise import Stepwise, SupportsStepwise
from pyro_models.infer.stopping import EarlyStopping, StopFit, StopReason
from pyro_models.infer.validation import Validation
from pyro_models.infer.weights import log_weights

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "VIMCO",
    "Alternation",
    "AnalyticKL",
    "Beta",
    "Burda",
    "Callback",
    "Checkpoint",
    "Constant",
    "Cosine",
    "CyclicalWarmup",
    "DecayingAverage",
    "DoublyReparameterized",
    "ELBOTerms",
    "EachDimension",
    "EachGroup",
    "EarlyStopping",
    "EffectiveSampleSizeWarning",
    "Embedding",
    "Enumerated",
    "EpochEnd",
    "EpochRecord",
    "Estimate",
    "Exponential",
    "Fit",
    "FreeBits",
    "ImportanceSampling",
    "InverseEpoch",
    "KLSchedule",
    "Learned",
    "LeaveOneOut",
    "LeftRule",
    "LinearWarmup",
    "LogLikelihood",
    "LogWeights",
    "MonteCarloKL",
    "NaiveMonteCarlo",
    "NoBaseline",
    "Objective",
    "Pathwise",
    "Posterior",
    "Remedies",
    "RenyiELBO",
    "Reparameterization",
    "ReparameterizationKind",
    "ReweightedWakeSleep",
    "RightRule",
    "Schedule",
    "ScoreFunction",
    "Site",
    "SleepPhase",
    "Standard",
    "StandardGradient",
    "Step",
    "Stepwise",
    "StickingTheLanding",
    "StopFit",
    "StopReason",
    "SupportsEM",
    "SupportsStepwise",
    "ThermodynamicELBO",
    "TrapezoidRule",
    "Validation",
    "WakeAndSleep",
    "WakePhase",
    "Warmup",
    "WholeSite",
    "diagnostics",
    "em",
    "embed",
    "fit",
    "log_likelihood",
    "log_weights",
    "marginal",
    "reconstruct",
    "reparameterization",
    "sample",
    "variations",
]
