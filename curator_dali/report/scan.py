"""Passes over an output's rows: histograms of scores, samples of every kind of reason; thresholds of its filters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import kind_of_failure
from curator_dali.io import printable
from curator_dali.outputs import RowFiles
from curator_dali.sampling import mix

Row = dict[str, Any]
"""A row of an output: column -> value, without its embedding."""

Key = tuple[str, str, str]
"""Status, stage and kind of reason."""

Threshold = tuple[float | None, float | None]
"""The least and the largest value that a filter keeps."""

OTHERS = "other reasons"
_MOST_KINDS = 64  # of a stage; a stage of one's own may have a new reason for every image
_MOST_VALUES = 200  # different texts of a column that are told apart; one with more is no class but a name
_ABOUT_COLUMNS = ("image_id", "image_path", "index", "status", "stage", "reason", "reason_kind", "tar", "key")
_HASH_COLUMNS = ("duplicate_group", "duplicate_of", "content_hash", "pixel_hash", "phash", "dhash")
_DIGESTS = ("sha256", "md5", "written_sha256", "written_as")
_NO_SCORES = frozenset([*_ABOUT_COLUMNS, *_HASH_COLUMNS, *_DIGESTS, "embedding"])

_QUANTILE_ROWS = 1_000_000  # of which the range of a histogram is found
_TAIL = 0.005  # of the values at either end may be gathered in the outermost bar
_FAR_RANGES = 4  # times the values' range: a bound beyond that would leave no picture of the values
_EQUAL = 1e-3  # of their size: values that differ by less are one value
_SMALLEST, _LARGEST = 1e-300, 1e300  # differences of other numbers may be zero, or infinite
_BARS = 40  # about
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
    """The findings of the passes over an output.

    Attributes:
        scores: Column of numbers -> its histogram; not of columns without a finite value.
        classes: Column of texts or truth values -> how often each occurs; not of columns with very many.
        missing: Column -> rows without a value.
        samples: (status, stage, kind of reason) -> some of those rows, by chance but the same every time.
        groups: Some groups of duplicates: half of them the largest, half by chance.
        num_groups: How many there are.
        num_alike: Images in them.
    """

    scores: dict[str, Histogram] = field(default_factory=dict)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    samples: dict[Key, list[Row]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    num_groups: int = 0
    num_alike: int = 0


def scan(
    files: RowFiles,
    total: int,
    counted: Mapping[str, Iterable[str]],
    limits: Mapping[str, Threshold] | None = None,
    *,
    each: int = 12,
    kept: int = 24,
    groups: int = 12,
    members: int = 6,
    seed: int = 0,
) -> Scan:
    """Look at the scores of every row, then at every row, a block at a time; last at those of the picked groups.

    Args:
        files: The rows.
        total: Number of rows.
        counted: See `find_kinds`.
        limits: Column -> what its filters keep.
        each: Rows to pick of every kind of reason.
        kept: Rows to pick of those that are kept.
        groups: Groups of duplicates to pick.
        members: Rows to pick of a group.
        seed: Of what is picked.
    """
    names = [name for name in files.schema.names if name not in ("embedding", *files.fields.names)]
    scores, classes = _columns(files)
    found = Scan(scores=_lay_out_histograms(files, total, scores, limits or {}))
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes}
    picked: dict[Key, list[tuple[int, Row]]] = {}
    alike: list[NDArray[np.int64]] = []
    for block in files.batches(names):
        column = dict(zip(names, block.columns, strict=True))
        for name in [*scores, *counts]:
            found.missing[name] += column[name].null_count
        for name, histogram in found.scores.items():
            histogram.add(column[name].to_numpy(zero_copy_only=False).astype(np.float64))  # null is NaN
        for name in [*counts]:
            _count_values(counts, name, column[name])
        index = column["index"].to_numpy(zero_copy_only=False)
        if "duplicate_group" in column:
            number = column["duplicate_group"].fill_null(-1).to_numpy(zero_copy_only=False)
            alike.append(np.stack([number, index])[:, number >= 0])
        _pick(picked, block, find_kinds(block, counted), priority(index, seed), each, kept)
    found.classes = {name: values for name, values in counts.items() if values}
    for key, held in sorted(picked.items()):
        found.samples[key] = sorted((row for _, row in held), key=_by_index)
    if alike:
        _find_groups(found, files, names, np.concatenate(alike, axis=1), groups, members, seed)
    return found


def priority(index: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A number by chance for each index: those with the smallest are a sample, in whatever order they come."""
    with np.errstate(over="ignore"):
        return mix(index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1))


def kind_columns(files: RowFiles) -> list[str]:
    """The columns that `find_kinds` needs."""
    return ["status", "stage", "reason_kind" if "reason_kind" in files.schema.names else "reason"]


