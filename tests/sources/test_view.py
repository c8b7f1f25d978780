"""`View`: what a curation kept, read from the original shards, wherever these lie by now."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

import curator_dali as cd
from curator_dali.index import KeyList
from curator_dali.sources import FolderSource, View, reopen
from curator_dali.sources.base import ShardRecord
from curator_dali.sources.recorded import match_shards
from curator_dali.torch import TorchImageLoader
from tests.curation.helpers import cheap_stages, read_members, read_rows
from tests.helpers import encode, photo_samples, write_shards
from tests.sources.web_server import Server

STAGES = cheap_stages()


def run(source: Any, out: Path | str, **options: Any) -> Any:
    return cd.curate(source, out, **{"stages": STAGES, "device": "cpu", "part_size": 16, "html": False, **options})


@pytest.fixture(scope="module")
def out(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output without tars, of the three tars, in four parts. Not to be written to."""
    folder = tmp_path_factory.mktemp("curated") / "kept"
    run([*map(str, shards)], folder, tars=False)
    return folder


@pytest.fixture(scope="module")
def tars(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with tars."""
    folder = tmp_path_factory.mktemp("curated") / "tars"
    run([*map(str, shards)], folder)
    return folder


@pytest.fixture
def data(shards: list[Path], tmp_path: Path) -> Path:
    """A copy of the three tars, and an output `kept` beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in shards:
        shutil.copy(shard, folder)
    run(str(folder), tmp_path / "kept", tars=False)
    return folder


def rows_of(out: Path, status: str = "kept") -> list[dict[str, Any]]:
    return [row for row in read_rows(out) if row["status"] == status]


def ids_of(source: cd.Source) -> list[str]:
    return [str(text) for text in source.read_ids(np.arange(len(source))).to_pylist()]


def objects_of(source: cd.Source) -> list[cd.ImageObject]:
    return source.read(np.arange(len(source))).objects


def test_kept_samples_come_from_the_original_shards_with_scores(out: Path, shards: list[Path]) -> None:
    view = View(out)
    rows = rows_of(out)
    assert 0 < len(view) == len(rows) < 60
    whole = cd.open_source([*map(str, shards)])
    batch = view.read(np.arange(len(view)), members=True)
    plain = whole.read(np.array([row["index"] for row in rows]), members=True)
    assert batch.members is not None
    assert plain.members is not None
    for row, item, image, members, own, data, beside in zip(
        rows, batch.objects, batch.images, batch.members, plain.objects, plain.images, plain.members, strict=True
    ):
        assert (item.image_id, item.image_path) == (row["image_id"], row["image_path"])
        assert (image == data).all()
        columns = {name: value for name, value in row.items() if name not in ("index", "image_id", "image_path")}
        assert item.metadata == {**own.metadata, **columns}
        assert members["jpg"] == beside["jpg"]
        assert json.loads(bytes(members["json"]))["sharpness"] == row["sharpness"]
    assert batch.shards == plain.shards
    assert not batch.errors
    assert ids_of(view) == [row["image_id"] for row in rows]


def test_metadata_is_read_when_asked_for(out: Path) -> None:
    view = View(out)
    items = objects_of(view)
    assert all(callable(item.__dict__["_metadata"]) for item in items)
    assert view._table._reader is None, "no score was read yet"
    assert items[3].metadata["status"] == "kept"
    assert items[3].metadata is items[3].metadata


def test_a_field_of_the_name_of_a_column_is_kept_beside_it(tmp_path: Path) -> None:
    image = encode(np.full((130, 130, 3), 90, np.uint8))
    about = {"status": "success", "width": 130, "key": "1", "source": "web"}
    source = cd.MemorySource({"a": image}, metadata={"a": about})
    run(source, tmp_path / "out", stages=[cd.Quality()], tars=False)
    (item,) = objects_of(View(tmp_path / "out", data=source))
    assert item.metadata["status"] == "kept"
    assert item.metadata["source_status"] == "success"
    assert item.metadata["source_key"] == "1"
    assert item.metadata["width"] == 130
    assert "source_width" not in item.metadata
    assert item.metadata["source"] == "web"
    source = cd.MemorySource({"a": image}, metadata={"a": {**about, "source_status": "own"}})
    run(source, tmp_path / "again", stages=[cd.Quality()], tars=False)
    (item,) = objects_of(View(tmp_path / "again", data=source))
    assert (item.metadata["source_status"], item.metadata["source_source_status"]) == ("own", "success")


@pytest.mark.parametrize(
    ("choice", "passes"),
    [
        ({"min": {"sharpness": 800.0}}, lambda row: row["sharpness"] >= 800),
        ({"max": {"sharpness": 800, "width": 150}}, lambda row: row["sharpness"] <= 800 and row["width"] <= 150),
        ({"equals": {"width": 200}}, lambda row: row["width"] == 200),
        ({"equals": {"image_id": ("000003", "000004")}}, lambda row: row["image_id"] in ("000003", "000004")),
        ({"where": {"width": lambda values: values % 2 == 0}}, lambda row: row["width"] % 2 == 0),
        ({"exclude": ["000001", "000002", "nobody"]}, lambda row: row["image_id"] not in ("000001", "000002")),
        ({"include": np.array(["000004", "000007"])}, lambda row: row["image_id"] in ("000004", "000007")),
        ({"include": (f"{n:06d}" for n in range(30))}, lambda row: row["image_id"] < "000030"),
        ({"include": KeyList(["000004"])}, lambda row: row["image_id"] == "000004"),
        ({"include": []}, lambda row: False),
        ({"include": pd.Series(["000004"])}, lambda row: row["image_id"] == "000004"),
        ({"include": pa.table({"image_id": ["000004"], "x": [1]})}, lambda row: row["image_id"] == "000004"),
        ({"max": {"width": 2**70}, "min": {"width": -(2**70)}}, lambda row: True),
    ],
)  # fmt: skip
def test_thresholds_and_lists(out: Path, choice: dict[str, Any], passes: Any) -> None:
    view = View(out, **choice)
    assert ids_of(view) == [row["image_id"] for row in rows_of(out) if passes(row)]
    assert len(view) == len(ids_of(view)) == view.shard_sizes.sum()


def test_thresholds_may_be_looser_than_the_runs(out: Path) -> None:
    everything = View(out, status=None)
    assert len(everything) == 60
    assert {item.metadata["status"] for item in objects_of(everything)} == {"kept", "dropped"}
    loose = View(out, status=None, min={"sharpness": 100})
    scored = [row for row in read_rows(out) if row["sharpness"] is not None]
    assert ids_of(loose) == [row["image_id"] for row in scored if row["sharpness"] >= 100]
    assert len(scored) < 60, "null passes no threshold"
    assert ids_of(View(out, status="dropped")) == [row["image_id"] for row in rows_of(out, "dropped")]


def test_a_list_in_a_file(out: Path, tmp_path: Path) -> None:
    (tmp_path / "takedown.txt").write_text("000001\n\n  000004 \nnobody\n")
    without = View(out, exclude=tmp_path / "takedown.txt")
    assert ids_of(without) == [row["image_id"] for row in rows_of(out) if row["image_id"] not in ("000001", "000004")]
    assert reopen(without.origin or {}).fingerprint == without.fingerprint


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"min": {"sharpnes": 3}}, "min names the column 'sharpnes', which .* has not; it has .*sharpness"),
        ({"equals": {"embedding": 3}}, "equals names the column 'embedding'"),
        ({"min": {"reason": 3}}, "min limits 'reason', whose values are string: give equals= or where="),
        ({"min": {"width": "200"}}, "min.'width'. is '200'; allowed: a number"),
        ({"min": {"width": None}}, "min.'width'. is None; allowed: a number"),
        ({"max": {"width": float("nan")}}, "max.'width'. is nan"),
        ({"equals": {"width": "wide"}}, "equals.'width'. is 'wide', and its values are int32"),
        ({"where": {"width": 3}}, "where.'width'. is 3; give a function"),
        ({"where": {"width": lambda values: values[:1]}}, "where.'width'. gave int"),
        ({"min": 3}, "^min is 3; allowed: numbers by column"),
        ({"status": "failed"}, '^status is \'failed\'; allowed: "kept", "dropped", None'),
        ({"exclude": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_a_wrong_choice_is_refused_in_words(out: Path, choice: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, cd.SourceError), match=message):
        View(out, **choice)


def test_an_output_without_tars_opens_as_a_view(out: Path, tars: Path, shards: list[Path], tmp_path: Path) -> None:
    view = cd.open_source(out)
    assert isinstance(view, View)
    assert view.name == "kept"
    assert cd.open_source(str(out), name="mine").name == "mine"
    assert isinstance(cd.open_source(tars), cd.TarSource)
    forced = cd.open_source(tars, view=True)
    assert isinstance(forced, View)
    assert ids_of(forced) == ids_of(view) == ids_of(cd.open_source(tars))
    with pytest.raises(cd.SourceError, match="is no output of a curation, which view=True asks for"):
        cd.open_source(shards[0].parent, view=True)
    with pytest.raises(cd.SourceError, match="view=True is for the folder of one output"):
        cd.open_source([str(out), str(tars)], view=True)
    with pytest.raises(cd.OutputError, match="is no output of a curation"):
        View(tmp_path)


def test_an_output_of_images_in_parquet(shards: list[Path], out: Path, tmp_path: Path) -> None:
    run([*map(str, shards)], tmp_path / "images", write=cd.Write(layout="huggingface"))
    assert isinstance(cd.open_source(tmp_path / "images"), cd.ParquetSource)
    view = cd.open_source(tmp_path / "images", view=True)
    assert isinstance(view, View)
    assert ids_of(view) == ids_of(View(out)) == ids_of(cd.open_source(tmp_path / "images"))
    pairs = zip(objects_of(view), objects_of(View(out)), strict=True)
    assert all(
        item.metadata == {**one.metadata, "tar": item.metadata["tar"], "key": item.metadata["key"]}
        for item, one in pairs
    )


def test_fields_that_columns_hold_are_those_of_the_sample(tmp_path: Path) -> None:
    image = encode(np.full((130, 130, 3), 90, np.uint8))
    about = {
        "a": {"number": 7, "text": "x", "words": ["a"], "none": None},
        "b": {"text": 3, "inner": {"x": 1.5}},
        "c": {},
    }
    source = cd.MemorySource(dict.fromkeys(about, image), metadata=about)
    stages = [cd.Filter("number", min=0, missing="keep"), cd.Quality()]
    run(source, tmp_path / "out", stages=stages, tars=False, metadata=True)
    for item in objects_of(View(tmp_path / "out", data=source)):
        own = {
            name: value for name, value in item.metadata.items() if name in ("number", "text", "words", "none", "inner")
        }
        assert own == about[item.image_id]
        assert {name: type(value) for name, value in own.items()} == {
            n: type(v) for n, v in about[item.image_id].items()
        }
        assert item.metadata["sharpness"] == 0
        assert not [name for name in item.metadata if name.startswith("source_") or name == "metadata"]
    assert ids_of(View(tmp_path / "out", data=source, min={"number": 1})) == ["a"]


def stream(loader: Any) -> list[tuple[str, float]]:
    return [(item.image_id, item.metadata["sharpness"]) for batch in loader for item in batch.data]


def test_a_loader_gives_what_the_written_tars_give(out: Path, tars: Path) -> None:
    scores = {row["image_id"]: row["sharpness"] for row in rows_of(tars)}
    for rank in range(3):
        options: Any = {"batch_size": 4, "shuffle": 7, "device": "cpu", "shard": cd.Shard(rank, 3)}
        with cd.ImageLoader(View(out), **options) as view, cd.ImageLoader(tars, **options) as written:
            for epoch in (0, 1):
                view.set_epoch(epoch)
                written.set_epoch(epoch)
                expected = [(item.image_id, scores[item.image_id]) for batch in written for item in batch.data]
                assert stream(view) == expected


def test_a_stream_goes_on_in_mid_epoch(out: Path) -> None:
    options: Any = {"batch_size": 4, "shuffle": 3, "device": "cpu"}
    with cd.ImageLoader(out, **options) as loader:
        whole = stream(loader)
        passed = iter(loader)
        first = [(item.image_id, item.metadata["sharpness"]) for _ in range(2) for item in next(passed).data]
        state = json.loads(json.dumps(loader.state_dict()))
    assert len(whole) > len(first) == 8
    with cd.ImageLoader(View(out), **options) as again:
        again.load_state_dict(state)
        assert first + stream(again) == whole
    with (
        cd.ImageLoader(View(out, min={"sharpness": 800}), **options) as other,
        pytest.raises(ValueError, match="resume with the data set"),
    ):
        other.load_state_dict(state)


def test_training_on_a_score(out: Path) -> None:
    train = TorchImageLoader(
        out, batch_size=4, target="sharpness", device="cpu", transforms=[cd.transforms.Resize((32, 32))]
    )
    with train:
        targets = [float(value) for _, some in train for value in some]
    assert targets == pytest.approx([row["sharpness"] for row in rows_of(out)])


def test_workers_of_a_data_loader_read_it(out: Path) -> None:
    view = View(out)
    ids = [
        (item.image_id, item.metadata["sharpness"])
        for batch in DataLoader(view, batch_size=5, num_workers=2, collate_fn=_same)  # type: ignore[arg-type,var-annotated]
        for item in batch.objects
    ]
    assert ids == [(row["image_id"], row["sharpness"]) for row in rows_of(out)]
    again = pickle.loads(pickle.dumps(view))
    assert again.fingerprint == view.fingerprint
    assert [item.metadata for item in objects_of(again)] == [item.metadata for item in objects_of(view)]
    assert len(pickle.dumps(view)) < 20_000


def _same(batch: Any) -> Any:
    return batch


def test_rows_are_gathered_again_where_the_cache_is_gone(out: Path, tmp_path: Path, monkeypatch: Any) -> None:
    expected = [item.metadata for item in objects_of(View(out))]
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "cache"))
    assert [item.metadata for item in objects_of(View(out))] == expected
    (file,) = (tmp_path / "cache" / "rows").rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    assert [item.metadata for item in objects_of(View(out))] == expected
    (tmp_path / "file").touch()
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "file" / "cache"))
    assert [item.metadata for item in objects_of(View(out))] == expected


