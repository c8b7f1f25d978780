"""Images in Parquet as Hugging Face's `datasets` reads them: a column `image`, and columns of what is known of each."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import Written, printable
from curator_dali.outputs.fields import mark_layout
from curator_dali.outputs.manifest import IMAGES
from curator_dali.outputs.parquet import LOADED, GroupWriter, RowSchema, measure_rows
from curator_dali.outputs.tar import FileWriter

logger = logging.getLogger(__name__)

IMAGE, MEMBERS = "image", "members"
"""The columns of images, and of what else came with them: members that are neither the image nor a sidecar."""

LAYOUT_COLUMNS = (IMAGE, MEMBERS)

_GROUP_ROWS, _GROUP_BYTES = 1000, 64 << 20  # of a row group, which the viewer of the hub reads as a whole
_FEATURES_KEY = b"huggingface"  # of the file's metadata, where `datasets` looks for features
_IMAGE_FEATURE = {"_type": "Image"}


def is_loadable(kind: Any) -> bool:
    """Whether `datasets` reads columns of a `pyarrow.DataType` as they are."""
    try:
        return bool(loadable_type(kind) == kind)
    except TypeError:
        return False


def loadable_type(kind: Any) -> Any:
    """The type that `datasets` reads for a `pyarrow.DataType`: a map is a list of keys and values.

    Raises:
        TypeError: It reads none: for views of lists, and for types that extend others, such as UUIDs.
    """
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        raise TypeError(f"datasets reads no columns of {kind}")
    if pa.types.is_map(kind):
        pair = [("key", loadable_type(kind.key_type)), ("value", loadable_type(kind.item_type))]
        return pa.list_(pa.struct(pair))
    if pa.types.is_struct(kind):
        return pa.struct([inner.with_type(loadable_type(inner.type)) for inner in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(loadable_type(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(loadable_type(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(loadable_type(kind.value_type)))
    return pa.binary() if pa.types.is_fixed_size_binary(kind) else kind


class ShardedImageWriter(FileWriter):
    """Images in as many Parquet files as it takes; each appears when it is full, the last when this is closed.

    A file has the columns `image` (a struct of bytes and path), `image_id`, fields of the metadata, `members`, and the
    scores, and says in its metadata that `image` is one of images. Equal samples in equal order make equal files.

    Args:
        url: Path or URL that their names begin with; `-SHARD.images.parquet` follows, which counts from 0000.
        schema: Columns of the rows.
        class_names: Names of the classes that `label` numbers; none where nobody knows them.
        lineage: See `ParquetWriter`.
        max_samples: Samples in a file.
        max_bytes: Bytes in a file, about; a sample that would pass it begins the next one.

    Attributes:
        written: The files that have appeared.

    Raises:
        OutputError: A file cannot be written. All methods raise it too.
    """

    def __init__(
        self,
        url: str,
        schema: RowSchema,
        *,
        class_names: Sequence[str] = (),
        lineage: Mapping[str, Any] | None = None,
        max_samples: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._url = url
        self._max_samples, self._max_bytes = max_samples or math.inf, max_bytes or math.inf
        self._schema = _make_schema(schema, class_names, lineage)
        self._classes = len(class_names)
        self._file: _ImageFile | None = None
        self.written: list[Written] = []

    def write(self, rows: Any, images: Sequence[tuple[str, Any]], members: Sequence[Mapping[str, Any]]) -> list[str]:
        """Append n samples.

        Args:
            rows: A `pyarrow.RecordBatch` of n rows, with the columns of `ParquetWriter.to_arrow`.
            images: The extension and the bytes of n images.
            members: n times {extension: bytes} of other members.

        Returns:
            The names of the n files that they are in.
        """
        names = []
        # (n,) bytes of each sample, whichever batch it is in
        sizes = measure_rows(
            [rows.column(name) for name in self._schema.names if name not in LAYOUT_COLUMNS], len(rows)
        )
        sizes += [_count_bytes(data) for _, data in images]
        sizes += [sum(map(_count_bytes, found.values())) for found in members]
        start = 0
        while start < len(images):
            if self._file is not None and not self._file.has_place(sizes[start], self._max_samples, self._max_bytes):
                self._finish()
            if self._file is None:
                self._file = _ImageFile(f"{self._url}-{len(self.written):04d}{IMAGES}", self._schema)
            stop = start + self._file.count(sizes[start:], self._max_samples, self._max_bytes)
            batch = self._combine(rows.slice(start, stop - start), images[start:stop], members[start:stop])
            self._file.add(batch, sizes[start:stop])
            names += [self._file.url.rpartition("/")[2]] * (stop - start)
            start = stop
        return names

    def close(self) -> list[Written]:
        """Let the last file appear; returns all of them."""
        self._finish()
        return self.written

    def discard(self) -> None:
        """Write no file that has not appeared yet."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _finish(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            self.written.append(file.close())

    def _combine(self, rows: Any, images: Iterable[tuple[str, Any]], members: Iterable[Mapping[str, Any]]) -> Any:
        """Make a `pyarrow.RecordBatch` of the file's columns."""
        import pyarrow as pa

        keys = rows.column("image_id").to_pylist()
        made = {
            IMAGE: [
                {"bytes": _to_bytes(data), "path": f"{key}.{printable(extension)}"}
                for key, (extension, data) in zip(keys, images, strict=True)
            ],
            MEMBERS: [
                [{"extension": printable(name), "bytes": _to_bytes(data)} for name, data in found.items()] or None
                for found in members
            ],
        }
        columns = []
        for field in self._schema:
            if field.name in made:
                columns.append(pa.array(made[field.name], field.type))
            elif field.name == "label" and self._classes:
                columns.append(self._take_labels(rows.column("label")))
            else:
                columns.append(rows.column(field.name).cast(field.type))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _take_labels(self, labels: Any) -> Any:
        """Make numbers of classes. Any other label is null, as `datasets` opens no file with one; the rows have it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = np.array([np.nan if label is None else label for label in labels.to_pylist()], np.float64)
        is_class = (values >= -1) & (values < self._classes) & (values == np.floor(values))
        if (odd := int((~is_class & ~np.isnan(values)).sum())) > 0:
            logger.warning("%d labels are none of the %d classes, and null in %s", odd, self._classes, self._url)
        found = pa.array(np.where(is_class, values, 0).astype(np.int64))
        return pc.if_else(pa.array(is_class), found, pa.scalar(None, pa.int64()))


class _ImageFile(GroupWriter):
    """One file, in row groups of at most 1,000 rows and about 64 MB."""

    def __init__(self, url: str, schema: Any) -> None:
        self._bytes = 0
        packed = [name for name in schema.names if name not in LAYOUT_COLUMNS]
        super().__init__(
            url,
            schema,
            _GROUP_ROWS,
            _GROUP_BYTES,
            compression={f"{IMAGE}.bytes": "none", **dict.fromkeys(_find_leaves(schema), "zstd")},
            use_dictionary=[name for name in packed if str(schema.field(name).type) == "string"],
            write_statistics=packed,
            write_page_index=True,
        )

    def has_place(self, size: int, max_samples: float, max_bytes: float) -> bool:
        """Whether one more sample goes into the file; into an empty one any does."""
        return not self.rows or (self.rows < max_samples and self._bytes + size <= max_bytes)

    def count(self, sizes: NDArray[np.int64], max_samples: float, max_bytes: float) -> int:
        """Count the next samples that go into the file and into one record batch, at least 1."""
        within = np.cumsum(sizes)  # (n,) bytes with each sample
        # an array of bytes holds 2 GB; a row group's worth is far below
        fitting = int(np.searchsorted(within, min(max_bytes - self._bytes, _GROUP_BYTES), "right"))
        return max(1, int(min(max_samples - self.rows, fitting)))

    def add(self, batch: Any, sizes: NDArray[np.int64]) -> None:
        """Append rows that `count` allows."""
        self._bytes += int(sizes.sum())
        super().add(batch, sizes)


def _make_schema(schema: RowSchema, class_names: Sequence[str], lineage: Mapping[str, Any] | None) -> Any:
    """The `pyarrow.Schema` of a file of images, with the features that `datasets` cannot tell from the types."""
    import pyarrow as pa

    rows = schema.to_arrow(lineage)
    image = pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    member = pa.struct([("extension", pa.string()), ("bytes", pa.large_binary())])  # together they may pass 2 GB
    sizes = [name for name in LOADED if name in ("width", "height")]
    names = ["image_id", *schema.fields.names, *sizes, *(n for n in schema.columns if n not in schema.fields.names)]
    columns = [rows.field(name) for name in names]
    columns = [column.with_type(loadable_type(column.type)) for column in columns]
    own = ("image_id", *sizes)
    columns = [mark_layout(column) if column.name in own else column for column in columns]
    made = pa.schema([mark_layout(image), *columns, mark_layout(pa.field(MEMBERS, pa.list_(member)))])
    features: dict[str, Any] = {IMAGE: _IMAGE_FEATURE}
    if class_names and "label" in names:
        place = made.get_field_index("label")  # a stage that reads the labels made floats of them
        made = made.set(place, made.field(place).with_type(pa.int64()))
        features["label"] = {"names": list(class_names), "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": features}}, sort_keys=True).encode()
    return made.with_metadata({**rows.metadata, _FEATURES_KEY: about})


def _find_leaves(schema: Any) -> list[str]:
    """The paths of a schema's columns in Parquet, but for the images' bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        writer.write_table(schema.empty_table())
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    paths = [leaves.column(number).path for number in range(len(leaves))]
    return [path for path in paths if path != f"{IMAGE}.bytes"]


def _to_bytes(data: Any) -> bytes:
    return data if type(data) is bytes else bytes(memoryview(data))


def _count_bytes(data: Any) -> int:
    return memoryview(data).nbytes
