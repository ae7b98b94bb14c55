"""Ready pairs: a model, its guide and an objective, by name and for given data."""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from guides import AmortizedBernoulli, AmortizedNormal, Covariance, Diagonal
from pyro_models.belief_network import SigmoidBeliefNetwork
from pyro_models.data import ArrayLike, Data, as_tensor
from pyro_models.errors import OptionError
from pyro_models.infer import ELBO, VIMCO, Objective
from pyro_models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    LearnedScale,
    Likelihood,
    Normal,
)
from pyro_models.networks import Standardize
from pyro_models.options import widths
from pyro_models.vae import VAE


@dataclass(frozen=True)
class Pair:
    """A model, a guide for it, and the objective that fits them to each other.

    Example:
        >>> pair = vae(data_dim=4, latent_dim=2)
        >>> pair.model(num_data=3).shape
        torch.Size([3, 4])
    """

    model: nn.Module
    """p(x, z): a Pyro program ``model(x=None, num_data=None)``."""
    guide: nn.Module
    """q(z | x): a Pyro program with the same arguments."""
    objective: Objective
    """What to maximise over the parameters of both."""


def vae(
    data_dim: int,
    latent_dim: int = 2,
    hidden: Sequence[int] = (200,),
    likelihood: Likelihood | None = None,
    covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
    prior: nn.Module | None = None,
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A variational autoencoder.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        covariance: ``guides.Diagonal()`` or ``guides.Full()``, of the posterior.
        prior: Module that returns the distribution of one z; ``StandardNormal`` if not given.
        activation: Class of both networks' activation.
        objective: What to maximise; ``ELBO()`` if not given.
        preprocess: Module between the data and the encoder; see ``guides.AmortizedNormal``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> import torch
        >>> vae(784, latent_dim=50, hidden=(200, 200)).guide(torch.zeros(20, 784)).shape
        torch.Size([20, 50])
    """
    _check_objective(objective)
    guide = AmortizedNormal(
        data_dim, latent_dim, hidden, covariance, activation, preprocess=preprocess
    )
    model = VAE(data_dim, latent_dim, tuple(hidden)[::-1], likelihood, prior, activation)
    return Pair(model, guide, ELBO() if objective is None else objective)


def belief_network(
    data_dim: int,
    latent_dim: int | Sequence[int] = 200,
    hidden: Sequence[int] = (),
    likelihood: Likelihood | None = None,
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A sigmoid belief network: layers of binary latents.

    Args:
        data_dim: Numbers a datum; images are flattened.
        latent_dim: Binary units; of several layers, one number each, from the data up.
        hidden: Widths of the deterministic layers between two stochastic ones, as the guide has
            them; the model has them in reverse. ``()`` is the linear network of the papers,
            ``(200, 200)`` with ``latent_dim=200`` the nonlinear one.
        likelihood: What the outputs of the data's layer mean; ``Bernoulli()`` if not given.
        activation: Class of the deterministic layers' activation.
        objective: What to maximise; ``VIMCO(num_particles=5)`` if not given.
        preprocess: Module between the data and the guide; see ``guides.AmortizedBernoulli``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> pair = belief_network(784, latent_dim=(200, 100), hidden=(50,))
        >>> pair.model.latent_dims
        (200, 100)
    """
    _check_objective(objective)
    dims = (latent_dim,) if isinstance(latent_dim, int) else widths("latent_dim", latent_dim)
    hidden = widths("hidden", hidden)
    guide = AmortizedBernoulli(data_dim, dims, hidden, activation, preprocess)
    model = SigmoidBeliefNetwork(data_dim, dims, hidden[::-1], likelihood, activation)
    return Pair(model, guide, VIMCO(num_particles=5) if objective is None else objective)


def _check_objective(objective: object) -> None:
    if objective is not None and not isinstance(objective, Objective):
        raise OptionError(f"objective={objective!r} is none; give one of infer, such as ELBO()")


Builder = Callable[..., Pair]


@dataclass(frozen=True)
class _Recipe:
    """How a pair is made by hand, and how for given data."""

    make: Builder
    make_for: Builder

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(name for name in inspect.signature(self.make).parameters if name != "data_dim")


_RECIPES: dict[str, _Recipe] = {}


def _register(name: str, make: Builder) -> Callable[[Builder], Builder]:
    """Enter a builder ``(x, **options) -> Pair``, whose options are those of ``make``."""

    def enter(make_for: Builder) -> Builder:
        _RECIPES[name] = _Recipe(make, make_for)
        return make_for

    return enter


def names() -> tuple[str, ...]:
    """The names that :func:`build` knows, in alphabetical order.

    Example:
        >>> "vae" in names()
        True
    """
    return tuple(sorted(_RECIPES))


def options(name: str) -> tuple[str, ...]:
    """The options that :func:`build` takes for a pair.

    Args:
        name: One of :func:`names`.

    Raises:
        OptionError: If there is no pair of this name.

    Example:
        >>> options("vae")[:3]
        ('latent_dim', 'hidden', 'likelihood')
    """
    return _recipe(name).options


def build(name: str, data: Data | ArrayLike, **chosen: Any) -> Pair:
    """Make a pair for given data: dimensions, likelihood and starting values come from them.

    Parameters get the data's device and floating type. A likelihood that is not chosen is chosen by
    :func:`default_likelihood`; a belief network's is ``Bernoulli()``. A ``Bernoulli()`` for grey
    levels starts at their means; give ``data.DynamicBinarization()`` to ``fit`` then.

    Args:
        name: One of :func:`names`.
        data: A ``Data`` record, a tensor or an array, ``(num_data, ...)``.
        **chosen: Options of the pair, see :func:`options`.

    Raises:
        OptionError: If there is no such pair or option, or an option cannot work.
        DataError: If there are no data, or some are NaN or infinite.
        SupportError: If the likelihood cannot explain the data.

    Example:
        >>> import torch
        >>> pair = build("vae", torch.eye(8), latent_dim=3)
        >>> pair.model.data_dim, pair.model.latent_dim, pair.model.likelihood
        (8, 3, Bernoulli())
    """
    recipe = _recipe(name)
    for option in chosen:
        if option not in recipe.options:
            raise OptionError(
                f"{name!r} has no option {option!r}{_closest(option, recipe.options)}; "
                f"its options are {', '.join(recipe.options)}"
            )
    x = as_tensor(data.x if isinstance(data, Data) else data).flatten(1)
    return recipe.make_for(x, **chosen)


def _recipe(name: str) -> _Recipe:
    if name not in _RECIPES:
        raise OptionError(
            f"there is no pair {name!r}{_closest(name, names())}; "
            f"the pairs are {', '.join(names())}"
        )
    return _RECIPES[name]


def _closest(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def default_likelihood(x: Float[Tensor, "num_data data_dim"]) -> Likelihood:
    """The likelihood for data of which nothing is known but their values.

    ======================================= ===============================================
    all values are                          likelihood
    ======================================= ===============================================
    0 or 1                                  ``Bernoulli()``
    in [0, 1]                               ``ContinuousBernoulli()``
    whole numbers from 0 up                 refused: counts, categories and grey levels look
                                            alike
    anything else                           ``Normal()``, its scale starting at the data's
    ======================================= ===============================================

    Columns of different units share that scale: standardise them first
    (``data.Standardization``), or choose ``LearnedScale(data_dim=...)``.

    Args:
        x: Data, ``(num_data, data_dim)``.

    Raises:
        OptionError: If the values leave it open.

    Example:
        >>> import torch
        >>> default_likelihood(torch.tensor([[0.0, 0.5]]))
        ContinuousBernoulli()
    """
    if bool(((x == 0) | (x == 1)).all()):
        return Bernoulli()
    low, high = x.min().item(), x.max().item()
    if low >= 0 and high <= 1:
        return ContinuousBernoulli()
    if low >= 0 and bool((x == x.round()).all()):
        raise OptionError(
            f"the data are whole numbers from {low:g} to {high:g}; choose a likelihood: "
            f"likelihoods.Poisson() for counts, likelihoods.Categorical({high + 1:g}) for "
            f"categories, or divide by {high:g} if they are grey levels"
        )
    rows = x.double()
    spread = (rows - rows.mean(0)).square().mean().sqrt().item()
    if not math.isfinite(spread) or spread == 0:
        spread = 1.0
    return Normal(LearnedScale(initial=spread, floor=1e-3 * spread))


def _suited(
    x: Float[Tensor, "num_data data_dim"],
    chosen: dict[str, Any],
    default: Callable[[Tensor], Likelihood],
) -> dict[str, Any]:
    """The chosen options, with a likelihood and a preprocessing that suit the data.

    Binarised by ``fit``, grey levels become what Bernoulli explains; ``fit`` checks the outcome.
    """
    likelihood, preprocess = chosen.get("likelihood"), chosen.get("preprocess")
    if likelihood is None:
        likelihood = default(x)
    is_grey = bool(((x >= 0) & (x <= 1)).all())
    if not (isinstance(likelihood, Bernoulli) and is_grey) and isinstance(likelihood, Likelihood):
        likelihood.check(x)
    # Data within [0, 1] are shown to the guide as they are, all others standardised.
    if preprocess is None and not is_grey:
        preprocess = Standardize(x)
    return chosen | {"likelihood": likelihood, "preprocess": preprocess}


@_register("vae", vae)
def _vae_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    pair = vae(x.shape[1], **_suited(x, chosen, default_likelihood))
    pair.model.to(x)
    pair.guide.to(x)
    cast(VAE, pair.model).initialize(x)
    return pair


@_register("belief_network", belief_network)
def _belief_network_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    pair = belief_network(x.shape[1], **_suited(x, chosen, lambda _: Bernoulli()))
    pair.model.to(x)
    pair.guide.to(x)
    cast(SigmoidBeliefNetwork, pair.model).initialize(x)
    cast(AmortizedBernoulli, pair.guide).initialize(x)
    return pair
