"""The index of one tar shard: members of samples and their places, as arrays, made of a scan and kept on disk.

What was learnt of the images' headers is kept beside it. Both are checked against the tar. A file is a few arrays as
`np.save` writes them, one after the other; the first, ten int64s, says of which tar it is. The warnings of an index
follow it, as JSON.
"""

from __future__ import annotations

import io
import json
import logging
import math
import mmap
import os
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import (
    IMAGE_EXTENSIONS,
    Stat,
    cache_path,
    is_remote,
    open_regular,
    parse_json,
    strip_signature,
    write_file,
)
from curator_dali.sources.base import HEADER_DTYPE, quote
from curator_dali.sources.sidecars import SIDECARS
from curator_dali.sources.tar_headers import DAMAGED, Scan

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

ENTRY = np.dtype(
    [
        ("members", [("offset", np.int64), ("size_plus_one", np.int64)], (1 + len(SIDECARS),)),
        *((name, np.int64) for name in ("name_start", "name_size", "key_length", "status")),
    ]
)
"""A row of `TarIndex.table`: a sample's image and sidecars, its name and its `Status`.

A size is kept *plus one*, so that 0 means that there is no such member. Names are counted in bytes of the blob, the
key in characters of the name.
"""

ENTRY_NUMBERS = ENTRY.itemsize // 8
"""Columns of `TarIndex.table`."""

_OTHER, _IMAGE, _COMPOUND_IMAGE, _FIRST_SIDECAR = 0, 1, 2, 3  # kinds of extensions

