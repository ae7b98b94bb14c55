"""Torchvision's image sets, on tiny files made here and on the real ones where they lie."""

import gzip
import hashlib
import http.server
import socket
import threading
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from jaxtyping import TypeCheckError

from pyro_models import data
from pyro_models.errors import FileFormatError, OptionError

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
SETS = {"MNIST": data.mnist, "FashionMNIST": data.fashion_mnist, "KMNIST": data.kmnist}


def labels_of(record):
    return [record.label_names[label] for label in record.labels]


def idx(array):
    """The bytes of an IDX file: two zeros, the type (8: bytes), the rank, the sizes, the values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 3))


def files(train=5, test=2):
    return {
        "train-images-idx3-ubyte": idx(pictures(train, 0)),
        "train-labels-idx1-ubyte": idx(np.arange(train) % 10),
        "t10k-images-idx3-ubyte": idx(pictures(test, 1)),
        "t10k-labels-idx1-ubyte": idx(np.arange(test) + 3),
    }


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", SETS)
def test_both_parts_are_read(tmp_path, kind):
    write(tmp_path / kind / "raw", files())
    train, test = SETS[kind](tmp_path), SETS[kind](str(tmp_path), train=False)
    assert train.x.dtype == torch.float32
    assert train.image_shape == (1, 4, 3)
    np.testing.assert_allclose(train.x.numpy(), pictures(5, 0).reshape(5, 12) / 255, rtol=1e-6)
    np.testing.assert_allclose(test.x.numpy(), pictures(2, 1).reshape(2, 12) / 255, rtol=1e-6)
    classes = getattr(torchvision.datasets, kind).classes
    assert (labels_of(train), labels_of(test)) == (classes[:5], classes[3:5])
    assert train.name == SETS[kind].__name__


def test_grey_pictures_are_levels_that_dequantise(tmp_path):
    write(tmp_path / "MNIST" / "raw", files())
    x = data.mnist(tmp_path).x
    transform = data.Dequantization(levels=256)
    assert torch.equal(transform.inverse(transform(x)), x)


def test_emnist_stands_upright(tmp_path):
    stem = "emnist-letters-train"
    contents = {f"{stem}-images-idx3-ubyte": idx(pictures(3, 0))}
    contents[f"{stem}-labels-idx1-ubyte"] = idx(np.array([1, 26, 3]))
    write(tmp_path / "EMNIST" / "raw", contents)
    letters = data.emnist(tmp_path, split=data.EMNISTSplit.LETTERS)
    upright = pictures(3, 0).transpose(0, 2, 1)
    np.testing.assert_allclose(letters.x.numpy(), upright.reshape(3, 12) / 255, rtol=1e-6)
    assert letters.image_shape == (1, 3, 4)
    assert labels_of(letters) == ["a", "z", "c"]
    assert letters.name == "emnist_letters"
    with pytest.raises(FileFormatError, match="emnist-balanced-test-images-idx3-ubyte"):
        data.emnist(tmp_path, train=False)


def test_an_unknown_split_is_refused(tmp_path):
    # The run-time type checks of the tests speak before our own.
    with pytest.raises((OptionError, TypeCheckError), match="EMNISTSplit"):
        data.emnist(tmp_path, split="balanced")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SETS)
def test_missing_files_are_named_with_their_place(tmp_path, kind):
    with pytest.raises(FileFormatError, match=r"download=True.*root=") as caught:
        SETS[kind](tmp_path)
    assert str(tmp_path / kind / "raw") in str(caught.value)
    assert "train-images-idx3-ubyte" in str(caught.value)
    assert not any(tmp_path.iterdir())  # looking leaves no folders behind


def test_only_the_missing_files_are_named(tmp_path):
    contents = files()
    del contents["t10k-labels-idx1-ubyte"]
    write(tmp_path / "MNIST" / "raw", contents)
    with pytest.raises(FileFormatError, match=r"unpacked files t10k-labels-idx1-ubyte there"):
        data.mnist(tmp_path)


IMAGES = files()["train-images-idx3-ubyte"]
DAMAGE = {
    "nothing": b"",
    "two bytes": IMAGES[:2],
    "half a header": IMAGES[:10],
    "truncated": IMAGES[:-1],
    "a byte too many": IMAGES + b"\0",
    "another kind of file": b"<!DOCTYPE html><html>404</html>",
    "unknown type": bytes([0, 0, 10]) + IMAGES[3:],
    "floats": bytes([0, 0, 13]) + IMAGES[3:],
    "wrong rank": idx(np.zeros((5, 12))),
    "too few pictures": idx(pictures(4, 0)),
    "no pictures": idx(pictures(0, 0)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_told_from_missing_ones(tmp_path, damage):
    contents = files() | {"train-images-idx3-ubyte": DAMAGE[damage]}
    if damage == "no pictures":
        contents["train-labels-idx1-ubyte"] = idx(np.zeros(0))
    write(tmp_path / "MNIST" / "raw", contents)
    with pytest.raises(FileFormatError, match=r"is damaged.*delete"):
        data.mnist(tmp_path)


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    contents = files() | {"train-labels-idx1-ubyte": idx(np.array([0, 1, 2, 3, 10]))}
    write(tmp_path / "MNIST" / "raw", contents)
    with pytest.raises(FileFormatError, match="labels beyond its 10 classes"):
        data.mnist(tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder, and the address under which this machine serves it to itself."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_download_fetches_unpacks_and_checks(tmp_path, monkeypatch, mirror):
    folder, address = mirror
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files().items()}
    write(folder, packed)
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    assert len(data.mnist(tmp_path / "root", download=True)) == 5
    assert len(data.mnist(tmp_path / "root", train=False)) == 2


def test_emnist_downloads_too(tmp_path, monkeypatch, mirror):
    folder, address = mirror
    archive = folder / "gzip.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for part in ("images-idx3", "labels-idx1"):
            content = files()[f"train-{part}-ubyte"]
            file.writestr(f"gzip/emnist-digits-train-{part}-ubyte.gz", gzip.compress(content))
    monkeypatch.setattr(torchvision.datasets.EMNIST, "url", f"{address}gzip.zip")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.EMNIST, "md5", md5)
    digits = data.emnist(tmp_path / "root", download=True, split=data.EMNISTSplit.DIGITS)
    assert len(digits) == 5


@pytest.mark.parametrize("read", [data.mnist, data.emnist])
def test_a_failed_download_says_where_files_may_be_put(tmp_path, monkeypatch, read):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"  # closed again, so none answers
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.EMNIST, "url", f"{address}gzip.zip")
    with pytest.raises(FileFormatError, match=r"could not be fetched.*put the unpacked files"):
        read(tmp_path / "root", download=True)


@pytest.mark.slow
@pytest.mark.parametrize(("train", "rows"), [(True, 60_000), (False, 10_000)])
def test_the_fashion_mnist_at_hand(train, rows):
    if not (SHARED / "FashionMNIST").exists():
        pytest.skip(f"{SHARED / 'FashionMNIST'} is not on this machine")
    fashion = data.fashion_mnist(SHARED, train=train)
    assert fashion.x.shape == (rows, 784)
    assert (fashion.x.min(), fashion.x.max()) == (0, 1)
    assert Counter(labels_of(fashion)).most_common()[-1][1] == rows // 10
    assert "Ankle boot" in labels_of(fashion)
    # The mean and deviation that are commonly quoted for the training part.
    if train:
        assert fashion.x.mean().item() == pytest.approx(0.2860, abs=1e-4)
        assert fashion.x.std().item() == pytest.approx(0.3530, abs=1e-4)
    data.Dequantization(levels=256).check(fashion.x)
