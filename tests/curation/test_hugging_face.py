"""Hugging Face's layout: images and all that is known of them in Parquet, read by `datasets` and by us."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.curation import read_fields
from curator_dali.outputs import Manifest, PartWriter, RowFiles, RowSchema
from curator_dali.report.page import CARD
from curator_dali.sources import MemorySource, Source, is_same, open_source
from tests import helpers
from tests.curation.helpers import FirstOfItsLabel, content, read_rows

Load = Callable[..., Any]
OPTIONS: dict[str, Any] = {"device": "cpu", "html": False, "stages": []}
LAYOUT = cd.Write(layout="huggingface")
CLASSES = ["cats", "dogs", "empty cups"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load_dataset` of a folder, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    return lambda *args, **options: datasets.load_dataset(*args, cache_dir=str(tmp_path / "cache"), **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    helpers.write_shards(folder, helpers.photo_samples(photos, 24), per_shard=10)
    return folder


@pytest.fixture(scope="module")
def images(photos: dict[str, NDArray[np.uint8]]) -> list[bytes]:
    return [helpers.encode(crop) for _, crop in helpers.crops(photos, 12, shortest=32, longest=48)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    """Class folders, one of them without images; some images have sidecars, one of which is broken."""
    root = tmp_path_factory.mktemp("classes") / "train"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for number, data in enumerate(images):
        path = root / CLASSES[number % 2] / f"{number:02d}.jpg"
        path.write_bytes(data)
        if number % 2:
            path.with_suffix(".txt").write_text(f"Nr. {number}: grün")
        if number % 4 == 1:
            path.with_suffix(".json").write_text(json.dumps({"score": number / 2, "tags": ["a", None]}))
    (root / "cats" / "02.json").write_text('{"broken')
    return root


def metadata_of(source: Any) -> list[dict[str, Any]]:
    opened = open_source(source)
    assert isinstance(opened, Source)
    return [dict(item.metadata) for item in opened.read(np.arange(len(opened))).objects]


def tables_of(out: Path) -> list[Any]:
    return [pq.read_table(path) for path in sorted(out.glob("*.images.parquet"))]


def fields_of(out: Path) -> list[dict[str, Any]]:
    """The fields of the metadata in an output's files of images."""
    return [fields for table in tables_of(out) for fields in read_fields(table)]


