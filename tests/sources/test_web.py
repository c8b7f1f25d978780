"""Web servers that are busy, silent, forbidding, or that answer something else than they were asked."""

from __future__ import annotations

import io
import math
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curator_dali import Cache, ImageLoader
from curator_dali.errors import OutputError, SourceError
from curator_dali.io import files, http, ranges, remote, store
from curator_dali.sources import Source, TarSource, open_source
from tests import helpers
from tests.sources.web_server import Server

COUNT = 4
KINDS = ["tar", "parquet", "images", "sniffed", "glob"]
BUSY = [408, 429, 500, 502, 503, 504]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [helpers.encode(pixels) for _, pixels in helpers.crops(helpers.load_photos(), COUNT)]


@pytest.fixture
def data(server: Server, images: list[bytes], tmp_path: Path) -> Callable[[str], Any]:
    """A function from a kind of source to what opens it: the same images on the server."""
    tar = helpers.write_tar(tmp_path / "a.tar", [(f"{n}.jpg", image) for n, image in enumerate(images)])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": images}), buffer, row_group_size=1, compression="NONE")
    server.files = {"/a.tar": tar.read_bytes(), "/a.parquet": buffer.getvalue()}
    server.files |= {f"/i/{n}.jpg": image for n, image in enumerate(images)}
    server.files |= {f"/photo/{n}": image for n, image in enumerate(images)}
    links = "".join(f'<a href="{n}.jpg">{n}</a>' for n in range(COUNT))
    server.files |= {"/i/": f"<html>{links}</html>".encode()}
    specs = {
        "tar": f"{server.url}/a.tar",
        "parquet": f"{server.url}/a.parquet",
        "images": [f"{server.url}/i/{n}.jpg" for n in range(COUNT)],
        "sniffed": [f"{server.url}/photo/{n}" for n in range(COUNT)],
        "glob": f"{server.url}/i/*.jpg",
    }
    return specs.__getitem__


def open_indexed(spec: Any, **options: Any) -> Source:
    """Open a source, and wait until all its files are indexed."""
    source = open_source(spec, **options)
    assert len(source) > 0
    return source


def check(source: Source, images: list[bytes]) -> None:
    batch = source.read(np.arange(len(source)))
    assert batch.errors == {}
    assert [bytes(image) for image in batch.images] == images


@pytest.mark.parametrize(
    ("kind", "status"), [*(("tar", status) for status in BUSY), *((kind, 503) for kind in KINDS[1:])]
)
def test_a_busy_server_is_asked_again(
    server: Server, data: Callable[[str], Any], images: list[bytes], kind: str, status: int
) -> None:
    for times in (1, 2):
        server.statuses = {path: [status] * times for path in server.files}
        check(open_source(data(kind), index="none") if kind == "tar" else open_source(data(kind)), images)
    server.status = status
    if kind == "images":  # which are not asked for before they are read
        batch = open_source(data(kind)).read(np.arange(COUNT))
        assert batch.unread == batch.errors.keys() == set(range(COUNT))
        assert all(str(status) in reason for reason in batch.errors.values())
    else:
        with pytest.raises(SourceError, match=str(status)):
            open_source(data(kind))


def test_what_a_server_says_of_waiting_is_heeded_within_reason(server: Server, data: Callable[[str], Any]) -> None:
    server.headers = {"Retry-After": "1"}
    for spec in (data("tar"), data("images")[0]):
        server.statuses = {path: [503, 503] for path in server.files}  # HEAD and GET
        begun = time.monotonic()
        open_source(spec, index="none").read(np.arange(1))
        assert 1 <= time.monotonic() - begun < 5
    assert remote.find_wait(remote.ServerError("429", 3600), 0.1, 0.0) == 30
    assert remote.find_wait(remote.ServerError("429", 0.0), 0.1, 0.0) == 0.1


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_forbids_is_told_as_such_and_asked_once(
    server: Server, data: Callable[[str], Any], kind: str, status: int
) -> None:
    server.status = status
    message = rf"PermissionError: {status} .*the URL's signature may have expired, or credentials lack the right"
    if kind == "images":
        batch = open_source(data(kind)).read(np.arange(COUNT))
        assert [message in reason for reason in batch.errors.values()] != []
        assert all(f"PermissionError: {status} " in reason for reason in batch.errors.values())
        assert batch.unread == set(range(COUNT))
        assert len(server.requests) == COUNT
        return
    with pytest.raises(SourceError, match=message):
        open_source(data(kind))
    assert (
        len(server.requests) <= {"tar": 3, "parquet": 3, "sniffed": COUNT, "glob": 2}[kind]
    )  # an index, HEAD, and GET


