"""Arrays, tables and lists as data: what is taken, what is refused, and in which words."""

import pickle

import numpy as np
import pytest
import torch

from pyro_models import data
from pyro_models.data import Data, as_labels, as_tensor, from_array
from pyro_models.errors import DataError

pd = pytest.importorskip("pandas")  # comes with arviz, and is no dependency of ours


@pytest.mark.parametrize(
    "x",
    [
        [[0, 1], [2, 3]],
        ((0.0, 1.0), (2.0, 3.0)),
        np.arange(4).reshape(2, 2),
        np.arange(4, dtype=np.uint8).reshape(2, 2),
        np.arange(4, dtype=np.uint16).reshape(2, 2),
        np.arange(4, dtype=">f8").reshape(2, 2),
        np.arange(4, dtype=np.float16).reshape(2, 2),
        np.asfortranarray(np.arange(4.0).reshape(2, 2)),
        np.ma.masked_array(np.arange(4).reshape(2, 2)),
        torch.arange(4).reshape(2, 2),
        [torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])],
        pd.DataFrame({"a": [0, 2], "b": [1.0, 3.0]}),
        pd.DataFrame({"a": pd.array([0, 2], dtype="Int64"), "b": [1, 3]}),
    ],
    ids=lambda x: f"{type(x).__name__}-{getattr(x, 'dtype', '')}",
)
def test_numbers_in_any_wrapping_become_float32(x):
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert torch.equal(as_tensor(x), expected)
    assert as_tensor(x).dtype == torch.float32


def test_a_float_tensor_keeps_its_type_and_others_take_the_one_asked_for():
    assert as_tensor(torch.zeros(2, 2, dtype=torch.float64)).dtype == torch.float64
    assert as_tensor(np.zeros((2, 2)), dtype=torch.float64).dtype == torch.float64
    assert as_tensor([[1]], dtype=torch.bfloat16).dtype == torch.bfloat16
    thirds = as_tensor(np.array([[1 / 3]]), dtype=torch.float64)
    assert thirds.item() == 1 / 3  # not rounded to float32 on the way


def test_arrays_are_copied_and_tensors_are_detached():
    array = np.zeros((2, 2), dtype=np.float32)
    x = as_tensor(array)
    array[:] = 1
    assert x.sum() == 0
    assert not as_tensor(torch.zeros(2, 2, requires_grad=True)).requires_grad


def test_a_read_only_array_is_taken_without_a_warning():
    array = np.zeros((2, 2), dtype=np.float32)
    array.flags.writeable = False
    assert as_tensor(array).shape == (2, 2)


def test_a_vector_becomes_a_column():
    assert torch.equal(as_tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]]))
    assert as_tensor(pd.Series([1, 2])).shape == (2, 1)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.array(3.0), "single number"),
        ([], "empty"),
        (np.zeros((0, 3)), r"empty, of shape \(0, 3\)"),
        (torch.zeros(3, 0), "empty"),
        ([[1, 2], [3]], "ragged"),
        ([torch.zeros(2), torch.zeros(3)], r"row 0 has shape \(2,\), row 1 has shape \(3,\)"),
        ([["a", "b"]], "not numeric"),
        (np.array([[None, 1]]), "object arrays"),
        (np.zeros(3, dtype=[("a", float)]), "records"),
        (np.zeros((2, 2), dtype=complex), "complex128"),
        (torch.zeros(2, 2, dtype=torch.complex64), "real numbers"),
        (torch.eye(2).to_sparse(), "to_dense"),
        (pd.DataFrame({"a": [1], "kind": ["x"]}), "column 'kind' is not numeric"),
        (
            pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}),
            r"\(a\).*fill in|column 'a'.*fill in",
        ),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "same name"),
        (pd.DataFrame(), "without columns"),
    ],
)
def test_what_is_no_data_is_refused(x, words):
    with pytest.raises(DataError, match=words):
        as_tensor(x)


def test_an_integer_type_is_no_type_for_data():
    with pytest.raises(DataError, match=r"torch\.float32"):
        as_tensor([[1]], dtype=torch.int64)


def test_nan_and_infinity_are_counted_and_placed():
    x = np.ones((5, 3))
    x[3, 1], x[4, 0], x[4, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match=r"3 values.*1 NaN, 2 infinite.*row 3, column 1 "):
        as_tensor(x)
    with pytest.raises(DataError, match=r"row 3, column 1 \(width\)"):
        as_tensor(pd.DataFrame(x, columns=["length", "width", "height"]))
    with pytest.raises(DataError, match=r"row 3, column 1 \(b\)"):
        from_array(x, feature_names=["a", "b", "c"])
    with pytest.raises(DataError, match=r"index \(3, 1, 0\)"):
        as_tensor(torch.from_numpy(x).unsqueeze(2))


def test_what_overflows_float32_is_refused_there_and_taken_in_float64():
    with pytest.raises(DataError, match=r"1 infinite.*as float32"):
        as_tensor([[1e300]])
    assert as_tensor([[1e300]], dtype=torch.float64).item() == 1e300


