"""The Dirichlet process mixture of Gaussians, truncated, and its variational posterior."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pyro_models.bayesian_components import (
    BeliefPosterior,
    NormalWishartComponents,
    NormalWishartPrior,
    frozen,
    start_responsibilities,
)
from pyro_models.distributions.stick_breaking import log_weights_of_sticks, logs_of
from pyro_models.distributions.stick_fractions import log_weights_at
from pyro_models.errors import OptionError
from pyro_models.networks import as_batch
from pyro_models.options import positive_float, positive_int
from pyro_models.programs import announce, data_plate
from pyro_models.starts import KMeans, Start


@final
@dataclass(frozen=True)
class GammaPrior:
    r"""A prior for the concentration, which is then learned: :math:`\alpha \sim \mathrm{Gamma}`.

    Args:
        shape: Above 0.
        rate: Above 0; the mean is shape / rate.

    Raises:
        OptionError: If one of them is not finite and above 0.

    References:
        Escobar and West 1995, https://doi.org/10.1080/01621459.1995.10476550
    """

    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        positive_float("shape", self.shape)
        positive_float("rate", self.rate)


@final
class StickWeights(nn.Module):
    """Weights broken off a stick, and the belief about them and about the concentration.

    Args:
        truncation: K pieces, the last of which takes the remainder.
        concentration: A number, or a prior for it.
    """

    def __init__(self, truncation: int, concentration: float | GammaPrior) -> None:
        super().__init__()
        self.prior = concentration if isinstance(concentration, GammaPrior) else None
        start = (
            concentration.shape / concentration.rate
            if isinstance(concentration, GammaPrior)
            else positive_float("concentration", concentration)
        )
        self.taken = frozen(torch.ones(truncation - 1))
        self.left = frozen(torch.full((truncation - 1,), start))
        if isinstance(concentration, GammaPrior):
            self.shape = frozen(torch.tensor(float(concentration.shape)))
            self.rate = frozen(torch.tensor(float(concentration.rate)))
        else:
            self.register_buffer("fixed", torch.tensor(start))

    def sample(self) -> Float[Tensor, "*lead components"]:
        """Sites "concentration" (if learned) and "v" from the prior; the logarithms of weights."""
        if self.prior is None:
            concentration: Tensor = self.get_buffer("fixed")
        else:
            one = torch.ones_like(self.rate)
            gamma = dist.Gamma(one * self.prior.shape, one * self.prior.rate)
            concentration = pyro.sample("concentration", gamma)
        concentration = concentration.unsqueeze(-1).expand(*concentration.shape, len(self.left))
        return self._break(dist.Beta(torch.ones_like(concentration), concentration))

    def sample_belief(self) -> Float[Tensor, "*lead components"]:
        """The same sites from the belief."""
        if self.prior is not None:
            pyro.sample("concentration", dist.Gamma(self.shape, self.rate))
        return self._break(dist.Beta(self.taken, self.left))

    def _break(self, beta: dist.Beta) -> Tensor:
        return log_weights_at(pyro.sample("v", beta.to_event(1)))

    def _expected_sticks(self) -> tuple[Tensor, Tensor]:
        """E[log v] and E[log(1 - v)], in float64."""
        a, b = self.taken.double(), self.left.double()
        total = torch.digamma(a + b)
        return torch.digamma(a) - total, torch.digamma(b) - total

    def expected_concentration(self) -> tuple[Tensor, Tensor]:
        """E[α] and E[log α], in float64."""
        if self.prior is None:
            fixed = self.get_buffer("fixed").double()
            return fixed, fixed.log()
        shape, rate = self.shape.double(), self.rate.double()
        return shape / rate, torch.digamma(shape) - rate.log()

    def expected_log(self) -> Float[Tensor, " components"]:
        """E[log π], in float64."""
        log_v, log1m_v = self._expected_sticks()
        before = nn.functional.pad(log1m_v.cumsum(-1), (1, 0))
        return nn.functional.pad(log_v, (0, 1)) + before

    def mean_sticks(self) -> Float[Tensor, " sticks"]:
        """E[v]."""
        return self.taken / (self.taken + self.left)

    def log_mean(self) -> Float[Tensor, " components"]:
        """log E[π], in float64."""
        return log_weights_of_sticks(logs_of(self.mean_sticks().double()))

    def divergence(self) -> Float[Tensor, ""]:
        """KL of the belief from the prior."""
        a, b = self.taken.double(), self.left.double()
        mean, mean_log = self.expected_concentration()
        _, log1m_v = self._expected_sticks()
        entropy = torch.distributions.Beta(a, b).entropy().sum()
        total = -entropy - len(a) * mean_log - (mean - 1) * log1m_v.sum()
        if self.prior is not None:
            belief = torch.distributions.Gamma(self.shape.double(), self.rate.double())
            prior = torch.distributions.Gamma(self.prior.shape + 0 * mean, self.prior.rate)
            total = total + torch.distributions.kl_divergence(belief, prior)
        return total

    def best_order(self, counts: Float[Tensor, " components"]) -> Int[Tensor, " components"]:
        """An order of the components no worse for the bound than the present one.

        Falling sizes are best but at the end of the stick, whose last piece has no prior of its
        own: where the concentration is above 1 the larger of the last two is better put last.

        Args:
            counts: Expected data of each component.
        """
        falling = counts.argsort(descending=True, stable=True)
        swapped = torch.cat([falling[:-2], falling[-2:].flip(0)])
        orders = torch.stack([torch.arange(len(counts), device=counts.device), falling, swapped])
        return orders[self._evidence(counts.double()[orders]).argmax()]

    def _evidence(self, counts: Float[Tensor, "*lead components"]) -> Float[Tensor, "*lead"]:
        """What the bound has of the sticks when they are best for the counts, up to a constant."""
        mean, _ = self.expected_concentration()
        beyond = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        taken, left = 1 + counts[..., :-1], mean + beyond
        return (taken.lgamma() + left.lgamma() - (taken + left).lgamma()).sum(-1)

    def update(self, counts: Float[Tensor, " components"]) -> None:
        """The M-step: the sticks given the concentration, then the concentration given them."""
        counts = counts.double()
        mean, _ = self.expected_concentration()
        beyond = counts.flip(-1).cumsum(-1).flip(-1)[1:]
        self.taken.copy_(1 + counts[:-1])
        self.left.copy_(mean + beyond)
        if self.prior is not None:
            _, log1m_v = self._expected_sticks()
            self.shape.copy_(torch.full_like(self.shape, self.prior.shape + len(beyond)))
            self.rate.copy_(self.prior.rate - log1m_v.sum())


@final
class DirichletProcessMixture(nn.Module):
    r"""A mixture of Gaussians without a fixed number of components.

    .. math::
        v_k \sim \mathrm{Beta}(1, \alpha), \qquad
        \pi_k = v_k \prod_{j<k} (1 - v_j), \qquad
        \theta_k = (\mu_k, \Lambda_k) \sim G_0

    .. math:: k_n \sim \mathrm{Categorical}(\pi), \qquad
              x_n \mid k_n \sim \mathcal N(\mu_{k_n}, \Lambda_{k_n}^{-1})

    :math:`G_0` is the normal-Wishart of ``BayesianGaussianMixture``. The stick is broken
    ``truncation`` - 1 times and the last piece takes the remainder: an approximation to the
    process whose error falls like :math:`N e^{-(K - 1)/\alpha}`. Sites: ``"concentration"`` if it
    is learned, ``"v"`` ``(K - 1,)``, ``"precision_factors"`` and ``"means"``; ``"component"`` and
    ``"x"`` in the plate ``"data"``.

    Inference is as for ``BayesianGaussianMixture``: ``infer.em`` in closed form on the belief that
    the module holds (Blei and Jordan's coordinate ascent, with the components sorted by size at
    each step where that raises the bound), or the Pyro program with ``guides.MeanField(model,
    factors={"v": guides.KumaraswamyFactor()})`` or ``BetaFactor()``, and NUTS.

    Args:
        truncation: K, the most components, at least 2.
        data_dim: D, numbers a datum; images are flattened.
        concentration: :math:`\alpha`, a number or ``GammaPrior(...)``, with which it is learned.
            About :math:`\alpha \log(1 + N / \alpha)` components are expected before the data.
        prior: :math:`G_0`; what it leaves open is taken from the data by :meth:`initialize`.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Blei and Jordan 2006, https://doi.org/10.1214/06-BA104
        Ishwaran and James 2001, https://doi.org/10.1198/016214501750332758
        Kurihara, Welling and Teh 2007 (sorting), https://www.ijcai.org/Proceedings/07/Papers/449.pdf

    Example:
        >>> x = torch.cat([torch.linspace(-2, 2, 30), torch.linspace(18, 22, 20)]).unsqueeze(-1)
        >>> model = DirichletProcessMixture(truncation=5, data_dim=1, concentration=GammaPrior())
        >>> model.initialize(x, generator=torch.Generator().manual_seed(0))
        >>> for _ in range(50):
        ...     model.maximize(x, model.posterior(x))
        >>> (model.expected_weights > 0.15).sum().item()
        2
    """

    def __init__(
        self,
        truncation: int,
        data_dim: int,
        concentration: float | GammaPrior = GammaPrior(),
        prior: NormalWishartPrior = NormalWishartPrior(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        self.truncation = positive_int("truncation", truncation)
        if truncation < 2:
            raise OptionError("truncation=1 is a single Gaussian; give at least 2")
        self.data_dim = positive_int("data_dim", data_dim)
        self.weights = StickWeights(truncation, concentration)
        self.components = NormalWishartComponents(truncation, data_dim, prior)

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images; ``None`` simulates.
            num_data: Size N of the whole set, by which a minibatch is scaled; without data, how
                many to simulate (1 if not given).

        Returns:
            The data, ``(batch, data_dim)``.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        announce(self, "model")
        if x is not None:
            x = self._rows(x)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        log_weights = self.weights.sample()
        means, factors = self.components.sample()
        with data_plate(batch, num_data, means.device):
            component = pyro.sample("component", dist.Categorical(logits=log_weights))
            normal = self.components.likelihood(means, factors, component)
            return pyro.sample("x", normal, obs=x)

    def draw_belief(self) -> None:
        """The Pyro program of the belief: each site outside the data plate."""
        self.weights.sample_belief()
        self.components.sample_belief()

    @torch.no_grad()
    def center(self) -> dict[str, Tensor]:
        """Values in the middle of the belief, by site: where a guide by gradients may start."""
        values = {**self.components.center(), "v": self.weights.mean_sticks()}
        if self.weights.prior is not None:
            concentration = self.weights.expected_concentration()[0]
            values["concentration"] = concentration.to(self.components.mean.dtype)
        return values

    def conditional(
        self, values: Mapping[str, Tensor], x: Shaped[Tensor, "num_data *datum"]
    ) -> Float[Tensor, "*lead num_data components"]:
        """log p(x_n, component) given the latents that all data share, for their exact posterior.

        Args:
            values: "v", "precision_factors" and "means", as a guide drew them.
            x: Data, ``(N, data_dim)`` or images.
        """
        return self.components.log_joint(values, log_weights_at(values["v"]), self._rows(x))

    def _rows(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, "batch data_dim"]:
        return as_batch(x, self.data_dim, self.components.mean)

    @property
    def expected_weights(self) -> Float[Tensor, " components"]:
        """E[π] under the belief."""
        return self.weights.log_mean().exp().to(self.components.mean.dtype)

    @property
    def expected_concentration(self) -> float:
        """E[α] under the belief."""
        return float(self.weights.expected_concentration()[0])

    @torch.no_grad()
    def log_prob(self, x: Shaped[Tensor, "num_data *datum"]) -> Float[Tensor, " num_data"]:
        r"""The log-density of each new datum with the belief integrated out, ``(N,)``, in nats.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Example:
            >>> DirichletProcessMixture(2, 1).log_prob(torch.tensor([[0.0]]))  # a Cauchy's, prior
            tensor([-1.4913])
        """
        rows = self._rows(x)
        joint = self.components.log_predictive(rows) + self.weights.log_mean()
        return joint.logsumexp(-1).to(rows.dtype)

    @torch.no_grad()
    def posterior(self, x: Shaped[Tensor, "num_data *datum"]) -> BeliefPosterior:
        """The E-step: the best q(component) beside the belief, and the bound.

        Args:
            x: Data, ``(N, data_dim)`` or images.
        """
        return self.components.assign(self._rows(x), self.weights)

    @torch.no_grad()
    def maximize(self, x: Shaped[Tensor, "num_data *datum"], posterior: BeliefPosterior) -> None:
        """The M-step, in place, with components in the best order found; the bound never falls.

        For given q(component) exchanging neighbours of sizes a < b multiplies the sticks' evidence
        by (α + b + rest) / (α + a + rest), unless the second is the last.

        Args:
            x: Data, ``(N, data_dim)`` or images.
            posterior: From :meth:`posterior`.

        Raises:
            DataError: If data or posterior hold NaN or infinity; the belief stays as it was.
        """
        self._update(self._rows(x), posterior.responsibilities)

    def _update(self, rows: Tensor, responsibilities: Tensor) -> None:
        counts = responsibilities.sum(0)
        order = self.weights.best_order(counts)
        self.components.update(rows, responsibilities[:, order])
        self.weights.update(counts[order])

    @torch.no_grad()
    def initialize(
        self,
        x: Shaped[Tensor, "num_data *datum"],
        start: Start = KMeans(),  # noqa: B008 (immutable)
        generator: torch.Generator | None = None,
    ) -> None:
        """Set what the prior leaves open, and the belief after a first assignment of data.

        Args:
            x: Training data, ``(N, data_dim)`` or images; there may be fewer than components.
            start: One of ``pyro_models.starts``.
            generator: Of what is random; torch's own if not given.

        Raises:
            DataError: If :meth:`check` refuses the data.
        """
        self.check(x)
        rows = self._rows(x)
        self.components.take_prior_from(rows)
        found = start_responsibilities(rows, self.truncation, start, generator)
        self._update(rows, found)

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot be fitted to, once before a fit.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN, infinite or so large
                that its square overflows.

        Example:
            >>> DirichletProcessMixture(2, 1).check(torch.zeros(2, 1))
        """
        self.components.check(self._rows(x))
