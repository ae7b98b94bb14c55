"""The README's examples run, and its commands are the ones that CI runs."""

import re
from pathlib import Path

import pytest

from tests.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_its_two_commands_are_run_by_ci() -> None:
    commands = dict(
        re.findall(r"^<!-- ci: (\w+) -->\n```bash\n(.*?)\n```$", README, flags=re.MULTILINE)
    )
    assert commands == {
        "fit": "pip install . && pyro-models fit vae",
        "test": "pip install '.[test]' && pytest -n auto",
    }


def test_its_links_lead_somewhere() -> None:
    local = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
