"""The habits of the house: what no module may contain, and what agrees with what."""

import ast
import doctest
import importlib
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.source import PACKAGES, ROOT, Module, imports, modules

MOST_LINES_A_FILE = 400
MOST_LINES_A_BODY = 60
CATCHALLS = {"Exception", "BaseException"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def faults(module: Module) -> list[str]:
    """What a module has and should not have, a line each."""
    found = []
    lines = module.text.count("\n") + 1
    if lines > MOST_LINES_A_FILE:
        found.append(f"{lines} lines; could it be two files?")
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            found.append(f"line {number}: a note of work not done")
    for node in ast.walk(module.tree):
        for check in (_long_body, _assert, _catches_everything, _global_statement):
            if (fault := check(node)) is not None:
                found.append(f"line {getattr(node, 'lineno', 0)}: {fault}")
    return found


def _long_body(node: ast.AST) -> str | None:
    if not isinstance(node, Function):
        return None
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    return f"{node.name} has {lines} lines of body" if lines > MOST_LINES_A_BODY else None


def _assert(node: ast.AST) -> str | None:
    return "an assert; users get exceptions with names" if isinstance(node, ast.Assert) else None


def _catches_everything(node: ast.AST) -> str | None:
    if not isinstance(node, ast.ExceptHandler):
        return None
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    names = {getattr(kind, "id", None) for kind in caught}
    return "catches everything" if node.type is None or names & CATCHALLS else None


def _global_statement(node: ast.AST) -> str | None:
    return "a global statement" if isinstance(node, ast.Global) else None


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_a_module_keeps_the_house(module: Module) -> None:
    assert faults(module) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n" * 400, "401 lines"),
        ("def f():\n" + "    x = 1\n" * 61, "61 lines of body"),
        ("assert True", "an assert"),
        ("try:\n    f()\nexcept Exception:\n    pass", "catches everything"),
        ("try:\n    f()\nexcept:\n    pass", "catches everything"),
        ("try:\n    f()\nexcept (OSError, BaseException):\n    pass", "catches everything"),
        ("x = 1  # TODO", "a note of work not done"),
        ("def f():\n    global x", "a global statement"),
    ],
)
def test_a_bad_module_does_not(text: str, words: str) -> None:
    found = faults(Module("bad", Path("bad.py"), text, ast.parse(text)))
    assert len(found) == 1
    assert words in found[0]


def test_a_good_module_has_no_fault() -> None:
    text = 'def f():\n    """Docs.\n' + "\n" * 70 + '    """\n' + "    x = 1\n" * 60
    text += "try:\n    f()\nexcept OSError:\n    pass\n"
    assert faults(Module("good", Path("good.py"), text, ast.parse(text))) == []


def _examples(tree: ast.AST, accept: Callable[[str], bool] = lambda doc: ">>>" in doc) -> set[str]:
    """Names of what has a docstring with an example."""
    found = set()

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function | ast.ClassDef):
                if accept(ast.get_docstring(child) or ""):
                    found.add(name + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{name}{child.name}.")

    visit(tree, "")
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_every_example_is_found_by_doctest(module: Module) -> None:
    # The run-time type checks wrap each function; an example lost behind a wrapper would pass.
    loaded = importlib.import_module(module.name)
    tests = doctest.DocTestFinder().find(loaded, module.name)
    found = {test.name.removeprefix(f"{module.name}.") for test in tests if test.examples}
    assert _examples(module.tree) <= found


def test_everything_imported_is_declared() -> None:
    def canonical(requirement: str) -> str:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        return re.sub(r"[-_.]+", "-", name).lower()

    declared = {canonical(requirement) for requirement in PROJECT["dependencies"]}
    owners = packages_distributions()
    imported = {found.name.split(".")[0] for module in modules() for found in imports(module)}
    undeclared = {
        name
        for name in imported - set(PACKAGES)
        if name in owners and not declared & {canonical(owner) for owner in owners[name]}
    }
    assert undeclared == set()


def test_the_version_is_said_once() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation


def test_both_packages_are_typed() -> None:
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)
