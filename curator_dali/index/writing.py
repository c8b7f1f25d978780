"""`write_index`: makes the index of an output, a block of rows at a time."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali._version import __version__
from curator_dali.arguments import checked
from curator_dali.arrays import objects, resolve_device
from curator_dali.errors import OutputError
from curator_dali.index.digests import DigestIndex
from curator_dali.index.hashes import HashIndex
from curator_dali.index.index import FOLDER, FORMAT, IDS, MOST, NAME, Index, digests_of, identity
from curator_dali.index.lookup import VectorIndex
from curator_dali.io.files import AtomicFile, parse_json, read_regular, write_file
from curator_dali.io.remote import is_remote
from curator_dali.io.store import explained
from curator_dali.outputs.manifest import Manifest, lock
from curator_dali.outputs.parquet import EMBEDDING, RowFiles
from curator_dali.similarity.hashes import find_comparable
from curator_dali.similarity.pairs import bad_rows, check_threshold
from curator_dali.threads import ignore

if TYPE_CHECKING:
    import torch

__all__ = ["write_index"]


_ROWS = 16_384  # of the output in memory at once
_DIGESTS, _HASHES = ("content_hash", "pixel_hash"), ("phash", "dhash")

Told = Callable[[str, int, int], object]


@checked
def write_index(
    out: str | os.PathLike[str],
    *,
    similarity: float = 0.9,
    device: str | torch.device = "cpu",
    progress: Told | None = None,
) -> Index:
    """Make the index of an output, with which later runs look new images up in it: `Deduplicate(against=out)`, `leaks`.

    It holds what the output does of its kept images: digests, perceptual hashes, embeddings. An index that is there is
    replaced once the new one is whole; interrupted, the old one stays. While it is made, the embeddings lie on the disk
    twice more; in memory are 200 bytes an image and a block of embeddings.

    Args:
        out: The output, a local folder.
        similarity: The lowest cosine that will be asked for, in (0, 1]. A lower one makes an index that looks at more.
        device: Where to compute.
        progress: Called with what is done ("read", "divided", "stored"), and images done and in all.

    Raises:
        OutputError: There is no output, or it has no rows, is behind a URL, or cannot be written to.
        ValueError: `similarity` is out of its range.
    """
    out, device = os.fspath(out), str(device)
    check_threshold(similarity)
    if is_remote(out):
        raise OutputError(
            f"{out} is behind a URL: an index is mapped into memory, so it needs a local folder. Copy the Parquet "
            "files and _manifest/ to one, or mount it"
        )
    manifest = Manifest.load(out)
    known = identity(manifest)
    files = RowFiles(out)
    count = sum(part.counts.get("kept", 0) for part in manifest.parts())
    with _folder(out) as folder:
        about = _write(folder, files, count, similarity, resolve_device(device), progress or ignore)
        about |= {"format": FORMAT, "version": __version__, "output": known, "folder": os.path.basename(folder)}
        if identity(Manifest.load(out)) != known:
            raise OutputError(f"{out} changed while it was indexed: wait for the run that writes to it, then try again")
        with explained(folder):
            write_file(os.path.join(out, FOLDER, NAME), json.dumps(about, indent=1).encode())
    return Index.load(out, about)


def _write(folder: str, files: RowFiles, count: int, threshold: float, device: str, progress: Told) -> dict[str, Any]:
    """Write all files but index.json; returns what that is to say of them."""
    digests = [name for name in _DIGESTS if name in files.schema.names]
    hashes = [name for name in _HASHES if name in files.schema.names]
    dim = files.embedding_dim
    dtype = np.dtype(files.schema.field(EMBEDDING).type.value_type.to_pandas_dtype()) if dim else np.dtype(np.float32)
    embedding: dict[str, Any] | None = None
    with explained(folder), tempfile.TemporaryFile(dir=folder) as room:
        rows, found = _read(folder, files, [*digests, *hashes], room, count, progress)
        for name in digests:
            DigestIndex.write(folder, name, np.concatenate(found[name].values), np.concatenate(found[name].rows))
        for name in hashes:
            HashIndex.write(folder, name, np.concatenate(found[name].values), np.concatenate(found[name].rows))
        if dim:
            good = np.concatenate(found[EMBEDDING].rows)
            embedding = {"dim": dim, "dtype": dtype.name, "count": len(good), "threshold": threshold}
            if len(good):
                room.flush()
                vectors = np.memmap(room, dtype, "r", shape=(len(good), dim))
                embedding |= VectorIndex.write(folder, vectors, good, threshold, device=device, progress=progress)
    return {"rows": rows, "digests": digests, "hashes": hashes, "embedding": embedding, "lineage": files.lineage}


class _Column:
    """What was read of a column: values, and their rows."""

    def __init__(self, empty: NDArray[Any]) -> None:
        self.values, self.rows = [empty], [np.empty(0, np.int64)]


def _read(
    folder: str, files: RowFiles, names: list[str], room: IO[bytes], count: int, progress: Told
) -> tuple[int, dict[str, _Column]]:
    """Read the kept rows: ids go into their file, embeddings of use into `room`, the rest into memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    none: dict[bool, NDArray[Any]] = {True: np.empty((0, 16), np.uint8), False: np.empty(0, np.uint64)}
    found = {name: _Column(none[name in _DIGESTS]) for name in [*names, EMBEDDING]}
    columns = ["image_id", "status", *names, *([EMBEDDING] if files.embedding_dim else [])]
    rows = 0
    schema = pa.schema([pa.field("image_id", pa.string())])
    with AtomicFile(os.path.join(folder, IDS)) as file, pa.ipc.new_file(file, schema) as ids:
        for batch in files.batches(columns, rows=_ROWS):
            batch = batch.filter(pc.equal(batch.column("status"), "kept"))
            ids.write_batch(batch.select(["image_id"]).cast(schema))
            for name in names:
                column = batch.column(name)
                values: NDArray[Any]
                if name in _DIGESTS:
                    known = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
                    values = digests_of(column.drop_null().to_pylist())
                else:
                    known, values = find_comparable(objects(column.to_pylist()), name)
                found[name].rows.append(rows + known)
                found[name].values.append(values)
            if files.embedding_dim:
                column = batch.column(EMBEDDING)
                there = rows + np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
                block = column.flatten().to_numpy(zero_copy_only=False).reshape(len(there), files.embedding_dim)
                bad = bad_rows(block)
                if len(bad):
                    block, there = np.delete(block, bad, axis=0), np.delete(there, bad)
                room.write(np.ascontiguousarray(block).view(np.uint8).data)
                found[EMBEDDING].rows.append(there)
            rows += len(batch)
            progress("read", rows, count)
    return rows, found


@contextlib.contextmanager
def _folder(out: str) -> Iterator[str]:
    """A folder for the files of an index. If what is done in it fails it is removed, else all others are."""
    above = os.path.join(out, FOLDER)
    with explained(above):
        os.makedirs(above, exist_ok=True)
        opened = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(opened, above, f"another process is indexing {out}: wait for its end")
        folder = os.path.join(above, secrets.token_hex(8))
        try:
            with explained(folder):
                os.mkdir(folder)
            yield folder
        except BaseException:
            if not _is_named(folder):  # an interrupt may come right behind index.json
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(above)  # where it was made for this
            raise
        for entry in os.scandir(above):
            if entry.is_dir() and entry.path != folder:
                shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        os.close(opened)


def _is_named(folder: str) -> bool:
    """Whether index.json says that the index is in this folder."""
    above, name = os.path.split(folder)
    try:
        return bool(parse_json(read_regular(os.path.join(above, NAME), MOST))["folder"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False
