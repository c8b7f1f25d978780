"""Remote tars without an index: the first batch comes at once, bytes are read once, in the order of indexed tars."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curator_dali as cd
from curator_dali.errors import SourceError
from curator_dali.io import ranges, remote
from curator_dali.sources import TarSource, open_source
from tests import helpers
from tests.sources.web_server import Server

COUNT, PER_SHARD = 48, 6
SHARDS = COUNT // PER_SHARD
ORDERS = [None, cd.Shuffle(3, window=4), cd.Shuffle(3, window=10)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    samples = helpers.photo_samples(helpers.load_photos(), COUNT)
    samples[20][1]["jpg"] = b"\xff\xd8 no image"
    return helpers.write_shards(tmp_path_factory.mktemp("streamed"), samples, per_shard=PER_SHARD)


@pytest.fixture
def urls(server: Server, tars: list[Path]) -> list[str]:
    server.files = {f"/{path.name}": path.read_bytes() for path in tars}
    return [f"{server.url}/{path.name}" for path in tars]


def make_loader(source: Any, shuffle: Any = None, **options: Any) -> cd.ImageLoader:
    options = {"batch_size": 5, "transforms": [cd.transforms.RandomResizedCrop((8, 8))], **options}
    return cd.ImageLoader(source, device="cpu", shuffle=shuffle, **options)


def collect(loader: cd.ImageLoader) -> list[tuple[str, bytes]]:
    """(id, pixels) of every image that comes out."""
    return [(item.image_id, batch.images[row].tobytes()) for batch in loader for row, item in enumerate(batch.data)]


def count_bytes(server: Server) -> int:
    return sum(end - begin for path in server.files for begin, end in server.ranges_sent(path))


@pytest.mark.parametrize("shuffle", ORDERS)
def test_the_first_epoch_reads_once_and_is_that_of_indexed_tars(
    server: Server, urls: list[str], tars: list[Path], shuffle: Any
) -> None:
    with make_loader([str(path) for path in tars], shuffle) as loader:
        indexed, errors = collect(loader), [(e.image_id, e.index) for e in loader.errors]
    with make_loader(open_source(urls, index="cache"), shuffle) as loader:
        assert not loader.is_counted
        first = collect(loader)
        assert loader.is_counted
        assert [(e.image_id, e.index) for e in loader.errors] == errors == [("000020", 20)]
        data = sum(map(len, server.files.values()))
        assert data <= count_bytes(server) <= 1.05 * data
        assert collect(loader) == first
    assert first == indexed
    server.requests.clear()
    with make_loader(urls, shuffle) as loader:  # what was learnt is kept
        assert loader.is_counted
        assert count_bytes(server) == 0
        assert collect(loader) == indexed


@pytest.mark.parametrize("shuffle", ORDERS)
def test_the_first_batch_needs_no_more_than_two_tars(server: Server, urls: list[str], shuffle: Any) -> None:
    with make_loader(open_source(urls, index="none"), shuffle, batch_size=4) as loader:
        numbers = list(range(SHARDS)) if shuffle is None else loader._order.shards(0).numbers.tolist()
        first = {f"/{number:05d}.tar" for number in numbers[: 1 + (shuffle is not None and shuffle.window > 6)]}
        server.held = set(server.files) - first
        running = iter(loader)
        assert len(next(running).data) >= 3  # one image is bad
        assert not loader.is_counted
        assert "not all indexed" in repr(loader)  # which does not wait
        begun = time.monotonic()
        loader.close()  # neither does this, though the server is silent
        assert time.monotonic() - begun < 2
    server.held = set()


def test_peek_and_reads_need_the_first_tars(server: Server, urls: list[str]) -> None:
    source = open_source(urls, index="none")
    server.held = {f"/{number:05d}.tar" for number in range(1, SHARDS)}
    with make_loader(source) as loader:
        assert [item.image_id for item in loader.peek(3)] == ["000000", "000001", "000002"]
        assert source.read(np.array([5, 0])).objects[0].image_id == "000005"
        server.held = set()
        assert len(source) == len(pickle.loads(pickle.dumps(source))) == COUNT
        with pytest.raises(IndexError, match=r"\[0, 48\)"):
            source.read(np.array([COUNT]))


@pytest.mark.parametrize("shuffle", ORDERS)
def test_a_state_of_the_first_epoch_does_not_wait_and_resumes_exactly(
    server: Server, urls: list[str], shuffle: Any
) -> None:
    with make_loader(open_source(urls, index="none"), shuffle) as loader:
        whole = collect(loader)
    for steps in (0, 1, 5):
        with make_loader(open_source(urls, index="none"), shuffle) as loader:
            running, seen = iter(loader), []
            for _ in range(steps):
                batch = next(running)
                seen += [item.image_id for item in batch.data]
            held = {f"/{number:05d}.tar" for number in range(SHARDS)} if steps == 0 else set()
            server.held = held
            state = json.loads(json.dumps(loader.state_dict()))
            server.held = set()
        assert seen == [name for name, _ in whole[: len(seen)]]
        for indexed in (False, True):
            with make_loader(open_source(urls, index="none"), shuffle, batch_size=7) as other:
                if indexed:
                    assert other.num_samples == COUNT
                other.load_state_dict(state)
                assert collect(other) == whole[len(seen) :]


def test_a_state_of_other_tars_is_refused(server: Server, urls: list[str]) -> None:
    with make_loader(open_source(urls, index="none")) as loader:
        state = loader.state_dict()
        assert state["num_samples"] is None
    with make_loader(open_source(urls[1:], index="none")) as loader, pytest.raises(ValueError, match="fingerprint"):
        loader.load_state_dict(state)
    server.etag = '"' + "e" * 32 + '"'
    with make_loader(open_source(urls, index="none")) as loader, pytest.raises(ValueError, match="fingerprint"):
        loader.load_state_dict(state)


def test_ranks_see_the_same_order(urls: list[str], tars: list[Path]) -> None:
    for shuffle in ORDERS:
        for rank in range(3):
            shard = cd.Shard(rank, 3)
            with make_loader([str(path) for path in tars], shuffle, shard=shard) as loader:
                indexed = collect(loader)
            with make_loader(open_source(urls, index="none"), shuffle, shard=shard, drop_last=True) as loader:
                found = collect(loader)
            assert found == indexed[: len(found)]
            assert len(found) >= 10


def test_a_tar_that_is_missing_in_the_middle(server: Server, urls: list[str]) -> None:
    source = open_source(urls, index="none")
    gone = server.files.pop("/00004.tar")
    with make_loader(source, batch_size=6) as loader:
        seen = []
        running = iter(loader)
        for _ in range(4):
            seen += [item.image_id for item in next(running).data]
        with pytest.raises(SourceError, match=r"00004\.tar cannot be read: FileNotFoundError"):
            next(running)
        assert seen == [f"{number:06d}" for number in range(24) if number != 20]
        with pytest.raises(SourceError, match=r"1 of 8 shards cannot be read: .*00004\.tar: FileNotFoundError"):
            len(source)
        server.files["/00004.tar"] = gone
        assert len(collect(loader)) == COUNT - 1
    server.files["/00005.tar"] = b"no tar" * 1000
    source = open_source(urls, index="none")
    with make_loader(source) as loader, pytest.raises(SourceError, match=r"00005\.tar cannot be read: not a tar"):
        collect(loader)


def test_a_server_that_gets_silent(server: Server, urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.TIMEOUT_VARIABLE, "0.2")
    source = open_source(urls, index="none")
    server.held = {"/00002.tar"}
    with make_loader(source) as loader:
        begun = time.monotonic()
        with pytest.raises(SourceError, match=r"00002\.tar cannot be read: .*silent for too long"):
            collect(loader)
        assert time.monotonic() - begun < 5
    server.held = set()


def test_what_is_read_ahead_is_bounded(server: Server, urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import curator_dali.sources.tar_stream as module

    size = max(map(len, server.files.values()))
    monkeypatch.setattr(module, "_AHEAD_BYTES", 3 * size)
    source = open_source(urls, index="none")
    assert isinstance(source, TarSource)
    with make_loader(source, batch_size=2, prefetch=1) as loader:
        running = iter(loader)
        next(running)
        time.sleep(0.5)
        assert len({path for method, path in server.requests if method == "GET"}) <= 7
        list(running)
        assert source._storage._pieces.nbytes == 0
    assert count_bytes(server) <= 1.05 * sum(map(len, server.files.values()))


def test_a_tar_that_is_too_large_to_keep_is_read_twice(
    server: Server, urls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(urls, index="none")
    source._storage._pieces.limit = 1000
    with make_loader(source) as loader:
        assert len(collect(loader)) == COUNT - 1
    assert "such tars are read twice" in caplog.text


def test_a_pass_says_once_that_an_index_can_be_made(urls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with make_loader(open_source(urls), cd.Shuffle(1, window=5)) as loader, caplog.at_level(logging.INFO):
        collect(loader)
        collect(loader)
    assert caplog.text.count("curator-dali prepare") == 1
    caplog.clear()
    with make_loader(open_source(urls, index="none"), 1):
        assert "all 8 tars of" in caplog.text
        assert "Shuffle(window=...)" in caplog.text


def test_a_dataloader_reads_the_same(urls: list[str]) -> None:
    """Through `walk` and `decode`, whose indices are those of samples."""
    shuffle = ORDERS[1]
    with make_loader(open_source(urls, index="none"), shuffle) as loader:
        whole, errors = collect(loader), [(e.image_id, e.index) for e in loader.errors]
        again = []
        for indices in loader.walk():
            _, batch = loader.decode(loader.source.read(indices))
            again += [(item.image_id, batch.images[row].tobytes()) for row, item in enumerate(batch.data)]
        assert again == whole
        assert [(e.image_id, e.index) for e in loader.errors] == errors


def test_torch_takes_the_first_batch_at_once(server: Server, urls: list[str]) -> None:
    from curator_dali.torch import TorchImageLoader

    server.held = {f"/{number:05d}.tar" for number in range(1, SHARDS)}
    options = {"transforms": [cd.transforms.Resize((8, 8))], "device": "cpu", "drop_last": True}
    with TorchImageLoader(open_source(urls, index="none"), batch_size=4, **options) as loader:
        images, targets = next(iter(loader))
        assert len(images) == len(targets) == 4
        server.held = set()
    loader = TorchImageLoader(open_source(urls, index="none"), batch_size=50, **options)
    with loader, pytest.raises(ValueError, match="drop_last leaves nothing of 48 samples"):
        list(loader)


def test_the_first_epoch_goes_through_a_cache(server: Server, urls: list[str], tmp_path: Path) -> None:
    with make_loader(open_source(urls, index="none")) as loader:
        whole = collect(loader)
    server.requests.clear()
    data = sum(map(len, server.files.values()))
    for _ in range(2):
        source = open_source(urls, index="none", cache=cd.Cache(tmp_path / "blocks", limit="1GB"))
        with make_loader(source, cd.Shuffle(2, window=8)) as loader:
            assert sorted(collect(loader)) != sorted(whole)  # other crops, by places
            assert sorted(name for name, _ in collect(loader)) == sorted(name for name, _ in whole)
        assert count_bytes(server) <= 1.05 * data


SCRIPT = """
import json, sys, curator_dali as cd
options = {"shuffle": cd.Shuffle(3, window=4), "transforms": [cd.transforms.Resize((8, 8))]}
loader = cd.ImageLoader(sys.argv[1], batch_size=5, device="cpu", **options)
for batch in loader:
    print(json.dumps([[item.image_id for item in batch.data], loader.state_dict()]), flush=True)
    if len(sys.argv) > 2:
        sys.stdin.readline()
