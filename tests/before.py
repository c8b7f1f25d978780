"""Files as they were written once, for later code to read: `python -m tests.before` writes all of them anew.

`tests/data/before.zip` holds:

    photos/, shards/, rows.parquet   a data set of twelve crops, three times; the tars have their indexes beside them
    pickles/                         `make_objects`, a pickle each
    outputs/                         of `curate`: one finished, others interrupted
    facts.json                       what all of these must say, and which commit of the package wrote them

No file knows the folder that it was written in: `PLACE` stands for it, and `unpack_before` puts another one there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali import models, transforms
from curator_dali.curation.ray_executor import RayExecutor
from curator_dali.torch import Padded, TargetError, TorchImageLoader
from curator_dali.transforms import Resize
from tests.helpers import crops, encode, load_photos, write_shards

BEFORE = Path(__file__).parent / "data" / "before.zip"
LENGTH = 160  # a folder's path is filled up to this with slashes, so that no length in a pickle changes
PLACE = b"/" * LENGTH
WRITTEN = 1_700_000_000  # modification time of all files in seconds, which the indexes of the tars record
PYTHON = ".".join(map(str, sys.version_info[:2]))
SAMPLES, PART = 12, 4
FLAWED = {5: 2, 9: None}  # sample -> the sample whose bytes it has, or None where it is no image
NAMES = ("cats", "dogs")


@dataclass(frozen=True)
class Thumbnail(cd.Stage):
    """A user's own stage: embeds an image as its own 2 x 2 thumbnail."""

    @property
    def writes(self) -> Mapping[str, str]:
        return {"embeddings": "float32"}

    @property
    def views(self) -> tuple[tuple[transforms.Transform, ...], ...]:
        return ((Resize((2, 2), "linear"),),)

    @property
    def dim(self) -> int:
        return 12

    @property
    def lineage(self) -> dict[str, Any]:
        return {"model": "thumbnail"}

    def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
        pixels = np.asarray(batch.to_torch(self.views[0]).cpu()).reshape(len(batch), -1).astype(np.float32) + 1
        batch.embeddings = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        return batch


@dataclass(frozen=True)
class Redness(cd.Stage):
    """A user's own stage: writes the red share of an image."""

    scale: float = 1.0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(["embeddings"])

    @property
    def writes(self) -> Mapping[str, str]:
        return {"redness": "float32"}

    def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
        embeddings = np.asarray(batch.embeddings)
        shares = embeddings[:, 0::3].sum(axis=1) / embeddings.sum(axis=1)
        batch.columns["redness"] = (self.scale * shares).astype(np.float32)
        return batch


def is_wide(widths: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(widths > 40)


SCORED: list[cd.Stage] = [Thumbnail(), cd.Quality(), cd.Filter("brightness", min=0.25)]
DECIDED: list[cd.Stage] = [*SCORED, cd.Deduplicate(near=4, similarity=0.9999)]
OUTPUTS: dict[str, dict[str, Any]] = {
    "finished": {"stages": DECIDED, "embeddings": True},
    "default": {"stages": [cd.Quality(), cd.Filter("brightness", min=0.25)]},
    "global": {"stages": [cd.Quality(), cd.Filter("brightness", min=0.25), cd.Deduplicate(near=4)], "tars": False},
    "own": {"stages": [Thumbnail(), Redness(2.0), cd.Filter("redness", min=0.6)]},
    "embeddings": {"stages": [Thumbnail()], "embeddings": True, "tars": False},
    "function": {"stages": [cd.Filter("width", where=is_wide)], "tars": False},
}
INTERRUPTED = [name for name in OUTPUTS if name != "finished"]
LOADERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shuffled": {"shuffle": cd.Shuffle(7)},
    "window": {"shuffle": cd.Shuffle(3, window=4)},
    "sharded": {"shuffle": 5, "shard": cd.Shard(1, 2)},
    "mixed": {"shuffle": 1},
    "bucketed": {"shuffle": 2, "buckets": cd.Buckets(((24, 32), (32, 24)))},
}


def curate(root: Path, name: str, out: Path, **options: Any) -> cd.Report:
    """Make, or finish, an output."""
    return cd.curate(root / "shards", out, **settings_of(name), **options)


