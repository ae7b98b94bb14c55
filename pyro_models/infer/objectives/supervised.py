"""Any objective, and a classifier's log-likelihood beside it where classes are known."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer.draws import Draws
from pyro_models.infer.objectives.base import Estimate, Objective, OptimizerFactory
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.remedies import FreeBits
from pyro_models.infer.weights import Program


class Supervised(Objective):
    r"""An objective that also trains the guide's classifier on the labels that are known,

    .. math::
        \mathcal J^\alpha = \mathcal J + \alpha \sum_{n:\, y_n \text{ known}} \log q(y_n \mid x_n) .

    A bound on :math:`\log p(x, y)` of labelled data has no :math:`q(y \mid x)`, which would then
    learn from unlabelled data only. The term is added to what is optimised and not to the bound
    that is reported. A minibatch of B from N counts N/B times, as everything.

    The label is a site of Pyro's ``obs_mask``, which makes two of it in the model:
    ``"y_observed"``, masked where it is not known, and ``"y_unobserved"``, which the guide samples
    from :math:`q(y \mid x)`.

    Args:
        objective: What to do otherwise.
        site: Name of the label's site, without ``"_observed"``.
        weight: :math:`\alpha`, for each labelled datum. The :math:`\alpha` of Kingma et al.
            weighs the labelled data's mean: their :math:`0.1 N` is here
            :math:`0.1 N / N_\text{labelled}`.

    Raises:
        OptionError: If an argument cannot work, or at the first run, if the pair has no such
            sites.

    References:
        Kingma et al. 2014, equation 9 of https://arxiv.org/abs/1406.5298

    Example:
        >>> from pyro_models.infer import ELBO
        >>> Supervised(ELBO(summed=("y_unobserved",)), weight=5.0)  # one label in fifty
        Supervised(ELBO(num_particles=1, kl=AnalyticKL(), summed=('y_unobserved',)), 'y', 5.0)
    """

    def __init__(self, objective: Objective, site: str = "y", weight: float = 1.0):
        if not isinstance(objective, Objective):
            raise OptionError(
                f"objective is {objective!r}; give one of pyro_models.infer's, such as ELBO()"
            )
        if not math.isfinite(weight) or weight < 0:
            raise OptionError(f"weight is {weight!r}; give a number of at least 0")
        super().__init__(objective.num_particles)
        self.objective = objective
        self.site = site
        self.weight = float(weight)

    def __repr__(self) -> str:
        return f"Supervised({self.objective!r}, {self.site!r}, {self.weight})"

    @property
    def draws(self) -> Draws:
        """As the inner objective sees them."""
        return self.objective.draws

    @property
    def state(self) -> nn.Module | None:
        """What the inner objective remembers."""
        return self.objective.state

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """The inner objective's own."""
        return self.objective.optimizer

    def weights(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        """Run the pair as the inner objective needs it, and see that the label's sites are there.

        Raises:
            OptionError: If they are not.
        """
        weights = self.objective.weights(model, guide, args, kwargs)
        observed, unobserved = f"{self.site}_observed", f"{self.site}_unobserved"
        if observed not in weights.model_sites or unobserved not in weights.guide_sites:
            raise OptionError(
                f"the pair has no partly observed site {self.site!r}: its model has the sites "
                f"{', '.join(map(repr, weights.model_sites))} and its guide "
                f"{', '.join(map(repr, weights.guide_sites)) or 'none'}; write pyro.sample("
                f"{self.site!r}, ..., obs=labels, obs_mask=known) in the model and sample "
                f"{unobserved!r} in the guide"
            )
        return weights

    def with_free_bits(self, free_bits: FreeBits | Mapping[str, FreeBits]) -> "Supervised":
        """With the inner objective's free bits; see ``Objective.with_free_bits``."""
        made = copy.copy(self)
        made.objective = self.objective.with_free_bits(free_bits)
        return made

    def check_latents(self, weights: LogWeights, kl_weight: KLWeight) -> None:
        """As the inner objective does; see ``Objective.check_latents``."""
        self.objective.check_latents(weights, kl_weight)

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """The inner estimate, with the classifier's term in the surrogate."""
        inner = self.objective.estimate(weights, kl_weight)
        return Estimate(inner.bound, inner.surrogate + self.weight * self._supervision(weights))

    def _supervision(self, weights: LogWeights) -> Tensor:
        """Log-likelihood of the known labels under the guide, for the whole data set."""
        observed = weights.model_sites[f"{self.site}_observed"]
        classifier = weights.guide_sites[f"{self.site}_unobserved"].fn
        term = weights.reduce(replace(observed, factor=1.0), classifier.log_prob(observed.value))
        scale = weights.plate_scale if observed.local else 1.0
        return weights.common_scale * scale * term.sum() / weights.num_particles