"""


def test_a_killed_run_resumes_in_the_middle_of_its_first_epoch(server: Server, urls: list[str], tmp_path: Path) -> None:
    spec = f"{server.url}/{{00000..{SHARDS - 1:05d}}}.tar"
    env = os.environ | {"CURATOR_DALI_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, spec, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdin
        assert process.stdout
        seen: list[str] = []
        for _ in range(3):
            names, state = json.loads(process.stdout.readline())
            seen += names
            process.stdin.write("\n")
            process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    options = {"batch_size": 5, "shuffle": cd.Shuffle(3, window=4), "transforms": [cd.transforms.Resize((8, 8))]}
    with cd.ImageLoader(open_source(urls, index="none"), device="cpu", **options) as loader:
        loader.load_state_dict(state)
        rest = [item.image_id for batch in loader for item in batch.data]
    assert sorted(seen + rest) == [f"{number:06d}" for number in range(COUNT) if number != 20]


def test_a_process_forked_in_the_first_epoch_reads_for_itself(server: Server, urls: list[str]) -> None:
    source = open_source(urls, index="none")
    server.held = {f"/{SHARDS - 1:05d}.tar"}
    with make_loader(source) as loader:
        next(iter(loader))
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=lambda: answers.put(source.read(np.array([20])).objects[0].image_id))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert answers.get() == "000020"
    server.held = set()


ONE_BATCH = """
import sys, curator_dali as cd
next(iter(cd.ImageLoader(sys.argv[1], batch_size=4, device="cpu")))
"""


def test_a_process_ends_though_tars_are_read_ahead(server: Server, urls: list[str], tmp_path: Path) -> None:
    server.held = {f"/{number:05d}.tar" for number in range(1, SHARDS)}
    env = os.environ | {"CURATOR_DALI_CACHE": str(tmp_path / "cache")}
    spec = f"{server.url}/{{00000..{SHARDS - 1:05d}}}.tar"
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", ONE_BATCH, spec], check=True, env=env)
    assert time.monotonic() - begun < 10  # which is how long the other tars would be waited for, and more than once
    server.held = set()


def test_ctrl_c_while_a_tar_is_waited_for(server: Server, urls: list[str]) -> None:
    source = open_source(urls, index="none")
    server.held = set(server.files)
    with make_loader(source) as loader:
        timer = threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(iter(loader))
        loader.close()
        assert time.monotonic() - begun < 2
    server.held = set()
