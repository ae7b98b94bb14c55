"""Reading the packages' own source, for the tests that keep the house."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pyro_models", "guides")


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, where it lies, its text and its syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@dataclass(frozen=True)
class Import:
    """One imported name: ``from a.b import c`` names ``a.b.c``, ``import a.b`` names ``a.b``."""

    name: str
    line: int
    at_top: bool


def modules(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> list[Module]:
    """Every module of the packages below ``root``, by name."""
    paths = sorted(path for package in packages for path in (root / package).rglob("*.py"))
    return [_read(path, root) for path in paths]


def _read(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Module(name, path, text, ast.parse(text, filename=str(path)))


def imports(module: Module) -> list[Import]:
    """What a module imports, wherever the statement stands."""
    return [
        Import(name, statement.lineno, at_top)
        for statement, at_top in _statements(module.tree, at_top=True)
        for name in _names(statement, module)
    ]


def _statements(node: ast.AST, at_top: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_top
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _statements(child, at_top and not inside)


def _names(statement: ast.Import | ast.ImportFrom, module: Module) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ""
    if statement.level:
        parts = module.name.split(".")
        parents = parts[: len(parts) - statement.level + module.is_package]
        base = ".".join([*parents, base] if base else parents)
    return [f"{base}.{alias.name}" for alias in statement.names]
