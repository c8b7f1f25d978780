"""Sources and outputs in S3: s3fs against a server on this machine that speaks S3 (moto's)."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali import io as io_module
from curator_dali.errors import OutputError, SourceError
from curator_dali.io import ranges, remote
from tests import helpers

moto = pytest.importorskip("moto.server", reason="moto is in the extra [test]")
pytest.importorskip("s3fs", reason="s3fs is in the extra [remote]")

COUNT = 6  # images of a shard
ODD = ["a b", "plus+sign", "hash#1", "per%20cent", "uni-é", "star*", "br[1]", "{curly}", "col:on", "deep er/x", "a.b"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The server's URL; s3fs finds it and the credentials in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        use(patch, AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_ENDPOINT_URL=url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield url
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def use(patch: pytest.MonkeyPatch, **environment: str) -> None:
    """Change the environment; a filesystem that fsspec keeps would go on with the old one."""
    for name, value in environment.items():
        patch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture(scope="module")
def images(photos: dict[str, NDArray[np.uint8]]) -> list[bytes]:
    return [helpers.encode(pixels) for _, pixels in helpers.crops(photos, 2 * COUNT, shortest=24, longest=64)]


@pytest.fixture(scope="module")
def bucket(endpoint: str, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bucket with tars, a folder of odd names and a Parquet file."""
    fs = fsspec.filesystem("s3")
    fs.mkdir("photos")
    made = tmp_path_factory.mktemp("tars") / "made.tar"
    for shard in range(2):
        members = []
        for n in range(shard * COUNT, (shard + 1) * COUNT):
            members += [(f"{n:03d}.jpg", images[n]), (f"{n:03d}.json", json.dumps({"n": n}).encode())]
        fs.pipe(f"photos/shards/{shard}.tar", helpers.write_tar(made, members).read_bytes())
    for name, image in zip(ODD, images, strict=False):
        fs.pipe(f"photos/odd/cats/{name}.jpg", image)
    fs.pipe("photos/odd/dogs/one.jpg", images[-1])
    table = io.BytesIO()
    pq.write_table(pa.table({"jpg": images[:COUNT], "key": [f"k{n}" for n in range(COUNT)]}), table)
    fs.pipe("photos/rows/part-0.parquet", table.getvalue())
    return fs


def load(spec: Any) -> dict[str, Any]:
    """Id -> metadata of every image; none may fail."""
    with cd.ImageLoader(spec, batch_size=4, device="cpu", num_threads=1) as loader:
        found = {item.image_id: item.metadata for batch in loader for item in batch.data}
        assert list(loader.errors) == []
    return found


TARS = [f"{n:03d}" for n in range(2 * COUNT)]


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("s3://photos/shards/*.tar", TARS),
        ("s3://photos/shards/{0..1}.tar", TARS),
        ("s3://photos/shards/", TARS),
        ("s3://photos/shards", TARS),
        ("s3://photos/shards/1.tar", TARS[COUNT:]),
        (["s3://photos/shards/1.tar", "s3://photos/shards/0.tar"], TARS[COUNT:] + TARS[:COUNT]),
        ("s3://photos/rows/*.parquet", [f"k{n}" for n in range(COUNT)]),
        ("s3://photos/rows/part-0.parquet", [f"k{n}" for n in range(COUNT)]),
    ],
)
def test_shards_and_parquet_open(spec: Any, expected: list[str]) -> None:
    found = load(spec)
    assert list(found) == expected
    assert all(found[key]["n"] == int(key) for key in expected if key in TARS)


@pytest.mark.usefixtures("bucket")
def test_names_of_a_folder_may_have_odd_characters(images: list[bytes]) -> None:
    found = load("s3://photos/odd")
    assert set(found) == {*(f"cats/{name}" for name in ODD), "dogs/one"}
    assert found["cats/a b"]["label_name"] == "cats"
    assert found["dogs/one"]["label"] == 1
    source = cd.open_source("s3://photos/odd")
    batch = source.read(np.arange(len(source)), members=True)
    read = {item.image_id: bytes(data) for item, data in zip(batch.objects, batch.images, strict=True)}
    assert read == {f"cats/{name}": image for name, image in zip(ODD, images, strict=False)} | {"dogs/one": images[-1]}
    assert set(load("s3://photos/odd/cats/*.jpg")) == {name for name in ODD if "/" not in name}


def test_an_image_path_opens_by_fsspec(bucket: Any, images: list[bytes]) -> None:
    source = cd.open_source("s3://photos/shards/*.tar")
    path = source.read(np.array([COUNT])).objects[0].image_path
    assert path == "tar://006.jpg::s3://photos/shards/1.tar"
    with fsspec.open(path) as file:
        assert file.read() == images[COUNT]


