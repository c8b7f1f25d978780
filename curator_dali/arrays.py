"""Arrays of numpy, CuPy and torch: where they lie, moved between devices, cut and joined.

"Arrays" below means either one array with a row an image, (N, ...), or a list of N arrays of any shapes: numpy on the
host, CuPy on a GPU. Two rules:

- **Ownership.** A view of what DALI made keeps DALI's memory alive, all of a batch's. `take` copies what it keeps
  once that is less than half; torch tensors from `to_torch` hold the arrays they come from.
- **One allocator.** Device memory that is needed here is torch's; CuPy arrays are views of it or of DALI's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.threads import import_whole

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 64  # bytes; any dtype can start there, and so can a vector load


def resolve_device(device: str | torch.device) -> str:
    """The device meant, as "cpu" or "cuda:N".

    Args:
        device: "auto" (the current GPU, "cpu" without one), "cpu", "cuda" (the current GPU), "cuda:N", or a
            `torch.device`.

    Raises:
        ValueError: No such name.
        RuntimeError: A GPU was asked for by name, and it is not there.
    """
    name = str(device)
    kind, _, index = name.partition(":")
    if name in ("cpu", "cpu:0") or (name == "auto" and _gpu_trouble()):
        return "cpu"
    if name not in ("auto", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise ValueError(f"device is {name!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    trouble = _gpu_trouble()
    if trouble:
        raise RuntimeError(f"device {name!r} was asked for, but {trouble}; or use device='cpu'")
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    number = int(index) if index else cupy.cuda.runtime.getDevice()
    if number >= count:
        raise RuntimeError(
            f"device {name!r} was asked for, but this process sees {count} GPU(s), the last is 'cuda:{count - 1}'; "
            "see CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{number}"


def _gpu_trouble() -> str:
    """Why no GPU can be used, with the fix; "" if one can. Imports CuPy only where there is a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver on this machine (libcuda.so.1 does not load): install one"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import ({error}): install cupy-cuda12x, or cupy-cuda13x for CUDA 13"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not start ({error}): see nvidia-smi, and whether the driver fits CuPy's CUDA"
    return "" if count else "the driver shows no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES"


def device_of(arrays: Any) -> str:
    """Where arrays (numpy, CuPy or torch; a list goes by its first) lie: "cpu" or "cuda:N"; "cpu" if there are none."""
    if isinstance(arrays, (list, tuple)):
        return device_of(arrays[0]) if arrays else "cpu"
    device = getattr(arrays, "device", "cpu")  # numpy 1 has no such attribute
    number = getattr(device, "id", None)  # CuPy's devices
    return str(device) if number is None else f"cuda:{number}"


def nbytes(arrays: Any) -> int:
    """Bytes of pixels (not of the memory that views keep alive)."""
    return sum(map(nbytes, arrays)) if isinstance(arrays, list) else int(arrays.nbytes)


def shapes(arrays: Any) -> list[tuple[int, ...]]:
    """Each row's shape."""
    if isinstance(arrays, list):
        return [tuple(array.shape) for array in arrays]
    return [tuple(arrays.shape[1:])] * len(arrays)


def to_torch(arrays: Any) -> Any:
    """Torch tensors (or a list) on the same memory, through DLPack.

    Writing to one is seen by the other. On a GPU torch's current stream waits for CuPy's.
    """
    import_whole("torch")
    if isinstance(arrays, list):
        return [_tensor(array) for array in arrays]
    return _tensor(arrays)


def from_torch(tensor: torch.Tensor) -> Any:
    """An array on a tensor's memory: numpy, or CuPy on a GPU (whose current stream waits for torch's)."""
    return _array(tensor.detach())


def to_host(arrays: Any) -> Any:
    """The arrays in numpy. On the host: the same objects. From a GPU: one pinned block, and one wait for the stream.

    The rows of a list are views of that one block, which lives as long as any of them.
    """
    device = device_of(arrays)
    if device == "cpu":
        return arrays if isinstance(arrays, (list, np.ndarray)) else _array(arrays)
    import torch

    parts = [_tensor(array) for array in (arrays if isinstance(arrays, list) else [arrays])]
    _, views = _pack(parts, pin=True)
    torch.cuda.current_stream(device).synchronize()
    host = [view.numpy() for view in views]
    return host if isinstance(arrays, list) else host[0]


def to_device(arrays: Any, device: str) -> Any:
    """The arrays on `device` ("cpu" or "cuda:N"), the same objects if they are there; a list moves in one transfer."""
    if device_of(arrays) == device:
        return arrays
    if device == "cpu":
        return to_host(arrays)
    host = to_host(arrays)  # between two GPUs this is the rare case, and the host is always a way
    parts = [_tensor(array) for array in (host if isinstance(host, list) else [host])]
    block, _ = _pack(parts, pin=True)
    moved = [_array(view) for view in _unpack(block.to(device, non_blocking=True), parts)]
    return moved if isinstance(arrays, list) else moved[0]


