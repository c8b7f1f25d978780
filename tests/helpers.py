"""What several tests share: real photographs, crops of them, and WebDataset tars to put them in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Colour photographs within the wheels themselves; scikit-image would download its others.
PHOTOS = {
    "skimage": [
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/hubble_deep_field.jpg",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def photo_paths() -> dict[str, Path]:
    """Name -> file of each photograph that scikit-image and scikit-learn carry."""
    found = {}
    for package, files in PHOTOS.items():
        spec = find_spec(package)  # finds the files without the seconds that importing the package takes
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} carries photographs for the tests: pip install 'curator-dali[test]'")
        found |= {Path(file).stem: Path(spec.submodule_search_locations[0]) / file for file in files}
    return found


def load_photos() -> dict[str, NDArray[np.uint8]]:
    """Name -> (H, W, 3) uint8 of each photograph."""
    return {name: np.asarray(Image.open(path).convert("RGB")) for name, path in photo_paths().items()}


def encode(pixels: NDArray[Any] | Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """Encode pixels with Pillow; JPEG at quality 90 unless told."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if format == "JPEG":
        options = {"quality": 90, **options}
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def crops(
    photos: Mapping[str, NDArray[np.uint8]], count: int, *, shortest: int = 96, longest: int = 256, seed: int = 0
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Cut `count` crops of (class, pixels) from photographs, in turn; the class is the photograph's place."""
    rng = np.random.default_rng(seed)
    pictures = list(photos.values())
    for i in range(count):
        photo = pictures[i % len(pictures)]
        h, w = (int(n) for n in rng.integers(shortest, np.minimum(photo.shape[:2], longest), endpoint=True))
        y, x = int(rng.integers(photo.shape[0] - h + 1)), int(rng.integers(photo.shape[1] - w + 1))
        yield i % len(pictures), photo[y : y + h, x : x + w]


def write_tar(path: str | Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of (name, bytes) members in their order; names may repeat."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(
    folder: str | Path,
    samples: Sequence[tuple[str, Mapping[str, bytes]]],
    per_shard: int,
    *,
    format: int = tarfile.USTAR_FORMAT,
) -> list[Path]:
    """Write samples of (key, {extension: bytes}) as `folder`/00000.tar, 00001.tar, ...; returns the paths."""
    return [
        write_tar(
            Path(folder) / f"{start // per_shard:05d}.tar",
            (
                (f"{key}.{extension}", data)
                for key, members in samples[start : start + per_shard]
                for extension, data in members.items()
            ),
            format=format,
        )
        for start in range(0, len(samples), per_shard)
    ]


def photo_samples(photos: Mapping[str, NDArray[np.uint8]], count: int, *, seed: int = 0) -> list[Any]:
    """Make `count` samples as img2dataset lays them out: .jpg, .json, .txt, and .cls with the class."""
    names = list(photos)
    samples = []
    for i, (label, pixels) in enumerate(crops(photos, count, seed=seed)):
        caption = f"a crop of {names[label]}, number {i}"
        height, width = pixels.shape[:2]
        fields = {"caption": caption, "width": width, "height": height, "photo": names[label], "number": i}
        members = {
            "jpg": encode(pixels, subsampling=("4:2:0", "4:4:4")[i % 2]),
            "json": json.dumps(fields).encode(),
            "txt": caption.encode(),
            "cls": str(label).encode(),
        }
        samples.append((f"{i:06d}", members))
    return samples
