"""Results of a pass besides its batches: statistics of time, and the bad images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from curator_dali.arguments import checked
from curator_dali.errors import ImageError
from curator_dali.io import AtomicFile
from curator_dali.sources import Streamed
from curator_dali.view import html

_MOST_UNKNOWN = 10_000  # bad images whose indices are found out at the end of a pass


@dataclass
class LoaderStats:
    """What a loader did in its current pass. Times are in seconds and overlap: they are of different threads.

    Attributes:
        samples: Images that came out.
        failed: Images that could not be used.
        fallback: Images that Pillow decoded instead of DALI.
        batches: Batches that came out.
        bytes: Encoded bytes read.
        seconds: Since the pass began.
        wait_seconds: The consumer waited for a batch.
        read_seconds: Readers spent reading bytes.
        gate_seconds: Readers spent on headers.
        decode_seconds: The decoding thread waited for DALI and Pillow.
    """

    samples: int = 0
    failed: int = 0
    fallback: int = 0
    batches: int = 0
    bytes: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    gate_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Images that came out, per second of the pass."""
        return self.samples / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, float]:
        """All of it, as plain numbers for a log, JSON or a table."""
        return {**asdict(self), "images_per_second": self.images_per_second}


class ErrorList(list[ImageError]):
    """A list of bad images that a notebook shows as a table, and a terminal a line each.

    Attributes:
        more: How many there were besides those in the list.
        last: The one that was added last, in the list or not.
    """

    _SHOWN = 50

    more: int = 0
    last: ImageError | None = None
    _unknown: tuple[tuple[ImageError, int, Streamed], ...] = ()

    def place(self, error: ImageError, places: Streamed) -> None:
        """Replace the place of an error's sample by its index, now or, where tars before it are not indexed, later."""
        place = error.index
        error.index = int(places.indices_of(np.array([place]))[0])
        if error.index < 0 and len(self._unknown) < _MOST_UNKNOWN:
            self._unknown += ((error, place, places),)

    def resolve(self) -> None:
        """Find the indices that were not known when their errors came."""
        for error, place, places in self._unknown:
            error.index = int(places.indices_of(np.array([place]))[0])
        self._unknown = ()

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
        rows = [(error.image_id, error.shard, error.reason) for error in self[: self._SHOWN]]
        total = len(self) + self.more
        head = html.count(total, "bad image") if self else "no bad images"
        rest = f"{total - len(rows):,} more not shown" if total > len(rows) else ""
        return str(html.render("rows.html", head=head, header=["image", "in", "reason"], rows=rows, rest=rest))


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
