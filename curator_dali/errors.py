"""What can go wrong: one bad image (`ImageError`), and the exceptions that end a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curator_dali.arguments import checked
from curator_dali.files import AtomicFile

__all__ = [
    "CuratorDaliError",
    "ErrorList",
    "ImageError",
    "OutputError",
    "PassEndedError",
    "SourceError",
    "TooManyErrors",
    "kind_of_failure",
    "write_errors",
]


_PASS_ENDED = (
    "this pass was ended by another iter(), set_epoch(), load_state_dict() or close() of its loader, which has one "
    "pass at a time. Give each loop a loader of its own; peek() shows images in the middle of a pass"
)


class CuratorDaliError(Exception):
    """Base of every exception that curator_dali raises on its own account."""


class SourceError(CuratorDaliError):
    """A source cannot be opened or read at all (not: one bad image in it)."""


class OutputError(CuratorDaliError):
    """An output cannot be written, or an earlier one cannot be read or does not fit what is to be done with it."""


class PassEndedError(CuratorDaliError):
    """An iterator of a loader was asked for a batch after its pass had been ended from outside."""

    def __init__(self, message: str = _PASS_ENDED) -> None:
        super().__init__(message)


class TooManyErrors(CuratorDaliError):
    """The share of bad images passed `max_error_rate`."""


@dataclass(eq=True)
class ImageError(CuratorDaliError):
    """One bad image: which one, where it lies, and why it could not be used.

    With `on_error="skip"` the loader collects these in `loader.errors`; with `"raise"` the first is raised.

    Attributes:
        image_id: The sample's key, as in `ImageObject.image_id`.
        image_path: URL of the member, as in `ImageObject.image_path`.
        shard: The file that holds it (a tar, a Parquet file), or the folder.
        reason: Why, in one line.
        index: The sample's index in its source.
        unread: Whether the image could not be read now, so that nothing is known of it (a file that is gone or changed,
            a store that does not answer).
    """

    image_id: str
    image_path: str
    shard: str
    reason: str
    index: int = -1
    unread: bool = False

    def __str__(self) -> str:
        return f"image {self.image_id!r} ({self.image_path}): {self.reason}"

    def __reduce__(self) -> tuple[type[ImageError], tuple[Any, ...]]:
        return ImageError, (self.image_id, self.image_path, self.shard, self.reason, self.index, self.unread)

    __hash__ = CuratorDaliError.__hash__


class ErrorList(list[ImageError]):
    """A list of bad images that a notebook shows as a table, and a terminal a line each.

    Attributes:
        more: How many there were besides those in the list.
        last: The one that was added last, in the list or not.
    """

    _SHOWN = 50

    more: int = 0
    last: ImageError | None = None

    def add(self, error: ImageError, most: int) -> None:
        """Append a bad image, or only count it where the list holds `most` already."""
        self.last = error
        if len(self) < most:
            self.append(error)
        else:
            self.more += 1

    def __repr__(self) -> str:
        if not self:
            return "[]"
        shown = [
            " ".join(f"{error.image_id}  {error.shard}  {error.reason}".split("\n")) for error in self[: self._SHOWN]
        ]
        total = len(self) + self.more
        rest = [f"{total - len(shown):,} more"] * (total > len(shown))
        return "\n  ".join([f"[{total:,} bad image{'s' * (total > 1)}:", *shown, *rest]) + "]"

    def _repr_html_(self) -> str:
        from curator_dali import html

        rows = [(error.image_id, error.shard, error.reason) for error in self[: self._SHOWN]]
        total = len(self) + self.more
        parts = [html.note(html.count(total, "bad image") if self else "no bad images")]
        parts += [html.table(["image", "in", "reason"], rows)] if rows else []
        rest = total - len(rows)
        return html.block(*parts, *([html.note(f"{rest:,} more not shown")] if rest else []))


def kind_of_failure(reason: str) -> str:
    """Why a sample failed, without what is particular to it: "cannot be decoded: ..." is "cannot be decoded"."""
    return reason.partition(":")[0]


@checked
def write_errors(errors: Iterable[ImageError], path: str | Path) -> None:
    """Write bad images to `path`, one row each: `.parquet`, `.jsonl` or `.json` by its ending.

    The file appears whole, or not at all.

    Raises:
        ValueError: The ending is none of these.
        OSError: It cannot be written.
    """
    path = Path(path)
    rows = [asdict(error) for error in errors]
    if path.suffix not in (".parquet", ".jsonl", ".json"):
        raise ValueError(f"cannot write errors to {str(path)!r}: the name must end in .parquet, .jsonl or .json")
    with AtomicFile(path) as file:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            columns = ["image_id", "image_path", "shard", "reason"]
            schema = pa.schema(
                [(name, pa.string()) for name in columns] + [("index", pa.int64()), ("unread", pa.bool_())]
            )
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
        elif path.suffix == ".jsonl":
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        else:
            file.write(json.dumps(rows, indent=1).encode())