def curate(out: str, **options: Any) -> cd.Report:
    stages = [cd.Quality(), cd.Filter("width", min=1)]
    return cd.curate(
        "s3://photos/shards/*.tar", out, stages=stages, device="cpu", num_threads=1, part_size=4, **options
    )


@pytest.mark.slow
def test_a_curation_writes_to_s3_resumes_and_opens_again(bucket: Any) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    whole = curate("s3://photos/whole")
    assert whole.kept == 2 * COUNT
    with pytest.raises(KeyboardInterrupt):
        curate("s3://photos/out", progress=stop)
    assert not bucket.exists("photos/out/report.json")
    curate("s3://photos/out")
    times = {path: facts["LastModified"] for path, facts in bucket.find("photos/out", detail=True).items()}
    assert {path.removeprefix("photos/out") for path in times} == {
        path.removeprefix("photos/whole") for path in bucket.find("photos/whole")
    }
    assert set(load("s3://photos/out")) == set(TARS)
    curate("s3://photos/out")  # nothing is left to do: no part is written again
    bucket.invalidate_cache()
    again = bucket.find("photos/out", detail=True)
    assert {path for path in times if again[path]["LastModified"] != times[path]} <= {
        "photos/out/report.json", "photos/out/report.html",
    }  # fmt: skip
    new = cd.rethreshold("s3://photos/out", "s3://photos/new", stages=[cd.Filter("width", max=40)])
    assert 0 < new.kept < 2 * COUNT
    assert len(load("s3://photos/new")) == new.kept


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("s3://photos/nothing/*.tar", "nothing there: 's3://photos/nothing/[*].tar'"),
        ("s3://photos/shards/9.tar", "s3://photos/shards/9.tar: FileNotFoundError"),
        ("s3://nowhere/shards", "'s3://nowhere/shards' is: FileNotFoundError: The specified bucket does not exist"),
        ("s3://nowhere/shards/0.tar", "s3://nowhere/shards/0.tar: FileNotFoundError"),
        ("s3://nowhere/*.tar", "nothing there: 's3://nowhere/[*].tar'"),
    ],
)
def test_a_missing_key_or_bucket_is_told(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        cd.open_source(spec)


@pytest.mark.usefixtures("bucket")
def test_wrong_credentials_are_told(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def count_free(number: str) -> None:  # requests that the server answers whoever asks
        requests.post(f"{endpoint}/moto-api/reset-auth", data=number, timeout=10).raise_for_status()

    count_free("0")
    use(monkeypatch, AWS_ACCESS_KEY_ID="nobody")
    wrong = "PermissionError: The AWS Access Key Id you provided does not exist"
    try:
        for spec in ("s3://photos/shards/*.tar", "s3://photos/shards/0.tar", "s3://photos/odd", "s3://photos/rows"):
            with pytest.raises(SourceError, match=f"{spec[:20]}.*{wrong}"):
                cd.open_source(spec)
        with pytest.raises(OutputError, match=f"cannot write s3://photos/refused: {wrong}"):
            cd.curate({"a": b"x"}, "s3://photos/refused", stages=[cd.Quality()], device="cpu")
    finally:
        count_free("inf")
        use(monkeypatch, AWS_ACCESS_KEY_ID="testing")


@pytest.mark.usefixtures("bucket")
def test_no_credentials_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    use(monkeypatch, AWS_EC2_METADATA_DISABLED="true")
    advice = "Unable to locate credentials. Give credentials: AWS_ACCESS_KEY_ID and .*a public bucket"
    with pytest.raises(SourceError, match=advice):
        cd.open_source("s3://photos/shards/0.tar")
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("spec", ["s3://photos/shards/*.tar", "s3://photos/rows/*.parquet", "s3://photos/odd"])
def test_a_second_reading_comes_from_the_cache(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cd.Cache(tmp_path / "cache", limit="1GB")
    expected = load(spec)
    for _ in range(2):
        with cd.ImageLoader(spec, batch_size=4, device="cpu", num_threads=1, cache=cache) as loader:
            assert {item.image_id: item.metadata for batch in loader for item in batch.data} == expected
        downloads = io_module.read_cache_info(str(cache.folder)).downloads
    assert io_module.read_cache_info(str(cache.folder)).downloads == downloads
    assert io_module.read_cache_info(str(cache.folder)).hits > downloads / 2


def test_an_object_that_was_replaced_is_read_anew(bucket: Any, images: list[bytes], tmp_path: Path) -> None:
    cache = cd.Cache(tmp_path / "cache", limit="1GB")
    for image in (images[0], images[1]):
        bucket.pipe("photos/changing/one.jpg", image)
        source = cd.open_source("s3://photos/changing", cache=cache)
        assert bytes(source.read(np.array([0])).images[0]) == image


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AccessDenied", "Access Denied"),
        ("ExpiredToken", "The provided token has expired"),
        ("403", "Forbidden"),
        ("SignatureDoesNotMatch", "The request signature we calculated does not match"),
    ],
)
def test_a_refusal_says_what_to_do(code: str, message: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    error = translate_boto_error(ClientError({"Error": {"Code": code, "Message": message}}, "GetObject"))
    found = remote.explain(error, "s3://photos/a.tar")
    assert isinstance(found, PermissionError)
    for part in (message, "s3://photos/a.tar", "lack the right, or have expired: renew them"):
        assert str(found).count(part) == 1
    assert str(remote.explain(found, "s3://photos/a.tar")) == str(found)  # said once


def test_google_credentials_are_told() -> None:
    exceptions = pytest.importorskip("google.auth.exceptions")
    retry = pytest.importorskip("gcsfs.retry")
    for error in (
        exceptions.DefaultCredentialsError("Your default credentials were not found."),
        exceptions.RefreshError("invalid_grant"),
        retry.HttpError({"code": 401, "message": "Anonymous caller does not have storage.objects.get access"}),
        retry.HttpError({"code": 403, "message": "nobody@x does not have storage.objects.get access"}),
    ):
        found = remote.explain(error, "gs://photos/a.tar")
        assert isinstance(found, PermissionError)
        assert "gcloud auth application-default login" in str(found)
        assert remote.find_wait(found, 0.1, 0.0) is None


@pytest.mark.parametrize("stops", [False, True], ids=["silent", "stops in a body"])
def test_a_store_that_says_nothing_is_not_waited_for(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    with SilentS3(stops) as server:
        monkeypatch.setenv("CURATOR_DALI_TIMEOUT", "0.2")
        use(monkeypatch, AWS_ENDPOINT_URL=server.url)
        begun = time.monotonic()
        with pytest.raises(SourceError, match=r"s3://photos/a.tar.*silent for too long \(.*the seconds, now 0.2\)"):
            len(cd.open_source("s3://photos/a.tar", index="none"))
        if not stops:
            with pytest.raises(OutputError, match=r"cannot read s3://photos/run.json: .*now 0.2"):
                io_module.store.read("s3://photos/run.json")
        assert time.monotonic() - begun < 40
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


class SilentS3:
    """A server that accepts and never answers, or answers with a beginning of what was asked for.

    Args:
        stops: Whether it begins an answer.
    """

    def __init__(self, stops: bool) -> None:
        self.stops = stops
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.clients: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                self.clients.append(client)
                if self.stops:
                    threading.Thread(target=self.begin, args=(client,), daemon=True).start()

    def begin(self, client: socket.socket) -> None:
        head = 'HTTP/1.1 {}\r\nETag: "1"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: {}\r\n'
        with suppress(OSError):
            while asked := client.recv(1 << 16):
                if asked.startswith(b"HEAD"):
                    client.sendall(f"{head.format('200 OK', 10_000)}\r\n".encode())
                elif b"list-type" in asked:
                    body = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
                    client.sendall(f"{head.format('200 OK', len(body))}\r\n{body}".encode())
                else:
                    told = "Content-Range: bytes 0-9999/10000\r\n"
                    client.sendall(f"{head.format('206 Partial', 10_000)}{told}\r\nbegins".encode())

    def __enter__(self) -> SilentS3:
        return self

    def __exit__(self, *_: object) -> None:
        for one in [self.socket, *self.clients]:
            one.close()


def make_tar(tmp_path: Path, images: list[bytes]) -> bytes:
    """A tar of images that do not differ in size; of other images, the tars do not either."""
    size = max(map(len, images))
    members = [(f"{n:03d}.jpg", image.ljust(size, b"\0")) for n, image in enumerate(images)]
    return helpers.write_tar(tmp_path / "made.tar", members).read_bytes()


def stream(source: Any) -> None:
    """Begin a pass, which reads tars without an index whole."""
    with cd.ImageLoader(source, device="cpu", batch_size=1) as loader:
        next(iter(loader))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("way", ["scan", "stream"])
def test_a_tar_that_was_replaced_before_it_was_indexed(
    bucket: Any, images: list[bytes], tmp_path: Path, way: str, cached: bool
) -> None:
    url = f"s3://photos/replaced-{way}-{cached}.tar"
    cache = cd.Cache(tmp_path / "cache", "1GB") if cached else None
    one, other = make_tar(tmp_path, images), make_tar(tmp_path, images[::-1])
    assert len(one) == len(other)
    bucket.pipe(url, one)
    source = cd.open_source(url, cache=cache)
    bucket.pipe(url, other)
    with pytest.raises(SourceError, match="changed after it was opened"):
        (len if way == "scan" else stream)(source)
    bucket.pipe(url, one)
    assert len(source) == len(images)  # it is the same one again, and nothing of the other was kept
    found = source.read(np.arange(len(images))).images
    assert [bytes(image) for image in found] == [image.ljust(max(map(len, images)), b"\0") for image in images]


@pytest.mark.parametrize("chain", ["simplecache", "filecache"])
def test_a_chain_is_what_it_was(bucket: Any, images: list[bytes], tmp_path: Path, chain: str) -> None:
    bucket.pipe(f"s3://photos/{chain}.tar", make_tar(tmp_path, images))
    assert len(cd.open_source(f"{chain}::s3://photos/{chain}.tar", index="none")) == len(images)
    fsspec.get_filesystem_class(chain).clear_instance_cache()


def test_a_cache_keeps_nothing_of_an_object_that_was_replaced(bucket: Any, tmp_path: Path) -> None:
    url, size = "s3://photos/swapped.bin", 6 << 20
    one, other = bytes(size), b"\1" * size
    bucket.pipe(url, one)
    io_module.filesystem(url)[0].invalidate_cache()  # of a listing before
    cache = cd.Cache(tmp_path / "cache", "1GB")
    stat = io_module.Storage().stat(url)

    def read(storage: io_module.Storage, at: int) -> tuple[str, set[int]]:
        parts = [bytearray(10), bytearray(10)]
        requests = [io_module.Request(url, stat, n, memoryview(p)) for n, p in zip((0, at), parts, strict=True)]
        outcomes = storage.fill(requests)
        assert len({outcome.reason for outcome in outcomes}) == 1
        return outcomes[0].reason, {byte for part in parts for byte in part}

    storage = io_module.Storage(cache=cache)
    assert read(storage, 0) == ("", {0})  # one of two blocks is there
    bucket.pipe(url, other)
    for end in (0, size - 10):
        reason, _ = read(io_module.Storage(cache=cache), end)
        assert ("changed after it was opened" in reason) == (end > 0)
    assert io_module.read_cache_info(str(cache.folder)).files == 0
    bucket.pipe(url, one)
    for _ in range(2):
        assert read(io_module.Storage(cache=cache), size - 10) == ("", {0})
    assert io_module.read_cache_info(str(cache.folder)).downloads >= size


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("made", ["there", "here"])
def test_tars_of_an_index_are_compared_when_they_are_read(
    bucket: Any, images: list[bytes], tmp_path: Path, made: str, replaced: bool
) -> None:
    folder = f"photos/indexed-{made}-{replaced}"
    content = make_tar(tmp_path, images)
    for number in range(2):
        bucket.pipe(f"{folder}/{number}.tar", content)
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / f"{number}.tar").write_bytes(content)
    cd.prepare(f"s3://{folder}" if made == "there" else tmp_path / "here", tmp_path / "index")
    if replaced:
        bucket.pipe(f"{folder}/1.tar", make_tar(tmp_path, images[::-1]) + bytes(512 * (made == "here")))
    source = cd.open_source(f"s3://{folder}/{{0..1}}.tar", index=str(tmp_path / "index"))
    assert source.read_ids(np.arange(len(source))).to_pylist() == 2 * [f"{n:03d}" for n in range(len(images))]
    batch = source.read(np.array([0, len(images)]))
    assert batch.unread == set(batch.errors) == ({1} if replaced else set())
    if replaced:
        assert "changed after it was opened" in batch.errors[1]
        assert "`curator-dali prepare` brings it up to date" in batch.errors[1]
    assert bytes(batch.images[0]).rstrip(b"\0") == images[0].rstrip(b"\0")


def test_the_index_of_a_folder_of_images(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path))
    bucket.copy("photos/odd/", "photos/indexed/", recursive=True)
    expected = cd.open_source("s3://photos/indexed/", index="none")
    made = cd.prepare("s3://photos/indexed")
    assert (made.folder, made.samples) == ("s3://photos/indexed/.curator_dali_index", len(ODD) + 1)
    assert cd.prepare("s3://photos/indexed").indexed == 0
    found = cd.open_source("s3://photos/indexed")
    assert found.fingerprint == expected.fingerprint  # which is of the store's hashes, too
    assert found.headers(np.arange(len(found)))["codec"].all()
    assert found.read_ids(np.arange(len(found))).to_pylist() == expected.read_ids(np.arange(len(found))).to_pylist()
    bucket.pipe("photos/indexed/dogs/two.jpg", bucket.cat("photos/odd/dogs/one.jpg"))
    assert len(cd.open_source("s3://photos/indexed")) == len(ODD) + 1  # nothing is listed
    assert cd.prepare("s3://photos/indexed").indexed == 1
    assert len(cd.open_source("s3://photos/indexed")) == len(ODD) + 2
    bucket.rm("photos/indexed", recursive=True)