_FILE_MAGIC, _FILE_VERSION = 0x4344_5441_5258, 2
# Magic, version, tar size, tar version, samples, repeated keys, crc32 of what follows, digest, bytes of warnings, and
# crc32 of these nine.
_HEAD_NUMBERS = 10
_HEAD_BYTES = 128 + 8 * _HEAD_NUMBERS  # np.save writes 128 bytes before a small array
_PEEK_BYTES = 4096  # the head with all usual warnings
_WARNING_BYTES = 1 << 20  # of the warnings of an index, at the most
_NPY_HEADER = 1 << 10  # bytes that hold the header of an array, at the most
_CHECKED: set[tuple[object, ...]] = set()  # files whose sums were compared, by path, inode, time, size and sum
_NPY_START = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True)
class TarIndex:
    """Samples of one shard. Offsets and sizes are uint32 where the shard allows it, else int64.

    Attributes:
        table: (S, 12) what reading a sample takes, the numbers of an `ENTRY` each.
        names: Names of all members in UTF-8, joined.
        first: (S + 1,) each sample's first row in `members`.
        members: (M, 4) offset, size, start and length of the name in `names`; a sample's members follow each other.
        summary: The facts that each opening needs.
    """

    table: NDArray[np.int64] | NDArray[np.uint32]
    names: bytes | memoryview
    first: NDArray[np.int64] | NDArray[np.uint32]
    members: NDArray[np.int64] | NDArray[np.uint32]
    summary: Summary

    def __len__(self) -> int:
        return len(self.table)

    @property
    def nbytes(self) -> int:
        """Bytes in memory. Of a mapped index a quarter counts: a random order touches a part of its pages."""
        mapped = isinstance(self.names, memoryview)
        size = self.table.nbytes + len(self.names) + self.first.nbytes + self.members.nbytes
        return size // 4 if mapped else size

    def image_sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) int64: bytes in the images of some samples; 0 where there is none."""
        sizes: NDArray[np.int64] = np.maximum(self.table[samples, 1].astype(np.int64) - 1, 0)
        return sizes

    def read_keys(self, samples: NDArray[np.int64]) -> pa.LargeStringArray:
        """(N,) keys of some samples, which are their ids."""
        entries = self.table[samples].astype(np.int64, copy=False).view(ENTRY)[:, 0]  # (N,)
        begins, characters = entries["name_start"], entries["key_length"]
        blob = np.frombuffer(self.names, np.uint8)
        if (blob < 128).all():
            lengths = characters
        else:
            heads = np.flatnonzero((blob & 0xC0) != 0x80)  # (C,) the byte that each character of the blob begins at
            after = np.searchsorted(heads, begins) + characters  # (N,) the character behind each key
            lengths = np.append(heads, len(blob))[after] - begins
        return take_texts(self.names, begins, lengths)

    @classmethod
    def from_scan(cls, scan: Scan, size: int) -> TarIndex:
        """Group a tar's members into samples.

        - A sample is a run of adjacent members with one key. An extension that comes again, in whatever case, begins
          another sample.
        - Sidecars that do not lie next to their image (all `.json` behind all `.jpg`) join the sample of their key if
          there is exactly one with an image.
        - Of several images, the sample's image is the first with a simple extension (`a.jpg`), else the first
          (`a.left.jpg`). `Summary` counts the others.
        - Members without an extension, or whose name begins with a dot, belong to no sample, as in WebDataset.
        - Nothing is lost: sidecars without an image, a member that the end of the tar (`size` bytes) cuts, and damaged
          headers are samples too, with a `Status` that says so.
        """
        runs, keys, bare = _group(scan)
        starts = np.zeros(len(scan.names) + 1, np.int64)
        encoded = [name.encode() for name in scan.names]
        np.cumsum([len(name) for name in encoded], out=starts[1:])
        columns = np.array([scan.offsets, scan.sizes, starts[:-1], np.diff(starts)], np.int64).reshape(4, -1).T

        order = [member for run in runs for member in run.members]
        first = np.zeros(len(runs) + 1, np.int64)
        np.cumsum([len(run.members) for run in runs], out=first[1:])
        entries = np.zeros(len(runs), ENTRY)
        roles = np.array([run.roles for run in runs], np.int64).reshape(-1, 1 + len(SIDECARS))
        place, role = (roles >= 0).nonzero()
        entries["members"]["offset"][place, role] = columns[roles[place, role], 0]
        entries["members"]["size_plus_one"][place, role] = columns[roles[place, role], 1] + 1
        # the member that a sample is named after: its image, or its first member where it has none
        named = np.where(roles[:, 0] >= 0, roles[:, 0], [run.members[0] for run in runs]).astype(np.int64)
        entries["members"]["offset"][:, 0] = columns[named, 0]
        entries["name_start"], entries["name_size"] = columns[named, 2], columns[named, 3]
        entries["key_length"] = [len(run.key) for run in runs]
        entries["status"] = _statuses(scan, runs, size)
        table = entries.view(np.int64).reshape(len(runs), ENTRY_NUMBERS)
        blob, repeated = b"".join(encoded), len(keys) - len({*keys})
        warnings, note = _describe_images(scan, runs)
        summary = Summary(
            len(runs),
            repeated,
            zlib.crc32(columns.tobytes(), zlib.crc32(blob, scan.digest)),
            (*_describe_loss(scan, runs), *warnings, *_describe_rest(scan, bare, repeated)),
            note,
        )
        return cls(_narrow(table), blob, _narrow(first), _narrow(columns[order]), summary)


def take_texts(blob: bytes | memoryview, begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> pa.LargeStringArray:
    """(N,) texts out of UTF-8: where each begins in it, and its bytes."""
    import pyarrow as pa

    offsets = np.zeros(len(begins) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    # (B,) the byte of the blob that each byte of the texts is, when these are laid end to end
    places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
    texts = np.frombuffer(blob, np.uint8)[places]
    return pa.LargeStringArray.from_buffers(len(begins), pa.py_buffer(offsets), pa.py_buffer(texts))


class Status:
    """Bits of the `status` column."""

    NO_IMAGE = 1  # only sidecars
    CUT = 2  # the tar ended within the image
    DAMAGED = 4  # a stand-in for members whose header cannot be read
    SHADOWED = 8  # a later member of the tar has the same name: plain tar readers would open that one


class Summary(NamedTuple):
    """The facts about a shard that each opening needs.

    Attributes:
        samples: Number of samples.
        duplicates: Samples whose key an earlier sample of the shard has too.
        digest: CRC-32 of the members' names, places, sizes, headers and last blocks.
        warnings: Members that are lost, doubtful or passed over; a short text each.
        note: A text for shards of which every sample has the same further images; "" for others.
    """

    samples: int = 0
    duplicates: int = 0
    digest: int = 0
    warnings: tuple[str, ...] = ()
    note: str = ""


class _Run:
    """Members of one sample: all of them, and the numbers of the image and the sidecars (-1: none).

    `extensions` are in lower case; `images` counts the members that are images.
    """

    __slots__ = ("compound", "extensions", "images", "key", "members", "roles")

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: list[int] = []
        self.extensions: set[str] = set()
        self.roles = [-1] * (1 + len(SIDECARS))
        self.compound = -1
        self.images = 0

    def add(self, member: int, extension: str) -> None:
        """Append a member; `extension` is in lower case."""
        self.members.append(member)
        self.extensions.add(extension)
        kind = _kind(extension)
        self.images += kind in (_IMAGE, _COMPOUND_IMAGE)
        if kind == _COMPOUND_IMAGE:
            self.compound = member if self.compound < 0 else self.compound
        elif kind != _OTHER:
            role = 0 if kind == _IMAGE else kind - _FIRST_SIDECAR + 1
            if self.roles[role] < 0:
                self.roles[role] = member


@lru_cache(maxsize=4096)
def _kind(extension: str) -> int:
    if extension in IMAGE_EXTENSIONS:
        return _IMAGE
    if extension in SIDECARS:
        return _FIRST_SIDECAR + SIDECARS.index(extension)
    return _COMPOUND_IMAGE if extension.rpartition(".")[2] in IMAGE_EXTENSIONS else _OTHER


def _group(scan: Scan) -> tuple[list[_Run], list[str], list[str]]:
    """Group members: runs in the order of the tar, the keys of those with an image, names without an extension."""
    runs: list[_Run] = []
    bare: list[str] = []
    run: _Run | None = None
    for member, name in enumerate(scan.names):
        if member in scan.problems:
            run = _Run(name)
            run.members.append(member)
            runs.append(run)
            continue
        split = _split_name(name)
        if split is None:
            if not _is_hidden(name):
                bare.append(name)
            continue
        key, extension = split[0], split[1].lower()
        if run is None or run.key != key or extension in run.extensions:
            run = _Run(key)
            runs.append(run)
        run.add(member, extension)
    for run in runs:
        if run.roles[0] < 0:
            run.roles[0] = run.compound
    keys = [run.key for run in runs if run.roles[0] >= 0]
    if any(run.roles[0] < 0 for run in runs):
        runs = _join_strays(runs, scan, Counter(keys))
    return runs, keys, bare


def _split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension as WebDataset does: at the first dot of the last component.

    Returns:
        `("a/b", "left.jpg")` for `a/b.left.jpg`, or None where the last component has no dot or starts with one
        (`README`, `.DS_Store`, `._a.jpg`): WebDataset passes over such members, and so do we.
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    return (name[:dot], name[dot + 1 :]) if dot > start else None


def _is_hidden(name: str) -> bool:
    """Whether a name is one that systems leave behind (`.DS_Store`, `__MACOSX/`), or a folder's."""
    *folders, last = name.split("/")
    hidden = any(folder.startswith(".") and folder.strip(".") for folder in folders)
    return not last or last.startswith(".") or hidden or "__MACOSX" in folders


