"""Entries of samples in tars, gathered from indexes: places of members, names, headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import LARGEST_FILE, Stat, one_line
from curator_dali.sources.base import HEADER_DTYPE, group_rows
from curator_dali.sources.tar_index import ENTRY_NUMBERS

_SHARD_SPAN_BITS = 44  # of a place on a line of shards: 16 TiB, more than a store takes as one object


class Items(NamedTuple):
    """Members to read: for which row of the batch, from where in its shard, how many bytes; (M,) int64 each."""

    row: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


class MemberRows(NamedTuple):
    """All members of a batch's samples, and their extensions as the names have them (`jpg`, `left.JPG`)."""

    items: Items
    extensions: list[str]


@dataclass
class Entries:
    """Entries of N samples in the indexes of their tars, a row each.

    Attributes:
        shard: (N,) int64, the number of the tar.
        limit: (N,) int64, bytes in the tar.
        table: (N, 12) int64, the numbers of an `ENTRY`.
        headers: (N,) `HEADER_DTYPE`.
        names: N names of the members that samples are named after; None for rows that failed.
        samples: (N,) int64, the numbers of the samples in their tars.
        failed: Row -> why nothing is known of it now.
        members: All members, where asked for.
    """

    shard: NDArray[np.int64]
    limit: NDArray[np.int64]
    table: NDArray[np.int64]
    headers: NDArray[np.void]
    names: list[str | None]
    samples: NDArray[np.int64]
    failed: dict[int, str] = field(default_factory=dict)
    members: MemberRows | None = None


class ShardTable(Protocol):
    """Tars whose indexes are loaded one by one; see `tar_shards.Shards`."""

    @property
    def stats(self) -> Sequence[Stat]:
        """Size and version of each tar."""

    def __getitem__(self, number: int) -> Any:
        """A loaded tar."""


def empty_entries(shard: NDArray[np.int64], samples: NDArray[np.int64]) -> Entries:
    """Make entries of N samples that are to be filled in."""
    count = len(shard)
    table, headers = np.zeros((count, ENTRY_NUMBERS), np.int64), np.zeros(count, HEADER_DTYPE)
    return Entries(shard, np.zeros(count, np.int64), table, headers, [None] * count, samples)


def gather_loaded(
    shards: ShardTable, shard: NDArray[np.int64], samples: NDArray[np.int64], *, members: bool = False
) -> Entries:
    """Gather entries from the indexes of single tars, each of which is loaded.

    Args:
        shards: The tars.
        shard: (N,) the tars of samples.
        samples: (N,) their numbers in these.
        members: Whether to gather all members.
    """
    found = empty_entries(shard, samples)
    parts: list[MemberRows] = []
    for rows in group_rows(shard):
        number = int(shard[rows[0]])
        found.limit[rows] = shards.stats[number].size
        try:
            loaded = shards[number]
        except (OSError, SourceError) as error:
            found.failed.update(dict.fromkeys(rows.tolist(), one_line(error)))
            continue
        index, at = loaded.index, samples[rows]
        found.table[rows], found.headers[rows] = index.table[at], loaded.headers[at]
        names, blob = found.names, index.names
        for row, (start, size) in zip(rows.tolist(), found.table[rows, -4:-2].tolist(), strict=True):
            names[row] = str(blob[start : start + size], "utf-8")
        if members:
            parts.append(_members_of(index, rows, at))
    if members:
        found.members = join_members(parts)
    return found


def _members_of(index: Any, rows: NDArray[np.int64], samples: NDArray[np.int64]) -> MemberRows:
    first = index.first[samples].astype(np.int64)
    counts = index.first[samples + 1] - first
    numbers = expand(first, counts)
    places = index.members[numbers].astype(np.int64)
    names = [index.names[start : start + size] for start, size in places[:, 2:].tolist()]
    return MemberRows(Items(np.repeat(rows, counts), places[:, 0], places[:, 1]), list(map(extension_of, names)))


def extension_of(name: bytes | memoryview) -> str:
    """The extension of a member's name, from the first dot of its last component on."""
    text = str(name, "utf-8")
    return text[text.find(".", text.rfind("/") + 1) + 1 :]


def expand(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of runs that begin at `first` and have `counts` numbers, one run after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    numbers: NDArray[np.int64] = np.arange(total) + np.repeat(first - (ends - counts), counts)
    return numbers


def join_members(parts: Sequence[MemberRows]) -> MemberRows:
    """Put members of several tars one after the other."""
    none = np.zeros(0, np.int64)
    items = zip(*(part.items for part in parts), strict=True) if parts else ((none,), (none,), (none,))
    extensions = [extension for part in parts for extension in part.extensions]
    return MemberRows(Items(*(np.concatenate(columns) for columns in items)), extensions)


def drop_unreadable(
    found: MemberRows, limit: NDArray[np.int64], skipped: NDArray[np.bool_]
) -> tuple[Items, list[str], Mapping[int, int]]:
    """Leave out members that the end of a tar cuts, or that are too large.

    Args:
        found: All members.
        limit: (N,) bytes in the tar of each row.
        skipped: (N,) whether a sample's members are not wanted.

    Returns:
        Whole members; their extensions; row -> bytes of a member that is too large to be read.
    """
    row, offset, size = found.items
    whole = (offset + size <= limit[row]) & ~skipped[row]
    over = whole & (size > LARGEST_FILE)
    large = dict(zip(row[over].tolist(), size[over].tolist(), strict=True))
    whole &= ~over
    if whole.all():
        return found.items, found.extensions, large
    kept = [extension for extension, is_whole in zip(found.extensions, whole.tolist(), strict=True) if is_whole]
    return Items(row[whole], offset[whole], size[whole]), kept, large


def coalesce(
    shard: NDArray[np.int64], offset: NDArray[np.int64], size: NDArray[np.int64], gap: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Join items (M of them) that lie within `gap` bytes of each other in one shard into extents (E of them).

    Returns:
        (M,) each item's extent; (E,) their shards, (E,) where they start and (E,) end in them; (M,) where each item
        begins when all extents are laid one after the other.
    """
    if len(offset) == 0:
        none = np.zeros(0, np.int64)
        return none, none, none, none, none
    order = np.lexsort((offset, shard))
    s, o = shard[order], offset[order]  # (M,) sorted by shard, then by place
    rank = np.zeros(len(s), np.int64)
    np.cumsum(s[1:] != s[:-1], out=rank[1:])
    # (M,) the start of each item's shard on one line of shards end to end, so that one running maximum serves all
    base = rank << _SHARD_SPAN_BITS
    reach = np.maximum.accumulate(base + o + size[order])  # (M,) how far the items up to each one reach on that line
    begins = np.ones(len(order), bool)  # (M,) whether an item begins an extent
    begins[1:] = base[1:] + o[1:] > reach[:-1] + gap
    begins[1:] |= rank[1:] != rank[:-1]
    first = begins.nonzero()[0]  # (E,) each extent's first item
    starts = o[first]
    ends = reach[np.append(first[1:], len(order)) - 1] - base[first]
    extent = np.empty(len(order), np.int64)
    extent[order] = np.cumsum(begins) - 1
    laid = np.zeros(len(first), np.int64)  # (E,) where each extent begins when all are laid end to end
    np.cumsum((ends - starts)[:-1], out=laid[1:])
    return extent, s[first], starts, ends, laid[extent] + offset - starts[extent]
