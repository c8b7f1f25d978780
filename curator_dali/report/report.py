"""`Report`: what a curation did, in numbers: kept, dropped and why, failed and why, and how long everything took."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from curator_dali._version import __version__
from curator_dali.arguments import checked
from curator_dali.errors import OutputError
from curator_dali.io import join, one_line, parse_json, store
from curator_dali.outputs import Manifest
from curator_dali.report.selection import Count, Counts
from curator_dali.view import html

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a curation did.

    The counts are of the whole output, also of parts that an earlier run had finished; `kept`, what was dropped and
    what failed add up to `samples`. These three can be looked at, also in another session (`Report.load`), as long as
    the data set is there: `report.kept.show()`, `report.failed.show()`, `report.dropped("nsfw_score").show()`.

    Attributes:
        source: Name of the data set.
        out: The output folder.
        device: Where the stages ran.
        samples: Samples that were looked at.
        kept: Samples that stayed.
        dropped: Stage -> kind of reason ("aesthetic_score < 5.0") -> number of samples.
        failed: Kind of reason ("truncated") -> number of samples.
        stages: Stage -> seconds, in the order they ran; "decode" is the time that the first of them waited for images,
            "write" that of the writing thread, which overlaps with all others. Of the whole output.
        parts: Parts of the output.
        earlier: Samples in parts that an earlier run had finished.
        seconds: Of this run, from the first byte to the last.
        complete: Whether all samples of the source are in the output.
        lineage: Stage -> which weights it worked with.
        version: Of curator_dali.
    """

    source: str
    out: str
    device: str
    samples: int
    kept: Count
    dropped: Counts = field(default_factory=Counts)
    failed: Counts = field(default_factory=Counts)
    stages: Mapping[str, float] = field(default_factory=dict)
    parts: int = 0
    earlier: int = 0
    seconds: float = 0.0
    complete: bool = True
    lineage: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        kinds = {"kept": Count(self.kept), "dropped": Counts(self.dropped), "failed": Counts(self.failed)}
        for name, counted in kinds.items():
            object.__setattr__(self, name, counted.of(self.out, name, tuple(self.stages)))

    @classmethod
    @checked
    def load(cls, out: str | os.PathLike[str]) -> Report:
        """The report of an output that is there, finished or not.

        Raises:
            OutputError: There is no output, or it is of another version.
        """
        return read_report(Manifest.load(os.fspath(out)), os.fspath(out))

    @property
    def num_dropped(self) -> int:
        """Samples that a stage dropped."""
        return sum(sum(kinds.values()) for kinds in self.dropped.values())

    @property
    def num_failed(self) -> int:
        """Samples that could not be read or decoded."""
        return sum(self.failed.values())

    @property
    def images_per_second(self) -> float:
        """Samples that this run looked at, per second of it."""
        return (self.samples - self.earlier) / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All of it, as plain values for JSON."""
        plain = {"kept": int(self.kept), "dropped": dict(self.dropped), "failed": dict(self.failed)}
        counts = {"num_dropped": self.num_dropped, "num_failed": self.num_failed}
        return {**asdict(self), **plain, **counts, "images_per_second": self.images_per_second}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table for a terminal: what, number, share of all samples, and why or how long."""
        rows = [self._row("in", self.samples, f"{self.source}, {self.device}")]
        for stage, kinds in [*self.dropped.items(), ("failed", self.failed)]:
            ordered = sorted(kinds.items(), key=lambda item: -item[1])
            rows += [self._row("" if place else stage, -count, kind) for place, (kind, count) in enumerate(ordered)]
        rows.append(self._row("kept", self.kept, self.out))
        return rows

    def times(self) -> list[tuple[str, str]]:
        """A table for a terminal: how long each stage took."""
        new = self.samples - self.earlier
        rows = [(name, f"{seconds:,.2f} s") for name, seconds in self.stages.items()]
        speed = f"{new:,} images in {self.seconds:,.2f} s: {self.images_per_second:,.0f} a second" if new else "nothing"
        return [*rows, ("this run", speed)]

    def __str__(self) -> str:
        rows = self.rows()
        a, b, c = (max(len(row[column]) for row in rows) for column in range(3))
        lines = [f"{what:<{a}}  {number:>{b}}  {share:>{c}}  {why}" for what, number, share, why in rows]
        width = max(len(name) for name, _ in self.times())
        lines += ["", *(f"{name:<{width}}  {text}" for name, text in self.times())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = f"{self.source} to {self.out}, {self.device}" + ("" if self.complete else "; not complete")
        return str(html.render("summary.html", report=self, head=head, rest=self.times()[-1][1]))

    def _row(self, what: str, count: int, why: str) -> tuple[str, str, str, str]:
        share = f"{abs(count) / self.samples:.1%}" if self.samples else ""
        return what, f"{count:+,}" if count < 0 else f"{count:,}", share, why


def read_report(manifest: Manifest, out: str) -> Report:
    """Read the report of an output: the counts of its parts, and the rest of its `report.json`.

    Args:
        manifest: The output's.
        out: The output folder, as the report is to name it.
    """
    told = _read_json(join(manifest.folder, "report.json"))
    parts = manifest.parts()[:1]
    timed = [name for part in parts for name in part.info.get("seconds", {})]
    labels = [name for name in dict.fromkeys([*timed, *told.get("dropped", {})]) if name not in ("decode", "write")]
    known = {name: told.get(name, "not known") for name in ("source", "device")}
    took = {name: told.get(name, 0) for name in ("earlier", "seconds")}
    return count_parts(manifest, labels, out=out, version=manifest.run.get("version", ""), **known, **took)


def _read_json(url: str) -> dict[str, Any]:
    """Read `report.json`. A missing or damaged file gives an empty dictionary, as the parts have most counts."""
    try:
        told = parse_json(store.read(url) or b"{}")
    except (ValueError, OutputError) as error:
        logger.warning("%s cannot be read: %s", url, one_line(error))
        return {}
    return told if isinstance(told, dict) else {}


def count_parts(manifest: Manifest, labels: Sequence[str], version: str = __version__, **about: Any) -> Report:
    """Make the report of an output by its parts.

    Args:
        manifest: The output's.
        labels: The stages in their order.
        version: Of curator_dali.
        about: Fields of the report that the output itself does not say.
    """
    counts = add_up(({"counts": part.counts, "info": part.info} for part in manifest.parts()), labels)
    run = {"complete": not manifest.missing(), "lineage": manifest.run.get("lineage", {}), "version": version}
    return Report(**run, **counts, **about)


def add_up(parts: Iterable[Mapping[str, Any]], labels: Iterable[str]) -> dict[str, Any]:
    """What parts add up to, as arguments of `Report`.

    Args:
        parts: Of each part, `counts` by status, and `info` with `dropped`, `failed` and `seconds` as its record has
            them.
        labels: The stages in their order.
    """
    counts: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {label: Counter() for label in labels}
    failed: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    number = 0
    for part in parts:
        number += 1
        counts.update(part["counts"])
        for label, kinds in part["info"].get("dropped", {}).items():
            dropped.setdefault(label, Counter()).update(kinds)
        for kinds in part["info"].get("failed", {}).values():
            failed.update(kinds)
        seconds.update(part["info"].get("seconds", {}))
    order = [name for name in ("decode", *dropped, "write") if name in seconds]
    return {
        "samples": sum(counts.values()),
        "kept": counts["kept"],
        "dropped": {label: dict(kinds) for label, kinds in dropped.items() if kinds},
        "failed": dict(failed),
        "stages": {name: seconds[name] for name in [*order, *(set(seconds) - set(order))]},
        "parts": number,
    }
