"""Batches as Arrow tables and pandas frames: every field, of whatever kind, and EXIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from curator_dali.loader.loader import ImageLoader
from tests.helpers import encode, write_tar
from tests.view.conftest import EVIL


def test_table_has_ids_scores_columns_and_metadata(batch: ImageBatch) -> None:
    batch[1].nsfw_score = 0.5
    batch[2].metadata["width"] = "metadata does not win"
    table = batch.to_table()
    assert table.num_rows == 12
    assert table.column_names[:3] == ["image_id", "image_path", "nsfw_score"]
    assert table["image_id"].to_pylist()[0] == EVIL
    assert table["nsfw_score"].to_pylist()[:3] == [None, 0.5, None]
    assert table.schema.field("width").type == pa.int32()
    assert table["width"].to_pylist() == batch.columns["width"].tolist()
    assert table["caption"].to_pylist() == [item.metadata["caption"] for item in batch]
    assert table[EVIL].to_pylist()[:2] == [EVIL, None]


def test_values_of_several_kinds_are_json() -> None:
    values = [1, "a", None, {"x": [1]}, 2**80]
    data = [ImageObject(f"{n}", f"{n}", {"odd": value, "list": [n]}) for n, value in enumerate(values)]
    table = ImageBatch("t", "d", data).to_table()
    assert table["odd"].to_pylist() == ["1", '"a"', None, '{"x": [1]}', str(2**80)]
    assert table["list"].to_pylist() == [[n] for n in range(5)]


def test_embeddings_are_lists_of_a_fixed_size(batch: ImageBatch) -> None:
    with pytest.raises(ValueError, match="no embeddings"):
        batch.to_table(embeddings=True)
    batch.embeddings = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float16)
    column = batch.to_table(embeddings=True)["embedding"]
    assert column.type == pa.list_(pa.float32(), 5)
    assert np.array_equal(np.array(column.to_pylist(), np.float32), batch.embeddings.astype(np.float32))


def test_empty_batch_is_a_table() -> None:
    assert ImageBatch("t", "d").to_table(exif=True).num_rows == 0


def test_frame_keeps_whole_numbers_whole(batch: ImageBatch) -> None:
    batch[4].metadata["stars"] = 2
    frame = batch.to_pandas()
    assert len(frame) == 12
    assert str(frame["stars"].dtype) == "Int64"
    assert frame["stars"][4] == 2
    assert frame["stars"].isna().sum() == 11
    assert frame["sharpness"].dtype == np.float32


@pytest.mark.parametrize("keep", [True, False])
def test_exif_from_the_bytes_or_the_path(photo: Image.Image, tmp_path: Path, keep: bool) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker\0"  # Make
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"  # DateTimeOriginal
    members = [("a.jpg", encode(photo, exif=exif.tobytes())), ("b.png", encode(photo, "PNG"))]
    tar = write_tar(tmp_path / "0.tar", members)
    with ImageLoader(tar, batch_size=2, device="cpu", keep_encoded=keep) as loader:
        rows = next(iter(loader)).to_table(exif=True)["exif"].to_pylist()
    assert dict(rows[0])["Make"] == "Maker"
    assert dict(rows[0])["Orientation"] == "6"
    assert dict(rows[0])["DateTimeOriginal"] == "2024:01:02 03:04:05"
    assert rows[1] == []


def test_exif_of_a_file_that_is_gone_is_empty() -> None:
    batch = ImageBatch("t", "d", [ImageObject("/nowhere/a.jpg", "a")])
    assert batch.to_table(exif=True)["exif"].to_pylist() == [[]]
