"""Random crops decode only their windows: the same pixels as the whole image cut, however a sample is loaded."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import curator_dali as cd
from curator_dali import transforms
from curator_dali.decoding.decoder import Decoder, gate
from curator_dali.sources import MemorySource
from curator_dali.transforms.graph import Graph
from tests import formats, helpers

RANDOM: dict[str, transforms.RandomTransform] = {
    "resized crop": transforms.RandomResizedCrop(24),
    "flip": transforms.HorizontalFlip(),
    "jitter": transforms.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    "grey": transforms.RandomGrayscale(0.5),
    "blur": transforms.GaussianBlur(p=0.6),
    "rotate": transforms.Rotate(40, p=0.7),
    "erase": transforms.RandomErasing(0.7),
    "policy": transforms.RandAugment(2, 9),
}
EVERYTHING = (*RANDOM.values(), transforms.Normalize(), transforms.RandomErasing(value=1.0))
KINDS = ["JPEG", "PNG", "TIFF", "JPEG", "WEBP", "GIF"]  # TIFF and GIF are Pillow's
SEED, EPOCH = 11, 3


@pytest.fixture(scope="module")
def files(photos: dict[str, NDArray[np.uint8]]) -> list[bytes]:
    """24 images of every way of decoding, among them JPEGs that EXIF turns."""
    made = []
    for i, (_, pixels) in enumerate(helpers.crops(photos, 24, shortest=40, longest=90)):
        kind = KINDS[i % len(KINDS)]
        options = {"exif": formats.exif(i % 8 + 1)} if kind == "JPEG" else {}
        made.append(formats.save(Image.fromarray(pixels), kind, **options))
    return made


def seen(
    files: list[bytes], views: tuple[tuple[transforms.Transform, ...], ...], **options: Any
) -> dict[str, list[NDArray[np.generic]]]:
    """Image id -> the sample in each view; of all ranks together; stopped after `stop` steps and resumed, if so."""
    world, stop = options.pop("world", 1), options.pop("stop", None)
    found: dict[str, list[NDArray[np.generic]]] = {}

    def take(batches: Iterator[cd.ImageBatch]) -> None:
        for batch in batches:
            for row, item in enumerate(batch.data):
                found[item.image_id] = [np.array(batch.views[view][row]) for view in views]

    for rank in range(world):
        arguments = {"device": "cpu", "transforms": None, "views": views, "shuffle": SEED, **options}
        with cd.ImageLoader(MemorySource(files), shard=cd.Shard(rank, world), **arguments) as loader:
            loader.set_epoch(EPOCH)
            if stop is None:
                take(iter(loader))
                continue
            for _, batch in zip(range(stop), loader, strict=False):
                take(iter([batch]))
            state = loader.state_dict()
        with cd.ImageLoader(MemorySource(files), shard=cd.Shard(rank, world), **arguments) as loader:
            loader.load_state_dict(state)
            take(iter(loader))
    return found


@pytest.fixture(scope="module")
def alone(files: list[bytes]) -> dict[str, list[NDArray[np.generic]]]:
    """Every sample decoded in a batch of its own, in every random transform and in all of them together."""
    return seen(files, VIEWS, batch_size=1, num_threads=1)


VIEWS = (*((transform,) for transform in RANDOM.values()), EVERYTHING)


@settings(max_examples=12, deadline=None)
@given(
    batch_size=st.integers(1, 30),
    num_threads=st.integers(1, 3),
    prefetch=st.integers(1, 4),
    world=st.integers(1, 3),
    stop=st.none() | st.integers(1, 4),
)
def test_a_sample_looks_the_same_however_it_is_loaded(
    files: list[bytes], alone: dict[str, list[NDArray[np.generic]]], **how: Any
) -> None:
    """Bit for bit, through JPEG and Pillow alike."""
    found = seen(files, VIEWS, **how)
    assert set(found) == set(alone)
    for key, views in found.items():
        for view, ours, expected in zip(VIEWS, views, alone[key], strict=True):
            assert np.array_equal(ours, expected), (key, view)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decoding_only_the_window_is_decoding_and_cutting(photo: Image.Image, orientation: int) -> None:
    """Bit for bit, for every EXIF orientation, subsampling and progressive files; header known or not."""
    crop = transforms.RandomResizedCrop(32, scale=(0.05, 1.0))
    files = [
        formats.save(
            photo.resize((121, 83)), "JPEG", exif=formats.exif(orientation), subsampling=sub, progressive=progressive
        )
        for sub in (0, 1, 2)
        for progressive in (False, True)
    ] * 4
    source = MemorySource(files)
    encoded = [source.read(np.arange(len(files))) for _ in range(2)]
    outputs = []
    for batch, sequences in zip(encoded, ([(crop,)], [(crop,), ()]), strict=True):  # a plain output needs it all
        decoder = Decoder(batch_size=len(files), device="cpu", num_threads=2, outputs=sequences)
        try:
            decoder.submit(gate(batch), (SEED, EPOCH))
            outputs.append(decoder.collect().outputs)
        finally:
            decoder.close()
    (cut,), (whole, plain) = outputs
    upright = (121, 83) if orientation > 4 else (83, 121)
    assert plain.shape == (len(files), *upright, 3)
    assert np.array_equal(cut, whole)
    assert len({image.tobytes() for image in cut}) > len(files) // 2  # the windows differ


def test_a_header_that_lies_costs_only_its_image(photo: Image.Image) -> None:
    """An index may be older than its file: the window is then chosen from the pixels, by Pillow."""
    small, large = (formats.save(photo.resize(size), "JPEG") for size in ((40, 30), (300, 200)))
    source = MemorySource([large, small, large])
    encoded = source.read(np.arange(3))
    gated = gate(encoded)
    encoded.headers[1] = encoded.headers[0]
    sequence = (transforms.RandomResizedCrop(16, scale=(0.9, 1)),)
    decoder = Decoder(batch_size=3, device="cpu", num_threads=1, outputs=[sequence])
    try:
        decoder.submit(gated, (SEED, EPOCH))
        decoded = decoder.collect()
    finally:
        decoder.close()
    assert decoded.rows.tolist() == [0, 1, 2]
    upright = [np.asarray(Image.open(io.BytesIO(data))) for data in (large, small, large)]
    assert np.array_equal(decoded.outputs[0], transforms.apply(upright, sequence, key=(SEED, EPOCH)))


def test_sizes_are_known_all_along() -> None:
    """What a transform far down a sequence computes from the size is what comes out of those before it."""
    sizes = np.array([[40, 60], [90, 31], [7, 7]])
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    for sequence in (
        (transforms.Resize(20),),
        (transforms.Resize((9, 12)), transforms.Pad(10)),
        (transforms.Pad((50, 8)), transforms.HorizontalFlip()),
        (transforms.Resize(30), transforms.CenterCrop((25, 33)), transforms.Rotate(9)),
        (transforms.RandomResizedCrop((5, 6)),),
    ):
        at = sizes
        for transform in sequence:
            at = transform.output_sizes(at)
        assert [image.shape[:2] for image in transforms.apply(images, sequence)] == [
            tuple(size) for size in at.tolist()
        ]


def test_crops_are_distributed_as_torchvisions() -> None:
    """Areas, ratios and places of 20,000 crops against torchvision's loop over numpy's random numbers."""
    n, height, width = 20_000, 300, 400
    crop = transforms.RandomResizedCrop(8)
    values = Graph([(crop,)]).arguments((0, 0), np.arange(n), np.tile([height, width], (n, 1)))
    ours = np.concatenate([values["0.start"], values["0.shape"]], axis=1).astype(float)
    rng = np.random.default_rng(0)
    theirs = np.array([reference_crop(rng, height, width) for _ in range(n)], float)
    for name, of in {
        "area": lambda c: c[:, 2] * c[:, 3] / (height * width),
        "ratio": lambda c: np.log(c[:, 3] / c[:, 2]),
        "top": lambda c: c[:, 0] / height,
        "left": lambda c: c[:, 1] / width,
    }.items():
        deciles = np.linspace(0.05, 0.95, 10)
        apart = np.abs(np.quantile(of(ours), deciles) - np.quantile(of(theirs), deciles))
        assert apart.max() < 0.02, (name, apart)


def reference_crop(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w = round(height * 4 / 3) if width / height > 4 / 3 else width
    h = round(width / (3 / 4)) if width / height < 3 / 4 else height
    return (height - h) // 2, (width - w) // 2, h, w