@pytest.mark.parametrize("status", [400, 404, 410, 451])
def test_other_refusals_are_final(server: Server, data: Callable[[str], Any], status: int) -> None:
    server.status = status
    with pytest.raises(SourceError, match="404 Not Found" if status == 404 else str(status)):
        open_source(data("tar"))
    assert len(server.requests) == 3  # the index of the data set, HEAD, and GET
    batch = open_source(data("images")).read(np.arange(COUNT))
    assert batch.unread == (set() if status in (404, 410) else set(range(COUNT)))  # nobody has seen those images


def test_a_server_that_is_down_is_not_told_as_a_missing_file() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for spec in (f"{url}/a.tar", f"{url}/a.parquet", f"{url}/*.tar", f"{url}/"):
        with pytest.raises(SourceError, match="Cannot connect to host"):
            open_source(spec)


@pytest.mark.parametrize("kind", ["tar", "parquet", "sniffed", "glob"])
def test_the_opening_from_a_silent_server_ends(
    server: Server, data: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote.TIMEOUT_VARIABLE, "0.2")
    begun = time.monotonic()
    for silent in ({"HEAD", "GET"}, {"GET"}):
        server.silent = silent
        with pytest.raises(SourceError, match=r"silent for too long \(\$CURATOR_DALI_TIMEOUT"):
            open_indexed(data(kind), index="none")
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("kind", ["tar", "parquet", "images"])
def test_a_read_from_a_silent_server_ends(
    server: Server, data: Callable[[str], Any], images: list[bytes], kind: str, stops: bool, monkeypatch: Any
) -> None:
    monkeypatch.setenv(remote.TIMEOUT_VARIABLE, "0.2")
    source = open_indexed(data(kind))
    server.stops = stops  # in the middle of an answer
    server.silent = set() if stops and kind != "images" else {"GET"}
    begun = time.monotonic()
    batch = source.read(np.arange(2))
    assert time.monotonic() - begun < 5
    assert batch.unread == batch.errors.keys() == {0, 1}
    assert all("silent for too long" in reason for reason in batch.errors.values())
    server.stops, server.silent = False, set()
    check(source, images)


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_many_files_of_a_silent_store_are_not_waited_for(
    server: Server, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote.TIMEOUT_VARIABLE, "0.2")
    server.silent = {"HEAD", "GET"}
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"200 of 200 .*silent for too long"):
        open_source(f"{server.url}/{{000..199}}.{ending}")
    assert time.monotonic() - begun < 5  # not the 1.2 seconds of a file for each of 16 or 32 files in turn


def test_a_silent_store_is_not_asked_for_longer_than_half_a_minute() -> None:
    now = time.monotonic()
    assert remote.find_wait(TimeoutError(), 0.1, now - 29) == 0.1
    assert remote.find_wait(TimeoutError(), 0.1, now - 31) is None
    assert remote.find_wait(ConnectionError(), 0.1, now - 31) == 0.1  # a long read that broke off
    assert remote.find_wait(TimeoutError(), 0.1, now - 31, patience=math.inf) == 0.1  # a write


