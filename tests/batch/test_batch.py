"""`ImageObject` and `ImageBatch` on the host."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import timeit
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.batch.batch import ImageBatch, Task
from curator_dali.batch.image import ImageObject

LAYOUTS = ["dense", "ragged"]


def make(n: int = 6, layout: str = "ragged", **more: Any) -> ImageBatch:
    """A batch whose row i has i in every pixel, embedding and byte."""
    images: Any = [np.full((4, 5, 3) if layout == "dense" else (4, 5 + i, 3), i, np.uint8) for i in range(n)]
    if layout == "dense":
        images = np.stack(images) if n else np.zeros((0, 4, 5, 3), np.uint8)
    parts: dict[str, Any] = {
        "task_id": "t0",
        "dataset_name": "flickr",
        "data": [ImageObject(f"{i}.jpg", str(i)) for i in range(n)],
        "images": images,
        "embeddings": np.repeat(np.arange(n, dtype=np.float32)[:, None], 3, 1),
        "encoded": [{"jpg": memoryview(bytes([i]))} for i in range(n)],
    }
    return ImageBatch(**parts | more)


def check(batch: ImageBatch, expected: list[int]) -> None:
    """Every part of the batch has the rows expected."""
    assert batch.num_items == len(batch) == len(expected)
    assert [int(item.image_id) for item in batch] == expected
    assert batch.images is not None
    assert [int(image.max()) for image in batch.images] == expected
    assert [int(image.min()) for image in batch.images] == expected
    assert batch.embeddings.shape == (len(expected), 3)
    assert batch.embeddings[:, 0].tolist() == expected
    assert batch.encoded is not None
    assert [row["jpg"][0] for row in batch.encoded] == expected


class Reader:
    """Stands for a source: says when metadata was read. Does not pickle, as an open file does not."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"caption": "a cat"}

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


# ImageObject


def test_fields_and_defaults_are_nemo_curators() -> None:
    names = ["image_path", "image_id", "metadata", "image_data", "embedding", "aesthetic_score", "nsfw_score"]
    assert [field.name for field in dataclasses.fields(ImageObject)] == names
    item = ImageObject()
    assert [getattr(item, name) for name in names] == ["", "", {}, None, None, None, None]
    assert dataclasses.fields(ImageObject)[2].default_factory is dict
    assert item.metadata is not ImageObject().metadata


def test_metadata_is_read_once_and_late() -> None:
    reader = Reader()
    item = ImageObject("a.jpg", "a", reader)
    assert "a.jpg" in repr(item)
    assert reader.calls == 0
    assert item.metadata == {"caption": "a cat"}
    item.metadata["more"] = 1
    assert item.metadata["more"] == 1
    assert reader.calls == 1


def test_metadata_can_be_assigned() -> None:
    item = ImageObject(metadata=Reader())
    item.metadata = {"a": 1}
    assert item.metadata == {"a": 1}


def test_metadata_that_fails_fails_again() -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("not JSON")

    item = ImageObject(metadata=broken)
    for _ in range(2):
        with pytest.raises(ValueError, match="not JSON"):
            _ = item.metadata


@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy", "replace", "asdict"])
def test_lazy_metadata_survives(way: str) -> None:
    item = ImageObject("a.jpg", "a", Reader(), np.ones((2, 2, 3), np.uint8), aesthetic_score=5.0)
    again = {
        "pickle": lambda: pickle.loads(pickle.dumps(item)),
        "copy": lambda: copy.copy(item),
        "deepcopy": lambda: copy.deepcopy(item),
        "replace": lambda: dataclasses.replace(item),
        "asdict": lambda: ImageObject(**dataclasses.asdict(item)),
    }[way]()
    assert again == item
    assert again.metadata == {"caption": "a cat"}


def test_equality_compares_arrays() -> None:
    def item(**more: Any) -> ImageObject:
        return ImageObject("a", "a", image_data=np.ones((2, 2, 3), np.uint8), **more)

    assert item() == item()
    assert item() != ImageObject("a", "a")
    assert ImageObject("a", "a") != item()
    assert item() != item(embedding=np.ones(3))
    assert item(embedding=np.ones(3)) != item(embedding=np.zeros(3))
    assert item(nsfw_score=0.1) != item()
    assert item() != "a"