def take(arrays: Any, rows: slice | NDArray[np.int64], copy: bool | None = None) -> Any:
    """Some rows, in the order given.

    Args:
        arrays: Arrays, N rows.
        rows: A slice, or (M,) row numbers.
        copy: Whether the result has memory of its own. None: if it is less than half of what `arrays` holds, because
            a view keeps all of it alive. False allows views; rows of one array by number are copies anyway.
    """
    if isinstance(arrays, list):
        kept = arrays[rows] if isinstance(rows, slice) else [arrays[row] for row in rows.tolist()]
    elif isinstance(rows, slice) and (rows.step is None or rows.step > 0):  # torch knows no negative strides
        kept = arrays[rows]
    else:
        numbers = np.arange(len(arrays))[rows]
        if isinstance(arrays, np.ndarray):
            return arrays[numbers]
        import torch

        tensor = _tensor(arrays)
        return _array(tensor[torch.from_numpy(numbers).to(tensor.device)])
    if copy is None:
        copy = 2 * nbytes(kept) < nbytes(arrays)
    return _own(kept) if copy else kept


def copy(arrays: Any) -> Any:
    """The same rows in memory of their own, on the same device; a list's rows do not share memory."""
    if isinstance(arrays, list):
        return [copy(array) for array in arrays]
    return arrays.copy() if isinstance(arrays, np.ndarray) else _array(_tensor(arrays).clone())


_own = copy  # for `take`, whose parameter has that name


def merge(parts: Sequence[tuple[Sequence[int] | NDArray[np.int64], Any]], n: int) -> Any:
    """Put rows that came by different ways into one batch.

    Args:
        parts: (row numbers, arrays with as many rows), all on one device; together they name 0..n-1 once each.
        n: Number of rows.

    Returns:
        One array if all rows have one shape and dtype (a copy unless one part has them all), else a list of views.

    Raises:
        ValueError: Rows are missing, twice, or not as many as their numbers.
    """
    for numbers, arrays in parts:
        if len(numbers) != len(arrays):
            raise ValueError(f"{len(numbers)} row numbers were given for {len(arrays)} arrays")
    order = np.concatenate([np.asarray(numbers, np.int64) for numbers, _ in parts] or [np.empty(0, np.int64)])
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"the parts must name each of the rows 0..{n - 1} once; they name {sorted(order.tolist())}")
    if len(parts) == 1 and not isinstance(parts[0][1], list) and np.array_equal(order, np.arange(n)):
        return parts[0][1]
    rows: list[Any] = [None] * n
    for row, array in zip(order.tolist(), (array for _, arrays in parts for array in arrays), strict=True):
        rows[row] = array
    return _stack(rows) if n and len({(row.shape, row.dtype) for row in rows}) == 1 else rows


def objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """(N,) array of N objects, whatever they are: lists among them stay lists."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def missing(count: int, kind: str) -> NDArray[Any]:
    """(N,) values that are all missing: NaN in a column of floats, None in one of anything else, which has objects."""
    return np.full(count, np.nan, kind) if kind.startswith("float") else np.full(count, None, object)


def with_gaps(values: Sequence[Any], kind: Any) -> NDArray[Any]:
    """(N,) values of a numpy type; where some are None, these are NaN among floats, and all others become objects."""
    kind = np.dtype(kind)
    if any(value is None for value in values):
        if kind.kind != "f":
            return objects(values)
        values = [np.nan if value is None else value for value in values]
    column = np.empty(len(values), kind)
    column[:] = values
    return column


def _tensor(array: Any) -> torch.Tensor:
    import torch
    import torch.utils.dlpack

    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, np.ndarray):
        return torch.utils.dlpack.from_dlpack(array)
    with array.device:
        return torch.utils.dlpack.from_dlpack(array)


def _array(tensor: torch.Tensor) -> Any:
    if tensor.device.type == "cpu":
        return tensor.numpy()
    import cupy

    with cupy.cuda.Device(tensor.device.index):
        return cupy.from_dlpack(tensor)


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], np.ndarray):
        return np.stack(rows)
    import torch

    return _array(torch.stack([_tensor(row) for row in rows]))


def _pack(parts: list[torch.Tensor], pin: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Copy tensors from anywhere into one new block on the host, without waiting; the block and views of it."""
    import torch

    block = torch.empty(_offsets(parts)[-1], dtype=torch.uint8, pin_memory=pin)
    views = _unpack(block, parts)
    for view, part in zip(views, parts, strict=True):
        view.copy_(part, non_blocking=pin)
    return block, views


def _unpack(block: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a block that `_pack` made, or of a copy of it."""
    return [
        block[start : start + part.nbytes].view(part.dtype).view(part.shape)
        for start, part in zip(_offsets(like)[:-1], like, strict=True)
    ]


def _offsets(parts: list[torch.Tensor]) -> list[int]:
    sizes = [-(-part.nbytes // _ALIGNMENT) * _ALIGNMENT for part in parts]
    return list(accumulate(sizes, initial=0))
