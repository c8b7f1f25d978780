"""WebDataset tars of original bytes, read back by everybody who reads them."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.errors import OutputError
from curator_dali.io.files import filesystem
from curator_dali.outputs.tar import ShardedTarWriter, TarWriter, tar_header, to_json, written_key
from curator_dali.sources import MemorySource, ParquetSource, TarSource, open_source
from tests.helpers import photo_samples

Sample = tuple[str, Mapping[str, bytes]]

KEYS = ["000001", "a/b c/ü-1", "deep/" * 60 + "x", "n" * 99, "n" * 200, "日本語/猫", "plain_2"]


def write(path: Path, samples: list[Sample], curation: Mapping[str, Any] | None = None) -> list[str]:
    with TarWriter(str(path)) as tar:
        return [tar.write(key, members, curation) for key, members in samples]


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path, "r:") as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def samples(photos: dict[str, Any]) -> list[Sample]:
    """Seven samples with odd keys and odd extensions."""
    made = photo_samples(photos, len(KEYS))
    result: list[Sample] = []
    for number, (key, (_, parts)) in enumerate(zip(KEYS, made, strict=True)):
        image = {"JPG" if number % 2 else "left.jpg": parts["jpg"]}
        result.append((key, image | {"json": parts["json"], "empty": b"", "Seg.Map.bin": os.urandom(511 + number)}))
    return result


def test_members_are_byte_for_byte_what_they_were(tmp_path: Path, samples: list[Sample]) -> None:
    path = tmp_path / "öut put.tar"
    assert write(path, samples, {"score": 1.5}) == KEYS
    expected = []
    for key, parts in samples:
        expected += [(f"{key}.{extension}", data) for extension, data in parts.items()]
        expected.append(
            (f"{key}.curation.json", json.dumps({"image_id": key, "score": 1.5}, ensure_ascii=False).encode())
        )
    assert members(path) == expected
    assert path.stat().st_size % 10240 == 0


def test_our_own_source_reads_them(tmp_path: Path, samples: list[Sample]) -> None:
    write(tmp_path / "x.tar", samples, {"score": 1.5})
    source = TarSource(str(tmp_path / "x.tar"), index="none")
    batch = source.read(np.arange(len(source)), members=True)
    assert batch.errors == {}
    assert [item.image_id for item in batch.objects] == KEYS
    assert batch.members is not None
    for (key, parts), found in zip(samples, batch.members, strict=True):
        about = bytes(found["curation.json"])
        assert {name: bytes(data) for name, data in found.items()} == {**parts, "curation.json": about}, key


def test_webdataset_reads_them(tmp_path: Path, samples: list[Sample]) -> None:
    wds = pytest.importorskip("webdataset")
    write(tmp_path / "x.tar", samples, {"score": 1.5})
    found = list(wds.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == KEYS
    for sample, (_, parts) in zip(found, samples, strict=True):
        assert json.loads(sample["curation.json"])["score"] == 1.5
        for extension, data in parts.items():
            assert sample[extension.lower()] == data


def test_hugging_face_reads_them(tmp_path: Path, photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets  # only now, as it asks for the variable when it is imported

    samples = photo_samples(photos, 3)
    write(tmp_path / "x.tar", samples, {"score": 1.5})
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(tmp_path / "x.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    loaded = loaded.cast_column("jpg", datasets.Image(decode=False))
    assert [row["__key__"] for row in loaded] == [key for key, _ in samples]
    assert [row["jpg"]["bytes"] for row in loaded] == [parts["jpg"] for _, parts in samples]
    assert [row["curation.json"]["score"] for row in loaded] == [1.5] * 3


def test_gnu_tar_reads_them(tmp_path: Path, samples: list[Sample]) -> None:
    write(tmp_path / "x.tar", samples)
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", tmp_path / "x.tar"], check=True, capture_output=True, text=True
    )
    assert listed.stdout.splitlines() == [f"{key}.{extension}" for key, parts in samples for extension in parts]
    assert listed.stderr == ""


def test_equal_samples_make_equal_tars(tmp_path: Path, samples: list[Sample]) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, samples, {"score": np.float32(0.5)})
        os.utime(tmp_path / name, (0, 0))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@settings(deadline=None)
@given(st.one_of(NAMES, st.from_regex(r"[a-z/.]{1,300}", fullmatch=True)), st.integers(0, 1 << 40))
def test_headers_are_what_tarfile_would_read(name: str, size: int) -> None:
    name += ".x"  # a name that ends in a slash is a folder's
    header = tar_header(name, size)
    info = tarfile.TarInfo.frombuf(header[-512:], "utf-8", "strict")
    if len(header) == 512:
        expected = tarfile.TarInfo(name)
        expected.size = size
        assert header == expected.tobuf(tarfile.USTAR_FORMAT)
    else:
        assert not name.isascii() or len(name) > 100 or size >= 8 << 30
        with tarfile.open(fileobj=io.BytesIO(header + bytes(1024))) as tar:
            info = tar.next()  # type: ignore[assignment]
            assert (info.name, info.size) == (name, size)
    assert (info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname) == (0o644, 0, 0, 0, "", "")


@pytest.mark.parametrize("length", [100, 101, 255, 256])
def test_pax_only_where_ustar_has_no_room(length: int) -> None:
    splits = ("d/" * 75 + "n" * 300)[:length] if length > 100 else "n" * length
    assert (len(tar_header(splits, 5)) == 512) == (length <= 250)
    assert (len(tar_header("n" * length, 5)) == 512) == (length <= 100)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("000012", "000012"),
        ("a/b-c_d/e", "a/b-c_d/e"),
        ("v1.2/x", "v1.2/x"),
        ("cats/1.jpg", "cats/1_jpg"),
        ("https://x.org/a.b?c=d", "https:/x.org/a_b?c=d"),
        ("/etc/passwd", "etc/passwd"),
        ("../../up", "__/__/up"),
        ("a/../b", "a/__/b"),
        ("./a", "a"),
        ("./sub/./b.c", "sub/b_c"),
        ("./", "_"),
        (".", "_"),
        ("a//b/", "a/b/_"),
        (".hidden", "_hidden"),
        ("", "_"),
        ("..", "__"),
        ("nul\0nul", "nul_nul"),
        ("bad\udcff", "bad\\xff"),
        ("lone\ud800", "lone\\ud800"),
        ("猫.1", "猫_1"),
    ],
)
def test_keys_that_readers_would_split_or_refuse_are_changed(key: str, written: str) -> None:
    assert written_key(key) == written
    assert written_key(written) == written


def test_samples_of_a_tar_of_the_current_folder_keep_their_keys(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.JPG", "sub/b.TXT"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    subprocess.run(["tar", "-cf", tmp_path / "in.tar", "--sort=name", "-C", tmp_path / "in", "."], check=True)
    source = TarSource(str(tmp_path / "in.tar"))
    batch = source.read(np.arange(2), members=True)
    assert [item.image_id for item in batch.objects] == ["./a", "./sub/b"]
    assert batch.objects[1].metadata == {"caption": "sub/b.TXT"}
    assert batch.members is not None
    found = [(item.image_id, parts) for item, parts in zip(batch.objects, batch.members, strict=True)]
    assert write(tmp_path / "out.tar", [*found, ("a", {"jpg": b"x"})], {}) == ["a", "sub/b", "a__2"]  # type: ignore[list-item]
    written = members(tmp_path / "out.tar")
    assert [name for name, _ in written if ".curation" not in name] == ["a.jpg", "sub/b.JPG", "sub/b.TXT", "a__2.jpg"]
    assert json.loads(written[1][1]) == {"image_id": "./a", "key": "a"}


@settings(deadline=None)  # files are written
@given(
    st.lists(
        st.one_of(st.sampled_from(["a", "a__2", "a.b", "a_b", "/a", "", ".", "x/a"]), st.text(max_size=4)), max_size=30
    )
)
def test_no_sample_shadows_another(keys: list[str]) -> None:
    path = Path(os.environ["CURATOR_DALI_CACHE"]) / "keys.tar"
    written = write(path, [(key, {"jpg": str(number).encode()}) for number, key in enumerate(keys)], {})
    assert len(set(written)) == len(keys)
    source = TarSource(str(path), index="none")
    batch = source.read(np.arange(len(source)), members=True)
    assert [item.image_id for item in batch.objects] == written
    assert source.duplicate_keys == 0
    assert [bytes(found["jpg"]).decode() for found in batch.members or []] == [str(n) for n in range(len(keys))]
    abouts = [json.loads(bytes(found["curation.json"])) for found in batch.members or []]
    assert [about.get("key", about["image_id"]) for about in abouts] == written


def test_the_original_key_is_recorded(tmp_path: Path) -> None:
    assert write(tmp_path / "x.tar", [("a.b", {"jpg": b"1"}), ("a_b", {"jpg": b"2"})], {}) == ["a_b", "a_b__2"]
    abouts = [json.loads(data) for name, data in members(tmp_path / "x.tar") if name.endswith(".curation.json")]
    assert abouts == [{"image_id": "a.b", "key": "a_b"}, {"image_id": "a_b", "key": "a_b__2"}]


def test_an_earlier_curation_is_replaced(tmp_path: Path) -> None:
    parts = {"jpg": b"image", "curation.json": b"{}", "Curation.JSON": b"{}"}
    write(tmp_path / "x.tar", [("a", parts)], {"score": 2})
    assert members(tmp_path / "x.tar") == [("a.jpg", b"image"), ("a.curation.json", b'{"image_id": "a", "score": 2}')]
    write(tmp_path / "y.tar", [("a", parts)])
    assert [name for name, _ in members(tmp_path / "y.tar")] == ["a.jpg", "a.curation.json", "a.Curation.JSON"]


def test_what_numpy_and_floats_become() -> None:
    fields = {
        "a": np.float32(0.5),
        "b": math.nan,
        "c": np.arange(2),
        "d": [np.float64("inf"), "é"],
        "e": np.int64(3),
        "f": None,
    }
    assert json.loads(to_json(fields)) == {"a": 0.5, "b": None, "c": [0, 1], "d": [None, "é"], "e": 3, "f": None}
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        to_json({"a": object()})


@pytest.mark.parametrize("extension", ["", "a/b", ".jpg", "j\0g"])
def test_extensions_that_are_none(tmp_path: Path, extension: str) -> None:
    with TarWriter(str(tmp_path / "x.tar")) as tar:
        with pytest.raises(ValueError, match="no extension"):
            tar.write("a", {extension: b""})
        tar.write("a", {"jpg": b"1"})  # the tar is as it was before
    assert members(tmp_path / "x.tar") == [("a.jpg", b"1")]


def test_buffers_of_any_kind(tmp_path: Path) -> None:
    data = bytes(range(200))
    kinds = [data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), memoryview(data + b"x")[:-1]]
    write(tmp_path / "x.tar", [("a", {f"{number}": kind for number, kind in enumerate(kinds)})])  # type: ignore[dict-item]
    assert [found for _, found in members(tmp_path / "x.tar")] == [data] * 5


def test_members_of_every_source(tmp_path: Path, photos: dict[str, Any], shards: list[Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [parts["jpg"] for _, parts in photo_samples(photos, 4)]
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.JPEG").write_bytes(image)
    (folder / "0.txt").write_bytes(b"a caption")
    pq.write_table(pa.table({"id": list("abcd"), "image": images}), tmp_path / "x.parquet")
    sources = [
        open_source(str(folder)),
        ParquetSource(str(tmp_path / "x.parquet")),
        MemorySource(images),
        TarSource([str(shard) for shard in shards]),
    ]
    for number, source in enumerate(sources):
        batch = source.read(np.arange(4), members=True)
        assert batch.members is not None
        ids = [item.image_id for item in batch.objects]
        write(tmp_path / f"{number}.tar", list(zip(ids, batch.members, strict=True)), {})  # type: ignore[arg-type]
        again = TarSource(str(tmp_path / f"{number}.tar"), index="none").read(np.arange(4), members=True)
        assert [item.image_id for item in again.objects] == ids
        assert [bytes(image) for image in again.images] == [bytes(image) for image in batch.images]
        for before, after in zip(batch.members, again.members or [], strict=True):
            assert {name: bytes(data) for name, data in after.items() if name != "curation.json"} == {
                name: bytes(data) for name, data in before.items()
            }


def test_tars_by_number_of_samples(tmp_path: Path) -> None:
    with ShardedTarWriter(str(tmp_path / "p"), max_samples=3) as tars:
        places = [tars.write(f"{number}", {"jpg": b"x"}) for number in range(7)]
        assert sorted(path.name for path in tmp_path.glob("p-*")) == ["p-0000.tar", "p-0001.tar"]
    assert places == [(f"p-{number // 3:04d}.tar", f"{number}") for number in range(7)]
    assert [len(members(tmp_path / f"p-{shard:04d}.tar")) for shard in range(3)] == [3, 3, 1]
    assert [file.size for file in tars.written] == [10240] * 3


@settings(deadline=None, max_examples=40)  # files are written
@given(st.lists(st.integers(0, 30_000), max_size=20), st.integers(1, 60_000))
def test_tars_by_size(sizes: list[int], limit: int) -> None:
    folder = Path(os.environ["CURATOR_DALI_CACHE"]) / "by size"
    folder.mkdir(exist_ok=True)
    with ShardedTarWriter(str(folder / "p"), max_bytes=limit) as tars:
        places = [tars.write(f"{number}", {"jpg": bytes(size)}) for number, size in enumerate(sizes)]
    found = [[len(data) for _, data in members(Path(file.name))] for file in tars.written]
    assert [size for inside in found for size in inside] == sizes
    assert len(places) == len(sizes)
    for file, inside in zip(tars.written, found, strict=True):
        assert len(inside) == 1 or sum(512 + -(-size // 512) * 512 for size in inside) + 1024 <= limit, file


def test_one_key_in_two_tars_keeps_its_name(tmp_path: Path) -> None:
    with ShardedTarWriter(str(tmp_path / "p"), max_samples=1) as tars:
        assert [tars.write("a", {"jpg": b"x"}) for _ in range(2)] == [("p-0000.tar", "a"), ("p-0001.tar", "a")]


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    with ShardedTarWriter(str(tmp_path / "p")) as tars:
        pass
    assert tars.written == []
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "x.tar", [])
    assert members(tmp_path / "x.tar") == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*none/x\.tar: No such file"):
        TarWriter(str(tmp_path / "none" / "x.tar"))


def test_remote(tmp_path: Path, samples: list[Sample]) -> None:
    write(tmp_path / "x.tar", samples, {})
    url = "memory://tars/öut put/x.tar"
    with TarWriter(url) as tar:
        for key, parts in samples:
            tar.write(key, parts, {})
    fs, path = filesystem(url)
    assert fs.cat_file(path) == (tmp_path / "x.tar").read_bytes()
    assert len(TarSource(url, index="none")) == len(samples)
