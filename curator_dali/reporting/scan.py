"""One pass over an output's rows: how its scores are distributed, and some rows of every kind to look at."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.reporting.sketch import Sketch
from curator_dali.sampling.permutation import mix
from curator_dali.sinks import RowFiles

__all__ = ["OTHERS", "Group", "Row", "Scan", "priority", "scan"]

Row = dict[str, Any]
"""A row of an output: column -> value, without its embedding."""

Key = tuple[str, str, str]
"""Status, stage and kind of reason."""

OTHERS = "other reasons"
_MOST_KINDS = 64  # of a stage; a stage of one's own may have a new reason for every image
_MOST_VALUES = 200  # different texts of a column that are told apart; one with more is no class but a name
_ABOUT = ("image_id", "image_path", "index", "status", "stage", "reason", "tar", "key", "embedding")
_HASHES = ("duplicate_group", "duplicate_of", "content_hash", "pixel_hash", "phash", "dhash")
_NO_SCORES = frozenset([*_ABOUT, *_HASHES])


@dataclass(frozen=True)
class Group:
    """Images that are alike.

    Attributes:
        number: The column `duplicate_group`.
        size: How many.
        rows: Some of them; what was kept comes first.
    """

    number: int
    size: int
    rows: list[Row]


@dataclass
class Scan:
    """What a pass found.

    Attributes:
        scores: Column of numbers -> its values.
        classes: Column of texts or truth values -> how often each occurs; not of columns with very many.
        missing: Column -> rows without a value.
        samples: (status, stage, kind of reason) -> some of those rows, by chance but the same every time.
        groups: Some groups of duplicates: half of them the largest, half by chance.
        num_groups: How many there are.
        num_alike: Images in them.
    """

    scores: dict[str, Sketch] = field(default_factory=dict)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    samples: dict[Key, list[Row]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    num_groups: int = 0
    num_alike: int = 0


def scan(
    files: RowFiles,
    kind: Callable[[str, str, str], str],
    *,
    each: int = 12,
    kept: int = 24,
    groups: int = 12,
    members: int = 6,
    seed: int = 0,
) -> Scan:
    """Look at every row once, a block at a time; at those of the groups that are picked, a second time.

    Args:
        files: The rows.
        kind: (status, stage, reason) -> the kind of reason.
        each: Rows to pick of every kind of reason.
        kept: Rows to pick of those that are kept.
        groups: Groups of duplicates to pick.
        members: Rows to pick of a group.
        seed: Of what is picked.
    """
    found = Scan()
    names = [name for name in files.schema.names if name != "embedding"]
    scores, classes = _columns(files)
    found.scores = {name: Sketch() for name in scores}
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes}
    heaps: dict[Key, list[tuple[int, int, Row]]] = {}
    alike: list[NDArray[np.int64]] = []
    for block in files.batches(names):
        column = {name: block.column(place) for place, name in enumerate(names)}
        for name in scores:
            found.scores[name].add(_numbers(column[name]))
            found.missing[name] += column[name].null_count
        for name in [name for name in classes if name in counts]:
            _count(counts, name, column[name])
            found.missing[name] += column[name].null_count
        index = column["index"].to_numpy(zero_copy_only=False)
        if "duplicate_group" in column:
            number = column["duplicate_group"].fill_null(-1).to_numpy(zero_copy_only=False)
            alike.append(np.stack([number, index])[:, number >= 0])
        _pick(heaps, block, column, priority(index, seed), kind, each, kept)
    found.classes = {name: counted for name, counted in counts.items() if counted}
    found.samples = {key: [row for *_, row in sorted(heap, key=_by_index)] for key, heap in sorted(heaps.items())}
    if alike:
        _groups(found, files, names, np.concatenate(alike, axis=1), groups, members, seed)
    return found


def priority(index: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A number by chance for each index: those with the smallest are a sample, in whatever order they come."""
    with np.errstate(over="ignore"):
        return mix(index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1))


def _columns(files: RowFiles) -> tuple[list[str], list[str]]:
    """The names of columns with numbers, and with classes."""
    import pyarrow as pa

    kinds = {field.name: field.type for field in files.schema if field.name not in _NO_SCORES}
    scores = [name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)]
    return scores, [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_boolean(kind)]


