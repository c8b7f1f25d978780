"""What is shown of batches, images, loaders and errors, and what leaves the device for it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curator_dali import arrays, transforms
from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from curator_dali.errors import ImageError
from curator_dali.loader.loader import ImageLoader
from curator_dali.loader.results import ErrorList
from curator_dali.report.matches import DuplicateGroup, Member
from curator_dali.report.report import Report
from curator_dali.sampling import Buckets
from curator_dali.view import thumbnails
from tests.view.conftest import EVIL
from tests.view.test_html import Reader, harmless


def pictures(text: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r"base64,([^\"]+)", text)]


def ids(text: str) -> list[str]:
    return re.findall(r'class="cd-id" title="([^"]*)"', text)


def test_batch_shows_ids_sizes_scores_captions_and_what_is_left_out(batch: ImageBatch) -> None:
    batch[1].nsfw_score = 0.25
    text = batch.show(5)._repr_html_()
    read = harmless(text)
    joined = " ".join(read.texts)
    assert len(pictures(text)) == 5
    assert ids(text)[1:] == [f"folder/{n:03d}" for n in range(1, 5)]
    assert "12 images" in joined
    assert "7 more images not shown" in joined
    assert "nsfw_score 0.25" in joined
    assert "sharpness 0.909" in joined
    assert batch[2].metadata["caption"] in joined
    assert f"{batch.columns['width'][3]} × {batch.columns['height'][3]}" in joined
    assert EVIL.replace("\0", "\ufffd").replace("\x1b", "\ufffd") in read.texts


def test_thumbnails_are_the_images(batch: ImageBatch) -> None:
    for picture, image in zip(pictures(batch._repr_html_()), batch.images, strict=True):
        expected = Image.fromarray(image).resize(picture.size, Image.Resampling.LANCZOS)
        assert abs(picture.width / picture.height - image.shape[1] / image.shape[0]) < 0.03
        difference = np.asarray(picture.convert("RGB"), np.float32) - np.asarray(expected, np.float32)
        assert np.abs(difference).mean() < 9


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 7), (2500, 1300), (168, 403)])
def test_thumbnails_of_any_shape(shape: tuple[int, int]) -> None:
    (small,) = thumbnails.make_thumbnails([np.full((*shape, 3), 200, np.uint8)])
    assert small.dtype == np.uint8
    assert small.shape[0] <= 168
    assert small.shape[1] <= 404
    assert (small == 200).all()


def test_normalized_pixels_are_stretched_and_both_layouts_look_alike(batch: ImageBatch) -> None:
    image = batch.images[1].astype(np.float32) / 50 - 2
    image[0, 0, 0] = np.nan
    hwc, chw = thumbnails.make_thumbnails([image, np.ascontiguousarray(image.transpose(2, 0, 1))])
    assert np.array_equal(hwc, chw)
    assert hwc.max() > 240
    assert hwc.min() < 15


def test_only_thumbnails_leave_the_device(batch: ImageBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    real = arrays.to_host

    def counting(rows: object) -> object:
        moved.append(arrays.nbytes(rows))
        return real(rows)

    monkeypatch.setattr(arrays, "to_host", counting)
    batch.show(6)
    assert len(moved) == 1
    assert moved[0] <= 6 * 168 * 404 * 3
    assert all(item.image_data is None for item in batch)


def test_display_is_small_however_many_images(batch: ImageBatch) -> None:
    noise = [np.random.default_rng(n).integers(0, 256, (400, 600, 3), np.uint8) for n in range(3)]
    many = ImageBatch("t", "d", [ImageObject("p", str(n)) for n in range(300)], images=noise * 100)
    assert len(many._repr_html_()) < 300_000
    assert len(many.show(300)._repr_html_()) < 500_000


def test_sorted_by_any_field_with_missing_values_last(batch: ImageBatch) -> None:
    names = ids(batch.show(3, sort_by="sharpness")._repr_html_())
    assert names == ["folder/011", "folder/010", "folder/009"]
    batch[3].metadata["stars"], batch[5].metadata["stars"] = 2, 9
    assert ids(batch.show(2, sort_by="stars", descending=True)._repr_html_()) == ["folder/005", "folder/003"]
    with pytest.raises(KeyError, match=r"colour.*there are"):
        batch.show(sort_by="colour")


def test_asked_for_fields_replace_the_usual_ones(batch: ImageBatch) -> None:
    text = " ".join(Reader(batch.show(3, columns=["label", "image_path"])._repr_html_()).texts)
    assert "label 1" in text
    assert "image_path /photos/1.jpg" in text
    assert "a crop of" not in text
    with pytest.raises(KeyError, match="colour"):
        batch.show(columns=["colour"])


def test_groups_stand_side_by_side(batch: ImageBatch) -> None:
    text = batch.show(12, group_by="label")._repr_html_()
    read = harmless(text)
    assert len(re.findall("<h4>", text)) == len(set(batch.values("label").tolist()))
    rows = batch.show(group_by={EVIL: [4, 2], "other": []})._repr_html_()
    assert ids(rows) == ["folder/004", "folder/002"]
    assert "2 images" in harmless(rows).texts
    assert "10 more images not shown" in " ".join(harmless(rows).texts)
    assert read.texts
    with pytest.raises(ValueError, match="leave sort_by out"):
        batch.show(sort_by="label", group_by={"a": [1]})


def test_views_are_shown_where_there_are_no_images(batch: ImageBatch) -> None:
    view = transforms.clip(32)
    batch.views[view] = np.stack([np.full((32, 32, 3), n * 20, np.uint8) for n in range(12)])
    batch.images = None
    shown = pictures(batch._repr_html_())
    assert [picture.size for picture in shown] == [(32, 32)] * 12
    assert [np.asarray(picture).mean() for picture in shown] == pytest.approx([n * 20 for n in range(12)], abs=2)
    with pytest.raises(ValueError, match="has no view"):
        batch.show(view=("other",))


def test_batches_without_pixels_say_so() -> None:
    empty = ImageBatch("t", "d")
    assert "0 images" in " ".join(harmless(empty._repr_html_()).texts)
    assert repr(empty.show())
    bare = ImageBatch("t", "d", [ImageObject("a", "a"), ImageObject("b", "b", image_data=np.zeros((4, 4), np.uint8))])
    texts = harmless(bare._repr_html_()).texts
    assert "no pixels" in texts
    assert "no picture: shape (4, 4)" in texts
    with pytest.raises(ValueError, match="n is -1"):
        bare.show(-1)


def test_image_shows_what_is_known_of_it(batch: ImageBatch) -> None:
    assert "pixels are not on the host" in harmless(batch[1]._repr_html_()).texts
    batch.to_host()
    for item in batch.data[:2]:
        item.aesthetic_score = 5.25
        text = item._repr_html_()
        read = harmless(text)
        assert len(pictures(text)) == 1
        assert "5.25" in read.texts
        assert f"{item.image_data.shape[1]} × {item.image_data.shape[0]}" in read.texts


def test_terminal_gets_a_table(batch: ImageBatch) -> None:
    lines = repr(batch.show(3)).splitlines()
    assert lines[0] == repr(batch)
    assert "\x1b" not in "".join(lines)
    assert "folder/001" in lines[2]
    assert "sharpness 0.909" in lines[2]
    assert lines[-1] == "9 more images not shown"


def test_sheet_is_saved_as_a_page(batch: ImageBatch, tmp_path: Path) -> None:
    path = batch.show(2).save(tmp_path / "sheet.html", title=EVIL)
    text = path.read_text("utf-8")
    assert len(pictures(text)) == 2
    harmless(text.partition("\n")[2])


def test_loader_shows_what_it_reads_and_did(shards: list[Path]) -> None:
    with ImageLoader(shards, batch_size=16, device="cpu", shuffle=7, transforms=transforms.clip(64)) as loader:
        before = " ".join(harmless(loader._repr_html_()).texts)
        assert "This pass" not in before
        next(iter(loader))
        text = " ".join(harmless(loader._repr_html_()).texts)
    assert "shuffled, seed 7" in text
    assert "16 of 60 samples" in text
    assert "This pass" in text


def test_showing_a_loader_reads_nothing(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets, only the headers of all images tell how many batches there are."""
    with ImageLoader(shards, batch_size=16, device="cpu", buckets=Buckets([(32, 32), (32, 48)])) as loader:
        monkeypatch.setattr(loader.source, "read", None)
        monkeypatch.setattr(loader.source, "headers", None)
        assert "60 in batches of 16" in repr(loader)
        assert {"batch size", "16"} <= set(harmless(loader._repr_html_()).texts)