def _join_strays(runs: list[_Run], scan: Scan, images: Counter[str]) -> list[_Run]:
    """Give sidecars that lie apart from their image to the one sample of their key."""
    homes = {run.key: run for run in runs if run.roles[0] >= 0 and images[run.key] == 1}
    kept = []
    for run in runs:
        home = homes.get(run.key)
        if run.roles[0] >= 0 or home is None or run.extensions & home.extensions:
            kept.append(run)
            continue
        for member in run.members:
            home.add(member, _extension(scan, home, member))
    return kept


def _statuses(scan: Scan, runs: list[_Run], size: int) -> NDArray[np.int64]:
    last = {name: member for member, name in enumerate(scan.names)}
    repeated = len(last) < len(scan.names)
    statuses = np.zeros(len(runs), np.int64)
    for number, run in enumerate(runs):
        image, lead = run.roles[0], run.members[0]
        if (problem := scan.problems.get(lead)) is not None:
            statuses[number] = Status.DAMAGED if problem == DAMAGED else Status.CUT
            continue
        if image < 0:
            cut = any(scan.offsets[member] + scan.sizes[member] > size for member in run.members)
            statuses[number] = Status.NO_IMAGE | (Status.CUT if cut else 0)
        elif scan.offsets[image] + scan.sizes[image] > size:
            statuses[number] = Status.CUT
        named = image if image >= 0 else lead
        if repeated and last[scan.names[named]] != named:
            statuses[number] |= Status.SHADOWED
    return statuses


