"""Data sets that are opened by their index: the same samples, by few requests, whatever became of the files since."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curator_dali as cd
from curator_dali.errors import SourceError
from curator_dali.sources import HEADER_DTYPE, Source, TarSource, select_names
from curator_dali.sources.dataset_index import PLACES, read_index
from curator_dali.sources.prepared import IndexedShards
from tests.helpers import encode, load_photos, photo_samples, write_shards, write_tar
from tests.sources.web_server import Server

FOLDER = ".curator_dali_index"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def samples() -> list[Any]:
    return photo_samples(load_photos(), 24)


@pytest.fixture
def shards(samples: list[Any], tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", samples, 5)
    return tmp_path / "shards"


def is_indexed(source: Source) -> bool:
    return isinstance(source, TarSource) and isinstance(source._shards, IndexedShards)


def check_same(found: Source, expected: Source) -> None:
    """Check that two sources are the same in all that they tell."""
    assert len(found) == len(expected)
    assert found.fingerprint == expected.fingerprint
    assert found.shard_records == expected.shard_records
    assert found.shard_sizes.tolist() == expected.shard_sizes.tolist()
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(expected)), 2))
    assert found.read_ids(order).to_pylist() == expected.read_ids(order).to_pylist()
    assert found.image_sizes(order).tolist() == expected.image_sizes(order).tolist()
    for members in (False, True):
        one, other = found.read(order, members=members), expected.read(order, members=members)
        assert one.errors == other.errors
        assert one.unread == other.unread
        assert one.shards == other.shards
        assert [bytes(image) for image in one.images] == [bytes(image) for image in other.images]
        for item, wanted in zip(one.objects, other.objects, strict=True):
            assert (item.image_id, item.image_path, item.metadata) == (
                wanted.image_id,
                wanted.image_path,
                wanted.metadata,
            )
        if members:
            assert [dict(some) for some in one.members or ()] == [dict(some) for some in other.members or ()]


def test_the_same_samples_with_an_index(shards: Path) -> None:
    expected = cd.open_source(str(shards))
    assert not is_indexed(expected)
    cd.prepare(str(shards))
    for spec in (
        str(shards),
        f"{shards}/*.tar",
        f"{shards}/{{00000..00004}}.tar",
        sorted(map(str, shards.glob("*.tar"))),
    ):
        found = cd.open_source(spec)
        assert is_indexed(found)
        check_same(found, expected)
        check_same(pickle.loads(pickle.dumps(found)), expected)
    backwards = sorted(map(str, shards.glob("*.tar")), reverse=True)
    assert cd.open_source(backwards).fingerprint == cd.open_source(backwards, index="none").fingerprint


def test_odd_tars_with_an_index(tmp_path: Path) -> None:
    photo = encode(next(iter(load_photos().values()))[:64, :64])
    folder = tmp_path / "odd"
    folder.mkdir()
    members = [
        ("a.jpg", photo),
        ("a.json", b"{}"),
        ("a.jpg", photo[:-2]),  # shadows the first one
        ("ü/β.left.JPG", photo),
        ("ü/β.right.jpg", photo),
        ("only.txt", b"no image"),
        ("x.jpg", b"hello"),
        ("empty.jpg", b""),
        ("README", b"no sample"),
        ("late.jpg", photo),
        ("b.cls", b"1"),
        ("late.json", b'{"late": 1}'),
        ("n" * 150 + ".jpg", photo),
    ]
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_tar(folder / f"{format}.tar", members if format else members[:-1], format=format)
    write_tar(folder / "none.tar", [])
    (folder / "zero.tar").write_bytes(b"")
    data = write_tar(tmp_path / "whole.tar", members[:4]).read_bytes()
    (folder / "cut.tar").write_bytes(data[:2500])
    (folder / "damaged.tar").write_bytes(data[:1536] + b"\xff" * 512 + data[2048:])
    expected = cd.open_source(str(folder))
    made = cd.prepare(str(folder))
    found = cd.open_source(str(folder))
    assert is_indexed(found)
    check_same(found, expected)
    assert made.samples == len(expected)
    assert made.refused["not an image"] == 3
    assert made.refused["no image member"] >= 6


def test_headers_come_from_the_index(shards: Path, samples: list[Any]) -> None:
    cd.prepare(str(shards))
    for path in shards.glob("*.tar"):
        os.utime(path)  # a copy: the index holds
    source = cd.open_source(str(shards))
    order = np.arange(len(source))[::-1]
    headers = source.headers(order)
    fields = [source.read(order[[row]]).objects[0].metadata for row in range(len(order))]
    assert headers["width"].tolist() == [each["width"] for each in fields]
    assert headers["height"].tolist() == [each["height"] for each in fields]
    assert set(headers["codec"].tolist()) == {1}


def test_without_headers_they_are_learnt_in_memory(shards: Path) -> None:
    cd.prepare(str(shards), headers=False)
    source = cd.open_source(str(shards))
    assert not source.headers(np.arange(24))["codec"].any()
    learnt = np.zeros(3, HEADER_DTYPE)
    learnt["codec"], learnt["width"] = 1, [1, 2, 3]
    source.learn(np.array([20, 1, 7]), learnt)
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert each.headers(np.array([7, 2, 1, 20]))["width"].tolist() == [3, 0, 2, 1]
        assert each.read(np.array([7])).headers["width"].tolist() == [3]
    assert cd.prepare(str(shards)).indexed == 5  # with headers now
    assert cd.open_source(str(shards)).headers(np.arange(24))["codec"].all()


def test_files_that_are_new_changed_or_gone(shards: Path, samples: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    cd.prepare(str(shards))
    write_tar(shards / "00009.tar", [("new.jpg", samples[0][1]["jpg"])])
    (shards / "00000.tar").unlink()
    write_shards(shards, samples[5:10], 5)  # 00000.tar has other samples
    caplog.clear()
    found = cd.open_source(str(shards))
    check_same(found, cd.open_source(str(shards), index="none"))
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 of 6 tars" in warning
    assert "`curator-dali prepare` brings it up to date" in warning
    assert found.read(np.array([0])).headers["codec"].tolist() == [0]
    assert cd.prepare(str(shards)).indexed == 2
    caplog.clear()
    check_same(cd.open_source(str(shards)), cd.open_source(str(shards), index="none"))
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    (shards / "00003.tar").unlink()
    with pytest.raises(SourceError, match=r"1 of 6 files of the index .* are gone: '00003.tar'"):
        cd.open_source(str(shards))
    assert len(cd.open_source(f"{shards}/0000[0-2].tar")) == 15  # which were never more
    cd.prepare(str(shards))
    assert len(cd.open_source(str(shards))) == 20


def test_a_tar_of_equal_size_that_was_written_anew(shards: Path) -> None:
    cd.prepare(str(shards))
    path = shards / "00002.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        names = [info.name for info in tar if info.name.endswith(".jpg")]
    assert names
    for name in names:
        data = data.replace(name.encode(), name.replace("0", "1", 1).encode())
    repaired = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as old, tarfile.open(fileobj=repaired, mode="w") as new:
        for info in old:
            body = old.extractfile(info)
            assert body is not None
            content = body.read()
            info.name = info.name.replace("0", "1", 1)
            new.addfile(info, io.BytesIO(content))
    assert len(repaired.getvalue()) == path.stat().st_size
    path.write_bytes(repaired.getvalue())
    source = cd.open_source(str(shards))
    check_same(source, cd.open_source(str(shards), index="none"))
    assert source.read_ids(np.array([10])).to_pylist() == ["100010"]


def test_a_tar_of_equal_size_with_other_members_in_its_middle(tmp_path: Path) -> None:
    photos = [encode(photo[:200, :200]) for photo in load_photos().values()][:3]
    images = [photos[n % 3] for n in range(7)]
    members = [(f"{n}.{end}", data) for n in range(7) for end, data in (("jpg", images[n]), ("txt", b"%d" % n))]
    folder = tmp_path / "s"
    folder.mkdir()
    path = write_tar(folder / "0.tar", members)
    cd.prepare(str(folder))
    for index in ("cache", folder / FOLDER):
        os.utime(path)
        found = cd.open_source(str(folder), index=index)
        assert found._shards.prepared.tolist() == [True]  # type: ignore[attr-defined]
        check_same(found, cd.open_source(str(folder), index="none"))
    captions = [("1.txt", b"2") if name == "1.txt" else (name, data) for name, data in members]
    swapped = [*members[:2], *members[4:6], *members[2:4], *members[6:]]
    for changed in (captions, swapped):
        size = path.stat().st_size
        write_tar(path, changed)
        assert path.stat().st_size == size
        found = cd.open_source(str(folder))
        check_same(found, cd.open_source(str(folder), index="none"))
        assert not found._shards.prepared.any()  # type: ignore[attr-defined]
        assert found.read(np.array([1])).objects[0].metadata["caption"] in ("2", b"2")


def test_an_index_elsewhere(shards: Path, tmp_path: Path) -> None:
    expected = cd.open_source(str(shards))
    cd.prepare(str(shards), tmp_path / "index")
    assert not (shards / FOLDER).exists()
    check_same(cd.open_source(str(shards), index=tmp_path / "index"), expected)
    source = cd.open_source(str(shards), index=str(tmp_path / "index"))
    assert is_indexed(source)
    moved = shutil.move(shards, tmp_path / "moved")
    there = cd.open_source(str(moved), index=tmp_path / "index")
    assert is_indexed(there)
    check_same(there, cd.open_source(str(moved), index="none"))
    assert there.fingerprint == expected.fingerprint
    with pytest.raises(SourceError, match=r"holds no index of a data set: `curator-dali prepare SRC --index"):
        cd.open_source(str(moved), index=tmp_path / "nowhere")
    (tmp_path / "index" / "files.arrow").write_bytes(b"ARROW1\0\0 and nothing else")
    with pytest.raises(SourceError, match="cannot be read"):
        cd.open_source(str(moved), index=tmp_path / "index")


def test_some_of_the_shards_and_reopening(shards: Path) -> None:
    cd.prepare(str(shards))
    source = cd.open_source(str(shards))
    records = source.shard_records
    some = source.select_shards([3, 1], [records[3], records[1]])
    assert is_indexed(some)
    assert some.read_ids(np.array([0, 5])).to_pylist() == ["000015", "000005"]
    with cd.ImageLoader(str(shards), batch_size=8, shuffle=1) as loader:
        state = loader.state_dict()
        names = [item.image_id for batch in loader for item in batch.data]
    shutil.rmtree(shards / FOLDER)
    with cd.ImageLoader(str(shards), batch_size=8, shuffle=1) as loader:  # goes on without the index
        loader.load_state_dict(state)
        assert names == [item.image_id for batch in loader for item in batch.data]


def put_on(server: Server, folder: Path, path: str) -> None:
    """Serve all files of a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            server.files[f"{path}/{file.relative_to(folder)}"] = file.read_bytes()


