"""Hashes of what DALI's own antialiased Lanczos makes of an image, against those of Pillow's: a program, not a test.

    python -m tests.benchmarks.resized_hashes [--photos DIR]

Photographs are those that the tests have, crops of them in the benchmarks' sizes, and those of DIR. Both sides begin
with DALI's grey. Printed are the bits in which the two hashes of an image differ, and how far each side's hash moves
when the image is encoded as JPEG again or made half as large. Blank images are left out, as `Deduplicate` does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import helpers
from tests.benchmarks.corpus import make, photographs, plan_full
from tests.benchmarks.harness import spread
from tests.benchmarks.loading import table

Kind = Literal["phash", "dhash"]
Pictures = list[NDArray[np.uint8]]
SIZES: dict[Kind, tuple[int, int]] = {"phash": (32, 32), "dhash": (8, 9)}


class Pipeline:
    """DALI's grey images of batches of 64, whole or resized by DALI."""

    def __init__(self, resized_to: tuple[int, int] | None, threads: int) -> None:
        from nvidia.dali import fn, types

        from curator_dali import dali
        from curator_dali.transforms import Grey

        self._pipeline = dali.new_pipeline("cpu", 64, threads, depth=1)
        with self._pipeline:
            images = Grey().lower(dali.declare({"images": (np.dtype(np.uint8), 3)})["images"])
            if resized_to:
                images = fn.resize(images, size=resized_to, antialias=True, interp_type=types.INTERP_LANCZOS3)
            self._pipeline.set_outputs(images)

    def hashes(self, pictures: Pictures, kind: Kind) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        from curator_dali import dali
        from curator_dali.similarity import hash_images

        found = []
        for start in range(0, len(pictures), 64):
            self._pipeline.feed_input("images", pictures[start : start + 64])
            self._pipeline.schedule_run()
            found.append(hash_images(dali.collect(self._pipeline, "cpu")[0], kind))
        hashes, blank = (np.concatenate(part) for part in zip(*found, strict=True))
        return hashes, blank


def reencoded(quality: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    return lambda picture: decoded(helpers.encode(picture, quality=quality))


def decoded(data: bytes) -> NDArray[np.uint8]:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def halved(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = (max(1, side // 2) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def bits(apart: NDArray[Any]) -> str:
    """`median, mean, 99%, most; share within 2 and 4`."""
    median, high = np.median(apart), np.quantile(apart, 0.99)
    return (
        f"{median:.0f}, {apart.mean():.2f}, {high:.0f}, {apart.max()}; {(apart <= 2).mean():.1%}, "
        f"{(apart <= 4).mean():.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of further photographs")
    parser.add_argument("--count", type=int, default=600, help="crops of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    photos = helpers.load_photos()
    plan = plan_full(photographs(args.photos), args.count, 3)
    small = [helpers.crops(photos, args.count, shortest=low, longest=high) for low, high in ((128, 512), (16, 64))]
    corpora: dict[str, Pictures] = {
        "whole photographs": list(photos.values()),
        "cuts of 0.2 to 2 megapixels": [decoded(make(cut)) for cut in plan],
        "crops of 128 to 512 a side": [np.ascontiguousarray(crop) for _, crop in small[0]],
        "crops of 16 to 64 a side": [np.ascontiguousarray(crop) for _, crop in small[1]],
    }
    cells = []
    for kind, size in SIZES.items():
        exact, own = Pipeline(None, args.threads), Pipeline(size, args.threads)
        for title, pictures in corpora.items():
            spent: dict[str, list[float]] = {"exact": [], "own": []}
            for number in range(args.rounds + 1):
                for name, pipeline in (("exact", exact), ("own", own)):
                    start = time.perf_counter()
                    pipeline.hashes(pictures, kind)
                    if number:
                        spent[name].append(len(pictures) / (time.perf_counter() - start))
            sides = [pipeline.hashes(pictures, kind) for pipeline in (exact, own)]
            told = ~(sides[0][1] | sides[1][1])
            row = [kind, f"{title} ({told.sum()})", bits(np.bitwise_count(sides[0][0] ^ sides[1][0])[told])]
            row += [f"{spread(spent['exact'])} / {spread(spent['own'])}"]
            for change in (reencoded(90), reencoded(50), halved):
                others = [change(picture) for picture in pictures]
                moved = [
                    np.bitwise_count(pipeline.hashes(others, kind)[0] ^ side[0])[told]
                    for pipeline, side in zip((exact, own), sides, strict=True)
                ]
                row.append(" / ".join(map(bits, moved)))
            cells.append(row)
    print("bits: median, mean, 99%, most; share within 2 and within 4 bits. Two values: exact / DALI's own")
    heads = ["", "images", "exact to own", "images/s", "JPEG of 90", "JPEG of 50", "half as large"]
    print(table(heads, cells))


if __name__ == "__main__":
    main()
