"""From data to fitted clusters in one call: the start in latent space, then the fit."""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_models.data import ArrayLike, Data
from pyro_models.errors import OptionError
from pyro_models.infer import Cosine, Fit, fit
from pyro_models.infer.batches import Transform
from pyro_models.infer.random_state import isolated
from pyro_models.options import positive_float, positive_int
from pyro_models.pairs.latent_start import LatentStart, start_clusters
from pyro_models.pairs.registry import Pair, build, rows


@dataclass(frozen=True)
class ClusterRecipe:
    """How clusters are fitted.

    Args:
        start: The start by k-means in latent space.
        epochs: Passes through the data after it.
        batch_size: Data in a minibatch.
        learning_rate: Adam's at the beginning; it falls to zero along a cosine.

    Raises:
        OptionError: If a number cannot be.
    """

    start: LatentStart = field(default_factory=LatentStart)
    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        positive_int("epochs", self.epochs)
        positive_int("batch_size", self.batch_size)
        positive_float("learning_rate", self.learning_rate)


def fit_clusters(
    name: str,
    data: Data | ArrayLike,
    recipe: ClusterRecipe = ClusterRecipe(),
    *,
    transform: Transform | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
    compiled: bool | None = None,
    **chosen: Any,
) -> tuple[Pair, Fit]:
    """Make a pair with clusters for given data, start it by k-means, and fit it.

    Args:
        name: ``"gmvae"`` or ``"vade"``.
        data: A ``Data`` record, a tensor or an array, ``(N, ...)``; labels are not looked at.
        recipe: How.
        transform: Applied to each minibatch, as for ``infer.fit``.
        device: Where to fit.
        seed: Of all randomness, the parameters' starting values included.
        progress: Whether to show how far it has come.
        compiled: Whether to compile the steps after the start, as for ``infer.fit``.
        **chosen: Options of the pair, see ``pairs.options``.

    Returns:
        The fitted pair, and the record of the fit.

    Raises:
        OptionError: If there is no such pair or option, or an option cannot work.
        DataError: If the data cannot be clustered.
        NonFiniteError: If a loss, gradient or parameter becomes NaN or infinite.

    Example:
        >>> from pyro_models import clustering
        >>> x = (torch.arange(40) % 2).float()[:, None].expand(40, 6)
        >>> recipe = ClusterRecipe(LatentStart(epochs=5, batch_size=10), epochs=2, batch_size=10)
        >>> pair, record = fit_clusters(
        ...     "gmvae", x, recipe, latent_dim=2, num_components=2, progress=False
        ... )
        >>> clustering.assign(pair.model, pair.guide, x, num_samples=5).shape
        torch.Size([40, 2])
    """
    if name not in ("gmvae", "vade"):
        raise OptionError(f"{name!r} is no pair with clusters to start; give 'gmvae' or 'vade'")
    x = rows(data)
    with isolated(torch.device("cpu"), seed):
        pair = build(name, x, **chosen)
    shared: dict[str, Any] = {"transform": transform, "device": device, "progress": progress}
    start_clusters(pair, x, recipe.start, seed=seed, **shared)
    record = fit(
        pair.model,
        pair.guide,
        x,
        objective=pair.objective,
        optimizer=functools.partial(torch.optim.Adam, lr=recipe.learning_rate),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        schedule=Cosine(),
        seed=seed,
        compiled=compiled,
        **shared,
    )
    return pair, record
