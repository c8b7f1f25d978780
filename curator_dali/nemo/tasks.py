"""`to_nemo` and `from_nemo`: our `ImageBatch` as NeMo Curator's and back, losing nothing that both can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nemo_curator.tasks import ImageBatch as NemoImageBatch
from nemo_curator.tasks import ImageObject as NemoImageObject
from numpy.typing import NDArray

from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject

__all__ = ["DROPPED", "ERRORS", "KEY", "from_nemo", "to_nemo"]

KEY = "curator_dali"
"""Of an image's metadata: its values of `columns`, which NeMo Curator's `ImageObject` has no place for."""

ERRORS = "image_errors"
"""Of a task's `_metadata`: the images that could not be used, each with the fields of an `ImageError`."""

DROPPED = "dropped_images"
"""Of a task's `_metadata`: the images that a stage dropped, each {image_id, image_path, stage, reason}."""

_SCORES = ("aesthetic_score", "nsfw_score")  # an attribute in both; NeMo Curator's stages overwrite it


def to_nemo(batch: ImageBatch) -> NemoImageBatch:
    """A batch for NeMo Curator's stages: pixels and embeddings on the host, one `ImageObject` an image.

    From a GPU there is one transfer a batch; on the CPU pixels are views of the batch's. The values of `columns` go
    into each image's metadata under "curator_dali". `views` and `encoded` stay behind.

    Args:
        batch: Its `to_host()` is called.

    Returns:
        NeMo Curator's batch. Its `task_id` is the batch's until a pipeline gives it another.

    Raises:
        ValueError: The metadata of an image uses the name "curator_dali" already.
    """
    batch.to_host()
    columns = {name: values for name, values in batch.columns.items() if name not in _SCORES}
    rows = _rows(columns, len(batch))
    task = NemoImageBatch(
        dataset_name=batch.dataset_name,
        data=[_to_object(item, row) for item, row in zip(batch.data, rows, strict=True)],
        _stage_perf=list(batch._stage_perf),
        _metadata=dict(batch._metadata),
    )
    for name in _SCORES:
        for item, value in zip(task.data, batch.columns.get(name, ()), strict=name in batch.columns):
            if getattr(item, name) is None and value is not None and not np.isnan(value):
                setattr(item, name, float(value))
    if batch.columns:
        task._metadata[KEY] = {name: values.dtype.str for name, values in batch.columns.items()}
    task.task_id = batch.task_id
    return task


def from_nemo(task: NemoImageBatch, device: str | None = None) -> ImageBatch:
    """A batch of ours from NeMo Curator's.

    Args:
        task: Any batch of theirs, whoever made it.
        device: Where `images` and `embeddings` go, "cpu", "cuda" or "cuda:N". None leaves both None, and pixels and
            embeddings with each image on the host.

    Raises:
        ValueError: A device is given, and only some of the images have pixels (or an embedding).
    """
    metadata = dict(task._metadata)
    types: dict[str, str] = metadata.pop(KEY, {})
    data = [_from_object(item) for item in task.data]
    values = [item.metadata.get(KEY, {}) for item in task.data]
    columns = {name: _column(found, types.get(name)) for name, found in _transposed(values, types).items()}
    for name in _SCORES:
        if name in types:
            columns[name] = _column([getattr(item, name) for item in data], types[name])
    batch = ImageBatch(
        task.task_id,
        task.dataset_name,
        data,
        list(task._stage_perf),
        metadata,
        columns=columns,
    )
    return batch if device is None else batch.to_device(device)


def _to_object(item: ImageObject, row: Mapping[str, Any]) -> NemoImageObject:
    metadata = dict(item.metadata)
    if row:
        if KEY in metadata:
            raise ValueError(
                f"image {item.image_id!r} has {KEY!r} in its metadata, where its columns go: rename that field"
            )
        metadata[KEY] = dict(row)
    return NemoImageObject(
        image_path=item.image_path,
        image_id=item.image_id,
        metadata=metadata,
        image_data=item.image_data,
        embedding=item.embedding,
        aesthetic_score=item.aesthetic_score,
        nsfw_score=item.nsfw_score,
    )


def _from_object(item: NemoImageObject) -> ImageObject:
    return ImageObject(
        image_path=item.image_path,
        image_id=item.image_id,
        metadata={name: value for name, value in item.metadata.items() if name != KEY},
        image_data=item.image_data,
        embedding=item.embedding,
        aesthetic_score=item.aesthetic_score,
        nsfw_score=item.nsfw_score,
    )


def _rows(columns: Mapping[str, NDArray[Any]], count: int) -> list[dict[str, Any]]:
    """The columns as one dict of plain Python values an image."""
    if not columns:
        return [{}] * count
    lists = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _transposed(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*(name for name in types if name not in _SCORES), *(name for row in rows for name in row)])
    return {name: [row.get(name) for row in rows] for name in names}


def _column(values: Sequence[Any], dtype: str | None) -> NDArray[Any]:
    """(N,) values of a type; objects where it is not known, or some image has none and the type cannot say so."""
    kind = np.dtype(object if dtype is None else dtype)
    if None in values:
        if kind.kind == "f":
            return np.array([np.nan if value is None else value for value in values], kind)
        kind = np.dtype(object)
    column = np.empty(len(values), kind)
    column[:] = values
    return column
