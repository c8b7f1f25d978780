"""Finding members in tars, and samples among members."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curator_dali.errors import SourceError
from curator_dali.io.files import IMAGE_EXTENSIONS
from curator_dali.io.stats import Stat
from curator_dali.sources import HEADER_DTYPE, TarSource
from curator_dali.sources.tar_headers import CUT, DAMAGED, NotATarError, Scan, scan_tar
from curator_dali.sources.tar_index import (
    Status,
    Summary,
    TarIndex,
    index_path,
    load_headers,
    load_index,
    peek_index,
    save_index,
)
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
    return scan_tar(lambda offset, length: data[offset : offset + length], len(data), least=window)


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
    text = [str(index.names[start : start + size], "utf-8") for _, _, start, size in index.members.tolist()]
    lines = []
    for row, begin, end in zip(index.table.tolist(), index.first, index.first[1:], strict=False):
        name = str(index.names[row[8] : row[8] + row[9]], "utf-8")
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


@pytest.mark.parametrize(
    "options", [["gnu"], ["posix"], ["posix", "--sparse-version=0.0"], ["posix", "--sparse-version=0.1"]]
)
def test_sparse_members_are_named_and_cost_nothing_else(tmp_path: Path, options: list[str]) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        for piece in range(40):  # more than a header has room for
            file.seek(piece << 20)
            file.write(b"data")
    (tmp_path / "b.jpg").write_bytes(b"whole")
    command = ["tar", "-cf", "a.tar", "--sparse", f"--format={options[0]}", *options[1:], "sparse.jpg", "b.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() + make_tar([("c.jpg", b"behind")]))
    source = TarSource(str(tmp_path / "a.tar"), index="none")
    batch = source.read(np.arange(len(source)))
    assert [obj.image_id for obj in batch.objects] == ["sparse.jpg", "b", "c"]
    assert list(batch.errors) == [0]
    assert "sparse" in batch.errors[0]
    assert [bytes(image) for image in batch.images[1:]] == [b"whole", b"behind"]


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


paddings = st.sampled_from([0, 1, 2, 19, 2100])  # blocks


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(archives, st.sampled_from(FORMATS[1:]), paddings), min_size=1, max_size=4),
    st.sampled_from([512, 4096, 1 << 20]),
)
def test_joined_tars_have_the_members_of_all(parts: list[tuple[list[tuple[str, int]], int, int]], window: int) -> None:
    data, expected = b"", []
    for members, format, padding in parts:
        tar = make_tar([(name, b"i" * size) for name, size in members], format)
        expected += [(name, len(data) + offset, size) for name, offset, size in by_tarfile(tar)]
        data += tar + bytes(512 * padding)
    result = scan(data, window)
    assert found(result) == expected
    assert result.problems == {}
    assert result.ended
    assert result.trailing == 0
    assert result.joined == (len(parts[0][0]) if len(parts) > 1 else None)
    assert result.digest == scan(data, 2048).digest


@pytest.mark.parametrize("shift", [1, 188, 511, 700])
def test_joined_tars_whose_blocks_have_shifted(shift: int) -> None:
    one, two = make_tar([("a.jpg", b"a" * 600)]), make_tar([("b.jpg", b"b"), ("c.jpg", b"c" * 999)])
    result = scan(one + bytes(shift) + two)
    assert [name for name in result.names if "@" not in name] == ["a.jpg", "b.jpg", "c.jpg"]
    assert result.offsets[-1] == len(one) + shift + by_tarfile(two)[-1][1]


def test_a_hole_of_zeros_costs_what_lay_in_it_and_is_named() -> None:
    data = bytearray(make_tar([(f"{n}.jpg", bytes([65 + n]) * 5000) for n in range(9)]))
    offsets = [offset for _, offset, _ in by_tarfile(bytes(data))]
    data[offsets[2] + 100 : offsets[5] + 100] = bytes(offsets[5] - offsets[2])  # ends within the image 5
    result = scan(bytes(data))
    assert result.names == ["0.jpg", "1.jpg", "2.jpg", f"damaged@{offsets[5]}", "6.jpg", "7.jpg", "8.jpg"]
    assert result.problems == {3: DAMAGED}
    assert result.joined == 4


def test_a_record_whose_member_lay_in_a_hole_is_a_damaged_place() -> None:
    data = bytearray(make_tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")], mtime=1.5))
    second, third = (offset for _, offset, _ in by_tarfile(bytes(data))[1:])
    data[second - 512 : third - 3 * 512] = bytes(third - second - 1024)
    assert scan(bytes(data)).names == ["a.jpg", f"damaged@{second - 512}", "c.jpg"]


@pytest.mark.parametrize("window", [4096, 1 << 20])
def test_what_lies_behind_the_end_marker(window: int) -> None:
    tar, other = make_tar([("a.jpg", b"a" * 3000)]), b"x" + os.urandom((3 << 20) - 1)
    assert scan(tar + bytes(5 << 20), window).trailing == 0
    for tail in (b"x", other, bytes(2 << 20) + other):
        result = scan(tar + tail, window)
        assert result.names == ["a.jpg"]
        assert result.trailing == len(tail.lstrip(b"\0"))
        assert result.ended
    result = scan(tar + other + tar, window)
    assert result.names == ["a.jpg", f"damaged@{len(tar)}", "a.jpg"]
    assert result.trailing == 0


def test_the_digest_follows_names_sizes_times_and_pixels_but_not_the_window() -> None:
    members = [(f"{n}.jpg", bytes([n]) * (700 + n)) for n in range(5)]
    base = scan(make_tar(members)).digest
    assert {scan(make_tar(members), window).digest for window in (512, 4096, 1 << 20)} == {base}
    others = [
        make_tar([("z.jpg", members[0][1]), *members[1:]]),
        make_tar([*members[:4], ("4.jpg", members[4][1] + b"x")]),
        make_tar([*members[:4], ("4.jpg", members[4][1][:-1] + b"x")]),  # as large as before
        make_tar([("0.jpg", members[0][1][:-1] + b"x"), *members[1:]]),
        make_tar(members, mtime=7),
        make_tar(members[:4]),
    ]
    assert len({base, *(scan(data).digest for data in others)}) == 1 + len(others)
    cut = [make_tar([("a.jpg", body)])[: 512 + 600] for body in (b"a" * 700, b"b" * 700)]  # no end marker
    assert scan(cut[0]).digest != scan(cut[1]).digest


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
    assert apart.summary.duplicates == 2
    assert apart.table[:, 11].tolist() == [0, Status.SHADOWED, 0, 0]
    adjacent = index("a.jpg", "a.json", "a.jpg", "a.json")
    assert [members for _, _, members in samples(adjacent)] == [["a.jpg", "a.json"]] * 2


def test_an_extension_that_comes_again_in_another_case_begins_another_sample() -> None:
    apart = index("a.jpg", "a.JPG", "a.Jpg", "a.txt")
    assert samples(apart) == [
        ("a", "a.jpg", ["a.jpg"]),
        ("a", "a.JPG", ["a.JPG"]),
        ("a", "a.Jpg", ["a.Jpg", "a.txt"]),
    ]
    assert apart.summary.duplicates == 2
    assert [members for _, _, members in samples(index("a.jpg", "b.jpg", "a.TXT"))] == [["a.jpg", "a.TXT"], ["b.jpg"]]
    again = index(
        "a.jpg", "a.txt", "a.TXT"
    )  # whose caption it is cannot be told: it is named as a sample without image
    assert [members for _, _, members in samples(again)] == [["a.jpg", "a.txt"], ["a.TXT"]]


def test_every_image_extension_in_either_case() -> None:
    for extension in (
        "JPG",
        "Jpeg",
        "jfif",
        "jpe",
        "ppm",
        "tga",
        "dib",
        "apng",
        "j2k",
        "ico",
        "pjpeg",
        *IMAGE_EXTENSIONS,
    ):
        assert index(f"a.{extension}").table[0, 11] == 0, extension
        assert index(f"a.{extension.upper()}").table[0, 11] == 0, extension
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
    stat = TarSource(str(shard))._shards.stats[0]
    path = index_path(str(shard), "cache")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[200:201] = b"" if damage == "cut" else data[200:201]
    if damage == "flip":
        data[-5] ^= 1
    elif damage == "version":
        data[136] ^= 1
    path.write_bytes(b"" if damage == "empty" else b"text" * 99 if damage == "text" else bytes(data))
    assert load_index(path, stat) is None
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
    assert kept.summary.digest
    path, identity = tmp_path / "x.cdindex", Stat(10, -5)
    save_index(path, identity, kept)
    loaded = load_index(path, identity)
    assert loaded is not None
    assert samples(loaded) == samples(kept)
    np.testing.assert_array_equal(loaded.table, kept.table)
    assert peek_index(path, identity) == loaded.summary == kept.summary == Summary(3, 0, kept.summary.digest)
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
