"""Importing is cheap, and modules know only what lies below them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "curator_dali"
HEAVY = ["PIL", "cupy", "fsspec", "nvidia.dali", "nvidia.nvimgcodec", "pyarrow", "torch", "tqdm", "transformers"]

# Module or folder -> what lies directly below it. What is further down may be imported as well.
LAYERS: dict[str, set[str]] = {
    "cli": {"ray", "bench", "curation", "demo", "display", "duplicates", "reporting", "searching", "survey"},
    "duplicates": {"curation"},
    "searching": {"curation"},
    "ray": {"curation"},
    "nemo": {"curation"},
    "torch": {"loader", "padding", "targets"},
    "padding": set(),
    "targets": {"sources"},
    "bench": {"loader"},
    "demo": {"curation", "display", "duplicates"},
    "curation": {"callbacks", "reporting", "stages"},
    "reporting": {"loader", "reopening", "report", "stages"},
    "reopening": {"sinks", "sources"},
    "loader": {"display", "joining", "ordering", "prefetching", "state", "stats"},
    "joining": {"batch"},
    "stats": set(),
    "ordering": {"sampling", "survey"},
    "state": {"sampling", "sources"},
    "prefetching": {"decoding", "pipelines"},
    "interrupts": set(),
    "callbacks": set(),
    "decoding": {"headers", "sources.base", "transforms", "pipelines", "batch"},
    "survey": {"headers", "sources"},
    "stages": {"batch", "indexing", "models", "sources.samples", "transforms"},
    "indexing": {"callbacks", "similarity", "sinks"},
    "sinks": {"batch", "documents", "sources.samples"},
    "report": {"batch", "counts", "html"},
    "counts": set(),
    "sources": {"sources.base", "sources.samples", "batch", "documents"},
    "sources.base": {"batch"},
    "sources.samples": {"documents"},
    "batch": {"checks", "columns", "errors", "viewing"},
    "columns": {"arrays", "fields"},
    "fields": {"image"},
    "viewing": {"checks", "fields", "similarity"},
    "checks": {"errors", "image"},
    "image": {"display"},
    "display": {"arrays", "html"},
    "html": {"wording"},
    "wording": set(),
    "models": {"arrays", "transforms"},
    "similarity": {"arrays", "transforms"},
    "arrays": {"errors", "importing"},
    "importing": {"interrupts"},
    "headers": {"errors", "exif", "pillow", "quieting"},
    "exif": set(),
    "pillow": {"files"},
    "transforms": {"sampling", "pipelines"},
    "pipelines": {"interrupts", "lending", "quieting"},
    "quieting": set(),
    "lending": {"arrays"},
    "sampling": {"errors"},
    "errors": {"files", "html"},
    "documents": set(),
    "files": {"arguments", "stores"},
    "httpfs": {"stores"},
    "stores": set(),
    "arguments": set(),
}
# Modules whose functions may import what lies above them: a report's methods call `reporting`.
MAY_LOOK_UP = {
    "counts": {"reporting"},
    "report": {"reporting"},
    "stores": {"httpfs"},
}
# Modules that exist for the sake of a library may import it when they are imported themselves.
MAY_BE_HEAVY = {"torch", "ray", "nemo", "httpfs"}


def layer(module: str) -> str:
    """Layer of a module, by its name below the package: its own name where LAYERS has it, else its folder's."""
    return module if module in LAYERS else module.split(".")[0]


def below(name: str) -> set[str]:
    return set().union(*({lower} | below(lower) for lower in LAYERS[name]))


def module_name(path: Path) -> str:
    """`sources.base` for curator_dali/sources/base.py, `sources` for its __init__, "" for the package's own."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module below the package) of every import in a file, those inside functions included."""
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = ["curator_dali", *filter(None, folder.split("."))] if node.level else []
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            if target.split(".")[0] == "curator_dali" and target != "curator_dali.__version__":
                inner = target.partition(".")[2]
                while inner and inner not in MODULES:  # from curator_dali.batch import ImageBatch
                    inner = inner.rpartition(".")[0]
                if node not in late or layer(inner) not in MAY_LOOK_UP.get(name, ()):
                    yield node.lineno, inner


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_layers_have_no_cycle() -> None:
    TopologicalSorter(LAYERS).prepare()


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_down(name: str) -> None:
    own = layer(name)
    assert own in LAYERS, f"say in LAYERS what curator_dali.{name} lies above"
    allowed = {own} | below(own)
    wrong = [
        f"line {line}: curator_dali.{target}" if target else f"line {line}: the package itself; name the module"
        for line, target in imported(name, MODULES[name])
        if layer(target) not in allowed
    ]
    assert not wrong, f"curator_dali.{name} imports what does not lie below it: {wrong}"


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
    names = [f"curator_dali.{name}" for name in MODULES if name and layer(name) not in MAY_BE_HEAVY]
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