def test_the_configuration_of_fsspec_goes_before_our_limits(
    server: Server, data: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = aiohttp.ClientTimeout(sock_read=0.2)
    monkeypatch.setitem(fsspec.config.conf, "https", {"client_kwargs": {"timeout": own, "trust_env": True}})
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 60}, "anon": True})
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"session_kwargs": {"timeout": own}})
    monkeypatch.setitem(fsspec.config.conf, "abfs", {"read_timeout": 60})
    config = {"connect_timeout": 10.0, "read_timeout": 60, "retries": {"total_max_attempts": 1}}
    assert files._make_options("s3") == {"config_kwargs": config}
    assert files._make_options("gs") == {"session_kwargs": {"timeout": own}}
    assert files._make_options("abfs") == {"connection_timeout": 10.0, "read_timeout": 60}
    server.silent = {"HEAD", "GET"}
    begun = time.monotonic()
    with pytest.raises(SourceError, match="silent for too long"):
        open_source(data("tar"))
    assert time.monotonic() - begun < 5


def test_the_limit_is_ten_seconds_unless_told() -> None:
    fs, path = ranges.filesystem("http://localhost/a.tar")
    assert path == "http://localhost/a.tar"
    timeout = fs.client_kwargs["timeout"]
    assert (timeout.total, timeout.sock_connect, timeout.sock_read) == (None, 10, 10)
    chained, _ = ranges.filesystem("simplecache::http://localhost/a.tar")
    assert chained.fs.client_kwargs["timeout"] == timeout
    written, _ = files.filesystem("http://localhost/a.tar")
    assert "timeout" not in written.client_kwargs  # the answer to an upload takes its time


class RecordedStore(MemoryFileSystem):
    """A store that takes whatever options S3's filesystem is made with."""

    protocol = ("s3", "s3a")


@pytest.mark.parametrize("url", ["s3://bucket/a.jpg", "filecache::s3://bucket/a.jpg"])
def test_the_limit_reaches_an_object_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["fsspec.registry"].__dict__["_registry"], "s3", RecordedStore)
    fs, _ = ranges.filesystem(url)
    fs = fs.fs if "::" in url else fs
    assert isinstance(fs, RecordedStore)
    assert fs.storage_options == {
        "config_kwargs": {"connect_timeout": 10, "read_timeout": 10, "retries": {"total_max_attempts": 1}}
    }


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.TIMEOUT_VARIABLE, value)
    with pytest.raises(SourceError, match=rf"CURATOR_DALI_TIMEOUT must be a number of seconds.*{value}"):
        open_source("http://localhost/a.tar")
    monkeypatch.setenv(remote.TIMEOUT_VARIABLE, "0")
    assert ranges.filesystem("http://localhost/a.tar")[0].client_kwargs["timeout"].sock_read is None


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize(("shift", "short"), [(100, 0), (-512, 0), (0, 10)])
def test_another_range_than_was_asked_for_is_no_image(
    server: Server, data: Callable[[str], Any], images: list[bytes], kind: str, shift: int, short: int
) -> None:
    source = open_indexed(data(kind))
    server.shift, server.short = shift, short
    last = np.array([COUNT - 1])
    batch = source.read(last)
    assert batch.unread == batch.errors.keys() == {0}
    assert "its server sent" in batch.errors[0]
    server.shift = server.short = 0
    check(source, images)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_range_without_an_end(server: Server, data: Callable[[str], Any], kind: str, status: int) -> None:
    server.endless = {status}
    server.ranges = status == 206
    with pytest.raises(SourceError, match=r"sent more bytes than|does not serve byte ranges"):
        open_indexed(data(kind))
    server.endless, server.ranges = set(), True
    source = open_indexed(data(kind))
    server.endless, server.ranges = {status}, status == 206
    batch = source.read(np.arange(COUNT))
    assert sorted(batch.errors) == sorted(batch.unread) == list(range(COUNT))


