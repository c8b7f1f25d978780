"""WebDataset tars of samples' original bytes, with what a curation found beside them."""

from __future__ import annotations

import json
import math
import re
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curator_dali.io import AtomicFile, Written, explained, printable

if TYPE_CHECKING:
    from typing_extensions import Self

CURATION = "curation.json"
"""Extension of the member that a curation adds to a sample."""

_BLOCK = 512  # bytes, of which each member fills whole ones
_RECORD = 20 * _BLOCK  # tars are padded to it
_ZEROS = bytes(_RECORD)


class FileWriter(ABC):
    """A writer whose files appear when it is closed, as at the end of a `with`; if the block raises, there are none."""

    @property
    def _is_closed(self) -> bool:
        return False

    @abstractmethod
    def close(self) -> object:
        """Write what is left, and let the files appear."""

    @abstractmethod
    def discard(self) -> None:
        """Write no file. May be called again; after `close` it does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self._is_closed:
            self.close()
        else:
            self.discard()


class TarWriter(FileWriter):
    """One tar, which appears when it is closed.

    Each sample is written as `KEY.EXT` for each of its members, byte for byte as it was given and in that order, then
    `KEY.curation.json`. A `curation.json` that the sample came with, from an earlier curation, is replaced. A key that
    the tar has already, or that `written_key` has to change, is written as another (`KEY__2`, ...): no sample shadows
    another or joins it. Equal samples in equal order make equal tars.

    Args:
        url: Path or URL.

    Attributes:
        samples: Samples written so far.
        extensions: Extension of members -> samples with such a member.

    Raises:
        OutputError: It cannot be written. All methods raise it too.
    """

    def __init__(self, url: str) -> None:
        with explained(url):
            self._file = AtomicFile(url, digest=True)
        self.url = url
        self.samples = 0
        self.extensions: Counter[str] = Counter()
        self._keys: set[str] = set()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def write(self, key: str, members: Mapping[str, Any], curation: Mapping[str, Any] | None = None) -> str:
        """Append a sample.

        Args:
            key: Its key; `image_id` of an `ImageObject`.
            members: {extension: bytes-like} of what it consists of, as `ImageBatch.encoded` has them.
            curation: What to write into `curation.json`, in JSON's types or numpy's scalars; NaN becomes null.
                `image_id` (the key) is put before it, and `key` where it is written under another. None: no such
                member.

        Returns:
            The key that it was written under.

        Raises:
            ValueError: An extension cannot be one, or `curation` has a value that JSON has not.
        """
        written = self._free_key(key)
        parts: list[bytes | memoryview] = []
        for extension, data in members.items():
            if not extension or "/" in extension or "\0" in extension or extension.startswith("."):
                raise ValueError(f"sample {key!r}: {extension!r} is no extension of a member")
            if curation is None or extension.lower() != CURATION:
                _append(parts, f"{written}.{extension}", data)
                self.extensions[extension] += 1
        if curation is not None:
            fields = {"image_id": key} | ({"key": written} if written != key else {}) | dict(curation)
            _append(parts, f"{written}.{CURATION}", to_json(fields))
            self.extensions[CURATION] += 1
        with explained(self.url):
            self._file.writev(parts)
        self._keys.add(written)
        self.samples += 1
        return written

    def close(self) -> Written:
        """Write the end marker, and let the tar appear."""
        end = -(self._file.size + 2 * _BLOCK) % _RECORD + 2 * _BLOCK
        with explained(self.url):
            self._file.write(bytes(end))
            return self._file.commit()

    def discard(self) -> None:
        """Write no tar. May be called again; after `close` it does nothing."""
        self._file.discard()

    @property
    def _is_closed(self) -> bool:
        return self._file.closed

    def _free_key(self, key: str) -> str:
        plain = written = written_key(key)
        number = 1
        while written in self._keys:
            number += 1
            written = f"{plain}__{number}"
        return written


class ShardedTarWriter(FileWriter):
    """Samples in as many tars as it takes; each appears when it is full, the last when this is closed.

    Args:
        url: Path or URL that their names begin with; `-SHARD.tar` follows, which counts from `-0000.tar`.
        max_samples: Samples in a tar.
        max_bytes: Bytes in a tar; a sample that would pass it begins the next one. A larger sample has one of its own.

    Attributes:
        written: The tars that have appeared.
        extensions: Extension of members -> samples with such a member in these tars.

    Raises:
        OutputError: A tar cannot be written. All methods raise it too.
    """

    def __init__(self, url: str, max_samples: int | None = None, max_bytes: int | None = None) -> None:
        self._url = url
        self._max_samples = max_samples or math.inf
        self._max_bytes = max_bytes or math.inf
        self._tar: TarWriter | None = None
        self.written: list[Written] = []
        self.extensions: Counter[str] = Counter()

    def write(self, key: str, members: Mapping[str, Any], curation: Mapping[str, Any] | None = None) -> tuple[str, str]:
        """Append a sample; see `TarWriter.write`.

        Returns:
            The name of the tar, and the key in it.
        """
        if self._tar is not None:
            size = sum(_BLOCK + -(-memoryview(data).nbytes // _BLOCK) * _BLOCK for data in members.values())
            if self._tar.samples >= self._max_samples or self._tar.size + size + 4 * _BLOCK > self._max_bytes:
                self._finish()
        if self._tar is None:
            self._tar = TarWriter(f"{self._url}-{len(self.written):04d}.tar")
        return self._tar.url.rpartition("/")[2], self._tar.write(key, members, curation)

    def close(self) -> list[Written]:
        """Let the last tar appear; returns all of them."""
        self._finish()
        return self.written

    def discard(self) -> None:
        """Write no tar that has not appeared yet."""
        if self._tar is not None:
            self._tar.discard()
            self._tar = None

    def _finish(self) -> None:
        if self._tar is not None:
            tar, self._tar = self._tar, None
            self.written.append(tar.close())
            self.extensions += tar.extensions


_USUAL_KEY = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)


def written_key(key: str) -> str:
    r"""The key that a sample is written under: its own, unless readers would split or refuse that.

    WebDataset takes a key to end at the first dot of the last component, and passes over names that begin with one, so
    `cats/1.jpg` (a key of a folder with `1.jpg` and `1.png`) becomes `cats/1_jpg`. Leading slashes and `..` would leave
    the folder that a tar is unpacked in; empty components and `.` (`./a` in tars of `.`) say nothing. What is no UTF-8
    shows as `\xNN`.
    """
    if _USUAL_KEY.fullmatch(key):
        return key
    *folders, last = printable(key).replace("\0", "_").split("/")
    kept = [name if name.strip(".") else "_" * len(name) for name in folders if name not in ("", ".")]
    return "/".join([*kept, last.replace(".", "_") or "_"])


def _append(parts: list[bytes | memoryview], name: str, data: Any) -> None:
    view = data if type(data) is bytes else memoryview(data).cast("B")
    parts += (tar_header(name, len(view)), view)
    if padding := -len(view) % _BLOCK:
        parts.append(_ZEROS[:padding])


_LARGEST_MEMBER = 8 << 30  # what 11 octal digits can say

# A USTAR header of a regular file but for its name, size and checksum: mode 0644, owner 0, time 0.
_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_PLAIN_SUM = sum(_TEMPLATE[:148]) + 8 * 32 + sum(_TEMPLATE[156:]) - sum(_TEMPLATE[124:136])


def tar_header(name: str, size: int) -> bytes:
    """The header of a regular file, the same bytes whoever writes it and whenever.

    USTAR where the name is ASCII and fits (100 bytes, or 255 that can be split at a slash) and the size is below 8 GiB;
    else a PAX header comes first.
    """
    encoded = name.encode("ascii", "replace") if name.isascii() else b""
    if 0 < len(encoded) <= 100 and size < _LARGEST_MEMBER:
        digits = b"%011o\0" % size
        total = _PLAIN_SUM + sum(encoded) + sum(digits)
        return b"".join((encoded.ljust(124, b"\0")[:100], _TEMPLATE[100:124], digits, _TEMPLATE[136:148],
                         b"%06o\0 " % total, _TEMPLATE[156:]))  # fmt: skip
    info = tarfile.TarInfo(name)
    info.size = size
    if encoded and size < _LARGEST_MEMBER:
        try:
            return info.tobuf(tarfile.USTAR_FORMAT)
        except ValueError:  # no slash to split it at
            pass
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def to_json(fields: Mapping[str, Any]) -> bytes:
    """JSON of fields, NaN and infinities as null.

    Raises:
        ValueError: A value is none of JSON's or numpy's.
    """
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_plain).encode("utf-8", "replace")
    except (ValueError, TypeError):
        return json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """What json calls for values that it does not know: numpy's scalars and arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return _finite(_plain(value))
