"""Splits: every datum in exactly one part, of the size asked for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_models import data
from pyro_models.data import Data, hide_labels, holdout, split
from pyro_models.errors import DataError, OptionError

SIZES = st.one_of(st.floats(0.01, 0.6), st.integers(1, 40))


def numbered(size, labels=None):
    return Data(torch.arange(float(size)).unsqueeze(1), labels)


def places(part):
    return part.x.squeeze(1).long().tolist()


def labels_of(part):
    return part.labels


def wanted(size, total):
    return size if isinstance(size, int) else round(size * total)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=120),
    validation=SIZES,
    test=SIZES,
    seed=st.integers(0, 2**32),
    stratify=st.booleans(),
)
def test_every_datum_is_in_exactly_one_part(labels, validation, test, seed, stratify):
    total = len(labels)
    counts = [wanted(validation, total), wanted(test, total)]
    whole = numbered(total, torch.tensor(labels))
    if min(counts) < 1 or sum(counts) >= total:
        with pytest.raises(DataError, match=r"empty|none is left"):
            split(whole, validation, test, seed, stratify=stratify)
        return
    parts = split(whole, validation, test, seed, stratify=stratify)
    assert [len(parts.validation), len(parts.test)] == counts
    everyone = places(parts.train) + places(parts.validation) + places(parts.test)
    assert sorted(everyone) == list(range(total))
    for part in (parts.train, parts.validation, parts.test):
        assert labels_of(part).tolist() == [labels[place] for place in places(part)]


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=120),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32),
)
def test_strata_have_their_share_to_within_one(labels, share, seed):
    total, count = len(labels), round(share * len(labels))
    if not 0 < count < total:
        return
    whole = numbered(total, torch.tensor(labels))
    part = holdout(whole, share, seed, stratify=True).held_out
    for label in set(labels):
        exact = labels.count(label) * count / total
        assert math.floor(exact) <= int((labels_of(part) == label).sum()) <= math.ceil(exact)


def test_three_way_strata_of_digits_have_their_share():
    digits = data.digits()
    parts = split(digits, 0.2, 0.3, stratify=True)
    for label in range(10):
        all_of_it = int((labels_of(digits) == label).sum())
        assert abs(int((labels_of(parts.validation) == label).sum()) - 0.2 * all_of_it) < 1.1
        assert abs(int((labels_of(parts.test) == label).sum()) - 0.3 * all_of_it) < 1.6


def test_the_seed_decides_and_nothing_else():
    whole = numbered(100)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = split(whole, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = split(whole, seed=3)
    other = split(whole, seed=4)
    assert places(first.test) == places(again.test)
    assert places(first.train) == places(again.train)
    assert places(first.test) != places(other.test)


def test_each_datum_is_as_likely_to_be_held_out():
    # 2000 draws of 3 in 10: each place is held out Binomial(2000, 0.3) times, here within 4.5
    # standard errors for all ten.
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[places(holdout(numbered(10), 3, seed).held_out)] += 1
    assert ((counts - 600).abs() < 4.5 * math.sqrt(2000 * 0.3 * 0.7)).all()


@pytest.mark.parametrize("stratify", [False, True])
def test_parts_of_a_sorted_set_are_mixed(stratify):
    parts = split(data.iris(), stratify=stratify)
    assert set(labels_of(parts.train)[:20].tolist()) == {0, 1, 2}
    assert parts.validation.feature_names == data.iris().feature_names


@pytest.mark.parametrize("size", [-1, -0.1, 1.0, 1.5, math.nan, math.inf, True])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(OptionError, match="validation="):
        split(numbered(10), validation=size)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"validation": 0}, "'validation' empty"),
        ({"test": 0.0}, "'test' empty"),
        ({"test": 0.01}, r"test=0.01 of 10 data"),
        ({"validation": 0.5, "test": 0.5}, r"5 \+ 5 data of 10.*none is left for train"),
        ({"validation": 20}, "20 . 1 data of 10"),
    ],
)
def test_an_empty_part_is_refused(sizes, words):
    with pytest.raises(DataError, match=words):
        split(numbered(10), **sizes)


def test_strata_need_labels():
    with pytest.raises(OptionError, match="no labels"):
        split(numbered(10), stratify=True)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=2, max_size=120),
    keep=SIZES,
    seed=st.integers(0, 2**32),
)
def test_few_labels_are_left_and_as_many_of_each_class(labels, keep, seed):
    given_ = torch.tensor(labels)
    known = given_[given_ >= 0]
    least = len(known.unique())
    if len(known) == 0 or max(least, wanted(keep, len(known))) > len(known):
        with pytest.raises(DataError):
            hide_labels(given_, keep, seed)
        return
    left = hide_labels(given_, keep, seed)
    shown = left >= 0
    assert torch.equal(left[shown], given_[shown])
    assert int(shown.sum()) == max(least, wanted(keep, len(known)))
    counts = {c: (int((left == c).sum()), int((known == c).sum())) for c in known.unique().tolist()}
    most = max(kept for kept, _ in counts.values())
    # A class has fewer than the most, less one, only where it has no more.
    assert all(kept >= 1 and (kept >= most - 1 or kept == own) for kept, own in counts.values())
    assert torch.equal(left, hide_labels(given_, keep, seed))


def test_the_seed_decides_whose_labels_are_left():
    labels = torch.arange(100) % 10
    assert not torch.equal(hide_labels(labels, 0.1, 0), hide_labels(labels, 0.1, 1))


@pytest.mark.parametrize("keep", [-1, 1.5, True, math.nan])
def test_what_is_no_number_of_labels_is_refused(keep):
    with pytest.raises(OptionError, match="keep"):
        hide_labels(torch.zeros(10, dtype=torch.int64), keep)


def test_labels_of_any_whole_type_are_taken_and_others_refused():
    labels = torch.arange(20) % 2
    for given_ in (labels.to(torch.uint8), labels.double()):
        assert torch.equal(hide_labels(given_, 4), hide_labels(labels, 4))
    with pytest.raises(DataError, match="fractions"):
        hide_labels(labels + 0.5)
    with pytest.raises(DataError, match="expected"):
        hide_labels(labels.reshape(4, 5))
