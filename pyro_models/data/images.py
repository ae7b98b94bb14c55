"""MNIST and its kin, as torchvision stores, reads and downloads them."""

from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import EMNIST, KMNIST, MNIST, FashionMNIST

from pyro_models.data.record import Data, from_array
from pyro_models.errors import FileFormatError, OptionError

# What torchvision raises for a missing file, a failed download (URLError is an OSError) or a
# damaged file, whose header it checks by assertions and by looking up codes.
_TORCHVISION_ERRORS = (
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AssertionError,
)


class EMNISTSplit(Enum):
    """The six ways in which EMNIST is cut into classes."""

    BYCLASS = "byclass"
    BYMERGE = "bymerge"
    BALANCED = "balanced"
    LETTERS = "letters"
    DIGITS = "digits"
    MNIST = "mnist"


def mnist(root: str | Path = "data", train: bool = True, download: bool = False) -> Data:
    """Handwritten digits: 60,000 training and 10,000 test pictures, 28 by 28, grey in [0, 1].

    Args:
        root: Folder as torchvision takes it; the files lie in ``root/MNIST/raw``.
        train: Whether to read the training part, else the test part.
        download: Whether to fetch files that are not there.

    Returns:
        ``x`` of shape ``(N, 784)``, with 256 levels of grey divided by 255; labels 0 to 9.

    Raises:
        FileFormatError: If files are missing, cannot be fetched, or are damaged.

    References:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document
        recognition, https://doi.org/10.1109/5.726791

    Example:
        >>> mnist("no-such-folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pyro_models.errors.FileFormatError: MNIST is not in no-such-folder/MNIST/raw: ...
    """
    return _read(MNIST, "mnist", root, train, download)


def fashion_mnist(root: str | Path = "data", train: bool = True, download: bool = False) -> Data:
    """Articles of clothing: 60,000 training and 10,000 test pictures, 28 by 28, grey in [0, 1].

    Args:
        root: Folder as torchvision takes it; the files lie in ``root/FashionMNIST/raw``.
        train: Whether to read the training part, else the test part.
        download: Whether to fetch files that are not there.

    Returns:
        ``x`` of shape ``(N, 784)``, with 256 levels of grey divided by 255; labels 0 to 9.

    Raises:
        FileFormatError: If files are missing, cannot be fetched, or are damaged.

    References:
        Xiao, Rasul and Vollgraf (2017), Fashion-MNIST, https://arxiv.org/abs/1708.07747

    Example:
        >>> fashion_mnist("no-such-folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pyro_models.errors.FileFormatError: FashionMNIST is not in no-such-folder/Fashion...
    """
    return _read(FashionMNIST, "fashion_mnist", root, train, download)


def kmnist(root: str | Path = "data", train: bool = True, download: bool = False) -> Data:
    """Cursive Japanese: 60,000 training and 10,000 test pictures, 28 by 28, grey in [0, 1].

    Args:
        root: Folder as torchvision takes it; the files lie in ``root/KMNIST/raw``.
        train: Whether to read the training part, else the test part.
        download: Whether to fetch files that are not there.

    Returns:
        ``x`` of shape ``(N, 784)``, with 256 levels of grey divided by 255; labels 0 to 9.

    Raises:
        FileFormatError: If files are missing, cannot be fetched, or are damaged.

    References:
        Clanuwat et al. (2018), Deep learning for classical Japanese literature,
        https://arxiv.org/abs/1812.01718

    Example:
        >>> kmnist("no-such-folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pyro_models.errors.FileFormatError: KMNIST is not in no-such-folder/KMNIST/raw: ...
    """
    return _read(KMNIST, "kmnist", root, train, download)


def emnist(
    root: str | Path = "data",
    train: bool = True,
    download: bool = False,
    *,
    split: EMNISTSplit = EMNISTSplit.BALANCED,
) -> Data:
    """Handwritten letters and digits, 28 by 28, grey in [0, 1].

    The files hold each picture on its side; here it stands upright. Letters are numbered from 0
    in every split (the file of the split ``LETTERS`` counts from 1).

    Args:
        root: Folder as torchvision takes it; the files lie in ``root/EMNIST/raw``.
        train: Whether to read the training part, else the test part.
        download: Whether to fetch files that are not there.
        split: Which classes.

    Returns:
        ``x`` of shape ``(N, 784)``, with 256 levels of grey divided by 255, and labels.

    Raises:
        FileFormatError: If files are missing, cannot be fetched, or are damaged.
        OptionError: If ``split`` is not one of :class:`EMNISTSplit`.

    References:
        Cohen, Afshar, Tapson and van Schaik (2017), EMNIST, https://arxiv.org/abs/1702.05373

    Example:
        >>> emnist("no-such-folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pyro_models.errors.FileFormatError: EMNIST is not in no-such-folder/EMNIST/raw: ...
    """
    if not isinstance(split, EMNISTSplit):
        raise OptionError(f"split={split!r} is not one of {', '.join(map(str, EMNISTSplit))}")
    return _read(EMNIST, "emnist", root, train, download, split=split.value)


def _read(kind: Any, name: str, root: str | Path, train: bool, download: bool, **kw: str) -> Data:
    root = Path(root).expanduser()
    folder = root / kind.__name__ / "raw"
    try:
        source = kind(str(root), train=train, download=download, **kw)
    except _TORCHVISION_ERRORS as error:
        missing = [file for file in _files(kind, train, kw) if not (folder / file).is_file()]
        fault = _fault(kind.__name__, folder, missing, download, error)
        raise FileFormatError(fault) from error
    images, labels, classes = source.data, source.targets, list(source.classes)
    if len(images) != len(labels) or len(images) == 0:
        raise FileFormatError(
            f"{kind.__name__} in {folder} is damaged: {len(images)} pictures, {len(labels)} "
            "labels; delete the folder and give download=True"
        )
    if kind is EMNIST:
        images = images.transpose(1, 2)
        if classes[0] == "N/A":
            labels, classes = labels - 1, classes[1:]
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise FileFormatError(
            f"{kind.__name__} in {folder} is damaged: labels beyond its {len(classes)} classes; "
            "delete the folder and give download=True"
        )
    return from_array(
        _grey(images),
        labels,
        name=name if "split" not in kw else f"{name}_{kw['split']}",
        image_shape=(1, *images.shape[1:]),
        label_names=classes,
    )


def _grey(images: Tensor) -> Tensor:
    return images.flatten(1).to(torch.get_default_dtype()).div_(255)  # (N, height * width)


def _files(kind: Any, train: bool, kw: dict[str, str]) -> list[str]:
    if kind is EMNIST:
        part = "train" if train else "test"
        stem = f"emnist-{kw['split']}-{part}"
        return [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    return [Path(packed).stem for packed, _ in kind.resources]


def _fault(
    kind: str, folder: Path, missing: list[str], download: bool, error: BaseException
) -> str:
    cause = " ".join(f"{type(error).__name__}: {error}".split())  # on one line
    if not missing:
        return (
            f"{kind} in {folder} is damaged ({cause}); delete that folder and give download=True, "
            "or put sound files there"
        )
    files = f"the unpacked files {', '.join(missing)}"
    if download:
        return f"{kind} could not be fetched ({cause}); put {files} in {folder} yourself"
    return f"{kind} is not in {folder}: give download=True, another root=, or put {files} there"