def find_kinds(block: Any, counted: Mapping[str, Iterable[str]]) -> Any:
    """The kind of each row's reason, a `pyarrow.StringArray`; null where a sample was kept.

    Args:
        block: Rows, a table or a batch of one, with `kind_columns`.
        counted: Stage -> the kinds of its reasons that occur, for outputs of versions that did not write the column.
    """
    import pyarrow as pa

    if "reason_kind" in block.schema.names:
        return block.column("reason_kind")
    rows = zip(*(block.column(name).to_pylist() for name in ("status", "stage", "reason")), strict=True)
    kinds = [
        None if status == "kept" else printable(_guess_kind(status, reason or "", [*counted.get(stage, ())]))
        for status, stage, reason in rows
    ]
    return pa.array(kinds, pa.string())


def _guess_kind(status: str, reason: str, known: Sequence[str]) -> str:
    """Guess the kind of a reason: the only one, or the longest whose words the reason has in their order."""
    if status == "failed" or len(known) == 1:
        return kind_of_failure(reason) if status == "failed" else known[0]
    for pattern in (r"\S+", r"[A-Za-z]\w*"):  # "cosine 0.97" is of the kind "cosine >= 0.95", whose numbers are others
        fitting = []
        for kind in known:
            words = iter(re.findall(pattern, reason))
            if all(word in words for word in re.findall(pattern, kind)):
                fitting.append(kind)
        if fitting:
            return max(fitting, key=len)
    return reason


def _columns(files: RowFiles) -> tuple[list[str], list[str]]:
    """The names of columns with numbers, and with classes."""
    import pyarrow as pa

    passed_over = _NO_SCORES.union(files.fields.names)
    kinds = {field.name: field.type for field in files.schema if field.name not in passed_over}
    scores = [name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)]
    return scores, [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_boolean(kind)]


def _count_values(counts: dict[str, Counter[str]], name: str, column: Any) -> None:
    """Count a block's values; a column with too many different ones is given up."""
    for pair in column.drop_null().value_counts().to_pylist():
        value = pair["values"]
        counts[name][("yes" if value else "no") if isinstance(value, bool) else str(value)[:200]] += pair["counts"]
    if len(counts[name]) > _MOST_VALUES:
        del counts[name]


def _pick(
    picked: dict[Key, list[tuple[int, Row]]],
    block: Any,
    kinds: Any,
    priorities: NDArray[np.uint64],
    each: int,
    kept: int,
) -> None:
    """Keep the rows with the smallest priorities of every kind."""
    import pyarrow.compute as pc

    texts = [block.column("status"), block.column("stage").fill_null(""), kinds.fill_null("")]
    coded = pc.binary_join_element_wise(*texts, "\n").dictionary_encode()
    codes = coded.indices.to_numpy()
    order = np.lexsort((priorities, codes))
    starts = np.searchsorted(codes[order], np.arange(len(coded.dictionary) + 1))
    for code, text in enumerate(coded.dictionary.to_pylist()):
        status, stage, kind = text.split("\n", 2)
        key = (status, stage, "" if status == "kept" else kind)
        if key not in picked and sum(other[:2] == key[:2] for other in picked) >= _MOST_KINDS:
            key = (status, stage, OTHERS)
        held = picked.setdefault(key, [])
        most = kept if status == "kept" else each
        best = order[starts[code] : starts[code + 1]][:most]
        if len(held) == most:
            best = best[priorities[best] < held[-1][0]]
        held += zip(priorities[best].tolist(), _rows(block, best), strict=True)
        held.sort(key=lambda item: item[0])
        del held[most:]


def _by_index(row: Row) -> int:
    return int(row["index"])


def _rows(block: Any, rows: NDArray[np.int64]) -> list[Row]:
    taken: list[Row] = block.take(rows).to_pylist() if len(rows) else []
    return taken


