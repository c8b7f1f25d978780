"""The loader: order, identity, resume, errors, shutdown, memory."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import curator_dali as cd
from curator_dali import transforms
from curator_dali.sources import EncodedBatch, MemorySource
from tests import formats


@pytest.fixture(scope="module")
def numbered(photo_small: dict[str, bytes]) -> MemorySource:
    return MemorySource(photo_small)


@pytest.fixture(scope="module")
def photo_small(photos: dict[str, np.ndarray]) -> dict[str, bytes]:
    """37 small JPEGs of distinct sizes."""
    photo = Image.fromarray(photos["chelsea"])
    return {f"{i:02d}": formats.save(photo.resize((20 + i, 16)), "JPEG") for i in range(37)}


def ids(batches: object) -> list[list[str]]:
    return [[item.image_id for item in batch.data] for batch in batches]  # type: ignore[attr-defined]


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-dali")]


def test_tars_load_with_ids_captions_and_metadata(shards: list[Path]) -> None:
    with cd.ImageLoader(str(shards[0].parent), batch_size=16, device="cpu") as loader:
        batches = list(loader)
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
    first = batches[0][0]
    assert first.image_id == "000000"
    assert first.image_path == f"tar://000000.jpg::{shards[0]}"
    assert {"caption", "label"} <= set(first.metadata)
    assert all(batch.validate() for batch in batches), [batch.problems() for batch in batches]
    assert loader.errors == []
    assert loader.stats.samples == 60


def test_pixels_stay_with_their_ids_when_shuffled(numbered: MemorySource, photo_small: dict[str, bytes]) -> None:
    with cd.ImageLoader(numbered, batch_size=5, device="cpu", shuffle=3) as loader:
        seen = [
            (item.image_id, image.shape[1]) for batch in loader for item, image in zip(batch, batch.images, strict=True)
        ]
    assert sorted(seen) == [(key, 20 + int(key)) for key in photo_small]
    assert seen != sorted(seen)


@pytest.mark.parametrize("batch_size", [1, 7, 37, 100])
def test_len_is_the_number_of_batches(numbered: MemorySource, batch_size: int) -> None:
    with cd.ImageLoader(numbered, batch_size=batch_size, device="cpu") as loader:
        assert len(list(loader)) == len(loader)


def test_an_empty_and_a_single_image_source() -> None:
    with cd.ImageLoader(MemorySource([]), device="cpu") as loader:
        assert len(loader) == 0
        assert list(loader) == []
        assert len(loader.peek()) == 0
    one = formats.save(Image.new("RGB", (3, 2)), "PNG")
    with cd.ImageLoader(MemorySource([one]), device="cpu", shuffle=1) as loader:
        assert [batch.images.shape for batch in loader] == [(1, 2, 3, 3)]


def test_every_epoch_has_its_order_and_the_same_again(numbered: MemorySource) -> None:
    with cd.ImageLoader(numbered, batch_size=8, device="cpu", shuffle=cd.Shuffle(5)) as loader:
        first, again = ids(loader), ids(loader)
        loader.set_epoch(1)
        second = ids(loader)
        loader.set_epoch(0)
        assert first == again == ids(loader)
        assert second != first


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 12), step=st.integers(0, 10), worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_resume_goes_on_with_exactly_what_was_not_seen(
    numbered: MemorySource, batch: int, step: int, worlds: tuple[int, int]
) -> None:
    """Stopped at any step, gone on with from a JSON copy of the state with another number of ranks."""
    before, after = worlds
    seen: list[str] = []
    states = set()
    for rank in range(before):
        with cd.ImageLoader(
            numbered, batch_size=batch, device="cpu", shuffle=9, shard=cd.Shard(rank, before)
        ) as loader:
            loader.set_epoch(2)
            for number, loaded in enumerate(loader):
                if number == step:
                    break
                seen += [item.image_id for item in loaded]
                state = loader.state_dict()
            if step == 0:
                loader.set_epoch(3)
                loader.set_epoch(2)
                state = loader.state_dict()
            states.add(json.dumps(state))
    (state_text,) = states  # the same on every rank
    rest: list[str] = []
    for rank in range(after):
        with cd.ImageLoader(numbered, batch_size=3, device="cpu", shuffle=9, shard=cd.Shard(rank, after)) as loader:
            loader.load_state_dict(json.loads(state_text))
            rest += [key for keys in ids(loader) for key in keys]
    assert set(seen) | set(rest) == {f"{i:02d}" for i in range(37)}
    assert len(seen) + len(rest) - 37 < max(before, after)


def test_a_resumed_run_is_bit_identical(numbered: MemorySource) -> None:
    options = {"batch_size": 6, "device": "cpu", "shuffle": 4, "transforms": [cd.transforms.Resize((8, 8))]}
    with cd.ImageLoader(numbered, **options) as loader:
        whole = [batch.images.copy() for batch in loader]
        for stop in range(len(loader)):
            for _, _batch in zip(range(stop + 1), loader, strict=False):
                state = loader.state_dict()
            with cd.ImageLoader(numbered, **options) as other:
                other.load_state_dict(state)
                rest = [batch.images for batch in other]
                assert len(rest) == len(whole) - stop - 1
                assert all(np.array_equal(a, b) for a, b in zip(rest, whole[stop + 1 :], strict=True))


def test_a_wrong_state_is_refused_with_its_reason(numbered: MemorySource) -> None:
    with cd.ImageLoader(numbered, device="cpu", shuffle=1) as loader:
        state = loader.state_dict()
        for change, words in (
            ({"seed": 2}, "seed is 2, the loader's 1"),
            ({"num_samples": 5}, "num_samples is 5"),
            ({"fingerprint": "other"}, "fingerprint is 'other'"),
            ({"position": 38}, "out of range"),
            ({"version": 9}, "version 2"),
            ({"version": 1}, "other fingerprints"),
        ):
            with pytest.raises(ValueError, match=words):
                loader.load_state_dict({**state, **change})
        with pytest.raises(ValueError, match="lacks"):
            loader.load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"max_error_rate": 2}, "max_error_rate is 2"),
        ({"shard": "ray"}, "shard is 'ray'"),
        ({"device": "gpu"}, "gpu"),
        ({"transforms": [cd.transforms.Normalize(), cd.transforms.Resize(3)]}, "Normalize must be the last"),
    ],
)
def test_a_wrong_argument_is_refused_before_work(
    numbered: MemorySource, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        cd.ImageLoader(numbered, **options)  # type: ignore[arg-type]


def with_bad(files: dict[str, bytes], every: int) -> MemorySource:
    return MemorySource({key: b"gone" if i % every == 0 else data for i, (key, data) in enumerate(files.items())})


def test_bad_images_are_skipped_and_named(photo_small: dict[str, bytes]) -> None:
    with cd.ImageLoader(with_bad(photo_small, 4), batch_size=6, device="cpu") as loader:
        kept = [key for keys in ids(loader) for key in keys]
        assert len(kept) == 27
        assert [error.image_id for error in loader.errors] == [f"{i:02d}" for i in range(0, 37, 4)]
        assert loader.errors[1].index == 4
        assert "begins with the text 'gone'" in str(loader.errors[0])
        assert (loader.stats.samples, loader.stats.failed) == (27, 10)


def test_the_first_ten_thousand_bad_images_are_kept_and_all_counted() -> None:
    source = MemorySource([b""] * 10_000 + [b"late"] * 3)
    with cd.ImageLoader(source, batch_size=2048, device="cpu") as loader:
        assert list(loader) == []
        assert [error.index for error in loader.errors] == list(range(10_000))
        assert loader.stats.failed == loader.errors.more + 10_000 == 10_003
        assert repr(loader.errors).startswith("[10,003 bad images:\n")
        assert repr(loader.errors).endswith("\n  9,953 more]")
        assert "10,003 bad images" in loader.errors._repr_html_()
        assert "9,953 more not shown" in loader.errors._repr_html_()
    with pytest.raises(cd.TooManyErrors, match=r"10003 of 10003 .* the last: image '10002'"):
        list(cd.ImageLoader(source, batch_size=20_000, device="cpu", max_error_rate=0.9999))


def test_ranges_are_loaded_by_one_decoder_and_the_position_stays(photo_small: dict[str, bytes]) -> None:
    other = MemorySource(dict(reversed(photo_small.items())))
    with cd.ImageLoader(with_bad(photo_small, 4), batch_size=6, device="cpu") as loader:
        loader.max_errors = 0
        next(iter(loader))
        before = loader.state_dict()
        steps = list(loader.over([(10, 14), (0, 9)]))
        assert [decoded.encoded.indices.tolist() for decoded, _ in steps] == [
            [10, 11, 12, 13], [0, 1, 2, 3, 4, 5], [6, 7, 8]
        ]  # fmt: skip
        assert [batch.columns["index"].tolist() for _, batch in steps if batch] == [[10, 11, 13], [1, 2, 3, 5], [6, 7]]
        assert [decoded.error(row).index for decoded, _ in steps for row in decoded.errors] == [12, 0, 4, 8]
        assert loader.errors == []
        _, batch = next(loader.over([(0, 3)], other))
        assert batch is not None
        assert [item.image_id for item in batch.data] == list(reversed(photo_small))[:3]
        assert loader.state_dict() == before


def test_no_good_image_to_stand_in_before_any_pass() -> None:
    for images, words in (([b"x", b""], "none of the 2 images can be used; the last: image '1'"), ([], "the 0 images")):
        with cd.ImageLoader(MemorySource(images), device="cpu") as loader, pytest.raises(cd.TooManyErrors, match=words):
            loader.stand_in(1)


def test_a_batch_of_nothing_but_bad_images_is_left_out(photo_small: dict[str, bytes]) -> None:
    files = {key: (b"x" if 6 <= i < 12 else data) for i, (key, data) in enumerate(photo_small.items())}
    with cd.ImageLoader(MemorySource(files), batch_size=6, device="cpu") as loader:
        assert [len(batch) for batch in loader] == [6, 6, 6, 6, 6, 1]
        assert len(loader.errors) == 6


def test_raise_names_the_first_bad_image(photo_small: dict[str, bytes]) -> None:
    with cd.ImageLoader(with_bad(photo_small, 10), batch_size=4, device="cpu", on_error="raise") as loader:
        with pytest.raises(cd.ImageError, match="'00'"):
            list(loader)
        assert our_threads() == [] or all("pillow" in name for name in our_threads())


def test_too_many_errors_end_the_pass(photo_small: dict[str, bytes]) -> None:
    loader = cd.ImageLoader(with_bad(photo_small, 4), batch_size=4, device="cpu", max_error_rate=0.1)
    with loader, pytest.raises(cd.TooManyErrors, match="10 of 37"):
        list(loader)
    with cd.ImageLoader(with_bad(photo_small, 4), batch_size=4, device="cpu", max_error_rate=0.5) as loader:
        assert sum(len(batch) for batch in loader) == 27


class Breaking(MemorySource):
    def read(self, indices: np.ndarray, *, members: bool = False) -> EncodedBatch:
        if 20 in indices:
            raise OSError("the disk is gone")
        return super().read(indices, members=members)


def test_an_error_of_the_source_comes_out_as_itself(photo_small: dict[str, bytes]) -> None:
    with cd.ImageLoader(Breaking(photo_small), batch_size=5, device="cpu") as loader:
        with pytest.raises(OSError, match="the disk is gone"):
            list(loader)
        with pytest.raises(OSError, match="the disk is gone"):
            list(loader)  # and the loader is usable, as far as the source is


def test_an_error_of_the_consumer_leaves_no_thread(numbered: MemorySource) -> None:
    loader = cd.ImageLoader(numbered, batch_size=2, device="cpu")

    def consume() -> None:
        with loader:
            for _ in loader:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        consume()
    assert our_threads() == []
    loader.close()


def test_leaving_early_forgetting_and_two_at_once(numbered: MemorySource) -> None:
    for _ in range(5):
        loader = cd.ImageLoader(numbered, batch_size=2, device="cpu")
        for _batch in loader:
            break
        del loader, _batch
        gc.collect()
    assert [name for name in our_threads() if "decode" in name or "read" in name] == []
    with (
        cd.ImageLoader(numbered, batch_size=4, device="cpu") as a,
        cd.ImageLoader(numbered, batch_size=4, device="cpu") as b,
    ):
        assert [(x[0].image_id, y[0].image_id) for x, y in zip(a, b, strict=True)] == [
            (f"{i:02d}",) * 2 for i in range(0, 37, 4)
        ]


ENDINGS = {
    "another iter": lambda loader: next(iter(loader)),
    "set_epoch": lambda loader: loader.set_epoch(1),
    "load_state_dict": lambda loader: loader.load_state_dict(loader.state_dict()),
    "close": lambda loader: loader.close(),
}


@pytest.mark.parametrize("cause", ENDINGS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["ImageLoader", "TorchImageLoader"])
def test_a_pass_that_is_ended_from_outside_says_so(numbered: MemorySource, cause: str, wrapped: bool) -> None:
    """A loop that ended early without a word would train on half an epoch."""
    from curator_dali.torch import TorchImageLoader

    with cd.ImageLoader(numbered, batch_size=5, device="cpu") as inner:
        loader = TorchImageLoader(inner, target=None) if wrapped else inner
        batches = iter(loader)
        next(batches)
        ENDINGS[cause](loader if not wrapped or cause != "close" else inner)
        if wrapped and cause == "set_epoch":  # as a DistributedSampler's: it is for the next pass
            assert len(list(batches)) == len(loader) - 1
            return
        with pytest.raises(cd.PassEndedError, match="has one pass at a time"):
            next(batches)
        seen = len(list(loader))  # the loader is as good as new
        assert seen == len(loader) - (cause == "load_state_dict")


@pytest.mark.parametrize("wrapped", [False, True], ids=["ImageLoader", "TorchImageLoader"])
def test_zipping_a_loader_with_itself_says_that_it_cannot_be(numbered: MemorySource, wrapped: bool) -> None:
    from curator_dali.torch import TorchImageLoader

    with cd.ImageLoader(numbered, batch_size=5, device="cpu") as inner:
        loader = TorchImageLoader(inner, target=None) if wrapped else inner
        with pytest.raises(cd.PassEndedError, match="Give each loop a loader of its own"):
            list(zip(loader, loader, strict=True))


def test_an_image_that_cannot_be_read_now_is_told_from_a_bad_one(photo_small: dict[str, bytes], tmp_path: Path) -> None:
    """Of a folder whose file vanished after it was listed, and of one that holds no image."""
    for name in ("00", "01", "02"):
        (tmp_path / f"{name}.jpg").write_bytes(photo_small[name])
    (tmp_path / "01.jpg").write_bytes(b"<html>")
    with cd.ImageLoader(str(tmp_path), device="cpu") as loader:
        (tmp_path / "02.jpg").unlink()
        assert ids(loader) == [["00"]]
        assert [(error.image_id, error.unread) for error in loader.errors] == [("01", False), ("02", True)]
        assert [pickle.loads(pickle.dumps(error)) for error in loader.errors] == loader.errors
        cd.write_errors(loader.errors, tmp_path / "errors.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [row["unread"] for row in rows] == [False, True]


def test_a_pass_that_has_ended_stays_ended(numbered: MemorySource) -> None:
    with cd.ImageLoader(numbered, batch_size=5, device="cpu") as loader:
        batches = iter(loader)
        assert len(list(batches)) == 8
        assert len(list(loader)) == 8
        assert list(batches) == []
    assert str(pickle.loads(pickle.dumps(cd.PassEndedError()))) == str(cd.PassEndedError())


def test_peek_consumes_nothing(numbered: MemorySource) -> None:
    with cd.ImageLoader(numbered, batch_size=4, device="cpu", shuffle=1) as loader:
        running = iter(loader)
        first = next(running)
        peeked = loader.peek(10)
        assert len(peeked) == 10
        assert [item.image_id for item in peeked][:4] == [item.image_id for item in first]
        assert loader.stats.samples == 4
        assert len(list(running)) == 9


def test_batches_survive_later_batches_and_the_loader(numbered: MemorySource) -> None:
    with cd.ImageLoader(numbered, batch_size=5, device="cpu") as loader:
        kept = list(loader)
        copies = [[np.array(image) for image in batch.images] for batch in kept]
        for _ in range(5):
            list(loader)
    gc.collect()
    assert all(
        np.array_equal(image, before)
        for batch, rows in zip(kept, copies, strict=True)
        for image, before in zip(batch.images, rows, strict=True)
    )


def test_encoded_members_are_kept_when_asked_for(shards: list[Path]) -> None:
    with cd.ImageLoader(shards[0], batch_size=8, device="cpu", keep_encoded=True) as loader:
        batch = next(iter(loader))
        assert batch.encoded is not None
        assert set(batch.encoded[0]) == {"jpg", "json", "txt", "cls"}
        assert bytes(batch.encoded[0]["jpg"]).startswith(b"\xff\xd8")


def run_script(body: str, *args: str) -> subprocess.Popen[str]:
    code = "import sys, time\nimport curator_dali as cd\n" + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_ends_the_process_at_once(shards: list[Path]) -> None:
    process = run_script(
        """
        loader = cd.ImageLoader(sys.argv[1], batch_size=2, device="cpu")
        while True:
            for batch in loader:
                print("go", flush=True)
                time.sleep(0.05)
        """,
        str(shards[0]),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert "KeyboardInterrupt" in err
    assert time.monotonic() - asked < 15


def test_a_script_that_forgets_the_loader_ends_cleanly(shards: list[Path]) -> None:
    process = run_script(
        "loader = cd.ImageLoader(sys.argv[1], batch_size=2, device='cpu')\nit = iter(loader); next(it)",
        str(shards[0]),
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_a_pickled_loader_goes_on_where_it_stood(numbered: MemorySource) -> None:
    with cd.ImageLoader(numbered, batch_size=4, device="cpu", shuffle=1) as loader:
        running = iter(loader)
        next(running)
        with pickle.loads(pickle.dumps(loader)) as copy:
            assert ids(copy) == ids(running)


@pytest.mark.parametrize(
    ("before", "inside", "says"),
    [
        ("", "count(loader)", "20"),  # DALI was not started before the fork
        ("count(loader)", "count(loader)", 'get_context("spawn")'),
        ("count(loader)", "count(cd.ImageLoader(sys.argv[1], device='cpu'))", 'get_context("spawn")'),
        ("count(loader)", "loader.peek(2)", 'get_context("spawn")'),
        ("running = iter(loader); next(running)", "count(running)", 'get_context("spawn")'),
        ("running = iter(loader); next(running)", "loader.close()", "None"),
    ],
)
def test_a_forked_process_works_or_is_told_why_not(shards: list[Path], before: str, inside: str, says: str) -> None:
    process = run_script(
        f"""
        import os, signal
        import numpy as np
        def count(batches):
            return sum(len(batch) for batch in batches)
        pixels = np.zeros((1, 8, 8, 3), np.uint8)
        loader = cd.ImageLoader(sys.argv[1], batch_size=2, device="cpu")
        {before}
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                print({inside}, flush=True)
            except RuntimeError as error:
                print(error, flush=True)
            sys.exit()  # with all that is done at exit
        print(os.waitpid(child, 0)[1], count(loader), flush=True)
        """,
        str(shards[0]),
    )
    out, err = process.communicate(timeout=60)
    assert says in out, err
    assert out.endswith("\n0 20\n"), out + err


def test_workers_forked_beside_a_running_pass_do_their_work(shards: list[Path]) -> None:
    process = run_script(
        """
        import torch
        loader = cd.ImageLoader(sys.argv[1], batch_size=2, device="cpu")
        running = iter(loader)
        first = len(next(running))
        data = torch.utils.data.TensorDataset(torch.arange(64))
        others = torch.utils.data.DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork")
        print(sum(len(rows) for rows, in others), first + sum(len(batch) for batch in running), flush=True)
        """,
        str(shards[0]),
    )
    out, err = process.communicate(timeout=60)
    assert out == "64 20\n", err


def test_memory_is_flat(numbered: MemorySource) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with cd.ImageLoader(numbered, batch_size=2, device="cpu") as loader:
        for _ in range(40):
            list(loader)
        before = resident()
        for _ in range(60):  # 1,140 batches
            list(loader)
        assert resident() - before < 8 << 20


def test_the_fuzzer_brings_nothing_down() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--count", "6000"], capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")
    counts = json.loads(done.stdout)
    assert counts["refused in a decoder"] > 500  # it reached the decoders, and not only the gate
    assert counts["batches"] >= 187


def test_views_come_from_the_same_decode_and_columns_say_the_size(shards: list[Path]) -> None:
    small, squares = (transforms.Resize((8, 12)),), transforms.clip(32)
    paths = [str(path) for path in shards]
    with (
        cd.ImageLoader(paths, batch_size=16, device="cpu", views=[small, squares, small], shuffle=2) as loader,
        cd.ImageLoader(paths, batch_size=16, device="cpu", transforms=squares, shuffle=2) as alone,
        cd.ImageLoader(paths, batch_size=16, device="cpu", transforms=None, views=[small], shuffle=2) as bare,
    ):
        for batch, expected, third in zip(loader, alone, bare, strict=True):
            assert list(batch.views) == [small, squares]
            assert np.array_equal(batch.views[squares], expected.images)
            assert np.array_equal(batch.views[small], third.views[small])
            assert batch.views[small].shape == (len(batch), 8, 12, 3)
            assert third.images is None
            assert expected.views == {}
            for found in (batch, expected, third):
                sizes = zip(found.columns["height"], found.columns["width"], strict=True)
                assert list(sizes) == [image.shape[:2] for image in batch.images]
        peeked = loader.peek(40)
        assert peeked.views[squares].shape == (40, 32, 32, 3)
        assert len(peeked.columns["width"]) == len(peeked.images) == 40


def test_sizes_are_upright_whoever_decodes(photo: Image.Image) -> None:
    files = {name: data for name, data in formats.good_files(photo).items() if "orientation" in name}
    with cd.ImageLoader(files, batch_size=len(files), device="cpu") as loader:
        (batch,) = loader
    assert batch.columns["height"].tolist() == [image.shape[0] for image in batch.images]
    assert batch.columns["width"].tolist() == [image.shape[1] for image in batch.images]


def test_no_output_at_all_is_refused(numbered: MemorySource) -> None:
    with pytest.raises(ValueError, match="name what to make in views="):
        cd.ImageLoader(numbered, device="cpu", transforms=None)


def test_concat_joins_rows_and_refuses_nothing(shards: list[Path]) -> None:
    view = (transforms.Resize((8, 8)),)
    with cd.ImageLoader([str(shards[0])], batch_size=7, device="cpu", views=[view], keep_encoded=True) as loader:
        parts = list(loader)
        joined = cd.concat([parts[0][:0], *parts])
    assert [item.image_id for item in joined] == [item.image_id for part in parts for item in part]
    assert np.array_equal(joined.views[view], np.concatenate([part.views[view] for part in parts]))
    assert joined.columns["width"].tolist() == [image.shape[1] for image in joined.images]
    assert [bytes(row["jpg"]) for row in joined.encoded] == [bytes(r["jpg"]) for p in parts for r in p.encoded]
    assert len(cd.concat([parts[0][:0], parts[1][:0]])) == 0
    with pytest.raises(ValueError, match="at least one batch"):
        cd.concat([])
