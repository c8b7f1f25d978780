"""What DALI makes, lent as arrays: ready for any stream, and not used again before its readers are done.

On a GPU DALI's outputs are got on one stream of ours a device (`output_stream`), and `from_dali` waits for that stream
alone. DALI frees in an order of its own, so when the last view of a batch goes, its memory is kept until torch's and
CuPy's current streams have done what was asked of them so far. Who works on another stream than the current one keeps
the batch until that work is done, as with torch's own tensors.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import merge

__all__ = ["from_dali", "merge_ready", "output_stream", "use_device"]

_MOST_LET_GO = 8  # outputs whose readers are still at work, before the next output waits for the oldest


@contextmanager
def output_stream(device: str) -> Iterator[Any]:
    """The stream to give to `Pipeline.share_outputs` or `run` as `cuda_stream`: None on the CPU.

    Makes `device` the current one inside the `with`, and the stream CuPy's.
    """
    if device == "cpu":
        yield None
        return
    import cupy

    number = int(device.removeprefix("cuda:"))
    with cupy.cuda.Device(number), _stream(number) as stream:
        yield stream


def from_dali(output: Any) -> Any:
    """A DALI output (`TensorListCPU`, or `TensorListGPU` got on `output_stream`) as arrays, without a copy.

    One array if all samples have one shape, else a list of views. The data is ready when this returns, and stays
    valid after later runs of the pipeline: each view keeps the whole output alive. (DALI's dynamic executor only.)
    """
    dense = output.is_dense_tensor()
    if hasattr(output, "as_array"):  # on the CPU; not through as_array() or at(), which copy
        device = "cpu"
        rows = np.asarray(output.as_tensor()) if dense else [np.asarray(tensor) for tensor in output]
    else:
        device = f"cuda:{output.device_id()}"
        rows = _from_dali_gpu(output, dense)
    # DALI may lay out equal shapes with gaps; a fixed size promises one array
    return rows if dense else merge_ready([(range(len(rows)), rows)], len(rows), device)


def merge_ready(parts: Sequence[tuple[Sequence[int] | NDArray[np.int64], Any]], n: int, device: str) -> Any:
    """`merge` for a thread of ours: the result is ready for any stream when this returns, and kept as DALI's are."""
    with output_stream(device) as stream:
        if stream is None:
            return merge(parts, n)
        import torch

        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, stream.device_id)):  # type: ignore[no-untyped-call]
            rows = merge(parts, n)
        if isinstance(rows, list):  # views of outputs, each kept by its own
            return rows
        owner = _Lent(rows, stream)
        return owner.view(rows.data.ptr, rows.shape, rows.dtype)


def use_device(device: str) -> None:
    """Make a device the calling thread's current one, for good: for a thread of ours. Nothing for "cpu".

    Without it each `with cupy.cuda.Device(n)` would set GPU 0 again behind it, which costs a context there.
    """
    if device != "cpu":
        import cupy

        cupy.cuda.Device(int(device.removeprefix("cuda:"))).use()


def _from_dali_gpu(output: Any, dense: bool) -> Any:
    from nvidia.dali.types import to_numpy_type

    owner = _Lent(output, _stream(output.device_id()))
    dtype = np.dtype(to_numpy_type(output.dtype))
    tensors = [output.as_tensor()] if dense else [output[row] for row in range(len(output))]
    views = [owner.view(tensor.data_ptr(), tuple(tensor.shape()), dtype) for tensor in tensors]
    return views[0] if dense else views


class _Lent:
    """Memory on a GPU that is ready once this is made, and lives until those who read it are done.

    Args:
        memory: What keeps it: an output of DALI's, or an array.
        stream: Ours, on which it was made.
    """

    def __init__(self, memory: Any, stream: Any) -> None:
        self.memory, self.device = memory, stream.device_id
        stream.synchronize()  # lets go of the GIL
        _let_go(_MOST_LET_GO)

    def view(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A CuPy array on a part of it, which keeps all of it."""
        import cupy

        size = int(np.prod(shape)) * dtype.itemsize
        memory = cupy.cuda.UnownedMemory(pointer, size, self, self.device)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def __del__(self) -> None:
        if not sys.is_finalizing():
            _lent.append((_asked_so_far(self.device), self.memory))
            _let_go()


_lent: deque[tuple[list[Any], Any]] = deque()
"""Memory whose last view is gone, and the events in its readers' streams behind which it is free."""
atexit.register(_lent.clear)  # while CUDA is still there


def _asked_so_far(device: int) -> list[Any]:
    """Events behind all that CuPy's and torch's current streams were asked to do."""
    import cupy

    with cupy.cuda.Device(device):
        events: list[Any] = [cupy.cuda.get_current_stream().record(cupy.cuda.Event(disable_timing=True))]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        events.append(torch.cuda.current_stream(device).record_event())
    return events


def _let_go(most: int | None = None) -> None:
    """Let go of the memory whose readers are done; beyond `most`, wait for them. Any thread may, at any time."""
    for _ in range(len(_lent)):
        try:
            events, memory = _lent.popleft()
        except IndexError:  # another thread was faster
            return
        if most is not None and len(_lent) >= most:
            for event in events:
                event.synchronize()
        elif not all(_is_over(event) for event in events):
            _lent.append((events, memory))


def _is_over(event: Any) -> bool:
    return bool(event.query() if hasattr(event, "query") else event.done)  # torch's, CuPy's


_streams: dict[int, Any] = {}
_making_streams = threading.Lock()


def _stream(device: int) -> Any:
    """Our stream on a GPU. It lives as long as the process, like torch's memory that was taken on it."""
    import cupy

    with _making_streams:
        if device not in _streams:
            with cupy.cuda.Device(device):
                _streams[device] = cupy.cuda.Stream(non_blocking=True)
        return _streams[device]
