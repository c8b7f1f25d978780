"""The GPU's branches of `arrays` and `ImageBatch`: one memory for DALI, CuPy and torch, in the right order."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from curator_dali.dali import _MOST_LET_GO, _Lent, _lent, _let_go, from_dali, merge_ready, output_stream
from tests import helpers

pytestmark = pytest.mark.gpu
DEVICE = "cuda:0"


def outputs(batches: list[list[NDArray[np.uint8]]], size: int | None = None) -> Iterator[Any]:
    """DALI's decoded outputs as arrays on the GPU, got as the decoder gets them."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=max(map(len, batches)), num_threads=2, device_id=0, exec_dynamic=True)
    def pipeline() -> Any:
        encoded = fn.external_source(source=iter(batches), batch=True, no_copy=True)
        images = fn.decoders.image(encoded, device="mixed", jpeg_fancy_upsampling=True)
        return fn.resize(images, size=[size, size]) if size else images

    running = pipeline()
    running.build()
    for _ in batches:
        with output_stream(DEVICE) as stream:
            yield from_dali(running.run(stream)[0])


@pytest.fixture(scope="module")
def crops(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [pixels for _, pixels in helpers.crops(photos, 12)]


@pytest.fixture(scope="module")
def encoded(crops: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(bytearray(helpers.encode(pixels)), np.uint8) for pixels in crops]


def ragged(n: int = 6) -> list[NDArray[np.uint8]]:
    return [np.full((4, 5 + i, 3), i, np.uint8) for i in range(n)]


def dense(n: int = 6) -> NDArray[np.uint8]:
    return np.stack([np.full((4, 5, 3), i, np.uint8) for i in range(n)])


def batch_of(images: Any) -> ImageBatch:
    n = len(images)
    embeddings = np.repeat(np.arange(n, dtype=np.float32)[:, None], 3, 1)
    batch = ImageBatch(data=[ImageObject(f"{i}.jpg", str(i)) for i in range(n)], images=images, embeddings=embeddings)
    return batch.to_device(DEVICE)


def values(rows: Any) -> list[int]:
    return [int(row.max()) for row in rows]


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_resolve(name: str) -> None:
    assert arrays.resolve_device(name) == DEVICE


def test_resolve_refuses_a_gpu_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"cuda:99.*CUDA_VISIBLE_DEVICES"):
        arrays.resolve_device("cuda:99")


@pytest.mark.parametrize("make", [dense, ragged])
def test_there_and_back(make: Any) -> None:
    import cupy

    there = arrays.to_device(make(), DEVICE)
    rows = there if isinstance(there, list) else [there]
    assert all(isinstance(row, cupy.ndarray) for row in rows)
    assert arrays.device_of(there) == DEVICE
    assert arrays.to_device(there, DEVICE) is there
    for row, expected in zip(arrays.to_host(there), make(), strict=True):
        np.testing.assert_array_equal(row, expected)


def test_types_survive_the_transfer() -> None:
    mixed = [np.ones(3, np.uint8), np.full((2, 2), 2, np.float32), np.zeros((0, 4), np.float16), np.ones(1, np.int64)]
    for row, expected in zip(arrays.to_host(arrays.to_device(mixed, DEVICE)), mixed, strict=True):
        np.testing.assert_array_equal(row, expected)
        assert row.dtype == expected.dtype


@pytest.mark.parametrize("make", [dense, ragged])
def test_torch_and_cupy_share_memory(make: Any) -> None:
    there = arrays.to_device(make(), DEVICE)
    tensors = arrays.to_torch(there)
    for row, tensor in zip(there, tensors, strict=True):
        assert tensor.data_ptr() == row.data.ptr
        tensor += 1
    assert values(there) == [1, 2, 3, 4, 5, 6]


def test_device_memory_is_torchs() -> None:
    import cupy

    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    whole = arrays.to_device(np.zeros((8, 256, 256, 3), np.uint8), DEVICE)
    arrays.copy(arrays.take(whole, np.array([5, 1])))
    assert pool.total_bytes() == before


@pytest.mark.parametrize("make", [dense, ragged])
def test_rows(make: Any) -> None:
    there = arrays.to_device(make(), DEVICE)
    assert values(arrays.take(there, slice(1, 5))) == [1, 2, 3, 4]
    assert values(arrays.take(there, slice(4, 5))) == [4]
    assert values(arrays.take(there, np.array([5, 0]))) == [5, 0]
    twin = arrays.copy(there)
    twin[0][:] = 99
    assert values(there) == list(range(6))
    merged = arrays.merge([([0, 2], arrays.take(there, slice(0, 2))), ([1], arrays.take(there, slice(5, 6)))], 3)
    assert values(merged) == [0, 5, 1]
    assert isinstance(merged, list) == (make is ragged)


def test_work_on_other_streams_is_seen() -> None:
    """A transfer waits for what CuPy or torch still computes on its current stream."""
    import cupy
    import torch

    whole = arrays.to_device(np.zeros((64, 512, 512), np.float32), DEVICE)
    cupy.cuda.get_current_stream().synchronize()
    with cupy.cuda.Stream(non_blocking=True):
        for _ in range(50):
            whole += 1
        assert (arrays.to_host(whole) == 50).all()
    tensor = arrays.to_torch(whole)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(50):
            tensor += 1
        assert (arrays.to_host(tensor) == 100).all()


