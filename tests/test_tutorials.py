"""The tutorials run from top to bottom, and are committed as they ran."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.source import ROOT

FOLDER = ROOT / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 1_000_000

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


@pytest.fixture
def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@each
def test_it_is_committed_as_it_ran(path: Path, cells: list[dict[str, Any]]) -> None:
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert path.stat().st_size < MOST_BYTES


@each
def test_it_is_prose_with_code(path: Path, cells: list[dict[str, Any]]) -> None:
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    assert sum(cell["cell_type"] == "markdown" for cell in cells) * 3 >= len(cells)


@pytest.mark.slow
@each
def test_it_runs(path: Path) -> None:
    pytest.importorskip("nbclient", reason="needs the extra: pip install '.[tutorials]'")
    command = [sys.executable, str(FOLDER / "execute.py"), str(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
