"""Where the fit of a mixture starts: a first assignment of data to components."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from sklearn import cluster
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

Rows = Float[Tensor, "num_data data_dim"]
LogResponsibilities = Float[Tensor, "num_data components"]


@dataclass(frozen=True)
class Start(ABC):
    """Parent of the starts."""

    @abstractmethod
    def log_responsibilities(
        self, x: Rows, num_components: int, generator: torch.Generator | None
    ) -> LogResponsibilities:
        """A first guess of which component each datum comes from.

        Args:
            x: Data, ``(N, D)``, at least as many as components.
            num_components: K.
            generator: Of what is random; torch's own if not given.

        Returns:
            Logarithms of numbers that add up to 1 for each datum, ``(N, K)``.
        """

    def choose(
        self, x: Rows, num_components: int, generator: torch.Generator | None
    ) -> Int[Tensor, " components"]:
        """Indices of K different data, drawn with equal probability."""
        device = x.device if generator is None else generator.device
        order = torch.randperm(len(x), generator=generator, device=device)
        return order[:num_components].to(x.device)


def _seed(generator: torch.Generator | None) -> int:
    """A seed for scikit-learn, drawn from torch's generator."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**31 - 1, (), generator=generator, device=device))


def _hard(labels: Int[Tensor, " num_data"], x: Rows, num_components: int) -> LogResponsibilities:
    chosen = torch.nn.functional.one_hot(labels.long(), num_components)
    return chosen.to(x.dtype).log()


def _nearest(x: Rows, centers: Float[Tensor, "components data_dim"]) -> LogResponsibilities:
    # Not by expanded squares, which cancel for data far from the origin.
    distances = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return _hard(distances.argmin(-1), x, len(centers))


@final
@dataclass(frozen=True)
class KMeans(Start):
    """The clusters of k-means, itself started by k-means++.

    References:
        Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0]])
        >>> labels = KMeans().log_responsibilities(x, 2, torch.Generator()).argmax(-1)
        >>> bool(labels[0] == labels[1]), bool(labels[1] == labels[2])
        (True, False)
    """

    def log_responsibilities(
        self, x: Rows, num_components: int, generator: torch.Generator | None
    ) -> LogResponsibilities:
        """Each datum belongs to its cluster."""
        means = cluster.KMeans(num_components, n_init=1, random_state=_seed(generator))
        with warnings.catch_warnings():
            # There may be fewer different data than clusters; some then start empty.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = means.fit(x.detach().cpu().numpy()).labels_
        return _hard(torch.from_numpy(labels).to(x.device), x, num_components)


@final
@dataclass(frozen=True)
class KMeansPlusPlus(Start):
    """Centres drawn far from each other, without the steps of k-means that would follow.

    References:
        Arthur and Vassilvitskii 2007, https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [900.0]])
        >>> labels = KMeansPlusPlus().log_responsibilities(x, 2, torch.Generator()).argmax(-1)
        >>> bool(labels[0] == labels[1]), bool(labels[1] == labels[2])
        (True, False)
    """

    def log_responsibilities(
        self, x: Rows, num_components: int, generator: torch.Generator | None
    ) -> LogResponsibilities:
        """Each datum belongs to the centre nearest to it."""
        _, chosen = cluster.kmeans_plusplus(
            x.detach().cpu().numpy(), num_components, random_state=_seed(generator)
        )
        return _nearest(x, x[torch.from_numpy(chosen).long().to(x.device)])


@final
@dataclass(frozen=True)
class RandomData(Start):
    """Centres that are data, drawn with equal probability.

    Example:
        >>> RandomData().log_responsibilities(torch.rand(5, 2), 3, None).exp().sum()
        tensor(5.)
    """

    def log_responsibilities(
        self, x: Rows, num_components: int, generator: torch.Generator | None
    ) -> LogResponsibilities:
        """Each datum belongs to the centre nearest to it."""
        return _nearest(x, x[self.choose(x, num_components, generator)])


@final
@dataclass(frozen=True)
class RandomResponsibilities(Start):
    """Every datum belongs to all components in random proportions: all start near the mean.

    Example:
        >>> RandomResponsibilities().log_responsibilities(torch.rand(5, 2), 3, None).shape
        torch.Size([5, 3])
    """

    def log_responsibilities(
        self, x: Rows, num_components: int, generator: torch.Generator | None
    ) -> LogResponsibilities:
        """Uniform numbers, divided by their sums."""
        device = x.device if generator is None else generator.device
        shape = (len(x), num_components)
        drawn = torch.rand(shape, generator=generator, dtype=x.dtype, device=device)
        return drawn.to(x.device).clamp_min(1e-6).log().log_softmax(-1)
