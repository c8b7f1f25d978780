"""Decode damaged files of every format, thousands a minute, in this process: it must survive, and so must good images.

    python -m tests.fuzz --count 100000 --seed 1

In every batch of 32 one image is whole; it must come out right whatever the others are. Prints a JSON summary.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter

import numpy as np
from PIL import Image

from curator_dali.decoding import pillow
from curator_dali.decoding.decoder import Decoder, gate
from curator_dali.sources import MemorySource
from tests import formats, helpers

BATCH = 32


def mutate(data: bytes, rnd: random.Random) -> bytes:
    """One of the ways in which files break."""
    out = bytearray(data)
    kind = rnd.randrange(6)
    at = rnd.randrange(len(out))
    if kind == 0:
        del out[at:]
    elif kind == 1:
        for _ in range(rnd.randint(1, 8)):
            out[rnd.randrange(len(out))] = rnd.randrange(256)
    elif kind == 2:  # headers are where parsers fail
        out[rnd.randrange(min(64, len(out)))] = rnd.randrange(256)
    elif kind == 3:
        out[at : at + rnd.randint(1, 64)] = rnd.randbytes(rnd.randint(0, 64))
    elif kind == 4:
        out[at : at + rnd.randint(1, 200)] = bytes(rnd.randint(1, 200))
    else:
        out[at:at] = rnd.randbytes(rnd.randint(1, 32))
    return bytes(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", help="only files whose name contains one of these")
    args = parser.parse_args()
    rnd = random.Random(args.seed)
    photo = Image.fromarray(helpers.load_photos()["chelsea"])
    files = formats.good_files(photo)
    seeds = [data for name, data in files.items() if not args.formats or any(part in name for part in args.formats)]
    whole = files["jpeg 4:2:0"]
    expected = pillow.decode(np.frombuffer(whole, np.uint8))
    decoder = Decoder(batch_size=BATCH, device="cpu", num_threads=2, max_pixels=4_000_000)
    counts: Counter[str] = Counter()
    for _ in range(0, args.count, BATCH):
        images = [mutate(rnd.choice(seeds), rnd) for _ in range(BATCH - 1)]
        at = rnd.randrange(BATCH)
        images.insert(at, whole)
        decoder.submit(gate(MemorySource(images).read(np.arange(BATCH)), decoder.max_pixels))
        decoded = decoder.collect()
        if sorted([*decoded.rows.tolist(), *decoded.errors]) != list(range(BATCH)):
            raise SystemExit("rows were lost or counted twice")
        if not np.array_equal(decoded.outputs[0][decoded.rows.tolist().index(at)], expected):
            raise SystemExit("the whole image came out wrong")
        counts["batches"] += 1
        counts["images"] += BATCH
        counts["refused"] += len(decoded.errors)
        counts["by Pillow"] += decoded.fallback
        counts["refused in a decoder"] += sum(
            reason.startswith("cannot be decoded") for reason in decoded.errors.values()
        )
    decoder.close()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
