"""Pairs that learn from few labels under the command: whose labels they see, what is told of it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from pyro_models import pairs
from pyro_models.cli import catalogue, classes, defaults, fitted
from pyro_models.cli.recipe import Prepared, prepare
from pyro_models.cli.runs import RunFolder
from pyro_models.data import Data
from pyro_models.pairs import classify
from tests.test_cli import Called, call, without_time
from tests.test_cli_exact import ALWAYS, CODES, files, fit

PICTURES = {"classes.png", "samples_by_class.png"}


def prepared_by(folder: Path) -> tuple[Prepared, Tensor]:
    """The data of a run, and the labels that its pair has seen."""
    config = RunFolder(folder).config()
    prepared = prepare(config.source, config.seed, config.labelled)
    assert prepared.known is not None
    return prepared, prepared.known


def labels_of(part: Data) -> Tensor:
    assert part.labels is not None
    return part.labels


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, fit("semi_supervised_vae", folder, "--epochs", 2)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "flowers"
    options = ("--data", "iris", "--labelled", 0.2, "--epochs", 30)
    return folder, fit("semi_supervised_stick_breaking_vae", folder, *options)


def test_a_fit_leaves_every_file(digits, flowers):
    for (folder, called), pictures in (
        (digits, PICTURES),
        (flowers, {"classes.png", "sticks.png"}),
    ):
        assert called.status == 0, called.err
        assert files(folder) == ALWAYS | CODES | pictures


def test_a_tenth_of_the_labels_is_seen_as_many_of_each_class(digits):
    folder, called = digits
    assert RunFolder(folder).config().labelled == 0.1
    prepared, known = prepared_by(folder)
    assert torch.equal(known[known >= 0], labels_of(prepared.parts.train)[known >= 0])
    assert known[known >= 0].bincount().tolist() == [15, 15, 15, 15, 14, 14, 14, 14, 14, 14]
    assert "by 144 labels" in called.out


def test_what_is_told_right_is_counted_on_the_held_out_data(flowers):
    folder, called = flowers
    config = RunFolder(folder).config()
    prepared, known = prepared_by(folder)
    pair = fitted.read(RunFolder(folder), config, prepared, torch.device("cpu"))
    test, labels = prepared.parts.test, labels_of(prepared.parts.test)
    told = classify(pair.guide, prepared.seen(test)).argmax(-1)
    right = float((told == labels).double().mean())
    assert right > 0.6  # of three classes
    said = re.search(r"classes right (\S+)% by 24 labels \(nearest neighbour (\S+)%", called.out)
    assert said is not None, called.out
    assert float(said[1]) == pytest.approx(100 * right, abs=0.051)
    counts = classes.counts(pair, prepared)
    assert counts is not None
    for guess in range(3):
        for label in range(3):
            assert counts[guess, label] == ((told == guess) & (labels == label)).sum()
    # The simple ones see the same few labels, and scaled columns.
    x = prepared.parts.train.x
    scale = lambda part: (part - x.mean(0)) / x.std(0)  # noqa: E731
    nearest = KNeighborsClassifier(1).fit(scale(x)[known >= 0], known[known >= 0])
    share = (nearest.predict(scale(test.x)) == labels.numpy()).mean()
    assert float(said[2]) == pytest.approx(100 * share, abs=0.051)


def test_evaluate_sample_and_resume_find_the_fit(flowers, tmp_path):
    folder, called = flowers
    again = call("evaluate", folder)
    assert without_time(again.out) == without_time(called.out)
    assert call("sample", folder, "--n", 5, "--out", tmp_path / "x.npy").status == 0
    assert np.load(tmp_path / "x.npy").shape == (5, 4)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    more = call("fit", "--resume", copy, "--epochs", 32, "--quiet")
    assert more.status == 0, more.err
    history = json.loads((copy / "history.json").read_text())
    assert len(history) == 32


def test_a_file_says_itself_which_labels_are_known(tmp_path):
    generator = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = generator.normal(size=(60, 3)) + 4.0 * y[:, None]
    y = np.where(generator.random(60) < 0.5, y, -1)
    np.savez(tmp_path / "few.npz", x=x, y=y)
    called = fit(
        "semi_supervised_vae",
        tmp_path / "run",
        *("--data", tmp_path / "few.npz", "--key", "x", "--labels", "y", "--epochs", 5),
    )
    assert called.status == 0, called.err
    assert RunFolder(tmp_path / "run").config().labelled == 1.0
    prepared, known = prepared_by(tmp_path / "run")
    assert prepared.num_classes == 2
    assert torch.equal(known, labels_of(prepared.parts.train))
    assert f"by {int((known >= 0).sum())} labels" in called.out


def test_where_no_held_out_label_is_known_nothing_is_said_of_classes(tmp_path):
    generator = np.random.default_rng(0)
    y = np.full(60, -1)
    y[generator.choice(60, 6, replace=False)] = np.arange(6) % 2
    parts = [prepare_labels(tmp_path, y, seed) for seed in range(20)]
    seed = next(s for s, labels in enumerate(parts) if labels.max() < 0)
    called = fit(
        "semi_supervised_vae",
        tmp_path / "run",
        *("--data", tmp_path / "few.npz", "--key", "x", "--labels", "y"),
        *("--epochs", 1, "--seed", seed),
    )
    assert called.status == 0, called.err
    assert "classes right" not in called.out
    assert "classes.png" not in files(tmp_path / "run")


def prepare_labels(folder: Path, y: np.ndarray, seed: int) -> Tensor:
    """Labels of the test part of such a file."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(folder / "few.npz", x=x, y=y)
    source = catalogue.Source(str(folder / "few.npz"), key="x", labels="y")
    return labels_of(prepare(source, seed, 1.0).parts.test)


