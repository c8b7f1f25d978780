"""Walks through a tar's headers (USTAR, GNU, PAX): every regular member's name, offset and size, no body read.

Formats: POSIX.1-2008 pax, "ustar Interchange Format", and GNU tar's manual, "Basic Tar Format". Where these leave room
we do what Python's `tarfile` does; a member costs about 2 microseconds instead of its 24.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from curator_dali.io import SAMPLE, RemoteReader

_BLOCK = 512
DAMAGED, CUT = 1, 2  # kinds of `Scan.problems`
_MAX_RECORD = 1 << 24  # a longer PAX or longname record, or map of holes, is nonsense: damage
_MAX_SIZE = 1 << 50  # no file is as large; sums of thousands of such sizes fit into int64
_MOST_DIGITS = 64  # of a size, leading zeros included
_MAP_BYTES = 64 * _BLOCK  # of a map of holes, read at once
_SMALL_WINDOW, _LARGE_WINDOW = 4096, 1 << 20
_LARGEST_WINDOW = 8 << 20  # where no header is near
_SEEK_STEP = 8192  # members further apart than this are sought, nearer ones are read through
_HOP = 64 << 10  # read of a remote tar where its members are far apart: the next headers, and how an image begins
_FIRST_PIECE = 4 << 20  # read of the first remote tars, whose members may lie near or far apart
_PIECES = (SAMPLE, 16 << 20)  # the least and the most of a remote tar whose members lie near each other
_ROUND_TRIPS = 8  # of which a piece takes the time, so that waiting for it is a small part
_FORGOTTEN = 0.75  # of the weight that distances seen before have beside those of a new window
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")
_PAX_KEYS = (b"path=", b"size=", b"GNU.sparse.")
_ZEROS = bytes(_BLOCK)
_LOW_BYTES = bytes(range(128))
_ZERO_RUN = re.compile(rb"\0+")  # runs over 4 GB/s, and copies nothing


class NotATarError(Exception):
    """The file does not begin with a tar header."""


@dataclass
class Scan:
    r"""What a walk through a tar found.

    Attributes:
        names: Regular members in the order of the file. Bytes that are not UTF-8 show as `\xNN`, so that a name can be
            printed and written to Parquet.
        offsets: Where each one's body begins.
        sizes: Bytes in each one's body, at most 2**50; the last body may reach past the end of a cut tar.
        problems: Number of a member in `names` -> `DAMAGED` or `CUT`: a sparse member, or a stand-in, named after its
            place in the file, for members whose headers cannot be read.
        skipped: How many links, devices and other special members were passed over (directories do not count).
        ended: Whether the tar ends with an end marker; without one the tar may have lost members at its end.
        joined: Number of the first member behind an end marker within the tar; None where there is none.
        trailing: Bytes behind the end marker that are neither zeros nor members.
        digest: CRC-32 of all headers and, of each body, the last block. Equal members in equal order have an equal one.
    """

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    problems: dict[int, int] = field(default_factory=dict)
    skipped: int = 0
    ended: bool = False
    joined: int | None = None
    trailing: int = 0
    digest: int = 0

    def add(self, name: str, offset: int, size: int, problem: int = 0) -> None:
        """Append a member."""
        if problem:
            self.problems[len(self.names)] = problem
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)


def scan_tar(
    read_at: Callable[[int, int], bytes],
    size: int,
    *,
    least: int = _SMALL_WINDOW,
    remote: RemoteReader | None = None,
    find_places: Callable[[], Sequence[int]] | None = None,
) -> Scan:
    """Walk through the headers of a tar, to the end of the file.

    The walk goes on behind an end marker, since tars may be joined and downloads may leave holes of zeros. Behind a
    damaged header it goes on at the next whole one; `Scan.problems` has what was lost, and a member that was cut off.

    Args:
        read_at: `(offset, length) -> bytes`, less than `length` only at the end of the file.
        size: Bytes in the file.
        least: The least that is worth reading at once, in bytes: little for a local file, much where each read waits.
        remote: The reader of a remote file, which tells what is worth reading and reads ahead; then `least` is not
            used.
        find_places: Finds where headers may be, ascending: of a remote file whose members are far from each other,
            these places are read ahead. A place without a header costs a request.

    Raises:
        NotATarError: There is no header at the start (and the file is not empty).
    """
    scan = Scan()
    window = _Window(read_at, least) if remote is None else _RemoteWindow(remote, size, scan, find_places)
    buffer, start = b"", 0  # the bytes of the file from `start` on
    position = digest = 0
    pending: dict[str, bytes] = {}  # name and size from PAX or GNU records, for the next member
    lasting: dict[str, bytes] = {}  # the same from global PAX headers
    lost = -1  # where a place without a whole header begins, while the next header is searched
    hops = 0  # headers found in this window
    endless: dict[int, int] = {}  # see `_find_map_end`

    while True:
        at = position - start
        if at < 0 or at + _BLOCK > len(buffer):
            if position + _BLOCK > size or not window.move(position, hops, searching=scan.ended or lost >= 0):
                break
            buffer, start, hops = window.buffer, window.start, 0
            at = position - start
        if lost >= 0:
            at = _find_header(buffer, at)
            position = start + at
            if at + _BLOCK > len(buffer):
                continue
            scan.add(f"damaged@{lost}", lost, 0, DAMAGED)
            lost = -1
        header = buffer[at : at + _BLOCK]
        if header == _ZEROS and (zeros := _ZERO_RUN.match(buffer, at)):
            if pending:  # a record, and zeros where its member should be
                scan.add(f"damaged@{position}", position, 0, DAMAGED)
                pending = {}
            if not scan.ended:
                digest = zlib.crc32(buffer[max(at - _BLOCK, 0) : at], digest)
                scan.ended = True
            position += (zeros.end() - at) // _BLOCK * _BLOCK
            continue
        hops += 1
        valid = _is_header(header)
        if not valid and position == 0:
            raise NotATarError
        kind, length = header[156:157], _number(header[124:136])
        if not valid or length < 0 or (kind in b"xgXLK" and length > _MAX_RECORD):
            lost, position, pending = position, position + 1, {}
            continue
        if scan.ended:
            scan.ended = False
            scan.joined = len(scan.names) if scan.joined is None else scan.joined
        digest = zlib.crc32(buffer[max(at - _BLOCK, 0) : at + _BLOCK], digest)

        if kind in b"xgXLK":  # records that describe the next member (g: all that follow)
            record = window.read(position + _BLOCK, length)
            if len(record) < length:
                scan.add(f"cut@{position}", position, 0, CUT)
                position, pending = size, {}
                break
            digest = zlib.crc32(record, digest)
            (lasting if kind == b"g" else pending).update(_read_record(kind, record))
            position += _BLOCK - (-length // _BLOCK) * _BLOCK
            continue

        records = {}
        if lasting or pending:
            records, pending = {**lasting, **pending}, {}
        position = _add_member(scan, header, position + _BLOCK, length, records, read_at, endless)

    _finish(scan, read_at, size, position, lost, cut=bool(pending))
    scan.digest = digest if scan.ended else zlib.crc32(read_at(max(size - _BLOCK, 0), _BLOCK), digest)
    return scan


class _Window:
    """The bytes of a file around a place, read in pieces that fit the distance between headers."""

    def __init__(self, read_at: Callable[[int, int], bytes], least: int) -> None:
        self._read_at, self._least, self._ahead = read_at, least, least
        self.buffer, self.start = b"", 0

    def move(self, position: int, hops: int, searching: bool) -> bool:
        """Move to a place, with the block before it, which the digest takes in.

        Args:
            position: Where the next header is looked for.
            hops: Headers found in the window so far.
            searching: Whether no header is known to be near.

        Returns:
            Whether a whole block is there; the file may be shorter than it was said to be.
        """
        if searching:
            self._ahead = min(max(_LARGE_WINDOW, 2 * self._ahead), _LARGEST_WINDOW)
        elif hops:  # a long way between headers: seek; many in a window: read on in large pieces
            far = (position - self.start) // hops > max(_SEEK_STEP, self._least)
            self._ahead = self._least if far else max(_LARGE_WINDOW, self._least)
        return self._load(position, max(position - _BLOCK, 0), position + self._ahead)

    def _load(self, position: int, start: int, end: int) -> bool:
        """Read the bytes [start, end), and return whether the block at a place is among them."""
        self.start, self.buffer = start, self._read_at(start, end - start)
        return position + _BLOCK <= start + len(self.buffer)

    def read(self, position: int, length: int) -> bytes:
        """Read bytes behind the window's start, which need not lie in the window."""
        at = position - self.start
        found = self.buffer[at : at + length]
        return found if len(found) == length else self._read_at(position, length)


