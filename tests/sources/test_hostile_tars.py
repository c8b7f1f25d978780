"""Tar headers that are meant to harm, or that a broken writer left: each costs its own member at most."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali import ImageLoader
from curator_dali.errors import SourceError
from curator_dali.sources import TarSource
from curator_dali.sources.tar_headers import CUT, DAMAGED, NotATarError, Scan, scan_tar
from curator_dali.sources.tar_index import TarIndex
from tests import helpers

END = bytes(10240)


def header(name: str, size: int | bytes, kind: bytes = b"0") -> bytes:
    """A header with any size, or any twelve bytes as its size field."""
    head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)[:512])
    head[124:136] = b"%011o\0" % size if isinstance(size, int) else size
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(*fields: tuple[str, str], kind: bytes = b"x") -> bytes:
    record = b""
    for key, value in fields:
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        record += str(length).encode() + body
    return member("PaxHeader/x", record, kind)


def base_256(number: int, first: bytes = b"\x80") -> bytes:
    return first + number.to_bytes(11, "big")


def scan(data: bytes) -> Scan:
    return scan_tar(lambda offset, length: data[offset : offset + length], len(data))


HUGE = {
    **{f"2**{bits}": header("big.jpg", base_256(1 << bits)) for bits in (50, 62, 63, 64, 87)},
    "2**63 - 1": header("big.jpg", base_256((1 << 63) - 1)),  # overflows once it is rounded to blocks
    "all bits": header("big.jpg", b"\x80" + b"\xff" * 11),
    "octal": header("big.jpg", b"7" * 12),
    **{f"{n} digits": pax(("size", "9" * n)) + member("big.jpg", b"x" * 700) for n in (18, 19, 30, 5000)},
    "5,000 digits for all": pax(("size", "9" * 5000), kind=b"g") + member("big.jpg", b"x" * 700),
}
HARMLESS = {
    "negative": header("bad.jpg", base_256((1 << 88) - 1, b"\xff")),  # GNU's -1
    "negative octal": header("bad.jpg", b"-0000000001\0"),
    "a negative PAX size": pax(("size", "-5")) + member("bad.jpg", b"x"),
    "an empty PAX size": pax(("size", "")) + member("bad.jpg", b"x"),
    "a PAX record that is longer than its header says": member("PaxHeader/x", b"9" * 20 + b" size=5\n", b"x"),
    "a PAX record of no length": member("PaxHeader/x", b"0 size=5\n", b"x"),
    "sparse 1.0 without a map": pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")) + member("bad.jpg", b"zz\n"),
    "sparse 0.1 with a bad map": pax(("GNU.sparse.map", "a,b,c")) + member("bad.jpg", b"x"),
    "a map of holes without an end": header("bad.jpg", 0, b"S")[:482] + b"\1" + bytes(29),  # a wrong checksum, too
}


@pytest.mark.parametrize("name", HUGE)
def test_a_size_past_the_end_of_the_file_is_a_cut_member(tmp_path: Path, name: str) -> None:
    images = [helpers.encode(pixels) for _, pixels in helpers.crops(helpers.load_photos(), 3)]
    whole = helpers.write_tar(tmp_path / "whole.tar", [(f"w{n}.jpg", data) for n, data in enumerate(images)])
    odd = tmp_path / "odd.tar"
    odd.write_bytes(member("0.jpg", images[0]) + member("1.jpg", images[1]) + HUGE[name] + member("2.jpg", images[2]))
    for _ in range(2):  # the second one reads the index that the first has left
        with ImageLoader([str(odd), str(whole)], device="cpu") as loader:
            expected = ["w0", "w1", "w2"]
            assert [item.image_id for batch in loader for item in batch.data] == ["0", "1", *expected]
            assert [error.image_id for error in loader.errors] == ["big"]
            assert "truncated tar" in loader.errors[0].reason
    source = TarSource(str(odd))
    batch = source.read(np.arange(3), members=True)
    assert [bytes(image) for image in batch.images] == [images[0], images[1], b""]
    assert odd.stat().st_size < source.image_sizes(np.arange(3))[2] <= 1 << 50


def test_a_huge_sidecar_costs_no_image(tmp_path: Path) -> None:
    image = helpers.encode(helpers.load_photos()["chelsea"][:64, :64])
    path = tmp_path / "a.tar"
    path.write_bytes(member("0.jpg", image) + header("0.json", base_256(1 << 63)))
    batch = TarSource(str(path)).read(np.arange(1), members=True)
    assert batch.errors == {}
    assert bytes(batch.images[0]) == image
    assert "the tar ends within it" in batch.objects[0].metadata["metadata_error"]


@pytest.mark.parametrize("name", HARMLESS)
def test_a_broken_header_costs_what_it_describes(name: str) -> None:
    result = scan(member("0.jpg", b"0") + HARMLESS[name] + member("1.jpg", b"1") + END)
    assert [name for name in result.names if "@" not in name and name != "bad.jpg"] == ["0.jpg", "1.jpg"]
    assert set(result.problems.values()) <= {DAMAGED}


@pytest.mark.parametrize("blocks", [3, 63, 64, 65, 200, 40_000])
def test_maps_of_holes_are_read_in_large_pieces_and_have_an_end(blocks: int) -> None:
    more = (bytes(504) + b"\1" + bytes(7)) * blocks
    sparse = bytearray(header("hole.jpg", 5, b"S"))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    data = bytes(sparse) + more + bytes(512) + b"holes".ljust(512, b"\0") + member("a.jpg", b"a") + END
    asked = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    result = scan_tar(read_at, len(data))
    assert [name for name in result.names if "@" not in name] == ["hole.jpg", "a.jpg"]
    assert result.problems[0] == DAMAGED
    assert (len(result.problems) == 1) == (blocks < 32_768)  # a longer map is none
    assert len(asked) < 20 + blocks // 50
    assert scan(data[: 512 * 3]).names == ["hole.jpg"]  # cut within the map


def test_many_maps_of_holes_without_an_end_cost_time_by_their_length_only() -> None:
    sparse = bytearray(header("hole.jpg", 0, b"S"))
    sparse[482] = sparse[504] = 1  # each header is a block of the maps before it
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    data = bytes(sparse) * 34_000  # 8,192 blocks more than a map may have
    asked = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    result = scan_tar(read_at, len(data))
    assert 1 < len(result.problems) == len(result.names) < 8192
    assert len(asked) < 1000


@pytest.mark.parametrize("fill", [b"\1", b"\xe9"])
def test_damage_full_of_what_looks_like_headers_is_passed_over_quickly(fill: bytes) -> None:
    repeated = bytearray(fill * 13)
    for number, byte in enumerate(b"ustar"):
        repeated[(257 + number) % 13] = byte
    repeated[148 % 13 : 148 % 13 + 2] = b"7\0"  # a checksum, so that each place has to be summed
    began = time.monotonic()
    result = scan(member("0.jpg", b"0") + b"\1" * 512 + bytes(repeated) * 150_000 + END)
    assert [name for name in result.names if "@" not in name] == ["0.jpg"]
    assert time.monotonic() - began < 2


def test_checksums_of_signed_bytes_are_valid() -> None:
    head = bytearray(header("caf\u00e9.jpg", 1))
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in head)
    assert scan(bytes(head) + b"1".ljust(512, b"\0") + END).names == ["caf\u00e9.jpg"]


def test_records_cost_time_by_their_length_only() -> None:
    record = b"5 1 " * 200_000 + b"path=x\n"  # every record is shorter than its keyword
    began = time.monotonic()
    result = scan(member("PaxHeader/x", record, b"x") + member("a.jpg", b"a") + END)
    chain = b"".join(pax(("path", f"{n}.jpg")) for n in range(20_000))
    assert scan(chain + member("a.jpg", b"a") + END).names == ["19999.jpg"]
    assert time.monotonic() - began < 3
    assert result.names == ["a.jpg"]


sizes = st.one_of(
    st.integers(0, 5000).map(lambda size: b"%011o\0" % size),
    st.integers(0, (1 << 88) - 1).map(base_256),
    st.integers(0, (1 << 88) - 1).map(lambda number: base_256(number, b"\xff")),
    st.binary(min_size=12, max_size=12),
)
odd = st.one_of(
    st.builds(header, st.just("odd.jpg"), sizes, st.sampled_from([bytes([kind]) for kind in b"\x0001237SxgLKVDN"])),
    st.builds(
        lambda key, value, kind: pax((key, value), kind=kind),
        st.sampled_from(["size", "path", "GNU.sparse.map", "GNU.sparse.name", "GNU.sparse.realsize"]),
        st.text("0123456789-+_. ", max_size=40),
        st.sampled_from([b"x", b"g"]),
    ),
    st.builds(lambda record: member("PaxHeader/x", record, b"x"), st.binary(max_size=600)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(odd, min_size=1, max_size=4))
def test_whatever_a_header_says_what_lies_before_it_is_read(headers: list[bytes]) -> None:
    data = member("0.jpg", b"0" * 600) + b"".join(headers) + member("1.jpg", b"1") + END
    result = scan(data)
    assert (result.names[0], result.offsets[0], result.sizes[0]) == ("0.jpg", 512, 600)
    assert all(0 <= size <= 1 << 50 for size in result.sizes)
    assert set(result.problems.values()) <= {CUT, DAMAGED}
    index = TarIndex.from_scan(result, len(data))
    assert index.table[0, :2].tolist() == [512, 601]
    assert (index.table[:, 1].astype(object) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(odd)
def test_a_hostile_header_at_the_start_is_a_tar_or_none(head: bytes) -> None:
    with suppress(NotATarError):
        scan(head + member("1.jpg", b"1") + END)


class BrokenStore(MemoryFileSystem):
    """A store that answers with no bytes at all, which no reader expects."""

    protocol = "brokenstore"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("brokenstore://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> Any:
        return None


@pytest.fixture
def broken_store() -> Iterator[None]:
    fsspec.register_implementation("brokenstore", BrokenStore, clobber=True)
    fsspec.filesystem("memory").pipe({"/odd/a.tar": member("a.jpg", b"a") + END})
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.mark.usefixtures("broken_store")
def test_a_failure_of_any_kind_names_the_shard(tmp_path: Path) -> None:
    whole = helpers.write_tar(tmp_path / "whole.tar", [("w.jpg", b"w")])
    with pytest.raises(SourceError, match=r"1 of 2 shards cannot be read: brokenstore://odd/a\.tar: .*TypeError"):
        len(TarSource([str(whole), "brokenstore://odd/a.tar"]))


@pytest.mark.parametrize("name", ["b.jpg", "a.json", "a.bin"])
def test_a_member_that_is_too_large_costs_its_sample_at_most(tmp_path: Path, name: str) -> None:
    image = helpers.encode(helpers.load_photos()["chelsea"][:64, :64])
    path, size = tmp_path / "a.tar", 5 << 30
    with path.open("wb") as file:  # a hole, which takes no space on the disk
        file.write(member("a.jpg", image) + header(name, size))
        file.seek(size, 1)
        file.write(member("c.jpg", image) + END)
    with ImageLoader(str(path), device="cpu") as loader:
        read = {item.image_id: dict(item.metadata) for batch in loader for item in batch.data}
        reasons = {error.image_id: error.reason for error in loader.errors}
    words = "5,368,709,120 bytes, over the limit of 1,073,741,824"
    assert read.keys() == {"a", "c"}
    assert reasons == ({"b": f"the image has {words}"} if name == "b.jpg" else {})
    if name == "a.json":
        assert read["a"] == {"metadata_error": f"a sidecar cannot be read: {words}"}
    source = TarSource(str(path))
    batch = source.read(np.arange(len(source)), members=True)  # a sample without a member would be another one
    assert list(batch.errors) == [1 if name == "b.jpg" else 0]
    assert words in next(iter(batch.errors.values()))
    assert batch.unread == set()
    assert bytes(batch.members[-1]["jpg"]) == image