WRONG = [
    (("vae", "--labelled", "0.5"), "the pair 'vae' sees no labels; leave out --labelled"),
    (("semi_supervised_vae", "--labelled", "0"), "--labelled 0.0: give a share above 0"),
    (("semi_supervised_vae", "--labelled", "2"), "--labelled 2.0: give a share above 0"),
    (("semi_supervised_vae", "--data", "plain.npy"), "has none; name their column"),
    (("semi_supervised_vae", "--data", "none.npz", "--key", "x", "--labels", "y"), "no label is"),
    (("semi_supervised_vae", "--data", "one.npz", "--key", "x", "--labels", "y"), "number the cl"),
    (("semi_supervised_vae", "--data", "same.npz", "--key", "x", "--labels", "y"), "two classes"),
    (("semi_supervised_vae", "--data", "text.csv", "--labels", "y"), "are text, which has no -1"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.save("plain.npy", x)
    np.savez("none.npz", x=x, y=np.full(50, -1))
    np.savez("one.npz", x=x, y=1 + np.arange(50) % 3)
    np.savez("same.npz", x=x, y=np.zeros(50, int))
    rows = [
        f"{row[0]},{row[1]},{kind}" for row, kind in zip(x, ["a", "b", "-1"] * 17, strict=False)
    ]
    Path("text.csv").write_text("\n".join(["u,v,y", *rows]))
    before = files(tmp_path)
    called = call("fit", *arguments)
    assert called.status == 2
    assert called.err.startswith("error: ")
    assert called.err.count("\n") == 1
    assert said in called.err
    assert files(tmp_path) == before


def test_every_pair_but_regression_has_a_default_on_embedded_data():

    for name in set(pairs.names()) - {"regression"}:
        assert defaults.of(name).data in catalogue.EMBEDDED


def test_a_classifier_is_shown_pixels_and_not_standardised_noise(digits, flowers):
    prepared, _ = prepared_by(digits[0])
    restored = prepared.shown_to_guide()
    assert restored is not None
    test = prepared.parts.test
    # Dequantised: each level of grey is spread over a seventeenth.
    found = restored(prepared.seen(test))
    assert ((found >= test.x * 16 / 17 - 1e-5) & (found <= test.x * 16 / 17 + 1 / 17 + 1e-5)).all()
    assert prepared_by(flowers[0])[0].shown_to_guide() is None
