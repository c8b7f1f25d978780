"""Sidecars of a sample (`.json`, `.txt`, `.cls`): metadata that goes into them comes out equal.

JSON has no dates, bytes or NaN. Such a value is written as other tools expect it, and the field `__types__` says its
type: `{"taken": "2024-05-01", "__types__": {"/taken": "date"}}`. Its keys are JSON Pointers (RFC 6901).
"""

from __future__ import annotations

import base64
import copy
import datetime
import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, DecimalException
from typing import Any
from uuid import UUID

import numpy as np

from curator_dali.io import parse_json

SIDECARS = ("json", "txt", "cls")
"""Extensions of the members that become metadata, in the order that `parse_metadata` takes them."""

_Place = tuple[Any, ...]
"""Place of a value in others: () of the outermost, else the place of the value around it, and its key or number."""

TYPES_FIELD = "__types__"
"""The field of a JSON document that says the types of values that JSON does not have."""

ABSENT = object()
"""Value of a field that a sample does not have, where a column's null would say that it has one."""

_DEEPEST = 98  # of lists and objects in each other; parsing takes two more
_LONGEST_INTEGER = 12_000  # bits; Python reads integers of up to 4,300 digits
_AS_IS = frozenset([str, bool, type(None)])  # JSON has these
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_TIMEDELTA = re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d\d):(\d\d)(?:\.(\d{6}))?")
_PARAMETER = re.compile(r"([\w.]+)\[([^\[\]]+)\]")  # of datetime[Europe/Berlin], numpy.datetime64[ns]


def parse_metadata(
    json_bytes: bytes | None = None,
    txt: bytes | None = None,
    cls: bytes | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    problem: str = "",
) -> dict[str, Any]:
    """Make a sample's metadata of the bytes of its sidecars.

    The fields of a JSON object come first, with the types that `__types__` says; any other JSON value is kept under
    `"json"`. `.txt` is the `caption` unless the JSON has one. `.cls` is the `label` (int), also over one in the JSON:
    it is there for nothing else. `defaults` (a folder's label) fill what is still missing. What cannot be parsed never
    costs the image: the reason stands under `"metadata_error"`, behind a `problem` that there was with reading.
    """
    metadata: dict[str, Any] = {}
    problems = [problem] if problem else []
    if json_bytes is not None:
        try:
            value = parse_json(json_bytes)
        except ValueError as error:
            problems.append(f"invalid .json: {error}")
        else:
            metadata = value if isinstance(value, dict) else {"json": value}
            if TYPES_FIELD in metadata:
                metadata = {name: value for name, value in restore_types(metadata).items() if value is not ABSENT}
    if txt is not None:
        if "caption" not in metadata and _is_broken("txt", txt):
            problems.append("invalid .txt: not UTF-8, nor UTF-16 or UTF-32")
        metadata.setdefault("caption", _decode_text(txt))
    if cls is not None:
        try:
            metadata["label"] = int(_decode_text(cls))
        except ValueError:
            problems.append(f"invalid .cls: {cls[:40]!r} is not an integer")
    for name, value in (defaults or {}).items():
        metadata.setdefault(name, value)
    if problems:
        metadata["metadata_error"] = "; ".join(problems)
    return metadata