def _describe_loss(scan: Scan, runs: list[_Run]) -> list[str]:
    """Warnings about members that are or may be lost."""
    warnings = [] if runs else ["it has no samples"]
    if scan.problems:
        warnings.append(f"it is damaged or truncated: places that cannot be read: {len(scan.problems)}")
    if scan.joined is not None:
        behind = sum(run.members[0] >= scan.joined for run in runs)
        warnings.append(
            f"samples behind an end marker within the tar: {behind} (they are read; tars were joined, or a download "
            "has a hole that took others)"
        )
    if scan.trailing:
        warnings.append(f"{scan.trailing} bytes behind its end marker are no members of a tar")
    if not scan.ended and not scan.problems:
        warnings.append("it has no end marker and may have lost samples at its end")
    return warnings


def _describe_images(scan: Scan, runs: list[_Run]) -> tuple[list[str], str]:
    """Describe image members that are not the image of their sample, which are not decoded.

    Stereo pairs and masks need no warning: of at least two samples, each has the same further extensions, without
    numbers. Other "extensions" are likely parts of names (`scan.0001.jpg`, `IMG 12.30.15.jpg`).

    Returns:
        Warnings; a note or "".
    """
    further: list[tuple[_Run, list[int]]] = []
    for run in runs:
        if run.images > 1:
            kinds = ((member, _kind(_extension(scan, run, member))) for member in run.members)
            images = [member for member, kind in kinds if kind in (_IMAGE, _COMPOUND_IMAGE)]
            further.append((run, [member for member in images if member != run.roles[0]]))
    if not further:
        return [], ""
    sets = {frozenset(_extension(scan, run, member) for member in members) for run, members in further}
    numbered = any(part[:1].isdigit() for extensions in sets for name in extensions for part in name.split("."))
    with_image = sum(run.images > 0 for run in runs)
    run, members = further[0]
    message = (
        f"image members that are not the image of their sample: {sum(len(members) for _, members in further)}, such as "
        f"{quote(scan.names[members[0]])} of the sample {quote(run.key)}, whose image is "
        f"{quote(scan.names[run.roles[0]])}"
    )
    if len(sets) == 1 and len(further) == with_image > 1 and not numbered:
        return [], message
    remedy = (
        "A key ends at the first dot of a name: if each is a sample of its own, pack them with no other dot in names"
    )
    return [f"{message}. {remedy}"], ""


def _describe_rest(scan: Scan, bare: list[str], repeated: int) -> list[str]:
    """Warnings about members that are passed over, and keys that repeat."""
    warnings = []
    if bare:
        warnings.append(f"members without an extension are passed over: {len(bare)}, the first: {quote(bare[0])}")
    if repeated:
        warnings.append(f"samples that repeat a key (all are kept): {repeated}")
    if scan.skipped:
        warnings.append(f"links and special members that are passed over: {scan.skipped}")
    return warnings


def _extension(scan: Scan, run: _Run, member: int) -> str:
    return scan.names[member][len(run.key) + 1 :].lower()


def _narrow(array: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.uint32]:
    """Half the memory, unless numbers are too large for it."""
    return array.astype(np.uint32) if array.size == 0 or array.max() < 2**32 else array


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
    return Path(cache_path("tar", strip_signature(url), ".cdindex"))


def save_index(path: Path | None, stat: Stat, index: TarIndex) -> None:
    """Keep an index; it appears whole, or not at all (a folder that cannot be written is no error)."""
    _save(path, stat, index.summary, index.table, np.frombuffer(index.names, np.uint8), index.first, index.members)


def peek_index(path: Path | None, stat: Stat) -> Summary | None:
    """The summary of a kept index, of its first bytes; None where there is none for this tar."""
    if path is None:
        return None
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            data = file.read(_PEEK_BYTES)
            head = _parse_head(data, stat)
            if head is not None and 0 < (missing := _HEAD_BYTES + head[8] - len(data)) <= _WARNING_BYTES:
                data += file.read(missing)
        return None if head is None else _parse_summary(data, head)
    except (OSError, ValueError, TypeError):
        return None


def load_index(path: Path | None, stat: Stat) -> TarIndex | None:
    """A kept index; None where there is none, or an old, damaged or outdated one."""
    match _load(path, stat):
        case summary, [table, names, first, members]:
            return TarIndex(table, names.data, first, members, summary)
    return None


def save_headers(path: Path | None, stat: Stat, headers: NDArray[np.void]) -> None:
    """Keep what was learnt of a shard's images, together with what another process has kept meanwhile."""
    kept = load_headers(path, stat, len(headers))
    if kept is not None:
        headers = np.where(headers["codec"] != 0, headers, kept)
    _save(path and path.with_suffix(".headers"), stat, Summary(len(headers)), headers)


