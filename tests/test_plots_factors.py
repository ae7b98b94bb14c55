"""Pictures of linear latent models: what they show, and that lettering keeps apart."""

import numpy as np
import pytest
import torch

from pyro_models import plots
from pyro_models.errors import DataError, OptionError
from tests.test_plots import test_lettering_stays_inside_and_never_overlaps as check_lettering

W = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
VARIANCES = torch.tensor([5.0, 3.0, 1.0, 0.6, 0.5, 0.4])

CASES = {
    "loadings, images": lambda: plots.loadings(W, image_shape=(5, 4)),
    "loadings, many images": lambda: plots.loadings(WIDE, image_shape=(1, 8, 8)),
    "loadings, one image": lambda: plots.loadings(W[:, :1], image_shape=(4, 5)),
    "loadings, table": lambda: plots.loadings(W, names=[f"measurement {n}" for n in range(20)]),
    "loadings, one latent": lambda: plots.loadings(W[:, :1]),
    "loadings, many": lambda: plots.loadings(WIDE),
    "scree": lambda: plots.scree(
        torch.tensor([5.0, 3.0]), data_variances=VARIANCES, noise_variance=torch.tensor(0.625)
    ),
    "scree, ARD": lambda: plots.scree(
        torch.tensor([3.0, 5.0]),
        data_variances=VARIANCES,
        noise_variance=torch.tensor(0.6),
        relevance=torch.tensor([0.5, 900.0, 0.2]),
        num_relevant=2,
    ),
    "scree, alone": lambda: plots.scree(torch.tensor([5.0])),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_lettering(make):
    picture = make()
    assert picture.get_suptitle()
    check_lettering(lambda: picture)


def test_images_are_columns_on_one_scale_around_zero():
    picture = CASES["loadings, images"]()
    sheets = [axes.images[0] for axes in picture.axes[:3]]
    for column, sheet in enumerate(sheets):
        np.testing.assert_allclose(
            np.asarray(sheet.get_array()), W[:, column].reshape(5, 4).numpy()
        )
        most = float(W.abs().max())
        assert sheet.get_clim() == pytest.approx((-most, most))


def test_many_columns_are_cut_and_that_is_said():
    assert "(the first 24 of 30)" in CASES["loadings, many images"]().get_suptitle()
    assert "30 of 64 features, the first 16 of 30 latents" in (
        CASES["loadings, many"]().get_suptitle()
    )


def test_a_table_writes_its_numbers():
    axes = CASES["loadings, table"]().axes[0]
    written = [text.get_text() for text in axes.texts]
    assert len(written) == W.numel()
    assert written[0] == f"{float(W[0, 0]):z.2f}"
    assert axes.get_yticklabels()[3].get_text() == "measurement 3"


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_scree_shows_both_variances_and_the_floor():
    axes = CASES["scree"]().axes[0]
    assert heights(axes) == [5.0, 3.0]
    data, floor = axes.lines
    np.testing.assert_allclose(np.asarray(data.get_ydata(), float), VARIANCES.numpy())
    assert set(np.asarray(floor.get_ydata())) == {0.625}


def test_relevance_stands_below_and_what_is_off_is_grey():
    upper, lower = CASES["scree, ARD"]().axes
    assert heights(upper) == [5.0, 3.0]
    assert lower.get_title("left").endswith("keeps 2 of 3")
    assert heights(lower) == pytest.approx([0.2, 0.5, 900.0])
    used, also, off = (bar.get_facecolor() for bar in lower.patches)
    assert used == also != off


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: plots.loadings(W / 0), DataError, "NaN or infinite"),
        (lambda: plots.loadings(W, image_shape=(3, 3)), DataError, "no images"),
        (lambda: plots.loadings(WIDE[:60], image_shape=(3, 5, 4)), OptionError, "grey image"),
        (lambda: plots.loadings(W, names=["a"]), OptionError, "one for each"),
        (lambda: plots.scree(torch.zeros(2)), DataError, "no component explains"),
        (lambda: plots.scree(torch.ones(2) / 0), DataError, "NaN or infinite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
