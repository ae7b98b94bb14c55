"""Bounds between the ELBO and the importance-weighted one, for signal in the guide's gradient."""

from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.draws import Draws, OnPaths
from pyro_models.infer.objectives.base import Estimate, Objective
from pyro_models.infer.objectives.multi_sample import MultiSampleBound, importance_bound
from pyro_models.infer.record import KLWeight, LogWeights


class CIWAE(MultiSampleBound):
    r"""A combination of ELBO and importance-weighted bound,

    .. math::
        \beta\, E \frac1K \sum_k \log w_k + (1 - \beta)\, E \log \frac1K \sum_k w_k \le \log p(x) .

    Args:
        beta: Share of the ELBO, from 0 (IWAE) to 1.
        num_particles: K.

    Raises:
        OptionError: If beta lies outside [0, 1] or K below 1.

    References:
        Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better",
        https://arxiv.org/abs/1802.04537

    Example:
        >>> CIWAE(0.5, num_particles=8)
        CIWAE(beta=0.5, num_particles=8)
    """

    def __init__(self, beta: float, num_particles: int):
        super().__init__(num_particles)
        if not 0.0 <= beta <= 1.0:
            raise OptionError(f"beta is {beta}; it must lie between 0 (IWAE) and 1 (ELBO)")
        self.beta = float(beta)

    def __repr__(self) -> str:
        return f"CIWAE(beta={self.beta:g}, num_particles={self.num_particles})"

    def value(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
        """The bound of each column of log-weights."""
        return self.beta * log_w.mean(0) + (1.0 - self.beta) * importance_bound(log_w)


class MIWAE(MultiSampleBound):
    r"""The mean of M importance-weighted bounds of K particles each,

    .. math::
        E \frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{mk} = \mathcal L_K .

    It has the value of ``IWAE(K)`` and a guide's gradient with :math:`\sqrt M` times the signal.

    Args:
        num_bounds: M.
        num_particles: K of each; M K particles run.

    Raises:
        OptionError: If either is less than 1.

    References:
        Rainforth et al. 2018, https://arxiv.org/abs/1802.04537

    Example:
        >>> MIWAE(num_bounds=4, num_particles=8)
        MIWAE(num_bounds=4, num_particles=8)
    """

    def __init__(self, num_bounds: int, num_particles: int):
        if num_bounds < 1 or num_particles < 1:
            raise OptionError(
                f"num_bounds is {num_bounds} and num_particles is {num_particles}; both must be "
                "at least 1"
            )
        super().__init__(num_bounds * num_particles)
        self.num_bounds = num_bounds

    def __repr__(self) -> str:
        each = self.num_particles // self.num_bounds
        return f"MIWAE(num_bounds={self.num_bounds}, num_particles={each})"

    def value(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
        """The mean of the bounds of each column of log-weights."""
        return self._bounds(log_w).mean(0)

    def costs(
        self, log_w: Float[Tensor, "K M"], value: Float[Tensor, " M"]
    ) -> Float[Tensor, "#K M"]:
        """A particle's draw bears on its own bound alone."""
        del value
        each = self.num_particles // self.num_bounds
        return (self._bounds(log_w) / self.num_bounds).repeat(each, 1)

    def _bounds(self, log_w: Float[Tensor, "K M"]) -> Float[Tensor, "bounds M"]:
        """The importance-weighted bounds, each of every ``num_bounds``-th particle."""
        return importance_bound(log_w.unflatten(0, (-1, self.num_bounds)))


class PIWAE(Objective):
    r"""Each side by the bound that serves it: the model by ``IWAE(M K)``, the guide by ``MIWAE``.

    With :math:`\theta` the model's parameters and :math:`\phi` the guide's, their gradients are

    .. math::
        \nabla_\theta\, E \log \frac1{MK} \sum_{m=1}^M \sum_{k=1}^K w_{mk}
        = \nabla_\theta \mathcal L_{MK}, \qquad
        \nabla_\phi\, E \frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{mk}
        = \nabla_\phi \mathcal L_K,

    where :math:`w_{mk} = p_\theta(x, z_{mk}) / q_\phi(z_{mk} \mid x)` and
    :math:`z_{mk} \sim q_\phi(z \mid x)`. The same M K particles give both. The bound that is
    reported is the model's, :math:`\mathcal L_{MK}`. The model runs twice, once on the draws and
    once on constants of their values.

    Args:
        num_bounds: M.
        num_particles: K of each; M K particles run.

    Raises:
        OptionError: If either is less than 1.

    References:
        Rainforth et al. 2018, https://arxiv.org/abs/1802.04537

    Example:
        >>> PIWAE(num_bounds=4, num_particles=8)
        PIWAE(num_bounds=4, num_particles=8)
    """

    def __init__(self, num_bounds: int, num_particles: int):
        self._guide_side = MIWAE(num_bounds, num_particles)
        super().__init__(self._guide_side.num_particles)
        self.num_bounds = num_bounds

    def __repr__(self) -> str:
        return repr(self._guide_side).replace("MIWAE", "PIWAE")

    @property
    def draws(self) -> Draws:
        """On their paths for the guide's sake, and constants for the model's."""
        return OnPaths(and_constants=True)

    def estimate(self, weights: LogWeights, kl_weight: KLWeight = 1.0) -> Estimate:
        """Estimate the model's bound from one run; see ``Objective.estimate``."""
        _, surrogate = self._guide_side.estimate(weights, kl_weight)
        bound = importance_bound(weights.importance().detach()).sum()
        # What the densities at constants are differentiated by is the model's parameters alone:
        # of those, MIWAE's gradient is replaced by IWAE's.
        constant = weights.notes["constant"].importance(kl_weight)
        exchange = (importance_bound(constant) - self._guide_side.value(constant)).sum()
        scale = weights.importance_scale
        return Estimate(scale * bound, surrogate + scale * exchange)
