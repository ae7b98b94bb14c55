"""Any objective, with the model's discrete latents summed out."""

import copy
from collections.abc import Mapping

from torch import nn

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer.enumeration import remembered_hidden, remembered_marginal
from pyro_models.infer.objectives.base import Estimate, Objective, OptimizerFactory
from pyro_models.infer.objectives.elbo import ELBO
from pyro_models.infer.objectives.wake_sleep import ReweightedWakeSleep
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.remedies import FreeBits
from pyro_models.infer.weights import Program

_ELBO = ELBO()


class Enumerated(Objective):
    r"""An objective on the model with its discrete latents summed out exactly:

    .. math:: p(x, z) = \sum_k p(k)\, p(z \mid k)\, p(x \mid z, k) .

    Summed out is every discrete latent of the model that the guide does not sample, in parallel
    over plates; ``pyro_models.infer.marginal`` says how. With no other latents, the ELBO is the
    exact log-likelihood. Everything here is traceable to one graph.

    A guide that samples such a latent from its exact conditional posterior, as
    ``guides.Responsibilities`` does, is of use after the fit and adds nothing to the bound: name
    the latent in ``over``, and it is summed out all the same. What else a guide says of a latent
    in ``over`` is not looked at, and its parameters for it are not trained.

    Args:
        objective: What to do with the rest; the ELBO of one particle unless said otherwise.
        over: Names of sites that are summed out although the guide samples them.

    Raises:
        OptionError: If the objective is not one of ours, or has a sleep phase: a model with its
            latents summed out cannot simulate. Or if ``over`` is no tuple of names.
        SiteMismatchError: At the first run, if a site in ``over`` cannot be summed out.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs",
        https://arxiv.org/abs/1902.03210

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> means = torch.tensor([-1.0, 2.0])
        >>> def mixture(x):
        ...     with pyro.plate("data", len(x)):
        ...         k = pyro.sample("k", dist.Bernoulli(0.6))
        ...         pyro.sample("x", dist.Normal(means[k.long()], 1.0), obs=x)
        >>> x = torch.tensor([0.0, 2.0])
        >>> round(Enumerated().loss(mixture, lambda x: None, x), 4)
        3.4689
        >>> both = torch.tensor([0.4, 0.6]).log() + dist.Normal(means, 1.0).log_prob(x[:, None])
        >>> round(-both.logsumexp(-1).sum().item(), 4)
        3.4689
    """

    def __init__(self, objective: Objective = _ELBO, over: tuple[str, ...] = ()):
        if not isinstance(objective, Objective):
            raise OptionError(
                f"objective is {objective!r}; give one of pyro_models.infer's, such as ELBO()"
            )
        inner: object = objective
        while inner is not None:
            if isinstance(inner, ReweightedWakeSleep) and inner.sleeps:
                raise OptionError(
                    f"objective is {objective!r}, whose sleep phase simulates data from the model, "
                    "which cannot be done with its discrete latents summed out; take WakePhase(), "
                    "or sample them in the guide, without Enumerated"
                )
            inner = getattr(inner, "objective", None)
        if not isinstance(over, tuple) or not all(isinstance(name, str) for name in over):
            raise OptionError(f'over={over!r} is no tuple of site names; write ("component",)')
        super().__init__(objective.num_particles)
        self.objective = objective
        self.over = over

    def __repr__(self) -> str:
        return f"Enumerated({self.objective!r}{f', over={self.over!r}' if self.over else ''})"

    @property
    def state(self) -> nn.Module | None:
        """What the inner objective remembers."""
        return self.objective.state

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """The inner objective's own."""
        return self.objective.optimizer

    def weights(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> LogWeights:
        """Run the pair with the model's discrete latents summed out; see ``Objective.weights``."""
        summed = remembered_marginal(model)
        if not self.over:
            return self.objective.weights(summed, guide, args, kwargs)
        try:
            hidden = remembered_hidden(guide, self.over)
            return self.objective.weights(summed, hidden, args, kwargs)
        except SiteMismatchError as error:
            raise SiteMismatchError(
                f"{error} (over={self.over!r} hides the guide's draws at these sites, and only "
                "discrete latents of the model can be summed out)"
            ) from error

    def with_free_bits(self, free_bits: FreeBits | Mapping[str, FreeBits]) -> "Enumerated":
        """With the inner objective's free bits; see ``Objective.with_free_bits``."""
        made = copy.copy(self)
        made.objective = self.objective.with_free_bits(free_bits)
        return made

    def check_latents(self, weights: LogWeights, kl_weight: KLWeight) -> None:
        """As the inner objective does; see ``Objective.check_latents``."""
        self.objective.check_latents(weights, kl_weight)

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """The objective's own estimate; see ``Objective.estimate``."""
        return self.objective.estimate(weights, kl_weight)
