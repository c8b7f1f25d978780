"""What a decoder does with each kind of damaged and rare file: `section` is the table, file kind x device.

    python -m tests.gpu_check.hostile cuda:0 '["jpeg cmyk", ...]'

is the child process that decodes some of them and prints a line of JSON before and after each, so that a process that
dies names its killer, and the parent goes on behind it.
"""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests import formats, helpers
from tests.gpu_check.settings import ROOT, Settings

_FORCED = ("cut at", "without its end", "scan", "12 bit")
"""Parts of the names of files that are also sent past the gate: DALI parses their headers, and fails behind."""


@cache
def cases() -> dict[str, bytes]:
    """Name -> file."""
    photo = Image.fromarray(helpers.load_photos()["chelsea"])
    jpeg = helpers.encode(photo)
    scan = jpeg.index(b"\xff\xda") + 14
    rnd = random.Random(0)
    third = (len(jpeg) - scan) // 3
    files = {f"jpeg cut at {share}%": jpeg[: scan + (len(jpeg) - scan) * share // 100] for share in (10, 50, 95)}
    files |= {f"{name}, end marker behind": data + b"\xff\xd9" for name, data in list(files.items())}
    files["jpeg with noise in its scan"] = jpeg[: scan + third] + rnd.randbytes(third) + jpeg[scan + 2 * third :]
    files["jpeg with zeros in its scan"] = jpeg[: scan + third] + bytes(third) + jpeg[scan + 2 * third :]
    for bits in (12, 16):
        odd = bytearray(jpeg)
        odd[jpeg.index(b"\xff\xc0") + 4] = bits
        files[f"jpeg that says {bits} bits"] = bytes(odd)
    files |= {f"progressive {name}": formats.save(photo, "JPEG", progressive=True)[:-n] for name, n in _TAILS.items()}
    rare = formats.good_files(photo)
    files |= {name: data for name, data in rare.items() if name.startswith(("jpeg", "png", "webp", "bmp"))}
    return files | {name: data for name, (data, _) in formats.bad_files(photo).items()}


_TAILS = {"jpeg cut at 95%": 2000, "jpeg without its end": 2}


def decode(name: str, device: str) -> dict[str, Any]:
    """One case among seven whole images.

    Returns:
        `verdict`: "decoded" or the loader's reason; `mean` and `max` difference to Pillow where it decoded; `past the
        gate`: what DALI said of it where the gate was told to let it through; `others`: how many whole images the
        batch, and the batch behind it, lost (must be 0).
    """
    from curator_dali import arrays
    from curator_dali.decoding.decoder import Decoder, gate
    from curator_dali.sources import MemorySource

    whole = formats.save(Image.fromarray(helpers.load_photos()["chelsea"]).resize((61, 47)), "JPEG")
    files = {f"whole {i}": whole for i in range(7)} | {name: cases()[name]}
    source = MemorySource(files)
    found: dict[str, Any] = {"name": name}
    decoder = Decoder(batch_size=8, device=device, num_threads=2)
    try:
        for forced in [False, True] if name.startswith("jpeg") and any(part in name for part in _FORCED) else [False]:
            gated = gate(source.read(np.arange(8)))
            if forced:
                gated.dali, gated.pillow, gated.errors = list(range(8)), [], {}
            decoder.submit(gated)
            decoder.submit(gate(source.read(np.arange(7))))
            decoded, after = decoder.collect(), decoder.collect()
            verdict = decoded.errors.get(7, "decoded")
            found["past the gate" if forced else "verdict"] = verdict
            found["others"] = found.get("others", 0) + 14 - int((decoded.rows < 7).sum()) - len(after.rows)
            if verdict == "decoded":
                found |= _compared(name, arrays.to_host(decoded.outputs[0])[-1], " past the gate" if forced else "")
    finally:
        decoder.close()
    return found


def _compared(name: str, pixels: Any, suffix: str) -> dict[str, Any]:
    from PIL import ImageOps

    try:
        with Image.open(io.BytesIO(cases()[name])) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    except Exception as error:  # then there is nothing to compare with, which is worth a line
        return {f"pillow{suffix}": f"refuses: {error}"[:100]}
    if expected.shape != pixels.shape:
        return {f"pillow{suffix}": f"{expected.shape}, not {pixels.shape}"}
    off = np.abs(pixels.astype(int) - expected)
    return {f"max{suffix}": int(off.max()), f"mean{suffix}": round(float(off.mean()), 3)}


def findings(device: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> what `decode` found, or {"verdict": "the process died: ..."}."""
    found: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        command = [sys.executable, "-m", "tests.gpu_check.hostile", device, json.dumps(left)]
        try:
            limit = 60 + 5 * len(left)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
            output, end, stderr = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            output, end, stderr = (error.stdout or b"").decode(), None, ""
        begun = ""
        for line in output.splitlines():
            if line.startswith('{"name"'):
                answer = json.loads(line)
                found[answer.pop("name")] = answer
            elif line.startswith('"'):
                begun = json.loads(line)
        if begun not in found:
            killer = begun or left[0]
            how = "hung" if end is None else signal.Signals(-end).name if end < 0 else (stderr.strip() or "?")[-200:]
            found[killer] = {"verdict": f"the process died: {how}", "died": True}
        left = [name for name in left if name not in found]
    return found


def section(settings: Settings) -> dict[str, Any]:
    """Every case on the CPU and on the device, and where they differ."""
    names = list(cases())
    here = findings("cpu", names)
    there = here if settings.device == "cpu" else findings(settings.device, names)
    rows = {name: {"cpu": here[name], "device": there[name]} for name in names}
    alike = Counter(_kept(row["cpu"]) == _kept(row["device"]) for row in rows.values())
    return {
        "cases": rows,
        "same verdict": alike[True],
        "other verdict": [name for name, row in rows.items() if _kept(row["cpu"]) != _kept(row["device"])],
        "failures": [
            f"{name} on {where}: {what['verdict'] if what.get('died') else 'whole images were lost'}"
            for name, row in rows.items()
            for where, what in row.items()
            if what.get("died") or what.get("others")
        ],
    }


def _kept(found: dict[str, Any]) -> bool:
    return bool(found["verdict"] == "decoded")


def main() -> None:
    device, names = sys.argv[1], json.loads(sys.argv[2])
    for name in names:
        print(json.dumps(name), flush=True)
        print(json.dumps(decode(name, device)), flush=True)


if __name__ == "__main__":
    main()
