"""Make what the benchmarks read: WebDataset tars of real photographs, cropped and reduced, never enlarged.

    python -m tests.benchmarks.corpus full OUT [--photos DIR] [--images 2000]
    python -m tests.benchmarks.corpus tiny OUT [--images 20000]

The photographs are scikit-image's and scikit-learn's; those have at most 1411 pixels a side, so give a folder of
larger ones for the large tenth of `full`. The same photographs give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.helpers import encode, photo_paths, write_shards, write_tar

Image.MAX_IMAGE_PIXELS = None
SIZES = [((500, 375), 0.6), ((1024, 768), 0.3), ((2048, 1536), 0.1)]  # of photographs on the web, and their share


class Crop(NamedTuple):
    """One image to make: `size` out of `photo`, where and how by `seed`."""

    photo: Path
    size: tuple[int, int]
    seed: int


@lru_cache(4)
def opened(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB")


def make(crop: Crop) -> bytes:
    """JPEG bytes: quality 85 to 95, one in five without chroma subsampling."""
    rng, photo, (width, height) = random.Random(crop.seed), opened(crop.photo), crop.size
    scale = rng.uniform(1.0, min(photo.width / width, photo.height / height))
    w, h = int(width * scale), int(height * scale)
    x, y = rng.randint(0, photo.width - w), rng.randint(0, photo.height - h)
    cut = photo.resize(crop.size, Image.Resampling.LANCZOS, box=(x, y, x + w, y + h))
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return encode(cut, quality=rng.randint(85, 95), subsampling="4:2:0" if rng.random() < 0.8 else "4:4:4")


def photographs(folder: Path | None) -> list[tuple[Path, int, int]]:
    """(file, width, height) of the photographs to cut from."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg", ".png")] if folder else []
    found = []
    for path in [*paths, *photo_paths().values()]:
        with Image.open(path) as image:
            if image.width * image.height > 100_000 and image.mode == "RGB":
                found.append((path, *image.size))
    return found


def plan_full(photos: list[tuple[Path, int, int]], count: int, seed: int) -> Iterator[Crop]:
    rng = random.Random(seed)
    for _ in range(count):
        size = rng.choices(range(len(SIZES)), [share for _, share in SIZES])[0]
        stretch, portrait = (rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15)), rng.random() < 0.25
        fitting: list[Path] = []
        while not fitting:  # the next smaller size where no photograph is large enough
            if size < 0:
                raise ValueError("every photograph is smaller than 575x431: give larger ones with --photos")
            width, height = (int(n * by) for n, by in zip(SIZES[size][0], stretch, strict=True))
            width, height = (height, width) if portrait else (width, height)
            fitting = [path for path, w, h in photos if w >= width and h >= height]
            size -= 1
        yield Crop(rng.choice(fitting), (width, height), rng.getrandbits(48))


def plan_tiny(photos: list[tuple[Path, int, int]], count: int, seed: int) -> Iterator[Crop]:
    rng = random.Random(seed)
    for _ in range(count):
        yield Crop(rng.choice(photos)[0], (64, 64), rng.getrandbits(48))


def build(kind: str, out: Path, *, photos: Path | None = None, images: int | None = None, seed: int = 7) -> None:
    """Write OUT/00000.tar, ...: key.jpg, key.json and, in `full`, key.txt; eight tars."""
    count = images or {"full": 2000, "tiny": 20000}[kind]
    plan = list({"full": plan_full, "tiny": plan_tiny}[kind](photographs(photos), count, seed))
    encoded: list[bytes] = [b""] * count
    order = sorted(range(count), key=lambda i: plan[i].photo)  # each photograph is opened once
    with ProcessPoolExecutor() as pool:
        for i, data in zip(order, pool.map(make, [plan[i] for i in order], chunksize=16), strict=True):
            encoded[i] = data
    samples = []
    for i, (crop, data) in enumerate(zip(plan, encoded, strict=True)):
        key, caption = f"{i:09d}", f"a crop of {crop.photo.stem}, number {i}"
        url, (width, height) = f"https://example.org/{key}.jpg", crop.size
        fields = {"url": url, "caption": caption, "width": width, "height": height, "label": i % 10}
        members = {"jpg": data, "json": json.dumps(fields).encode()}
        samples.append((key, {**members, "txt": caption.encode()} if kind == "full" else members))
    write_shards(out, samples, per_shard=-(-count // 8))


def damaged(data: bytes, kind: int, rng: random.Random) -> bytes:
    """The ways images break in the wild.

    A look at the header tells the first four. The fifth, cut short but with a thumbnail that is whole, fails in the
    decoder and so costs its batch a second try; of the last, libjpeg-turbo makes a picture with grey or noise in it.
    """
    half, third = len(data) // 2, len(data) // 3
    match kind % 6:
        case 0:
            return b""
        case 1:
            return b"<!DOCTYPE html><title>404 Not Found</title>"
        case 2:
            return data[:300]
        case 3:
            return data[:half]
        case 4:
            return data[:2] + b"\xff\xe1\x00\x06\xff\xd8\xff\xd9" + data[2:half]
        case _:
            return data[:third] + rng.randbytes(third) + data[2 * third :]


def damage(shards: list[Path], out: Path, rate: float = 0.01, seed: int = 0) -> int:
    """Copy tars with a share of their JPEGs damaged; returns how many were."""
    rng, count = random.Random(seed), 0
    for shard in shards:
        members = []
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None, f"{shard}: {member.name} is no plain file"
                data = file.read()
                if member.name.endswith(".jpg") and rng.random() < rate:
                    data = damaged(data, count, rng)
                    count += 1
                members.append((member.name, data))
        write_tar(out / shard.name, members)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["full", "tiny"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of further photographs")
    parser.add_argument("--images", type=int)
    given = parser.parse_args()
    build(given.kind, given.out, photos=given.photos, images=given.images)
