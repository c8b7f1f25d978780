"""A batch's ids, scores, columns, metadata and EXIF as a table."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.batch import ImageBatch

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["exif_of", "to_pandas", "to_table"]

logger = logging.getLogger(__name__)

_LONGEST = 200  # characters of an EXIF value; maker's notes are kilobytes


def to_table(batch: ImageBatch, *, exif: bool = False, embeddings: bool = False) -> pa.Table:
    """See `ImageBatch.to_table`."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "image_id": pa.array([item.image_id for item in batch.data], pa.string()),
        "image_path": pa.array([item.image_path for item in batch.data], pa.string()),
    }
    for name in ("aesthetic_score", "nsfw_score"):
        scores = [getattr(item, name) for item in batch.data]
        if any(score is not None for score in scores):
            columns[name] = pa.array(scores, pa.float64())
    columns |= {name: _array(pa, values) for name, values in batch.columns.items()}
    for name in dict.fromkeys(str(key) for item in batch.data for key in item.metadata):
        if name not in columns:
            columns[name] = _array(pa, [item.metadata.get(name) for item in batch.data])
    if exif:
        tags = [list(exif_of(batch, row).items()) for row in range(len(batch))]
        columns["exif"] = pa.array(tags, pa.map_(pa.string(), pa.string()))
    if embeddings:
        if batch.embeddings is None:
            raise ValueError("the batch has no embeddings; a stage Embed makes them")
        rows = np.ascontiguousarray(arrays.to_host(batch.embeddings), np.float32)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), max(rows.shape[1], 1))
    return pa.table(columns)


def to_pandas(batch: ImageBatch, *, exif: bool = False) -> pd.DataFrame:
    """See `ImageBatch.to_pandas`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(f"to_pandas() needs pandas ({error}): pip install 'curator-dali[notebook]'") from error

    table = to_table(batch, exif=exif)
    whole = {field.type: None for field in table.schema if str(field.type).startswith(("int", "uint"))}
    nullable = {kind: pd.api.types.pandas_dtype(str(kind).replace("u", "U").replace("i", "I", 1)) for kind in whole}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame


def exif_of(batch: ImageBatch, row: int) -> dict[str, str]:
    """An image's EXIF, tag name -> text; {} where there is none or the file cannot be read."""
    from PIL import ExifTags, Image

    try:
        with _file(batch, row) as file, Image.open(file) as image:
            tags: Mapping[int, Any] = image.getexif()
            found = {**tags, **image.getexif().get_ifd(ExifTags.IFD.Exif)}
    except Exception as error:  # a damaged header has as many exceptions as there are formats
        logger.debug("no EXIF of %s: %s", batch.data[row].image_path, error)
        return {}
    names = {tag: ExifTags.TAGS.get(tag, f"0x{tag:04x}") for tag in found}
    return {names[tag]: _text(value) for tag, value in found.items() if not isinstance(value, dict)}


def _file(batch: ImageBatch, row: int) -> Any:
    if batch.encoded is not None:
        for extension, data in batch.encoded[row].items():
            if extension.lower() not in ("json", "txt", "cls"):
                return io.BytesIO(data)
    import fsspec

    return fsspec.open(batch.data[row].image_path)  # the object itself: it closes the file when it is collected


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "".join(c for c in text.strip("\0 ") if c.isprintable())[:_LONGEST]


def _array(pa: Any, values: Sequence[Any] | NDArray[Any]) -> Any:
    """An Arrow array; what Arrow finds no one type for is JSON."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return pa.array(values)
    rows = list(values)
    try:
        return pa.array(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([None if row is None else json.dumps(row, default=str) for row in rows], pa.string())
