"""Arrays in files: written a block at a time, whole or not at all, and mapped when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from curator_dali.io.files import AtomicFile, open_regular

__all__ = ["check_regular", "load", "save", "save_blocks"]


def save_blocks(
    folder: str, name: str, dtype: DTypeLike, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
) -> None:
    """Write FOLDER/NAME.npy from blocks of rows that together make up `shape`."""
    # not through a mapped file: a full disk would kill the process
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with AtomicFile(os.path.join(folder, f"{name}.npy")) as file:
        np.lib.format.write_array_header_2_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8))


def save(folder: str, name: str, array: NDArray[Any]) -> None:
    """Write FOLDER/NAME.npy."""
    save_blocks(folder, name, array.dtype, array.shape, [array])


def check_regular(path: str) -> None:
    """Refuse what is no regular file: a pipe would be waited for.

    Raises:
        OSError: It is none, or cannot be opened.
    """
    os.close(open_regular(path))


def load(folder: str, name: str) -> NDArray[Any]:
    """FOLDER/NAME.npy, mapped: what is not looked at is not read."""
    path = os.path.join(folder, f"{name}.npy")
    check_regular(path)
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array
