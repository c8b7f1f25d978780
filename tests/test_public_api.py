"""Every public name with its signature is a line of `public_api.txt`; `python -m tests.test_public_api` rewrites it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("public_api.txt")
PACKAGE = "curator_dali"
FACES = [PACKAGE, *(f"{PACKAGE}.{name}" for name in ("transforms", "torch", "nemo", "ray", "models"))]
REWRITE = "python -m tests.test_public_api"
# Beside the names that do not begin with "_", what the language and notebooks call.
SPECIAL = {"__call__", "__contains__", "__enter__", "__getitem__", "__getitems__", "__iter__", "__len__", "_repr_html_"}


class Written(str):
    """A text whose `repr` is itself, so that a signature shows an annotation as it is written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Anything:
    """Stands for every class of NeMo Curator; a class derived from it has only what curator_dali gives it."""

    def __class_getitem__(cls, item: Any) -> type[Anything]:
        return cls


class NemoFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of NeMo Curator, installed or not, whose every name is `Anything`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = name.split(".")[0] == "nemo_curator"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: Anything  # type: ignore[method-assign]


def is_own(kind: type) -> bool:
    return kind.__module__.split(".")[0] == PACKAGE


def show_value(value: Any) -> Written:
    """A default or a constant, the same in every process and wherever its module lies."""
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(show_value, value))
        return Written(f"({shown},)" if len(value) == 1 else f"({shown})")
    if isinstance(value, ModuleType):
        return Written("<module>")
    return Written(getattr(value, "__qualname__", None) or repr(value))


def show_signature(function: Any) -> str:
    signature = inspect.signature(function)

    def write(annotation: Any) -> Any:
        text = getattr(annotation, "__forward_arg__", annotation)
        return Written(text) if isinstance(text, str) else annotation

    parameters = [
        parameter.replace(
            annotation=write(parameter.annotation),
            default=parameter.default if parameter.default is parameter.empty else show_value(parameter.default),
        )
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=write(signature.return_annotation)))


def find_attributes(kind: type) -> set[str]:
    """Public names that methods of a class assign to `self`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "self" and not node.attr.startswith("_")
    }


def describe_member(name: str, value: Any) -> str:
    if isinstance(value, (classmethod, staticmethod)):
        return f"{name}{show_signature(value.__func__)}: {type(value).__name__}"
    if isinstance(value, property):
        return f"{name}: property -> {value.fget.__annotations__.get('return')}"
    if hasattr(value, "func"):  # a cached property
        return f"{name}: property -> {value.func.__annotations__.get('return')}"
    if inspect.isfunction(value):
        return f"{name}{show_signature(value)}"
    return f"{name}: attribute" if hasattr(value, "__get__") else f"{name} = {show_value(value)}"


def describe_class(name: str, kind: type, public: set[type]) -> Iterator[str]:
    bases = [base for base in kind.__mro__[1:-1] if base in public or base.__module__ == "builtins"]
    own = [base for base in kind.__mro__ if is_own(base)]
    builds_itself = any({"__init__", "__new__"} & vars(base).keys() for base in own)
    signature = show_signature(kind) if builds_itself else ""
    yield f"class {name}{signature}" + (f" is {', '.join(base.__qualname__ for base in bases)}" if bases else "")
    fields = {}
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field.type for field in dataclasses.fields(kind) if not field.name.startswith("_")}
    yield from (f"{name}.{field}: {annotation}" for field, annotation in fields.items())
    members = {
        member
        for base in own
        for member in vars(base)
        if (not member.startswith("_") or member in SPECIAL) and member not in fields
    }
    yield from (f"{name}.{describe_member(member, inspect.getattr_static(kind, member))}" for member in sorted(members))
    attributes = set().union(*map(find_attributes, own)) - members - fields.keys()
    yield from (f"{name}.{attribute}: attribute" for attribute in sorted(attributes))


def describe(name: str, value: Any, public: set[type]) -> Iterator[str]:
    if isinstance(value, type):
        yield from describe_class(name, value, public)
    elif inspect.isroutine(value):
        yield f"{name}{show_signature(value)}"
    else:
        yield f"{name} = {show_value(value)}"


def write_lines() -> list[str]:
    """The public names of this checkout. Puts stand-ins of NeMo Curator into this process."""
    sys.meta_path.insert(0, NemoFinder())
    faces = {face: importlib.import_module(face) for face in FACES}
    found = {f"{face}.{name}": getattr(module, name) for face, module in faces.items() for name in module.__all__}
    found[f"{PACKAGE}.__version__"] = faces[PACKAGE].__version__
    public = {value for value in found.values() if isinstance(value, type)}
    return [line for name in sorted(found) for line in describe(name, found[name], public)]


def name_of(line: str) -> str:
    words = line.removeprefix("class ")
    return words[: min(at for sign in "(: " if (at := f"{words} ".find(sign)) >= 0)]


def explain_difference(old: list[str], new: list[str]) -> list[str]:
    before, after = ({name_of(line): line for line in lines} for lines in (old, new))
    gone = [f"gone:    {line}" for name, line in before.items() if name not in after]
    fresh = [f"new:     {line}" for name, line in after.items() if name not in before]
    both = [(line, after[name]) for name, line in before.items() if name in after and line != after[name]]
    return [*gone, *(f"changed: {line}\n     to: {now}" for line, now in both), *fresh]


def run_writing() -> list[str]:
    code = "from tests.test_public_api import write_lines; print('\\n'.join(write_lines()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_public_names_are_those_of_the_list() -> None:
    found = run_writing()
    assert not [line for line in found if re.search(rf"\bat 0x|.{PACKAGE}\.", line.removeprefix("class "))]  # stable
    difference = explain_difference(LIST.read_text().splitlines(), found)
    assert not difference, "\n".join(["public names differ; if this is meant, run", REWRITE, *difference])


if __name__ == "__main__":
    LIST.write_text("\n".join(write_lines()) + "\n")
