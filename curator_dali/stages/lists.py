"""`Exclude` and `Include`: drop, or keep, the images that a list names."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali import similarity
from curator_dali.arguments import Limits
from curator_dali.arrays import missing, objects
from curator_dali.batch import ImageBatch
from curator_dali.errors import SourceError, StageError
from curator_dali.index import HashIndex, KeyList
from curator_dali.io import is_remote
from curator_dali.sources import to_text
from curator_dali.stages.base import Reason, Selector, View, checked_stage, list_images
from curator_dali.stages.deduplicate import HASH_VIEW

_DIGESTS = ("sha256", "md5")
_HASHES = ("phash", "dhash")
_Hash = Literal["phash", "dhash"]


class _Listed(NamedTuple):
    """The device, the list, and its perceptual hashes: their index, and the line of each."""

    device: str
    entries: KeyList
    hashes: HashIndex | None
    lines: NDArray[np.int64]


@dataclass(frozen=True)
class _ListSelector(Selector):
    """A selector by a list; `Exclude` and `Include` say which way round."""

    entries: Any
    by: str = "image_id"
    column: str | None = None
    distance: Annotated[int, Limits("0 to 16 bits, 4 to 6 is usual", 0, 16)] = 0

    def __post_init__(self) -> None:
        if hasattr(self.entries, "__arrow_c_stream__") and not hasattr(self.entries, "to_list"):  # a table, a frame
            object.__setattr__(self, "entries", self._read(self.entries).texts().to_pylist())
        object.__setattr__(self, "entries", _plain_entries(self.name, self.entries))
        if not self.by:
            raise StageError(f"{self.name}.by is {self.by!r}; give image_id, image_path, a field, or a kind of hash")
        if self.distance and self.by not in _HASHES:
            raise StageError(f"{self.name}.distance is {self.distance} with by={self.by!r}; give by='phash' or 'dhash'")

    @property
    def reads(self) -> frozenset[str]:
        """The images' bytes for a digest of these, the pixels for a perceptual hash, else the field."""
        return frozenset({"encoded"} if self.by in _DIGESTS else () if self.by in _HASHES else {self.by})

    @property
    def needs(self) -> tuple[str, ...]:
        """The column of that name."""
        return (self.by,)

    @property
    def views(self) -> tuple[View, ...]:
        """Images in grey for a perceptual hash."""
        return (HASH_VIEW,) if self.by in _HASHES else ()

    @property
    def settings(self) -> dict[str, Any]:
        """The fields; of a list in memory a digest."""
        found = super().settings
        if isinstance(self.entries, tuple):
            digest = hashlib.blake2b("\n".join(self.entries).encode("utf-8", "replace"), digest_size=8).hexdigest()
            found["entries"] = {"texts": len(self.entries), "digest": digest}
        return found

    @property
    def lineage(self) -> dict[str, Any]:
        """The content of the list, as a number of entries and a digest."""
        return {"entries": len(self.state.entries), "digest": self.state.entries.digest}

    @property
    def name(self) -> str:
        """As "Exclude(image_id)"."""
        return f"{type(self).__name__}({self.by})"

    def setup(self, device: str) -> None:
        """Read the list.

        Raises:
            StageError: It cannot be read, or has an entry that is no hash of the kind.
        """
        if self._is_set_up(device):
            return
        entries = self._read(self.entries if isinstance(self.entries, str) else list(self.entries))
        hashes, lines = None, entries.lines()
        if self.by in _HASHES:
            hashes, lines = self._index(entries)
        elif self.by in _DIGESTS:
            self._check_digests(entries)
        self._keep(_Listed(device, entries, hashes, lines))

    def _read(self, source: Any) -> KeyList:
        try:
            return KeyList(source, self.column, default=self.by, spell=_spell, lower=self.by in (*_DIGESTS, *_HASHES))
        except SourceError as error:
            raise StageError(f"{self.name}: {error}") from error

    def _find_lines(self, batch: ImageBatch) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Find the images in the list.

        Returns:
            (N,) int64, the line that names each image, 0 where none does; and (N,) bool, whether an image has the
            field at all.
        """
        if self.by in _HASHES:
            return self._find_near(batch)
        digested = self.by in _DIGESTS and self.by not in batch.columns
        values = (
            batch.values(self.by)
            if not digested
            else objects([hashlib.new(self.by, image).hexdigest() for image in list_images(self, batch)])
        )
        # a column of floats holds no whole number beyond 2**53, and one of texts no bytes: the metadata has the value
        exact = [_find_exact(own, item.metadata.get(self.by)) for own, item in zip(values, batch.data, strict=True)]
        pairs = zip(exact, batch.data, strict=True)
        if any(isinstance(v, float) and abs(v) > 2**53 and self.by not in item.metadata for v, item in pairs):
            raise StageError(
                f"{self.name}: the output has {self.by!r} as floats, which do not hold whole numbers beyond 2**53: "
                "curate again with this stage"
            )
        texts = list(map(_spell, exact))
        return self.state.entries.find(texts), np.array([text is not None for text in texts], bool)

    def _find_near(self, batch: ImageBatch) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        kind: _Hash = "phash" if self.by == "phash" else "dhash"
        if kind in batch.columns:
            rows, hashes = similarity.find_comparable(batch.columns[kind], kind)
        else:
            made, blank = similarity.hash_images(batch.to_torch(HASH_VIEW), kind)
            rows = np.flatnonzero(~blank)
            hashes = made[rows]
        lines = np.zeros(len(batch), np.int64)
        there = np.zeros(len(batch), bool)
        there[rows] = True
        if self.state.hashes is not None:
            pairs = self.state.hashes.near(hashes, self.distance)
            # (P,) the nearest entries last, so that each image's assignment is that of its nearest one
            order = np.argsort(-pairs.value, kind="stable")
            lines[rows[pairs.first[order]]] = self.state.lines[pairs.second[order]]
        return lines, there

    def _index(self, entries: KeyList) -> tuple[HashIndex | None, NDArray[np.int64]]:
        """Index the perceptual hashes of a list: their index, None where there is none, and the lines of its rows."""
        texts = entries.texts().to_pylist()
        try:
            hashes = similarity.from_hex(texts)
        except ValueError as error:
            line = next(n for n, text in zip(entries.lines().tolist(), texts, strict=True) if text in str(error))
            raise StageError(f"{self.name}: {entries.describe(line)}: {error}") from error
        if not len(hashes):
            return None, entries.lines()
        with tempfile.TemporaryDirectory() as folder:  # mapped files stay readable without their names
            HashIndex.write(folder, self.by, hashes, np.arange(len(hashes)))
            return HashIndex.load(folder, self.by), entries.lines()

    def _check_digests(self, entries: KeyList) -> None:
        """Refuse an entry that is no digest of the kind: a list of other things would match nothing, silently."""
        digits = 2 * hashlib.new(self.by).digest_size
        for line, text in zip(entries.lines().tolist(), entries.texts().to_pylist(), strict=True):
            if len(text) != digits or not set(text) <= set("0123456789abcdef"):
                raise StageError(
                    f"{self.name}: {entries.describe(line)} is {text[:80]!r}; give {digits} hexadecimal digits"
                )


@checked_stage
@dataclass(frozen=True)
class Exclude(_ListSelector):
    """Drop the images that a list names: takedowns, opt-outs, the images of a test set.

    The reason names the list and the line, as "image_id is in takedown.txt, line 17". An image without the field stays.

    Args:
        entries: A path or URL of a text file (an entry a line, blank lines count for nothing) or of a Parquet, CSV,
            TSV, JSON lines or Arrow file; or the entries themselves.
        by: What an entry is: "image_id", "image_path", "sha256" or "md5" of the image's encoded bytes (hexadecimal),
            "phash" or "dhash" (16 hexadecimal digits, as imagehash prints them), or a field of the metadata ("url") or
            a column, compared as text. A stored column of the name is used, where an output has one.
        column: The column of a file with several.
        distance: Most bits, 0 to 16, in which perceptual hashes differ.

    Raises:
        StageError: A setting is out of its range.
    """

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        """None, or as "image_id is in takedown.txt, line 17"; see `Selector.judge`."""
        lines, _ = self._find_lines(batch)
        reasons, entries = missing(len(batch), "string"), self.state.entries
        how = f"{self.by} is within {self.distance} bits of one" if self.distance else f"{self.by} is"
        for row in np.flatnonzero(lines).tolist():
            text = f"{how} in {entries.describe(int(lines[row]))}"
            reasons[row] = Reason(text, f"{how} in {entries.name}")
        return reasons


@checked_stage
@dataclass(frozen=True)
class Include(_ListSelector):
    """Keep only the images that a list names; the arguments are those of `Exclude`.

    The reason is as "image_id is not in allowed.txt". An image without the field is dropped.
    """

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        """None, or as "image_id is not in allowed.txt"; see `Selector.judge`."""
        lines, there = self._find_lines(batch)
        reasons = missing(len(batch), "string")
        how = f"within {self.distance} bits of one in" if self.distance else "in"
        reasons[lines == 0] = f"{self.by} is not {how} {self.state.entries.name}"
        reasons[~there] = f"{self.by} is missing"
        return reasons


def _plain_entries(name: str, entries: Any) -> str | tuple[str, ...]:
    """A path as text, or entries as a tuple of texts."""
    if isinstance(entries, (str, os.PathLike)):
        if not os.fspath(entries):
            raise StageError(f"{name}.entries is {entries!r}; give a file, or the entries in a list")
        path = os.fspath(entries)
        return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))  # a later call may be elsewhere
    if isinstance(entries, Mapping) or not hasattr(entries, "__iter__"):
        raise StageError(f"{name}.entries is {entries!r:.80}; give a file, or the entries in a list")
    items: Sequence[Any] = entries.tolist() if hasattr(entries, "tolist") else list(entries)
    texts = [item if isinstance(item, str) else _spell(item) or "" for item in items]
    return tuple(sorted(texts) if isinstance(entries, (set, frozenset)) else texts)


def _find_exact(column: Any, metadata: Any) -> Any:
    """The value in the metadata that a column's value was made of; the column's own where it was made of another."""
    if metadata is None or isinstance(metadata, float):
        return column
    if isinstance(column, float):
        made = isinstance(metadata, (int, Decimal)) and float(metadata) == column
    else:
        made = (to_text(metadata) if isinstance(column, str) else metadata) == column
    return metadata if made else column


def _spell(value: Any) -> str | None:
    """A value as lists and metadata both have it: whole numbers without a point, bytes as text; None for none."""
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return to_text(value)
