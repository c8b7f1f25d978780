"""Arrow files with a checksum of all their bytes in their metadata, by which any damage shows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

METADATA = b"curator_dali"
"""The key of the metadata, a JSON document."""

_SUM = b'"crc32": "'  # in the metadata, which an Arrow file has at its beginning and, once more, at its end
_NO_SUM = b"00000000"


def write_table(file: Any, schema: Any, batches: Iterable[Any], about: Mapping[str, Any]) -> None:
    """Write record batches to an open file, compressed, with metadata and the checksum."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    schema = schema.with_metadata({METADATA: json.dumps({**about, "crc32": _NO_SUM.decode()}).encode()})
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data = bytearray(sink.getvalue())
    total, places = _sum_up(data), _find_sums(data)
    for at in places:
        data[at : at + len(total)] = total
    file.write(data)


def check_sum(data: bytes) -> None:
    """Compare a file with its checksum.

    Raises:
        ValueError: It has another one, or none.
    """
    total = _sum_up(data)
    if any(data[at : at + len(total)] != total for at in _find_sums(data)):
        raise ValueError("it has another checksum")


def _find_sums(data: bytes | bytearray) -> tuple[int, int]:
    """Where the two copies of the checksum begin."""
    first, last = data.find(_SUM), data.rfind(_SUM)
    if first == last:
        raise ValueError("it has no checksum")
    return first + len(_SUM), last + len(_SUM)


def _sum_up(data: bytes | bytearray) -> bytes:
    """The checksum of a file, whose own digits count as zeros."""
    first, last = _find_sums(data)
    view, size = memoryview(data), len(_NO_SUM)
    total = zlib.crc32(_NO_SUM, zlib.crc32(view[:first]))
    total = zlib.crc32(_NO_SUM, zlib.crc32(view[first + size : last], total))
    return b"%08x" % zlib.crc32(view[last + size :], total)
