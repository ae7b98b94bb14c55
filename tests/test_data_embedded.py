"""The sets that come with scikit-learn, held against scikit-learn's own loaders."""

import numpy as np
import pytest
import sklearn.datasets
import torch

from pyro_models import data


def test_digits_are_grey_pictures_in_the_unit_interval():
    digits = data.digits()
    source = sklearn.datasets.load_digits()
    assert digits.x.shape == (1797, 64)
    assert digits.x.dtype == torch.float32
    assert digits.image_shape == (1, 8, 8)
    assert digits.label_names == tuple("0123456789")
    np.testing.assert_array_equal((digits.x * 16).reshape(-1, 8, 8).numpy(), source.images)
    assert digits.labels is not None
    assert digits.labels.tolist() == source.target.tolist()
    assert (digits.x.min(), digits.x.max()) == (0, 1)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_tables_are_as_scikit_learn_has_them(name):
    ours = getattr(data, name)()
    theirs = getattr(sklearn.datasets, f"load_{name}")()
    np.testing.assert_array_equal(ours.x.numpy(), theirs.data.astype(np.float32))
    assert ours.labels.tolist() == theirs.target.tolist()
    assert ours.label_names == tuple(theirs.target_names)
    assert ours.feature_names == tuple(theirs.feature_names)
    assert ours.name == name


def test_loading_draws_no_random_numbers():
    before = torch.get_rng_state()
    data.digits()
    data.split(data.iris())
    assert torch.equal(before, torch.get_rng_state())
