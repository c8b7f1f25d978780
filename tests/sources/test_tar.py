"""Reading samples from local tars."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.decoding.headers import scan
from curator_dali.errors import SourceError
from curator_dali.sources import TarSource
from curator_dali.sources.tar import coalesce
from tests.helpers import write_tar


def image(shard: int, number: int) -> bytes:
    return b"\xff\xd8" + bytes([shard, number % 256]) * (40 + 90 * number)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Two tars of 12 and 8 samples with all sidecars."""
    made = []
    for shard, count in enumerate((12, 8)):
        members = []
        for n in range(count):
            members += [
                (f"d/{n:02d}.jpg", image(shard, n)),
                (f"d/{n:02d}.json", b'{"n": %d, "url": "u"}' % n),
                (f"d/{n:02d}.txt", b"caption %d\n" % n),
                (f"d/{n:02d}.cls", b"%d" % (n % 3)),
                (f"d/{n:02d}.npy", b"\x93NUMPY"),
            ]
        made.append(str(write_tar(tmp_path / "data" / f"{shard:05d}.tar", members)))
    return made


@pytest.mark.parametrize("members", [False, True])
def test_any_order_with_repeats(paths: list[str], members: bool) -> None:
    source = TarSource(paths)
    assert len(source) == 20
    assert source.shard_sizes.tolist() == [12, 8]
    assert source.name == "data"
    indices = np.random.default_rng(0).integers(0, 20, 70)
    batch = source.read(indices, members=members)
    assert batch.errors == {}
    np.testing.assert_array_equal(batch.indices, indices)
    for row, index in enumerate(indices.tolist()):
        shard, n = divmod(index, 12)
        obj = batch.objects[row]
        assert bytes(batch.images[row]) == image(shard, n)
        assert batch.shards[row] == paths[shard]
        assert (obj.image_id, obj.image_path) == (f"d/{n:02d}", f"tar://d/{n:02d}.jpg::{paths[shard]}")
        assert obj.metadata == {"n": n, "url": "u", "caption": f"caption {n}", "label": n % 3}
        if members:
            assert batch.members is not None
            assert list(batch.members[row]) == ["jpg", "json", "txt", "cls", "npy"]
            assert bytes(batch.members[row]["jpg"]) == image(shard, n)
            assert bytes(batch.members[row]["npy"]) == b"\x93NUMPY"
    assert (batch.members is not None) == members


def test_images_are_writable_vectors_and_valid_after_later_reads(paths: list[str]) -> None:
    source = TarSource(paths)
    first = source.read(np.arange(6))
    for _ in range(5):
        source.read(np.arange(20))
    source.close()
    for n, data in enumerate(first.images):
        assert data.flags.writeable
        assert (data.dtype, data.ndim) == (np.uint8, 1)
        assert bytes(data) == image(0, n)


def test_metadata_does_not_keep_the_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", bytes(8 << 20)), ("a.json", b'{"x": 1}')])
    source = TarSource(str(path))
    tracemalloc.start()
    obj = source.read(np.array([0])).objects[0]
    source.close()
    assert tracemalloc.get_traced_memory()[0] < 1 << 20
    tracemalloc.stop()
    assert obj.metadata == {"x": 1}


def test_indices_outside_raise(paths: list[str]) -> None:
    for index in (-1, 20):
        with pytest.raises(IndexError, match=r"\[0, 20\)"):
            TarSource(paths).read(np.array([index]))


def test_sidecars_of_every_kind_cost_no_image(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"1"),
        ("a.json", b"{broken"),
        ("a.txt", "ein Fuß".encode()),
        ("b.jpg", b"2"),
        ("b.json", b"[1, 2]"),
        ("b.cls", b"cat"),
        ("c.jpg", b"3"),
        ("c.json", b'{"caption": "own", "label": "text"}'),
        ("c.txt", b"other"),
        ("c.cls", b" 7\n"),
        ("d.jpg", b"4"),
        ("e.jpg", b"5"),
        ("e.json", b""),
        ("f.jpg", b"6"),
        ("f.json", b"[" * 100_000),
        ("g.jpg", b"7"),
        ("g.txt", b"\xfe\xfe"),
    ]
    batch = TarSource(str(write_tar(tmp_path / "a.tar", members))).read(np.arange(7))
    assert batch.errors == {}
    assert [bytes(data) for data in batch.images] == [b"%d" % n for n in range(1, 8)]
    a, b, c, d, e, f, g = (obj.metadata for obj in batch.objects)
    assert a["caption"] == "ein Fuß"
    assert a["metadata_error"].startswith("invalid .json")
    assert b["json"] == [1, 2]
    assert "cat" in b["metadata_error"]
    assert c == {"caption": "own", "label": 7}
    assert d == {}
    assert "metadata_error" in e
    assert "metadata_error" in f
    assert g == {"caption": "\ufffd\ufffd", "metadata_error": "invalid .txt: not UTF-8, nor UTF-16 or UTF-32"}


