"""The floors of the house: a file imports only from lower ones, and rooms of one floor keep apart where they can."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import ROOT

FLOORS = {"dnnlib": 1, "slices": 2, "torch_utils": 2, "training": 3, "segmentation": 3}
PROGRAMS = {path.stem for path in ROOT.glob("*.py")}  # floor 4, as is every __main__.py
FILES = [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]

# (files, modules that they don't import, why). A module stands for all below it.
WALLS = [
    ("slices/archive", ("slices.convert", "slices.export"), "an archive knows neither the way in nor the way out"),
    ("slices/convert", ("slices.export",), "the way in knows nothing of the way out"),
    *(
        (f"slices/{border}.py", ("slices.archive", "slices.convert", "slices.export"), "a border serves all ways")
        for border in (
            *("schema", "codec", "intensity", "geometry", "orientation", "pixels", "affine"),
            *("nifti", "gunzip", "nifti_diagnosis", "render", "split", "phantom"),
        )
    ),
    ("training/networks", ("training", "!training.config", "!training.networks"), "networks serve other trainings too"),
]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, at_once: bool = False) -> Iterator[str]:
    """Modules and names that a file imports, as `package.module.name`; at_once: only those at its top level."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_below(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_below_imports_from_above(path):
    """Packages of one floor don't import each other, and nobody imports a program."""
    package = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        other = name.split(".")[0]
        assert other == package or FLOORS.get(other, 0) < FLOORS[package] or path.name == "__main__.py", name
        assert other not in PROGRAMS or path.name == "__main__.py", name
        assert "__main__" not in name, name


@pytest.mark.parametrize("place, walled, why", WALLS, ids=[wall[0] for wall in WALLS])
def test_rooms_keep_apart(place, walled, why):
    """A ! makes an exception to what stands before it."""
    barred = [module for module in walled if not module.startswith("!")]
    free = [module[1:] for module in walled if module.startswith("!")]
    paths = [path for path in FILES if str(path.relative_to(ROOT)).startswith(place)]
    assert paths, f"{place} is gone"
    for path in paths:
        for name in imports(path):
            barred_here = any(is_below(name, module) for module in barred)
            assert not barred_here or any(is_below(name, module) for module in free), f"{path} imports {name}: {why}"


def test_no_imports_go_in_a_circle():
    modules = {module_of(path): path for path in FILES}
    below = {
        module: {other for name in imports(path, at_once=True) for other in (name, name.rpartition(".")[0])}
        & (modules.keys() - {module})
        for module, path in modules.items()
    }
    while free := [module for module, others in below.items() if not others & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"these import each other: {sorted(below)}"


def test_only_slices_knows_the_channels():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] in ("torch_utils", "training", "segmentation"):
            assert not re.search(r"127\.5|\b128\b", path.read_text()), path
