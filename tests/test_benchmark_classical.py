"""The benchmark of the classical models runs, and its contenders reach the same place."""

import json
from pathlib import Path

import pytest

from tests.test_benchmarks import script


@pytest.mark.slow
def test_contenders_reach_the_same_likelihood(tmp_path: Path) -> None:
    sizes = ("--ppca-size", 800, 40, 4, "--mixture-size", 21_000, 4, 3, "--sizes", 1000, 2000)
    rounds = ("--fit-rounds", 1, "--rounds", 1, "--chunk", 0)
    script("classical.py", "ppca", "mixture", "svi", *sizes, *rounds, "--out", tmp_path)
    result = json.loads((tmp_path / "classical-cpu.json").read_text())
    for part, tolerance in (("ppca", 1e-3), ("mixture", 1e-4)):
        found = {name: fit["log_likelihood"] for name, fit in result[part]["fits"].items()}
        theirs = next(value for name, value in found.items() if "scikit" in name)
        assert found == {name: pytest.approx(theirs, abs=tolerance) for name in found}
    assert [row["N"] for row in result["svi"]["by_num_data"]] == [1000, 2000]
