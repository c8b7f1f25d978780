"""Importing is cheap, and every import points down: to a lower floor, and there to a folder's face."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import curator_dali

PACKAGE = Path(__file__).parents[1] / "curator_dali"
HEAVY = [
    "PIL",
    "cupy",
    "fsspec",
    "jinja2",
    "nvidia.dali",
    "nvidia.nvimgcodec",
    "pyarrow",
    "torch",
    "tqdm",
    "transformers",
]

# A file or folder of the package may import only what lies on a lower floor; the ground is the first line.
FLOORS = """
errors arguments threads _version
sampling io arrays
dali similarity view outputs
batch transforms index
sources models
decoding stages
loader preparation
report torch
curation
nemo ray demo
cli __init__
"""
FLOOR = {name: number for number, line in enumerate(FLOORS.strip().splitlines()) for name in line.split()}
# Modules that exist for the sake of a library may import it when they are imported themselves.
MAY_BE_HEAVY = {"torch", "ray", "nemo", "io.http", "curation.ray_executor"}


def module_name(path: Path) -> str:
    """`sources.base` for curator_dali/sources/base.py, `sources` for its face, `__init__` for the package's own."""
    names = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(names if len(names) == 1 or names[-1] != "__init__" else names[:-1])


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}
FOLDERS = {name for name, path in MODULES.items() if path.name == "__init__.py" and name != "__init__"}


class Import(NamedTuple):
    """One name that a file imports: `from curator_dali.<module> import <name>`, on a line of it."""

    line: int
    module: str
    name: str


