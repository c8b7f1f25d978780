"""Contact sheets: where thumbnails and captions land, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from curator_dali.batch.batch import ImageBatch, contact_sheet
from curator_dali.batch.image import ImageObject
from curator_dali.view import make_thumbnails
from curator_dali.view.sheets import _shorten

RED = (220, 20, 20)


def plain(height: int, width: int, colour: tuple[int, int, int] = RED) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def box_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of what has exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return int(rows.min()), int(columns.min()), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 200), (50, 100)),
        ((200, 100), (100, 50)),
        ((50, 50), (100, 100)),
        ((1, 1), (100, 100)),
        ((3000, 4), (100, 1)),
        ((1, 5000), (1, 100)),
    ],
)
def test_thumbnail_keeps_the_aspect_and_at_least_one_pixel(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    (small,) = make_thumbnails([plain(*shape)], 100, 100, enlarge=True)
    assert small.shape[:2] == expected
    assert tuple(small[0, 0]) == RED


def test_letterboxed_image_is_centred_in_its_cell() -> None:
    sheet = contact_sheet([plain(50, 100)], thumb=100)
    top, left, height, width = box_of(sheet, RED)
    assert (height, width) == (50, 100)
    assert left == (sheet.width - 100) // 2
    assert top == (sheet.height - 50) // 2


def test_cells_run_in_rows_in_the_images_order() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sheet = contact_sheet([plain(9, 9, colour) for colour in colours], columns=2, thumb=40)
    places = [box_of(sheet, colour) for colour in colours]
    assert all(place[2:] == (40, 40) for place in places)
    (top0, left0, *_), (top1, left1, *_), (top2, left2, *_) = places
    assert top0 == top1 < top2
    assert left0 == left2 < left1


def test_captions_are_dark_text_below_their_image() -> None:
    bare = contact_sheet([plain(10, 10)], thumb=60)
    sheet = contact_sheet([plain(10, 10)], captions=["abc"], thumb=60)
    two_lines = contact_sheet([plain(10, 10)], captions=["abc\n10 x 10"], thumb=60)
    assert bare.height < sheet.height < two_lines.height
    top, _, height, _ = box_of(sheet, RED)
    below = np.asarray(sheet.convert("L"))[top + height :]
    assert below.min() < 80
    assert np.median(below) > 240


def test_batch_is_captioned_with_its_ids_and_stays_as_it_was() -> None:
    images = [plain(8, 12), plain(12, 8)]
    objects = [ImageObject(image_path=f"{name}.jpg", image_id=name) for name in ("first", "second")]
    batch = ImageBatch(task_id="t", dataset_name="d", data=objects, images=images)
    sheet = contact_sheet(batch)
    expected = contact_sheet(images, captions=["first", "second"])
    assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    assert objects[0].image_data is None


def test_batch_on_the_host_only() -> None:
    batch = ImageBatch(task_id="t", dataset_name="d", data=[ImageObject("a.jpg", "a", image_data=plain(5, 5))])
    assert box_of(contact_sheet(batch, thumb=50), RED)[2:] == (50, 50)


def test_hundreds_of_images() -> None:
    sheet = contact_sheet([plain(4, 4)] * 500, captions=[str(number) for number in range(500)], thumb=32)
    assert 0.8 < sheet.width / sheet.height < 2.2


@pytest.mark.parametrize("text", ["x" * 400, "folder/" * 30 + "000123_left", "日本語" * 40])
def test_long_captions_lose_their_middle(text: str) -> None:
    font = ImageFont.load_default(12)
    short = _shorten(text, font, 100)
    head, tail = short.split("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert font.getlength(short) <= 100
    assert abs(len(head) - len(tail)) <= 1
    assert _shorten("short", font, 100) == "short"


def test_captions_beyond_ascii_are_drawn() -> None:
    sheets = [contact_sheet([plain(9, 9)], captions=[text]) for text in ("naïve-Ω", "naïve-Ж")]
    assert sheets[0].size == sheets[1].size


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet(ImageBatch(task_id="t", dataset_name="d", data=[]))
    with pytest.raises(ValueError, match="'a' has no pixels"):
        contact_sheet(ImageBatch(task_id="t", dataset_name="d", data=[ImageObject("a.jpg", "a")]))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_wrong_arrays_are_named(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image 1 must be \(H, W, 3\) uint8, got shape"):
        contact_sheet([plain(4, 4), image])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="2 captions for 1 images"):
        contact_sheet([plain(4, 4)], captions=["a", "b"])
    with pytest.raises(ValueError, match="columns is 0"):
        contact_sheet([plain(4, 4)], columns=0)
    with pytest.raises(ValueError, match="thumb is 8"):
        contact_sheet([plain(4, 4)], thumb=8)


def test_images_of_pillow_in_any_mode_are_drawn() -> None:
    grey = Image.new("L", (100, 50), 120)
    assert box_of(contact_sheet([grey], thumb=100), (120, 120, 120))[2:] == (50, 100)
