"""What the command does with a pair unless told otherwise."""

from dataclasses import dataclass

from pyro_models import pairs
from pyro_models.errors import OptionError

PAIR, ROOT, DEVICE, SEED = "vae", "data", "cpu", 0
LABELLED = 0.1
"""Share of a known set's labels that a pair sees which learns from labels; of a file's, all."""


@dataclass(frozen=True)
class Defaults:
    """Data and sizes that show what a pair can do."""

    data: str = "digits"
    """Name of an embedded data set."""
    num_components: int = 3
    """K, where the pair has the option."""
    narrower: bool = False
    """Whether its latents must be fewer than the data's dimensions."""
    inputs: bool = False
    """Whether it needs inputs beside x, which no file of the command's says."""
    latent_dim: int | None = None
    """The most dimensions of its latent space; None where the data alone decide."""
    clustered: bool = False
    """Whether its clusters start from k-means in latent space."""
    warm_up: bool = False
    """Whether the divergence from the prior is weighted in slowly, for else codes stay unused."""
    labels: bool = False
    """Whether it learns from labels too, of which most are hidden from it."""


# What a size is called where it bounds a number that has no bound.
_ALSO = {"num_components": ("truncation",)}

# A pair that is not named here is fitted to the digits, as the deep ones are.
_DEFAULTS = {
    "bayesian_gaussian_mixture": Defaults(data="iris", num_components=10),
    "dirichlet_process_mixture": Defaults(data="iris", num_components=20),
    "factor_analysis": Defaults(data="wine", narrower=True),
    "gaussian": Defaults(data="wine"),
    "gaussian_mixture": Defaults(data="iris"),
    "gmvae": Defaults(num_components=10, latent_dim=10, clustered=True),
    "ppca": Defaults(data="digits", narrower=True),
    "regression": Defaults(inputs=True),
    "stick_breaking_vae": Defaults(num_components=20, warm_up=True),
    "vade": Defaults(num_components=10, latent_dim=10, clustered=True),
    "semi_supervised_stick_breaking_vae": Defaults(num_components=20, warm_up=True, labels=True),
    "semi_supervised_vae": Defaults(latent_dim=10, warm_up=True, labels=True),
}


def asks(pair: str, size: str) -> bool:
    """Whether a pair has an option for a size, by whatever name.

    Args:
        pair: Name of a pair.
        size: ``"latent_dim"`` or ``"num_components"``.

    Example:
        >>> asks("vae", "num_components")
        False
    """
    return any(name in pairs.options(pair) for name in (size, *_ALSO.get(size, ())))


def of(pair: str) -> Defaults:
    """The defaults of a pair.

    Args:
        pair: Its name.

    Raises:
        OptionError: If there is no such pair, or the command cannot fit it.

    Example:
        >>> of("gaussian_mixture").data
        'iris'
    """
    pairs.options(pair)  # says what is meant, if it is not there
    found = _DEFAULTS.get(pair, Defaults())
    if found.inputs:
        raise OptionError(
            f"the pair {pair!r} needs inputs beside x, which the command does not read; fit it "
            f"from Python: pairs.build({pair!r}, (inputs, x)), then infer.fit"
        )
    return found


def latent_dim(pair: str, data_dim: int) -> int:
    """Dimensions of the latent space: a quarter of the data's, from 2 to 32.

    Args:
        pair: Name of a pair.
        data_dim: Dimensions of the data.

    Example:
        >>> latent_dim("vae", 64), latent_dim("vae", 2), latent_dim("ppca", 2)
        (16, 2, 1)
    """
    known = of(pair)
    usual = min(known.latent_dim or 32, max(2, data_dim // 4))
    return max(1, min(usual, data_dim - 1)) if known.narrower else usual