def test_a_subclass_with_more_fields_works() -> None:
    @dataclasses.dataclass(repr=False, eq=False)
    class Scored(ImageObject):
        blur: float = 0.0

    item = Scored("a", "a", Reader(), blur=2.0)
    assert item.metadata == {"caption": "a cat"}
    assert item.blur == 2.0


def test_repr_shows_no_pixels() -> None:
    item = ImageObject("a.jpg", "a", {"b": 1, "a": 2}, np.zeros((20, 30, 3), np.uint8), np.zeros(512), 5.25, 0.125)
    assert repr(item) == (
        "ImageObject('a', path 'a.jpg', metadata ['a', 'b'], pixels 20x30x3, embedding 512, aesthetic 5.25, nsfw 0.125)"
    )


def test_creating_objects_is_cheap() -> None:
    reader = Reader()
    best = min(timeit.repeat(lambda: ImageObject("a.jpg", "a", reader), number=20_000, repeat=5)) / 20_000
    assert best < 5e-6  # about 0.9 µs; the margin is for what else runs on the machine


# ImageBatch: making one


def test_a_batch_is_a_task() -> None:
    batch = ImageBatch(task_id="t0", dataset_name="flickr", data=[ImageObject("a.jpg", "a")])
    assert isinstance(batch, Task)
    assert (batch.task_id, batch.dataset_name, batch.num_items, batch.device) == ("t0", "flickr", 1, "cpu")
    assert batch.images is None
    assert batch.embeddings is None
    assert batch.encoded is None
    batch.add_stage_perf("read")
    assert batch._stage_perf == ["read"]
    assert ImageBatch().data == []
    assert ImageBatch()._metadata == {}


@pytest.mark.parametrize("name", ["images", "embeddings", "encoded"])
def test_rows_must_match(name: str) -> None:
    with pytest.raises(ValueError, match=rf"5 rows of {name} for 6 images"):
        make(**{name: getattr(make(), name)[:5]})


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (make(6, "dense"), "ImageBatch('t0', dataset 'flickr', 6 images, 5x4 uint8, embeddings 6x3, cpu)"),
        (make(6, "ragged"), "ImageBatch('t0', dataset 'flickr', 6 images, 5x4..10x4 uint8, embeddings 6x3, cpu)"),
        (ImageBatch(), "ImageBatch(0 images, no pixels, cpu)"),
        (make(0, "dense", embeddings=None), "ImageBatch('t0', dataset 'flickr', 0 images, cpu)"),
        (
            ImageBatch(data=[ImageObject()], images=np.zeros((1, 3, 8, 9), np.float32)),
            "ImageBatch(1 images, 3x8x9 float32, cpu)",
        ),
    ],
)
def test_repr(batch: ImageBatch, expected: str) -> None:
    assert repr(batch) == expected


# Selecting


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [slice(2, 5), slice(0, 0), slice(None, None, -1), slice(1, None, 2), slice(-2, None)])
def test_slices_keep_rows_together(layout: str, rows: slice) -> None:
    check(make(6, layout)[rows], list(range(6))[rows])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@given(mask=st.lists(st.booleans(), min_size=1, max_size=12))