def settings_of(name: str) -> dict[str, Any]:
    return {**OUTPUTS[name], "device": "cpu", "batch_size": PART, "part_size": PART, "prefetch": 1, "html": False}


def rows_of(out: Path) -> list[list[Any]]:
    """(index, id, status, stage) of every sample of an output."""
    import pyarrow.parquet as pq

    names = ["index", "image_id", "status", "stage"]
    return [
        [row[name] for name in names]
        for file in sorted(out.glob("*.parquet"))
        for row in pq.read_table(file, columns=names).to_pylist()
    ]


def open_beside(root: Path) -> cd.TarSource:
    """Open the tars with the indexes that lie beside them."""
    return cd.TarSource(sorted((root / "shards").glob("*.tar")), index="beside")


def make_sources(root: Path) -> dict[str, cd.Source]:
    photos = sorted((root / "photos").rglob("*.jpg"))
    tar = cd.TarSource(sorted((root / "shards").glob("*.tar")), name="tars", index="none")
    memory = cd.MemorySource({path.stem: path.read_bytes() for path in photos}, {"01": {"label": 1}})
    return {
        "folder": cd.FolderSource(root / "photos"),
        "tar": tar,
        "parquet": cd.ParquetSource(root / "rows.parquet"),
        "memory": memory,
        "subset": cd.Subset(tar, [3, 1, 10]),
        "mixture": cd.Mixture({"tars": tar, "memory": memory}, {"tars": 3, "memory": 1}),
    }


def make_loader(root: Path, name: str) -> cd.ImageLoader:
    source = make_sources(root)["mixture"] if name == "mixed" else root / "shards"
    return cd.ImageLoader(source, batch_size=2, device="cpu", prefetch=1, **LOADERS[name])


def make_torch_loader(root: Path) -> TorchImageLoader:
    options = {"batch_size": 2, "device": "cpu", "prefetch": 1, "shuffle": 4}
    return TorchImageLoader(root / "shards", target="label", as_dict=True, transforms=transforms.clip(8), **options)


def take_ids(batches: Iterator[Any], count: int | None = None) -> list[list[str]]:
    """Ids of the next batches, of all where no count is given."""
    found: list[list[str]] = []
    while count is None or len(found) < count:
        batch = next(batches, None)
        if batch is None:
            break
        found.append(list(batch["ids"]) if isinstance(batch, dict) else [item.image_id for item in batch])
    return found


def make_batches(root: Path) -> tuple[cd.ImageBatch, cd.ImageBatch]:
    """The same images twice: untouched since they were loaded, and with all that a batch can have."""
    options = {"transforms": Resize((6, 8)), "views": [transforms.clip(4)], "keep_encoded": True, "prefetch": 1}
    with cd.ImageLoader(root / "shards", batch_size=3, device="cpu", **options) as loader:
        loaded = next(iter(loader))
        full = loaded.copy()
        full.embeddings = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
        full.columns.update({"redness": np.array([0.5, 0.25, 1.0], np.float32), "tag": ["a", "b", None]})
        return loaded, full.to_host()


