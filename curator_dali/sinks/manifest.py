"""What of an output is finished: one small file a part, so that many writers never wait for each other.

    out/_manifest/run.json                                 the data set, the settings and the lineage
    out/_manifest/parts/000000000000-000000010000.json     samples 0 to 9,999 are finished: files, sizes, hashes, counts
    out/_manifest/lock                                     locked by the run that works on the folder

A part's files appear first, then its record: what has no record is not finished, whatever files lie there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curator_dali import __version__
from curator_dali.errors import OutputError
from curator_dali.files import Written, is_remote, write_file
from curator_dali.sinks import store
from curator_dali.sinks.explain import explained, join, prepare_folder

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Manifest", "Part", "part_name"]

logger = logging.getLogger(__name__)

FORMAT = 1
_FOLDER, _RECORDS = "_manifest", "_manifest/parts"
_NAME = re.compile(r"(\d{12,})-(\d{12,})")


def part_name(start: int, stop: int) -> str:
    """What the names of a part's files begin with: the range of its samples."""
    return f"{start:012d}-{stop:012d}"


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

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        files = [file._asdict() for file in self.files]
        return {"start": self.start, "stop": self.stop, "files": files} | {
            "counts": dict(self.counts),
            "info": dict(self.info),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Part:
        """The part of a record.

        Raises:
            ValueError: It is none.
        """
        try:
            files = tuple(Written(str(f["name"]), int(f["size"]), str(f["blake2b"])) for f in record["files"])
            return cls(record["start"], record["stop"], files, record["counts"], record["info"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a part's record: {error!r}") from error


class Manifest:
    """The manifest of an output folder.

    One process `open`s it (and has the folder to itself), finds out what is `missing`, and has that done; who does a
    part, in whatever process or on whatever machine, `commit`s it: give workers the manifest (it pickles, without the
    lock) or `load` it there.

    Attributes:
        folder: The output folder.
        run: The content of `run.json`: `source`, `samples`, `settings`, `lineage`, `version`.
    """

    def __init__(self, folder: str, run: Mapping[str, Any]) -> None:
        self.folder, self.run = folder, run
        self._lock = -1

    @classmethod
    def open(
        cls,
        folder: str,
        *,
        source: str,
        samples: int,
        settings: Mapping[str, Any],
        lineage: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Begin an output, or go on with one; afterwards everything in the folder belongs to a finished part.

        What killed runs left is removed, and so are parts with files that are missing or of another size.

        Args:
            folder: Path or URL.
            source: The data set's fingerprint.
            samples: How many samples it has.
            settings: Everything that decides what is written, in JSON's types.
            lineage: What it is written with: models, hashes of weights, versions, in JSON's types.

        Raises:
            OutputError: The folder cannot be written to, another run works on it, or it has been written from another
                data set or with other settings.
        """
        given = {"source": source, "samples": samples, "settings": dict(settings), "lineage": dict(lineage or {})}
        run = json.loads(json.dumps({"format": FORMAT, "version": __version__, **given}))
        folder = prepare_folder(folder)
        for inner in (_FOLDER, _RECORDS):
            prepare_folder(join(folder, inner))
        manifest = cls(folder, run)
        manifest._acquire()
        try:
            earlier = _read_run(folder)
            if earlier is None:
                with explained(folder):
                    write_file(join(folder, f"{_FOLDER}/run.json"), json.dumps(run, indent=1).encode())
            else:
                _refuse_other(folder, earlier, run)
                manifest.run = earlier
            manifest._clean()
        except BaseException:
            manifest.close()
            raise
        return manifest

    @classmethod
    def load(cls, folder: str) -> Manifest:
        """The manifest of an output that is there, to read it or to commit parts to it.

        Raises:
            OutputError: There is none.
        """
        folder = folder.rstrip("/") if is_remote(folder) else os.path.abspath(folder)
        run = _read_run(folder)
        if run is None:
            raise OutputError(f"{folder} is no output of a curation: it has no {_FOLDER}/run.json")
        return cls(folder, run)

    @property
    def samples(self) -> int:
        """Samples of the source."""
        return int(self.run["samples"])

    def commit(self, part: Part) -> None:
        """Record a part, whose files must all be there.

        Raises:
            OutputError: The record cannot be written.
        """
        url = join(self.folder, f"{_RECORDS}/{part_name(part.start, part.stop)}.json")
        with explained(url):
            write_file(url, json.dumps(part.to_json()).encode())

    def ranges(self) -> list[tuple[int, int]]:
        """[start, stop) of the finished parts, in order: of the records' names alone, so fast."""
        names = store.listing(join(self.folder, _RECORDS))
        matches = (_NAME.fullmatch(name.removesuffix(".json")) for name in names)
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def parts(self) -> list[Part]:
        """The finished parts, in order.

        Raises:
            OutputError: A record is damaged.
        """
        parts, bad = self._read_parts()
        if bad:
            raise OutputError(f"{self.folder}: {len(bad)} damaged records ({bad[0]}): run the curation again")
        return parts

    def missing(self, size: int | None = None) -> list[tuple[int, int]]:
        """What is not finished, as ranges [start, stop) in order.

        Args:
            size: Cut them at its multiples, so that none is larger.
        """
        gaps, at = [], 0
        for start, stop in [*self.ranges(), (self.samples, self.samples)]:
            if start > at:
                gaps.append((at, start))
            at = max(at, stop)
        if size is None:
            return gaps
        if size < 1:
            raise ValueError(f"a part has at least 1 sample, not {size}")
        return [
            (max(start, cut), min(stop, cut + size))
            for start, stop in gaps
            for cut in range(start - start % size, stop, size)
        ]

    def verify(self, deep: bool = False) -> list[str]:
        """What is wrong with the output, a line each: files that are missing, of another size or content; ranges.

        Args:
            deep: Whether to read every file and compare its hash.
        """
        parts, problems = self._read_parts()
        sizes = store.listing(self.folder)
        for part in parts:
            for file in part.files:
                if problem := store.compare(join(self.folder, file.name), file, sizes.get(file.name), deep):
                    problems.append(problem)
        at = 0
        for start, stop in [(part.start, part.stop) for part in parts] + [(self.samples, self.samples)]:
            if start > at:
                problems.append(f"samples {at} to {start - 1} are missing")
            elif start < at:
                problems.append(f"samples {start} to {min(at, stop) - 1} are in more than one part")
            at = max(at, stop)
        return problems

    def close(self) -> None:
        """Let other runs work on the folder. May be called again."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": -1}

    def _acquire(self) -> None:
        if is_remote(self.folder):  # stores have no locks: one run at a time is up to the user
            return
        path = join(self.folder, f"{_FOLDER}/lock")
        with explained(path):
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise OutputError(
                f"another run is writing to {self.folder}: wait for its end, or choose another folder"
            ) from error
        except OSError:
            logger.debug("%s: no locks on this filesystem", self.folder)

    def _read_parts(self) -> tuple[list[Part], list[str]]:
        """The parts of readable records, in order, and what is wrong with the others."""
        folder = join(self.folder, _RECORDS)
        names = sorted(name for name in store.listing(folder) if name.endswith(".json") and not name.startswith("."))
        parts, bad = [], []
        for name, data in store.read_many(folder, names):
            try:
                part = Part.from_json(json.loads(data))
                if f"{part_name(part.start, part.stop)}.json" != name:
                    raise ValueError("it is for another range")
                parts.append(part)
            except ValueError as error:
                bad.append(f"{name}: {error}")
        return parts, bad

    def _clean(self) -> None:
        """Drop parts whose files are not as recorded, then files that belong to no part."""
        parts, bad = self._read_parts()
        for problem in bad:
            self._drop(problem.partition(":")[0], (), problem)
        sizes = store.listing(self.folder)
        listed: set[str] = set()
        for part in parts:
            wrong = [file for file in part.files if sizes.get(file.name) != file.size]
            if wrong or part.stop > self.samples:
                name = f"{part_name(part.start, part.stop)}.json"
                self._drop(name, part.files, f"{wrong[0].name if wrong else name} is not as it was recorded")
            else:
                listed.update(file.name for file in part.files)
        orphans = [name for name in sizes if _NAME.match(name) and name not in listed]
        for name in orphans:
            logger.info("removing %s: its part was not finished", name)
            with contextlib.suppress(FileNotFoundError):
                store.remove(join(self.folder, name))

    def _drop(self, record: str, files: Iterable[Written], why: str) -> None:
        logger.warning("%s: %s; that part is done again", self.folder, why)
        store.remove(join(self.folder, f"{_RECORDS}/{record}"))
        del files  # they are orphans now


def _read_run(folder: str) -> dict[str, Any] | None:
    data = store.read(join(folder, f"{_FOLDER}/run.json"))
    if data is None:
        return None
    try:
        run = json.loads(data)
        found = run["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder}/{_FOLDER}/run.json is damaged ({error!r}): choose another folder") from error
    if found != FORMAT:
        raise OutputError(
            f"{folder} was written in format {found} by curator_dali {run.get('version')}, this is {__version__} with "
            f"format {FORMAT}: use that version, or choose another folder"
        )
    return run  # type: ignore[no-any-return]


def _refuse_other(folder: str, earlier: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    differing = [
        line
        for name in ("source", "samples", "settings", "lineage")
        for line in _differences(earlier.get(name), run[name], name)
    ]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise OutputError(
            f"{folder} holds the output of another run: {'; '.join(differing[:5])}{more}. "
            "Choose another folder, or delete this one"
        )


def _differences(then: Any, now: Any, where: str) -> list[str]:
    """Where two JSON values differ, a line each."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = list(dict.fromkeys([*then, *now]))
        return [
            line for name in names for line in _differences(then.get(name, _ABSENT), now.get(name, _ABSENT),
                                                            f"{where}.{name}")
        ]  # fmt: skip
    if isinstance(then, Sequence) and isinstance(now, Sequence) and not isinstance(then, str) and len(then) == len(now):
        return [
            line
            for number, pair in enumerate(zip(then, now, strict=True))
            for line in _differences(*pair, f"{where}[{number}]")
        ]
    return [] if then == now and type(then) is type(now) else [f"{where} was {_short(then)} and is now {_short(now)}"]


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
