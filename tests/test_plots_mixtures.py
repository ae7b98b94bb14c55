"""Pictures of mixtures and of criteria: what they show, and that lettering keeps apart."""

import math

import numpy as np
import pytest
import torch
from matplotlib.patches import Ellipse

from pyro_models import plots
from pyro_models.errors import DataError
from tests.test_plots import test_lettering_stays_inside_and_never_overlaps as check_lettering

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
WEIGHTS = torch.tensor([0.5, 0.3, 0.197, 0.003])
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
COVARIANCES = torch.diag_embed(torch.tensor([[1.0, 4.0], [4.0, 1.0], [1.0, 1.0], [1.0, 1.0]]))
SHARES = torch.tensor([[0.9, 0.1, 0.0]] * 3 + [[0.2, 0.8, 0.0]] * 7 + [[0.6, 0.4, 0.0]])

CASES = {
    "components, 1": lambda: plots.components(
        X[:, :1], WEIGHTS, MEANS[:, :1], COVARIANCES[:, :1, :1]
    ),
    "components, 2": lambda: plots.components(
        X[:, :2], WEIGHTS, MEANS, COVARIANCES, torch.arange(60) % 3, names=["a", "b"]
    ),
    "components, 4": lambda: plots.components(
        X, WEIGHTS[:2], 2 * X[:2], torch.eye(4).expand(2, 4, 4), torch.arange(60) % 12
    ),
    "responsibilities": lambda: plots.responsibilities(SHARES),
    "responsibilities, labels": lambda: plots.responsibilities(
        SHARES, torch.arange(11) % 3, label_names=["setosa", "versicolor", "virginica"]
    ),
    "responsibilities, many": lambda: plots.responsibilities(
        torch.randn(300, 50, generator=GENERATOR).mul(9).softmax(1), torch.arange(300) % 10
    ),
    "clusters": lambda: plots.clusters(SHARES),
    "clusters, many": lambda: plots.clusters(
        torch.randn(300, 50, generator=GENERATOR).mul(9).softmax(1)
    ),
    "criteria": lambda: plots.criteria(
        ["1", "2", "3"],
        {"training log p(x)": [-3.0, -2.0, -1.5], "held-out log p(x)": [-3.0, -2.0, -2.5]},
        {"held-out log p(x)": [0.1, 0.2, 0.3]},
    ),
    "criteria, long names": lambda: plots.criteria(
        [f"mixture of {k} components" for k in range(6)], {"leave one out": [None, *range(5)]}
    ),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_lettering(make):
    picture = make()
    assert picture.get_suptitle()
    check_lettering(lambda: picture)


def test_ellipses_are_one_and_two_deviations_and_weights_stand_in_them():
    axes = CASES["components, 2"]().axes[0]
    drawn = {
        (round(e.width, 4), round(e.height, 4), tuple(np.round(e.center, 4)))
        for e in axes.patches
        if isinstance(e, Ellipse)
    }
    # The first is narrow in x and wide in y: turned, so that the width is the longer axis.
    assert {(4.0, 2.0, (-2.0, 0.0)), (8.0, 4.0, (-2.0, 0.0)), (2.0, 2.0, (0.0, 3.0))} <= drawn
    upright = next(e for e in axes.patches if isinstance(e, Ellipse) and e.center[0] == -2)
    assert abs(math.sin(math.radians(upright.angle))) == pytest.approx(1.0)
    assert [t.get_text() for t in axes.texts] == ["50 %", "30 %", "20 %"]
    assert {e.center[0] for e in axes.patches if isinstance(e, Ellipse)} == {-2.0, 0.0, 2.0}


def test_an_ellipse_holds_the_data_of_its_component():
    covariance = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    x = torch.randn(4000, 2, generator=GENERATOR) @ torch.linalg.cholesky(covariance).T
    axes = plots.components(x, torch.ones(1), torch.zeros(1, 2), covariance[None]).axes[0]
    outer = max((e for e in axes.patches if isinstance(e, Ellipse)), key=lambda e: e.width)
    inside = outer.get_patch_transform().inverted().transform(x.numpy())
    share = float(((inside**2).sum(1) < 1).mean())
    exact = 1 - math.exp(-2)  # two deviations in two dimensions
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000)