class _RemoteWindow(_Window):
    """A window of a remote file: small where the next header is far for its store, else large and read ahead.

    Reading on costs `distance / bandwidth` seconds a member, hopping to it a round trip. Members that fit into a hop
    cost no step of their own: the distance is that between the others.

    Args:
        reader: Of the file.
        size: Bytes in the file.
        scan: What is found, which the distances are taken from.
        find_places: Finds where headers may be, ascending; called once, before the first hop.
    """

    def __init__(
        self, reader: RemoteReader, size: int, scan: Scan, find_places: Callable[[], Sequence[int]] | None
    ) -> None:
        super().__init__(reader, _HOP)
        self._find_places = find_places
        self._places: Sequence[int] = ()
        self._reader, self._size, self._scan = reader, size, scan
        self._seen = 0  # members whose distances are counted
        self._way, self._steps = 0.0, 0.0  # bytes passed, and members in them that are larger than a hop
        self._first = self._piece = 0  # where pieces begin that are read one after the other, and bytes in each

    def move(self, position: int, hops: int, searching: bool) -> bool:
        """Move to a place; see `_Window.move`."""
        link, sizes = self._reader.link, self._scan.sizes[self._seen :]
        self._seen += len(sizes)
        if hops:
            self._way = _FORGOTTEN * self._way + position - self.start
            self._steps = _FORGOTTEN * self._steps + sum(size > _HOP for size in sizes)
            link.distance = self._way / max(self._steps, 1.0)
        if searching:
            self._ahead = min(max(_LARGE_WINDOW, 2 * self._ahead), _LARGEST_WINDOW)
        else:
            distance = self._way / self._steps if self._steps else 0.0 if self._way else link.distance
            if distance <= link.break_even:
                return self._read_on(position)
            self._ahead = SAMPLE if link.is_sample_due(distance) else _HOP
            if self._ahead == _HOP:
                self._hop_ahead(position)
        self._piece = 0
        return self._load(position, max(position - _BLOCK, 0), position + self._ahead)

    def _hop_ahead(self, position: int) -> None:
        """Begin to read the windows of the next hops, where another index tells their places."""
        if self._find_places is not None:
            self._places, self._find_places = self._find_places(), None
        if not self._places:
            return
        ahead, end = [], 0
        for place in (position, *self._places[bisect_right(self._places, position) :]):
            if place + _BLOCK > end:  # a header that the window before it does not hold
                start, end = max(place - _BLOCK, 0), place + _HOP
                ahead.append((start, end - start))
            if len(ahead) >= self._reader.room or end >= self._size:
                break
        self._reader.read_ahead(ahead)

    def _read_on(self, position: int) -> bool:
        """Load the piece that a header lies in, and begin to read those behind it."""
        link = self._reader.link
        if not self._piece:
            size = min(max(_ROUND_TRIPS * link.break_even, _PIECES[0]), _PIECES[1])
            self._first = position
            self._piece = size // _BLOCK * _BLOCK if link.distance else _FIRST_PIECE
        piece = self._piece
        number = (position + _BLOCK - 1 - self._first) // piece  # a header may lie across the border
        count = self._reader.room if link.distance else 1
        # each piece begins two blocks early: with the block before a header, and all of one across the border
        starts = [max(self._first + n * piece - 2 * _BLOCK, 0) for n in range(number, number + count)]
        ends = [self._first + (n + 1) * piece for n in range(number, number + count)]
        ahead = [(start, end - start) for start, end in zip(starts, ends, strict=True) if start < self._size]
        if len(ahead) > 1:
            self._reader.read_ahead(ahead)
        if not link.distance:
            self._piece = 0  # the next piece is as long as this one says
        return self._load(position, starts[0], ends[0])