def test_samples_without_image_or_without_bytes_are_rows_with_errors(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.json", b"{}"), ("b.jpg", b""), ("c.jpg", b"c"), ("d.mp4", b"d")])
    batch = TarSource(str(path)).read(np.arange(4), members=True)
    assert "no image member" in batch.errors[0]
    assert "no bytes" in batch.errors[1]
    assert "no image member" in batch.errors[3]
    assert [len(data) for data in batch.images] == [0, 0, 1, 0]
    assert [obj.image_id for obj in batch.objects] == ["a", "b", "c", "d"]
    assert batch.members is not None
    assert [list(m) for m in batch.members] == [["json"], ["jpg"], ["jpg"], ["mp4"]]


def test_a_truncated_tar_loses_only_what_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(
        tmp_path / "a.tar", [(f"{n}.{ext}", bytes([n]) * 3000) for n in range(4) for ext in ("jpg", "txt")]
    )
    with tarfile.open(path) as tar:
        places = {m.name: m.offset_data for m in tar}
    os.truncate(path, places["3.jpg"] + 10)
    source = TarSource(str(path))
    batch = source.read(np.arange(len(source)), members=True)
    assert [obj.image_id for obj in batch.objects] == ["0", "1", "2", "3"]
    assert list(batch.errors) == [3]
    assert "truncated tar" in batch.errors[3]
    assert [bytes(data[:1]) for data in batch.images] == [b"\0", b"\1", b"\2", b""]
    assert batch.members is not None
    assert batch.members[3] == {}
    assert batch.unread == set()  # the tar was cut before it was indexed: a verdict

    os.truncate(path, places["2.txt"] + 10)  # a sidecar's end: the image is whole
    batch = TarSource(str(path)).read(np.arange(3))
    assert batch.errors == {}
    assert "ends within it" in batch.objects[2].metadata["metadata_error"]

    os.truncate(path, places["2.jpg"] - 200)  # within a header: even the name is gone
    source = TarSource(str(path))
    batch = source.read(np.arange(len(source)))
    assert len(source) == 3
    assert "truncated tar" in batch.errors[2]
    assert "damaged or truncated" in caplog.text


def test_no_sample_shadows_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = write_tar(tmp_path / "1.tar", [("a.jpg", b"first"), ("b.jpg", b"b"), ("a.jpg", b"second"), ("a.png", b"p")])
    two = write_tar(tmp_path / "2.tar", [("a.jpg", b"third")])
    with caplog.at_level(logging.WARNING):
        source = TarSource([str(one), str(two)])
    assert "repeat a key" in caplog.text
    assert source.duplicate_keys == 1
    batch = source.read(np.arange(len(source)))
    assert [obj.image_id for obj in batch.objects] == ["a", "b", "a", "a"]
    assert [bytes(data) for data in batch.images] == [b"first", b"b", b"second", b"third"]
    assert len({obj.image_path for obj in batch.objects}) == 4
    assert batch.objects[0].image_path == f"tar://a.jpg#offset=512::{one}"
    with fsspec.open(batch.objects[2].image_path) as file:  # the plain path is the one that tar readers open
        assert file.read() == b"second"
    with pytest.raises(FileNotFoundError), fsspec.open(batch.objects[0].image_path) as file:
        file.read()


def test_a_shard_that_vanishes_or_shrinks_costs_its_rows_only(paths: list[str]) -> None:
    source = TarSource(paths)
    source.read(np.arange(20))
    os.truncate(paths[0], 5000)  # while its file is open
    batch = source.read(np.arange(20), members=True)
    assert batch.unread == batch.errors.keys() == set(range(12))  # what is left may be another tar's
    assert batch.members is not None
    for row in range(20):
        shard, n = divmod(row, 12)
        if row in batch.errors:
            assert shard == 0
            assert "cut at byte 5000" in batch.errors[row]
            assert len(batch.images[row]) == 0
            assert "jpg" not in batch.members[row]  # no bytes of another batch that lay in the buffer before
        else:
            assert bytes(batch.images[row]) == image(shard, n)
    source.close()  # files are opened again
    batch = source.read(np.array([0]))
    assert "changed after it was indexed" in batch.errors[0]
    assert batch.unread == {0}
    os.remove(paths[0])
    source.close()
    batch = source.read(np.array([1, 13]))
    assert list(batch.errors) == [0]
    assert "FileNotFoundError" in batch.errors[0]
    assert batch.unread == {0}
    assert batch.objects[0].image_id == "d/01"  # the index is still there


def test_a_shard_whose_index_is_gone_too(paths: list[str]) -> None:
    source = TarSource(paths, index="none")
    source.close()
    os.remove(paths[0])
    batch = source.read(np.array([14, 3]))
    assert list(batch.errors) == [1]
    assert batch.unread == {1}
    assert bytes(batch.images[0]) == image(1, 2)
    assert batch.shards[1] == paths[0]
    assert source.headers(np.array([3]))["codec"].tolist() == [0]
    assert source.image_sizes(np.array([14, 3])).tolist() == [len(image(1, 2)), -1]
    with pytest.raises(SourceError, match="cannot be read now: FileNotFoundError"):
        scan(source)  # a survey of the other shards would look like one of the whole


def test_a_shard_that_is_written_anew_while_it_is_open(paths: list[str]) -> None:
    source = TarSource(paths)
    source.read(np.arange(20))
    write_tar(paths[0], [(f"x{n}.jpg", os.urandom(5000)) for n in range(12)])  # in place: no shorter than it was
    batch = source.read(np.arange(20))
    assert batch.unread == set(batch.errors) == set(range(12))
    assert all("changed after it was indexed" in reason for reason in batch.errors.values())
    os.rename(paths[1], f"{paths[1]}.old")
    write_tar(paths[1], [("y.jpg", b"new")])  # beside the open one, which stays as it was
    assert bytes(source.read(np.array([13])).images[0]) == image(1, 1)


def test_pickle_and_threads(paths: list[str]) -> None:
    source = pickle.loads(pickle.dumps(TarSource(paths)))
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(source.read, [np.array([n % 20, 19 - n % 20]) for n in range(200)]))
    for n, batch in enumerate(batches):
        assert bytes(batch.images[0]) == image(*divmod(n % 20, 12))
        assert bytes(batch.images[1]) == image(*divmod(19 - n % 20, 12))


