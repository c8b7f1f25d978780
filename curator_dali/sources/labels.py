"""Labels by folders and by schemas: which classes there are, what is odd about them, and which folders are splits."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io.files import parse_json
from curator_dali.io.ranges import strip_query

__all__ = [
    "ClassNames",
    "add_class_names",
    "number_classes",
    "read_class_names",
    "warn_of_split_files",
    "warn_of_split_folders",
]

logger = logging.getLogger(__name__)

SPLITS = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "dev"])
"""Usual names of the parts of a data set, in lower case."""

_SPLIT_FILE = re.compile(rf"({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?:[-_.]?\d[^/]*)?\.\w+", re.IGNORECASE)
_MOST_NAMES = 5
_KEY = b"huggingface"  # of the metadata of a schema

ClassNames = Mapping[str, Sequence[str]]
"""Column of integers -> names, by integer."""


def number_classes(paths: Sequence[str], folders: Iterable[str], root: str) -> tuple[list[str], NDArray[np.int32]]:
    """Number the folders right below the root by name, if every image lies in one.

    Folders without images are classes too: training and validation data then agree on the numbers.

    Args:
        paths: N paths of images below the root.
        folders: Names of all folders right below the root.
        root: Where that is, for warnings.

    Returns:
        Names by label, and (N,) int32 labels; no names and -1 where there are no class folders.
    """
    above = [path.partition("/")[0] if "/" in path else "" for path in paths]
    filled = set(above)
    none = np.full(len(paths), -1, np.int32)
    if "" in filled or not filled:
        if len(filled) > 1:
            logger.warning(
                "no labels are made of the folders in %s: %d of %d images lie beside the folders %s, in no class. Move "
                "these images into a folder, or give label_from_folder=False if folders are no classes",
                root,
                above.count(""),
                len(above),
                _list_names(filled - {""}),
            )
        return [], none
    names = sorted(filled.union(folders))
    if empty := [name for name in names if name not in filled]:
        logger.warning(
            "%d of %d class folders in %s have no images: %s. Each keeps its label; remove these folders if they are "
            "no classes, or give label_from_folder=False",
            len(empty),
            len(names),
            root,
            _list_names(empty),
        )
    warn_of_split_folders(names, root)
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[folder] for folder in above], np.int32)


def warn_of_split_folders(names: Sequence[str], root: str) -> None:
    """Warn where the folders right below the root are splits of a data set, not classes."""
    splits = [name for name in names if name.lower() in SPLITS]
    if splits and ("train" in splits or len(splits) == len(names)):
        logger.warning(
            "the folders %s in %s are named like splits of a data set, and all are read as one, with these as its "
            "classes if it has class folders: open %s/%s instead, or give label_from_folder=False",
            _list_names(splits),
            root,
            root,
            splits[0],
        )


def warn_of_split_files(urls: Sequence[str], spec: str) -> None:
    """Warn where files that are read as one data set are splits (`train-00000-of-00002.parquet`, `test.tar`).

    Args:
        urls: The files.
        spec: What the user named.
    """
    splits: dict[str, str] = {}  # split -> a pattern of its files
    for url in urls:
        folder, _, file = strip_query(url).rpartition("/")
        above = folder.rpartition("/")[2]
        if match := _SPLIT_FILE.fullmatch(file):
            splits.setdefault(match[1], f"{folder}/{match[1]}*.{file.rpartition('.')[2]}")
        elif above.lower() in SPLITS:
            splits.setdefault(above, folder)
    if len(splits) > 1:
        logger.warning(
            "%s holds the splits %s, and all are read as one data set: give %r for one of them",
            spec,
            _list_names(splits),
            next(iter(splits.values())),
        )


def read_class_names(schema: Any) -> dict[str, list[str]]:
    """Read which columns of a file are numbers of classes, and how the classes are called.

    Args:
        schema: The `pyarrow.Schema`. What in its metadata is damaged counts as absent.

    Returns:
        Column -> names, by number.
    """
    import pyarrow as pa

    found: dict[str, list[str]] = {}
    try:
        features: dict[str, Any] = parse_json((schema.metadata or {}).get(_KEY, b"{}"))["info"]["features"]
        for column, feature in features.items():
            if not isinstance(feature, dict):  # a list is a sequence
                continue
            names: Any = feature.get("names") if feature.get("_type") == "ClassLabel" else None
            known = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if known and column in schema.names and pa.types.is_integer(schema.field(column).type):
                found[column] = names
    except (ValueError, KeyError, TypeError, AttributeError):  # of another tool, or damaged
        return {}
    return found


def add_class_names(fields: dict[str, Any], classes: ClassNames) -> dict[str, Any]:
    """Put the name of each class beside its number, as `COLUMN_name`; a field of that name stays.

    Args:
        fields: A row. It is changed.
        classes: The names, by column.

    Returns:
        The row.
    """
    for column, names in classes.items():
        number = fields.get(column)
        if isinstance(number, int) and 0 <= number < len(names):  # -1 is no class: of test data, say
            fields.setdefault(f"{column}_name", names[number])
    return fields


def _list_names(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(repr, names[:_MOST_NAMES])) + (f" and {len(names) - _MOST_NAMES} more" * (len(names) > 5))
