"""Arrays on the host, and what DALI's outputs become; tests/gpu has the same for a GPU."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali import arrays, dali
from curator_dali.dali import _let_go, from_dali, output_stream
from tests import helpers


def has_driver() -> bool:
    """Asked of the system, not of `resolve_device`, so that a wrong answer of that fails instead of skipping."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="for machines without an NVIDIA driver, and this has one")


def outputs(batches: list[list[NDArray[np.uint8]]], size: int | None = None) -> Iterator[Any]:
    """DALI's own decoded outputs of batches of encoded images, resized to a square if told."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=max(map(len, batches)), num_threads=2, device_id=None, exec_dynamic=True)
    def pipeline() -> Any:
        encoded = fn.external_source(source=iter(batches), batch=True, no_copy=True)
        images = fn.decoders.image(encoded, device="cpu")
        return fn.resize(images, size=[size, size]) if size else images

    running = pipeline()
    for _ in batches:
        yield running.run()[0]


@pytest.fixture(scope="module")
def encoded(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(bytearray(helpers.encode(pixels)), np.uint8) for _, pixels in helpers.crops(photos, 12)]


@pytest.fixture(scope="module")
def decoded(encoded: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    import io

    from PIL import Image

    return [np.asarray(Image.open(io.BytesIO(data.tobytes()))) for data in encoded]


def ragged(n: int = 6) -> list[NDArray[np.uint8]]:
    return [np.full((2 + i, 3, 3), i, np.uint8) for i in range(n)]


def dense(n: int = 6) -> NDArray[np.uint8]:
    return np.arange(n * 2 * 2 * 3, dtype=np.uint8).reshape(n, 2, 2, 3)


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu")])
def test_resolve_cpu(name: Any) -> None:
    assert arrays.resolve_device(name) == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "", "0", "CUDA"])
def test_resolve_refuses_other_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"use 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        arrays.resolve_device(name)


@without_driver
@pytest.mark.parametrize("name", ["cuda", "cuda:1", torch.device("cuda", 0)])
def test_resolve_names_the_fix_where_cuda_is_missing(name: Any) -> None:
    with pytest.raises(RuntimeError, match=r"asked for, but .*(driver|CuPy|nvidia-smi).*device='cpu'"):
        arrays.resolve_device(name)


@without_driver
def test_resolve_without_a_driver_imports_no_cupy() -> None:
    code = "import sys; from curator_dali.arrays import resolve_device as r; print(r('auto'), 'cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "cpu False\n"


@pytest.mark.parametrize("value", [dense(), ragged(), [], torch.zeros(2), [torch.zeros(2)]])
def test_device_of_what_lies_on_the_host(value: Any) -> None:
    assert arrays.device_of(value) == "cpu"


def test_sizes() -> None:
    assert arrays.shapes(dense(2)) == [(2, 2, 3)] * 2
    assert arrays.shapes(ragged(2)) == [(2, 3, 3), (3, 3, 3)]
    assert arrays.nbytes(dense(2)) == 24
    assert arrays.nbytes(ragged(2)) == 18 + 27


@pytest.mark.parametrize("value", [dense(), ragged()])
def test_host_to_host_is_the_same_object(value: Any) -> None:
    assert arrays.to_host(value) is value
    assert arrays.to_device(value, "cpu") is value


def test_a_tensor_on_the_host_becomes_numpy_without_a_copy() -> None:
    tensor = torch.zeros(3)
    arrays.to_host(tensor)[0] = 7
    assert tensor[0] == 7


@pytest.mark.parametrize("value", [dense(), dense(0), dense()[::2], np.zeros((2, 5), np.float16)])
def test_torch_sees_the_same_memory(value: NDArray[Any]) -> None:
    tensor = arrays.to_torch(value)
    assert tuple(tensor.shape) == value.shape
    value[...] = 3
    assert bool((tensor == 3).all())
    if value.size:
        tensor[0] = 9
        assert (value[0] == 9).all()


def test_torch_keeps_numpy_alive() -> None:
    tensors = arrays.to_torch([np.full((400, 400), i, np.uint8) for i in range(20)])
    gc.collect()
    noise = [np.full((400, 400), 255, np.uint8) for _ in range(20)]
    assert [int(tensor.max()) for tensor in tensors] == list(range(20)), len(noise)


def test_read_only_arrays_go_to_torch(photos: dict[str, NDArray[np.uint8]]) -> None:
    assert arrays.to_torch(photos["chelsea"]).shape == photos["chelsea"].shape


def test_from_dali_ragged_is_a_list_of_views(encoded: Any, decoded: Any) -> None:
    (output,) = outputs([encoded])
    images = from_dali(output)
    assert isinstance(images, list)
    for image, tensor, expected in zip(images, output, decoded, strict=True):
        assert image.ctypes.data == tensor.data_ptr()  # no copy
        np.testing.assert_array_equal(image, expected)


def test_from_dali_uniform_is_one_view(encoded: Any) -> None:
    (output,) = outputs([encoded], size=32)
    images = from_dali(output)
    assert images.shape == (12, 32, 32, 3)
    assert images.ctypes.data == output.as_tensor().data_ptr()
    assert images.flags.writeable


def test_one_image_is_a_batch_of_one(encoded: Any, decoded: Any) -> None:
    (output,) = outputs([encoded[:1]])
    np.testing.assert_array_equal(from_dali(output), decoded[0][None])


def test_from_dali_equal_shapes_with_gaps_are_one_array() -> None:
    from nvidia.dali.backend import TensorListCPU

    samples = [np.full((2, 2, 3), i, np.uint8) for i in range(3)]
    output = TensorListCPU.from_dlpack_list(samples)
    assert not output.is_dense_tensor()
    np.testing.assert_array_equal(from_dali(output), np.stack(samples))


@pytest.mark.parametrize("size", [None, 64])
def test_views_survive_later_runs_and_the_pipeline(encoded: Any, size: int | None) -> None:
    running = outputs([encoded, *[encoded[::-1]] * 50], size)
    images = from_dali(next(running))
    tensors = arrays.to_torch(images)
    expected = arrays.copy(images)
    for output in running:
        del output
    del running, images  # the tensors alone keep the memory
    gc.collect()
    for tensor, before in zip(tensors, expected, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), before)


@pytest.mark.parametrize("size", [None, 64])
def test_keeping_a_small_part_does_not_keep_the_batch(encoded: Any, size: int | None) -> None:
    for copy, alive in [(None, False), (False, True)]:
        (output,) = outputs([encoded], size)
        images = from_dali(output)
        holders = [image.base for image in images] if size is None else [images.base]
        holders = [weakref.ref(holder.obj) for holder in holders]  # DALI's tensors, behind numpy's buffers
        kept = arrays.take(images, slice(3, 5), copy)
        del output, images
        gc.collect()
        assert any(holder() is not None for holder in holders) == alive
        assert len(kept) == 2


@pytest.mark.parametrize("make", [dense, ragged])
@pytest.mark.parametrize("rows", [slice(1, 5), slice(0, 6, 2), slice(0, 1), slice(2, 2), slice(None, None, -1)])
def test_take_slices(make: Any, rows: slice) -> None:
    whole = make()
    kept = arrays.take(whole, rows)
    assert len(kept) == len(range(6)[rows])
    for row, number in zip(kept, range(6)[rows], strict=True):
        np.testing.assert_array_equal(row, make()[number])
    shared = any(np.shares_memory(row, other) for row in kept for other in whole)
    half = 2 * arrays.nbytes(kept) >= arrays.nbytes(whole)
    assert shared == (half and not (make is dense and rows.step == -1))


@pytest.mark.parametrize("make", [dense, ragged])
def test_take_rows_by_number(make: Any) -> None:
    whole = make()
    kept = arrays.take(whole, np.array([4, 0, 4]))
    for row, number in zip(kept, (4, 0, 4), strict=True):
        np.testing.assert_array_equal(row, make()[number])
    assert len(arrays.take(whole, np.array([], np.int64))) == 0


@pytest.mark.parametrize("make", [dense, ragged])
def test_copy_shares_nothing(make: Any) -> None:
    whole = make()
    for row, other in zip(arrays.copy(whole), whole, strict=True):
        np.testing.assert_array_equal(row, other)
        assert not np.shares_memory(row, other)


def test_merge_puts_each_row_in_its_place() -> None:
    merged = arrays.merge([([3, 0], ragged(2)), (np.array([2]), dense(1)), ([1], [np.zeros((9, 9, 3), np.uint8)])], 4)
    assert [image.shape for image in merged] == [(3, 3, 3), (9, 9, 3), (2, 2, 3), (2, 3, 3)]


def test_merge_of_equal_shapes_is_one_array() -> None:
    whole = dense()
    merged = arrays.merge([([0, 2, 3, 5], whole[[0, 2, 3, 5]]), ([4, 1], [whole[4], whole[1]])], 6)
    np.testing.assert_array_equal(merged, whole)


def test_merge_of_one_whole_array_is_itself() -> None:
    whole = dense()
    assert arrays.merge([(range(6), whole)], 6) is whole


def test_merge_keeps_dtypes_apart() -> None:
    assert isinstance(arrays.merge([([0], dense(1)), ([1], dense(1).astype(np.float32))], 2), list)


def test_merge_of_nothing() -> None:
    assert arrays.merge([], 0) == []


@pytest.mark.parametrize(
    ("parts", "n"),
    [([([0], dense(1))], 2), ([([0, 0], dense(2))], 2), ([([0, 1], dense(1))], 2), ([([0], dense(1))], 0)],
)
def test_merge_refuses_missing_and_double_rows(parts: Any, n: int) -> None:
    with pytest.raises(ValueError, match="row"):
        arrays.merge(parts, n)


def test_output_stream_of_the_cpu_is_none() -> None:
    with output_stream("cpu") as stream:
        assert stream is None


SHAPES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=8)


@given(shapes=SHAPES, dtypes=st.lists(st.sampled_from([torch.uint8, torch.float16, torch.float64]), min_size=8))
def test_packing_keeps_shapes_types_and_values(shapes: list[list[int]], dtypes: list[torch.dtype]) -> None:
    """What carries a ragged batch over the bus, here from host to host."""
    parts = [torch.randint(0, 100, shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]
    block, views = arrays._pack(parts, pin=False)
    for again in (views, arrays._unpack(block.clone(), parts)):
        assert [view.dtype for view in again] == [part.dtype for part in parts]
        assert all(torch.equal(view, part) for view, part in zip(again, parts, strict=True))


class Readers:
    """Stands for an event: what readers of memory were asked for is over when `query` says so."""

    def __init__(self) -> None:
        self.over, self.waited = False, False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.waited = self.over = True


class Memory:
    """What can be referred to weakly."""


def test_memory_is_let_go_behind_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali, "_lent", deque())
    readers, memory = [Readers() for _ in range(4)], [Memory() for _ in range(4)]
    alive = [weakref.ref(one) for one in memory]
    dali._lent.extend(([event], one) for event, one in zip(readers, memory, strict=True))
    del memory
    _let_go()
    assert [ref() is not None for ref in alive] == [True] * 4
    readers[1].over = True
    _let_go()
    assert [ref() is not None for ref in alive] == [True, False, True, True]
    _let_go(most=1)  # waits for the two oldest
    assert [ref() is not None for ref in alive] == [False, False, False, True]
    assert [event.waited for event in readers] == [True, False, True, False]
    _let_go(most=0)
    assert alive[3]() is None
    _let_go(most=0)