def test_more_shards_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator_dali.sources.tar._MOST_OPEN", 64)
    paths = [str(write_tar(tmp_path / f"{n:03d}.tar", [("a.jpg", b"%d" % n)])) for n in range(100)]
    source = TarSource(paths)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [bytes(data) for data in source.read(np.arange(100)).images] == [b"%d" % n for n in range(100)]
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    source.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_fingerprint_follows_names_and_members_but_not_the_folder(paths: list[str], tmp_path: Path) -> None:
    first = TarSource(paths).fingerprint
    assert TarSource(paths, index="none").fingerprint == first
    assert TarSource(paths[::-1]).fingerprint != first
    assert TarSource(paths[:1]).fingerprint != first
    shutil.copytree(tmp_path / "data", tmp_path / "copy?0")  # with times of its own
    copies = [path.replace("/data/", "/copy?0/") for path in paths]
    for path in copies:
        os.utime(path, (5, 5))
    assert TarSource(copies).fingerprint == pickle.loads(pickle.dumps(TarSource(copies))).fingerprint == first


def test_a_tar_rewritten_under_its_name_is_another_data_set(tmp_path: Path) -> None:
    def fingerprint(*members: tuple[str, bytes]) -> str:
        path = write_tar(tmp_path / "a.tar", members)
        os.utime(path, ns=(0, next(times)))
        return TarSource(str(path)).fingerprint

    times = iter(range(10))
    base = fingerprint(("a.jpg", image(0, 1)), ("b.jpg", image(0, 2)))
    assert fingerprint(("a.jpg", image(0, 1)), ("b.jpg", image(0, 2))) == base
    others = {
        fingerprint(("a.jpg", image(0, 2)), ("b.jpg", image(0, 1))),
        fingerprint(("a.jpg", image(0, 1)), ("b.jpg", image(1, 2))),  # as large as before
        fingerprint(("a.jpg", image(1, 1)), ("b.jpg", image(0, 2))),
        fingerprint(("a.jpg", image(0, 1)), ("c.jpg", image(0, 2))),
    }
    assert len(others | {base}) == 5


