"""Pictures: what they show, that nothing overlaps, and that no global state is touched."""

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from pyro_models import plots
from pyro_models.errors import DataError, OptionError
from pyro_models.plots import latent

GREY_SHAPE, COLOUR_SHAPE = (5, 4), (3, 5, 4)


def rows(count, width, seed=0):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


def some_labels(count, classes):
    return torch.arange(count) % classes


CASES = {
    "loss": lambda: plots.loss(
        range(1, 2001), [-1e4, *np.linspace(-90, -30, 1999)], [2000], [-31.0]
    ),
    "loss, one step": lambda: plots.loss([1], [-3.0]),
    "samples, grey": lambda: plots.samples(
        rows(70, 20), rows(80, 20, 1), image_shape=GREY_SHAPE, title="Samples, z from the prior"
    ),
    "samples, colour": lambda: plots.samples(rows(2, 60), rows(3, 60), image_shape=COLOUR_SHAPE),
    "samples, one feature": lambda: plots.samples(rows(50, 1), rows(50, 1, 1)),
    "samples, few features": lambda: plots.samples(rows(50, 4), rows(50, 4, 1)),
    "samples, many features": lambda: plots.samples(rows(50, 64), rows(50, 64, 1)),
    "reconstructions, grey": lambda: plots.reconstructions(
        rows(47, 20), rows(47, 20, 1), image_shape=GREY_SHAPE
    ),
    "reconstructions, one image": lambda: plots.reconstructions(
        rows(1, 60), rows(1, 60), image_shape=COLOUR_SHAPE
    ),
    "reconstructions, few features": lambda: plots.reconstructions(rows(9, 2), rows(9, 2, 1)),
    "reconstructions, many features": lambda: plots.reconstructions(rows(9, 64), rows(9, 64, 1)),
    "latent space, 1": lambda: plots.latent_space(rows(60, 1), some_labels(60, 3)),
    "latent space, 2": lambda: plots.latent_space(rows(60, 2), some_labels(60, 10)),
    "latent space, 2, no labels": lambda: plots.latent_space(rows(60, 2)),
    "latent space, 5": lambda: plots.latent_space(rows(60, 5), some_labels(60, 20)),
    "traversal, grey": lambda: plots.traversal(
        rows(66, 20).reshape(6, 11, 20), rows(6, 20), image_shape=GREY_SHAPE
    ),
    "traversal, few features": lambda: plots.traversal(rows(66, 4).reshape(6, 11, 4), rows(6, 4)),
    "traversal, many features": lambda: plots.traversal(
        rows(66, 64).reshape(6, 11, 64), rows(6, 64)
    ),
}


def drawn_texts(picture):
    """All lettering that is drawn: ticks outside the view exist, but are not."""
    unseen = set()
    for axes in picture.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    unseen |= {tick.label1, tick.label2}
    return [
        text
        for text in picture.findobj(Text)
        if text not in unseen and text.get_visible() and text.get_text().strip()
    ]


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_lettering_stays_inside_and_never_overlaps(make):
    picture = make()
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(picture)]
    assert boxes
    for text, box in boxes:
        assert -1 <= box.x0 <= box.x1 <= width + 1, text
        assert -1 <= box.y0 <= box.y1 <= height + 1, text
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or along <= 1, (first, second)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_every_picture_has_a_title_and_is_written(make, tmp_path):
    picture = make()
    assert picture.get_suptitle()
    path = tmp_path / "picture.png"
    picture.savefig(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert picture._repr_png_()[:4] == b"\x89PNG"


def test_loss_shows_units_and_does_not_let_the_first_step_flatten_the_rest():
    axes = plots.loss(range(1, 101), [-1e6, *np.linspace(-50, -30, 99)]).axes[0]
    assert axes.get_ylabel() == "ELBO (nats per datum)"
    assert axes.get_ylim()[0] > -100


def test_samples_of_images_are_the_pixels_given():
    x = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    picture = plots.samples(1 - x, x, image_shape=(2, 2))
    sheets = [np.asarray(axes.images[0].get_array()) for axes in picture.axes]
    np.testing.assert_allclose(sheets[0][..., 0], [[0.0, 0.25], [0.5, 1.0]])
    np.testing.assert_allclose(sheets[1][..., 0], [[1.0, 0.75], [0.5, 0.0]])


def test_colour_images_keep_channels_apart():
    x = torch.zeros(1, 3, 2, 2)
    x[0, 1] = 1.0
    picture = plots.samples(x.reshape(1, -1), x.reshape(1, -1), image_shape=(3, 2, 2))
    sheet = np.asarray(picture.axes[0].images[0].get_array())
    np.testing.assert_allclose(sheet, np.broadcast_to([0.0, 1.0, 0.0], (2, 2, 3)))


def test_latent_space_has_one_legend_entry_a_class_and_names_them():
    axes = plots.latent_space(rows(30, 2), some_labels(30, 3), label_names=["a", "b", "c"]).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert sum(np.asarray(line.get_xdata()).size for line in axes.lines) == 30


def test_two_latent_dimensions_are_drawn_as_they_are():
    mean = rows(10, 2)
    line = plots.latent_space(mean).axes[0].lines[0]
    np.testing.assert_allclose(np.stack(line.get_data(), axis=1), mean.numpy())


def test_tsne_repeats_from_its_seed_and_survives_a_collapsed_posterior():
    mean = rows(40, 3)
    first, second = (
        np.stack(plots.latent_space(mean, seed=3).axes[0].lines[0].get_data()) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert plots.latent_space(torch.zeros(40, 3)).axes[0].lines


def test_large_sets_are_thinned_before_tsne():
    kept = latent._choice(np.zeros((5000, 3)), seed=0)
    assert len(kept) == latent.MAX_TSNE_POINTS
    assert len(np.unique(kept)) == len(kept)
    assert len(latent._choice(np.zeros((5000, 2)), seed=0)) == 5000


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: plots.loss([], []), DataError, "fit for at least one step"),
        (lambda: plots.loss([1], [1.0, 2.0]), DataError, "equal length"),
        (lambda: plots.samples(rows(3, 4), rows(3, 5)), DataError, "same space"),
        (
            lambda: plots.samples(rows(3, 4), rows(3, 4), image_shape=(3, 3)),
            DataError,
            "flattened from",
        ),
        (
            lambda: plots.samples(rows(3, 4), rows(3, 4), image_shape=(2, 1, 2)),
            OptionError,
            "1 or 3 channels",
        ),
        (lambda: plots.samples(rows(3, 4), rows(3, 4), names=["a"]), OptionError, "one for each"),
        (lambda: plots.reconstructions(rows(3, 4), rows(2, 4)), DataError, "each datum"),
        (lambda: plots.latent_space(rows(9, 2), some_labels(8, 2)), DataError, "one label a datum"),
        (lambda: plots.latent_space(rows(3, 3)), DataError, "at least 5"),
        (lambda: plots.latent_space(rows(9, 2) / 0), DataError, "NaN or infinite"),
        (lambda: plots.latent_space(torch.zeros(0, 2)), DataError, "at least one datum"),
        (lambda: plots.traversal(rows(3, 4), rows(3, 4)), DataError, "steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_fix(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_settings_of_matplotlib_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    CASES["samples, few features"]()._repr_png_()
    assert dict(matplotlib.rcParams) == before


def test_import_leaves_pyplot_and_the_backend_alone():
    code = (
        "import sys, pyro_models.plots; import matplotlib; "
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
