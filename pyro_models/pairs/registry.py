"""The registry of pairs: what a pair is, its name, and how it is made for given data."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_models.data import ArrayLike, Data, as_tensor
from pyro_models.errors import OptionError
from pyro_models.infer import Objective


@dataclass(frozen=True)
class Pair:
    """A model, a guide for it, and the objective that fits them to each other.

    Example:
        >>> from pyro_models import pairs
        >>> pair = pairs.vae(data_dim=4, latent_dim=2)
        >>> pair.model(num_data=3).shape
        torch.Size([3, 4])
    """

    model: nn.Module
    """p(x, z): a Pyro program ``model(x=None, num_data=None)``."""
    guide: nn.Module
    """q(z | x): a Pyro program with the same arguments."""
    objective: Objective
    """What to maximise over the parameters of both."""


def check_objective(objective: object) -> None:
    """Refuse what is no objective.

    Raises:
        OptionError: If it is none, and not ``None``.
    """
    if objective is not None and not isinstance(objective, Objective):
        raise OptionError(f"objective={objective!r} is none; give one of infer, such as ELBO()")


Builder = Callable[..., Pair]


def rows(data: Data | ArrayLike) -> Tensor:
    """Data as a tensor of one flat row a datum, ``(num_data, data_dim)``.

    Raises:
        DataError: If there are no data, or some are NaN or infinite.
    """
    return as_tensor(data.x if isinstance(data, Data) else data).flatten(1)


@dataclass(frozen=True)
class _Recipe:
    """How a pair is made by hand, and how for given data."""

    make: Builder
    make_for: Builder
    read: Callable[[Any], Any]

    @property
    def options(self) -> tuple[str, ...]:
        names = inspect.signature(self.make).parameters
        return tuple(name for name in names if name not in ("data_dim", "in_dim"))


_RECIPES: dict[str, _Recipe] = {}


def register(
    name: str, make: Builder, read: Callable[[Any], Any] = rows
) -> Callable[[Builder], Builder]:
    """Enter a builder ``(x, **options) -> Pair``, whose options are those of ``make``.

    Args:
        name: What the pair is called.
        make: Makes it by hand, from dimensions and options.
        read: Checks what a person calls data and makes it what the builder takes.
    """

    def enter(make_for: Builder) -> Builder:
        _RECIPES[name] = _Recipe(make, make_for, read)
        return make_for

    return enter


def names() -> tuple[str, ...]:
    """The names that :func:`build` knows, in alphabetical order.

    Example:
        >>> from pyro_models import pairs
        >>> "vae" in pairs.names()
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
        >>> from pyro_models import pairs
        >>> pairs.options("vae")[:3]
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
        data: A ``Data`` record, a tensor or an array, ``(num_data, ...)``; for ``"regression"`` a
            tuple of inputs and outputs. NaN is a missing value for ``"ppca"`` and
            ``"factor_analysis"``.
        **chosen: Options of the pair, see :func:`options`.

    Raises:
        OptionError: If there is no such pair or option, or an option cannot work.
        DataError: If there are no data, or some are NaN or infinite.
        SupportError: If the likelihood cannot explain the data.

    Example:
        >>> import torch
        >>> from pyro_models import pairs
        >>> pair = pairs.build("vae", torch.eye(8), latent_dim=3)
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
    return recipe.make_for(recipe.read(data), **chosen)


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
