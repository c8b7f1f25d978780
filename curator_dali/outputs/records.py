"""Records of finished parts: one small file each, so that writers never wait for each other; many of them packed."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curator_dali.errors import OutputError
from curator_dali.io import store
from curator_dali.io.files import Written, parse_json, write_file
from curator_dali.io.store import explained, join

__all__ = ["Part", "Records", "part_name"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{12,})-(\d{12,})\.json")
_OUTPUT = re.compile(r"\d{12,}-\d{12,}(-\d+)?\.(tar|parquet)")
_PACKED = "parts.jsonl"


def part_name(start: int, stop: int) -> str:
    """What the names of a part's files begin with: the range of its samples."""
    return f"{start:012d}-{stop:012d}"


def is_output(name: str) -> bool:
    """Whether a file's name is that of a part's tar or Parquet."""
    return _OUTPUT.fullmatch(name) is not None


@dataclass(frozen=True)
class Part:
    """A finished range of samples, [start, stop) of the source.

    Attributes:
        start: Index of its first sample.
        stop: Index behind its last.
        files: What was written: names in the output folder, sizes and hashes.
        counts: Samples by status; they add up to `stop - start`.
        info: Whatever else the writer wants kept (seconds, reasons, ...), in JSON's types.
    """

    start: int
    stop: int
    files: tuple[Written, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a part is a range of samples, not [{self.start}, {self.stop})")
        if (total := sum(self.counts.values())) != len(self):
            raise ValueError(f"part [{self.start}, {self.stop}) has {len(self)} samples, its counts add up to {total}")

    def __len__(self) -> int:
        return self.stop - self.start

    def to_json(self) -> bytes:
        """As one line of JSON, the range first."""
        record = {
            "start": self.start,
            "stop": self.stop,
            "files": [file._asdict() for file in self.files],
            "counts": dict(self.counts),
            "info": dict(self.info),
        }
        return json.dumps(record).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Part:
        """The part of a record.

        Raises:
            ValueError: It is none.
        """
        try:
            record = parse_json(data)
            files = tuple(Written(file["name"], file["size"], file["blake2b"]) for file in record["files"])
            return cls(record["start"], record["stop"], files, record["counts"], record["info"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the record of a part: {error!r}") from error


class Records:
    """The records in `FOLDER/parts/START-STOP.json`, and those that were packed into `FOLDER/parts.jsonl`.

    Args:
        folder: The manifest's folder.
    """

    def __init__(self, folder: str) -> None:
        self._packed = join(folder, _PACKED)
        self._loose = join(folder, "parts")
        self._were_packed: set[tuple[int, int]] = set()

    def write(self, part: Part) -> None:
        """Record a part.

        Raises:
            OutputError: The record cannot be written.
        """
        url = join(self._loose, f"{part_name(part.start, part.stop)}.json")
        with explained(url):
            write_file(url, part.to_json())

    def ranges(self) -> list[tuple[int, int]]:
        """[start, stop) of the recorded parts, in order; loose records are not read for it."""
        found = {
            (int(match[1]), int(match[2])) for name in store.names(self._loose) if (match := _NAME.fullmatch(name))
        }
        found.update((part.start, part.stop) for part in self._read_packed())
        return sorted(found)

    def read(self) -> tuple[list[Part], dict[str, str]]:
        """The parts in order; and of records that are damaged, name -> what is wrong."""
        found = {(part.start, part.stop): part for part in self._read_packed()}
        self._were_packed = set(found)
        bad: dict[str, str] = {}
        names = sorted(name for name in store.names(self._loose) if name.endswith(".json") and name[0] != ".")
        for name, data in store.read_many(self._loose, names):
            try:
                part = Part.from_json(data)
                if f"{part_name(part.start, part.stop)}.json" != name:
                    raise ValueError("it is for another range")
                found[part.start, part.stop] = part
            except ValueError as error:
                bad[name] = str(error)
        return [found[key] for key in sorted(found)], bad

    def keep_only(self, parts: Iterable[Part], pack_from: int) -> None:
        """Remove all other records, and pack these into one file if at least `pack_from` are loose.

        For the one process that has the folder to itself, after `read`. A kill on the way leaves records twice, or
        some that were to be removed, but loses none.

        Raises:
            OutputError: A file cannot be written or removed.
        """
        kept = {(part.start, part.stop): part for part in parts}
        loose = store.names(self._loose)
        packing = len(loose) >= pack_from
        if packing:
            logger.info("packing %d records into %s", len(loose), self._packed)
        if packing or not self._were_packed <= kept.keys():
            lines = [part.to_json() + b"\n" for key, part in kept.items() if packing or key in self._were_packed]
            with explained(self._packed):
                write_file(self._packed, *lines)
        names = {f"{part_name(start, stop)}.json" for start, stop in kept}
        for name in loose:
            if name.endswith(".json") and name[0] != "." and (packing or name not in names):
                store.remove(join(self._loose, name))

    def _read_packed(self) -> list[Part]:
        data = store.read(self._packed)
        try:
            return [] if data is None else [Part.from_json(line) for line in data.splitlines()]
        except ValueError as error:
            raise OutputError(f"{self._packed} is damaged ({error}): choose another folder") from error