def make_sidecars(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Make the sidecars of which `parse_metadata` makes this metadata.

    A text `caption` goes into `.txt` and an integer `label` into `.cls`, where other tools look for these. All other
    fields go into `.json`; see `dump_fields`.

    Returns:
        Extension -> bytes, without empty sidecars.
    """
    fields = {str(name): value for name, value in metadata.items()}
    sidecars: dict[str, bytes] = {}
    label, caption = fields.get("label"), fields.get("caption")
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool) and not _is_long(int(label)):
        sidecars["cls"] = str(int(label)).encode()
        del fields["label"]
    if isinstance(caption, str):
        text = caption.encode("utf-8", "replace")
        if _decode_text(text) == caption:  # white space at its ends would be lost
            sidecars["txt"] = text
            del fields["caption"]
    if fields:
        sidecars["json"] = dump_fields(fields).encode("utf-8", "surrogatepass")
    return sidecars


def add_sidecars(members: Mapping[str, memoryview], metadata: Mapping[str, Any]) -> Mapping[str, memoryview]:
    """Let a sample's sidecars say all of its metadata, also what the source keeps elsewhere (folders, columns).

    Sidecars that say so already keep their bytes. A sidecar that cannot be parsed moves to `EXTENSION.broken`, where
    another one takes its place.
    """
    beside = {extension.lower(): data for extension, data in members.items() if extension.lower() in SIDECARS}
    said = parse_metadata(*(bytes(beside[name]) if name in beside else None for name in SIDECARS))
    if is_same(said, metadata):
        return members
    found = {name: data for name, data in members.items() if name.lower() not in SIDECARS}
    found |= {f"{name}.broken": data for name, data in beside.items() if _is_broken(name, bytes(data))}
    return found | {name: memoryview(data) for name, data in make_sidecars(metadata).items()}


def dump_fields(fields: Mapping[str, Any], *, ascii: bool = False) -> str:
    r"""Write fields as a JSON object, of which `restore_types` gives them back equal.

    Values that JSON does not have are written as text (dates as ISO 8601, bytes as Base64); NaN and infinities as null.
    `__types__` says what they were, where reading gives an equal value. Keys that are no texts become texts; arrays
    become lists.

    Args:
        fields: The fields.
        ascii: Whether to write other characters, and halves of surrogate pairs, as `\uXXXX`.
    """
    types: dict[str, Any] = {}
    document = _encode(fields, (), types, 0)
    if TYPES_FIELD in document:  # a field of that name makes way: no pointer is spelt so
        types[TYPES_FIELD] = document.pop(TYPES_FIELD)
    if types:
        document[TYPES_FIELD] = types
    return json.dumps(document, ensure_ascii=ascii)


def restore_types(document: dict[str, Any]) -> dict[str, Any]:
    """Give the values of a JSON object the types that its `__types__` says.

    Returns:
        The fields, with `ABSENT` for those that say so. The same object where `__types__` is no mapping that
        `dump_fields` writes: then it is a field as any other.
    """
    types = document.get(TYPES_FIELD)
    if not isinstance(types, dict) or not types:
        return document
    try:
        fields = copy.deepcopy({name: value for name, value in document.items() if name != TYPES_FIELD})
        if TYPES_FIELD in types:
            fields[TYPES_FIELD] = copy.deepcopy(types[TYPES_FIELD])
        pointers = [(name.split("/"), kind) for name, kind in types.items() if name != TYPES_FIELD]
        for (root, *path), kind in sorted(pointers, key=lambda pair: -len(pair[0])):  # inner values first
            if root or not path:
                return document
            *above, last = (step.replace("~1", "/").replace("~0", "~") for step in path)
            outer: Any = fields
            for step in above:
                outer = outer[int(step) if isinstance(outer, list) else step]
            place: Any = int(last) if isinstance(outer, list) else last
            outer[place] = _decode(kind, outer[place])
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError):
        return document
    return fields


def merge_rest(fields: dict[str, Any], rest: str | None) -> dict[str, Any]:
    """Merge fields that columns hold with others, a text of `dump_fields`, which go first. None holds no others."""
    if rest is None:
        return fields
    merged = fields | restore_types(parse_json(rest))
    return {name: value for name, value in merged.items() if value is not ABSENT}


def is_same(value: Any, other: Any, exact: bool = True) -> bool:
    """Whether two values are equal, also within lists and mappings; NaN equals NaN.

    Args:
        value: A value.
        other: Another.
        exact: Whether an integer is another value than the float of its size. A truth value always is.
    """
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(is_same(inner, other[name], exact) for name, inner in value.items())
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = zip(value, other, strict=False)
        return (
            isinstance(value, tuple) == isinstance(other, tuple)
            and len(value) == len(other)
            and all(is_same(inner, outer, exact) for inner, outer in pairs)
        )
    if hasattr(value, "tolist") and not isinstance(value, (np.datetime64, np.timedelta64)):
        value = value.tolist()
        if isinstance(value, list):
            return is_same(value, other, exact)
    number, another = _number_type(value), _number_type(other)
    if number is not another and (exact or bool in (number, another) or None in (number, another)):
        return False
    try:
        if isinstance(value, Decimal) and isinstance(other, Decimal):
            return str(value) == str(other) or bool(value.is_finite() and value == other)
        return bool(value == other) or bool(value != value and other != other)
    except (TypeError, ValueError, DecimalException):
        return False


def _number_type(value: Any) -> type | None:
    """The type of a number; None of anything else."""
    return next((kind for kind in (bool, int, float) if isinstance(value, kind)), None)


def to_text(value: Any) -> str:
    """Make a text of a value: as it is, dates and the like as `.json` has them, anything else as JSON."""
    plain = value if isinstance(value, (str, int, float, list, dict, type(None))) else _to_json(value)
    return plain if isinstance(plain, str) else json.dumps(_name_keys(plain), ensure_ascii=False, default=_to_json)


def _encode(value: Any, at: _Place, types: dict[str, Any], depth: int) -> Any:
    """Make a value of JSON's types; `types` gets the type of each inner value that is none, by its pointer."""
    if type(value) in _AS_IS or isinstance(value, str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        types[_point(at)] = "nan" if value != value else "inf" if value > 0 else "-inf"
        return None
    if isinstance(value, int):
        if not _is_long(value):
            return value
        types[_point(at)] = "int"
        return hex(value)
    if isinstance(value, (Mapping, list, tuple)):
        return _encode_nested(value, at, types, depth)
    if value is ABSENT:
        types[_point(at)] = "absent"
        return None
    plain, kind = _spell(value)
    if kind:
        try:
            if is_same(_decode(kind, plain), value):
                types[_point(at)] = kind
        except (ValueError, TypeError, LookupError, ArithmeticError):  # it reads as another value: a text only
            pass
        return plain
    return plain if isinstance(plain, str) else _encode(plain, at, types, depth)


def _encode_nested(value: Any, at: _Place, types: dict[str, Any], depth: int) -> Any:
    """Do the same to a mapping, a list or a tuple."""
    if depth > _DEEPEST:
        types[_point(at)] = "json"
        return dump_fields({"": value})
    if not isinstance(value, Mapping):
        if isinstance(value, tuple):
            types[_point(at)] = "tuple"
        return [
            inner if type(inner) in _AS_IS else _encode(inner, (at, place), types, depth + 1)
            for place, inner in enumerate(value)
        ]
    found = {}
    for key, inner in value.items():
        name = key if type(key) is str else _name_key(key)
        found[name] = inner if type(inner) in _AS_IS else _encode(inner, (at, name), types, depth + 1)
    return found


def _point(at: _Place) -> str:
    """The JSON Pointer of a place."""
    steps: list[str] = []
    while at:
        at, step = at
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in reversed(steps))


def _spell(value: Any) -> tuple[Any, str]:
    """A value that JSON does not have as one that it has, and its type; no type where nothing reads it back."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return _to_json(value), f"numpy.{value.dtype}"
    if hasattr(value, "tolist"):
        return value.tolist(), ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode(), "bytes"
    if type(value).__module__.partition(".")[0] == "pandas":
        name = "Timedelta" if isinstance(value, datetime.timedelta) else "Timestamp"
        return _to_json(value), f"pandas.{name}" if isinstance(value, (datetime.datetime, datetime.timedelta)) else ""
    if isinstance(value, datetime.datetime):
        zone = getattr(value.tzinfo, "key", None)  # two zones disagree on the hour that comes twice in autumn
        return value.isoformat(), f"datetime[{zone}]" if zone else "datetime"
    for kind in (datetime.date, datetime.time, datetime.timedelta, Decimal, UUID):
        if isinstance(value, kind):
            return _to_json(value), kind.__name__.lower()
    return _to_json(value), ""


def _decode(kind: Any, plain: Any) -> Any:
    """Make a value of a type from how it is spelt in JSON.

    Raises:
        ValueError: It is none of that type, or there is no such type; Python raises other errors as well.
    """
    name, parameter = _PARAMETER.fullmatch(kind).groups() if _PARAMETER.fullmatch(kind) else (kind, "")  # type: ignore[union-attr]
    if name in ("nan", "inf", "-inf", "absent"):
        if plain is not None:
            raise ValueError(f"{name} is spelt null, not {plain!r}")
        return ABSENT if name == "absent" else _FLOATS[name]
    if name == "tuple" and isinstance(plain, list):
        return tuple(plain)
    if name == "numpy.datetime64":
        made: Any = np.datetime64  # whose units are a list of texts to type checkers
        return made(plain, parameter)
    if name == "numpy.timedelta64":
        made = np.timedelta64
        return made(_parse_timedelta(plain) if isinstance(plain, str) else plain, parameter)
    if not isinstance(plain, str):
        raise ValueError(f"{plain!r} is no {name}")
    if name == "datetime" and parameter:
        return _parse_local_time(plain, parameter)
    return _TEXT_TYPES[name](plain)


def _parse_timedelta(text: str) -> datetime.timedelta:
    match = _TIMEDELTA.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration")
    days, hours, minutes, seconds, micros = (int(part or 0) for part in match.groups())
    return datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, microseconds=micros)


def _parse_local_time(text: str, zone: str) -> datetime.datetime:
    """A time on the clocks of a zone; the offset tells which of two it is, and there are times that clocks skip."""
    from zoneinfo import ZoneInfo

    found = datetime.datetime.fromisoformat(text)
    for fold in (0, 1):
        local = found.replace(tzinfo=ZoneInfo(zone), fold=fold)
        if local.utcoffset() == found.utcoffset():
            return local
    raise ValueError(f"{text!r} has an offset that {zone} has not")


def _parse_pandas(kind: str, text: str) -> Any:
    """A `Timestamp` or a `Timedelta`; the text where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        return text
    return getattr(pandas, kind)(text)


def _parse_deep(text: str) -> Any:
    return restore_types(parse_json(text))[""]


_TEXT_TYPES: dict[str, Callable[[str], Any]] = {
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "decimal": Decimal,
    "int": lambda text: int(text, 16),
    "json": _parse_deep,
    "pandas.Timedelta": lambda text: _parse_pandas("Timedelta", text),
    "pandas.Timestamp": lambda text: _parse_pandas("Timestamp", text),
    "time": datetime.time.fromisoformat,
    "timedelta": _parse_timedelta,
    "uuid": UUID,
}
"""Type -> function from how it is spelt in JSON, of types that are spelt as texts."""


def _is_long(number: int) -> bool:
    """Whether an integer has more digits than Python reads."""
    return number.bit_length() > _LONGEST_INTEGER


def _is_broken(extension: str, data: bytes) -> bool:
    """Whether a sidecar cannot be parsed."""
    try:
        if extension == "json":
            parse_json(data)
        elif extension == "cls":
            int(_decode_text(data))
        else:
            data.decode(json.detect_encoding(data))
    except ValueError:
        return True
    return False


def _decode_text(data: bytes) -> str:
    """Text in UTF-8 or, by its byte-order mark or its zeros, in UTF-16 or UTF-32; without white space at its ends."""
    return data.decode(json.detect_encoding(data), "replace").strip()


def _name_key(name: Any) -> str:
    """The key of a mapping as a text, as `json` has it."""
    if isinstance(name, str):
        return name
    if isinstance(name, (bool, int, float, type(None))):
        return json.dumps(name)
    return str(name)


def _name_keys(value: Any) -> Any:
    """A value in which all keys of mappings are texts."""
    if isinstance(value, Mapping):
        return {str(name): _name_keys(inner) for name, inner in value.items()}
    return [_name_keys(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _to_json(value: Any) -> Any:
    """Make a value that JSON does not have into one that it has: numpy's as lists and numbers, bytes as Base64."""
    if hasattr(value, "tolist"):
        plain = value.tolist()
        return _to_json(plain) if isinstance(value, (np.datetime64, np.timedelta64)) else plain
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    return value if isinstance(value, (int, type(None))) else _spell_text(value)


def _spell_text(value: Any) -> str:
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
