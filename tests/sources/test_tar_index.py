"""Finding members in tars, and samples among members."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curator_dali.errors import SourceError
from curator_dali.sources import HEADER_DTYPE, TarSource
from curator_dali.sources.index_store import index_path, load_headers, load_index, peek_index, save_index
from curator_dali.sources.storage import Stat
from curator_dali.sources.tar_headers import CUT, DAMAGED, NotATarError, Scan, scan_tar
from curator_dali.sources.tar_index import Status, TarIndex
from tests.helpers import write_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def make_tar(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def scan(data: bytes, window: int = 4096) -> Scan:
    return scan_tar(lambda offset, length: data[offset : offset + length], len(data), window=window)


def by_tarfile(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]


def found(result: Scan) -> list[tuple[str, int, int]]:
    return list(zip(result.names, result.offsets, result.sizes, strict=True))


def index(*names: str) -> TarIndex:
    data = make_tar([(name, name.encode()) for name in names])
    return TarIndex.from_scan(scan(data), len(data))


def samples(index: TarIndex) -> list[tuple[str, str, list[str]]]:
    """(key, name that the sample goes by, its members) of each."""
    text = [index.names[start : start + size].decode() for _, _, start, size in index.members.tolist()]
    lines = []
    for row, begin, end in zip(index.table.tolist(), index.first, index.first[1:], strict=False):
        name = index.names[row[8] : row[8] + row[9]].decode()
        lines.append((name[: row[10]], name, text[begin:end]))
    return lines


# -- members -----------------------------------------------------------------------------------------------------------

part = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60)
long_part = st.integers(1, 200).map(lambda n: "x" * n)
names = st.lists(part | long_part, min_size=1, max_size=4).map("/".join).filter(lambda name: name.strip("./ "))
archives = st.lists(st.tuples(names, st.integers(0, 3000)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(archives, st.sampled_from(FORMATS), st.sampled_from([512, 4096, 1 << 20]))
@example([("a" * 99, 0), ("a" * 100, 1), ("a" * 101, 512), ("d" * 90 + "/" + "e" * 90, 513)], FORMATS[0], 512)
@example([("ü" * 80 + ".jpg", 5), ("b.jpg", 40000), ("c.jpg", 7)], FORMATS[1], 4096)
def test_members_are_those_that_tarfile_finds(members: list[tuple[str, int]], format: int, window: int) -> None:
    try:
        data = make_tar([(name, bytes(size)) for name, size in members], format)
    except ValueError:  # USTAR takes no name that does not fit its two fields
        data = make_tar([(name, bytes(size)) for name, size in members], tarfile.GNU_FORMAT)
    result = scan(data, window)
    assert found(result) == by_tarfile(data)
    assert result.ended
    assert not result.problems


def test_pax_sizes_and_fractional_times_and_global_records() -> None:
    data = make_tar([("a.jpg", b"12345"), ("b.jpg", b"6")], mtime=1.5)  # every member has a PAX record before it
    assert found(scan(data)) == by_tarfile(data)

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 3, {"size": "3", "path": "renamed.jpg"}
        tar.addfile(info, io.BytesIO(b"abc"))
    assert found(scan(buffer.getvalue())) == by_tarfile(buffer.getvalue())
    assert scan(buffer.getvalue()).names == ["renamed.jpg"]


def test_sizes_in_base_256() -> None:
    info = tarfile.TarInfo("huge.jpg")
    info.size = 9 << 30  # over 8 GiB: GNU tar writes it in base 256
    header = info.tobuf(tarfile.GNU_FORMAT)
    result = scan_tar(lambda offset, length: header[offset : offset + length], len(header) + info.size)
    assert found(result)[0] == ("huge.jpg", 512, 9 << 30)
    assert TarIndex.from_scan(result, 10 << 30).table.tolist()[0][:2] == [512, (9 << 30) + 1]


def test_signed_checksums_of_old_tars() -> None:
    data = bytearray(make_tar([("\xfc.jpg", b"x")], tarfile.GNU_FORMAT))
    signed = sum(b - 256 if b > 127 else b for b in data[:148] + data[156:512]) + 8 * 32
    data[148:156] = b"%06o\0 " % signed
    assert scan(bytes(data)).names == ["\xfc.jpg"]


def test_names_that_are_not_utf8_can_be_printed_and_stay_apart() -> None:
    data = make_tar([("\udcff.jpg", b"1"), ("\udcfe.jpg", b"2")], tarfile.GNU_FORMAT)
    assert scan(data).names == ["\\xff.jpg", "\\xfe.jpg"]


def test_directories_and_links_are_passed_over() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        tar.addfile(info)
    result = scan(buffer.getvalue())
    assert result.names == ["a.jpg"]
    assert result.skipped == 2


def test_sparse_members_are_named_and_cost_nothing_else(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("sparse.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + make_tar([("b.jpg", b"whole")]))
    source = TarSource(str(tmp_path / "a.tar"), index="none")
    batch = source.read(np.arange(len(source)))
    assert [obj.image_id for obj in batch.objects] == ["sparse.jpg", "b"]
    assert "sparse" in batch.errors[0]
    assert bytes(batch.images[1]) == b"whole"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_tar_keeps_all_whole_members_and_names_the_cut_one(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 1500), min_size=1, max_size=5))
    format = data.draw(st.sampled_from(FORMATS))
    stem = "x" if format == tarfile.USTAR_FORMAT else "ü" * 60  # with a longname or PAX record before each header
    whole = make_tar([(f"{stem}{n}.jpg", b"i" * size) for n, size in enumerate(sizes)], format)
    members = by_tarfile(whole)
    cut = data.draw(st.integers(1536, max(1536, members[-1][1] + members[-1][2])))
    index = TarIndex.from_scan(scan(whole[:cut]), min(cut, len(whole)))
    status = index.table[:, 11].tolist()
    intact = [(name, offset + size) for name, offset, size in members if offset + size <= cut]
    assert [name for (_, name, _), bad in zip(samples(index), status, strict=True) if not bad] == [n for n, _ in intact]
    begun = whole[intact[-1][1] if intact else 0 : cut].strip(b"\0")  # what is left of the member that was cut
    assert status.count(Status.CUT) == bool(begun)


def test_behind_a_damaged_header_the_rest_is_found() -> None:
    data = bytearray(make_tar([(f"{n}.jpg", bytes([65 + n]) * 700) for n in range(5)], tarfile.USTAR_FORMAT))
    third = by_tarfile(bytes(data))[2][1] - 512
    data[third : third + 300] = os.urandom(300)
    result = scan(bytes(data))
    assert result.names == ["0.jpg", "1.jpg", f"damaged@{third}", "3.jpg", "4.jpg"]
    assert result.problems == {2: DAMAGED}


def test_what_is_no_tar() -> None:
    for data in (b"\xff\xd8 a jpeg" * 200, b"short", os.urandom(4096)):
        with pytest.raises(NotATarError):
            scan(data)
    assert scan(bytes(10240)).names == []
    assert scan(bytes(10240)).ended


def test_a_cut_longname_record_is_a_cut_member() -> None:
    data = make_tar([("a.jpg", b"1"), ("b" * 2000 + ".jpg", b"2")], tarfile.GNU_FORMAT)[: 1024 + 512 + 100]
    assert scan(data).problems == {1: CUT}


def test_a_cut_right_behind_a_pax_record_is_a_cut_member() -> None:
    data = make_tar([("a.jpg", b"1"), ("b.jpg", b"2")], mtime=1.5)
    whole = scan(data)
    assert scan(data[: whole.offsets[1] - 512]).problems == {1: CUT}  # the record describes a member that is gone
    assert scan(data[: whole.offsets[0] + 512]).problems == {}  # between members nothing tells that there were more


# -- samples -----------------------------------------------------------------------------------------------------------


def test_the_key_ends_at_the_first_dot_of_the_last_component() -> None:
    found = samples(index("a.b/c.d.jpg", "a.b/c.json", "x.JPG", "x.cls"))
    assert found == [
        ("a.b/c", "a.b/c.d.jpg", ["a.b/c.d.jpg", "a.b/c.json"]),
        ("x", "x.JPG", ["x.JPG", "x.cls"]),
    ]


def test_of_several_images_the_first_simple_extension_wins() -> None:
    assert [name for _, name, _ in samples(index("a.left.jpg", "a.right.jpg", "a.png", "a.webp"))] == ["a.png"]
    assert [name for _, name, _ in samples(index("a.left.jpg", "a.right.jpg"))] == ["a.left.jpg"]


def test_members_without_extension_and_hidden_ones_belong_to_nothing() -> None:
    assert [key for key, _, _ in samples(index("README", "a.jpg", "._a.jpg", "d/.DS_Store", "a.json"))] == ["a"]


def test_sidecars_apart_from_their_image_join_it() -> None:
    found = index("a.jpg", "b.jpg", "a.json", "b.json", "c.json")
    assert samples(found) == [
        ("a", "a.jpg", ["a.jpg", "a.json"]),
        ("b", "b.jpg", ["b.jpg", "b.json"]),
        ("c", "c.json", ["c.json"]),
    ]
    assert found.table[:, 11].tolist() == [0, 0, Status.NO_IMAGE]
    ambiguous = index("a.jpg", "b.jpg", "a.png", "b.json", "a.json")  # whose would a.json be?
    assert [members for _, _, members in samples(ambiguous)] == [["a.jpg"], ["b.jpg", "b.json"], ["a.png"], ["a.json"]]


def test_a_repeated_key_is_another_sample() -> None:
    apart = index("a.jpg", "b.jpg", "a.png", "b.jpg")
    assert [key for key, _, _ in samples(apart)] == ["a", "b", "a", "b"]
    assert apart.duplicates == 2
    assert apart.table[:, 11].tolist() == [0, Status.SHADOWED, 0, 0]
    adjacent = index("a.jpg", "a.json", "a.jpg", "a.json")
    assert [members for _, _, members in samples(adjacent)] == [["a.jpg", "a.json"]] * 2


def test_every_image_extension_in_either_case() -> None:
    for extension in ("jpg", "jpeg", "JPG", "Jpeg", "png", "webp", "tif", "tiff", "bmp", "jp2", "gif", "avif", "heic"):
        assert index(f"a.{extension}").table[0, 11] == 0, extension
    assert index("a.mp4").table[0, 11] == Status.NO_IMAGE


# -- kept indexes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "s" / "0.tar", [(f"{n:03d}.jpg", b"image%d" % n) for n in range(20)])


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import curator_dali.sources.tar_shards as module

    scans: list[str] = []
    real = module.scan_tar

    def counted(*args: object, **options: object) -> Scan:
        scans.append("scan")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "scan_tar", counted)
    return scans


def test_an_index_is_made_once(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = count_scans(monkeypatch)
    for _ in range(3):
        source = TarSource(str(shard))
        assert bytes(source.read(np.array([7])).images[0]) == b"image7"
    assert len(scans) == 1
    TarSource(str(shard), index="beside")
    assert len(scans) == 2
    assert (shard.parent / "0.tar.cdindex").exists()
    TarSource(str(shard), index="beside")
    assert len(scans) == 2
    TarSource(str(shard), index="none")
    assert len(scans) == 3


def test_a_changed_tar_is_indexed_again(shard: Path) -> None:
    assert len(TarSource(str(shard))) == 20
    write_tar(shard, [("a.jpg", b"1")])
    assert len(TarSource(str(shard))) == 1
    status = shard.stat()
    write_tar(shard, [("b.jpg", b"1")])  # as large as before
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert TarSource(str(shard)).read(np.array([0])).objects[0].image_id == "b"


@pytest.mark.parametrize("damage", ["cut", "flip", "version", "empty", "text"])
def test_a_damaged_index_is_made_again(shard: Path, damage: str) -> None:
    TarSource(str(shard))
    path = index_path(str(shard), "cache")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[200:201] = b"" if damage == "cut" else data[200:201]
    if damage == "flip":
        data[-5] ^= 1
    elif damage == "version":
        data[136] ^= 1
    path.write_bytes(b"" if damage == "empty" else b"text" * 99 if damage == "text" else bytes(data))
    source = TarSource(str(shard))
    assert [bytes(image) for image in source.read(np.arange(20)).images] == [b"image%d" % n for n in range(20)]
    assert load_index(path, source._shards.stats[0]) is not None  # and kept again


def test_a_cache_that_cannot_be_written_is_no_error(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")  # also for root, whom permissions do not stop
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "file"))
    source = TarSource(str(shard))
    assert len(source) == 20
    source._shards.close()
    assert bytes(source.read(np.array([3])).images[0]) == b"image3"
    assert "cannot keep indexes" in caplog.text


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", "/c")
    assert str(index_path("/a.tar", "cache")).startswith("/c/tar/")
    monkeypatch.delenv("CURATOR_DALI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(index_path("/a.tar", "cache")).startswith("/x/curator_dali/tar/")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert "/.cache/curator_dali/tar/" in str(index_path("/a.tar", "cache"))
    assert index_path("/a.tar", "none") is None
    assert str(index_path("s3://b/a.tar", "beside")).endswith(".cdindex")
    assert index_path("/a.tar", "cache") != index_path("/b.tar", "cache")


def test_an_index_survives_the_disk_and_is_counted_by_its_first_bytes(tmp_path: Path) -> None:
    kept = index("a.jpg", "a.json", "b.left.png", "c.txt")
    path, identity = tmp_path / "x.cdindex", Stat(10, -5)
    save_index(path, identity, kept)
    loaded = load_index(path, identity)
    assert loaded is not None
    assert samples(loaded) == samples(kept)
    np.testing.assert_array_equal(loaded.table, kept.table)
    assert peek_index(path, identity) == (3, 0)
    assert peek_index(path, Stat(11, -5)) is None
    assert load_index(path, Stat(10, -6)) is None
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written is left


def test_learnt_headers_are_kept_and_merged(shard: Path) -> None:
    headers = np.zeros(2, HEADER_DTYPE)
    headers["height"], headers["width"], headers["codec"] = [3, 4], [5, 6], [1, 0]  # the second is unknown
    first, second = TarSource(str(shard)), TarSource(str(shard))  # two processes' worth
    first.learn(np.array([2, 4]), headers)
    assert first.headers(np.array([4, 2]))["codec"].tolist() == [0, 1]
    assert first.read(np.array([2])).headers["height"].tolist() == [3]
    headers["codec"] = 2
    second.learn(np.array([7, 9]), headers)
    first.close()
    second.close()
    known = TarSource(str(shard)).headers(np.arange(20))
    assert known["codec"].nonzero()[0].tolist() == [2, 7, 9]
    path = index_path(str(shard), "cache")
    assert path is not None
    write_tar(shard, [("a.jpg", b"1")] * 20)
    assert load_headers(path, TarSource(str(shard))._shards.stats[0], 20) is None  # they were another tar's


def test_shards_that_are_no_tars_are_all_named(tmp_path: Path, shard: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>" * 500)
    (tmp_path / "y.tar").write_bytes(b"\x1f\x8b" * 500)
    with pytest.raises(SourceError, match=r"2 of 4 shards.*x\.tar: not a tar.*y\.tar: not a tar"):
        TarSource([str(tmp_path / "x.tar"), str(shard), str(tmp_path / "y.tar"), str(shard)])
    with pytest.raises(SourceError, match=r"gone\.tar: FileNotFoundError"):
        TarSource([str(tmp_path / "gone.tar"), str(shard)])


def test_an_empty_tar_has_no_samples_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "zero.tar").write_bytes(b"")
    write_tar(tmp_path / "none.tar", [])
    with caplog.at_level(logging.WARNING):
        source = TarSource([str(tmp_path / "zero.tar"), str(tmp_path / "none.tar")])
    assert len(source) == 0
    assert len(source.read(np.zeros(0, np.int64))) == 0
    assert caplog.text.count("no samples") == 2


def test_fsspec_finds_the_same_bytes(shard: Path) -> None:
    for obj, image in zip((batch := TarSource(str(shard)).read(np.arange(3))).objects, batch.images, strict=True):
        with fsspec.open(obj.image_path) as file:
            assert file.read() == bytes(image)