def test_names_of_classes_are_those_of_the_outputs_that_the_tars_lie_in(tmp_path: Path) -> None:
    def record(folder: str, text: str | None) -> str:
        path = write_tar(tmp_path / folder / "0.tar", [("a.jpg", b"1")])
        if text is not None:
            (tmp_path / folder / "_manifest").mkdir()
            (tmp_path / folder / "_manifest/run.json").write_text(text)
        return str(path)

    one, two = record("1", '{"class_names": ["cat", "dog"]}'), record("2", '{"class_names": ["cat", "dog"], "x": 1}')
    other, without = record("3", '{"class_names": ["dog", "cat"]}'), record("4", '{"format": 1}')
    missing, broken = record("5", None), record("6", '{"class_names": ["c')
    odd = [record("7", "[1]"), record("8", '{"class_names": [1]}'), record("9", '{"class_names": "cat"}')]
    assert TarSource([one]).class_names == TarSource([two, one]).class_names == ["cat", "dog"]
    for wrong in (other, without, missing, broken, *odd):
        assert TarSource([one, wrong]).class_names == []
    assert TarSource([missing]).class_names == TarSource([]).class_names == []


def test_sidecars_in_any_case(tmp_path: Path) -> None:
    members = [
        ("A.JPG", b"1"),
        ("A.TXT", b"cap"),
        ("A.Cls", b"3"),
        ("b.Json", b'{"x": 1}'),
        ("b.jpeg", b"2"),
        ("A.NPY", b"n"),
    ]
    batch = TarSource(str(write_tar(tmp_path / "a.tar", members))).read(np.arange(2), members=True)
    assert [obj.metadata for obj in batch.objects] == [{"caption": "cap", "label": 3}, {"x": 1}]
    assert batch.members is not None
    assert [{name: bytes(data) for name, data in sample.items()} for sample in batch.members] == [
        {"JPG": b"1", "TXT": b"cap", "Cls": b"3", "NPY": b"n"},
        {"Json": b'{"x": 1}', "jpeg": b"2"},
    ]


def test_image_sizes_come_from_the_index(paths: list[str]) -> None:
    sizes = TarSource(paths).image_sizes(np.array([13, 2]))
    assert sizes.tolist() == [len(image(1, 1)), len(image(0, 2))]


def test_an_unknown_place_for_indexes(paths: list[str]) -> None:
    with pytest.raises(SourceError, match=r'holds no index .* allowed: "cache", "beside", "none"'):
        TarSource(paths, index="there")


items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 500), st.integers(1, 60)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(items, st.integers(0, 50))
def test_coalesced_extents_hold_every_item_and_do_not_overlap(items: list[tuple[int, int, int]], gap: int) -> None:
    shard, offset, size = np.array(items, np.int64).reshape(-1, 3).T
    extent, shards, starts, ends, position = coalesce(shard, offset, size, gap)
    laid = np.concatenate([[0], np.cumsum(ends - starts)])
    for n, (s, o, length) in enumerate(items):
        e = extent[n]
        assert shards[e] == s
        assert starts[e] <= o
        assert o + length <= ends[e]
        assert position[n] == laid[e] + o - starts[e]
    for s in set(shards.tolist()):
        mine = sorted((a, b) for t, a, b in zip(shards, starts, ends, strict=True) if t == s)
        assert all(b + gap < a for (_, b), (a, _) in pairwise(mine))
