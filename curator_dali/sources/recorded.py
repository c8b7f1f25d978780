"""The data set of an output, opened again: recorded by its files, and found where these were moved or renamed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from curator_dali.errors import SourceError
from curator_dali.io import explained, join, parse_json, store, write_file
from curator_dali.outputs import Manifest
from curator_dali.sources.base import KINDS, ShardRecord, Source
from curator_dali.sources.open import open_source, reopen
from curator_dali.sources.subset import DerivedSource

_NAME = "_manifest/sources.jsonl"
_MOST_NAMED = 5  # files in a refusal


def record_shards(manifest: Manifest, shards: Sequence[ShardRecord]) -> None:
    """Write down in an output of which files its data set is made, once; nothing where these are no shards.

    Raises:
        OutputError: The output cannot be written to.
    """
    url = join(manifest.folder, _NAME)
    if shards and store.read(url) is None:
        lines = [json.dumps(shard._asdict()).encode() + b"\n" for shard in shards]
        with explained(url):
            write_file(url, b"".join(lines))


def read_shards(folder: str) -> list[ShardRecord]:
    """Read what `record_shards` wrote; nothing where it wrote nothing, or where the file is damaged."""
    data = store.read(join(folder, _NAME)) or b""
    try:
        return [ShardRecord(**parse_json(line)) for line in data.splitlines()]
    except (ValueError, TypeError):
        return []


def open_recorded(manifest: Manifest, data: Any = None, *, argument: str = "data=") -> Source:
    """Open the data set of an output again.

    Tars and Parquet files may lie elsewhere, under other names and in another order: they are told by size and
    content hash, or by their samples.

    Args:
        manifest: The output's.
        data: The data set, where it is known better than recorded: what `open_source` takes.
        argument: The argument that `data` was, for messages.

    Raises:
        SourceError: It is not recorded how to open it, it is gone, or it is another one by now. Files that are
            missing, changed or new are named.
    """
    recorded, origin = manifest.run["source"], manifest.run.get("origin")
    if data is None and origin is None:
        raise SourceError(
            f"{manifest.folder} does not say how its data set is opened again (it was given as an object): give "
            f"{argument}"
        )
    if isinstance(data, Source) and data.fingerprint == recorded:
        return data
    try:
        # a join or a view that was opened anew is the whole, and not the files that the whole is made of
        is_whole = any(isinstance(data, kind) for kind in KINDS.values())
        opened = open_source(data) if origin is None or is_whole else reopen(origin, data)
    except SourceError as error:
        hint = f" If it has moved, give {argument}: the files, or what you made of them"
        raise SourceError(f"the data set of {manifest.folder} cannot be opened again: {error}.{hint}") from error
    if opened.fingerprint == recorded:
        return opened
    name, samples = opened.name, len(opened)
    found, problems = _find_moved(opened, read_shards(manifest.folder), origin)
    if opened is not data and opened is not found:
        opened.close()
    if found is not None and found.fingerprint == recorded:
        return found
    if problems:
        more = f", and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise SourceError(
            f"{name!r} is not the data set that {manifest.folder} was made of: {', '.join(problems[:_MOST_NAMED])}"
            f"{more}. Give the files as they were as {argument}, or curate again"
        )
    raise SourceError(
        f"{name!r} ({samples:,} samples) is not the data set that {manifest.folder} ({manifest.samples:,} samples) "
        "was made of, was changed, or was curated by an earlier version, whose fingerprints are others: give the "
        f"same data set as {argument}, or curate again"
    )


def _find_moved(opened: Source, recorded: Sequence[ShardRecord], origin: Any) -> tuple[Source | None, list[str]]:
    """Put the files of a source into the order and under the names that were recorded.

    Returns:
        The source, or None where it is another one or has no files; and how its files differ.
    """
    inner = opened
    while isinstance(inner, DerivedSource) and inner.shard_records:
        inner = inner.source
    if not recorded or not inner.shard_records:
        return None, []
    numbers, problems = match_shards(recorded, inner.shard_records)
    if problems or (inner is not opened and origin is None):
        return None, problems
    moved = inner.select_shards(numbers, recorded)
    moved.origin = inner.origin  # opened so again, the files are found by the same record
    return (moved if inner is opened else reopen(origin, moved)), []


def match_shards(recorded: Sequence[ShardRecord], found: Sequence[ShardRecord]) -> tuple[list[int], list[str]]:
    """Find files again by their size and content, whatever their names and their order are.

    Args:
        recorded: N files of a data set.
        found: The files that may be these.

    Returns:
        N numbers of files in `found`, and no problem; or the problems: the files that are missing, changed or new.
    """
    known: dict[tuple[Any, ...], list[int]] = defaultdict(list)  # facts -> numbers of the files that have these
    for number, shard in enumerate(found):
        for facts in _list_facts(shard):
            known[facts].append(number)
    used: set[int] = set()
    numbers, lost = [], []
    for shard in recorded:
        same = [number for facts in _list_facts(shard) for number in known[facts] if number not in used]
        same = [number for number in same if not _has_other_content(shard, found[number])]
        best = min(same, key=lambda number: found[number].name != shard.name, default=None)
        if best is None:
            lost.append(shard)
        else:
            used.add(best)
            numbers.append(best)
    left = {shard.name: shard for number, shard in enumerate(found) if number not in used}
    problems = [_describe_loss(shard, left.pop(shard.name, None)) for shard in lost]
    return numbers, [*problems, *(f"{name} is new" for name in left)]


def _list_facts(shard: ShardRecord) -> list[tuple[Any, ...]]:
    """The facts of which each is enough to tell a file."""
    facts: list[tuple[Any, ...]] = [(shard.size, shard.samples, shard.digest)]
    return [*facts, (shard.size, shard.content)] if shard.content else facts


def _has_other_content(one: ShardRecord, other: ShardRecord) -> bool:
    """Whether content hashes tell two files apart; hashes of uploads in parts (as "...-8") are of no use for it."""
    hashes = one.content, other.content
    return all(hashes) and one.content != other.content and len(hashes[0]) == len(hashes[1]) and "-" not in hashes[0]


def _describe_loss(shard: ShardRecord, now: ShardRecord | None) -> str:
    if now is None:
        return f"{shard.name} ({shard.samples:,} samples) is missing"
    if now.size != shard.size:
        return f"{shard.name} has changed ({now.size:,} bytes, once {shard.size:,})"
    return f"{shard.name} has changed (of equal size)"
