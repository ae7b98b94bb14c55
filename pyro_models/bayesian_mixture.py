"""The mixture of Gaussians with priors on all its parameters, and its variational posterior."""

from collections.abc import Mapping
from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_models.bayesian_components import (
    BeliefPosterior,
    NormalWishartComponents,
    NormalWishartPrior,
    frozen,
    start_responsibilities,
)
from pyro_models.networks import as_batch
from pyro_models.options import positive_float, positive_int
from pyro_models.programs import announce, data_plate
from pyro_models.starts import KMeans, Start


@final
class DirichletWeights(nn.Module):
    """Weights with a symmetric Dirichlet prior, and the belief about them.

    Args:
        num_components: K.
        concentration: Of the prior, for each component.
    """

    def __init__(self, num_components: int, concentration: float) -> None:
        super().__init__()
        self.prior = positive_float("concentration", concentration)
        self.concentration = frozen(torch.full((num_components,), self.prior))

    def _belief(self) -> Float[Tensor, " components"]:
        return self.concentration.double()

    def sample(self) -> Float[Tensor, "*lead components"]:
        """Site "weights" from the prior; their logarithms."""
        return self._sample(torch.full_like(self.concentration, self.prior))

    def sample_belief(self) -> Float[Tensor, "*lead components"]:
        """The same from the belief."""
        return self._sample(self.concentration)

    def _sample(self, concentration: Tensor) -> Tensor:
        weights = pyro.sample("weights", dist.Dirichlet(concentration))
        return weights.clamp_min(torch.finfo(weights.dtype).tiny).log()

    def expected_log(self) -> Float[Tensor, " components"]:
        """E[log π], in float64."""
        total = self._belief().sum()
        return torch.digamma(self._belief()) - torch.digamma(total)

    def log_mean(self) -> Float[Tensor, " components"]:
        """log E[π], in float64."""
        return self._belief().log() - self._belief().sum().log()

    def divergence(self) -> Float[Tensor, ""]:
        """KL of the belief from the prior."""
        prior = torch.distributions.Dirichlet(torch.full_like(self._belief(), self.prior))
        return torch.distributions.kl_divergence(
            torch.distributions.Dirichlet(self._belief()), prior
        )

    def update(self, counts: Float[Tensor, " components"]) -> None:
        """The M-step."""
        self.concentration.copy_(self.prior + counts)


