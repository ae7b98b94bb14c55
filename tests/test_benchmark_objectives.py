"""The benchmarks of objectives and particles run, go on where they stopped, and report."""

import json
from pathlib import Path

import pytest

from tests.test_benchmarks import script, write_images


@pytest.mark.slow
def test_objectives_go_on_where_a_sitting_ended(tmp_path: Path) -> None:
    write_images(tmp_path)
    options = ["--data", tmp_path, "--out", tmp_path, "--runs", tmp_path / "runs"]
    options += ["--num-samples", 20]
    script("objectives.py", "vimco", *options, "--epochs", 2, "--minutes", 0)
    path = tmp_path / "objectives-cpu.json"
    first = json.loads(path.read_text())["runs"]["vimco, 2 epochs of batch 100, seed 0"]
    assert first["epochs"] == 1
    script("objectives.py", "vimco", "dreg", *options, "--epochs", 2)
    runs = json.loads(path.read_text())["runs"]
    again = runs["vimco, 2 epochs of batch 100, seed 0"]
    assert again["epochs"] == again["of"] == 2
    assert again["training_bound"]["1"] == first["training_bound"]["1"]
    # Both have learned the pixels' mean at least: its entropy is 392 nats.
    for run in runs.values():
        assert 350 < run["nll"] < 430
        assert run["compiled"]


@pytest.mark.slow
def test_memory_is_linear_in_the_number_of_particles(tmp_path: Path) -> None:
    options = ("--rounds", 1, "--chunk", 0, "--counts", 1, 2, 3, "--gradients", 1)
    script("particles.py", *options, "--out", tmp_path)
    result = json.loads((tmp_path / "particles-cpu.json").read_text())
    memory = result["memory"]
    assert memory["largest_residual_over_bytes_a_particle"] < 0.01
    # Of the tensors with a particle and a datum each, one is the decoder's 784 logits.
    assert memory["bytes_a_particle"] > 20 * 784 * 4
    assert [row["K"] for row in result["steps"]["StandardGradient"]] == [1, 2, 3]
