"""DALI pipelines as this package runs them, the memory that DALI lends, and its decoders' lines on stderr.

Pipelines have the dynamic executor and are fed by hand; they do not survive a fork. Only arrays of ours go in, and
only views of DALI's memory come out: ready for any stream, and not used again before their readers are done.

On a GPU DALI's outputs are got on one stream of ours a device (`output_stream`), and `from_dali` waits for that stream
alone. DALI frees in an order of its own, so when the last view of a batch goes, its memory is kept until torch's and
CuPy's current streams have done what was asked of them so far. Who works on another stream than the current one keeps
the batch until that work is done, as with torch's own tensors.

Lines that the decoders' C libraries print are dropped, because none names an image. libjpeg and libpng print through
C's `stderr` and have no setting for it. So that variable is pointed at a pipe to a `grep` that drops their lines and
passes on all others. File descriptor 2 and `sys.stderr` stay as they are.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import merge
from curator_dali.threads import uninterrupted

logger = logging.getLogger(__name__)

# The process that built the first pipeline. DALI's threads do not survive a fork: a child would wait for ever.
_started_in: int | None = None
_pipelines: weakref.WeakSet[Any] = weakref.WeakSet()  # those that exist

_MOST_GPU_THREADS = 16  # nvJPEG reserves 16 MiB of device and of pinned memory for each

_streams: dict[int, Any] = {}
_making_streams = threading.Lock()
_MOST_LET_GO = 8  # outputs whose readers are still at work, before the next output waits for the oldest

# Memory whose last view is gone, and the events in its readers' streams behind which it is free.
_lent: deque[tuple[list[Any], Any]] = deque()
atexit.register(_lent.clear)  # while CUDA is still there

_SHOW_LINES = "CURATOR_DALI_DECODER_LINES"  # 1: leave everything as it is
_QUIET_SETTINGS = {"PYNVIMGCODEC_VERBOSITY": "0", "OPENCV_LOG_LEVEL": "SILENT"}  # libraries that do have one
_quieting = threading.Lock()
_is_quiet = False


def new_pipeline(device: str, batch_size: int, num_threads: int, depth: int = 1) -> Any:
    """An empty pipeline, for a graph to be written into; `depth` is how many batches are under way at once.

    Raises:
        RuntimeError: This process is a fork of one in which DALI was started.
    """
    global _started_in
    check_process()
    _started_in = os.getpid()
    _quiet_decoders()
    with quiet_import():
        from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=None if device == "cpu" else int(device.removeprefix("cuda:")),
        exec_dynamic=True,
        # each schedule_run starts one batch, the first one too, instead of filling the queue with `depth` of them
        exec_pipelined=False,
        prefetch_queue_depth=depth,
    )
    _pipelines.add(pipeline)
    return pipeline


def default_threads(device: str) -> int:
    """DALI's threads where nothing was asked for: the CPUs that this process may use; for a GPU at most 16."""
    cpus = len(os.sched_getaffinity(0))
    return cpus if device == "cpu" else min(cpus, _MOST_GPU_THREADS)


def declare(inputs: Mapping[str, tuple[np.dtype[Any], int]]) -> dict[str, Any]:
    """Input nodes on the host, inside `with pipeline`: (dtype, dimensions of one sample) each; feeding copies."""
    from nvidia.dali import fn
    from nvidia.dali.types import to_dali_type

    return {
        name: fn.external_source(name=name, dtype=to_dali_type(dtype.name), ndim=ndim, batch=True)
        for name, (dtype, ndim) in inputs.items()
    }


def feed(pipeline: Any, images: Any, arguments: Mapping[str, Any]) -> None:
    """Start a batch: `images` for the input of that name, and the others' values, (N, ...) arrays.

    Raises:
        RuntimeError: This process is a fork of the one that built the pipeline.
    """
    check_process()
    pipeline.feed_input("images", images)
    for name, values in arguments.items():
        pipeline.feed_input(name, values)
    pipeline.schedule_run()


def collect(pipeline: Any, device: str) -> list[Any]:
    """Wait for the oldest batch: arrays of each output.

    Raises:
        RuntimeError: An operator failed; the batch is lost, and only this one.
    """
    with output_stream(device) as stream:
        outputs = pipeline.share_outputs(cuda_stream=stream)
        pipeline.release_outputs()
        return [from_dali(output) for output in outputs]


def close(pipelines: dict[str, Any]) -> None:
    """Shut pipelines down and forget them; what they decoded stays valid.

    DALI does it in `Pipeline.__del__`, where Python would lose a Ctrl-C: an exception there is printed and dropped.
    """
    with uninterrupted():
        pipelines.clear()


def check_process() -> None:
    """Refuse to use DALI in a fork of a process in which DALI was started.

    Raises:
        RuntimeError: This process is such a fork.
    """
    if _started_in not in (None, os.getpid()):
        raise RuntimeError(
            f"DALI was started in process {_started_in}, and this process ({os.getpid()}) is a fork of it, in which "
            'DALI would hang: start workers with multiprocessing.get_context("spawn") (a DataLoader: '
            'multiprocessing_context="spawn"), or use no loader and no transforms before the fork'
        )


def _abandon_inherited() -> None:
    """Take a parent's pipelines out of DALI's hands in a forked child, whose exit would wait for their threads."""
    for pipeline in _pipelines:
        if (backend := getattr(pipeline, "_pipe", None)) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(backend))  # for good: an exiting interpreter empties any list
            pipeline._pipe = None