@final
class BayesianGaussianMixture(nn.Module):
    r"""A mixture of Gaussians whose weights, means and precisions are latent too.

    .. math::
        \pi \sim \mathrm{Dirichlet}(\alpha_0, \dots, \alpha_0), \qquad
        \Lambda_k \sim \mathrm{Wishart}(\nu_0, S_0^{-1}), \qquad
        \mu_k \mid \Lambda_k \sim \mathcal N\big(m_0, (\beta_0 \Lambda_k)^{-1}\big)

    .. math:: k_n \sim \mathrm{Categorical}(\pi), \qquad
              x_n \mid k_n \sim \mathcal N(\mu_{k_n}, \Lambda_{k_n}^{-1})

    The precision is sampled by its triangular factor, :math:`\Lambda_k = W_k^\top W_k`. Sites:
    ``"weights"`` ``(K,)``, ``"precision_factors"`` ``(K, D (D + 1) / 2)``, the numbers of the
    factors (see ``distributions.wishart_factor.unpack``), and ``"means"`` ``(K, D)``;
    ``"component"`` and ``"x"`` in the plate ``"data"``. The normal-inverse-Wishart prior (and not a
    normal with LKJ correlations) has a closed form for every step below, so that the same model is
    inferred in closed form, by stochastic variational inference with ``guides.MeanField``,
    ``FullRank`` or ``Point`` and the component summed out, and by NUTS.

    In closed form: the module also holds a belief
    :math:`q(\pi) \prod_k q(\mu_k, \Lambda_k)` of the prior's family, which starts as the prior.
    ``infer.em`` raises the evidence lower bound by coordinate ascent through :meth:`posterior` and
    :meth:`maximize`. Components that the data do not need return to the prior, with weights near
    0. No gradient trains the belief, and the Pyro program does not use it.

    Args:
        num_components: K, the most components.
        data_dim: D, numbers a datum; images are flattened.
        concentration: :math:`\alpha_0`; 1 / K if not given. The smaller, the fewer components.
        prior: Of each component; what it leaves open is taken from the data by :meth:`initialize`.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Attias 1999, https://arxiv.org/abs/1301.6676
        Bishop 2006, Pattern Recognition and Machine Learning, chapter 10.2,
        https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/

    Example:
        >>> x = torch.cat([torch.linspace(-2, 2, 30), torch.linspace(18, 22, 20)]).unsqueeze(-1)
        >>> model = BayesianGaussianMixture(num_components=4, data_dim=1)
        >>> model.initialize(x, generator=torch.Generator().manual_seed(0))
        >>> for _ in range(50):
        ...     model.maximize(x, model.posterior(x))
        >>> (model.expected_weights > 0.1).sum().item()
        2
    """

    def __init__(
        self,
        num_components: int,
        data_dim: int,
        concentration: float | None = None,
        prior: NormalWishartPrior = NormalWishartPrior(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        self.num_components = positive_int("num_components", num_components)
        self.data_dim = positive_int("data_dim", data_dim)
        alpha = 1 / num_components if concentration is None else concentration
        self.weights = DirichletWeights(num_components, alpha)
        self.components = NormalWishartComponents(num_components, data_dim, prior)

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
        """The Pyro program of the belief: sites "weights", "precision_factors" and "means"."""
        self.weights.sample_belief()
        self.components.sample_belief()

    @torch.no_grad()
    def center(self) -> dict[str, Tensor]:
        """Values in the middle of the belief, by site: where a guide by gradients may start."""
        return {**self.components.center(), "weights": self.expected_weights}

    def conditional(
        self, values: Mapping[str, Tensor], x: Shaped[Tensor, "num_data *datum"]
    ) -> Float[Tensor, "*lead num_data components"]:
        """log p(x_n, component) given the latents that all data share, for their exact posterior.

        Args:
            values: "weights", "precision_factors" and "means", as a guide drew them.
            x: Data, ``(N, data_dim)`` or images.
        """
        return self.components.log_joint(values, values["weights"].log(), self._rows(x))

    def _rows(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, "batch data_dim"]:
        return as_batch(x, self.data_dim, self.components.mean)

    @property
    def expected_weights(self) -> Float[Tensor, " components"]:
        """E[π] under the belief."""
        return self.weights.log_mean().exp().to(self.components.mean.dtype)

    @torch.no_grad()
    def log_prob(self, x: Shaped[Tensor, "num_data *datum"]) -> Float[Tensor, " num_data"]:
        r"""The log-density of each new datum with the belief integrated out, ``(N,)``, in nats.

        .. math:: \log \sum_k E[\pi_k]\, E[\mathcal N(x_n \mid \mu_k, \Lambda_k^{-1})]

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Example:
            >>> BayesianGaussianMixture(2, 1).log_prob(torch.tensor([[0.0]]))  # a Cauchy's, prior
            tensor([-1.4913])
        """
        rows = self._rows(x)
        joint = self.components.log_predictive(rows) + self.weights.log_mean()
        return joint.logsumexp(-1).to(rows.dtype)

    @torch.no_grad()
    def posterior(self, x: Shaped[Tensor, "num_data *datum"]) -> BeliefPosterior:
        r"""The E-step: the best q(component) beside the belief, and the bound.

        .. math:: \log q(k_n = k) = E[\log \pi_k] + E[\log \mathcal N(x_n \mid \mu_k,
                  \Lambda_k^{-1})] - \text{const}

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Example:
            >>> BayesianGaussianMixture(2, 1).posterior(torch.zeros(3, 1)).responsibilities[0]
            tensor([0.5000, 0.5000])
        """
        return self.components.assign(self._rows(x), self.weights)

    @torch.no_grad()
    def maximize(self, x: Shaped[Tensor, "num_data *datum"], posterior: BeliefPosterior) -> None:
        """The M-step: the best belief beside q(component), in place; the bound never falls.

        Args:
            x: Data, ``(N, data_dim)`` or images.
            posterior: From :meth:`posterior`.

        Raises:
            DataError: If data or posterior hold NaN or infinity; the belief stays as it was.
        """
        responsibilities = posterior.responsibilities
        self.components.update(self._rows(x), responsibilities)
        self.weights.update(responsibilities.sum(0))

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
        found = start_responsibilities(rows, self.num_components, start, generator)
        self.components.update(rows, found)
        self.weights.update(found.sum(0))

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot be fitted to, once before a fit.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, or a value is NaN, infinite or so large
                that its square overflows.

        Example:
            >>> BayesianGaussianMixture(2, 1).check(torch.zeros(2, 1))
        """
        self.components.check(self._rows(x))