def test_a_masked_value_is_missing_not_the_number_under_the_mask():
    with pytest.raises(DataError, match="1 NaN"):
        as_tensor(np.ma.masked_array([[1, 2]], mask=[[False, True]]))


def test_labels_are_whole_numbers_or_text():
    assert as_labels([2, 0])[0].tolist() == [2, 0]
    assert as_labels(np.array([1.0, 0.0]))[0].dtype == torch.int64
    assert as_labels(torch.tensor([True, False]))[0].tolist() == [1, 0]
    assert as_labels(pd.Series(["b", "a"]))[1] == ("a", "b")
    assert as_labels(pd.Categorical(["b", "a"]))[1] == ("a", "b")
    numbers, names = as_labels(["b", "a"], label_names=["b", "a", "c"])
    assert (numbers.tolist(), names) == ([0, 1], ("b", "a", "c"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, 1.0], "fractions"),
        ([float("nan")], "NaN"),
        (np.eye(3), r"argmax\(1\)"),
        (np.array(["a", None], dtype=object), "row 1"),
        (np.array([1j]), "complex"),
    ],
)
def test_other_labels_are_refused(labels, words):
    with pytest.raises(DataError, match=words):
        as_labels(labels)


def test_text_without_a_name_is_refused():
    with pytest.raises(DataError, match=r"\['c'\] are not among"):
        as_labels(["a", "c"], label_names=["a", "b"])


def test_a_record_from_a_table_has_its_names():
    table = pd.DataFrame({"length": [1.0, 2.0], "width": [3.0, 4.0]})
    record = from_array(table, labels=["b", "a"], name="flowers")
    assert record.feature_names == ("length", "width")
    assert record.label_names == ("a", "b")
    assert repr(record) == "Data('flowers', x=(2, 2) float32, labels=2 classes)"
    assert (len(record), record.data_dim) == (2, 2)


def test_the_repr_counts_labels_without_names():
    assert "labels=2 classes" in repr(from_array(torch.zeros(3, 1), labels=[7, 7, 9]))
    assert repr(from_array([1.0])) == "Data('array', x=(1, 1) float32)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": [0]}, r"shape \(1,\)"),
        ({"labels": [0, 2], "label_names": ["a", "b"]}, "0 to 2, but there are 2 label_names"),
        ({"image_shape": (1, 2, 3)}, r"image_shape=\(1, 2, 3\)"),
        ({"image_shape": (2, 2)}, "channels, height, width"),
        ({"feature_names": ["a"]}, "1 feature_names"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        from_array(torch.zeros(2, 4), **options)


@pytest.mark.parametrize(
    "x", [torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_a_record_holds_floats_with_a_data_dimension(x):
    with pytest.raises(DataError, match="from_array"):
        Data(x)


def numbered(size=6):
    x = torch.arange(float(size)).unsqueeze(1)
    return Data(x, torch.arange(size), feature_names=("place",))


@pytest.mark.parametrize(
    "index",
    [
        [4, 0, -1],
        torch.tensor([4, 0, 5]),
        np.array([4, 0, 5], dtype=np.uint8),
    ],
)
def test_a_subset_keeps_order_and_labels(index):
    part = numbered().subset(index)
    assert part.x.squeeze(1).tolist() == [4, 0, 5]
    assert part.labels.tolist() == [4, 0, 5]
    assert part.feature_names == ("place",)


def test_a_subset_by_mask_or_slice():
    assert numbered().subset(numbered().labels > 3).labels.tolist() == [4, 5]
    assert numbered().subset(slice(0, None, 2)).labels.tolist() == [0, 2, 4]
    assert numbered().subset([True, False] * 3).labels.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([], "empty"),
        (slice(6, 9), "empty"),
        (torch.zeros(6, dtype=torch.bool), "empty"),
        ([6], "outside the 6 data"),
        ([-7], "outside the 6 data"),
        ([True], "mask has 1 entries"),
        (torch.zeros(1, 1, dtype=torch.int64), "one dimension"),
        (torch.tensor([0.0]), "whole numbers"),
    ],
)
def test_an_impossible_subset_is_refused(index, words):
    with pytest.raises(DataError, match=words):
        numbered().subset(index)


def test_map_keeps_what_still_holds():
    pictures = Data(torch.rand(2, 4), image_shape=(1, 2, 2), feature_names=tuple("abcd"))
    assert pictures.map(torch.neg).feature_names == tuple("abcd")
    shaped = pictures.map(lambda x: x.reshape(2, 1, 2, 2))
    assert (shaped.feature_names, shaped.image_shape) == (None, (1, 2, 2))
    halved = pictures.map(lambda x: x[:, :2])
    assert (halved.feature_names, halved.image_shape) == (None, None)
    with pytest.raises(DataError, match="2 data into 1"):
        pictures.map(lambda x: x[:1])


def test_a_record_survives_pickling():
    record = pickle.loads(pickle.dumps(data.iris()))
    assert torch.equal(record.x, data.iris().x)
    assert record.label_names == data.iris().label_names
