"""No pair is left out of the laws."""

import pytest
import torch

from pyro_models import pairs
from tests.contract.cases import BATCH, CASES, DIM, PLAIN


def test_every_pair_is_under_the_laws() -> None:
    # If this fails: add a case named as the pair to tests/contract/cases.py.
    assert set(PLAIN) == set(pairs.names())


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_same_each_time_and_its_data_fit(name: str) -> None:
    (first, x), (second, y) = CASES[name].make(), CASES[name].make()
    assert x.shape == (BATCH, DIM)
    assert torch.equal(x.nan_to_num(-99.0), y.nan_to_num(-99.0))  # NaN is a missing value
    one, other = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
