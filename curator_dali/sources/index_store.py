"""Indexes of tar shards, and what was learnt of their images' headers, kept on disk and checked against the tar.

A file is a few arrays as `np.save` writes them, one after the other; the first, ten int64s, says of which tar it is.
The warnings of an index follow it, as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curator_dali.io.files import open_regular, parse_json, read_regular, write_file
from curator_dali.io.ranges import Stat, strip_signature
from curator_dali.io.remote import is_remote
from curator_dali.sources.base import HEADER_DTYPE
from curator_dali.sources.tar_index import Summary, TarIndex

__all__ = ["index_path", "load_headers", "load_index", "peek_index", "save_headers", "save_index"]

logger = logging.getLogger(__name__)

_MAGIC, _VERSION = 0x4344_5441_5258, 2
# magic, version, tar size, tar version, samples, repeated keys, crc32 of what follows, digest, bytes of warnings, and
# crc32 of these nine
_HEAD = 10
_HEAD_BYTES = 128 + 8 * _HEAD  # np.save writes 128 bytes before a small array
_PEEK = 4096  # the head with all usual warnings
_SLACK = 1 << 20
_NPY_START = b"\x93NUMPY\x01\x00"


def index_path(url: str, keep: str) -> Path | None:
    """Where the index of a tar is kept; the headers learnt lie beside it, under `.headers`.

    Args:
        url: The tar; a new signature of its URL changes nothing.
        keep: `"beside"` the tar (remote tars: in the cache folder), in the `"cache"` folder ($CURATOR_DALI_CACHE, else
            $XDG_CACHE_HOME/curator_dali, else ~/.cache/curator_dali), or `"none"`: nowhere.
    """
    if keep == "none":
        return None
    if keep == "beside" and not is_remote(url):
        return Path(f"{url}.cdindex")
    folder = os.environ.get("CURATOR_DALI_CACHE")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "curator_dali")
    digest = hashlib.blake2b(strip_signature(url).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return Path(folder, "tar", digest[:2], f"{digest}.cdindex")  # folders of thousands, not of millions


def save_index(path: Path | None, stat: Stat, index: TarIndex) -> None:
    """Keep an index; it appears whole, or not at all (a folder that cannot be written is no error)."""
    if path is None:
        return
    samples, duplicates, digest, warnings, note = index.summary
    texts = json.dumps([warnings, note]).encode() if warnings or note else b""
    body = io.BytesIO()
    body.write(texts)
    for array in (index.table, np.frombuffer(index.names, np.uint8), index.first, index.members):
        np.save(body, array)
    _write(
        path, _make_head(stat, samples, duplicates, zlib.crc32(body.getbuffer()), digest, len(texts)), body.getvalue()
    )


def peek_index(path: Path | None, stat: Stat) -> Summary | None:
    """The summary of a kept index, of its first bytes; None where there is none for this tar."""
    if path is None:
        return None
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            data = file.read(_PEEK)
            head = _parse_head(data, stat)
            if head is not None and 0 < (missing := _HEAD_BYTES + head[8] - len(data)) <= _SLACK:
                data += file.read(missing)
        return None if head is None else _parse_summary(data, head)
    except (OSError, ValueError, TypeError):
        return None


def load_index(path: Path | None, stat: Stat) -> TarIndex | None:
    """A kept index; None where there is none, or an old, damaged or outdated one."""
    if path is None:
        return None
    try:
        data = _read(path, stat)
        head = _parse_head(data, stat)
        if head is None or zlib.crc32(memoryview(data)[_HEAD_BYTES:]) != head[6]:
            return None
        summary = _parse_summary(data, head)
        body = io.BytesIO(data)
        body.seek(_HEAD_BYTES + head[8])
        table, names, first, members = (np.load(body, allow_pickle=False) for _ in range(4))
    except (OSError, ValueError, TypeError, EOFError, MemoryError):
        return None
    return TarIndex(table, names.tobytes(), first, members, summary)


def save_headers(path: Path | None, stat: Stat, headers: NDArray[np.void]) -> None:
    """Keep what was learnt of a shard's images, together with what another process has kept meanwhile."""
    if path is None:
        return
    kept = load_headers(path, stat, len(headers))
    if kept is not None:
        headers = np.where(headers["codec"] != 0, headers, kept)
    body = io.BytesIO()
    np.save(body, headers)
    head = _make_head(stat, len(headers), 0, zlib.crc32(body.getbuffer()), 0, 0)
    _write(path.with_suffix(".headers"), head, body.getvalue())


def load_headers(path: Path | None, stat: Stat, samples: int) -> NDArray[np.void] | None:
    """(samples,) `HEADER_DTYPE` that was kept for a shard, or None."""
    if path is None:
        return None
    try:
        data = _read(path.with_suffix(".headers"), stat)
        head = _parse_head(data, stat)
        if head is None or head[4] != samples or zlib.crc32(memoryview(data)[_HEAD_BYTES:]) != head[6]:
            return None
        headers: NDArray[np.void] = np.load(io.BytesIO(data[_HEAD_BYTES:]), allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        return None
    return headers if headers.dtype == HEADER_DTYPE and headers.shape == (samples,) else None


def _read(path: Path, stat: Stat) -> bytes:
    """A kept file, which is smaller than its tar but for the warnings: 512 bytes of a header make fewer here."""
    return read_regular(path, stat.size + _SLACK)


def _make_head(stat: Stat, *numbers: int) -> bytes:
    head = io.BytesIO()
    values = np.array([_MAGIC, _VERSION, stat.size, stat.version, *numbers, 0], np.int64)
    values[-1] = zlib.crc32(values[:-1].tobytes())
    np.save(head, values)
    return head.getvalue()


def _parse_head(data: bytes, stat: Stat) -> list[int] | None:
    if len(data) < _HEAD_BYTES or not data.startswith(_NPY_START):
        return None
    head: list[int] = np.frombuffer(data, "<i8", _HEAD, _HEAD_BYTES - 8 * _HEAD).tolist()
    if head[:4] != [_MAGIC, _VERSION, stat.size, stat.version]:
        return None
    return head if zlib.crc32(data[_HEAD_BYTES - 8 * _HEAD : _HEAD_BYTES - 8]) == head[-1] else None


def _parse_summary(data: bytes, head: list[int]) -> Summary:
    """Parse what follows a head.

    Raises:
        ValueError, TypeError: It is damaged.
    """
    warnings, note = parse_json(data[_HEAD_BYTES : _HEAD_BYTES + head[8]]) if head[8] else ((), "")
    return Summary(head[4], head[5], head[7], tuple(warnings), note)


def _write(path: Path, *parts: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, *parts, sync=False)
    except OSError as error:
        _warn_unwritable(str(path.parent.parent), str(error))


@lru_cache(maxsize=64)
def _warn_unwritable(folder: str, error: str) -> None:  # cached: one line, not one a shard
    logger.warning("cannot keep indexes in %s (%s): tars are indexed again each time", folder, error)
