"""The benchmarks of sticks, clusters and few labels run on made data, and score as they say."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tests.test_benchmarks import BENCHMARKS, script, write_images
from tests.test_data_images import idx, write

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no benchmarks beside the tests")
TINY = ("--hidden", 8, "--threads", 1, "--eager")

CODES = [("sticks", "pi"), ("sticks", "v"), ("gaussian", "z")]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("harness.scores")


def write_fashion(folder: Path) -> None:
    """Two kinds of noise, light and dark, in the files of Fashion-MNIST."""
    generator = np.random.default_rng(0)
    contents = {}
    for name, size in (("train", 200), ("t10k", 60)):
        labels = np.arange(size) % 2
        grey = generator.integers(0, 100, (size, 28, 28)) + 120 * labels[:, None, None]
        contents[f"{name}-images-idx3-ubyte"] = idx(grey)
        contents[f"{name}-labels-idx1-ubyte"] = idx(labels)
    write(folder / "FashionMNIST" / "raw", contents)


def test_neighbours_vote_as_in_scikit_learn(scores: Any) -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(300, 2)), generator.normal(size=(100, 2))
    labels = (train[:, 0] > 0) + (train[:, 1] > 0.5) + generator.integers(0, 2, 300)
    truth = generator.integers(0, 4, 100)
    found = scores.neighbour_errors(train, labels, test, truth)
    for count in (3, 5, 10):
        theirs = KNeighborsClassifier(count).fit(train, labels).score(test, truth)
        assert found[count] == pytest.approx(1 - theirs)


def test_clusters_are_scored_under_the_best_assignment(scores: Any) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    clusters = np.array([2, 2, 1, 1, 1, 1])  # 2 is label 0, 1 is label 1: four are right
    found = scores.cluster_scores(clusters, labels)
    assert (found["accuracy"], found["used"]) == (pytest.approx(4 / 6), 2)
    shares = np.eye(3)[clusters]
    shares[5, 1] = 0.9
    shares[3, 1] = 0.95
    # Cluster 0 takes datum 0's label, 1 that of datum 2, the first of the surest.
    assert scores.exemplar_accuracy(shares, labels) == pytest.approx(3 / 6)


@pytest.mark.slow
def test_sticks_runs_on_made_data_and_goes_on(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "binarized_mnist").mkdir()
    write_images(tmp_path / "binarized_mnist")
    options = ("--data", tmp_path, "--out", tmp_path, "--latents", 6, *TINY)
    latents = ("latents", "--sets", "digits", "fashion", "--epochs", 2, "--limit", 150)
    script("sticks.py", *latents, "--num-samples", 10, *options)
    result = json.loads((tmp_path / "sticks-cpu.json").read_text())
    for entry in result["latents"].values():
        names = {f"{code}, {how} of {site}" for code, site in CODES for how in ("mean", "draw")}
        assert set(entry["neighbour_error"]) == {"pixels", *names}
        assert all(math.isfinite(run["nll"]) for run in entry["runs"].values())
    # Light and dark are told apart by pixels without an error.
    assert result["latents"]["fashion"]["neighbour_error"]["pixels"]["3"] == 0
    stability = ("stability", "--epochs", 2, "--rates", 3e-3, *options)
    script("sticks.py", *stability, "--seeds", 0)
    printed = script("sticks.py", *stability, "--seeds", 0, 1)
    result = json.loads((tmp_path / "sticks-cpu.json").read_text())
    runs = result["stability"]
    assert len(runs) == 2
    assert "latents" in result
    assert printed.count(": finite") == 2
    for run in runs.values():
        assert run["finite"]
        # The pixels' mean is learned at least: its entropy is 392 nats.
        assert -450 < run["validation_bound"] < -350


@pytest.mark.slow
def test_clusters_runs_on_made_data(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    options = ("--data", tmp_path, "--out", tmp_path, "--epochs", 1, 1, "--limit", 200, *TINY)
    script("clusters.py", "digits", "fashion", "--seeds", 2, "--num-samples", 3, *options)
    result = json.loads((tmp_path / "clusters-cpu.json").read_text())
    assert set(result["digits"]["runs"]) == {"k-means, pixels", "mixture, PCA", "gmvae", "vade"}
    for name in ("digits", "fashion"):
        for runs in result[name]["runs"].values():
            assert len(runs) == 2
            for run in runs:
                assert 0.1 <= run["accuracy"] <= 1
    assert result["digits"]["summary"]["k-means, pixels"]["accuracy"]["mean"] > 0.6


@pytest.mark.slow
def test_semi_supervised_runs_for_a_few_steps(tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--splits", 2, "--epochs", 2, "--shares", 0.1, 0.01, *TINY)
    script("semi_supervised.py", *options)
    result = json.loads((tmp_path / "semi_supervised-cpu.json").read_text())
    found = result["splits"]
    assert list(found) == [
        f"{share} of labels, split {seed}, 2 epochs" for share in (0.1, 0.01) for seed in range(2)
    ]
    for entry in found.values():
        assert {"semi_supervised_vae", "semi_supervised_stick_breaking_vae"} <= set(entry["errors"])
    few = [found[f"0.1 of labels, split {seed}, 2 epochs"]["errors"] for seed in range(2)]
    assert sum(errors["3 nearest neighbours"] for errors in few) / 2 < 0.2
    # What is there is not done again, and what would come out otherwise is.
    before = (tmp_path / "semi_supervised-cpu.json").read_text()
    script("semi_supervised.py", *options)
    assert (tmp_path / "semi_supervised-cpu.json").read_text() == before
    script("semi_supervised.py", *options, "--models", "semi_supervised_vae", "--weight", 1)
    again = json.loads((tmp_path / "semi_supervised-cpu.json").read_text())["splits"]
    for key, entry in again.items():
        chosen = entry["options"]
        assert chosen["semi_supervised_vae"]["weight"] == 1
        assert chosen["semi_supervised_stick_breaking_vae"]["weight"] == 10
        assert entry["errors"]["perceptron"] == found[key]["errors"]["perceptron"]
