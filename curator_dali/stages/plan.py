"""Whether stages fit together, what each reads and writes, and which columns come out: before any work."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.outputs import DTYPES, FIXED_COLUMNS, LOADED, labels_of
from curator_dali.stages.base import GlobalSelector, Selector, Stage, View
from curator_dali.threads import ignore, import_whole

_ENCODED = "encoded"  # `batch.encoded`: no column, and there only if a stage asks for it
_RESERVED = (*(name for name in FIXED_COLUMNS if name not in LOADED), _ENCODED)  # columns that every output has

HEADER_FIELDS = {"width": "int32", "height": "int32", "pixels": "int64", "aspect_ratio": "float64", "format": "string"}
"""Fields that an image's header tells, with their types of `DTYPES`.

`pixels` is width times height, `aspect_ratio` width by height, `format` a lower-case name such as "jpeg".
"""

_Drop: TypeAlias = Callable[[int, ImageBatch, NDArray[np.bool_], NDArray[np.object_]], object]
"""Takes a stage's number, the M images that it judged, (M,) whether it drops each, and (M,) why, or None."""


@dataclass(frozen=True)
class Plan:
    """Stages in an order that works. A copy by pickle is not set up, as its stages are not.

    Attributes:
        stages: In their order.
        labels: What each is called: its name, with a number behind it where a name repeats.
        columns: Every column that a run leaves, with its type of `DTYPES`: what the loader knows, fields of the
            metadata that a stage reads, and what the stages write.
        metadata: The columns that come from the metadata.
        embeds: Whether a stage writes embeddings.
        derived: The columns that are made of the header, for the stages that read these.
    """

    stages: tuple[Stage, ...]
    labels: tuple[str, ...]
    columns: Mapping[str, str]
    metadata: tuple[str, ...]
    embeds: bool
    derived: tuple[str, ...] = ()
    _device: ClassVar[str] = ""  # that it is set up for; no field: a plan is the same one before and after

    @property
    def made(self) -> dict[str, str]:
        """The columns that the loader does not know, with their types."""
        return {name: kind for name, kind in self.columns.items() if name not in LOADED}

    @property
    def views(self) -> tuple[View, ...]:
        """The views that the stages look at, each once; known when all are set up."""
        return tuple(dict.fromkeys(view for stage in self.stages for view in stage.views))

    @property
    def screening(self) -> int:
        """Number of first stages that decide by header, id, path and metadata, before anything is decoded."""
        known = {*LOADED, *self.metadata, *self.derived}
        return self._count_selectors(known)

    @property
    def screening_headers(self) -> int:
        """Number of first stages that decide by the header alone, before the image is read."""
        return self._count_selectors(HEADER_FIELDS.keys() - {*self.metadata})

    def _count_selectors(self, known: Collection[str]) -> int:
        """Count the first stages that are selectors and read nothing but fields that are known."""
        for number, stage in enumerate(self.stages):
            if not isinstance(stage, Selector) or stage.views or not stage.reads or not stage.reads <= {*known}:
                return number
        return len(self.stages)

    def setup(self, device: str) -> None:
        """Load what the stages need, and let each look at those before it. Does nothing if that is done.

        Raises:
            StageError: They do not fit together; what else `Stage.setup` raises.
        """
        if self._device == device:
            return
        if self.stages:
            import_whole("torch")
        for number, stage in enumerate(self.stages):
            stage.setup(device)
            stage.connect(self.stages[:number])
        object.__setattr__(self, "_device", device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_device"}

    def run(
        self, batch: ImageBatch, drop: _Drop, add_time: Callable[[str, float], object] = ignore, first: int = 0
    ) -> ImageBatch:
        """Take a batch through the stages, which are set up.

        Args:
            batch: Images, with the columns and views that the stages read. Views that are done with go.
            drop: Called before images are left out.
            add_time: Called with a stage's label and the seconds that it took.
            first: The number of the first stage to run.

        Returns:
            The images that all stages keep.

        Raises:
            StageError: A stage that is no `Selector` left images out.
        """
        for number in range(first, len(self.stages)):
            stage, label = self.stages[number], self.labels[number]
            began = time.perf_counter()
            if isinstance(stage, Selector):
                reasons = stage.judge(batch)
                dropped = np.array([reason is not None for reason in reasons], bool)
                if dropped.any():
                    drop(number, batch, dropped, reasons)
                    batch = batch.where(~dropped)
            else:
                after = stage(batch)
                if len(after) != len(batch):
                    raise StageError(
                        f"{label} gave back {len(after)} of {len(batch)} images: a stage that leaves images out must "
                        "be a Selector, which says why"
                    )
                batch = after
            later = {view for stage in self.stages[number + 1 :] for view in stage.views}
            for view in [view for view in batch.views if view not in later]:
                del batch.views[view]  # nobody looks at it any more: nor need a filter copy it
            add_time(label, time.perf_counter() - began)
            if not len(batch):
                break
        return batch

    @property
    def reads_bytes(self) -> bool:
        """Whether a stage looks at the samples' original bytes, `batch.encoded`."""
        return any(_ENCODED in stage.reads for stage in self.stages)

    @property
    def is_global(self) -> bool:
        """Whether a stage decides only when all samples were seen."""
        return any(isinstance(stage, GlobalSelector) for stage in self.stages)

    def rows(self) -> list[tuple[str, str, str]]:
        """(label, what it reads, what it writes) of each stage, for people."""
        return [
            (label, ", ".join(sorted(stage.reads)), ", ".join(written(stage)))
            for label, stage in zip(self.labels, self.stages, strict=True)
        ]


def make_plan(
    stages: Sequence[Stage],
    metadata: Mapping[str, str] | None = None,
    known: Collection[type[Stage]] = (),
    hint: str = "",
    derived: Mapping[str, str] | None = None,
) -> Plan:
    """Check that every stage finds what it reads.

    Args:
        stages: In the order that they will run.
        metadata: Fields of the samples' metadata, with the type of `DTYPES` that each is kept as.
        known: Kinds of stages to look for what is missing in.
        hint: What else may be done about a field that is nowhere; for the error.
        derived: Fields that can be made where a stage reads one that is nowhere else, with their types.

    Raises:
        StageError: A stage reads what no earlier one writes, compares a text with a number, or writes what is there
            already; or something is no stage.
    """
    known_types, metadata = dict(LOADED), metadata or {}  # of every field that a stage may read by then
    columns, taken, made = dict(LOADED), [], []
    derived = derived or {}
    writers: dict[str, str] = dict.fromkeys(LOADED, "the loader")
    for number, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise StageError(f"stages[{number}] is {stage!r}; give stages, as Filter('width', min=256)")
    labels = labels_of(stage.name for stage in stages)
    for number, (stage, label) in enumerate(zip(stages, labels, strict=True)):
        for field in sorted(stage.reads):
            kind = known_types.get(field, metadata.get(field, derived.get(field)))
            check_type(stage, field, kind)
            if field in known_types or field == _ENCODED:
                continue
            if field in derived and field not in metadata:
                made.append(field)
                known_types[field] = columns[field] = derived[field]
                writers[field] = "the loader"
                continue
            if field not in metadata or field in _RESERVED:
                raise StageError(_missing(field, number, stages, writers, metadata, known) + hint)
            taken.append(field)
            known_types[field] = columns[field] = metadata[field]
            writers[field] = "the metadata"
        for field, kind in written(stage).items():
            if kind not in DTYPES:
                raise StageError(f"{label} writes {field!r} as {kind!r}; allowed: {', '.join(DTYPES)}")
            if field in _RESERVED or (field in known_types and field not in ("embeddings", *made)):
                by = writers.get(field, "every run")
                raise StageError(f"{label} writes {field!r}, which {by} writes already; leave one of them out")
            known_types[field] = kind
            writers[field] = label
            if field != "embeddings":
                columns[field] = kind
    return Plan(tuple(stages), tuple(labels), columns, tuple(taken), "embeddings" in known_types, tuple(made))


def check_type(stage: Stage, field: str, kind: str | None) -> None:
    """Refuse a text where a stage compares with a number, and the reverse.

    Raises:
        StageError: One of type and expectation is "string", and the other a number's.
    """
    if kind in ("int32", "int64", "float32", "float64") and stage.expects.get(field) == "string":
        raise StageError(f"{stage.name} compares with a text, and {field!r} is a number; use equals= with numbers")
    if kind == "string" and stage.expects.get(field) == "float64":
        raise StageError(
            f"{stage.name} compares with a number, and {field!r} is a text; use equals= with texts, or where="
        )


def written(stage: Stage) -> dict[str, str]:
    """Return the columns that a stage writes and decides, each with its type."""
    return {**stage.writes, **(stage.decides if isinstance(stage, GlobalSelector) else {})}


def _missing(
    field: str,
    number: int,
    stages: Sequence[Stage],
    writers: Mapping[str, str],
    metadata: Mapping[str, str],
    known: Collection[type[Stage]],
) -> str:
    name = stages[number].name
    if field in _RESERVED:
        return f"{name} reads {field!r}: what every output says of an image by that name is known only at the end"
    by: dict[str, list[str]] = {}
    for column, writer in writers.items():
        by.setdefault(writer, []).append(column)
    before = "; ".join(f"{writer}: {', '.join(columns)}" for writer, columns in by.items())
    later = [stage.name for stage in stages[number + 1 :] if isinstance(stage, Stage) and field in written(stage)]
    makers = [kind.__name__ for kind in known if field in _fields_of(kind)]
    spelt = [*writers, *metadata, *(name for kind in known for name in _fields_of(kind))]
    close = difflib.get_close_matches(field, dict.fromkeys(spelt), 1)
    if later:
        fix = f"put {later[0]}, which comes later, before it"
    elif makers:
        fix = f"put {' or '.join(makers)} before it"
    elif close:
        fix = f"did you mean {close[0]!r}?"
    else:
        fields = f"; the metadata has {', '.join(sorted(metadata))}" if metadata else ""
        fix = f"put a stage that writes it before it{fields}"
    return f"{name} reads {field!r}, which no earlier stage writes; stages before it write: {before}; {fix}"


def _fields_of(kind: type[Stage]) -> Collection[str]:
    """What a kind of stage writes whatever its settings are."""
    try:
        return written(object.__new__(kind))
    except AttributeError:  # depends on the settings
        return ()