os.register_at_fork(after_in_child=_abandon_inherited)


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


def _stream(device: int) -> Any:
    """Our stream on a GPU. It lives as long as the process, like torch's memory that was taken on it."""
    import cupy

    with _making_streams:
        if device not in _streams:
            with cupy.cuda.Device(device):
                _streams[device] = cupy.cuda.Stream(non_blocking=True)
        return _streams[device]


def use_device(device: str) -> None:
    """Make a device the calling thread's current one, for good: for a thread of ours. Nothing for "cpu".

    Without it each `with cupy.cuda.Device(n)` would set GPU 0 again behind it, which costs a context there.
    """
    if device != "cpu":
        import cupy

        cupy.cuda.Device(int(device.removeprefix("cuda:"))).use()


def from_dali(output: Any) -> Any:
    """A DALI output (`TensorListCPU`, or `TensorListGPU` got on `output_stream`) as arrays, without a copy.

    One array if all samples have one shape, else a list of views. The data is ready when this returns, and stays
    valid after later runs of the pipeline: each view keeps the whole output alive. (DALI's dynamic executor only.)
    """
    dense = output.is_dense_tensor()
    if hasattr(output, "as_array"):  # on the CPU; not through as_array() or at(), which copy
        device = "cpu"
        rows = [np.asarray(tensor) for tensor in ([output.as_tensor()] if dense else output)]
    else:
        from nvidia.dali.types import to_numpy_type

        device = f"cuda:{output.device_id()}"
        owner = _Lent(output, _stream(output.device_id()))
        dtype = np.dtype(to_numpy_type(output.dtype))
        tensors = [output.as_tensor()] if dense else [output[row] for row in range(len(output))]
        rows = [owner.view(tensor.data_ptr(), tuple(tensor.shape()), dtype) for tensor in tensors]
    # DALI may lay out equal shapes with gaps; a fixed size promises one array
    return rows[0] if dense else merge_ready([(range(len(rows)), rows)], len(rows), device)


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


class _Lent:
    """Memory on a GPU that is ready once this is made, and lives until those who read it are done.

    `memory` keeps it, an output of DALI's or an array that was made on `stream`, ours.
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
        elif not all(event.query() if hasattr(event, "query") else event.done for event in events):  # torch's, CuPy's
            _lent.append((events, memory))


@contextmanager
def quiet_import() -> Iterator[None]:
    """Make DALI and nvImageCodec quiet that are imported inside the `with`: they read their verbosity only then."""
    settings = {} if os.environ.get(_SHOW_LINES) == "1" else _QUIET_SETTINGS
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _quiet_decoders() -> None:
    """Drop the lines of libjpeg, libpng and libtiff on stderr from now on; once a process."""
    global _is_quiet
    with _quieting:
        if _is_quiet or os.environ.get(_SHOW_LINES) == "1":
            return
        _is_quiet = True
        try:
            _filter_stderr()
        except (OSError, ValueError, AttributeError, NotImplementedError) as error:  # no shell, another C library
            logger.debug("decoders' lines stay on stderr: %s", error)


# libjpeg's texts are those of its jerror.h
_LINES = (
    r"^(libpng (error|warning): |Corrupt JPEG data: |Premature end of (JPEG|input) file|Input file read error"
    r"|Warning: unknown JFIF revision|Unknown Adobe color transform code|Inconsistent progression sequence"
    r"|Application transferred too (few|many) |Didn't expect more than one scan|Scan script does not transmit"
    r"|Bogus (DAC|DHT|DQT|Huffman|JPEG|buffer|input|marker|message|progression|sampling|virtual)"
    r"|Invalid (JPEG|component ID|crop|memory pool|progressive|SOS parameters|scan script)"
    r"|Unsupported (JPEG|color conversion|marker type)|Not a JPEG file|JPEG datastream contains no image"
    r"|(Huffman|Quantization|Arithmetic) table 0x[0-9a-f]+ was not defined|Improper call to JPEG library"
    r"|Missing Huffman code table entry|Huffman code size table overflow|Sampling factors too large"
    r"|(Fractional|CCIR601) sampling not implemented|Component index [0-9]+: |Too many color components: "
    r"|DCT (coefficient|scaled block size)|Empty (JPEG image|input file)|Maximum supported image dimension"
    r"|tempfile\.tif: |LZWDecode: |ZIPDecode: |TIFF[A-Z][A-Za-z]+: )"
)


def _filter_stderr() -> None:
    libc = ctypes.CDLL(None)
    variable = ctypes.c_void_p.in_dll(libc, "stderr")
    source, sink = os.pipe()
    try:
        # The shell leaves `grep` to init: no child of this process, which may wait for all of its own. Its session is
        # another one, so that Ctrl-C does not end it.
        script = 'command -v grep >/dev/null || exit 1; exec grep --line-buffered -avE "$0" <&3 &'
        shell = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", script, _LINES],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, source, 3), (os.POSIX_SPAWN_DUP2, 2, 1)],
            setsid=True,
        )
        if os.waitpid(shell, 0)[1]:
            raise OSError("/bin/sh could not start grep")
    except BaseException:
        os.close(sink)
        raise
    finally:
        os.close(source)
    libc.fdopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fdopen(sink, b"w"))
    libc.setvbuf(stream, None, 1, 0)  # a line at a time
    variable.value = stream.value