def test_many_dimensions_are_seen_where_data_vary_most():
    stretched = X * torch.tensor([0.1, 5.0, 0.1, 2.0])
    axes = plots.components(
        stretched, torch.ones(1), stretched.mean(0)[None], torch.cov(stretched.T)[None]
    ).axes[0]
    points = np.stack(axes.lines[0].get_data(), 1)
    np.testing.assert_allclose(points.var(0).sum(), stretched.numpy().var(0).sum(), rtol=0.01)
    wide = max(e.width for e in axes.patches if isinstance(e, Ellipse))
    assert wide == pytest.approx(4 * float(points[:, 0].std(ddof=1)), rel=1e-3)


def test_one_dimension_shows_densities_that_hold_their_weights():
    axes = CASES["components, 1"]().axes[0]
    for line, weight in zip(axes.lines, (0.5, 0.3, 0.197), strict=False):
        mean, scale = {0.5: (-2.0, 1.0), 0.3: (2.0, 2.0), 0.197: (0.0, 1.0)}[weight]
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        exact = weight * np.exp(-0.5 * ((x - mean) / scale) ** 2) / (scale * math.sqrt(math.tau))
        np.testing.assert_allclose(y, exact, rtol=1e-5)


def test_responsibilities_are_sorted_by_component_and_labels_go_along():
    labels = torch.arange(11)
    picture = plots.responsibilities(SHARES, labels)
    strip, axes = picture.axes[:2]
    sheet = np.asarray(axes.images[0].get_array())
    # Component 2 explains most, 7 data at 0.8; then component 1, at 0.9 before 0.6.
    # Component 3 explains nothing.
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "1"]
    assert axes.get_xlabel().endswith("(1 of 3 components hold next to nothing)")
    np.testing.assert_allclose(sheet[0], [0.8] * 7 + [0.1] * 3 + [0.4], rtol=1e-6)
    np.testing.assert_allclose(sheet[1, -4:], [0.9] * 3 + [0.6], rtol=1e-6)
    colours = np.asarray(strip.images[0].get_array())
    assert colours.shape == (1, 11, 3)
    legend = picture.legends[0]
    assert len(legend.get_texts()) == 11


def bars(axes):
    """Height by place."""
    return {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in axes.patches}


def test_clusters_count_components_with_data():
    picture = plots.clusters(torch.eye(5)[[0, 0, 0, 3, 3, 4]])
    assert picture.get_suptitle() == "3 of 5 components hold data"
    assert list(bars(picture.axes[0]).values()) == pytest.approx([3.0, 2.0, 1.0, 0.0, 0.0])
    assert bars(picture.axes[1]) == {3.0: 1.0}


def test_clusters_know_how_uncertain_their_number_is():
    # One datum is split: with probability 0.3 it opens a second component.
    picture = plots.clusters(torch.tensor([[1.0, 0.0], [0.7, 0.3]]))
    assert bars(picture.axes[1])[2.0] == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 200))


def test_criteria_ring_the_best():
    axes = CASES["criteria"]().axes[0]
    rings = [tuple(np.concatenate(x.get_data())) for x in axes.lines if x.get_markersize() == 11]
    assert rings == [(2.0, -1.5), (1.0, -2.0)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: plots.components(X, WEIGHTS, MEANS, COVARIANCES), "do not fit"),
        (lambda: plots.components(X / 0, WEIGHTS, MEANS, COVARIANCES), "NaN or infinite"),
        (
            lambda: plots.components(X[:, :2], WEIGHTS, MEANS, COVARIANCES, torch.arange(3)),
            "one label a datum",
        ),
        (lambda: plots.responsibilities(SHARES, torch.arange(3)), "one label a datum"),
        (lambda: plots.clusters(torch.zeros(0, 3)), "at least one datum"),
        (lambda: plots.criteria(["a"], {}), "no value to draw"),
        (lambda: plots.criteria(["a"], {"b": [1.0, 2.0]}), "2 values for 1 models"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, says):
    with pytest.raises(DataError, match=says):
        make()
