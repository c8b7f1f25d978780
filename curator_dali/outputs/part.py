"""One part of an output: the tars of its kept samples and the Parquet of all its rows, finished together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import OutputError
from curator_dali.io import Written, join, store
from curator_dali.outputs.manifest import Manifest, Part, part_name
from curator_dali.outputs.parquet import STATUSES, ParquetWriter, RowSchema
from curator_dali.outputs.tar import ShardedTarWriter

if TYPE_CHECKING:
    from typing_extensions import Self


class PartWriter:
    """Writes samples [start, stop) of a source: `START-STOP.parquet` and `START-STOP-SHARD.tar` in the output folder.

    Every sample of the range must be given exactly once, in any order. As a context manager it commits at the end, and
    leaves nothing if the block raises.

    Args:
        manifest: The output's.
        start: First sample.
        stop: Behind the last.
        schema: Columns of the rows.
        tars: Whether to write tars of the kept samples.
        shard_samples: Samples in a tar.
        shard_bytes: Bytes in a tar.

    Raises:
        OutputError: A file cannot be written. All methods raise it too.
    """

    def __init__(
        self,
        manifest: Manifest,
        start: int,
        stop: int,
        schema: RowSchema,
        *,
        tars: bool = True,
        shard_samples: int | None = 10_000,
        shard_bytes: int | None = None,
    ) -> None:
        if not 0 <= start < stop <= manifest.samples:
            raise ValueError(f"[{start}, {stop}) is no range of the {manifest.samples} samples")
        self._manifest, self.start, self.stop = manifest, start, stop
        name = part_name(start, stop)
        self._tars: ShardedTarWriter | None = None
        if tars:
            self._tars = ShardedTarWriter(join(manifest.folder, name), shard_samples, shard_bytes)
        url = join(manifest.folder, f"{name}.parquet")
        self._parquet = ParquetWriter(url, schema, lineage=manifest.run["lineage"])
        self._seen = np.zeros(stop - start, bool)
        self._counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        self._written: list[Written] = []
        self._done = False

    def write(
        self,
        rows: Mapping[str, Any],
        *,
        embeddings: NDArray[Any] | None = None,
        embedded: NDArray[np.bool_] | None = None,
        members: Sequence[Mapping[str, Any] | None] | None = None,
        curation: Sequence[Mapping[str, Any] | None] | None = None,
        fields: Any = None,
    ) -> None:
        """Write n samples' rows, and the tars' samples of those whose status is "kept".

        Args:
            rows: Column -> n values; see `ParquetWriter.write`. `tar` and `key` are filled in here.
            embeddings: (n, D).
            embedded: (n,) which rows have an embedding.
            members: n times {extension: bytes-like}, or None for a sample that is not kept.
            curation: n times what to write into `curation.json`; None for a sample that is not kept.
            fields: The rows' fields of the metadata, a `pyarrow.RecordBatch`; see `ParquetWriter.write`.

        Raises:
            ValueError: A sample is not of this part, or was given before; or a kept one has no members.
        """
        index = np.asarray(rows["index"], np.int64)
        inside = index - self.start
        wrong = (inside < 0) | (inside >= len(self._seen))
        if wrong.any():
            raise ValueError(f"sample {index[wrong][0]} is not of the part [{self.start}, {self.stop})")
        repeated = self._seen[inside]
        if repeated.any() or len(np.unique(inside)) < len(inside):
            which = index[repeated][0] if repeated.any() else index[np.argmax(np.diff(np.sort(inside)) == 0)]
            raise ValueError(f"sample {which} was given twice")
        if self._tars is not None:
            rows = dict(rows) | self._write_tars(rows, members, curation)
        self._parquet.write(rows, embeddings, embedded, fields)
        self._seen[inside] = True
        self._counts.update(str(status) for status in rows["status"])

    def commit(self, info: Mapping[str, Any] | None = None) -> Part:
        """Finish the files, and record the part.

        Args:
            info: Goes into the record, with extension -> number of the tars' members as `members`.

        Raises:
            ValueError: A sample of the range is missing.
        """
        if not self._seen.all():
            lacking = np.flatnonzero(~self._seen) + self.start
            raise ValueError(
                f"{len(lacking)} samples of [{self.start}, {self.stop}) are missing: {lacking[:5].tolist()}"
            )
        written = [] if self._tars is None else self._tars.close()
        self._written = [*written, self._parquet.close()]
        files = tuple(Written(file.name.rpartition("/")[2], file.size, file.blake2b) for file in self._written)
        members = {"members": dict(sorted(self._tars.extensions.items()))} if self._tars is not None else {}
        part = Part(self.start, self.stop, files, dict(self._counts), {**(info or {}), **members})
        self._manifest.commit(part)
        self._done = True
        return part

    def discard(self) -> None:
        """Leave nothing of the part. May be called again; after `commit` it does nothing."""
        if self._done:
            return
        self._done = True
        self._parquet.discard()
        if self._tars is not None:
            self._tars.discard()
        appeared = self._written if self._tars is None else [*self._written, *self._tars.written]
        for file in appeared:
            with contextlib.suppress(OutputError):  # else the next run removes it
                store.remove(file.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and not self._done:
                self.commit()
        finally:
            self.discard()

    def _write_tars(
        self,
        rows: Mapping[str, Any],
        members: Sequence[Mapping[str, Any] | None] | None,
        curation: Sequence[Mapping[str, Any] | None] | None,
    ) -> dict[str, list[str | None]]:
        tars: list[str | None] = [None] * len(rows["status"])
        keys = list(tars)
        for row, status in enumerate(rows["status"]):
            if status == "kept":
                image_id = str(rows["image_id"][row])
                found = members[row] if members is not None else None
                if not found:
                    raise ValueError(f"sample {image_id!r} is kept, but its members were not given: read them too")
                assert self._tars is not None
                about = curation[row] if curation is not None else None
                tars[row], keys[row] = self._tars.write(image_id, found, about)
        return {"tar": tars, "key": keys}