def _numbers(column: Any) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = column.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers


def _count(counts: dict[str, Counter[str]], name: str, column: Any) -> None:
    """Count a block's values; a column with too many different ones is given up."""
    for pair in column.drop_null().value_counts().to_pylist():
        value = pair["values"]
        counts[name][("yes" if value else "no") if isinstance(value, bool) else str(value)[:200]] += pair["counts"]
        if len(counts[name]) > _MOST_VALUES:
            del counts[name]
            return


def _pick(
    heaps: dict[Key, list[tuple[int, int, Row]]],
    block: Any,
    column: dict[str, Any],
    priorities: NDArray[np.uint64],
    kind: Callable[[str, str, str], str],
    each: int,
    kept: int,
) -> None:
    """Keep the rows with the smallest priorities of every kind."""
    status = np.array(column["status"].to_pylist(), object)
    rows: dict[Key, list[int]] = {("kept", "", ""): np.flatnonzero(status == "kept").tolist()}
    other = np.flatnonzero(status != "kept")
    told = [column[name].take(other).to_pylist() for name in ("status", "stage", "reason")]
    for row, state, stage, reason in zip(other.tolist(), *told, strict=True):
        key = (state, stage or "", kind(state, stage or "", reason or ""))
        if key not in rows and key not in heaps:
            of_stage = sum(one[:2] == key[:2] for one in {*rows, *heaps})
            key = key if of_stage < _MOST_KINDS else (*key[:2], OTHERS)
        rows.setdefault(key, []).append(row)
    for key, mine in rows.items():
        most = kept if key[0] == "kept" else each
        heap = heaps.setdefault(key, [])
        best = sorted(mine, key=lambda row: int(priorities[row]))[:most]
        if len(heap) == most:
            best = [row for row in best if int(priorities[row]) < -heap[0][0]]
        for row, values in zip(best, _rows(block, best), strict=True):
            item = (-int(priorities[row]), -int(values["index"]), values)
            if len(heap) < most:
                heapq.heappush(heap, item)
            else:
                heapq.heappushpop(heap, item)
        if not heap:
            del heaps[key]


def _rows(block: Any, rows: list[int]) -> list[Row]:
    taken: list[Row] = block.take(np.array(rows, np.int64)).to_pylist() if rows else []
    return taken


def _by_index(item: tuple[int, int, Row]) -> int:
    return -item[1]


def _groups(
    found: Scan, files: RowFiles, names: list[str], alike: NDArray[np.int64], groups: int, members: int, seed: int
) -> None:
    """Pick groups, and rows of each."""
    numbers, sizes = np.unique(alike[0], return_counts=True)
    found.num_groups, found.num_alike = len(numbers), int(sizes.sum())
    by_size = np.lexsort((numbers, -sizes))
    largest, rest = by_size[: (groups + 1) // 2], by_size[(groups + 1) // 2 :]
    chance = rest[np.argsort(priority(numbers[rest], seed), kind="stable")[: groups // 2]]
    picked = {int(numbers[place]): int(sizes[place]) for place in [*largest, *chance]}
    wanted = np.sort(alike[1][np.isin(alike[0], list(picked))])
    held: dict[int, list[Row]] = {number: [] for number in picked}
    for block in files.batches(names) if len(wanted) else ():
        index = block.column(names.index("index")).to_numpy(zero_copy_only=False)
        for row in _rows(block, np.flatnonzero(np.isin(index, wanted)).tolist()):
            mine = held[row["duplicate_group"]]
            mine.append(row)
            if len(mine) > 4 * members:  # a group may be large
                held[row["duplicate_group"]] = _first(mine, members)
    found.groups = [Group(number, size, _first(held[number], members)) for number, size in picked.items()]


def _first(rows: Iterable[Row], count: int) -> list[Row]:
    """What is no duplicate of another comes first."""
    return sorted(rows, key=lambda row: (row.get("duplicate_of") is not None, row["index"]))[:count]