def _add_member(
    scan: Scan,
    header: bytes,
    body: int,
    length: int,
    records: dict[str, bytes],
    read_at: Callable[[int, int], bytes],
    endless: dict[int, int],
) -> int:
    """Add a member to the scan, if it is a regular file, and return where the next header is.

    `body` is where the bytes behind the header begin, `length` its size field, `records` what PAX and GNU records say
    of the member.
    """
    kind, path = header[156:157], None
    if records:
        path = records.get("path")
        if (text := records.get("size", b"")).isdigit():
            length = _MAX_SIZE if len(text) > _MOST_DIGITS else min(int(text), _MAX_SIZE)
    if path is None:
        path = header[:100].partition(b"\0")[0]
        if header[345] and header[257:263] == b"ustar\0":  # GNU tar keeps other things in the prefix field
            path = header[345:500].partition(b"\0")[0] + b"/" + path
    if kind == b"S" and header[482] == 1:  # more of the map of holes follows the header
        body = _find_map_end(read_at, body, endless)
    if kind in b"123456":  # links, devices, directories and pipes have no body, whatever their size field says
        scan.skipped += kind != b"5"
        return body
    if kind == b"\0" and path.endswith(b"/"):  # how V7 tars write a directory
        return body
    if kind in b"\x0007S":  # '\0', '0', '7' and 'S': regular, regular, contiguous, sparse
        problem = DAMAGED if kind == b"S" or "sparse" in records else 0
        scan.add(path.decode("utf-8", "backslashreplace"), body, length, problem)
    else:
        scan.skipped += 1
    return body + -(-length // _BLOCK) * _BLOCK


def _finish(
    scan: Scan, read_at: Callable[[int, int], bytes], size: int, position: int, lost: int, *, cut: bool
) -> None:
    """Record what lies behind the last whole header: nothing, a cut member, or bytes that are no members.

    The walk ended at `position`. A place without a header begins at `lost`, if not -1. `cut`: whether records were read
    whose member is not there.
    """
    if lost >= 0 and scan.ended:
        scan.trailing = size - lost
    elif lost >= 0:
        scan.add(f"damaged@{lost}", lost, 0, DAMAGED)
    elif not scan.ended:
        if 0 == position < size:
            raise NotATarError
        rest = read_at(position, min(_BLOCK, size - position)) if position < size else b""
        if rest.strip(b"\0") or cut:
            scan.add(f"cut@{position}", position, 0, CUT)
    elif position < size and read_at(position, _BLOCK).strip(b"\0"):  # less than a block
        scan.trailing = size - position


def _find_header(buffer: bytes, at: int) -> int:
    """Find the first whole header with the magic of USTAR and GNU, at `at` or behind it; blocks may have shifted.

    Without one, return where the next search has to begin.
    """
    last = len(buffer) - _BLOCK
    while (magic := buffer.find(b"ustar", at + 257, last + 262)) >= 0:
        at = magic - 257
        if _is_header(buffer[at : at + _BLOCK]):
            return at
        at += 1
    return last + 1


def _find_map_end(read_at: Callable[[int, int], bytes], start: int, endless: dict[int, int]) -> int:
    """Find where the map of holes of a sparse member ends: a map is blocks, each of which says if another follows.

    Args:
        read_at: See `scan_tar`.
        start: Where the map begins.
        endless: Offset within a block -> the place up to which no map of that offset ends. It is kept for the whole
            tar, so that no block is read for each of many maps without an end.

    Returns:
        The end; a place past the end of a file that ends within the map; `start` for a map that goes on and on.
    """
    position = max(start, endless.get(start % _BLOCK, 0))
    while position < start + _MAX_RECORD:
        blocks = read_at(position, _MAP_BYTES)
        flags = blocks[_BLOCK - 8 :: _BLOCK]
        following = len(flags) - len(flags.lstrip(b"\1"))
        if following < len(flags):
            return position + (following + 1) * _BLOCK
        position += _MAP_BYTES
        if len(blocks) < _MAP_BYTES:
            return position
    endless[start % _BLOCK] = position
    return start


def _is_header(header: bytes) -> bool:
    """Whether the checksum fits: the sum of all bytes, its own field counted as spaces.

    Adler-32's low half is one plus that sum, modulo 65521, at a twentieth of the time of `sum`. Some old tars have
    summed signed bytes.
    """
    stored = _number(header[148:156])
    if stored <= 0:
        return False
    adler = zlib.adler32(header[156:], zlib.adler32(header[:148]))
    excess = (adler & 0xFFFF) - 1 + 8 * 32 - stored
    if excess % 65521 == 0:
        return True
    high = len((header[:148] + header[156:]).translate(None, _LOW_BYTES))
    return (excess - 256 * high) % 65521 == 0


def _number(text: bytes) -> int:
    """Parse octal digits, or (GNU) big-endian base 256 behind a byte 0x80: at most `_MAX_SIZE`, -1 for nonsense."""
    try:
        return int(text.partition(b"\0")[0], 8)
    except ValueError:
        if text[0] == 0x80:
            return min(int.from_bytes(text[1:], "big"), _MAX_SIZE)
        return -1 if text.partition(b"\0")[0].strip() else 0


def _read_record(kind: bytes, record: bytes) -> dict[str, bytes]:
    """Parse the record of a PAX header (x, X, g) or of a GNU one (L: a long name, K: the target of a link).

    Returns:
        `path` and `size` of a member, and `sparse` for a sparse one; other keywords do not matter here. The record of
        a single member is never empty, so that a tar that is cut right behind it shows.
    """
    found = {} if kind == b"g" else {"described": b""}
    if kind == b"L":
        return found | {"path": record.partition(b"\0")[0]}
    if kind == b"K" or not any(key in record for key in _PAX_KEYS):  # the usual PAX record is a fractional mtime
        return found
    position = 0
    while position < len(record) and (match := _PAX_RECORD.match(record, position)):
        length = int(match[1])
        if position + length <= match.end():  # shorter than its own keyword; each byte is looked at once
            break
        value = record[match.end() : position + length - 1]
        if match[2] in (b"path", b"size"):
            found[match[2].decode()] = value
        elif match[2].startswith(b"GNU.sparse."):
            found["sparse"] = b""
            if match[2] == b"GNU.sparse.name":  # the path is a made-up one
                found["path"] = value
        position += length
    return found