def make_objects(root: Path) -> dict[str, Any]:
    """All that a user may have pickled, by name."""
    finished = root / "outputs" / "finished"
    sources = make_sources(root)
    loaded, full = make_batches(root)
    with make_loader(root, "plain") as loader:
        list(loader)
        errors, stats = loader.errors, loader.stats
    under_way, torch_loader = make_loader(root, "shuffled"), make_torch_loader(root)
    take_ids(iter(under_way), 2)
    take_ids(iter(torch_loader), 2)
    found = cd.search(finished, id="000003", k=3)
    report = cd.Report.load(finished)
    random = [
        transforms.RandomResizedCrop(8), transforms.HorizontalFlip(), transforms.ColorJitter(0.1, 0.1, 0.1, 0.1),
        transforms.RandomGrayscale(), transforms.GaussianBlur(3), transforms.Rotate(10), transforms.RandomErasing(),
        transforms.AutoAugment(), transforms.RandAugment(), transforms.TrivialAugmentWide(), transforms.MixUp(10),
        transforms.CutMix(10),
    ]  # fmt: skip
    fixed = [
        Resize(8), transforms.CenterCrop(8), transforms.Pad(8), transforms.Grey(), transforms.Normalize(),
        transforms.ToBucket(cd.Buckets(((24, 32), (32, 24)))),
    ]  # fmt: skip
    raised = [
        kind("why")
        for kind in (
            cd.CuratorDaliError, cd.OutputError, cd.PassEndedError, cd.SourceError, cd.StageError, cd.TooManyErrors,
            TargetError, models.NoTextTowerError, models.WeightsError, models.WeightsNotFoundError,
        )
    ]  # fmt: skip
    return {
        "batch": full,
        "batch_loaded": loaded,
        "images": list(full),
        "image_error": cd.ImageError("a", "folder/a.jpg", "folder", "the image has no bytes", 3, True),
        "errors": errors,
        "exceptions": raised,
        **{f"source_{name}": source for name, source in sources.items()},
        **{f"encoded_{name}": source.read(np.arange(3)) for name, source in sources.items()},
        "transforms_random": random,
        "transforms_fixed": fixed,
        "presets": [
            transforms.clip(), transforms.clip(normalize=True), transforms.imagenet_train(), transforms.imagenet_eval(),
        ],
        "stages": [
            cd.Embed("efficientnet-lite0"), cd.Aesthetic(), cd.NSFW(), cd.CLIPScore(), *DECIDED,
            cd.ZeroShotTags(["cat", "dog"]), cd.Filter("width", where=is_wide), Redness(2.0),
        ],
        "orders": [cd.Shuffle(1, window=8), cd.Shard(1, 2), cd.Buckets.from_ratios([1, 2], pixels=1000)],
        "position": cd.Position(1, 2, 3),
        "stats": cd.LoaderStats(**dict.fromkeys(vars(stats), 3)),
        "report": report,
        "selection": report.kept(),
        "found": found,
        "groups": cd.duplicate_groups(finished),
        "leaks": [cd.Leak("a", "folder/a.jpg", "b", "same bytes")],
        "sheet": report.dropped.show(),
        "index": cd.open_index(finished),
        "curation": cd.Curation(root / "shards", root / "new", **settings_of("default")),
        "executor": RayExecutor(num_workers=2),
        "padded": Padded(torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2)),
        "loader": under_way,
        "loader_mixed": make_loader(root, "mixed"),
        "loader_bucketed": make_loader(root, "bucketed"),
        "loader_torch": torch_loader,
        "sampler": make_torch_loader(root).batch_sampler,
    }  # fmt: skip


def tell(value: Any) -> Any:
    """What a value says, as JSON: with names of its classes, and digests of what is long."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), list(value.shape), hashlib.sha1(np.ascontiguousarray(value)).hexdigest()[:8]]
    if isinstance(value, (bytes, memoryview)):
        return [kind, len(value), hashlib.sha1(value).hexdigest()[:8]]
    if isinstance(value, cd.Source):
        return [kind, value.name, len(value), value.fingerprint, tell(value.read(np.arange(len(value)), members=True))]
    if isinstance(value, (cd.ImageLoader, TorchImageLoader)):
        with value:
            return [kind, value.state_dict(), take_ids(iter(value))]
    if isinstance(value, cd.Report):
        return [kind, value.as_dict(), type(value.kept).__name__, type(value.dropped).__name__]
    if isinstance(value, cd.Curation):
        return [kind, value.settings, list(value.plan.labels), value.work]
    if is_dataclass(value):  # also one that is called, as a stage
        return [kind, {f.name: tell(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}]
    if isinstance(value, Exception):
        return [kind, str(value)]
    if callable(value):
        return [kind, value.__qualname__]
    if isinstance(value, Mapping):
        return [[tell(key), tell(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [kind, *map(tell, value)]
    return value if isinstance(value, (str, bool, int, float)) or value is None else kind


def tell_at(root: Path | str, value: Any) -> Any:
    """What a value says, with a word in the place of its folder."""
    return json.loads(json.dumps(tell(value)).replace(str(root), "FOLDER"))


def fill_up(folder: Path) -> str:
    """A folder's path, filled up with slashes to the length that all pickled paths have."""
    assert len(str(folder)) <= LENGTH, f"{folder} is longer than {LENGTH} characters"
    return str(folder).ljust(LENGTH, "/")


