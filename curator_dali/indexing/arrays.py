"""Arrays in files: written a block at a time, whole or not at all, and mapped when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from curator_dali.files import AtomicFile

__all__ = ["load", "save", "save_blocks"]


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


def load(folder: str, name: str) -> NDArray[Any]:
    """FOLDER/NAME.npy, mapped: what is not looked at is not read."""
    array: NDArray[Any] = np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")
    return array