def _find_groups(
    found: Scan, files: RowFiles, names: list[str], alike: NDArray[np.int64], groups: int, members: int, seed: int
) -> None:
    """Pick groups, and rows of each; `alike` has the group and the index of each image in one, (2, N)."""
    numbers, sizes = np.unique(alike[0], return_counts=True)
    found.num_groups, found.num_alike = len(numbers), int(sizes.sum())
    by_size = np.lexsort((numbers, -sizes))
    largest, rest = by_size[: (groups + 1) // 2], by_size[(groups + 1) // 2 :]
    chance = rest[np.argsort(priority(numbers[rest], seed), kind="stable")[: groups // 2]]
    picked = {int(numbers[place]): int(sizes[place]) for place in [*largest, *chance]}
    wanted = alike[1][np.isin(alike[0], list(picked))]
    held: dict[int, list[Row]] = {number: [] for number in picked}
    for block in files.batches(names) if len(wanted) else ():
        index = block.column("index").to_numpy(zero_copy_only=False)
        for row in _rows(block, np.flatnonzero(np.isin(index, wanted))):
            mine = held[row["duplicate_group"]]
            mine.append(row)
            if len(mine) > 4 * members:  # a group may be large
                held[row["duplicate_group"]] = _pick_members(mine, members)
    found.groups = [Group(number, size, _pick_members(held[number], members)) for number, size in picked.items()]


def _pick_members(rows: Iterable[Row], count: int) -> list[Row]:
    """Pick the first members of a group. An image without a keeper comes first."""
    return sorted(rows, key=lambda row: (row.get("duplicate_of") is not None, row["index"]))[:count]


@dataclass
class Histogram:
    """Bars of equal width at round numbers.

    Attributes:
        edges: B + 1 values.
        counts: (B,) int64.
        below: Values that lie below the first edge, and count in the first bar.
        above: Values that lie above the last edge, and count in the last bar.
        infinite: Values that are infinite, and count in no bar.
    """

    edges: list[float]
    counts: NDArray[np.int64]
    below: int = 0
    above: int = 0
    infinite: int = 0

    @property
    def total(self) -> int:
        """Values in all."""
        return int(self.counts.sum())

    def add(self, values: NDArray[np.float64]) -> None:
        """Count (N,) values; NaN is none."""
        low, high = self.edges[0], self.edges[-1]
        finite = _finite(values)
        self.infinite += int(np.isinf(values).sum())
        self.below += int((finite < low).sum())
        self.above += int((finite > high).sum())
        self.counts += np.histogram(np.clip(finite, low, high), self.edges)[0]


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(values[np.isfinite(values)], -_LARGEST, _LARGEST)


def _lay_out_histograms(
    files: RowFiles, total: int, scores: Sequence[str], limits: Mapping[str, Threshold]
) -> dict[str, Histogram]:
    """Look at the scores of all rows: at the ends of their values, and at a sample of them by chance."""
    share = np.uint64(2**64 - 1 if total <= _QUANTILE_ROWS else 2**64 * _QUANTILE_ROWS // total)
    samples: dict[str, list[NDArray[np.float64]]] = {name: [] for name in scores}
    for block in files.batches(["index", *scores]) if scores else ():
        chosen = priority(block.column(0).to_numpy(zero_copy_only=False), 0) <= share
        for name, column in zip(scores, block.columns[1:], strict=True):
            values = column.to_numpy(zero_copy_only=False).astype(np.float64)  # null is NaN
            finite = _finite(values)
            held = samples[name]
            if len(finite):
                ends = np.array([finite.min(), finite.max()]) if not held else held[0]
                held[:1] = [np.array([min(ends[0], finite.min()), max(ends[1], finite.max())])]
                held.append(finite if chosen.all() else _finite(values[chosen]))
    return {
        name: lay_out_bars(held[0], np.concatenate(held[1:]), limits.get(name, (None, None)))
        for name, held in samples.items()
        if held
    }


def lay_out_bars(ends: NDArray[np.float64], sample: NDArray[np.float64], bounds: Threshold) -> Histogram:
    """Lay bars out from the smallest to the largest value, or nearly: far outliers would leave one bar for all others.

    Args:
        ends: The smallest and the largest value.
        sample: (N,) some of the values.
        bounds: Values to be on the axis, unless they are far from all others; the first begins a bar.
    """
    low, high = _find_range(ends, sample, [bound for bound in bounds if bound is not None])
    step = _round_step((high - low) / _BARS)
    anchor = next((bound for bound in bounds if bound is not None and low <= bound <= high), 0.0)
    first, last = math.floor((low - anchor) / step + 1e-9), math.ceil((high - anchor) / step - 1e-9)
    if anchor + last * step <= high:  # the largest value is within the last bar
        last += 1
    digits = 3 - math.floor(math.log10(step))
    edges = [round(anchor + number * step, digits) for number in range(first, last + 1)]
    return Histogram(edges, np.zeros(len(edges) - 1, np.int64))


def _find_range(ends: NDArray[np.float64], sample: NDArray[np.float64], bounds: list[float]) -> tuple[float, float]:
    """Find the ends of the axis. Outliers that would lengthen the axis by a half are left out."""
    inner = np.quantile(sample, [_TAIL, 1 - _TAIL], method="inverted_cdf") if len(sample) else ends
    low, high = map(float, inner)
    size = max(abs(low), abs(high))
    least = max(_EQUAL * size, _SMALLEST)
    span = high - low if high - low > least else max(0.1 * size, _SMALLEST) if size else 1.0
    near = [bound for bound in bounds if low - _FAR_RANGES * span <= bound <= high + _FAR_RANGES * span]
    low, high = min(low, *near, low), max(high, *near, high)
    low = min(low, float(ends[0])) if ends[0] >= low - span / 4 else low
    high = max(high, float(ends[1])) if ends[1] <= high + span / 4 else high
    return (low, high) if high - low > least else (low - span / 2, high + span / 2)


def _round_step(width: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in _ROUND_STEPS if step * power >= width * (1 - 1e-9))


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
