"""The mixture of Gaussians, with its exact posterior and M-step."""

from typing import final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pyro_models.covariance_parameters import Moments
from pyro_models.covariances import Covariance, Full
from pyro_models.errors import OptionError
from pyro_models.mixture_steps import (
    MixturePosterior,
    MixtureStatistics,
    check_data,
    check_means,
    check_weights,
    revive,
    update,
    weighted_means,
)
from pyro_models.networks import as_batch
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate
from pyro_models.starts import KMeans, Start

# A component that explains less than this of one datum is starving.
_STARVING = 0.01


@final
class GaussianMixture(nn.Module):
    r"""Each datum comes from one of K normal components.

    .. math::
        k_n \sim \mathrm{Categorical}(\pi), \qquad x_n \mid k_n \sim \mathcal N(\mu_{k_n},
        \Sigma_{k_n}), \qquad p(x_n) = \sum_k \pi_k\, \mathcal N(x_n \mid \mu_k, \Sigma_k)

    Sites: latent ``"component"`` and observed ``"x"``, both in the plate ``"data"``. It can be
    fitted by EM (``posterior`` and ``maximize``), by gradients of ``log_prob``, and as a Pyro
    program with the component summed out or sampled by a guide; call :meth:`initialize` first.

    Args:
        num_components: K.
        data_dim: D, numbers a datum; images are flattened.
        covariance: ``Full()``, ``Tied()``, ``Diagonal()`` or ``Spherical()`` of
            ``pyro_models.covariances``.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Dempster, Laird and Rubin 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
        Bishop 2006, Pattern Recognition and Machine Learning, chapter 9,
        https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/

    Example:
        >>> x = torch.tensor([[0.0], [0.2], [0.4], [8.0], [9.0]])
        >>> model = GaussianMixture(num_components=2, data_dim=1)
        >>> model.initialize(x, generator=torch.Generator().manual_seed(0))
        >>> for _ in range(10):
        ...     model.maximize(x, model.posterior(x))
        >>> model.canonicalize()
        >>> model.means.detach().flatten(), model.weights.detach()
        (tensor([0.2000, 8.5000]), tensor([0.6000, 0.4000]))
    """

    center: Tensor

    def __init__(
        self,
        num_components: int,
        data_dim: int,
        covariance: Covariance = Full(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        self.num_components = positive_int("num_components", num_components)
        self.data_dim = positive_int("data_dim", data_dim)
        if not isinstance(covariance, Covariance):
            raise OptionError(
                f"covariance={covariance!r} is none; give Full(), Tied(), Diagonal() or "
                "Spherical() of pyro_models.covariances"
            )
        self.covariance = covariance
        self.weight_logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, data_dim))
        self.spread = covariance.make(num_components, data_dim)
        # Where statistics of minibatches are taken around: it must not change between them.
        self.register_buffer("center", torch.zeros(data_dim))

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images; ``None`` simulates.
            num_data: Size N of the whole set, by which a minibatch is scaled; without data, how
                many to simulate (1 if not given).

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        announce(self, "model")
        if x is not None:
            x = self._rows(x)
        batch = (1 if num_data is None else num_data) if x is None else len(x)
        with data_plate(batch, num_data, self.means.device):
            component = pyro.sample("component", dist.Categorical(logits=self.weight_logits))
            normal = self.spread.normal(self.means[component], component)
            return pyro.sample("x", normal, obs=x)

    def _rows(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, "batch data_dim"]:
        return as_batch(x, self.data_dim, self.means)

    def log_joint(
        self, x: Shaped[Tensor, "num_data *datum"]
    ) -> Float[Tensor, "num_data components"]:
        """log p(x_n, component), ``(N, K)``, differentiable.

        Example:
            >>> GaussianMixture(3, 2).log_joint(torch.zeros(5, 2)).shape
            torch.Size([5, 3])
        """
        rows = self._rows(x)
        index = torch.arange(self.num_components, device=rows.device).unsqueeze(-1)  # (K, 1)
        normal = self.spread.normal(self.means.unsqueeze(1), index)
        return normal.log_prob(rows).T + self.weight_logits.log_softmax(-1)

    def log_prob(self, x: Shaped[Tensor, "num_data *datum"]) -> Float[Tensor, " num_data"]:
        """log p(x_n) in nats, ``(N,)``, exact and differentiable.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Example:
            >>> model = GaussianMixture(2, 1)
            >>> model.set(means=torch.tensor([[0.0], [2.0]]))
            >>> model.log_prob(torch.tensor([[0.0], [1.0]])).detach()
            tensor([-1.4852, -1.4189])
        """
        if torch.is_grad_enabled():
            return self.log_joint(x).logsumexp(-1)
        rows = self._rows(x)
        found = rows.new_empty(len(rows))
        log_weights = self.weight_logits.log_softmax(-1).unsqueeze(-1)
        for part, log_density in self.spread.log_density(rows, self.means):
            found[part] = log_density.add_(log_weights).logsumexp(0)
        return found

    @torch.no_grad()
    def posterior(self, x: Shaped[Tensor, "num_data *datum"]) -> MixturePosterior:
        r"""The exact E-step, without gradients.

        .. math:: p(k \mid x_n) = \pi_k\, \mathcal N(x_n \mid \mu_k, \Sigma_k) \,/\, p(x_n)

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Example:
            >>> model = GaussianMixture(2, 1)
            >>> model.set(means=torch.tensor([[0.0], [2.0]]))
            >>> model.posterior(torch.tensor([[1.0]])).responsibilities
            tensor([[0.5000, 0.5000]])
        """
        rows = self._rows(x)
        log_prob = rows.new_empty(len(rows))
        # Data lie along the last dimension in memory, for this pass and the M-step's.
        log_responsibilities = rows.new_empty(self.num_components, len(rows))
        log_weights = self.weight_logits.log_softmax(-1).unsqueeze(-1)
        for part, log_density in self.spread.log_density(rows, self.means):
            joint = log_density.add_(log_weights)  # (K, batch)
            log_prob[part] = total = joint.logsumexp(0)
            torch.sub(joint, total, out=log_responsibilities[:, part])
        return MixturePosterior(log_prob, log_responsibilities.T)

    @torch.no_grad()
    def maximize(self, x: Shaped[Tensor, "num_data *datum"], posterior: MixturePosterior) -> None:
        r"""The exact M-step, in place; the mean of log p(x) never falls but for rounding.

        .. math::
            N_k = \sum_n r_{nk}, \qquad \pi_k = N_k / N, \qquad
            \mu_k = \tfrac1{N_k} \sum_n r_{nk} x_n, \qquad
            \Sigma_k = \tfrac1{N_k} \sum_n r_{nk} (x_n - \mu_k)(x_n - \mu_k)^\top

        with the covariance's floor. A component that explains next to nothing is moved to the datum
        that is explained worst, if that raises the likelihood, and otherwise left.

        Args:
            x: Data, ``(N, data_dim)`` or images.
            posterior: From :meth:`posterior`.

        Raises:
            DataError: If data or posterior hold NaN or infinity; the parameters stay as they were.

        Example:
            >>> x = torch.tensor([[1.0], [3.0]])
            >>> model = GaussianMixture(1, 1)
            >>> model.maximize(x, model.posterior(x))
            >>> model.means.item(), model.covariances.item()
            (2.0, 1.0)
        """
        rows, log_r = self._rows(x), posterior.log_responsibilities
        centers = weighted_means(rows, log_r, self.means)
        moments = self.spread.moments(rows, log_r, centers)
        update(self.weight_logits, self.means, self.spread, moments, centers)
        for k in (moments.counts < _STARVING).nonzero().flatten().tolist():
            if not revive(self.weight_logits, self.means, self.spread, rows, k):
                break  # nor would the others find a place

    @torch.no_grad()
    def statistics(
        self, x: Shaped[Tensor, "batch *datum"], posterior: MixturePosterior
    ) -> MixtureStatistics:
        """What the M-step needs of a minibatch, as means that can be averaged over minibatches.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            posterior: From :meth:`posterior`.
        """
        rows = self._rows(x).double()
        centers = self.center.double().expand(self.num_components, -1)
        moments = self.spread.moments(rows, posterior.log_responsibilities.double(), centers)
        return MixtureStatistics(*(total / len(rows) for total in moments))

    @torch.no_grad()
    def maximize_statistics(self, statistics: MixtureStatistics) -> None:
        """The M-step from averaged statistics, in place, for stepwise EM.

        Args:
            statistics: Averages of what :meth:`statistics` gave, since ``center`` last changed.

        Raises:
            DataError: If they hold NaN or infinity; the parameters stay as they were.

        References:
            Cappé and Moulines 2009, https://arxiv.org/abs/0712.4273

        Example:
            >>> x = torch.tensor([[1.0], [3.0]])
            >>> model = GaussianMixture(1, 1)
            >>> model.maximize_statistics(model.statistics(x, model.posterior(x)))
            >>> model.means.item(), model.covariances.item()
            (2.0, 1.0)
        """
        centers = self.center.expand(self.num_components, -1)
        moments = Moments(*statistics)
        update(self.weight_logits, self.means, self.spread, moments, centers)

    @torch.no_grad()
    def initialize(
        self,
        x: Shaped[Tensor, "num_data *datum"],
        start: Start = KMeans(),  # noqa: B008 (immutable)
        generator: torch.Generator | None = None,
    ) -> None:
        """Set starting values from the data: an M-step after a first assignment of data.

        Clusters of too few data for a covariance of their own start with the average one.

        Args:
            x: Training data, ``(N, data_dim)`` or images.
            start: ``KMeans()``, ``KMeansPlusPlus()``, ``RandomData()`` or
                ``RandomResponsibilities()`` of ``pyro_models.starts``.
            generator: Of what is random; torch's own if not given.

        Raises:
            DataError: If :meth:`check` refuses the data.

        Example:
            >>> model = GaussianMixture(2, 1)
            >>> model.initialize(torch.tensor([[0.0], [1.0], [9.0]]))
            >>> sorted(model.means.detach().flatten().tolist())
            [0.5, 9.0]
        """
        self.check(x)
        rows = self._rows(x)
        self.center.copy_(rows.mean(0, dtype=torch.float64))
        log_r = start.log_responsibilities(rows, self.num_components, generator)
        # Where there is nothing to take a mean of, a datum is as good as any.
        self.means.copy_(rows[start.choose(rows, self.num_components, generator)])
        centers = weighted_means(rows, log_r, self.means)
        moments = self.spread.moments(rows, log_r, centers)
        least = self.covariance.least_count(self.data_dim)
        update(self.weight_logits, self.means, self.spread, moments, centers, least)
        self.weight_logits.copy_(moments.counts.clamp_min(1.0).log().log_softmax(-1))

    def check(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Refuse data that the model cannot be fitted to, once before a fit.

        Args:
            x: Data, ``(N, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit, a value is NaN, infinite or so large
                that its square overflows, or there are fewer data than components.

        Example:
            >>> GaussianMixture(2, 1).check(torch.zeros(2, 1))
        """
        self._rows(x[:1])
        check_data(x, self._rows(x), self.num_components, self.covariance.floor)

    @torch.no_grad()
    def set(
        self,
        *,
        weights: Float[Tensor, " components"] | None = None,
        means: Float[Tensor, "components data_dim"] | None = None,
        covariances: Float[Tensor, "components data_dim data_dim"] | None = None,
    ) -> None:
        """Set parameters from outside; those not given stay as they are.

        Args:
            weights: Positive, of sum 1, ``(K,)``.
            means: ``(K, D)``; the reference for statistics becomes their mean.
            covariances: ``(K, D, D)``, of the form that the model's option allows.

        Raises:
            OptionError: If a shape or value cannot be right.

        Example:
            >>> model = GaussianMixture(2, 1)
            >>> model.set(weights=torch.tensor([0.25, 0.75]))
            >>> model.weights.detach()
            tensor([0.2500, 0.7500])
        """
        if weights is not None:
            check_weights(weights, self.num_components)
            self.weight_logits.copy_(weights.double().log())
        if means is not None:
            check_means(means, self.means)
            self.means.copy_(means)
            self.center.copy_(means.double().mean(0))
        if covariances is not None:
            self.spread.set(covariances)

    @property
    def weights(self) -> Float[Tensor, " components"]:
        """π, ``(K,)``."""
        return self.weight_logits.softmax(-1)

    @property
    def covariances(self) -> Float[Tensor, "components data_dim data_dim"]:
        """Σ_k of every component, ``(K, D, D)``."""
        return self.spread.dense()

    @property
    def num_free_parameters(self) -> int:
        """Degrees of freedom, for information criteria: weights, means and covariances."""
        return self.num_components - 1 + self.means.numel() + self.spread.num_free_parameters

    @torch.no_grad()
    def canonicalize(self) -> None:
        """Order the components by their means' first coordinate (then the next), in place.

        The likelihood does not change. Without this two equal fits may look different.

        Example:
            >>> model = GaussianMixture(2, 1)
            >>> model.set(means=torch.tensor([[3.0], [-1.0]]))
            >>> model.canonicalize()
            >>> model.means.detach().flatten()
            tensor([-1.,  3.])
        """
        order = torch.arange(self.num_components, device=self.means.device)
        for coordinate in reversed(self.means.unbind(-1)):
            order = order[coordinate[order].argsort(stable=True)]
        self.weight_logits.copy_(self.weight_logits[order])
        self.means.copy_(self.means[order])
        self.spread.reorder(order)

    def assign(self, x: Shaped[Tensor, "num_data *datum"]) -> Int[Tensor, " num_data"]:
        """The component that each datum most probably comes from, ``(N,)``."""
        return self.posterior(x).log_responsibilities.argmax(-1)

    def co_clustering(
        self, x: Shaped[Tensor, "num_data *datum"]
    ) -> Float[Tensor, "num_data num_data"]:
        """The probability that two data come from the same component, whatever its number.

        Args:
            x: Data, ``(N, data_dim)`` or images; N numbers are needed for each.

        Example:
            >>> model = GaussianMixture(2, 1)
            >>> model.set(means=torch.tensor([[0.0], [100.0]]))
            >>> model.co_clustering(torch.tensor([[0.0], [1.0], [100.0]]))
            tensor([[1., 1., 0.],
                    [1., 1., 0.],
                    [0., 0., 1.]])
        """
        responsibilities = self.posterior(x).responsibilities
        return (responsibilities @ responsibilities.T).fill_diagonal_(1.0)
