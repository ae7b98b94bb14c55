"""Pictures of clusters: what they show, and that lettering keeps apart."""

import numpy as np
import pytest
import torch

from pyro_models import plots
from pyro_models.errors import DataError
from tests.test_plots import test_lettering_stays_inside_and_never_overlaps as check_lettering

COUNTS = torch.tensor([[1, 20, 0], [0, 2, 30], [9, 0, 0], [2, 2, 2]])
ASSIGNED = torch.tensor([1, 2, 0, -1])
CASES = {
    "confusion": lambda: plots.confusion(COUNTS, ASSIGNED),
    "confusion, names": lambda: plots.confusion(
        COUNTS, ASSIGNED, label_names=["setosa", "versicolor", "virginica"]
    ),
    "confusion, many": lambda: plots.confusion(torch.arange(1000).reshape(50, 20)),
    "samples by cluster": lambda: plots.samples_by_cluster(
        torch.rand(10, 8, 16), image_shape=(4, 4), sizes=torch.full((10,), 180.0)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_lettering(name: str) -> None:
    check_lettering(CASES[name])


def test_what_is_right_lies_on_the_diagonal() -> None:
    axes = plots.confusion(COUNTS, ASSIGNED).axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.tolist() == [[9, 0, 0], [1, 20, 0], [0, 2, 30], [2, 2, 2]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["3", "1", "2", "4"]
    assert [text.get_text() for text in axes.texts] == ["9", "1", "20", "2", "30", "2", "2", "2"]


def test_a_row_holds_the_images_of_one_cluster() -> None:
    means = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
    axes = plots.samples_by_cluster(means, image_shape=(2, 2)).axes[0]
    sheet = np.asarray(axes.images[0].get_array())[..., 0]
    assert (sheet[:2, :2] == 0).all()
    assert (sheet[-2:] == 1).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"assigned has shape \(2,\) for 4"):
        plots.confusion(COUNTS, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="one a cluster"):
        plots.samples_by_cluster(torch.rand(2, 3, 4), image_shape=(2, 2), sizes=torch.ones(3))