def find_imports(tree: ast.AST) -> Iterator[Import]:
    """Every import of the package in a file: in functions, for type checkers, and by a name in a text."""
    folders = {}  # folders that the file imports as a whole, by the name they have there
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, module = alias.name.partition(".")
                if package == "curator_dali":
                    yield Import(node.lineno, module if alias.asname and module else "__init__", "")
                    folders[alias.asname or alias.name] = module
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            package, _, module = str(node.module).partition(".")
            for alias in node.names if package == "curator_dali" else ():
                named = not module and alias.name in MODULES  # from curator_dali import arrays
                yield Import(node.lineno, alias.name if named else module or "__init__", "" if named else alias.name)
                folders[alias.asname or alias.name] = alias.name if named else ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from find_named(node.lineno, node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and folders.get(ast.unparse(node.value)) in FOLDERS:
            yield Import(node.lineno, folders[ast.unparse(node.value)], node.attr)


def find_named(line: int, text: str) -> Iterator[Import]:
    """The module that a text names; for "curator_dali." with what follows of a table, all modules of the tables."""
    package, dot, module = text.partition(".")
    if package == "curator_dali" and dot:
        table = {*curator_dali._NAMES, *map(unit, curator_dali._MOVED.values())}
        yield from (Import(line, name, "") for name in (table if not module else {module} & {*MODULES}))


def find_defined(face: str) -> set[str]:
    """The names that a folder's face defines itself."""
    nodes = list(ast.walk(TREES[face]))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def find_offered(face: str) -> set[str]:
    """The names that a folder's face offers to other folders."""
    imports = [node for node in ast.walk(TREES[face]) if isinstance(node, ast.ImportFrom)]
    return find_defined(face) | {alias.asname or alias.name for node in imports for alias in node.names}


def unit(module: str) -> str:
    """The file or folder at the package's root that a module belongs to."""
    return module.partition(".")[0]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_floors_hold_the_whole_package() -> None:
    assert len(FLOORS.split()) == len(FLOOR), "a name is on two floors"
    assert set(FLOOR) == {unit(name) for name in MODULES}


def test_no_module_has_the_name_of_an_old_one() -> None:
    assert not curator_dali._MOVED.keys() & MODULES.keys(), "the module cannot be imported: its name is forwarded"
    assert set(curator_dali._MOVED.values()) <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    wrong = []
    for line, module, imported in find_imports(TREES[name]):
        own, other = unit(name), unit(module)
        if module not in MODULES:
            wrong.append(f"line {line}: the package has no file curator_dali.{module}")
        elif imported.startswith("_") and imported != "__version__":
            wrong.append(f"line {line}: {imported} is private to curator_dali.{module}")
        elif own == other:
            inside = {*MODULES, *(f"{own}.{defined}" for defined in find_defined(own))}
            if module == own != name and f"{module}.{imported}" not in inside:
                wrong.append(f"line {line}: its own face; import {imported} from the file that defines it")
        elif FLOOR[other] >= FLOOR[own]:
            wrong.append(f"line {line}: curator_dali.{module} is on floor {FLOOR[other] + 1}, this on {FLOOR[own] + 1}")
        elif module != other:
            wrong.append(f"line {line}: curator_dali.{module} is inside a folder; import from curator_dali.{other}")
        elif other in FOLDERS and imported and imported not in find_offered(other):
            wrong.append(f"line {line}: curator_dali.{other} does not offer {imported}; name it in its face")
    assert not wrong, f"curator_dali.{name}: {wrong}"


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_files_of_a_folder_import_in_no_circle(folder: str) -> None:
    inside = {name for name in MODULES if unit(name) == folder}
    below = {
        name: {f"{module}.{inner}" if f"{module}.{inner}" in MODULES else module for _, module, inner in imports}
        for name, imports in ((name, find_imports(TREES[name])) for name in inside)
    }
    TopologicalSorter({name: modules & inside - {name} for name, modules in below.items()}).prepare()


def test_a_reader_finds_the_way() -> None:
    assert len(MODULES) <= 160
    assert len([name for name, path in MODULES.items() if path.parent == PACKAGE]) <= 10
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not {name: count for name, count in lines.items() if count > 600}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def late():\n    from curator_dali.loader import ImageLoader", [(2, "loader", "ImageLoader")]),
        ("if TYPE_CHECKING:\n    from curator_dali.io import store", [(2, "io", "store")]),
        ("from curator_dali.io.store import join", [(1, "io.store", "join")]),
        ("from curator_dali import arrays", [(1, "arrays", "")]),
        ("import curator_dali.torch", [(1, "__init__", "")]),
        ("import curator_dali.torch as ct", [(1, "torch", "")]),
        ("import curator_dali.io as cio\ncio.files", [(1, "io", ""), (2, "io", "files")]),
        ("from curator_dali import io\nio.files.remove", [(1, "io", ""), (2, "io", "files")]),
        ("from curator_dali import __version__", [(1, "__init__", "__version__")]),
        ("importlib.import_module('curator_dali.ray')", [(1, "ray", "")]),
        ("__import__('curator_dali.ray')", [(1, "ray", "")]),
        ("import_module(name='curator_dali.ray')", [(1, "ray", "")]),
        ("sys.modules['curator_dali.ray']", [(1, "ray", "")]),
        ("getLogger('curator_dali')", []),
        ("from torch import nn", []),
    ],
)
def test_every_kind_of_import_is_seen(text: str, expected: list[tuple[int, str, str]]) -> None:
    assert list(find_imports(ast.parse(text))) == expected


def test_importing_the_package_is_fast() -> None:
    code = "import time; start = time.perf_counter(); import curator_dali; print(time.perf_counter() - start)"
    # The best of several: what else runs on the machine can only make it slower.
    assert min(float(run(code)) for _ in range(5)) < 0.3


@pytest.mark.parametrize("statement", ["import curator_dali", "import curator_dali; dir(curator_dali)"])
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    loaded = json.loads(run(f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert "curator_dali" in loaded
    assert not set(loaded) & {*HEAVY, "numpy"}


def test_no_module_loads_heavy_libraries_on_import() -> None:
    names = [f"curator_dali.{name}" for name in MODULES if not {name, unit(name)} & MAY_BE_HEAVY]
    code = f"""
import importlib, json, sys
guilty = {{}}
for name in {names}:
    before = set(sys.modules)
    importlib.import_module(name)
    if new := sorted((set(sys.modules) - before) & set({HEAVY})):
        guilty[name] = new
print(json.dumps(guilty))
"""
    assert json.loads(run(code)) == {}
