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
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from curator_dali.curation.settings import Settings
from curator_dali.errors import CuratorDaliError
from curator_dali.stages import STAGES, Stage

__all__ = ["OPTIONS", "ConfigError", "make_stage", "read_config"]

OPTIONS = ("source", "out", "stages", "device", "executor", *(field.name for field in fields(Settings)))
"""What a file may say: the arguments of `curate`."""


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
            f"{where} is {settings!r}; give its type and its settings, as type = 'Filter', field = 'width'"
        )
    name = settings["type"]
    own = _function(name, f"{where}.type") if isinstance(name, str) and ":" in name else None
    if own is not None and not (isinstance(own, type) and issubclass(own, Stage)):
        raise ConfigError(f"{where}: {name} is {own!r}, which is no kind of stage")
    if own is None and name not in STAGES:
        raise ConfigError(
            f"{where}: there is no stage {name!r}{_close(str(name), STAGES)}; allowed: {', '.join(STAGES)}"
        )
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
    text = path.read_text("utf-8")
    if suffix == ".toml":
        tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is no TOML: {error}") from error
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "reading YAML needs PyYAML, which is not installed: pip install 'curator-dali[curate]', or write TOML"
        ) from error
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


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
