"""One part of an output: the tars of its kept samples and the Parquet of all its rows, finished together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import OutputError
from curator_dali.io import Written, join, store
from curator_dali.outputs.hugging_face import ShardedImageWriter
from curator_dali.outputs.manifest import Manifest, Part, part_name
from curator_dali.outputs.parquet import STATUSES, ParquetWriter, RowSchema
from curator_dali.outputs.tar import ShardedTarWriter

if TYPE_CHECKING:
    from typing_extensions import Self


class PartWriter:
    """Writes samples [start, stop) of a source: `START-STOP.parquet` and `START-STOP-SHARD.tar` in the output folder.

    In Hugging Face's layout the samples that are kept are in `START-STOP-SHARD.images.parquet`.

    Every sample of the range must be given exactly once, in any order. As a context manager it commits at the end, and
    leaves nothing if the block raises.

    Args:
        manifest: The output's.
        start: First sample.
        stop: Behind the last.
        schema: Columns of the rows.
        tars: Whether to write the kept samples.
        shard_samples: Samples in a tar, or in a Parquet file of images.
        shard_bytes: Bytes in one.
        layout: "webdataset" for tars, "huggingface" for Parquet files of images.

    Attributes:
        layout: As given; None where no samples are written.

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
        layout: Literal["webdataset", "huggingface"] = "webdataset",
    ) -> None:
        if not 0 <= start < stop or (manifest.is_counted and stop > manifest.samples):
            raise ValueError(f"[{start}, {stop}) is no range of the {manifest.samples} samples")
        self._manifest, self.start, self.stop = manifest, start, stop
        name = part_name(start, stop)
        self.layout = layout if tars else None
        self._tars: ShardedTarWriter | None = None
        self._images: ShardedImageWriter | None = None
        url, lineage = join(manifest.folder, name), manifest.run["lineage"]
        if self.layout == "webdataset":
            self._tars = ShardedTarWriter(url, shard_samples, shard_bytes)
        elif self.layout == "huggingface":
            self._images = ShardedImageWriter(
                url,
                schema,
                class_names=manifest.run.get("class_names", ()),
                lineage=lineage,
                max_samples=shard_samples,
                max_bytes=shard_bytes,
            )
        self._parquet = ParquetWriter(f"{url}.parquet", schema, lineage=lineage)
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
        images: Sequence[str | None] | None = None,
    ) -> None:
        """Write n samples' rows, and those samples whose status is "kept".

        Args:
            rows: Column -> n values; see `ParquetWriter.write`. `tar` and `key` are filled in here.
            embeddings: (n, D).
            embedded: (n,) which rows have an embedding.
            members: n times {extension: bytes-like}, or None for a sample that is not kept.
            curation: n times what to write into `curation.json`; None for a sample that is not kept.
            fields: The rows' fields of the metadata, a `pyarrow.RecordBatch`; see `ParquetWriter.write`.
            images: n times the extension of the member that is the image, for Hugging Face's layout; None for a sample
                that is not kept.

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
        batch = self._parquet.to_arrow(rows, embeddings, embedded, fields)
        if self._images is not None:
            batch = self._write_images(self._images, batch, members, images)
        self._parquet.append(batch)
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
        samples = self._tars or self._images
        written = [] if samples is None else samples.close()
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
        samples = self._tars or self._images
        if samples is not None:
            samples.discard()
        appeared = self._written if samples is None else [*self._written, *samples.written]
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
                found = _find_members(members, row, image_id)
                assert self._tars is not None
                about = curation[row] if curation is not None else None
                tars[row], keys[row] = self._tars.write(image_id, found, about)
        return {"tar": tars, "key": keys}

    def _write_images(
        self,
        writer: ShardedImageWriter,
        batch: Any,
        members: Sequence[Mapping[str, Any] | None] | None,
        images: Sequence[str | None] | None,
    ) -> Any:
        """Write the samples that are kept of a `pyarrow.RecordBatch`; returns it with the files' names."""
        import pyarrow as pa

        kept = [row for row, status in enumerate(batch.column("status").to_pylist()) if status == "kept"]
        keys = batch.column("image_id").to_pylist()
        pictures, others = [], []
        for row in kept:
            found, extension = _find_members(members, row, keys[row]), images[row] if images is not None else None
            if extension is None:
                raise ValueError(f"sample {keys[row]!r} is kept, but images does not say which member is its image")
            pictures.append((extension, found[extension]))
            others.append({name: data for name, data in found.items() if name != extension})
        names = writer.write(batch.take(pa.array(kept, pa.int64())), pictures, others) if kept else []
        written = dict(zip(kept, names, strict=True))
        places = {"tar": [written.get(row) for row in range(len(batch))]}
        places["key"] = [key if row in written else None for row, key in enumerate(keys)]
        for name, values in places.items():
            number = batch.schema.get_field_index(name)
            batch = batch.set_column(number, batch.schema.field(number), pa.array(values, pa.string()))
        return batch


def _find_members(members: Sequence[Mapping[str, Any] | None] | None, row: int, image_id: str) -> Mapping[str, Any]:
    """The members of a sample that is kept; ValueError where there are none."""
    found = members[row] if members is not None else None
    if not found:
        raise ValueError(f"sample {image_id!r} is kept, but its members were not given: read them too")
    return found
