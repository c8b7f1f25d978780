"""`Settings` of a curation, the places that it may write to, and its TOML or YAML file.

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
import os
import posixpath
import re
import reprlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from curator_dali.arguments import Count, Limits, Share, checked
from curator_dali.curation.write import Write
from curator_dali.decoding import MAX_PIXELS
from curator_dali.errors import CuratorDaliError, OutputError
from curator_dali.io import DEEP, Cache, check_depth, is_remote, read_regular
from curator_dali.outputs import IMAGES, part_name
from curator_dali.sources import DerivedSource, Mixture, Source, expand_braces
from curator_dali.stages import STAGES, Stage

FIELD_TYPES = ("bool", "int64", "float64", "string")
"""Types of the columns that fields of the metadata become."""

Fields = Annotated[
    bool | Sequence[str] | Mapping[str, str],
    Limits("fields to keep: True (all), names, as ['caption'], or names with types, as {'score': 'float64'}"),
]

_Place = tuple[str, ...]
"""The protocol ("" on this machine) and the names from the root down to a file or folder, links followed."""

SCORED = "_scored"
"""The folder in an output with the rows of all samples, until a stage that sees them all has decided."""

_WILDCARD = re.compile(r"[*?\[]")
_PROTOCOLS = {"file": "", "local": "", "s3a": "s3", "gcs": "gs"}
_PART_NAME = part_name(0, 8192)
_WRITTEN_PLACES = (  # a glob that matches the output itself would open it as a folder of tars
    (),
    *((f"{_PART_NAME}-{shard}.tar",) for shard in ("0000", "0001")),
    (f"{_PART_NAME}.parquet",),
    (f"{_PART_NAME}-0000{IMAGES}",),
    (SCORED, f"{_PART_NAME}.parquet"),
)

_MOST_FILE_BYTES, _MOST_YAML_NODES = 1 << 20, 100_000


@checked
@dataclass(frozen=True)
class Settings:
    """The arguments of `curate` that are numbers and switches; `curate` says what each is.

    Raises:
        ValueError: One is out of its range.
    """

    batch_size: Count = 64
    part_size: Count = 8192
    tars: bool = True
    shard_samples: Count | None = None
    shard_bytes: Count | None = None
    embeddings: bool | Literal["float32", "float16"] = False
    num_threads: Count | None = None
    prefetch: Count = 2
    max_pixels: Count = MAX_PIXELS
    max_error_rate: Share | None = None
    metadata: Fields | None = None
    html: bool = True
    write: Write | None = None

    def __post_init__(self) -> None:
        if self.write is not None and not self.tars:
            raise ValueError(
                f"write is {self.write!r}, and tars is False, which writes no images: leave one of them out"
            )
        if self.write == Write():  # as without
            object.__setattr__(self, "write", None)
        if self.metadata is None and self.is_for_hugging_face:
            object.__setattr__(self, "metadata", True)
        for name, kind in self.field_types.items():
            if kind not in FIELD_TYPES:
                raise ValueError(f"metadata[{name!r}] is {kind!r}; allowed: {', '.join(FIELD_TYPES)}")
        for name in () if isinstance(self.metadata, (bool, type(None))) else self.metadata:
            if not isinstance(name, str):
                raise ValueError(f"metadata names {name!r}; allowed: names of fields, which are texts")

    @property
    def field_types(self) -> Mapping[str, str]:
        """Types that are given for fields of the metadata."""
        return self.metadata if isinstance(self.metadata, Mapping) else {}

    @property
    def field_names(self) -> frozenset[str] | None:
        """The fields of the metadata that are kept as columns; None for all."""
        return None if self.metadata is True else frozenset(self.metadata or ())

    @property
    def is_for_hugging_face(self) -> bool:
        """Whether the samples that are kept are written in Hugging Face's layout."""
        return self.write is not None and self.write.layout == "huggingface"

    @property
    def stored(self) -> Literal["float32", "float16"] | None:
        """The type of the embeddings that are stored; None where none are."""
        return "float32" if self.embeddings is True else self.embeddings or None

    @property
    def encoding(self) -> Write | None:
        """How images are encoded; None where the original bytes of kept images are written, or none."""
        return self.write if self.write is not None and self.write.encodes else None

    def add_written(self, columns: Mapping[str, str]) -> dict[str, str]:
        """Columns with their types, and behind them those that say what was written of the kept images."""
        written = {} if self.write is None else self.write.columns
        return {**columns, **{name: kind for name, kind in written.items() if name not in columns}}

    def recorded(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Return the settings that decide what is written, under the names that they have in `run.json`."""
        return {
            "stages": [stage.settings for stage in stages],
            "tars": self.tars,
            "max_samples": self.shard_samples,
            "max_bytes": self.shard_bytes,
            "embeddings": self.stored,
            "max_pixels": self.max_pixels,
            **({"metadata": _record_fields(self.metadata)} if self.metadata else {}),
            **({"write": self.write.recorded} if self.write is not None else {}),
        }


def _record_fields(fields: bool | Sequence[str] | Mapping[str, str]) -> Any:
    """The fields that are kept, in JSON's types; in what order they were named does not matter."""
    return fields if fields is True else dict(fields) if isinstance(fields, Mapping) else sorted(set(fields))  # type: ignore[arg-type]


def check_out(
    out: str, source: Source | None = None, *, origin: Mapping[str, Any] | None = None, folders: Sequence[str] = ()
) -> None:
    """Refuse an output that lies in its data set, lies around it, or holds what the data set's globs would find.

    Args:
        out: The output's folder.
        source: The data set, where it is open.
        origin: How the data set is opened, where it is not open.
        folders: Other folders that are read.

    Raises:
        OutputError: The output is one of those places.
    """
    files = _check_places(out, _WRITTEN_PLACES, source, origin, folders)
    place = _find_place(out)
    for folder in sorted({url.rpartition("/")[0] for url in files}):
        if _find_place(folder)[: len(place)] == place:
            raise _make_refusal(out, f"holds files of the data set, in {folder!r}")


def check_file(path: str | os.PathLike[str], source: Source) -> None:
    """Refuse to write a file that is of the data set, or would be taken for one.

    Raises:
        OutputError: The file is one of the data set's, lies in its folder, or matches its glob.
    """
    path = os.fspath(path)
    name = os.path.basename(path)
    same = [url for url in _check_places(path, ((),), source) if url.rpartition("/")[2] == name]
    if _find_place(path) in map(_find_place, same):
        raise _make_refusal(path, "is a file of the data set")


def _check_places(
    out: str,
    written: Sequence[_Place],
    source: Source | None,
    origin: Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
) -> set[str]:
    """Refuse an output by the globs and folders of a data set; returns the files that it has besides."""
    place = _find_place(out)
    locations = () if source is None else source.locations
    folders = [*folders, *(url for url in locations if url.endswith("/"))]
    files = {url for url in locations if not url.endswith("/")}
    for spec in _find_specs(source, origin):
        if _WILDCARD.search(spec) and spec not in files and not os.path.exists(spec):
            if any(_matches(_find_pattern(spec), place + names) for names in written):
                raise _make_refusal(out, f"is where {spec!r} looks for the data set's files")
        elif spec in files or (not is_remote(spec) and not os.path.isdir(spec)):
            files.add(spec)
        else:
            folders.append(spec)
    for folder in folders:
        where = _find_place(folder)
        if place[: len(where)] == where or where[: len(place)] == place:
            how = "is" if place == where else "lies in" if len(place) > len(where) else "lies around"
            raise _make_refusal(out, f"{how} the folder {folder.rstrip('/')!r}, which is read")
    return files


def _make_refusal(out: str, why: str) -> OutputError:
    return OutputError(
        f"the output {out!r} {why}: a later run would take what it holds for data. Choose a folder elsewhere"
    )


def _find_specs(source: Source | None, origin: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Iterate over the absolute paths, URLs and globs that a data set was opened by, brace lists written out."""
    if isinstance(source, Mixture):
        for part in source.sources.values():
            yield from _find_specs(part)
        return
    if isinstance(source, DerivedSource):
        yield from _find_specs(source.source)
        return
    origin = origin if source is None else source.origin
    if source is None and origin is not None:
        inner = [*(origin.get("mixture") or {}).values(), origin.get("of"), (origin.get("view") or {}).get("data")]
        for part in filter(None, inner):
            yield from _find_specs(None, part)
        if "view" in origin:
            yield origin["view"]["out"]
    for spec in (origin or {}).get("spec", ()):
        yield from [spec] if not is_remote(spec) and os.path.exists(spec) else expand_braces(spec)


def _find_place(url: str) -> _Place:
    url = url.rpartition("::")[2]
    protocol, separator, path = url.partition("://")
    if separator:
        protocol = _PROTOCOLS.get(protocol, protocol)
        path = path.partition("?")[0] if protocol.startswith("http") else path
    else:
        protocol, path = "", url
    path = posixpath.normpath(f"/{path}") if protocol else os.path.realpath(os.path.expanduser(path or "/"))
    return protocol, *filter(None, path.split("/"))


def _find_pattern(pattern: str) -> _Place:
    """Find the place of a glob. Links are followed in the folders before its first wildcard."""
    fixed = pattern[: _WILDCARD.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
    return *_find_place(fixed), *filter(None, pattern[len(fixed) :].split("/"))


def _matches(pattern: _Place, place: _Place) -> bool:
    if not pattern or not place:
        return not place and all(name == "**" for name in pattern)
    if pattern[0] == "**":
        return _matches(pattern[1:], place) or _matches(pattern, place[1:])
    return fnmatchcase(place[0], pattern[0]) and _matches(pattern[1:], place[1:])


OPTIONS = ("source", "out", "stages", "device", "executor", *(field.name for field in fields(Settings)), "cache")
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
    content = _parse_file(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not keys with values")
    _check_known(content, OPTIONS, str(path))
    stages = content.get("stages", [])
    if not isinstance(stages, list):
        raise ConfigError(f"{path}: stages is a {type(stages).__name__}; give a list, in TOML one [[stages]] each")
    if "stages" in content:
        content["stages"] = [make_stage(stage, f"{path}: stages[{number}]") for number, stage in enumerate(stages)]
    for name, kind in (("write", Write), ("cache", Cache)):
        if name in content:
            content[name] = _make_value(kind, content[name], f"{path}: {name}")
    return content


def _make_value(kind: type[Write | Cache], settings: Any, where: str) -> Write | Cache:
    """Make a `Write` or a `Cache` of its arguments, which a file gives as a table."""
    if not isinstance(settings, Mapping):
        example = "write = {resize = 512}" if kind is Write else 'cache = {folder = "/nvme/cache", limit = "2TB"}'
        raise ConfigError(f"{where} is {reprlib.repr(settings)}; give a table, as {example}")
    _check_known(settings, [field.name for field in fields(kind)], where)
    return kind(**settings)


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
    own = _import_named(name, f"{where}.type") if ":" in name else None
    if own is not None and not (isinstance(own, type) and issubclass(own, Stage)):
        raise ConfigError(f"{where}: {name} is {own!r}, which is no kind of stage")
    if own is None and name not in STAGES:
        raise ConfigError(f"{where}: there is no stage {name!r}{_suggest(name, STAGES)}; allowed: {', '.join(STAGES)}")
    kind = own or STAGES[name]
    arguments = {key: value for key, value in settings.items() if key != "type"}
    known = [field for field in fields(kind) if field.init]
    _check_known(arguments, [field.name for field in known], f"{where} ({name})")
    needed = [
        f.name for f in known if f.default is MISSING and f.default_factory is MISSING and f.name not in arguments
    ]
    if needed:
        raise ConfigError(f"{where}: {name} needs {', '.join(needed)}")
    if isinstance(arguments.get("where"), str):
        arguments["where"] = _import_named(arguments["where"], f"{where} ({name}).where")
    return kind(**arguments)


def _parse_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"cannot read {str(path)!r}: the name must end in .toml, .yaml or .yml")
    kind = "TOML" if suffix == ".toml" else "YAML"
    data = read_regular(path, _MOST_FILE_BYTES)
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
        if _count_nodes(node, {}) > _MOST_YAML_NODES:
            raise ValueError(
                f"its aliases (*name) make more than {_MOST_YAML_NODES:,} values of it: write out what is meant"
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


def _check_known(given: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{where}: there is no {key!r}{_suggest(str(key), allowed)}; allowed: {', '.join(allowed)}"
            )


def _suggest(name: str, allowed: Collection[str]) -> str:
    found = difflib.get_close_matches(name, allowed, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _import_named(text: str, where: str) -> Any:
    module, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where} is {text!r}, which cannot be imported ({error}); give 'module:function'") from error
    return found
