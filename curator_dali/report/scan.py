"""One pass over an output's rows: histograms of scores, samples of every kind of reason; thresholds of its filters."""

from __future__ import annotations

import heapq
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import StageError, kind_of_failure
from curator_dali.outputs import RowFiles, labels_of
from curator_dali.sampling import mix
from curator_dali.stages import STAGES, GlobalSelector, Selector, Stage

__all__ = ["OTHERS", "Group", "Key", "Kinds", "Row", "Scan", "Sketch", "Threshold", "priority", "scan", "thresholds"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""A row of an output: column -> value, without its embedding."""

Key = tuple[str, str, str]
"""Status, stage and kind of reason."""

Threshold = tuple[float | None, float | None]
"""The least and the largest value that a filter keeps."""

OTHERS = "other reasons"
_MOST_KINDS = 64  # of a stage; a stage of one's own may have a new reason for every image
_MOST_VALUES = 200  # different texts of a column that are told apart; one with more is no class but a name
_ABOUT_COLUMNS = ("image_id", "image_path", "index", "status", "stage", "reason", "tar", "key", "embedding")
_HASH_COLUMNS = ("duplicate_group", "duplicate_of", "content_hash", "pixel_hash", "phash", "dhash")
_NO_SCORES = frozenset([*_ABOUT_COLUMNS, *_HASH_COLUMNS])

_DROPPED_BITS = 13  # of a float32's 23 of the fraction: what is left tells values apart that differ by 0.1%
_TAIL = 0.005  # of the values at either end may be gathered in the outermost bar
_FAR_RANGES = 4  # times the values' range: a bound beyond that would leave no picture of the values
_ROUND_STEPS = (1, 2, 2.5, 5, 10)


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
            _count_values(counts, name, column[name])
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


def _count_values(counts: dict[str, Counter[str]], name: str, column: Any) -> None:
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
                held[row["duplicate_group"]] = _pick_members(mine, members)
    found.groups = [Group(number, size, _pick_members(held[number], members)) for number, size in picked.items()]


def _pick_members(rows: Iterable[Row], count: int) -> list[Row]:
    """Pick the first members of a group. An image without a keeper comes first."""
    return sorted(rows, key=lambda row: (row.get("duplicate_of") is not None, row["index"]))[:count]


class Sketch:
    """How often every value was seen, to 0.1%: 4 MB, whatever the number of values and their range.

    A value counts in the bin of the sign, the exponent and the first ten bits of the fraction that it has as float32;
    neither the order nor the blocks in which values come matter.
    """

    def __init__(self) -> None:
        self._bins = np.zeros(1 << (32 - _DROPPED_BITS), np.int64)
        self.infinite = 0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count (N,) values; NaN is none, infinite ones are counted apart."""
        finite = values[np.isfinite(values)]
        self.infinite += int(np.isinf(values).sum())
        limit = np.finfo(np.float32).max
        bits = (np.clip(finite, -limit, limit).astype(np.float32) + np.float32(0)).view(np.uint32)  # no -0.0
        self._bins += np.bincount(bits >> _DROPPED_BITS, minlength=len(self._bins))

    def __len__(self) -> int:
        return int(self._bins.sum())

    def histogram(self, bounds: tuple[float | None, float | None] = (None, None), bars: int = 40) -> Histogram | None:
        """Bars from the smallest to the largest value, or nearly: far outliers would leave one bar for all others.

        Args:
            bounds: Values to be on the axis, unless they are far from all others; the first begins a bar.
            bars: About how many, 20 at the least.

        Returns:
            None if there is no value.
        """
        used = np.flatnonzero(self._bins)
        if not len(used):
            return None
        values = (used.astype(np.uint32) << np.uint32(_DROPPED_BITS)).view(np.float32).astype(np.float64)
        order = np.argsort(values)
        values, counts = values[order], self._bins[used][order]
        total = int(counts.sum())
        low, high = _find_range(values, counts, [bound for bound in bounds if bound is not None])
        step = _round_step((high - low) / bars)
        anchor = next((bound for bound in bounds if bound is not None and low <= bound <= high), 0.0)
        first, last = math.floor((low - anchor) / step + 1e-9), math.ceil((high - anchor) / step - 1e-9)
        if anchor + last * step <= high:  # the largest value is within the last bar
            last += 1
        digits = 3 - math.floor(math.log10(step))
        edges = [round(anchor + number * step, digits) for number in range(first, last + 1)]
        place = np.floor((values - edges[0]) / step + 1e-9).astype(np.int64)
        held = np.bincount(np.clip(place, 0, len(edges) - 2), counts, minlength=len(edges) - 1).astype(np.int64)
        below, above = int(counts[place < 0].sum()), int(counts[place > len(edges) - 2].sum())
        return Histogram(held.tolist(), edges, below, above, total)


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width at round numbers.

    Attributes:
        counts: B numbers.
        edges: B + 1 values.
        below: Values that lie below the first edge, and count in the first bar.
        above: Values that lie above the last edge, and count in the last bar.
        total: Values in all.
    """

    counts: list[int]
    edges: list[float]
    below: int
    above: int
    total: int


def _find_range(values: NDArray[np.float64], counts: NDArray[np.int64], bounds: list[float]) -> tuple[float, float]:
    """Find the ends of the axis. Outliers that would lengthen the axis by a half are left out."""
    seen = np.cumsum(counts)
    low, high = (float(values[np.searchsorted(seen, share * seen[-1])]) for share in (_TAIL, 1 - _TAIL))
    span = (high - low) or abs(low) * 0.1 or 1.0
    near = [bound for bound in bounds if low - _FAR_RANGES * span <= bound <= high + _FAR_RANGES * span]
    low, high = min(low, *near, low), max(high, *near, high)
    low = min(low, float(values[0])) if values[0] >= low - span / 4 else low
    high = max(high, float(values[-1])) if values[-1] <= high + span / 4 else high
    return (low, high) if high > low else (low - span / 2, high + span / 2)


def _round_step(width: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in _ROUND_STEPS if step * power >= width * (1 - 1e-9))


class Kinds:
    """Classifies reasons by the stages recorded in an output, as the counts of the output do.

    Args:
        settings: Of the output's manifest.
        counted: Stage -> kinds of reasons that occur, for stages that cannot be made again from their settings.
    """

    def __init__(self, settings: Mapping[str, Any], counted: Mapping[str, Mapping[str, int]]) -> None:
        self._counted = {stage: list(kinds) for stage, kinds in counted.items()}
        self._makers: dict[str, Callable[[str], str]] = {}
        stages = settings.get("stages", [])
        made = [_remake_stage(stage) for stage in stages]
        names = [_name_stage(known) if stage is None else stage.name for known, stage in zip(stages, made, strict=True)]
        for label, stage in zip(labels_of(names), made, strict=True):
            if isinstance(stage, (Selector, GlobalSelector)):
                self._makers[label] = stage.kind

    def __call__(self, status: str, stage: str, reason: str) -> str:
        """The kind; the reason itself where nothing is known of it."""
        if status == "failed":
            return kind_of_failure(reason)
        known = self._counted.get(stage, [])
        if len(known) == 1:
            return known[0]
        if maker := self._makers.get(stage):
            return maker(reason)
        words = reason.split()
        return max((kind for kind in known if _contains_words(kind.split(), words)), key=len, default=reason)


def thresholds(settings: Mapping[str, Any]) -> dict[str, Threshold]:
    """Field -> the least and the largest value that its filters keep, as an output's settings have them."""
    found: dict[str, Threshold] = {}
    for stage in settings.get("stages", []):
        if stage.get("type") == "Filter":
            low, high = found.get(stage["field"], (None, None))
            lows = [bound for bound in (low, stage.get("min")) if bound is not None]
            highs = [bound for bound in (high, stage.get("max")) if bound is not None]
            found[stage["field"]] = (max(lows, default=None), min(highs, default=None))
    return found


def _remake_stage(settings: Mapping[str, Any]) -> Stage | None:
    """Make a stage again from its settings, without weights. None if the settings do not suffice."""
    kind = STAGES.get(settings.get("type", ""))
    try:
        if kind is not None:
            return kind(**{name: value for name, value in settings.items() if name != "type"})
    except (StageError, TypeError, ValueError) as error:  # a function is recorded by its name only
        logger.debug("%s is not made again: %s", settings.get("type"), error)
    return None


def _name_stage(settings: Mapping[str, Any]) -> str:
    """Name a stage by its settings, as most stages name themselves."""
    kind = settings.get("type", "")
    return f"Filter({settings.get('field')})" if kind == "Filter" else kind


def _contains_words(some: Sequence[str], words: Sequence[str]) -> bool:
    """Check whether words contain all of some words, in the same order."""
    rest = iter(words)
    return all(word in rest for word in some)