@pytest.mark.timeout(60)
def test_an_image_without_an_end(
    server: Server, data: Callable[[str], Any], images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST_FILE", 1 << 20)
    source = open_source(data("images"))
    server.endless = {200}
    batch = source.read(np.arange(2))
    assert all("sends more than the limit of 1,048,576 bytes" in batch.errors[row] for row in range(2))
    server.endless = set()
    assert bytes(source.read(np.arange(1)).images[0]) == images[0]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_answer_that_unpacks_to_more_than_was_asked_for(
    server: Server, data: Callable[[str], Any], tmp_path: Path, ranges: bool
) -> None:
    source = open_indexed(data("tar"))
    server.files["/a.tar"] = bytes(64 << 20)
    server.encoded, server.ranges = True, ranges
    batch = source.read(np.arange(COUNT))
    assert sorted(batch.errors) == list(range(COUNT))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_server_that_ignores_ranges(server: Server, data: Callable[[str], Any], kind: str) -> None:
    source = open_indexed(data(kind))
    server.ranges = False
    server.requests.clear()
    batch = source.read(np.arange(COUNT))
    assert batch.unread == batch.errors.keys() == set(range(COUNT))
    assert all("does not serve byte ranges. Download the file" in reason for reason in batch.errors.values())
    assert len(server.requests) <= 2 * COUNT * 2  # asked once
    if kind == "parquet":  # a small one comes with the first request
        buffer = io.BytesIO()
        pq.write_table(pa.table({"jpg": [bytes(1_000_000)]}), buffer, compression="NONE")
        server.files["/a.parquet"] = buffer.getvalue()
        with pytest.raises(SourceError, match="does not serve byte ranges"):
            open_indexed(data(kind))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_copy_that_fsspec_keeps_needs_no_ranges(
    server: Server, data: Callable[[str], Any], images: list[bytes], kind: str
) -> None:
    server.ranges = False
    check(open_source(f"simplecache::{data(kind)}"), images)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_that_was_replaced_on_the_server(
    server: Server, data: Callable[[str], Any], images: list[bytes], kind: str
) -> None:
    server.etag = f'"{"1" * 32}"'
    source = open_source(data(kind))
    check(source, images)
    with ImageLoader(source, device="cpu", batch_size=1) as loader:
        next(iter(loader))
        state = loader.state_dict()
    source.close()  # which forgets row groups
    server.etag = f'"{"2" * 32}"'
    server.files = {path: content.replace(images[0], images[0][::-1]) for path, content in server.files.items()}
    server.requests.clear()
    batch = source.read(np.arange(1, 3))  # of the same size, so that nothing but the ETag tells
    assert batch.unread == batch.errors.keys() == {0, 1}
    assert all("changed after it was" in reason for reason in batch.errors.values())
    assert len(server.requests) <= 6  # not asked again and again
    again = open_source(data(kind))  # whose index is made anew
    check(again, [images[0][::-1], *images[1:]])
    with ImageLoader(again, device="cpu", batch_size=1) as loader, pytest.raises(ValueError, match="fingerprint"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_of_another_size_is_another_file(
    server: Server, data: Callable[[str], Any], images: list[bytes], kind: str
) -> None:
    source = open_indexed(data(kind))
    server.files = {path: b"x" * 512 + content for path, content in server.files.items()}
    batch = source.read(np.arange(2))
    assert batch.unread == batch.errors.keys() == {0, 1}
    assert all("changed after it was opened" in reason for reason in batch.errors.values())


def test_weak_etags_and_times_do_not_tell_a_change_while_a_file_is_read(
    server: Server, data: Callable[[str], Any], images: list[bytes]
) -> None:
    server.etag = 'W/"one"'
    source = open_indexed(data("tar"))
    server.etag = 'W/"two"'
    check(source, images)
    server.etag, server.headers = "", {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    open_indexed(data("tar"))
    server.requests.clear()
    server.headers = {"Last-Modified": "Mon, 01 Jan 2024 00:00:01 GMT"}
    check(open_indexed(data("tar")), images)
    assert server.ranges_sent("/a.tar")[0][0] == 0  # indexed again


def test_a_new_signature_is_the_same_data_set(server: Server, data: Callable[[str], Any], images: list[bytes]) -> None:
    def sign(spec: Any, query: str) -> Any:
        found = [f"{url}?{query}" for url in ([spec] if isinstance(spec, str) else spec)]
        server.files |= {f"{path}?{query}": content for path, content in list(server.files.items()) if "?" not in path}
        return found[0] if isinstance(spec, str) else found

    queries = [
        "X-Amz-Algorithm=AWS4&X-Amz-Credential=a/b.c&X-Amz-Signature=12.4/5",
        "AWSAccessKeyId=a&Signature=q/w.e&Expires=1",
        "sv=2022&se=1&sp=r&sig=a/b.c",
        "X-Goog-Credential=x/y.z&X-Goog-Signature=1.2/3",
    ]
    for kind in ("tar", "parquet", "images"):
        prints = set()
        for query in queries:
            source = open_source(sign(data(kind), query))
            prints.add(source.fingerprint)
            check(source, images)
            ids = [item.image_id for item in source.read(np.arange(COUNT)).objects]
            assert ids == [f"a-{n}" if kind == "parquet" else f"{n}" for n in range(COUNT)]
        assert len(prints) == 1
        assert len({open_source(sign(data(kind), f"versionId={n}")).fingerprint for n in range(2)}) == 2 - (
            kind != "images"
        )
    server.requests.clear()
    open_source(sign(data("tar"), queries[0]))
    assert {command for command, _ in server.requests} == {"HEAD"}  # the index was found
    open_indexed(sign(data("tar"), "versionId=3"))
    assert "GET" in {command for command, _ in server.requests}


def test_images_of_one_address_and_several_queries_stay_apart(server: Server, images: list[bytes]) -> None:
    server.files = {f"/photo.jpg?id={n}": image for n, image in enumerate(images)}
    source = open_source([f"{server.url}{path}" for path in server.files])
    check(source, images)
    assert len({item.image_id for item in source.read(np.arange(COUNT)).objects}) == COUNT


def test_a_token_that_tells_images_apart_is_no_signature(server: Server, images: list[bytes]) -> None:
    server.files = {f"/photo.jpg?token={n}": image for n, image in enumerate(images)}
    source = open_source([f"{server.url}{path}" for path in server.files])
    check(source, images)
    assert len({item.image_id for item in source.read(np.arange(COUNT)).objects}) == COUNT


@pytest.mark.parametrize(
    "name", ["with%20space", "a%23b", "100%25", "a%2520b", "what%3F", "%5B1%5D", "[1]", "a+b", "x{1}"]
)
def test_names_on_a_web_server(server: Server, images: list[bytes], tmp_path: Path, name: str) -> None:
    tar = helpers.write_tar(tmp_path / "a.tar", [("a.jpg", images[0])]).read_bytes()
    server.files = {f"/{name}.jpg": images[0], f"/{name}.tar": tar}
    for character in "{}[]":  # which are sent encoded
        encoded = f"%{ord(character):02X}"
        server.files |= {path.replace(character, encoded): content for path, content in server.files.items()}
    for spec in (f"{server.url}/{name}.jpg", [f"{server.url}/{name}.jpg"], f"{server.url}/{name}.tar"):
        source = open_source(spec)
        assert isinstance(source, TarSource) == str(spec).endswith(".tar")
        check(source, [images[0]])


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(
    server: Server, data: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATOR_DALI_TIMEOUT", "0.2")
    source = open_indexed(data("tar"))
    server.trickle = 0.05
    batch = source.read(np.arange(2))
    assert batch.unread == {0, 1}
    for reason in batch.errors.values():
        assert server.url in reason
        assert "sent " in reason
        assert "bytes in 1 seconds ($CURATOR_DALI_TIMEOUT sets a third of these)" in reason


@pytest.mark.parametrize("status", [500, 503, 429])
def test_files_of_outputs_are_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(store, "_RETRY_DELAYS", (0.01, 0.01))
    server.files = {"/out/run.json": b"{}"}
    server.statuses = {"/out/run.json": [status, status]}
    assert store.read(f"{server.url}/out/run.json") == b"{}"
    server.statuses = {"/out/run.json": [status]}
    assert list(store.read_many(f"{server.url}/out", ["run.json", "none.json"])) == [("run.json", b"{}")]
    server.status = status
    with pytest.raises(OutputError, match=f"cannot read {server.url}/out/run.json: ServerError: {status}"):
        store.read(f"{server.url}/out/run.json")


def test_files_of_outputs_of_a_silent_server_are_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_RETRY_DELAYS", (0.01,))
    monkeypatch.setenv("CURATOR_DALI_TIMEOUT", "0.2")
    server.silent = {"GET", "HEAD"}
    with pytest.raises(OutputError, match=r"cannot read .*silent for too long \(.*now 0.2\)"):
        store.read(f"{server.url}/out/run.json")


@pytest.mark.parametrize("kind", ["tar", "parquet", "images"])
@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
def test_redirects_lead_to_signed_urls(
    server: Server, data: Callable[[str], Any], images: list[bytes], tmp_path: Path, kind: str, cached: bool
) -> None:
    spec = data(kind)
    cache = Cache(tmp_path / "cache", "1GB") if cached else None
    for turn in ("one", "two"):  # whose redirects differ, as signatures do
        for path in [path for path in server.files if "?" not in path]:
            signed = f"{path}?X-Amz-Signature={turn}"
            server.files[signed] = server.files[path]
            server.redirects[path] = signed if turn == "one" else f"{server.url}{signed}"
        server.requests.clear()
        source = open_source(spec, index="none", cache=cache)
        check(source, images)
        source.close()
    if cached and kind == "tar":
        assert server.ranges_sent("/a.tar?X-Amz-Signature=two") == []


def stream(source: Any) -> None:
    """Begin a pass, which reads tars without an index whole."""
    with ImageLoader(source, device="cpu", batch_size=1) as loader:
        next(iter(loader))


@pytest.mark.parametrize("way", ["scan", "stream"])
def test_a_tar_that_was_replaced_before_it_was_indexed(
    server: Server, data: Callable[[str], Any], images: list[bytes], way: str
) -> None:
    url = data("tar")
    path = url.removeprefix(server.url)
    server.etag = f'"{"1" * 32}"'
    source = open_source(url)
    before, server.etag = server.etag, f'"{"2" * 32}"'
    content = server.files[path]
    server.files[path] = content.replace(images[0], images[0][::-1])
    with pytest.raises(SourceError, match="changed after it was opened"):
        (len if way == "scan" else stream)(source)
    server.files[path], server.etag = content, before
    check(open_source(url), images)  # nothing of the other file was kept


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("403", "PermissionError: 403 Forbidden: the URL's signature may have expired"),
        ("500", "ServerError: 500 Internal Server Error"),
        ("changed", "changed after it was opened: open the source again"),
        ("no tar", "not a tar (a compressed one must be unpacked first). Shards must be uncompressed tars"),
    ],
)
def test_a_failure_names_the_tar_once_and_says_what_to_do(
    server: Server, data: Callable[[str], Any], tmp_path: Path, failure: str, reason: str, cached: bool
) -> None:
    url = data("tar")
    server.etag = f'"{"1" * 32}"'
    if failure == "no tar":
        server.files = dict.fromkeys(server.files, b"no tar" * 1000)
    source = open_source(url, cache=Cache(tmp_path / "cache", "1GB") if cached else None)
    if failure == "changed":
        server.etag = f'"{"2" * 32}"'
    elif failure != "no tar":
        server.status = int(failure)
    for read in (len, stream):
        with pytest.raises(SourceError) as caught:
            read(source)
        assert str(caught.value).count(url) == 1
        assert reason in str(caught.value)
        assert ("uncompressed tars" in str(caught.value)) == (failure == "no tar")