def test_an_unfinished_output_is_its_finished_parts(data: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "kept"
    records = sorted((out / "_manifest" / "parts").glob("*.json"))
    whole = rows_of(out)
    records[1].unlink()
    caplog.clear()
    view = View(out)
    assert "is not finished: 16 of its 60 samples are missing" in caplog.text
    left = [row for row in whole if not 16 <= row["index"] < 32]
    assert [(item.image_id, item.metadata["sharpness"]) for item in objects_of(view)] == [
        (row["image_id"], row["sharpness"]) for row in left
    ]
    for record in records:
        record.unlink(missing_ok=True)
    with pytest.raises(cd.OutputError, match="has finished no part"):
        View(out)


def test_an_output_of_nothing_is_an_empty_view(tmp_path: Path) -> None:
    nothing = cd.MemorySource([])
    run(nothing, tmp_path / "out", tars=False)
    assert len(View(tmp_path / "out", data=nothing)) == 0
    picture = cd.MemorySource([encode(np.zeros((20, 20, 3), np.uint8))])
    run(picture, tmp_path / "dropped")
    view = View(tmp_path / "dropped", data=picture)
    assert len(view) == 0
    assert len(view.read(np.empty(0, np.int64))) == 0


class TestMovedData:
    """The original shards are found under other names, elsewhere; what is another data set is refused by name."""

    def test_tars_under_other_names_in_another_order(self, data: Path, tmp_path: Path) -> None:
        expected = View(tmp_path / "kept")
        before = [(item.image_id, item.metadata) for item in objects_of(expected)]
        mark = expected.fingerprint
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        for old, new in (("00000", "z"), ("00001", "b"), ("00002", "a")):
            (data / f"{old}.tar").rename(moved / f"{new}.tar")
        with pytest.raises(cd.SourceError, match=r"cannot be opened again: .*If it has moved, give data="):
            View(tmp_path / "kept")
        for given in (moved, str(moved / "*.tar"), cd.open_source(moved), [str(moved / f"{n}.tar") for n in "bza"]):
            view = View(tmp_path / "kept", data=given)
            assert [(item.image_id, item.metadata) for item in objects_of(view)] == before
            assert view.fingerprint == mark
            assert all(str(moved) in item.image_path for item in objects_of(view))
        assert reopen(View(tmp_path / "kept", data=moved).origin or {}).fingerprint == mark

    def test_changed_missing_and_new_files_are_named(self, data: Path, tmp_path: Path, photos: Any) -> None:
        other = write_shards(tmp_path / "other", photo_samples(photos, 20, seed=5), per_shard=20)[0]
        shutil.copy(other, data / "00001.tar")
        with pytest.raises(cd.SourceError, match=r"'data' is not the data set .* made of: 00001.tar has changed \("):
            View(tmp_path / "kept")
        (data / "00002.tar").rename(data / "00003.tar")
        with pytest.raises(cd.SourceError, match=r"00001.tar has changed \(.*\)\. Give the files"):
            View(tmp_path / "kept", data=data)
        (data / "00003.tar").unlink()
        (data / "00001.tar").rename(data / "00009.tar")
        with pytest.raises(
            cd.SourceError,
            match=r"00001.tar \(20 samples\) is missing, 00002.tar \(20 samples\) is missing, 00009.tar is new",
        ):
            View(tmp_path / "kept")

    def test_a_file_more_is_named(self, data: Path, tmp_path: Path, photos: Any) -> None:
        write_shards(data / "new", photo_samples(photos, 3, seed=5), per_shard=20)[0].rename(data / "00004.tar")
        (data / "new").rmdir()
        with pytest.raises(cd.SourceError, match=r"made of: 00004.tar is new\. "):
            View(tmp_path / "kept")

    def test_reports_and_other_thresholds_use_the_same_words(self, data: Path, tmp_path: Path) -> None:
        (data / "00001.tar").unlink()
        with pytest.raises(cd.SourceError, match=r"00001.tar \(20 samples\) is missing\. Give the files .* as source="):
            cd.rethreshold(tmp_path / "kept", tmp_path / "new", stages=[cd.Filter("width", min=10)])

    def test_other_thresholds_are_written_from_moved_tars(self, data: Path, tmp_path: Path) -> None:
        (data / "00000.tar").rename(data / "9.tar")
        stages = [cd.Filter("sharpness", min=100)]
        cd.rethreshold(tmp_path / "kept", tmp_path / "new", stages=stages, source=data, html=False)
        assert [row["image_id"] for row in rows_of(tmp_path / "new")] == ids_of(cd.open_source(tmp_path / "new"))
        view = View(tmp_path / "new", data=data)
        assert ids_of(view) == ids_of(cd.open_source(tmp_path / "new"))
        assert all(item.metadata["sharpness"] >= 100 for item in objects_of(view))

    def test_an_output_of_before_compares_fingerprints(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "kept" / "_manifest" / "sources.jsonl").unlink()
        assert len(View(tmp_path / "kept"))
        (data / "00000.tar").rename(data / "9.tar")
        with pytest.raises(
            cd.SourceError, match=r"is not the data set that .* was made of, was changed, or was curated"
        ):
            View(tmp_path / "kept")

    def test_a_run_that_goes_on_writes_the_record(self, data: Path, tmp_path: Path) -> None:
        record = tmp_path / "kept" / "_manifest" / "sources.jsonl"
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        assert [(line["name"], line["samples"]) for line in lines] == [(f"0000{n}.tar", 20) for n in range(3)]
        assert [line["size"] for line in lines] == [path.stat().st_size for path in sorted(data.iterdir())]
        content = record.read_bytes()
        record.unlink()
        run(str(data), tmp_path / "kept", tars=False)
        assert record.read_bytes() == content

    def test_a_record_that_is_damaged_is_as_none(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "kept" / "_manifest" / "sources.jsonl").write_text("{broken")
        assert len(View(tmp_path / "kept"))

    @pytest.mark.parametrize("with_ids", [True, False])
    def test_parquet_files(self, shards: list[Path], tmp_path: Path, with_ids: bool) -> None:
        source = cd.open_source([*map(str, shards)])
        (tmp_path / "data").mkdir()
        batch = source.read(np.arange(60), members=True)
        assert batch.members is not None
        rows = [
            {"jpg": bytes(members["jpg"]), "caption": item.metadata["caption"]}
            | ({"key": item.image_id} if with_ids else {})
            for item, members in zip(batch.objects, batch.members, strict=True)
        ]  # fmt: skip
        import pyarrow as pa

        for number in range(3):
            table = pa.Table.from_pylist(rows[20 * number : 20 * number + 20])
            pq.write_table(table, tmp_path / "data" / f"{number}.parquet", row_group_size=7)
        run(tmp_path / "data", tmp_path / "kept", tars=False)
        expected = [(item.image_id, item.metadata) for item in objects_of(View(tmp_path / "kept"))]
        moved = tmp_path / "moved"
        moved.mkdir()
        for number in range(3):
            (tmp_path / "data" / f"{number}.parquet").rename(moved / f"part-{9 - number}.parquet")
        view = View(tmp_path / "kept", data=moved)
        assert [(item.image_id, item.metadata) for item in objects_of(view)] == expected
        assert ids_of(view) == [id for id, _ in expected]
        pq.write_table(pa.Table.from_pylist(rows[:20]).slice(1), moved / "part-8.parquet")
        with pytest.raises(cd.SourceError, match=r"1.parquet \(20 samples\) is missing, part-8.parquet is new"):
            View(tmp_path / "kept", data=moved)

    def test_a_folder_that_moved_or_changed(self, shards: list[Path], tmp_path: Path) -> None:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for item, image in zip(*_first(shards, 12), strict=True):
            (folder / f"{item.image_id}.jpg").write_bytes(image.tobytes())
        run(str(folder), tmp_path / "kept", tars=False)
        expected = ids_of(View(tmp_path / "kept"))
        assert expected
        folder.rename(tmp_path / "elsewhere")
        assert ids_of(View(tmp_path / "kept", data=tmp_path / "elsewhere")) == expected
        (tmp_path / "elsewhere" / "000003.jpg").unlink()
        with pytest.raises(
            cd.SourceError, match=r"'elsewhere' \(11 samples\) is not the data set that .*\(12 samples\)"
        ):
            View(tmp_path / "kept", data=tmp_path / "elsewhere")

    def test_over_http_by_etag(self, server: Server, shards: list[Path], tmp_path: Path) -> None:
        def serve(path: str, data: bytes) -> str:
            server.files[path] = data
            server.etags[path] = f'"{hashlib.md5(data).hexdigest()}"'
            return server.url + path

        contents = [shard.read_bytes() for shard in shards]
        urls = [serve(f"/a/{number}.tar", data) for number, data in enumerate(contents)]
        run(urls, tmp_path / "kept", tars=False)
        expected = [(item.image_id, item.metadata) for item in objects_of(View(tmp_path / "kept"))]
        moved = [serve(f"/b/{letter}.tar", contents[number]) for number, letter in ((2, "x"), (0, "y"), (1, "z"))]
        view = View(tmp_path / "kept", data=moved)
        assert [(item.image_id, item.metadata) for item in objects_of(view)] == expected
        at = contents[1].index(b"\xff\xd8", contents[1].index(b"\xff\xd8") + 2) + 40  # within an image
        changed = contents[1][:at] + bytes([contents[1][at] ^ 1]) + contents[1][at + 1 :]
        serve("/b/z.tar", changed)
        with pytest.raises(cd.SourceError, match=r"1.tar \(20 samples\) is missing, z.tar is new"):
            View(tmp_path / "kept", data=moved)
        local = View(tmp_path / "kept", data=[*map(str, shards)])
        assert [item.image_id for item in objects_of(local)] == [id for id, _ in expected]


def _first(shards: list[Path], count: int) -> tuple[list[cd.ImageObject], list[Any]]:
    batch = cd.open_source([*map(str, shards)]).read(np.arange(count))
    return batch.objects, batch.images


def test_match_shards() -> None:
    a, b, c = (ShardRecord(name, 10, "", 3, digest) for digest, name in enumerate("abc"))
    assert match_shards([a, b], [b, a]) == ([1, 0], [])
    assert match_shards([a, a], [a._replace(name="x"), a]) == ([1, 0], [])
    assert match_shards([a], [a, c]) == ([0], ["c is new"])
    hashed = a._replace(content="00" * 16)
    assert match_shards([hashed], [a]) == ([0], [])
    assert match_shards([hashed], [a._replace(content="11" * 16)]) == ([], ["a has changed (of equal size)"])
    assert match_shards([hashed], [hashed._replace(digest=9, name="y")]) == ([0], [])
    parts = a._replace(content="00" * 16 + "-8")
    assert match_shards([parts], [a._replace(content="11" * 16 + "-4")]) == ([0], [])
    assert match_shards([], []) == ([], [])


class TestNesting:
    """Views of views, of subsets, of mixtures, of rethresholded and of remote outputs."""

    def test_a_curation_of_a_view(self, out: Path, tmp_path: Path) -> None:
        view = View(out, min={"sharpness": 400})
        report = cd.curate(view, tmp_path / "again", stages=[cd.Filter("sharpness", min=600)], device="cpu", html=False)
        again = cd.open_source(tmp_path / "again")
        assert 0 < int(report.kept) < len(view)
        assert ids_of(again) == [row["image_id"] for row in rows_of(out) if row["sharpness"] >= 600]
        assert all(item.metadata["sharpness"] >= 600 for item in objects_of(again)), "scores are in the sidecars"
        second = View(tmp_path / "again")
        assert isinstance(second.source, View)
        assert ids_of(second) == ids_of(again)
        third = reopen(second.origin or {})
        assert third.fingerprint == second.fingerprint

    def test_a_curation_of_a_view_whose_tars_moved(self, data: Path, tmp_path: Path) -> None:
        run(View(tmp_path / "kept"), tmp_path / "again", stages=[cd.Quality()], tars=False)
        expected = ids_of(View(tmp_path / "again"))
        (data / "00000.tar").rename(data / "z.tar")
        data.rename(tmp_path / "far")
        assert ids_of(View(tmp_path / "again", data=tmp_path / "far")) == expected

    def test_of_a_subset(self, data: Path, tmp_path: Path) -> None:
        run(cd.Subset(cd.open_source(data), slice(10, 50)), tmp_path / "part", tars=False)
        expected = ids_of(View(tmp_path / "part"))
        assert expected
        assert expected == [row["image_id"] for row in rows_of(tmp_path / "part")]
        for number, name in enumerate("cab"):
            (data / f"0000{number}.tar").rename(data / f"{name}.tar")
        assert ids_of(View(tmp_path / "part", data=data)) == expected
        assert ids_of(View(tmp_path / "part")) == expected, "the folder is opened as it was"

    def test_of_a_mixture(self, shards: list[Path], tmp_path: Path) -> None:
        mixture = cd.Mixture({"a": str(shards[0]), "b": [*map(str, shards[1:])]}, {"a": 1, "b": 3})
        run(mixture, tmp_path / "out", tars=False)
        view = View(tmp_path / "out")
        assert isinstance(view.source, cd.Mixture)
        assert {item.metadata["source"] for item in objects_of(view)} == {"a", "b"}
        assert ids_of(view) == [row["image_id"] for row in rows_of(tmp_path / "out")]
        given = View(tmp_path / "out", data={"a": str(shards[0]), "b": [*map(str, shards[1:])]})
        assert given.fingerprint == view.fingerprint
        with pytest.raises(cd.SourceError, match="is a mixture of a, b"):
            View(tmp_path / "out", data=str(shards[0]))
        together = cd.Mixture({"view": view, "tars": str(shards[0])})
        assert len(together) == len(view) + 20

    def test_of_an_object_without_an_origin(self, tmp_path: Path) -> None:
        memory = cd.MemorySource([encode(np.full((130, 130, 3), n, np.uint8)) for n in range(5)])
        run(memory, tmp_path / "out", stages=[cd.Quality()], tars=False)
        with pytest.raises(cd.SourceError, match=r"it was given as an object\): give data="):
            View(tmp_path / "out")
        view = View(tmp_path / "out", data=memory)
        assert view.origin is None
        assert len(view) == 5

    def test_a_view_of_rethresholded_rows(self, data: Path, tmp_path: Path) -> None:
        stages = [cd.Filter("sharpness", min=500)]
        cd.rethreshold(tmp_path / "kept", tmp_path / "new", stages=stages, tars=False, html=False)
        assert ids_of(View(tmp_path / "new")) == ids_of(View(tmp_path / "kept", status=None, min={"sharpness": 500}))
        (data / "00000.tar").rename(data / "z.tar")
        assert ids_of(View(tmp_path / "new", data=data))

    def test_a_remote_output(self, memory: Any, shards: list[Path], out: Path) -> None:
        run([*map(str, shards)], "memory://bucket/kept", tars=False)
        for view in (View("memory://bucket/kept"), cd.open_source("memory://bucket/kept")):
            assert isinstance(view, View)
            assert view.name == "kept"
            assert ids_of(view) == ids_of(View(out))
            assert objects_of(view)[0].metadata["sharpness"] == rows_of(out)[0]["sharpness"]

    def test_class_names(self, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            (tmp_path / "data" / name).mkdir(parents=True)
            (tmp_path / "data" / name / "1.png").write_bytes(encode(np.full((130, 130, 3), 90, np.uint8), "PNG"))
        run(str(tmp_path / "data"), tmp_path / "out", stages=[cd.Quality()], tars=False)
        view = View(tmp_path / "out")
        assert view.class_names == ["cat", "dog"]
        assert [item.metadata["label_name"] for item in objects_of(view)] == ["cat", "dog"]
        assert isinstance(view.source, FolderSource)

    def test_an_output_into_the_view_is_refused(self, data: Path, tmp_path: Path) -> None:
        view = View(tmp_path / "kept")
        for place in (tmp_path / "kept", tmp_path / "kept" / "inside", data / "inside"):
            with pytest.raises(cd.OutputError, match="a later run would take what it holds for data"):
                run(view, place)


def test_commands_read_a_view(out: Path, tmp_path: Path, capsys: Any) -> None:
    from curator_dali.cli import main

    kept = len(View(out))
    assert not main(["info", str(out)])
    assert f"{kept} in" in capsys.readouterr().out
    assert not main(["preview", str(out), "-o", str(tmp_path / "sheet.png")])
    assert not main(["verify", str(out), "--device", "cpu"])
    assert f"{kept} good" in capsys.readouterr().out


def test_tars_of_the_output_and_the_view_have_the_same_bytes(tars: Path) -> None:
    view = cd.open_source(tars, view=True)
    batch = view.read(np.arange(len(view)), members=True)
    assert batch.members is not None
    written = list(read_members(tars).values())
    assert [bytes(members["jpg"]) for members in batch.members] == [members["jpg"] for members in written]
