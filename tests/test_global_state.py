"""Importing the packages changes no global state of torch, Pyro, NumPy, matplotlib or Python."""

import json
import subprocess
import sys
from pathlib import Path

import pyro
import torch

from tests import global_state
from tests.source import PACKAGES, ROOT, imports, modules

CHILD = """
import importlib, importlib.util, json, sys
theirs, ours, path = json.loads(sys.argv[1])
sys.path[:0] = path
from tests import global_state
for name in theirs:  # `a.b.c` may be a module, or a name in module `a.b`
    while importlib.util.find_spec(name.partition(".")[0]):
        try:
            importlib.import_module(name)
            break
        except ModuleNotFoundError:
            name = name.rpartition(".")[0]
report = {}
for name in ours:
    before = global_state.everything()
    importlib.import_module(name)
    report[name] = global_state.changed(before, global_state.everything())
print(json.dumps(report))
"""


def changed_by_import(theirs: list[str], ours: list[str], path: list[Path]) -> dict[str, list[str]]:
    """What importing each of ``ours`` changes, in a new process that has imported ``theirs``."""
    arguments = json.dumps([theirs, ours, [str(folder) for folder in path]])
    command = [sys.executable, "-c", CHILD, arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(child.stdout)


def test_imports_change_nothing() -> None:
    tree = modules()
    everyones = {found.name for module in tree for found in imports(module)}
    theirs = sorted(name for name in everyones if name.split(".")[0] not in PACKAGES)
    ours = [module.name for module in tree]
    assert changed_by_import(theirs, ours, [ROOT]) == {name: [] for name in ours}


GUILTY = {
    "torch default dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "torch generator": "import torch; torch.manual_seed(1)",
    "torch grad mode": "import torch; torch.set_grad_enabled(False)",
    "torch threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
    "NumPy generator": "import numpy; numpy.random.rand()",
    "Python generator": "import random; random.random()",
    "Pyro settings (validation among them)": "import pyro; pyro.enable_validation(False)",
    "Pyro parameter store": "import pyro, torch; pyro.param('a', torch.ones(()))",
    "matplotlib backend": "import matplotlib; matplotlib.use('svg')",
    "matplotlib rcParams": "import matplotlib; matplotlib.rcParams['font.size'] = 3",
    "warning filters": "import warnings; warnings.simplefilter('ignore')",
    "root logger": "import logging; logging.basicConfig()",
}


def test_a_module_that_changes_something_is_found(tmp_path: Path) -> None:
    for number, text in enumerate(GUILTY.values()):
        (tmp_path / f"guilty{number}.py").write_text(text)
    ours = [f"guilty{number}" for number in range(len(GUILTY))]
    report = changed_by_import(["torch", "pyro", "matplotlib"], ours, [ROOT, tmp_path])
    assert all(name in report[module] for name, module in zip(GUILTY, ours, strict=True)), report


def test_a_test_that_leaves_a_trace_is_found() -> None:
    before = global_state.settings()
    pyro.param("left", torch.zeros(()))
    pyro.settings.set(validate_infer=False)
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        changed = global_state.changed(before, global_state.settings())
    pyro.clear_param_store()
    pyro.settings.set(validate_infer=True)
    torch.set_default_dtype(torch.float32)
    assert changed == [
        "torch default dtype",
        "torch grad mode",
        "Pyro settings (validation among them)",
        "Pyro parameter store",
    ]
