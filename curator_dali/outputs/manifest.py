"""The manifest of an output: its finished parts, so that a rerun does only what is missing, however the last one ended.

    out/_manifest/run.json                                 the data set, the settings and the lineage
    out/_manifest/parts/000000000000-000000010000.json     samples 0 to 9,999 are finished: files, sizes, hashes, counts
    out/_manifest/parts.jsonl                              such records packed, once there are very many
    out/_manifest/sources.jsonl                            the data set's files, by which these are found again
    out/_manifest/lock                                     locked by the run that works on the folder

A part's files appear first, then its record: what has no record is not finished, whatever files lie there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curator_dali._version import __version__
from curator_dali.errors import OutputError
from curator_dali.io import (
    Written,
    differences,
    explained,
    is_remote,
    join,
    parse_json,
    prepare_folder,
    store,
    write_file,
)

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_FORMAT = 1
_FOLDER = "_manifest"
_PACK_FROM = 10_000  # loose records; reading them takes longer than packing them once
_PACKED_NAME = "parts.jsonl"
_LOOSE_NAME = re.compile(r"(\d{12,})-(\d{12,})\.json")
_OUTPUT_NAME = re.compile(r"\d{12,}-\d{12,}(-\d+)?(\.images)?\.(tar|parquet)")  # of a part's files

IMAGES = ".images.parquet"
"""The ending of Parquet files with the images that are kept; other Parquet files hold rows of all samples."""


class Manifest:
    """The manifest of an output folder.

    One process `open`s it (and has the folder to itself), finds out what is `missing`, has that done, and at the end
    asks `verify` whether all is there. Who does a part, in whatever process or on whatever machine, `commit`s it: give
    workers the manifest (it pickles, without the lock), or `load` it there.

    Attributes:
        folder: The output folder.
        run: The content of `run.json`: `source`, `samples`, `settings`, `lineage`, `version`, `origin`, and
            further facts of the data set, as `class_names`. `source` and `samples` are None as long as the data set is
            not indexed; `listing` is then the fingerprint of its files' names and sizes.
    """

    def __init__(self, folder: str, run: Mapping[str, Any]) -> None:
        self.folder, self.run = folder, run
        self._records = Records(join(folder, _FOLDER))
        self._lock = -1

    @classmethod
    def open(
        cls,
        folder: str,
        *,
        source: str | None,
        samples: int | None,
        settings: Mapping[str, Any],
        lineage: Mapping[str, Any] | None = None,
        origin: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        listing: str | None = None,
    ) -> Manifest:
        """Begin an output, or go on with one; then every tar and Parquet file of a part is that of a finished one.

        What killed runs left is removed, and so are parts with files that are missing or of another size. On a remote
        store, which has no locks, it is up to you that only one run at a time works on a folder.

        Args:
            folder: Path or URL.
            source: The data set's fingerprint; None where it is not indexed yet.
            samples: How many samples it has; None where it is not indexed yet.
            settings: Everything that decides what is written, in JSON's types; functions as `Function`.
            lineage: What it is written with: models, hashes of weights, versions, in JSON's types.
            origin: How the data set is opened again, in JSON's types; may differ from an earlier run's.
            facts: Further facts of the data set, in JSON's types; may differ as well.
            listing: The fingerprint of what is known without an index. It tells whether the data set is the same where
                this run or the earlier one has no `source`.

        Raises:
            OutputError: The folder cannot be written to, another run works on it, or it has been written from another
                data set, with other settings or models, or by another version.
        """
        given = {"source": source, "samples": samples, "settings": dict(settings), "lineage": dict(lineage or {})}
        known = {"origin": origin, **(facts or {})} | ({"listing": listing} if source is None else {})
        run = json.loads(json.dumps({"format": _FORMAT, "version": __version__, **given, **known}))
        folder = prepare_folder(folder)
        inner = prepare_folder(join(folder, _FOLDER))
        manifest = cls(folder, run)
        try:
            manifest._acquire()
            prepare_folder(join(inner, "parts"))
            earlier = _read_run(folder)
            if earlier is not None:
                if source is None or earlier.get("source") is None:
                    given = {**run, "listing": listing}
                    _check_same_run(folder, earlier, given, spell_former(settings), ("listing",))
                else:
                    _check_same_run(folder, earlier, run, spell_former(settings))
                manifest.run = earlier
                if source is not None and samples is not None:
                    manifest.complete(source, samples)
                manifest._clean()
            else:
                if any(map(_OUTPUT_NAME.fullmatch, store.names(folder))) or manifest.ranges():
                    raise OutputError(
                        f"{folder} holds the output of a run whose {_FOLDER}/run.json is gone: choose another folder"
                    )
                manifest._write_run()
        except BaseException:
            manifest.close()
            raise
        return manifest

    @classmethod
    def load(cls, folder: str) -> Manifest:
        """The manifest of an output that is there, to read it or to commit parts to it.

        Raises:
            OutputError: There is none, or it is of another version.
        """
        folder = folder.rstrip("/") if is_remote(folder) else os.path.abspath(folder)
        run = _read_run(folder)
        if run is None:
            raise OutputError(f"{folder} is no output of a curation: it has no {_FOLDER}/run.json")
        return cls(folder, run)

    @property
    def is_counted(self) -> bool:
        """Whether the number of samples is known."""
        return self.run["samples"] is not None

    @property
    def samples(self) -> int:
        """Samples of the source; where these are not counted yet, those up to the end of the last finished part."""
        if self.is_counted:
            return int(self.run["samples"])
        return max((stop for _, stop in self.ranges()), default=0)

    def complete(self, source: str, samples: int) -> None:
        """Record the fingerprint and the number of samples, now that the data set is indexed.

        Raises:
            OutputError: They cannot be written.
        """
        if not self.is_counted:
            self.run = {**self.run, "source": source, "samples": samples}
            self._write_run()

    def _write_run(self) -> None:
        with explained(self.folder):
            write_file(join(self.folder, f"{_FOLDER}/run.json"), json.dumps(self.run, indent=1).encode())

    def commit(self, part: Part) -> None:
        """Record a part, whose files must all be there. A record of the same range is replaced.

        Raises:
            OutputError: The record cannot be written.
            ValueError: It is no range of the source.
        """
        if self.is_counted and part.stop > self.samples:
            raise ValueError(f"[{part.start}, {part.stop}) is no range of the {self.samples} samples")
        self._records.write(part)

    def ranges(self) -> list[tuple[int, int]]:
        """[start, stop) of the finished parts, in order."""
        return self._records.ranges()

    def parts(self) -> list[Part]:
        """The finished parts, in order.

        Raises:
            OutputError: A record is damaged.
        """
        parts, bad = self._records.read()
        if bad:
            name, reason = next(iter(bad.items()))
            raise OutputError(
                f"{self.folder} has {len(bad)} damaged records ({name}: {reason}): run the curation again, it does "
                "those parts anew"
            )
        return parts

    def missing(self, size: int | None = None) -> list[tuple[int, int]]:
        """What is not finished, as ranges [start, stop) in order.

        Args:
            size: Cut them at its multiples, so that none is larger.
        """
        if size is not None and size < 1:
            raise ValueError(f"a part has at least 1 sample, not {size}")
        gaps, at = [], 0
        for start, stop in [*self.ranges(), (self.samples, self.samples)]:
            if start > at:
                gaps.append((at, start))
            at = max(at, stop)
        if size is None:
            return gaps
        return [
            (max(start, cut), min(stop, cut + size))
            for start, stop in gaps
            for cut in range(start - start % size, stop, size)
        ]

    def verify(self, deep: bool = False) -> list[str]:
        """What is wrong with the output, a line each; nothing if all samples are in one part and all files are there.

        Args:
            deep: Whether to read every file and compare its hash, too.
        """
        parts, bad = self._records.read()
        problems = [f"the record {name} is damaged: {reason}" for name, reason in bad.items()]
        sizes = store.listing(self.folder)
        found = (
            store.compare(join(self.folder, file.name), file, sizes.get(file.name), deep)
            for part in parts
            for file in part.files
        )
        problems.extend(filter(None, found))
        at = 0
        for start, stop in [*((part.start, part.stop) for part in parts), (self.samples, self.samples)]:
            if start > at:
                problems.append(f"samples {at} to {start - 1} are missing")
            elif start < at and start < self.samples:
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

    def __del__(self) -> None:
        self.close()

    def _acquire(self) -> None:
        if is_remote(self.folder):
            return
        path = join(self.folder, f"{_FOLDER}/lock")
        with explained(path):
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        lock(self._lock, path, f"another run is writing to {self.folder}: wait for its end, or choose another folder")

    def _clean(self) -> None:
        """Drop parts whose files are not as recorded, then files that belong to no part."""
        parts, bad = self._records.read()
        sizes = store.listing(self.folder)
        kept, wrong = [], list(bad)
        for part in parts:
            changed = [file.name for file in part.files if sizes.get(file.name) != file.size]
            wrong += changed[:1]
            if not changed:
                kept.append(part)
        if wrong:
            logger.warning(
                "%s: %d finished parts are done again, their files are not as they were (%s, ...)",
                self.folder,
                len(wrong),
                wrong[0],
            )
        self._records.keep_only(kept, _PACK_FROM)
        listed = {file.name for part in kept for file in part.files}
        for name in sizes:
            if _OUTPUT_NAME.fullmatch(name) and name not in listed:
                logger.info("%s: removing %s, whose part was not finished", self.folder, name)
                store.remove(join(self.folder, name))


def _read_run(folder: str) -> dict[str, Any] | None:
    url = join(folder, f"{_FOLDER}/run.json")
    data = store.read(url)
    if data is None:
        return None
    try:
        run = parse_json(data)
        found = run["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{url} is damaged ({error!r}): choose another folder") from error
    if found != _FORMAT:
        raise OutputError(
            f"{folder} was written in format {found!r} by curator_dali {run.get('version')}; this is {__version__} "
            f"with format {_FORMAT}: use that version, or choose another folder"
        )
    return run  # type: ignore[no-any-return]


def _check_same_run(
    folder: str,
    earlier: Mapping[str, Any],
    run: Mapping[str, Any],
    former: Any,
    data: Sequence[str] = ("source", "samples"),
) -> None:
    """Refuse a folder whose `run.json` says another run.

    `former` are the settings as earlier versions spelt them, `data` the entries by which data sets are told apart.
    """
    if not differences(earlier.get("settings"), json.loads(json.dumps(former)), "settings"):
        run = {**run, "settings": earlier["settings"]}
    names = (*data, "settings", "lineage")
    differing = [line for name in names for line in differences(earlier.get(name), run[name], name)]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        message = ""
        if any(earlier.get(name) != run[name] for name in data):
            message = " (of files that were written anew; earlier versions had other fingerprints)"
        elif any(_NEWLY_SPELT.search(line) for line in differing):
            message = (
                " (a function that was changed, or one that an earlier version knew by its bytecode, which is another "
                "with every version of Python: go on with the Python of that run)"
            )
        raise OutputError(
            f"{folder} holds the output of another run: {'; '.join(differing[:5])}{more}{message}. "
            "Choose another folder, or delete this one"
        )


_NEWLY_SPELT = re.compile(r"was '\S+:\S+ [0-9a-f]{16}' and is now '\S+:\S+ source")


class Function(str):
    """A function in settings: its module, its name and a digest of its source.

    Attributes:
        former: The text by which earlier versions knew it, with a digest of its bytecode.
    """

    __slots__ = ("former",)
    former: str

    def __new__(cls, text: str, former: str) -> Self:
        """Make the text with its earlier one."""
        function = super().__new__(cls, text)
        function.former = former
        return function

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.former)


def spell_former(settings: Any) -> Any:
    """Spell settings as earlier versions did, which knew functions by their bytecode."""
    if isinstance(settings, Mapping):
        return {name: spell_former(value) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [*map(spell_former, settings)]
    return settings.former if isinstance(settings, Function) else settings


class Records:
    """The records in a manifest's folder: `parts/START-STOP.json`, and those that were packed into `parts.jsonl`."""

    def __init__(self, folder: str) -> None:
        self._packed = join(folder, _PACKED_NAME)
        self._loose = join(folder, "parts")
        self._were_packed: set[tuple[int, int]] = set()

    def write(self, part: Part) -> None:
        """Record a part; a failure to write is an `OutputError`."""
        url = join(self._loose, f"{part_name(part.start, part.stop)}.json")
        with explained(url):
            write_file(url, part.to_json())

    def ranges(self) -> list[tuple[int, int]]:
        """[start, stop) of the recorded parts, in order; loose records are not read for it."""
        found = {
            (int(match[1]), int(match[2]))
            for name in store.names(self._loose)
            if (match := _LOOSE_NAME.fullmatch(name))
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
        some that were to be removed, but loses none. OutputError: a file cannot be written or removed.
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


def part_name(start: int, stop: int) -> str:
    """What the names of a part's files begin with: the range of its samples."""
    return f"{start:012d}-{stop:012d}"


def labels_of(names: Iterable[str]) -> list[str]:
    """What stages of these names are called, in their order: "Quality", "Filter(width)", "Filter(width) #2"."""
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return labels


def lock(descriptor: int, path: str, taken: str) -> None:
    """Lock an open file or folder until it is closed; where the filesystem has no locks, warn and go on.

    Raises:
        OutputError: Another process has the lock; `taken` is the message.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(taken) from error
    except OSError as error:
        logger.warning("%s: this filesystem has no locks (%s): let one process at a time write to it", path, error)
