"""A curation as a TOML or YAML file: the same names as in Python, and no others.

source = "shards/*.tar"
out = "curated"
embeddings = true

[[stages]]
type = "Embed"
model = "efficientnet-lite0"

[[stages]]
type = "Filter"
field = "width"
min = 256
"""

from __future__ import annotations

import difflib
import importlib
import reprlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from curator_dali.curation.settings import Settings
from curator_dali.errors import CuratorDaliError
from curator_dali.io.files import DEEP, check_depth, read_regular
from curator_dali.stages import STAGES
from curator_dali.stages.base import Stage

__all__ = ["OPTIONS", "ConfigError", "make_stage", "read_config"]

OPTIONS = ("source", "out", "stages", "device", "executor", *(field.name for field in fields(Settings)))
"""What a file may say: the arguments of `curate`."""

_MOST_BYTES, _MOST_NODES = 1 << 20, 100_000


class ConfigError(CuratorDaliError, ValueError):
    """A configuration file that says something that cannot be meant."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The arguments of `curate` that a file gives, `stages` as stages.

    Args:
        path: A `.toml`, `.yaml` or `.yml` file. Relative paths in it count from the current folder, as in Python.

    Raises:
        ConfigError: It cannot be parsed, or it has a key or a kind of stage that there is not.
        StageError: A stage refuses its settings.
        OSError: It cannot be read.
        ImportError: A package that reads the format is missing.
    """
    path = Path(path)
    content = _parse(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not keys with values")
    _refuse_unknown(content, OPTIONS, str(path))
    stages = content.get("stages", [])
    if not isinstance(stages, list):
        raise ConfigError(f"{path}: stages is a {type(stages).__name__}; give a list, in TOML one [[stages]] each")
    if "stages" in content:
        content["stages"] = [make_stage(stage, f"{path}: stages[{number}]") for number, stage in enumerate(stages)]
    return content


def make_stage(settings: Any, where: str) -> Stage:
    """A stage of its type and settings.

    Args:
        settings: `type`, the name of a kind of stage, and its arguments. A kind of your own and a function are
            written "module:name".
        where: For errors.

    Raises:
        ConfigError: There is no such kind, or it has no such argument.
        StageError: It refuses its settings.
    """
    if not isinstance(settings, Mapping) or "type" not in settings:
        raise ConfigError(
            f"{where} is {reprlib.repr(settings)}; give its type and its settings, as type = 'Filter', field = 'width'"
        )
    name = settings["type"]
    if not isinstance(name, str):
        raise ConfigError(f"{where}: its type is a {type(name).__name__}; allowed: {', '.join(STAGES)}")
    own = _function(name, f"{where}.type") if ":" in name else None
    if own is not None and not (isinstance(own, type) and issubclass(own, Stage)):
        raise ConfigError(f"{where}: {name} is {own!r}, which is no kind of stage")
    if own is None and name not in STAGES:
        raise ConfigError(f"{where}: there is no stage {name!r}{_close(name, STAGES)}; allowed: {', '.join(STAGES)}")
    kind = own or STAGES[name]
    arguments = {key: value for key, value in settings.items() if key != "type"}
    known = [field for field in fields(kind) if field.init]
    _refuse_unknown(arguments, [field.name for field in known], f"{where} ({name})")
    needed = [
        f.name for f in known if f.default is MISSING and f.default_factory is MISSING and f.name not in arguments
    ]
    if needed:
        raise ConfigError(f"{where}: {name} needs {', '.join(needed)}")
    if isinstance(arguments.get("where"), str):
        arguments["where"] = _function(arguments["where"], f"{where} ({name}).where")
    return kind(**arguments)


def _parse(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"cannot read {str(path)!r}: the name must end in .toml, .yaml or .yml")
    kind = "TOML" if suffix == ".toml" else "YAML"
    data = read_regular(path, _MOST_BYTES)
    try:
        content = (_parse_toml if kind == "TOML" else _parse_yaml)(data.decode("utf-8"))
        check_depth(content)
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: {DEEP}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text ({error}): save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no {kind} of a curation: {' '.join(str(error).split())}") from error
    return content


def _parse_toml(text: str) -> Any:
    tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads(text)  # its error is a ValueError


def _parse_yaml(text: str) -> Any:
    """Parse YAML, once it is known that aliases make no more of it than it looks.

    Raises:
        ValueError: It is no YAML, or its aliases make too much of it.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "reading YAML needs PyYAML, which is not installed: pip install 'curator-dali[curate]', or write TOML"
        ) from error
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if _count_nodes(node, {}) > _MOST_NODES:
            raise ValueError(
                f"its aliases (*name) make more than {_MOST_NODES:,} values of it: write out what is meant"
            )
        return loader.construct_document(node) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


def _count_nodes(node: Any, known: dict[int, int]) -> int:
    """Count the values of a YAML node, those behind an alias each time that it is used.

    Args:
        node: The node.
        known: Node -> its count, of nodes that are counted.

    Raises:
        ValueError: It is in itself.
    """
    if id(node) not in known:
        known[id(node)] = -1
        inner = node.value if isinstance(node.value, list) else []
        flat = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count_nodes(part, known) for part in flat)
    if known[id(node)] < 0:
        raise ValueError("an alias (*name) is in the value that it stands for")
    return known[id(node)]


def _refuse_unknown(given: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{where}: there is no {key!r}{_close(str(key), allowed)}; allowed: {', '.join(allowed)}")


def _close(name: str, allowed: Collection[str]) -> str:
    found = difflib.get_close_matches(name, allowed, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _function(text: str, where: str) -> Any:
    module, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where} is {text!r}, which cannot be imported ({error}); give 'module:function'") from error
    return found
