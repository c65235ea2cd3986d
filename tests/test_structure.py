"""How the code is laid out: imports go one way, folders and modules are small, names unique."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MAY_IMPORT: dict[str, set[str]] = {
    "bintally": set(),
    "synthetic": {"bintally"},
    "sharding": {"bintally", "synthetic"},
    "training": {"bintally"},
    "tuning": {"bintally", "training"},
    "serving": {"bintally"},
}
"""Packages, and what each may import. (The command `bintally` finds the stages by their names.)"""
EVERYTHING = [*MAY_IMPORT, "benchmarks", "examples"]
MOST_LINES = 350
MOST_MODULES = 12


@cache
def sources(package: str) -> dict[str, ast.Module]:
    """Its modules by dotted name."""
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    }


def modules() -> dict[str, ast.Module]:
    return {name: tree for package in EVERYTHING for name, tree in sources(package).items()}


def imports(tree: ast.Module) -> Iterator[str]:
    """What a module imports, anywhere in it: also inside functions, and for types alone."""
    known = modules()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def graph() -> dict[str, set[str]]:
    """The project's modules, and those of them that each imports."""
    known = modules()
    return {name: {i for i in imports(tree) if i in known} for name, tree in known.items()}


def test_no_import_runs_in_a_circle() -> None:
    """Prints the floors: what lies on one imports from lower ones only (`pytest -s`)."""
    sorter = TopologicalSorter(graph())
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
    floors = []
    while sorter.is_active():
        floors.append(sorted(sorter.get_ready()))
        sorter.done(*floors[-1])
    for number, floor in reversed([*enumerate(floors)]):
        print(f"{number:>2}  {'  '.join(floor)}")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_one_way(package: str) -> None:
    for name, tree in sources(package).items():
        foreign = {i.partition(".")[0] for i in imports(tree)} & {*EVERYTHING}
        assert foreign <= MAY_IMPORT[package] | {package}, name


def test_modules_and_folders_stay_small() -> None:
    for package in [*EVERYTHING, "tests"]:
        folders: Counter[Path] = Counter()
        for path in (REPOSITORY / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= MOST_LINES, path
            folders[path.parent] += path.name not in ("__init__.py", "__main__.py", "conftest.py")
        assert {f: n for f, n in folders.items() if n > MOST_MODULES} == {}


def test_no_two_public_things_share_a_name() -> None:
    owners: dict[str, list[str]] = {}
    for package in MAY_IMPORT:
        for name, tree in sources(package).items():
            if name == "bintally.__init__":  # It names what others define.
                continue
            for node in tree.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    for public in ast.literal_eval(node.value):
                        owners.setdefault(public, []).append(name)
    assert {public: where for public, where in owners.items() if len(where) > 1} == {}