def holds(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether samples have the fields that are expected, among others."""
    return len(found) == len(expected) and all(
        name in one and is_same(one[name], value)
        for one, fields in zip(found, expected, strict=True)
        for name, value in fields.items()
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    files = RowFiles(str(out))
    return [row for batch in files.batches() for row in batch.to_pylist()]


def test_load_dataset_gives_images_labels_and_columns(
    folders: Path, images: list[bytes], tmp_path: Path, load: Load
) -> None:
    out = tmp_path / "out"
    stages = [cd.Quality(), cd.Filter("label_name", equals=["cats", "dogs"])]
    report = cd.curate(
        str(folders), out, **{**OPTIONS, "stages": stages}, write=LAYOUT, part_size=4, batch_size=3, shard_samples=2
    )
    assert report.kept == 12
    names = sorted(path.name for path in out.glob("*.images.parquet"))
    assert names == [f"{n:012d}-{n + 4:012d}-{shard:04d}.images.parquet" for n in (0, 4, 8) for shard in (0, 1)]
    loaded = load(str(out))["train"]
    assert loaded.features["label"].names == CLASSES
    kept = [row for row in rows_of(out) if row["status"] == "kept"]
    source = open_source(str(folders))
    samples = source.read(np.arange(12), members=True)
    assert samples.members is not None
    for row, item, members, about in zip(loaded, samples.objects, samples.members, kept, strict=True):
        assert row["image_id"] == item.image_id == about["image_id"]
        assert np.array_equal(row["image"], Image.open(io.BytesIO(members["jpg"])))
        assert CLASSES[row["label"]] == row["label_name"] == item.metadata["label_name"]
        assert row.get("caption") == item.metadata.get("caption")
        assert row["sharpness"] == about["sharpness"]
        assert (row["width"], row["height"]) == row["image"].size
        assert about["tar"] in names
        assert about["key"] == row["image_id"]
    raw = [value for table in tables_of(out) for value in table["image"].to_pylist()]
    assert raw == [
        {"bytes": bytes(members["jpg"]), "path": f"{item.image_id}.jpg"}
        for item, members in zip(samples.objects, samples.members, strict=True)
    ]
    (broken,) = (row["members"] for row in loaded if row["members"])
    assert broken == [{"extension": "json.broken", "bytes": b'{"broken'}]
    assert len(list(load(str(out), streaming=True)["train"])) == 12
    rows = load(str(out), "rows")["train"]
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in rows_of(out)]
    assert Manifest.load(str(out)).verify(deep=True) == []


def test_we_read_it_back(folders: Path, images: list[bytes], tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    cd.curate(str(folders), out, write=LAYOUT, **OPTIONS)
    source, before = open_source(str(out)), open_source(str(folders))
    assert isinstance(source, cd.ParquetSource)
    found, expected = source.read(np.arange(12)), before.read(np.arange(12))
    assert source.class_names == CLASSES
    for one, two in zip(found.objects, expected.objects, strict=True):
        assert one.image_id == two.image_id
        assert "caption" in two.metadata or "caption" not in one.metadata
    assert [bytes(data) for data in found.images] == [bytes(data) for data in expected.images]
    assert fields_of(out) == metadata_of(str(folders))
    assert holds(metadata_of(str(out)), metadata_of(str(folders)))
    with cd.ImageLoader(str(out), device="cpu", shuffle=3) as loader:
        assert sum(len(batch) for batch in loader) == 12
    report = cd.curate(str(out), again, **OPTIONS)  # as a source of another curation
    assert report.kept == 12
    assert [row["image_id"] for row in read_rows(again)] == [row["image_id"] for row in rows_of(out)]
    cd.curate(str(out), tmp_path / "twice", write=LAYOUT, **OPTIONS)
    assert holds(metadata_of(str(tmp_path / "twice")), metadata_of(str(folders)))


def test_a_part_that_kept_nothing_and_one_that_kept_no_caption(images: list[bytes], tmp_path: Path, load: Load) -> None:
    fields = [{"n": n, **({"caption": "late"} if n == 9 else {})} for n in range(12)]
    stages = [cd.Filter("n", where=is_late)]
    report = cd.curate(
        MemorySource(images, fields), tmp_path / "out", **{**OPTIONS, "stages": stages}, write=LAYOUT, part_size=3
    )
    assert report.kept == 6
    loaded = load(str(tmp_path / "out"))["train"]
    assert loaded["n"] == list(range(6, 12))
    assert loaded["caption"] == [None, None, None, "late", None, None]
    assert fields_of(tmp_path / "out") == fields[6:]


def is_late(n: float) -> bool:
    return n >= 6


def test_nothing_kept(images: list[bytes], tmp_path: Path, load: Load) -> None:
    stages = [cd.Filter("width", min=10_000)]
    cd.curate(MemorySource(images), tmp_path / "out", **{**OPTIONS, "stages": stages}, write=LAYOUT)
    assert len(load(str(tmp_path / "out"))["train"]) == 12  # the rows
    assert not list((tmp_path / "out").glob("*.images.parquet"))
    cd.curate(MemorySource([]), tmp_path / "empty", write=LAYOUT, **OPTIONS)


ZONE = datetime.timezone(datetime.timedelta(hours=2))
COLUMNS: dict[str, Any] = {
    "texts": pa.array(["", "grün 🌲", "x" * 1_000_000, None]),
    "ints": pa.array([1, -(2**62), None, 0], pa.int64()),
    "small": pa.array([1, 2, None, 255], pa.uint8()),
    "floats": pa.array([0.1, float("inf"), -0.0, None]),
    "single": pa.array([0.5, 1.5, None, 2.5], pa.float32()),
    "bools": pa.array([True, False, None, True]),
    "lists": pa.array([[1], [], None, [None, 2]]),
    "nested": pa.array([{"a": [{"b": "x"}], "c": None}, None, {"a": [], "c": 1.5}, {"a": None, "c": None}]),
    "times": pa.array([datetime.datetime(2020, 1, 2, 3, 4, 5, 6, ZONE), None] * 2, pa.timestamp("us", "Europe/Berlin")),
    "dates": pa.array([datetime.date(1900, 1, 1), None] * 2),
    "money": pa.array([decimal.Decimal("1.20"), None] * 2, pa.decimal128(10, 2)),
    "data": pa.array([b"", b"\0\xff", None, b"1"], pa.large_binary()),
    "names": pa.array(["a", "b", "a", None]).dictionary_encode(),
    "maps": pa.array([[("k", 1)], [], None, [("x", None)]], pa.map_(pa.string(), pa.int64())),
    "fixed": pa.array([b"1234", None, b"5678", b"9012"], pa.binary(4)),
    "image": pa.array([1, 2, 3, None]),
    "members": pa.array(["a", None, "b", "c"]),
    "metadata": pa.array(["{}", None, "b", "c"]),
    "width": pa.array([1, None, 3, 4]),
}


def test_every_type_of_a_parquet_source(images: list[bytes], tmp_path: Path, load: Load) -> None:
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table({"key": list("abcd"), "jpg": images[:4], **COLUMNS}), source)
    out = tmp_path / "out"
    opened = cd.ParquetSource(source, image_column="jpg")
    cd.curate(opened, out, write=LAYOUT, **OPTIONS)
    before = metadata_of(opened)
    assert fields_of(out) == before
    assert holds(metadata_of(str(out)), before)
    (table,) = tables_of(out)
    exact = [
        name for name in COLUMNS if name not in ("names", "maps", "fixed", "image", "members", "metadata", "width")
    ]
    for name in (name for name in exact if name in before[0]):
        assert table.schema.field(name).type == COLUMNS[name].type, name
    loaded = load(str(out))["train"]
    for name in ("texts", "ints", "floats", "bools", "lists", "nested", "dates", "money", "names"):
        assert loaded[name] == [row[name] for row in before], name
    assert [image.format for image in loaded["image"]] == ["JPEG"] * 4


TEXT = st.text(max_size=12)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT | st.binary(max_size=8)
    | st.datetimes() | st.dates() | st.decimals(allow_nan=False, places=2)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
NAMES = (
    st.sampled_from(["image", "members", "metadata", "image_id", "caption", "label", "ä b", "sharpness", "tar"]) | TEXT
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=5), min_size=1, max_size=5))
def test_any_metadata_comes_back(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], given: list[dict[str, Any]]
) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    cd.curate(MemorySource(images[: len(given)], given), out, write=LAYOUT, **OPTIONS)
    assert all(map(is_same, fields_of(out), given))
    assert holds(metadata_of(str(out)), given)
    (table,) = tables_of(out)
    assert table["image_id"].to_pylist() == [str(number) for number in range(len(given))]


def test_other_members_are_kept_and_sidecars_are_columns(images: list[bytes], tmp_path: Path) -> None:
    members = {
        "jpg": images[0], "mask.png": b"png", "npy": b"\0" * 9, "json": b'{"a": 1}', "txt": b"text", "cls": b"2",
        "curation.json": b'{"old": 1}',
    }  # fmt: skip
    source = helpers.write_tar(tmp_path / "a.tar", [(f"x/k.{name}", data) for name, data in members.items()])
    cd.curate(str(source), tmp_path / "out", write=LAYOUT, **OPTIONS)
    ((row,),) = (table.to_pylist() for table in tables_of(tmp_path / "out"))
    assert row["image"] == {"bytes": images[0], "path": "x/k.jpg"}
    assert row["members"] == [{"extension": "mask.png", "bytes": b"png"}, {"extension": "npy", "bytes": b"\0" * 9}]
    assert (row["a"], row["caption"], row["label"]) == (1, "text", 2)


def test_the_image_is_the_image_whatever_its_new_extension_is(images: list[bytes], tmp_path: Path) -> None:
    photo, mask = Image.open(io.BytesIO(images[0])), Image.new("L", (120, 80), 7)
    files = {name: io.BytesIO() for name in ("tif", "mask.png", "other.other.jpg")}
    photo.save(files["tif"], "TIFF")
    mask.save(files["mask.png"], "PNG")
    mask.save(files["other.other.jpg"], "JPEG")
    members = [(f"a.{name}", file.getvalue()) for name, file in files.items()]
    source = str(helpers.write_tar(tmp_path / "m.tar", members))
    write = cd.Write(resize=16, layout="huggingface")
    cd.curate(source, tmp_path / "out", write=write, **OPTIONS)
    (table,) = tables_of(tmp_path / "out")
    (row,) = table.to_pylist()
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (row["written_width"], row["written_height"])
    assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["written_sha256"]
    assert row["image"]["path"] == "a.jpg"
    assert [member["extension"] for member in row["members"]] == ["mask.png", "other.other.jpg"]
    again = open_source(tmp_path / "out").read(np.arange(1), members=True)
    assert again.members is not None
    assert {"mask.png", "other.other.jpg"} < again.members[0].keys()
    assert bytes(again.members[0]["mask.png"]) == files["mask.png"].getvalue()


def test_labels_that_a_stage_reads_and_labels_of_no_class(
    folders: Path, images: list[bytes], tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    cd.curate(str(folders), tmp_path / "read", **{**OPTIONS, "stages": [cd.Filter("label", max=9)]}, write=LAYOUT)
    assert open_source(tmp_path / "read").class_names == CLASSES
    loaded = load(str(tmp_path / "read"))["train"]
    assert loaded.features["label"].names == CLASSES
    assert loaded["label"] == [row["label"] for row in metadata_of(str(folders))]
    for name in ("cat", "dog"):
        (tmp_path / "odd" / name).mkdir(parents=True)
        (tmp_path / "odd" / name / f"{name}.jpg").write_bytes(images[0])
    (tmp_path / "odd" / "dog" / "dog.cls").write_text("7")
    cd.curate(str(tmp_path / "odd"), tmp_path / "out", **OPTIONS, write=LAYOUT)
    assert "1 labels are none of the 2 classes, and null in" in caplog.text
    assert load(str(tmp_path / "out"))["train"]["label"] == [0, None]
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [0, 7]


def test_ids_are_those_of_the_samples(images: list[bytes], tmp_path: Path) -> None:
    about = {"a": {"__key__": "same", "key": 1, "image_id": "z"}, "b": {"__key__": "same", "image_id": None}}
    cd.curate(MemorySource(dict(zip("ab", images, strict=False)), about), tmp_path / "out", **OPTIONS, write=LAYOUT)
    opened = open_source(tmp_path / "out")
    assert opened.read_ids(np.arange(2)).to_pylist() == ["a", "b"]
    assert [item.image_id for item in opened.read(np.arange(2)).objects] == ["a", "b"]
    assert metadata_of(tmp_path / "out") == [about["a"], about["b"]]


def test_types_that_datasets_does_not_read(images: list[bytes], tmp_path: Path, load: Load) -> None:
    columns = {
        "view": pa.array(["a", None], pa.string_view()),
        "uuid": pa.array([b"0" * 16, b"1" * 16], pa.uuid()),
        "lists": pa.array([[1], None], pa.list_view(pa.int8())),
    }
    pq.write_table(pa.table({"jpg": images[:2]}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet").join(pa.table({"k": ["a-0", "a-1"], **columns}), on="k")
    cd.curate(source, tmp_path / "out", **OPTIONS, write=LAYOUT)
    assert [image.size for image in load(str(tmp_path / "out"))["train"]["image"]]
    expected = [{name: array[row].as_py() for name, array in columns.items()} for row in range(2)]
    assert metadata_of(tmp_path / "out") == expected


def test_shards_by_bytes_and_row_groups(tmp_path: Path) -> None:
    """Which sample is in which file and row group follows from the samples, however they come."""
    written = {}
    for step in (2500, 700, 1):
        out = tmp_path / f"{step}"
        run: dict[str, Any] = {"settings": {}, "lineage": {}}
        with Manifest.open(str(out), source="made", samples=2500, **run) as manifest:
            schema = RowSchema({"score": "float32"})
            options: dict[str, Any] = {"shard_bytes": 3_000_000, "layout": "huggingface"}
            with PartWriter(manifest, 0, 2500, schema, **options) as writer:
                for start in range(0, 2500, step):
                    index = np.arange(start, min(start + step, 2500))
                    names = [f"{number:04d}" for number in index]
                    rows = {"image_id": names, "image_path": names, "index": index, "status": ["kept"] * len(index)}
                    members = [{"jpg": b"x" * (500 + number)} for number in index.tolist()]
                    rows["score"] = index / 7
                    writer.write(rows, members=members, images=["jpg"] * len(index))
        written[step] = content(out)
        sizes = [path.stat().st_size for path in sorted(out.glob("*.images.parquet"))]
        assert len(sizes) > 1
        assert max(sizes) < 3_200_000
        files = [pq.ParquetFile(path) for path in sorted(out.glob("*.images.parquet"))]
        groups = [[file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] for file in files]
        assert all(max(rows) <= 1000 for rows in groups)
        assert sum(map(sum, groups)) == 2500
    assert written[2500] == written[700] == written[1]


def test_large_images_make_small_row_groups(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = Manifest.open(str(out), source="made", samples=5, settings={})
    with manifest, PartWriter(manifest, 0, 5, RowSchema(), layout="huggingface") as writer:
        rows = {name: [f"{n}" for n in range(5)] for name in ("image_id", "image_path")}
        members = [{"jpg": bytes(40_000_000)} for _ in range(5)]
        writer.write({**rows, "index": np.arange(5), "status": ["kept"] * 5}, members=members, images=["jpg"] * 5)
    (path,) = out.glob("*.images.parquet")
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 2, 1]


@pytest.mark.parametrize("last", [[], [FirstOfItsLabel("number")]])
@pytest.mark.parametrize("resize", [None, 48])
def test_interrupted_decided_twice_and_anew_it_is_the_same(
    shards: Path, tmp_path: Path, last: list[cd.Stage], resize: int | None
) -> None:
    write = cd.Write(resize=resize, layout="huggingface")
    options = {**OPTIONS, "part_size": 5, "batch_size": 2, "write": write, "shard_samples": 3}
    stages = [cd.Filter("width", min=120)]
    cd.curate(str(shards), tmp_path / "whole", **{**options, "stages": [*stages, *last]})
    seen = [0]

    def interrupt(count: int) -> None:
        seen[0] += count
        if seen[0] > (36 if last else 12):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cd.curate(str(shards), tmp_path / "out", **{**options, "stages": [*stages, *last]}, progress=interrupt)
    cd.curate(str(shards), tmp_path / "out", **{**options, "stages": [*stages, *last]})
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert Manifest.load(str(tmp_path / "out")).verify(deep=True) == []
    expected = [table.to_pylist() for table in tables_of(tmp_path / "whole")]
    for name, metadata in (("bare", None), ("kept", True)):  # an output with tars, without and with fields
        first, new = tmp_path / name, tmp_path / f"{name} anew"
        cd.curate(str(shards), first, device="cpu", html=False, stages=[cd.Filter("width", min=1)], metadata=metadata,
                  part_size=5)  # fmt: skip
        cd.rethreshold(first, new, stages=stages, write=write, device="cpu", html=False, shard_samples=3)
        found = [table.to_pylist() for table in tables_of(new)]
        if not last:
            assert found == expected
        assert [row["image"] for table in found for row in table] == [row["image"] for t in expected for row in t]
        assert fields_of(new) == fields_of(tmp_path / "whole")


@pytest.mark.slow
def test_ray_writes_the_same(folders: Path, tmp_path: Path) -> None:
    for executor in ("local", "ray"):
        cd.curate(str(folders), tmp_path / executor, write=LAYOUT, part_size=8, executor=executor, **OPTIONS)  # type: ignore[arg-type]
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_the_rows_of_an_output_are_told_from_its_images(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stages: list[Any] = [cd.Embed("efficientnet-lite0")]
    cd.curate(str(shards), out, **{**OPTIONS, "stages": stages}, write=LAYOUT, embeddings=True, part_size=9)
    files = RowFiles(str(out))
    assert len(files) == 24
    assert not any(file.endswith(".images.parquet") for file in files.files)
    report = cd.Report.load(out)
    assert report.kept == 24
    assert len(report.kept().load(24)) == 24
    assert len(cd.search(out, id="000003", k=3)) == 3
    cd.write_report(out, device="cpu")
    for path in (out / "_manifest").rglob("*"):
        path.unlink() if path.is_file() else None
    assert len(RowFiles(str(out))) == 24  # by the names alone
    assert len(open_source(str(out))) == 24
    with pytest.raises(cd.OutputError, match=r"run.json is gone"):
        cd.curate(str(shards), out, write=LAYOUT, **OPTIONS)


def test_the_card(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cd.curate(str(shards), out, write=LAYOUT, **OPTIONS)
    card = (out / CARD).read_text()
    assert 'path: "*.images.parquet"' in card
    (out / CARD).unlink()
    cd.curate(str(shards), out, write=LAYOUT, **OPTIONS)
    assert (out / CARD).read_text() == card
    (out / CARD).write_text("mine")
    cd.curate(str(shards), out, write=LAYOUT, **OPTIONS)
    assert (out / CARD).read_text() == "mine"


def test_a_remote_output_and_one_where_a_glob_looks(shards: Path, tmp_path: Path) -> None:
    import fsspec

    out = f"memory://hugging-{tmp_path.name}/out"
    cd.curate(str(shards), out, write=LAYOUT, part_size=10, **OPTIONS)
    cd.curate(str(shards), tmp_path / "here", write=LAYOUT, part_size=10, **OPTIONS)
    for name, data in content(tmp_path / "here").items():
        with fsspec.open(f"{out}/{name}") as file:
            assert file.read() == data
    assert len(open_source(out)) == 24
    with pytest.raises(cd.OutputError, match="looks for the data set's files"):
        cd.curate(str(tmp_path / "here" / "*.images.parquet"), tmp_path / "here", write=LAYOUT, **OPTIONS)


def test_on_the_command_line(shards: Path, tmp_path: Path) -> None:
    flags = ["--layout", "huggingface", "--resize", "48", "--device", "cpu", "--no-html"]
    assert main(["curate", str(shards), str(tmp_path / "out"), *flags]) == 0
    cd.curate(str(shards), tmp_path / "here", write=cd.Write(resize=48, layout="huggingface"), **OPTIONS)
    assert content(tmp_path / "out") == content(tmp_path / "here")
    assert main(["rethreshold", str(tmp_path / "out"), str(tmp_path / "new"), "--min", "width=120", *flags]) == 0
    assert 0 < sum(map(len, tables_of(tmp_path / "new"))) < 24


def test_columns_that_the_layout_makes(images: list[bytes], tmp_path: Path) -> None:
    source = MemorySource(images[:2], [{"image": 1}, {"image": 2}])
    stages = [cd.Filter("image", min=1)]
    with pytest.raises(cd.StageError, match="write= makes the column 'image', which a stage makes too"):
        cd.curate(source, tmp_path / "out", **{**OPTIONS, "stages": stages}, write=LAYOUT)
    cd.curate(source, tmp_path / "out", write=LAYOUT, metadata=["image"], **OPTIONS)
    assert fields_of(tmp_path / "out") == [{"image": 1}, {"image": 2}]