def test_masks_keep_rows_together(layout: str, kind: Any, mask: list[bool]) -> None:
    batch = make(len(mask), layout)
    expected = [i for i, keep in enumerate(mask) if keep]
    check(batch.where(kind(mask)), expected)
    check(batch[kind(mask)], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(steps=st.lists(st.lists(st.integers(0, 99), max_size=8), max_size=4), hosted=st.booleans())
def test_selections_of_selections_keep_rows_together(layout: str, steps: list[list[int]], hosted: bool) -> None:
    batch, expected = make(8, layout), list(range(8))
    for step in steps:
        if hosted:
            batch.to_host()
        rows = sorted({row % len(expected) for row in step}) if expected else []
        batch, expected = batch[rows], [expected[row] for row in rows]
        check(batch, expected)
        if hosted:
            assert [item.image_data.max() for item in batch] == expected  # type: ignore[union-attr]
            assert [item.embedding[0] for item in batch] == expected  # type: ignore[index]


def test_rows_by_number_may_repeat_and_count_from_the_end() -> None:
    check(make()[[5, -6, 5]], [5, 0, 5])
    check(make()[np.array([], int)], [])
    assert make()[2].image_id == make()[-4].image_id == make()[np.int64(2)].image_id == "2"


def test_empty_batches_select_nothing() -> None:
    for layout in LAYOUTS:
        empty = make(6, layout).where([False] * 6)
        check(empty, [])
        check(empty.where([]), [])
        check(empty[:3].copy().to_host(release=True), [])
        assert empty.validate()
        assert isinstance(pickle.loads(pickle.dumps(empty)), ImageBatch)


@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        ([1, 0, 1, 0, 1, 0], TypeError, r"booleans, not int64; for row numbers use batch\["),
        ([True] * 5, ValueError, r"mask is \(5,\), the batch \(6,\)"),
        (np.ones((6, 1), bool), ValueError, r"\(6, 1\)"),
    ],
)
def test_masks_are_checked(mask: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make().where(mask)


def test_row_numbers_are_checked() -> None:
    with pytest.raises(IndexError, match=r"0..6 are not all in a batch of 6"):
        make()[[0, 6]]
    with pytest.raises(TypeError, match="float64"):
        make()[[0.5]]
    with pytest.raises(IndexError):
        make()[6]


def test_a_selection_shares_its_images_and_not_its_books() -> None:
    batch = make(_metadata={"a": 1})
    part = batch[1:3]
    assert part[0] is batch[1]
    part._metadata["b"] = 2
    part.add_stage_perf("x")
    assert (batch._metadata, batch._stage_perf) == ({"a": 1}, [])
    assert (part.task_id, part.dataset_name) == ("t0", "flickr")


# What keeps memory alive


@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_selections_are_views(layout: str) -> None:
    batch = make(6, layout)
    assert np.shares_memory(batch[1:5].images[0], batch.images[1])
    assert np.shares_memory(batch.where([True] * 6).images[0], batch.images[0])
    part = batch[:4]
    part.images = np.zeros((4, 2, 2, 3), np.uint8)  # these keep nothing of the batch alive
    assert np.shares_memory(part[1:].images, part.images)


@pytest.mark.parametrize("hosted", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("halvings", [1, 3])
def test_a_small_selection_lets_go_of_the_batch(layout: str, hosted: bool, halvings: int) -> None:
    """Also where it came about in steps, none of which dropped more than half."""
    memory = np.zeros((8, 64, 64, 3), np.uint8)
    buffer = np.zeros(80, np.uint8)
    batch = make(
        8,
        images=memory[:] if layout == "dense" else list(memory),
        encoded=[{"jpg": memoryview(buffer[10 * i : 10 * i + 10])} for i in range(8)],
    )
    gone, bytes_gone = weakref.ref(memory), weakref.ref(buffer)
    del memory, buffer
    if hosted:
        batch.to_host()
    kept = batch[:3] if halvings == 1 else batch[:6][:4][:3]
    del batch
    gc.collect()
    assert gone() is None
    assert bytes_gone() is None
    assert len(kept) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copy_has_memory_of_its_own(layout: str) -> None:
    for batch in (make(6, layout), make(6, layout).to_host()):
        batch.data[0].metadata = {"a": 1}
        twin = batch.copy()
        check(twin, list(range(6)))
        twin.images[1][:] = 77
        twin.embeddings[:] = 77
        twin[0].image_id = "other"
        twin[0].metadata["a"] = 2
        if batch[1].image_data is not None:
            twin[2].image_data[:] = 77  # type: ignore[index]
            twin[2].embedding[:] = 77  # type: ignore[index]
        check(batch, list(range(6)))
        assert batch[0].metadata == {"a": 1}
        check(copy.deepcopy(batch), list(range(6)))


def test_copy_leaves_metadata_unread() -> None:
    reader = Reader()
    ImageBatch(data=[ImageObject(metadata=reader)]).copy()
    assert reader.calls == 0


def test_dropping_images_frees_them() -> None:
    memory = np.zeros((6, 4, 5, 3), np.uint8)
    batch = make(images=memory).to_host()
    gone = weakref.ref(memory)
    del memory
    batch.images = None
    for item in batch:
        item.image_data = None
    gc.collect()
    assert gone() is None


# To the host and elsewhere


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("release", [False, True])
def test_to_host_fills_without_a_copy(layout: str, release: bool) -> None:
    batch = make(6, layout)
    images = batch.images
    assert batch.to_host(release) is batch
    assert batch.images is images
    for i, item in enumerate(batch):
        assert np.shares_memory(item.image_data, images[i])
        np.testing.assert_array_equal(item.image_data, images[i])
        np.testing.assert_array_equal(item.embedding, batch.embeddings[i])


def test_to_host_twice_does_nothing_more() -> None:
    batch = make().to_host()
    before = [item.image_data for item in batch]
    batch[0].image_data = edited = np.zeros((1, 1, 3), np.uint8)  # what somebody put there stays
    batch.to_host()
    assert batch[0].image_data is edited
    assert all(a is b.image_data for a, b in zip(before[1:], batch.data[1:], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_selections_keep_what_was_put_in_place_of_a_row(layout: str) -> None:
    batch = make(6, layout).to_host()
    batch[0].image_data = edited = batch[0].image_data[::-1]  # type: ignore[index]
    for end in (5, 2):
        part = batch[:end]
        assert part.to_host()[0].image_data is edited
        assert np.shares_memory(part[1].image_data, part.images[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_at_a_used_address_are_new(layout: str) -> None:
    batch = make(6, layout)
    for value in range(100, 120):
        batch.images = None
        batch.images = [np.full((4, 5, 3), value, np.uint8) for _ in range(6)]
        batch.images = np.stack(batch.images) if layout == "dense" else batch.images
        assert [item.image_data.max() for item in batch.to_host()] == [value] * 6  # type: ignore[union-attr]
        for item in batch:
            item.image_data = np.zeros((1, 1, 3), np.uint8)  # nothing keeps the array alive but the batch


def test_to_host_fills_what_is_missing_or_new() -> None:
    batch = make().to_host()
    batch[3].image_data = None
    batch.to_host()
    assert batch[3].image_data is not None
    batch.images = [image + 100 for image in batch.images]
    batch.to_host()
    assert batch[3].image_data.max() == 103


def test_to_host_without_arrays_leaves_what_is_there() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    batch = ImageBatch(data=[ImageObject(image_data=pixels)]).to_host()
    assert batch[0].image_data is pixels
    assert batch.images is None


def test_embeddings_may_be_torch_tensors() -> None:
    batch = make()
    batch.embeddings = torch.from_numpy(batch.embeddings)
    batch.to_host()
    assert isinstance(batch[1].embedding, np.ndarray)
    check(batch[1:3], [1, 2])
    assert batch.problems(check_paths=False) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_to_device_gathers_what_images_have(layout: str) -> None:
    full = make(6, layout).to_host()
    batch = ImageBatch(data=full.data)
    assert batch.images is None
    assert batch.to_device("cpu") is batch
    assert isinstance(batch.images, np.ndarray) == (layout == "dense")
    assert [int(image.max()) for image in batch.images] == list(range(6))
    assert batch.embeddings.shape == (6, 3)
    images = batch.images
    assert batch.to_device("cpu").images is images


def test_to_device_refuses_half_filled_batches() -> None:
    batch = ImageBatch(data=make().to_host().data)
    batch[2].image_data = None
    with pytest.raises(ValueError, match=r"image 2 \('2'\) has no image_data"):
        batch.to_device("cpu")


def test_to_device_without_anything_leaves_nothing() -> None:
    assert ImageBatch(data=[ImageObject()]).to_device("cpu").images is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_to_torch_is_the_same_memory(layout: str) -> None:
    batch = make(6, layout)
    tensors = batch.to_torch()
    assert isinstance(tensors, torch.Tensor) == (layout == "dense")
    tensors[2][:] = 55
    assert (batch.images[2] == 55).all()
    assert batch.to_torch("embeddings").shape == (6, 3)


def test_to_torch_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="no embeddings"):
        ImageBatch().to_torch("embeddings")


# Pickling


@pytest.mark.parametrize("hosted", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pickle_keeps_all_but_the_encoded_bytes(layout: str, hosted: bool) -> None:
    batch = make(6, layout, _metadata={"a": 1})
    batch.data[0].metadata = Reader()  # type: ignore[assignment]
    if hosted:
        batch.to_host()
    again = pickle.loads(pickle.dumps(batch))
    assert again.encoded is None
    assert (again.task_id, again.dataset_name, again._metadata, again.device) == ("t0", "flickr", {"a": 1}, "cpu")
    assert again[0].metadata == {"caption": "a cat"}
    again.encoded = batch.encoded
    check(again, list(range(6)))
    assert again.data == batch.data
    check(again[1:3], [1, 2])


def test_pickle_writes_pixels_once() -> None:
    images, embeddings = np.zeros((4, 100, 100, 3), np.uint8), np.full((4, 5_000), np.nan, np.float32)
    batch = ImageBatch(data=[ImageObject() for _ in images], images=images, embeddings=embeddings).to_host()
    assert len(pickle.dumps(batch)) < 1.1 * (images.nbytes + embeddings.nbytes)
    again = pickle.loads(pickle.dumps(batch))
    assert np.shares_memory(again[1].image_data, again.images)
    assert np.shares_memory(again[1].embedding, again.embeddings)


def test_pickle_keeps_what_was_put_in_place_of_a_row() -> None:
    batch = make().to_host()
    batch[0].image_data = np.full((1, 1, 3), 9, np.uint8)
    batch[1].embedding = batch[1].embedding.astype(np.float64)
    again = pickle.loads(pickle.dumps(batch))
    assert again[0].image_data.tolist() == [[[9, 9, 9]]]
    assert again[1].embedding.dtype == np.float64
    assert [image.max() for image in again.images] == list(range(6))


# Checking


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(b"jpg")
    return [str(tmp_path / f"{i}.jpg") for i in range(6)]


def on_disk(files: list[str], **more: Any) -> ImageBatch:
    return make(**{"data": [ImageObject(path, str(i)) for i, path in enumerate(files)], **more})


def test_a_good_batch_has_no_problems(files: list[str]) -> None:
    batch = on_disk(files)
    assert batch.problems() == []
    assert batch.validate()


def test_every_problem_is_named(files: list[str]) -> None:
    batch = on_disk(files)
    batch.data[1].image_id = "0"
    batch.data[2].image_id = ""
    batch.data[3].image_path = "nowhere.jpg"
    batch.data[4].image_path = ""
    batch.images[5] = np.zeros((4, 5), np.uint8)
    batch.images[4] = np.zeros((4, 5, 4), np.uint8)
    batch.images[3] = np.zeros((4, 5, 3), np.int32)
    batch.images[2] = np.zeros((0, 5, 3), np.uint8)
    batch.embeddings = np.zeros((5, 3, 1), np.int8)
    assert not batch.validate()
    found = batch.problems()
    for text in [
        "5 rows of embeddings for 6 images",
        "image_id '0' is used by 2 images",
        "image 2 has no image_id",
        "image 3 ('3'): image_path 'nowhere.jpg' does not exist",
        "image 4 ('4'): has no image_path",
        "image 5 ('5'): pixels are (4, 5) uint8, not (H, W, 3) uint8",
        "image 4 ('4'): pixels are (4, 5, 4) uint8",
        "image 3 ('3'): pixels are (4, 5, 3) int32",
        "image 2 (''): pixels are (0, 5, 3) uint8",
        "embeddings are (5, 3, 1) int8, not (N, D) float",
    ]:
        assert any(line.startswith(text) for line in found), (text, found)
    assert len(found) == 10
    assert not any("image_path" in line for line in batch.problems(check_paths=False))


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 8, 8, 3)])
def test_normalized_pixels_are_no_problem(files: list[str], shape: tuple[int, ...]) -> None:
    assert on_disk(files, images=np.zeros(shape, np.float32)).problems() == []


def test_pixels_assigned_by_hand_are_checked(files: list[str]) -> None:
    batch = on_disk(files, images=None)
    batch[0].image_data = np.zeros((4, 5), np.uint8)
    assert len(batch.problems()) == 1


def test_paths_in_archives_and_stores_are_looked_up(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    with fsspec.open("memory://pictures/a.jpg", "wb") as file:
        file.write(b"jpg")
    good = [f"tar://{i:06d}.jpg::{shards[0]}" for i in range(20)] + ["memory://pictures/a.jpg", f"file://{shards[0]}"]
    bad = [
        f"tar://missing.jpg::{shards[0]}",
        "tar://a.jpg::/nowhere/0.tar",
        "tar://b.jpg::/nowhere/0.tar",
        "memory://pictures/b.jpg",
        "nosuch://a.jpg",
    ]
    batch = ImageBatch(data=[ImageObject(path, str(i)) for i, path in enumerate(good + bad)])
    opened = []
    import tarfile

    monkeypatch.setattr(tarfile, "TarFile", type("Counted", (tarfile.TarFile,), {"__init__": counted(opened)}))
    found = batch.problems()
    assert len(found) == len(bad), found
    assert all(path in line for path, line in zip(bad, found, strict=True))
    assert len(opened) <= 1  # one archive, opened once


def counted(opened: list[int]) -> Any:
    import tarfile

    original = tarfile.TarFile.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        opened.append(1)
        original(self, *args, **kwargs)

    return init


def test_selecting_is_cheap() -> None:
    batch = make(256)
    mask = np.arange(256) % 4 != 0
    each = min(timeit.repeat(lambda: batch.where(mask), number=20, repeat=5)) / 20 / 256
    assert each < 10e-6  # about 1 µs an image


def test_images_of_any_array_type_are_taken_as_they_are() -> None:
    pixels: NDArray[np.uint8] = np.zeros((1, 2, 2, 3), np.uint8)
    assert ImageBatch(data=[ImageObject()], images=pixels).images is pixels


def with_views(n: int = 6) -> ImageBatch:
    rng = np.random.default_rng(3)
    return ImageBatch(
        data=[ImageObject(f"{i}.jpg", str(i), {"caption": f"c{i}", "stars": i}) for i in range(n)],
        images=[rng.integers(0, 255, (4 + i, 5, 3), np.uint8) for i in range(n)],
        views={("small",): rng.integers(0, 255, (n, 2, 2, 3), np.uint8)},
        columns={"width": np.arange(n, dtype=np.int32), "tag": np.array([f"t{i}" for i in range(n)], object)},
    )


@pytest.mark.parametrize("rows", [slice(1, 5), slice(None, None, -2), [4, 0, 0], [True] * 3 + [False] * 3, slice(0, 0)])
def test_views_and_columns_stay_with_their_images(rows: object) -> None:
    batch = with_views()
    small = batch.views[("small",)].copy()
    taken = batch[rows]
    ids = [int(item.image_id) for item in taken]
    assert np.array_equal(taken.views[("small",)], small[ids])
    assert taken.columns["width"].tolist() == ids
    assert taken.columns["tag"].tolist() == [f"t{i}" for i in ids]
    assert taken.columns["width"].dtype == np.int32


def test_copy_and_pickle_keep_views_and_columns() -> None:
    batch = with_views()
    for other in (batch.copy(), pickle.loads(pickle.dumps(batch))):
        assert np.array_equal(other.views[("small",)], batch.views[("small",)])
        assert not np.shares_memory(other.views[("small",)], batch.views[("small",)])
        assert other.columns.keys() == batch.columns.keys()
        assert other.columns["width"] is not batch.columns["width"]
    assert batch.to_torch(("small",)).shape == (6, 2, 2, 3)
    with pytest.raises(ValueError, match=r"no view \('large',\): name it in the loader's views="):
        batch.to_torch(["large"])


def test_views_and_columns_have_a_row_an_image() -> None:
    with pytest.raises(ValueError, match="column 'score': 2 values for 1 images"):
        ImageBatch(data=[ImageObject("a")], columns={"score": np.zeros(2)})
    with pytest.raises(ValueError, match="3 rows of view"):
        ImageBatch(data=[ImageObject("a")], views={(): np.zeros((3, 1, 1, 3), np.uint8)})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([1, 2], "column 'x': 2 values for 4 images; give one value an image"),
        (np.zeros(5), "5 values for 4"),
        (np.zeros((1, 4)), "1 values for 4"),
        (3.5, "one float, 3.5, for 4 images"),
        ("text", "one str, 'text', for 4 images"),
        (None, "one NoneType, None, for 4 images"),
        (np.float32(3), "for 4 images"),
        (np.array(3), "one ndarray, array.3., for 4 images"),
        (torch.zeros(()), "one Tensor"),
        (torch.zeros(3), "3 values for 4"),
        ({1, 2, 3, 4}, "one set"),
    ],
)
def test_a_column_of_another_length_is_refused_at_once(values: Any, match: str) -> None:
    batch = with_views(4)
    puts = [
        lambda columns: columns.__setitem__("x", values),
        lambda columns: columns.update(x=values),
        lambda columns: columns.update([("x", values)]),
        lambda columns: columns.setdefault("x", values),
        lambda columns: columns.__ior__({"x": values}),
        lambda columns: setattr(batch, "columns", {"x": values}),
    ]
    for put in puts:
        with pytest.raises(ValueError, match=match):
            put(batch.columns)
    for other in (pickle.loads(pickle.dumps(batch)), batch.copy(), batch[:], copy.copy(batch), copy.deepcopy(batch)):
        with pytest.raises(ValueError, match=match):
            other.columns["x"] = values
        assert sorted(other.columns) == ["tag", "width"]


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4], (0.5, 1, 2, 3), ["a", None, "c", "d"], [[1], [1, 2], [], [3]], torch.arange(4)]
)
def test_a_column_is_an_array_whatever_was_put_in(values: Any) -> None:
    batch = with_views(4)
    batch.columns["x"] = values
    assert isinstance(batch.columns["x"], np.ndarray)
    assert batch.columns["x"].shape == (4,)
    expected = list(values) if isinstance(values, tuple) else list(getattr(values, "tolist", lambda: values)())
    assert batch.columns["x"].tolist() == expected
    assert batch[2:].columns["x"].tolist() == expected[2:]
    batch.data = batch.data[:2]
    with pytest.raises(ValueError, match="for 2 images"):
        batch.columns["y"] = values


def test_values_finds_a_field_wherever_it_is() -> None:
    batch = with_views(3)
    assert batch.values("width").tolist() == [0, 1, 2]
    assert batch.values("stars").tolist() == [0, 1, 2]
    assert batch.values("stars").dtype == np.int64
    assert batch.values("caption").tolist() == ["c0", "c1", "c2"]
    assert batch.values("image_id").tolist() == ["0", "1", "2"]
    batch[1].aesthetic_score = 5.5
    del batch[0].metadata["caption"]
    assert np.array_equal(batch.values("aesthetic_score"), [np.nan, 5.5, np.nan], equal_nan=True)
    assert batch.values("caption").tolist() == [None, "c1", "c2"]
    with pytest.raises(
        KeyError, match="no image has a field 'nsfw_score'; there are aesthetic_score, caption, image_id"
    ):
        batch.values("nsfw_score")
    assert len(ImageBatch().values("anything")) == 0


def test_values_beyond_64_bits_stay_what_they_are() -> None:
    batch = ImageBatch(data=[ImageObject(str(n), str(n), {"hash": n}) for n in (2**64 - 1, 3)])
    assert batch.values("hash").tolist() == [2**64 - 1, 3]