def sent(server: Server) -> int:
    """Bytes that were asked for by ranges or as whole files."""
    total = 0
    for method, text in server.requests:
        path, _, wanted = text.partition(" ")
        data = server.files.get(path, b"")
        if method == "GET":
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            total += len(data) if wanted == "None" else min(int(end) + 1, len(data)) - int(begin)
    return total


def test_a_thousand_remote_shards_are_opened_by_one_request(server: Server, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (1400, 2000, 3), np.uint8)
    data = encode(photo, quality=85)
    tar = write_tar(tmp_path / "one.tar", [(f"{n}.jpg", data) for n in range(10_000_000 // len(data) + 1)])
    (tmp_path / "s").mkdir()
    for number in range(1000):
        (tmp_path / "s" / f"{number:05d}.tar").symlink_to(tar)
    cd.prepare(str(tmp_path / "s"), headers=False)
    put_on(server, tmp_path / "s" / FOLDER, f"/s/{FOLDER}")
    whole = tar.read_bytes()
    server.files |= {f"/s/{number:05d}.tar": whole for number in range(1000)}
    expected = cd.open_source(str(tmp_path / "s"))
    for spec in (f"{server.url}/s/", f"{server.url}/s/*.tar", f"{server.url}/s/{{00000..00999}}.tar"):
        server.requests.clear()
        source = cd.open_source(spec)
        assert source.fingerprint == expected.fingerprint
        assert [text for _, text in server.requests] == [f"/s/{FOLDER}/files.arrow None"]
        assert sent(server) < 1000 * len(whole) / 1000
    server.requests.clear()
    assert len(cd.open_source([f"{server.url}/s/{number:05d}.tar" for number in (7, 3)])) == len(expected) // 500
    assert len(server.requests) == 1


def test_remote_samples_by_the_index(server: Server, shards: Path) -> None:
    put_on(server, shards, "/s")
    plain = cd.open_source(f"{server.url}/s/{{00000..00004}}.tar", index="none")
    cd.prepare(str(shards))
    put_on(server, shards, "/s")
    server.requests.clear()
    source = cd.open_source(f"{server.url}/s/*.tar")
    check_same(source, plain)
    parts = [text for _, text in server.requests if "/samples-" in text]
    assert len(parts) == len(set(parts)) == 5  # each once
    server.requests.clear()
    again = cd.open_source(f"{server.url}/s/")
    assert again.headers(np.arange(24))["codec"].all()
    assert len(server.requests) == 1  # parts were kept
    server.etags["/s/00001.tar"] = '"another"'
    server.files["/s/00001.tar"] += b"\0"
    (reason,) = set(again.read(np.array([6, 7])).errors.values())
    assert "changed after it was opened" in reason
    assert "`curator-dali prepare` brings it up to date" in reason


def test_parts_without_a_cache_folder_are_kept_in_memory(
    server: Server, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cd.prepare(str(shards))
    put_on(server, shards, "/s")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "file"))  # no folder, also for root
    source = cd.open_source(f"{server.url}/s/*.tar")
    for _ in range(3):
        assert source.read_ids(np.arange(24)).to_pylist() == [f"{n:06d}" for n in range(24)]
    assert len([text for _, text in server.requests if "/samples-" in text]) == 5


def read_all(url: str, barrier: Any) -> list[str]:
    barrier.wait()
    return list(cd.open_source(url).read_ids(np.arange(24)).to_pylist())


def _run(url: str, barrier: Any, results: Any) -> None:
    results.put(read_all(url, barrier))


def test_one_process_fetches_a_part_and_the_others_wait(server: Server, shards: Path) -> None:
    cd.prepare(str(shards))
    put_on(server, shards, "/s")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_run, args=(f"{server.url}/s/*.tar", barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [[f"{n:06d}" for n in range(24)]] * 3
    assert len([text for _, text in server.requests if "/samples-" in text]) == 5


def test_an_index_of_a_part_of_a_remote_folder_does_not_hide_the_rest(server: Server, shards: Path) -> None:
    cd.prepare(f"{shards}/0000[0-1].tar")
    put_on(server, shards, "/s")
    source = cd.open_source([f"{server.url}/s/0000{n}.tar" for n in range(5)])
    assert len(source) == 24
    assert is_indexed(source)
    server.files["/s/"] = b"".join(b'<a href="%05d.tar">a</a>' % n for n in range(5))
    assert len(cd.open_source(f"{server.url}/s/")) == 24


@pytest.fixture(scope="module")
def prepared(samples: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_shards(folder, samples, 12)
    cd.prepare(str(folder))
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_parts_are_errors_and_no_crash(prepared: Path, place: float, value: int, cut: bool) -> None:
    part = min((prepared / FOLDER).glob("samples-*"))
    whole = part.read_bytes()
    expected = cd.open_source(str(prepared), index="none").read(np.arange(24), members=True)
    at = int(place * len(whole))
    try:
        part.write_bytes(whole[:at] if cut else whole[:at] + bytes([value]) + whole[at + 1 :])
        source = cd.open_source(str(prepared))
        batch = source.read(np.arange(24), members=True)
        for row, item in enumerate(batch.objects):
            if row in batch.errors:
                assert row in batch.unread or not cut
                assert "`curator-dali prepare --anew`" in batch.errors[row]
            else:
                assert bytes(batch.images[row]) == bytes(expected.images[row])
                assert item == expected.objects[row]
                assert batch.members is not None
                assert expected.members is not None
                assert dict(batch.members[row]) == dict(expected.members[row])
        if cut:
            assert batch.errors
    finally:
        part.write_bytes(whole)


@pytest.mark.parametrize("name", ["names", "member_offsets", "member_sizes", "extension_offsets", "extensions"])
def test_any_damaged_column_of_a_part_is_an_error_of_its_samples(prepared: Path, name: str) -> None:
    index = read_index(str(prepared / FOLDER))
    place = int(index.places[0, PLACES.index(name)])
    part = prepared / FOLDER / index.parts[index.part_of[0]]
    whole = part.read_bytes()
    count = int(index.numbers("samples")[0])
    try:
        for at in range(place, place + 16):
            data = bytearray(whole)
            data[at] ^= 64
            part.write_bytes(data)
            batch = cd.open_source(str(prepared)).read(np.arange(count), members=True)
            assert 1 <= len(batch.errors) <= 2
            assert all("`curator-dali prepare --anew`" in reason for reason in batch.errors.values())
    finally:
        part.write_bytes(whole)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:200] + data[300:], bytes])
def test_a_damaged_table_is_passed_over(
    shards: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cd.prepare(str(shards))
    path = shards / FOLDER / "files.arrow"
    data = path.read_bytes()
    if damage is not bytes:
        path.write_bytes(damage(data))
        check_same(cd.open_source(str(shards)), cd.open_source(str(shards), index="none"))
        assert "opened without it" in caplog.text
    assert cd.prepare(str(shards)).indexed == (0 if damage is bytes else 5)
    assert is_indexed(cd.open_source(str(shards)))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_table_costs_the_index_and_nothing_else(
    prepared: Path, caplog: pytest.LogCaptureFixture, place: float, bit: int
) -> None:
    path = prepared / FOLDER / "files.arrow"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    try:
        path.write_bytes(data)
        caplog.clear()
        source = cd.open_source(str(prepared))
        assert not is_indexed(source)
        assert "opened without it" in caplog.text
        assert source.fingerprint == cd.open_source(str(prepared), index="none").fingerprint
    finally:
        path.write_bytes(whole)


def test_others_read_the_index(shards: Path) -> None:
    cd.prepare(str(shards))
    files = pa.ipc.open_file(shards / FOLDER / "files.arrow").read_all()
    assert files.column("name").to_pylist() == [f"{n:05d}.tar" for n in range(5)]
    rows = []
    for name in files.column("part").to_pylist():
        rows += pa.ipc.open_file(shards / FOLDER / name).read_all().to_pylist()
    for row in rows:
        with open(shards / row["file"], "rb") as tar:
            tar.seek(row["offset"])
            image = tar.read(row["size"])
        assert image[:2] == b"\xff\xd8"
        assert {member["extension"] for member in row["members"]} == {"jpg", "json", "txt", "cls"}
        assert row["codec"] == "jpeg"
        assert row["problem"] is None
    frame = pa.Table.from_pylist(rows).to_pandas()
    assert frame["width"].min() > 0


@pytest.fixture
def many(samples: list[Any], tmp_path: Path) -> Path:
    write_shards(tmp_path / "many", samples, 2)
    return tmp_path / "many"


def test_a_fork_reads_the_index(many: Path) -> None:
    cd.prepare(str(many))
    source = cd.open_source(str(many))
    source.read_ids(np.arange(24))
    child = os.fork()
    if child == 0:
        wrong = 1
        try:
            wrong = int(source.read_ids(np.arange(24)).to_pylist() != [f"{n:06d}" for n in range(24)])
        finally:
            os._exit(wrong)
    assert os.waitpid(child, 0)[1] == 0
    assert source.read_ids(np.arange(24)).to_pylist() == [f"{n:06d}" for n in range(24)]


def test_loaders_of_a_remote_data_set_with_an_index(
    server: Server, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cd.prepare(str(shards))
    put_on(server, shards, "/s")
    for shuffle in (None, 1, cd.Shuffle(seed=1, window=2)):
        server.requests.clear()
        with cd.ImageLoader(f"{server.url}/s/*.tar", batch_size=7, shuffle=shuffle, device="cpu") as loader:
            assert loader.num_samples == 24  # known before anything is read
            assert [text for _, text in server.requests] == [f"/s/{FOLDER}/files.arrow None"]
            names = [item.image_id for batch in loader for item in batch.data]
            assert sorted(names) == [f"{n:06d}" for n in range(24)]
    assert not [record.message for record in caplog.records if "prepare" in record.message]
    with cd.ImageLoader(str(shards), batch_size=7, shuffle=1, device="cpu") as loader:
        local = [item.image_id for batch in loader for item in batch.data]
    with cd.ImageLoader(f"{server.url}/s/", batch_size=7, shuffle=1, device="cpu") as loader:
        assert local == [item.image_id for batch in loader for item in batch.data]


def test_a_pattern_is_its_own_files_and_none_that_the_index_has_besides(server: Server, shards: Path) -> None:
    names = ["train-0.tar", "train-1.tar", "val-0.tar", "deep/a/train-2.tar", "deep/train-3.tar"]
    folder = shards.parent / "mixed"
    for path, name in zip(sorted(shards.glob("*.tar")), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(folder / name)
    for pattern in ("train-*.tar", "**/train-*.tar", ""):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        cd.prepare(f"{folder}/{pattern}")
        cd.prepare([str(folder / name) for name in names])  # all of them, each by its name
        expected = cd.open_source(f"{folder}/{pattern}", index="none")
        check_same(cd.open_source(f"{folder}/{pattern}"), expected)
        server.files.clear()
        put_on(server, folder, "/m")
        server.requests.clear()
        source = cd.open_source(f"{server.url}/m/{pattern}")
        assert len(server.requests) == 1
        assert source.locations == [path.replace(str(folder), f"{server.url}/m") for path in expected.locations]
    cd.prepare(f"{folder}/**/train-*.tar")
    assert cd.prepare([str(folder / name) for name in names]).indexed == 0  # val-0.tar was kept


def test_which_names_a_pattern_selects() -> None:
    names = ["a.tar", "train/b.tar", "train/deep/c.tar", "val/deep/d.tar"]
    for pattern, expected in {
        "": ["a.tar"],
        "train": ["train/b.tar"],
        "val": ["val/deep/d.tar"],
        "*": ["a.tar", "train/b.tar", "val/deep/d.tar"],
        "*.tar": ["a.tar"],
        "t*/*.tar": ["train/b.tar"],
        "**/*.tar": names,
        "train/**/*.tar": ["train/b.tar", "train/deep/c.tar"],
        "tr": [],
    }.items():
        assert select_names(pattern, names) == expected