def test_decoded_images_are_views_that_hold(crops: Any, encoded: Any) -> None:
    running = outputs([encoded, *[encoded[::-1]] * 50])
    images = next(running)
    assert isinstance(images, list)
    tensors = arrays.to_torch(images)
    before = [tensor.clone() for tensor in tensors]
    for later in running:
        del later
    del running, images
    gc.collect()
    for tensor, then, original in zip(tensors, before, crops, strict=True):
        assert bool((tensor == then).all())
        assert tuple(tensor.shape) == original.shape
        assert np.abs(tensor.cpu().numpy().astype(int) - original).mean() < 6  # JPEG at quality 90


def test_a_fixed_size_is_one_array(encoded: Any) -> None:
    (images,) = outputs([encoded], 32)
    assert images.shape == (12, 32, 32, 3)
    assert arrays.device_of(images) == DEVICE


def test_memory_is_not_used_again_while_a_kernel_reads_it(encoded: Any) -> None:
    """The consumer enqueues work and drops the batch at once, as a training loop does."""
    import torch

    batches = [encoded, encoded[::-1]] * 25
    expected = [torch.stack([t.double().mean() for t in arrays.to_torch(images)]) for images in outputs(batches[:2])]
    expected = [row.cpu() for row in expected]
    slow = torch.ones(4096, 4096, device=DEVICE)
    sums = []
    for images in outputs(batches):
        slow = (slow @ slow).clamp_(0, 1)  # so that what follows is still waiting when the memory is let go
        sums.append(torch.stack([tensor.double().mean() for tensor in arrays.to_torch(images)]))
        del images
    for i, means in enumerate(sums):
        torch.testing.assert_close(means.cpu(), expected[i % 2])


def test_a_merged_batch_is_ready_and_kept() -> None:
    """Rows that came by several ways, as behind a bad image: readable on any stream, not used again under a kernel."""
    import cupy
    import torch

    parts = [arrays.to_device(np.full((8, 512, 512), i, np.int64), DEVICE) for i in range(20)]
    slow = torch.ones(4096, 4096, device=DEVICE)
    torch.cuda.synchronize()  # as what DALI made is ready
    sums = []
    for i, part in enumerate(parts):
        merged = merge_ready([(range(8), part), (range(8, 16), part)], 16, DEVICE)
        with cupy.cuda.Stream(non_blocking=True):
            assert int(merged.sum()) == 16 * 512 * 512 * i
        slow = (slow @ slow).clamp_(0, 1)
        sums.append(arrays.to_torch(merged).sum())
        del merged
    assert [int(total) for total in sums] == [16 * 512 * 512 * i for i in range(20)]


def test_what_was_let_go_does_not_pile_up(encoded: Any) -> None:
    """A consumer that runs ahead of its GPU is waited for, after some outputs."""
    import torch

    slow, most = torch.ones(4096, 4096, device=DEVICE), 0
    for images in outputs([encoded] * 40):
        slow = (slow @ slow).clamp_(0, 1)
        del images
        most = max(most, len(_lent))
    assert 1 <= most <= _MOST_LET_GO + 1
    torch.cuda.synchronize()
    _let_go()
    assert not _lent


@pytest.mark.parametrize(("copied", "alive"), [(None, 0), (False, 5)])
def test_keeping_little_frees_the_rest(encoded: Any, copied: bool | None, alive: int) -> None:
    kept = [arrays.take(images, slice(0, 1), copied) for images in outputs([encoded] * 5)]
    gc.collect()
    assert sum(isinstance(thing, _Lent) for thing in gc.get_objects()) == alive
    assert {arrays.device_of(part) for part in kept} == {DEVICE}


@pytest.mark.parametrize("make", [dense, ragged])
@pytest.mark.parametrize("release", [False, True])
def test_a_batch_goes_to_the_host(make: Any, release: bool) -> None:
    batch = batch_of(make())
    assert batch.device == DEVICE
    assert batch.to_host(release) is batch
    assert [int(item.image_data.max()) for item in batch] == list(range(6))  # type: ignore[union-attr]
    assert [int(item.embedding[0]) for item in batch] == list(range(6))  # type: ignore[index]
    assert batch.device == ("cpu" if release else DEVICE)
    rows = [item.image_data for item in batch]
    batch.to_host()
    assert all(item.image_data is row for item, row in zip(batch, rows, strict=True))
    assert batch.to_host(release=True).device == "cpu"
    assert values(batch.images) == list(range(6))


def test_a_transfer_is_one_pinned_block() -> None:
    rows = arrays.to_host(arrays.to_device(ragged(), DEVICE))
    starts = [row.ctypes.data for row in rows]
    assert np.ptp(starts) < 6 * 256
    assert starts == sorted(starts)


@pytest.mark.parametrize("make", [dense, ragged])
def test_selections_pickles_and_copies(make: Any) -> None:
    import cupy
    import torch

    for batch in (batch_of(make()), batch_of(make()).to_host()):
        mask = np.array([True, False, True, True, False, True])
        for flags in (mask, cupy.asarray(mask), torch.from_numpy(mask).to(DEVICE)):
            part = batch.where(flags)
            assert values(part.images) == part.embeddings[:, 0].tolist() == [0, 2, 3, 5]
            assert part.device == DEVICE
        assert values(batch[4:5].to_host()[0].image_data[None]) == [4]  # type: ignore[index]
        for twin in (batch.copy(), copy.deepcopy(batch)):
            twin.images[0][:] = 77
            assert values(batch.images) == list(range(6))
            assert twin.device == DEVICE
        again = pickle.loads(pickle.dumps(batch))
        assert again.device == "cpu"
        assert values(again.images) == again.embeddings[:, 0].tolist() == list(range(6))
        assert batch.problems(check_paths=False) == []
        assert repr(batch).endswith(f"{DEVICE})")
