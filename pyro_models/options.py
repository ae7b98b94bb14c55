"""Checks of option values, shared by everything that is configured at construction."""

import math
from collections.abc import Sequence

from pyro_models.errors import OptionError


def positive_int(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number of at least one.

    Args:
        name: What the value is called where the user gave it.
        value: The value.

    Raises:
        OptionError: If it is anything else.

    Example:
        >>> positive_int("latent_dim", 2)
        2
    """
    # bool is an int to Python, and never what was meant here.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}={value!r} is not a whole number of at least 1; give one")
    return value


def positive_float(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number above zero.

    Args:
        name: What the value is called where the user gave it.
        value: The value.

    Raises:
        OptionError: If it is anything else.

    Example:
        >>> positive_float("scale", 1)
        1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{name}={value!r} is not a number; give a finite number above 0")
    if not math.isfinite(value) or value <= 0:
        raise OptionError(f"{name}={value!r} is not a finite number above 0; give one")
    return float(value)


def widths(name: str, values: object) -> tuple[int, ...]:
    """Return a sequence of layer widths as a tuple.

    Args:
        name: What the sequence is called where the user gave it.
        values: Whole numbers of at least one; an empty sequence means no hidden layer.

    Raises:
        OptionError: If it is no sequence, or one of its members is no width.

    Example:
        >>> widths("hidden", [200, 100])
        (200, 100)
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise OptionError(f"{name}={values!r} is not a sequence of widths; write ({values!r},)")
    return tuple(positive_int(f"{name}[{place}]", value) for place, value in enumerate(values))