def load_headers(path: Path | None, stat: Stat, samples: int) -> NDArray[np.void] | None:
    """(samples,) `HEADER_DTYPE` that was kept for a shard, or None."""
    match _load(path and path.with_suffix(".headers"), stat):
        case _, [headers] if headers.dtype == HEADER_DTYPE and headers.shape == (samples,):
            return headers.copy()  # which grows
    return None


def _save(path: Path | None, stat: Stat, summary: Summary, *arrays: NDArray[Any]) -> None:
    if path is None:
        return
    samples, duplicates, digest, warnings, note = summary
    texts = json.dumps([warnings, note]).encode() if warnings or note else b""
    head, body = io.BytesIO(), io.BytesIO()
    body.write(texts)
    for array in arrays:
        np.save(body, array)
    about = (samples, duplicates, zlib.crc32(body.getbuffer()), digest, len(texts))
    numbers = np.array([_FILE_MAGIC, _FILE_VERSION, stat.size, stat.version, *about, 0], np.int64)
    numbers[-1] = zlib.crc32(numbers[:-1].tobytes())
    np.save(head, numbers)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, head.getvalue(), body.getvalue(), sync=False)
    except OSError as error:
        _warn_unwritable(str(path.parent.parent), str(error))


def _load(path: Path | None, stat: Stat) -> tuple[Summary, list[NDArray[Any]]] | None:
    """Map the file that `_save` kept of a tar; None where there is none, or an old, damaged or outdated one.

    Its sum is compared once a process: a random order over many tars maps each of them again and again.
    """
    if path is None:
        return None
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            # smaller than its tar but for the warnings: 512 bytes of a header make fewer here
            if not _HEAD_BYTES <= status.st_size <= stat.size + _WARNING_BYTES:
                return None
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        data = memoryview(mapped)
        head = _parse_head(bytes(data[:_HEAD_BYTES]), stat)
        if head is None:
            return None
        key = (str(path), status.st_ino, status.st_mtime_ns, status.st_size, head[6])
        if key not in _CHECKED:
            if zlib.crc32(data[_HEAD_BYTES:]) != head[6]:
                return None
            _CHECKED.add(key)
            mapped.madvise(mmap.MADV_DONTNEED)  # what was read for the sum need not stay in memory
        return _parse_summary(bytes(data[: _HEAD_BYTES + head[8]]), head), _parse_arrays(data, _HEAD_BYTES + head[8])
    except (OSError, ValueError, TypeError, EOFError, MemoryError):
        return None


def _parse_arrays(data: memoryview, at: int) -> list[NDArray[Any]]:
    """Views of the arrays that `np.save` wrote one after the other.

    Raises:
        ValueError: They are damaged.
    """
    arrays: list[NDArray[Any]] = []
    while at < len(data):
        file = io.BytesIO(data[at : at + _NPY_HEADER])
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not as np.save writes small arrays")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        count = math.prod(shape)
        arrays.append(np.frombuffer(data, dtype, count, at + file.tell()).reshape(shape))
        at += file.tell() + count * dtype.itemsize
    return arrays


def _parse_head(data: bytes, stat: Stat) -> list[int] | None:
    if len(data) < _HEAD_BYTES or not data.startswith(_NPY_START):
        return None
    head: list[int] = np.frombuffer(data, "<i8", _HEAD_NUMBERS, _HEAD_BYTES - 8 * _HEAD_NUMBERS).tolist()
    if head[:4] != [_FILE_MAGIC, _FILE_VERSION, stat.size, stat.version]:
        return None
    return head if zlib.crc32(data[_HEAD_BYTES - 8 * _HEAD_NUMBERS : _HEAD_BYTES - 8]) == head[-1] else None


def _parse_summary(data: bytes, head: list[int]) -> Summary:
    """Parse what follows a head.

    Raises:
        ValueError, TypeError: It is damaged.
    """
    warnings, note = parse_json(data[_HEAD_BYTES : _HEAD_BYTES + head[8]]) if head[8] else ((), "")
    return Summary(head[4], head[5], head[7], tuple(warnings), note)


@lru_cache(maxsize=64)
def _warn_unwritable(folder: str, error: str) -> None:  # cached: one line, not one a shard
    logger.warning("cannot keep indexes in %s (%s): tars are indexed again each time", folder, error)
