"""The arrows of the house go one way, and nothing hides one."""

import textwrap
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source import PACKAGES, Module, imports, modules

# Room -> the rooms it may import, besides itself. A file of `pyro_models` that is not named here
# is a model. A new room (not a model) gets a line of its own.
FOUNDATION = {
    "errors",
    "options",
    "programs",
    "networks",
    "own_networks",
    "labels",
    "distributions",
}
BLOCKS = FOUNDATION | {"likelihoods", "priors"}
ENGINE = {"arrays", "errors", "options", "picture", "programs", "distributions", "infer"}
ARROWS: dict[str, set[str]] = {
    "pyro_models": {"errors"},
    "errors": set(),
    "arrays": {"errors"},
    "options": {"errors"},
    "picture": set(),
    "programs": {"errors"},
    "distributions": {"errors", "options"},
    "labels": {"errors"},
    "networks": {"errors", "options"},
    "own_networks": {"errors", "networks"},
    "likelihoods": FOUNDATION,
    "priors": FOUNDATION,
    "models": BLOCKS,
    "guides": FOUNDATION,
    "infer": ENGINE,
    "data": {"arrays", "errors", "options"},
    "baselines": {"errors", "options"},
    "posterior": ENGINE | {"data"},
    "plots": ENGINE | {"data", "posterior"},
    "selection": ENGINE | {"posterior", "plots"},
    "clustering": ENGINE,
    "pairs": BLOCKS | ENGINE | {"models", "guides", "data"},
    "cli": BLOCKS
    | ENGINE
    | {"data", "baselines", "clustering", "posterior", "plots", "pairs", "selection"},
    "__main__": {"cli"},
}


def room(module: str) -> str:
    """The room that a module of ours stands in."""
    package, *inside = module.split(".")
    if package != "pyro_models" or not inside:
        return package
    return inside[0] if inside[0] in ARROWS else "models"


def graph(tree: list[Module]) -> dict[str, set[str]]:
    """Module -> our modules that it imports."""
    names = {module.name for module in tree}
    return {
        module.name: {
            target
            for found in imports(module)
            if (target := _target(found.name, names)) is not None
        }
        for module in tree
    }


def _target(name: str, names: set[str]) -> str | None:
    """The module that an imported name is or lives in; ``None`` for other people's."""
    if name.split(".")[0] not in PACKAGES:
        return None
    while name not in names and "." in name:
        name = name.rpartition(".")[0]
    return name


def faults(tree: list[Module]) -> list[str]:
    """What is wrong with the imports of a tree, a line each."""
    edges = graph(tree)
    found = [
        f"{module} imports {target}: {room(module)} may not import {room(target)}"
        for module, targets in edges.items()
        for target in sorted(targets)
        if room(target) not in ARROWS[room(module)] | {room(module)}
    ]
    found += [
        f"{module.name}:{statement.line} imports {statement.name} inside a function or class"
        for module in tree
        for statement in imports(module)
        if not statement.at_top
    ]
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' <- '.join(error.args[1])}")
    return found


def test_the_arrows_go_one_way() -> None:
    assert faults(modules()) == []


def test_every_room_named_here_stands_on_rooms_named_here() -> None:
    assert set().union(*ARROWS.values()) <= set(ARROWS)


def write(root: Path, files: dict[str, str]) -> list[Module]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return modules(root)


GOOD = {
    "pyro_models/__init__.py": "",
    "pyro_models/errors.py": "import torch",
    "pyro_models/distributions/__init__.py": "from .kumaraswamy import K",
    "pyro_models/distributions/kumaraswamy.py": "from ..errors import E",
    "pyro_models/vae.py": "from pyro_models.distributions import K",
    "pyro_models/infer/__init__.py": "from pyro_models.infer.step import Step",
    "pyro_models/infer/step.py": "from pyro_models import errors",
    "pyro_models/pairs.py": "import guides.normal\nfrom pyro_models import infer, vae",
    "guides/__init__.py": "from guides.normal import Normal",
    "guides/normal.py": "from pyro_models.errors import E",
}


def test_a_good_tree_has_no_fault(tmp_path: Path) -> None:
    assert faults(write(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("guides/normal.py", "from pyro_models.vae import VAE", "guides may not import models"),
        ("guides/normal.py", "import pyro_models.infer", "guides may not import infer"),
        ("pyro_models/vae.py", "from guides import Normal", "models may not import guides"),
        ("pyro_models/gmvae.py", "from . import infer", "models may not import infer"),
        ("pyro_models/infer/fit.py", "from ..vae import VAE", "infer may not import models"),
        ("pyro_models/infer/em.py", "import pyro_models.pairs", "infer may not import pairs"),
        ("pyro_models/data.py", "from pyro_models import pairs", "data may not import pairs"),
        ("pyro_models/plots.py", "import pyro_models.vae", "plots may not import models"),
        ("pyro_models/errors.py", "if 0:\n    import pyro_models.vae", "may not import models"),
        ("pyro_models/__init__.py", "from pyro_models.pairs import vae", "may not import pairs"),
        ("pyro_models/vae.py", "def f():\n    import os", "inside a function or class"),
        ("pyro_models/vae.py", "class A:\n    from os import path", "inside a function or class"),
        ("pyro_models/infer/step.py", "from pyro_models.infer import fit", "a cycle"),
        ("guides/normal.py", "from guides import other", "a cycle"),
    ],
)
def test_a_bad_tree_has_one(tmp_path: Path, file: str, text: str, words: str) -> None:
    found = faults(write(tmp_path, GOOD | {file: text}))
    assert any(words in fault for fault in found), found
