"""Data sets as the command line names them: embedded ones, torchvision's, and files."""

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pyro_models import data
from pyro_models.data import Data, Split
from pyro_models.errors import FileFormatError, OptionError

FILE_KINDS = (".npy", ".npz", ".csv")
# What messages of the library call an argument, and what the command line calls it.
_OPTIONS = {
    "download=True": "--download",
    "root=": "--root",
    "labels=": "--labels",
    "key=": "--key",
}


@dataclass(frozen=True)
class Source:
    """Where data come from."""

    name: str
    """A name of :func:`names`, or the path of a file."""
    root: str = "data"
    """Folder of torchvision's sets."""
    download: bool = False
    """Whether to fetch a torchvision set that is not there."""
    labels: str | None = None
    """Column of a .csv, or array of an .npz, that holds the labels."""
    key: str | None = None
    """Array of an .npz that holds the data."""
    image_shape: tuple[int, int, int] | None = None
    """``(channels, height, width)`` if a row of a file is a picture."""

    @property
    def is_file(self) -> bool:
        """Whether the data are in a file of the user's."""
        return self.name not in EMBEDDED and self.name not in TORCHVISION


@dataclass(frozen=True)
class _Known:
    load: Callable[..., Data]
    about: str


EMBEDDED = {
    "digits": _Known(data.digits, "1797 handwritten digits, 8 by 8 pixels in 17 levels of grey"),
    "iris": _Known(data.iris, "150 irises of three species, 4 lengths"),
    "wine": _Known(data.wine, "178 wines of three growers, 13 measurements"),
    "breast_cancer": _Known(data.breast_cancer, "569 tumours of two kinds, 30 measurements"),
}
TORCHVISION = {
    "mnist": _Known(data.mnist, "70,000 handwritten digits, 28 by 28 pixels"),
    "fashion_mnist": _Known(data.fashion_mnist, "70,000 articles of clothing, 28 by 28 pixels"),
    "kmnist": _Known(data.kmnist, "70,000 cursive Japanese characters, 28 by 28 pixels"),
    "emnist": _Known(data.emnist, "131,600 letters and digits, 28 by 28 pixels"),
}


def names() -> dict[str, str]:
    """Names of data sets, and what they are."""
    needs = "; needs --root or --download"
    return {name: known.about for name, known in EMBEDDED.items()} | {
        name: known.about + needs for name, known in TORCHVISION.items()
    }


def check(source: Source) -> Source:
    """Make sure that there are such data, and options that go with them.

    Returns:
        The source, with the full path of a file.

    Raises:
        OptionError: If the name is unknown, or an option does not go with it.
        FileFormatError: If the file does not exist.

    Example:
        >>> check(Source("digit"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pyro_models.errors.OptionError: there is no data set 'digit' (did you mean 'digits'?); ...
    """
    if not source.is_file:
        for option in ("labels", "key", "image_shape"):
            if getattr(source, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise OptionError(f"{flag} is for files, not for {source.name!r}; leave it out")
        return source
    path = Path(source.name).expanduser()
    if path.suffix.lower() in FILE_KINDS:
        if not path.is_file():
            raise FileFormatError(f"there is no file {path}; give the path of a data file")
        return replace(source, name=str(path.resolve()))
    matches = difflib.get_close_matches(source.name.lower(), names(), n=1)
    meant = f" (did you mean {matches[0]!r}?)" if matches else ""
    raise OptionError(
        f"there is no data set {source.name!r}{meant}; give one of {', '.join(names())}, or a "
        f"file with the suffix {', '.join(FILE_KINDS)}"
    )


def load(source: Source, seed: int) -> Split:
    """Read the data and cut them in three; torchvision's sets bring their own test part.

    Args:
        source: Where they are.
        seed: Decides who goes where.

    Raises:
        FileFormatError: If they are missing or damaged.
        DataError: If there are too few.
    """
    with _in_words_of_the_command():
        if source.name in TORCHVISION:
            read = TORCHVISION[source.name].load
            cut = data.holdout(
                read(root=source.root, download=source.download), seed=seed, stratify=True
            )
            test = read(root=source.root, train=False, download=source.download)
            return Split(cut.train, cut.held_out, test)
        whole = EMBEDDED[source.name].load() if source.name in EMBEDDED else _file(source)
        return data.split(whole, seed=seed, stratify=_can_stratify(whole))


def _file(source: Source) -> Data:
    labels: str | int | None = source.labels
    is_place = labels is not None and re.fullmatch(r"-?\d+", str(labels)) is not None
    if is_place and source.name.lower().endswith(".csv"):
        labels = int(str(labels))
    found = data.load(source.name, key=source.key, labels=labels, image_shape=source.image_shape)
    shape = found.x.shape[1:]
    if len(shape) == 1:
        return found
    image_shape = found.image_shape
    if image_shape is None and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        image_shape = (1, *shape) if len(shape) == 2 else tuple(shape)
    return replace(found, x=found.x.flatten(1), image_shape=image_shape)


def _can_stratify(whole: Data) -> bool:
    """Whether labels are classes with enough members for three parts."""
    if whole.labels is None:
        return False
    _, counts = whole.labels.unique(return_counts=True)
    return int(counts.min()) >= 10


@contextmanager
def _in_words_of_the_command() -> Iterator[None]:
    try:
        yield
    except FileFormatError as error:
        message = str(error)
        for argument, option in _OPTIONS.items():
            message = message.replace(argument, option)
        raise FileFormatError(message) from error