def replace_in(folder: Path, old: bytes, new: bytes) -> None:
    """Replace a text in all files below a folder by one of the same length; their times become `WRITTEN`."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(old, new))
            os.utime(path, (WRITTEN, WRITTEN))


def unpack_before(folder: Path) -> Path:
    """Unpack everything where it has never been."""
    shutil.unpack_archive(BEFORE, folder)
    replace_in(folder, PLACE, fill_up(folder).encode())
    return folder


def write_data(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [(label % 2, encode(pixels)) for label, pixels in crops(load_photos(), SAMPLES, shortest=32, longest=48)]
    for number, origin in FLAWED.items():
        images[number] = images[origin] if origin is not None else (0, b"<html>404</html>")
    samples = [
        (f"{number:06d}", {"jpg": data, "json": json.dumps({"number": number}).encode(), "cls": str(label).encode()})
        for number, (label, data) in enumerate(images)
    ]
    write_shards(root / "shards", samples, per_shard=SAMPLES // 2)
    for number, (label, data) in enumerate(images[:PART]):
        path = root / "photos" / NAMES[label] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    rows = {"image": [data for _, data in images[:PART]], "caption": [f"number {number}" for number in range(PART)]}
    pq.write_table(pa.table(rows), root / "rows.parquet")
    for path in root.rglob("*"):
        os.utime(path, (WRITTEN, WRITTEN))
    source = open_beside(root)
    with cd.ImageLoader(source, device="cpu") as loader:
        list(loader)
    source.close()  # writes down the headers that the loader has seen


def write_states(root: Path) -> dict[str, Any]:
    """Of each loader, its state in the middle of an epoch, and the ids that follow in this epoch and in the next."""
    makers: dict[str, Callable[[], Any]] = {name: lambda name=name: make_loader(root, name) for name in LOADERS}
    found = {}
    for name, make in {**makers, "torch": lambda: make_torch_loader(root)}.items():
        with make() as loader:
            loader.set_epoch(1)
            batches = iter(loader)
            take_ids(batches, 2)
            state = json.loads(json.dumps(loader.state_dict()))
            rest = take_ids(batches)
            loader.set_epoch(2)
            found[name] = {"state": state, "rest": rest, "next": take_ids(iter(loader))}
    return found


def write_outputs(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in OUTPUTS:
        out, whole = root / "outputs" / name, root / "whole" / name
        curate(root, name, whole)
        found[name] = {"rows": rows_of(whole)}
        if name == "finished":
            shutil.copytree(whole, out)
            cd.write_index(out)
            continue
        done = 0

        def stop(count: int) -> None:
            nonlocal done
            done += count
            if done > PART:
                raise KeyboardInterrupt

        try:
            curate(root, name, out, progress=stop)
        except KeyboardInterrupt:
            with cd.Curation(root / "shards", out, **settings_of(name)) as curation:
                found[name]["done"], total = curation.work
            assert 0 < found[name]["done"] < total
    shutil.rmtree(root / "whole")
    return found


def main() -> None:
    logging.disable(logging.WARNING)
    git = ["git", "-C", str(BEFORE.parent)]
    assert not subprocess.check_output([*git, "status", "--porcelain", "--", ":/curator_dali"]), "commit the package"
    commit = subprocess.check_output([*git, "log", "-1", "--format=%h", "--", ":/curator_dali"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CURATOR_DALI_CACHE"] = f"{folder}/cache"
        root = Path(f"{folder}/data/".ljust(LENGTH, "x"))
        root.mkdir(parents=True)
        write_data(root)
        facts: dict[str, Any] = {"commit": commit, "python": PYTHON, "objects": {}}
        facts |= {"states": write_states(root), "outputs": write_outputs(root)}
        objects = make_objects(root)
        (root / "pickles").mkdir()
        for name, value in objects.items():
            data = pickle.dumps(value, protocol=4)
            (root / "pickles" / f"{name}.pickle").write_bytes(data)
            facts["objects"][name] = tell_at(root, pickle.loads(data))
        (root / "facts.json").write_text(json.dumps(facts))
        replace_in(root, str(root).encode(), PLACE)
        shutil.make_archive(str(BEFORE.with_suffix("")), "zip", root)


if __name__ == "__main__":
    # The classes here must be pickled as those of this module, which a script is not.
    from tests import before

    before.main()
