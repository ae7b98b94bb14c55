"""Choosing between models: what each says of held-out data, and what it is charged for its size.

- `information_criteria`: AIC and BIC of a model with exact log p(x).
- `held_out`: log p(x) of data that the fit has not seen, exact or by draws from the guide.
- `psis_loo`: leave-one-out from one fit of a Bayesian model, by ArviZ's smoothed weights.
- `evidence`: bounds on the log marginal likelihood of a Bayesian model.
- `compare`: all of it, model by model, as a table and a picture.

Models are known here by what they can do: ``log_prob(x)``, ``num_free_parameters``, or a guide.
"""

from pyro_models.selection.comparison import Candidate, Comparison, compare
from pyro_models.selection.criteria import InformationCriteria, information_criteria
from pyro_models.selection.loo import Loo, ParetoWarning, psis_loo
from pyro_models.selection.predictive import Evidence, HeldOut, evidence, held_out

__all__ = [
    "Candidate",
    "Comparison",
    "Evidence",
    "HeldOut",
    "InformationCriteria",
    "Loo",
    "ParetoWarning",
    "compare",
    "evidence",
    "held_out",
    "information_criteria",
    "psis_loo",
]
