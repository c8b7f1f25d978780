"""A curation with a size filter that drops half of the images, against the same one without it. Not a test.

    python -m tests.benchmarks.screening              # 800 photographs of 1000x700 and 1001x700, 5 rounds

The filter comes first, so that dropped images are not decoded. `known` rows have headers in the index, so that
dropped images are not read either. Rows run in this process, all in turn, round after round, with two threads.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import curator_dali as cd
from tests.benchmarks import corpus
from tests.helpers import write_shards


def build(folder: Path, images: int) -> None:
    """Two tars of photographs, every other one a pixel wider."""
    rng = random.Random(5)
    photos = [path for path, width, height in corpus.photographs(None) if width >= 1001 and height >= 700]
    samples = [
        (f"{n:06}", {"jpg": corpus.make(corpus.Crop(rng.choice(photos), (1000 + n % 2, 700), rng.getrandbits(48)))})
        for n in range(images)
    ]
    write_shards(folder, samples, per_shard=-(-images // 2))


def measure(folder: Path, stages: list[cd.Stage], known: bool) -> float:
    """Images a second of one run."""
    with tempfile.TemporaryDirectory() as out:
        for kept in folder.glob("*.tar.*"):
            if not known and kept.name.endswith(".headers"):
                kept.unlink()
        source = cd.open_source(folder, index="beside")
        began = time.perf_counter()
        cd.curate(source, out, stages=stages, tars=False, html=False, num_threads=2, device="cpu")
        seconds = time.perf_counter() - began
        source.close()
        return len(source) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    half = cd.Filter("width", min=1001)
    rows: dict[str, Callable[[Path], float]] = {
        "Quality": lambda folder: measure(folder, [cd.Quality()], known=True),
        "Filter, Quality": lambda folder: measure(folder, [half, cd.Quality()], known=False),
        "Filter, Quality, known": lambda folder: measure(folder, [half, cd.Quality()], known=True),
        "decoding alone": lambda folder: measure(folder, [], known=True),
        "Filter": lambda folder: measure(folder, [half], known=False),
        "Filter, known": lambda folder: measure(folder, [half], known=True),
    }
    against = {"Filter, Quality": "Quality", "Filter, Quality, known": "Quality"}
    against |= {"Filter": "decoding alone", "Filter, known": "decoding alone"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, arguments.images)
        rates: list[dict[str, float]] = []
        for number in range(arguments.rounds + 1):
            found = {row: run(folder) for row, run in rows.items()}
            if number:  # the first one warms up
                rates.append(found)
    for row in rows:
        line = f"{row:24} {statistics.median(found[row] for found in rates):8.0f} images/s"
        if row in against:
            ratios = [found[row] / found[against[row]] for found in rates]
            line += f"   {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) {against[row]}"
        print(line)


if __name__ == "__main__":
    main()
