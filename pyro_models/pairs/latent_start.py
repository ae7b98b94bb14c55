"""Where the clusters of a pair start: k-means in the latent space of a plain VAE."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from guides import AmortizedNormal, MixtureCodes
from pyro_models.data import ArrayLike, Data
from pyro_models.errors import DataError, NonFiniteError, OptionError
from pyro_models.gmvae import GaussianMixtureVAE
from pyro_models.infer import StopReason, fit
from pyro_models.infer.batches import Transform
from pyro_models.infer.random_state import isolated
from pyro_models.options import positive_float, positive_int
from pyro_models.pairs.registry import Pair, rows
from pyro_models.vade import VaDE
from pyro_models.vae import VAE

# Passes of a random transform over which posterior means are averaged.
_PASSES = 10


@dataclass(frozen=True)
class LatentStart:
    """How long the plain VAE is trained, and how k-means is.

    Args:
        epochs: Passes through the data.
        batch_size: Data in a minibatch.
        learning_rate: Adam's.
        restarts: Starts of k-means by k-means++, of which the one of least spread is kept.

    Raises:
        OptionError: If a number cannot be.

    Example:
        >>> LatentStart(epochs=0)
        Traceback (most recent call last):
            ...
        pyro_models.errors.OptionError: epochs=0 is not a whole number of at least 1; give one
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    restarts: int = 20

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "restarts"):
            positive_int(name, getattr(self, name))
        positive_float("learning_rate", self.learning_rate)


class _CodeOnly(nn.Module):
    """A recognition network of which only the outputs for z are seen."""

    def __init__(self, guide: MixtureCodes):
        super().__init__()
        self.encoder = guide.encoder
        self.seen = guide.outputs_of("z")

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[..., self.seen]


def start_clusters(
    pair: Pair,
    data: Data | ArrayLike,
    start: LatentStart = LatentStart(),
    *,
    transform: Transform | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Int[Tensor, " num_data"]:
    """Train encoder and decoder as a plain VAE, and start the clusters where k-means finds them.

    The decoder, and the recognition network's outputs for z, are trained in place with a standard
    normal prior; k-means runs on the posterior means of z. Each cluster starts at the mean of its
    data, as wide as their posteriors are together; VaDE's weights start at the sizes of the
    clusters. Fit the pair after that, as any other.

    Args:
        pair: Of ``pairs.gmvae`` or ``pairs.vade``.
        data: A ``Data`` record, a tensor or an array, ``(N, ...)``.
        start: How long.
        transform: Applied to each minibatch, as for ``infer.fit``.
        device: Where to train; ``None`` is where the pair is.
        seed: Of all randomness.
        progress: Whether to show how far it has come.

    Returns:
        The cluster of each datum, ``(N,)``.

    Raises:
        OptionError: If the pair is another one.
        DataError: If there are fewer data, or fewer different codes, than clusters.
        NonFiniteError: If a code is NaN or infinite.
        KeyboardInterrupt: If Ctrl-C was pressed.

    References:
        Arthur and Vassilvitskii 2007, https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
        Jiang, Zheng, Tan, Tang and Zhou 2017, https://arxiv.org/abs/1611.05148

    Example:
        >>> from pyro_models import pairs
        >>> x = (torch.arange(40) % 2).float()[:, None].expand(40, 6)  # all 0 or all 1
        >>> pair = pairs.build("vade", x, latent_dim=2, num_components=2)
        >>> start = LatentStart(epochs=5, batch_size=10)
        >>> clusters = start_clusters(pair, x, start, progress=False)
        >>> bool((clusters[::2] == clusters[0]).all() and clusters[0] != clusters[1])
        True
    """
    model, guide = pair.model, pair.guide
    if not (isinstance(model, GaussianMixtureVAE | VaDE) and isinstance(guide, MixtureCodes)):
        raise OptionError(
            f"{type(model).__name__} with {type(guide).__name__} has no clusters to start; give a "
            "pair of pairs.gmvae or pairs.vade"
        )
    x, count = rows(data), model.num_components
    if len(x) < count:
        raise DataError(
            f"there are {len(x)} data for {count} clusters; give more data, or fewer clusters"
        )
    plain = VAE(
        model.data_dim, model.latent_dim, likelihood=model.likelihood, decoder=model.decoder
    )
    encoder = AmortizedNormal(
        model.data_dim,
        model.latent_dim,
        covariance=guide.covariance,
        encoder=_CodeOnly(guide),
        preprocess=guide.preprocess,
    )
    record = fit(
        plain,
        encoder,
        x,
        optimizer=functools.partial(torch.optim.Adam, lr=start.learning_rate),
        epochs=start.epochs,
        batch_size=start.batch_size,
        transform=transform,
        device=device,
        seed=seed,
        progress=progress,
    )
    if record.stop_reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt  # what comes next would start from a half-trained network
    model.to(next(plain.decoder.parameters()))  # with what is the components' own
    means, variances = _codes(encoder, x, transform, seed)
    clusters = _k_means(means, count, start.restarts, seed)
    _place(model, means, variances, clusters)
    return clusters


@torch.no_grad()
def _codes(
    encoder: AmortizedNormal, x: Tensor, transform: Transform | None, seed: int
) -> tuple[Float[Tensor, "num_data latent_dim"], Float[Tensor, "num_data latent_dim"]]:
    """Mean and variance of each datum's code, over the posterior and the transform's draws."""
    like = next(encoder.parameters())
    x = x.to(like)
    first, second = [], []
    with isolated(like.device, seed):
        for _ in range(1 if transform is None else _PASSES):
            seen = x if transform is None else transform(x)
            q = encoder.posterior(seen[0] if isinstance(seen, tuple) else seen)
            first.append(q.mean)
            second.append(q.mean.square() + q.variance)
    mean = torch.stack(first).mean(0)
    return mean, torch.stack(second).mean(0) - mean.square()


def _k_means(
    means: Float[Tensor, "num_data latent_dim"], count: int, restarts: int, seed: int
) -> Int[Tensor, " num_data"]:
    if not bool(means.isfinite().all()):
        raise NonFiniteError(
            f"{int((~means.isfinite()).any(-1).sum())} posterior means of z are NaN or infinite, "
            "and have no clusters; lower the start's learning rate",
            sites=("z",),
        )
    distinct = len(means.unique(dim=0))
    if distinct < count:
        raise DataError(
            f"the data have {distinct} different codes for {count} clusters; train the start "
            "longer, or ask for fewer clusters"
        )
    with threadpool_limits(1):
        found = KMeans(count, n_init=restarts, random_state=seed).fit(means.double().cpu().numpy())
    return torch.from_numpy(found.labels_).long().to(means.device)


@torch.no_grad()
def _place(
    model: GaussianMixtureVAE | VaDE,
    means: Float[Tensor, "num_data latent_dim"],
    variances: Float[Tensor, "num_data latent_dim"],
    clusters: Int[Tensor, " num_data"],
) -> None:
    """Set each component to the mean and spread of its data's codes."""
    member = nn.functional.one_hot(clusters, model.num_components).double()  # (N, K)
    counts = member.sum(0)
    share = (member / counts).T  # (K, N)
    centers = share @ means.double()
    away = means.double() - centers[clusters]
    scales = (share @ (away.square() + variances.double())).sqrt()
    if isinstance(model, VaDE):
        model.set(counts.to(means), centers.to(means), scales.to(means))
    else:
        model.set(centers.to(means), scales.to(means))
