"""Files: what is read, and what each broken file is told."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_models import data
from pyro_models.errors import FileFormatError, OptionError

pd = pytest.importorskip("pandas")  # comes with arviz, and is no dependency of ours

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def labels_of(record):
    return record.labels


def csv(folder, text):
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def npz(folder, **arrays):
    path = folder / "arrays.npz"
    np.savez(path, **arrays)
    return path


def test_npy(tmp_path):
    np.save(tmp_path / "grey.npy", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    loaded = data.load(tmp_path / "grey.npy", image_shape=(1, 3, 4))
    assert loaded.name == "grey"
    assert loaded.x.dtype == torch.float32
    assert loaded.x.flatten().tolist() == list(range(24))


def test_a_vector_in_npy_becomes_a_column(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3.0))
    assert data.load(str(tmp_path / "x.npy")).x.shape == (3, 1)


def test_npz_by_key_by_its_only_array_and_by_x(tmp_path):
    a, b = np.zeros((2, 1)), np.ones((2, 1))
    assert data.load(npz(tmp_path, a=a, b=b), key="b").x.sum() == 2
    assert data.load(npz(tmp_path, b=b)).x.sum() == 2
    assert data.load(npz(tmp_path, a=a, x=b)).x.sum() == 2


def test_npz_with_labels(tmp_path):
    path = npz(tmp_path, x=np.zeros((2, 1)), y=np.array([3, 1]), kind=np.array(["b", "a"]))
    assert labels_of(data.load(path, labels="y")).tolist() == [3, 1]
    assert data.load(path, labels="kind").label_names == ("a", "b")


@pytest.mark.slow
@pytest.mark.parametrize(("part", "rows"), [("train", 50_000), ("valid", 10_000)])
def test_the_binarised_mnist_at_hand(part, rows):
    path = SHARED / "binarized_mnist" / f"{part}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    loaded = data.load(path, key="x", image_shape=(1, 28, 28))
    assert loaded.x.shape == (rows, 784)
    assert loaded.x.dtype == torch.float32
    assert loaded.x.unique().tolist() == [0, 1]


def test_csv_with_a_header(tmp_path):
    loaded = data.load(csv(tmp_path, "a, b\r\n1,2\r\n\r\n-3e1, 4.5\r\n"))
    assert loaded.feature_names == ("a", "b")
    assert loaded.labels is None
    assert loaded.x.tolist() == [[1, 2], [-30, 4.5]]


def test_csv_without_a_header(tmp_path):
    loaded = data.load(csv(tmp_path, "1,2\n3,4\n5,6"))
    assert loaded.feature_names is None
    assert loaded.x.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_csv_as_pandas_and_spreadsheets_write_it(tmp_path):
    path = tmp_path / "flowers.CSV"
    table = pd.DataFrame({"a": [0.1, 0.2], "kind, of": ["x\ny", 'the "z"']})
    table.to_csv(path, index=False, encoding="utf-8-sig")
    loaded = data.load(path, labels="kind, of")
    assert loaded.feature_names == ("a",)
    assert loaded.label_names == ('the "z"', "x\ny")
    assert torch.equal(loaded.x, torch.tensor([[0.1], [0.2]]))


def test_numbers_in_csv_come_back_exactly(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    pd.DataFrame(x, columns=list("abc")).to_csv(tmp_path / "x.csv", index=False)
    assert torch.equal(data.load(tmp_path / "x.csv").x, torch.from_numpy(x))


@pytest.mark.parametrize("labels", ["kind", 1, -2])
def test_the_label_column_by_name_or_place(tmp_path, labels):
    loaded = data.load(csv(tmp_path, "a,kind,b\n1,rose,2\n3,iris,4\n"), labels=labels)
    assert loaded.feature_names == ("a", "b")
    assert loaded.x.tolist() == [[1, 2], [3, 4]]
    assert (labels_of(loaded).tolist(), loaded.label_names) == ([1, 0], ("iris", "rose"))


def test_a_label_column_of_numbers_keeps_them(tmp_path):
    loaded = data.load(csv(tmp_path, "1,7\n2,3.0\n"), labels=-1)
    assert (labels_of(loaded).tolist(), loaded.label_names) == ([7, 3], None)


def test_a_first_row_that_may_be_either_must_be_said(tmp_path):
    path = csv(tmp_path, "0,1,2\n5,6,7\n")
    with pytest.raises(FileFormatError, match="header=True or header=False"):
        data.load(path)
    assert data.load(path, header=True).feature_names == ("0", "1", "2")
    assert len(data.load(path, header=False)) == 2


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,b\n", {}, "no rows"),
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 cells where the first has 2"),
        ("a,b\n1,2\n3,x\n", {}, "column 'b' in line 3 is 'x', which is not a number"),
        ("1,2\n3,x\n", {}, r"column 1 \(from 0\) in line 2 is 'x'"),
        ("5.1,setosa\n4.9,setosa\n", {}, r"column 1 \(from 0\) in line 1.*labels="),
        ("a,b\n1,\n", {}, "column 'b' in line 2 is empty"),
        ("a;b\n1,5;2\n", {}, "ragged"),
        ("a;b\n1;2\n", {}, "commas between"),
        ("a,b\n1,nan\n2,inf\n", {}, r"2 values.*1 NaN, 1 infinite.*row 0, column 1 \(b\)"),
        (",a\n0,1\n", {}, "index=False"),
        ("a,a\n0,1\n", {}, "two columns 'a'"),
        ("a,b\n1,2\n", {"labels": "c"}, r"no column 'c'; it has \['a', 'b'\]"),
        ("1,2\n", {"labels": "c"}, "no names of columns"),
        ("1,2\n", {"labels": 2}, "no column 2"),
        ("a\nx\n", {"labels": "a"}, "no column but the labels"),
        ("a,b\n1,\n", {"labels": "b"}, "label in line 2 is missing"),
        ("a,b\n1,0.5\n", {"labels": "b"}, "fractions"),
        (b"a,b\n\xff\xfe,1\n", {}, "UTF-8"),
        ("a,b\n1,2\n", {"image_shape": (1, 3, 3)}, "image_shape"),
    ],
)
def test_a_broken_csv_is_told_what_is_wrong(tmp_path, text, options, words):
    with pytest.raises(FileFormatError, match=words) as caught:
        data.load(csv(tmp_path, text), **options)
    assert str(tmp_path) in str(caught.value)


def test_missing_folders_and_other_kinds(tmp_path):
    with pytest.raises(FileFormatError, match="does not exist"):
        data.load(tmp_path / "no.csv")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FileFormatError, match="is a folder"):
        data.load(tmp_path / "folder.npy")
    with pytest.raises(FileFormatError, match=r"'\.parquet'.*\.npy, \.npz, \.csv.*from_array"):
        data.load(tmp_path / "x.parquet")
    with pytest.raises(FileFormatError, match="suffix ''"):
        data.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x.npy", {"key": "x"}, "key='x' names an array of an .npz"),
        ("x.csv", {"key": "x"}, "leave it out"),
        ("x.npy", {"labels": "y"}, "numpy.savez"),
        ("x.npy", {"header": True}, "about .csv"),
        ("x.npz", {"labels": 1}, "by name"),
    ],
)
def test_an_option_of_another_kind_is_refused(tmp_path, name, options, words):
    (tmp_path / name).touch()
    with pytest.raises(OptionError, match=words):
        data.load(tmp_path / name, **options)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"a": np.zeros(1), "b": np.zeros(1)}, {}, r"\['a', 'b'\]; say which with key="),
        ({"a": np.zeros(1)}, {"key": "b"}, r"no array 'b'; it has \['a'\]"),
        ({"x": np.zeros(1)}, {"labels": "y"}, r"no array 'y' for the labels"),
        ({}, {}, "no arrays"),
        ({"x": np.array([None])}, {}, "holds objects"),
        ({"x": np.array(["a"])}, {}, "not numeric"),
        ({"x": np.array([[1.0, np.nan]])}, {}, "row 0, column 1"),
        ({"x": np.zeros((0, 3))}, {}, "empty"),
        ({"x": np.zeros((2, 1)), "y": np.zeros(3)}, {"labels": "y"}, r"shape \(3,\)"),
    ],
)
def test_a_broken_npz_is_told_what_is_wrong(tmp_path, arrays, options, words):
    with pytest.raises(FileFormatError, match=words):
        data.load(npz(tmp_path, **arrays), **options)


def damaged():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(1000.0))
    archive = buffer.getvalue()
    flipped = bytearray(archive)
    flipped[200] ^= 255
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1000.0))
    return {
        "nothing.npy": b"",
        "nothing.npz": b"",
        "text.npz": b"no archive",
        "short.npz": archive[:500],
        "flipped.npz": bytes(flipped),
        "short.npy": buffer.getvalue()[:500],
        "header.npy": buffer.getvalue()[:20],
        "pickle.npy": pickle.dumps([1, 2, 3]),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(damaged()[name])
    with pytest.raises(FileFormatError, match=r"numpy\.save"):
        data.load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_flipped_byte_never_gives_another_error(tmp_path, suffix):
    # Every byte of a small file is damaged in turn. What still parses is data; all else is named.
    path = tmp_path / f"x{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, np.arange(6.0))
    sound = path.read_bytes()
    refused = 0
    for place in range(len(sound)):
        for flip in (1, 128):
            broken = bytearray(sound)
            broken[place] ^= flip
            path.write_bytes(broken)
            try:
                assert isinstance(data.load(path), data.Data)
            except FileFormatError:
                refused += 1
    assert refused > len(sound) / 4


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_no_pickle_is_ever_run(tmp_path):
    np.save(tmp_path / "bomb.npy", np.array([Bomb()]), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.npy", "raw.npy"):
        with pytest.raises(FileFormatError, match="never read"):
            data.load(tmp_path / name)