def test_report_shows_where_samples_went() -> None:
    report = Report(
        "flickr",
        "out/",
        "cpu",
        samples=1000,
        kept=900,
        dropped={"Filter": {EVIL: 60, "size": 30}},
        failed={"truncated": 10},
        stages={"decode": 1.5, "Filter": 0.25},
        seconds=2.0,
    )
    joined = " ".join(harmless(report._repr_html_()).texts)
    for text in ("flickr to out/", "−60", "−10", "1,000", "900", "90.0%", "decode 1.5", "500 a second"):
        assert text in joined, joined
    assert "not complete" in Report("a", "b", "cpu", 0, 0, complete=False)._repr_html_()


def test_duplicates_are_a_table() -> None:
    group = DuplicateGroup(3, (Member("a", "a.jpg", 0, "kept"), Member(EVIL, EVIL, 1, "dropped", EVIL)))
    read = harmless(group._repr_html_())
    assert "group 3, 2 images" in read.texts
    assert {"a", "kept", "dropped"} <= set(read.texts)


def test_errors_are_a_list_with_a_table() -> None:
    errors = ErrorList(ImageError(f"{EVIL}{n}", "path", "a.tar", EVIL, n) for n in range(60))
    read = harmless(errors._repr_html_())
    assert "60 bad images" in read.texts
    assert "10 more not shown" in read.texts
    assert isinstance(errors, list)
    assert errors[:2] == [errors[0], errors[1]]
    assert "no bad images" in harmless(ErrorList()._repr_html_()).texts
    assert repr(ErrorList()) == "[]"
