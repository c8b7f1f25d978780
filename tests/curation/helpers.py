"""Outputs read back, and stages that need no weights."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch.batch import ImageBatch
from curator_dali.io.files import Written
from curator_dali.outputs import Manifest, PartWriter, RowSchema
from curator_dali.stages import Filter, GlobalSelector, Quality, Scored, Stage


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All rows of an output, as dicts, in the order of the files."""
    import pyarrow.parquet as pq

    return [row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def read_members(out: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """(tar, key) -> {extension: bytes} of every sample of an output's tars."""
    found: dict[tuple[str, str], dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                file = tar.extractfile(member)
                assert file
                sample = found.setdefault((path.name, key), {})
                assert extension not in sample, f"{member.name} is twice in {path.name}"
                sample[extension] = file.read()
    return found


def content(out: Path) -> dict[str, bytes]:
    """Name -> bytes of every tar and Parquet file of an output."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in (".tar", ".parquet")}


def make_older(out: Path) -> None:
    """Let an output be as earlier versions wrote it, with perceptual hashes as integers of 64 bits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = Manifest.load(str(out))
    for part in manifest.parts():
        (path,) = (out / file.name for file in part.files if file.name.endswith(".parquet"))
        table = pq.read_table(path)
        for name in {"phash", "dhash"} & set(table.column_names):
            values = [None if text is None else int(text, 16) for text in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.uint64()))
        pq.write_table(table, path)
        files = [Written(f.name, (out / f.name).stat().st_size, "") for f in part.files]
        manifest.commit(replace(part, files=tuple(files)))


def cheap_stages() -> list[Stage]:
    """Stages that drop some of the test photographs' crops, each for a reason of its own."""
    return [Filter("width", min=110), Quality(), Filter("sharpness", min=300), Filter("brightness", max=0.6)]


def samples_of(source: Any) -> Iterator[tuple[int, str, Mapping[str, bytes]]]:
    """(index, path, members) of every sample of a source."""
    batch = source.read(np.arange(len(source)), members=True)
    for number, (item, members) in enumerate(zip(batch.objects, batch.members, strict=True)):
        yield number, item.image_path, {extension: bytes(data) for extension, data in members.items()}


@dataclass(frozen=True)
class FirstOfItsLabel(GlobalSelector):
    """Keeps the first sample of every label: a decision that needs all of them, as deduplication is."""

    field: str = "label"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset([self.field])

    @property
    def decides(self) -> Mapping[str, str]:
        return {"first": "int64"}

    def decide(self, scored: Scored) -> tuple[NDArray[np.object_], Mapping[str, NDArray[Any]]]:
        labels, index = scored.column(self.field), scored.column("index")
        assert len(labels) == len(index) == len(scored)
        first = {int(label): int(number) for label, number in zip(labels[::-1], index[::-1], strict=True)}
        firsts = np.array([first[int(label)] for label in labels], np.int64)
        reasons = np.array(
            [None if number == one else f"label as of {one}" for number, one in zip(index, firsts, strict=True)], object
        )
        return reasons, {"first": firsts}

    def kind(self, reason: str) -> str:
        return "label seen before"


@dataclass(frozen=True)
class Size(Stage):
    """Writes how many bytes an image has, as a content hash would read them."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(["encoded"])

    @property
    def writes(self) -> Mapping[str, str]:
        return {"bytes": "int64"}

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        assert batch.encoded is not None
        batch.columns["bytes"] = np.array([len(members["jpg"]) for members in batch.encoded], np.int64)
        return batch


@dataclass(frozen=True)
class Spy(Stage):
    """Tells a function of every batch, and changes nothing."""

    tell: Any = None

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        self.tell(batch)
        return batch


def write_embedded(out: Path, embeddings: NDArray[Any], part_size: int = 8192) -> None:
    """A finished output of images that only their embeddings are known of."""
    run: dict[str, Any] = {"settings": {"stages": []}, "lineage": {}, "origin": None}
    with Manifest.open(str(out), source="made", samples=len(embeddings), **run) as manifest:
        for start in range(0, len(embeddings), part_size):
            some = embeddings[start : start + part_size]
            index = np.arange(start, start + len(some))
            names = [f"image-{number}" for number in index]
            columns = {"image_id": names, "image_path": names, "index": index, "status": ["kept"] * len(some)}
            schema = RowSchema(embedding_dim=embeddings.shape[1])
            with PartWriter(manifest, start, start + len(some), schema, tars=False) as writer:
                writer.write(columns, embeddings=some)
                writer.commit({"dropped": {}, "failed": {}, "seconds": {}})
