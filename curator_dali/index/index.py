"""The index of an output: its files, opened, and whether it is of the output as that is now.

    out/_index/index.json      what there is, of which output, in which folder
    out/_index/TOKEN/...       the files of one build: they appear whole when index.json names them

Rows are numbers among the kept rows of the output, in its order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali._version import __version__
from curator_dali.arguments import checked
from curator_dali.arrays import objects, resolve_device
from curator_dali.errors import OutputError
from curator_dali.index.lookup import DigestIndex, HashIndex, VectorIndex, check_regular
from curator_dali.io import AtomicFile, explained, is_remote, parse_json, read_regular, write_file
from curator_dali.outputs import EMBEDDING, Manifest, RowFiles, lock
from curator_dali.similarity import CONSTANT_HASHES, MAX_PAIRS, Pairs, bad_rows, check_threshold, find_comparable
from curator_dali.threads import ignore

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Told = Callable[[str, int, int], object]

_FORMAT = 1
_FOLDER = "_index"
_ABOUT_NAME = "index.json"
_MOST_ABOUT_BYTES = 1 << 26
_IDS_NAME = "ids.arrow"
_DIGEST_COLUMNS, _HASH_COLUMNS = ("content_hash", "pixel_hash"), ("phash", "dhash")
_ROWS_AT_ONCE = 16_384  # of the output in memory at once


@dataclass(frozen=True)
class Index:
    """The kept images of an output, to be looked up in.

    The files of the index are mapped, so that a look-up reads only the parts that it needs.

    Attributes:
        out: The output.
        rows: How many images it kept.
        columns: What they can be looked up by: "content_hash", "pixel_hash", "phash", "dhash", "embedding".
        threshold: The lowest cosine that embeddings can be looked up with; 0 where there are none.
        nbytes: Of the files.
        about: What `index.json` says.
    """

    out: str
    rows: int
    columns: tuple[str, ...]
    threshold: float
    nbytes: int
    about: dict[str, Any] = field(repr=False)
    _digests: dict[str, DigestIndex] = field(repr=False)
    _hashes: dict[str, HashIndex] = field(repr=False)
    _vectors: VectorIndex | None = field(repr=False)
    _ids: Any = field(repr=False)

    @classmethod
    def load(cls, out: str, about: dict[str, Any]) -> Index:
        """The one that `index.json` describes.

        Raises:
            OSError, ValueError, KeyError, TypeError: Its files are not what they should be.
        """
        import pyarrow as pa

        folder = os.path.join(out, _FOLDER, about["folder"])
        embedding = about["embedding"]
        check_regular(os.path.join(folder, _IDS_NAME))
        ids = pa.ipc.open_file(pa.memory_map(os.path.join(folder, _IDS_NAME))).read_all().column(0)
        if len(ids) != about["rows"]:
            raise ValueError(f"{len(ids)} ids of {about['rows']} rows")
        return cls(
            out,
            about["rows"],
            (*about["digests"], *about["hashes"], *([EMBEDDING] if embedding else [])),
            embedding["threshold"] if embedding else 0.0,
            sum(entry.stat().st_size for entry in os.scandir(folder)),
            about,
            {name: DigestIndex.load(folder, name) for name in about["digests"]},
            {name: HashIndex.load(folder, name) for name in about["hashes"]},
            VectorIndex.load(folder, embedding) if embedding and embedding["count"] else None,
            ids,
        )

    def equal(self, column: str, texts: Sequence[str | None]) -> Pairs:
        """The first row that has each of these digests.

        Args:
            column: "content_hash" or "pixel_hash".
            texts: In hexadecimal; None is like nothing.

        Returns:
            Pairs of a place in `texts` and a row, with 0.
        """
        places = np.array([place for place, text in enumerate(texts) if text is not None], np.int64)
        hits, rows = self._digests[column].find(digests_of([text for text in texts if text is not None]))
        return Pairs(places[hits], rows, np.zeros(len(hits), np.float32))

    def near(self, column: str, hashes: NDArray[np.uint64], distance: int, *, max_pairs: int = MAX_PAIRS) -> Pairs:
        """Pairs of a place in `hashes` and a row whose hash is at most `distance` bits away, of equal ones the first.

        Raises:
            TooManyPairs: More than `max_pairs`.
        """
        index = self._hashes[column]
        found = index.near(hashes, distance, max_pairs=max_pairs)
        blank = index.near(CONSTANT_HASHES[column], 0).second  # an earlier version indexed them, too
        kept = ~np.isin(found.second, blank)
        return Pairs(found.first[kept], found.second[kept], found.value[kept])

    def similar(
        self, embeddings: Any, threshold: float, *, device: str | None = None, max_pairs: int = MAX_PAIRS
    ) -> Pairs:
        """Pairs of a place in `embeddings` and a row with a cosine of `threshold` or more: 99% of them, none wrong.

        Raises:
            ValueError: The threshold is below the index's, or the embeddings are none, or of another width.
            TooManyPairs: More than `max_pairs`.
        """
        if self._vectors is None:
            none = np.empty(0, np.int64)
            return Pairs(none, none, np.empty(0, np.float32))
        return self._vectors.similar(embeddings, threshold, device=device, max_pairs=max_pairs)

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """The `image_id` of each row."""
        found = np.empty(len(rows), object)
        bounds = np.cumsum([0, *(len(chunk) for chunk in self._ids.chunks)])
        chunks = np.searchsorted(bounds, rows, "right") - 1
        for number in np.unique(chunks).tolist():
            here = np.flatnonzero(chunks == number)
            found[here] = self._ids.chunk(number).take(rows[here] - bounds[number]).to_pylist()
        return found

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        names = ("out", "rows", "columns", "threshold", "nbytes")
        return {name: getattr(self, name) for name in names} | {"columns": list(self.columns)}


@checked
def open_index(out: str | os.PathLike[str]) -> Index | None:
    """The index of an output, if it has one that is of the output as it is now. Of another one a warning tells.

    Raises:
        OutputError: There is no output, or it is of another version.
    """
    out = os.fspath(out)
    if is_remote(out):
        return None
    path = os.path.join(out, _FOLDER, _ABOUT_NAME)
    try:
        about = parse_json(read_regular(path, _MOST_ABOUT_BYTES))
        if about["format"] != _FORMAT:
            why = f"is of format {about['format']}, and this version reads {_FORMAT}"
        elif about["output"] != _identity(Manifest.load(out)):
            why = "is of this output as it was before: it was run again, or went on"
        else:
            return Index.load(out, about)
    except FileNotFoundError:
        if not os.path.exists(path):
            return None
        why = "lacks files"
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"is damaged ({error})"
    logger.warning("the index of %s %s. It is not used; make it again: curator-dali index %s", out, why, out)
    return None


def _identity(manifest: Manifest) -> str:
    """Return 32 digits of an output, which change when it is run again or has other rows."""
    run = {name: manifest.run.get(name) for name in ("source", "samples", "settings", "lineage")}
    parts = [
        (part.start, part.stop, sorted(part.counts.items()), [tuple(file) for file in part.files])
        for part in manifest.parts()
    ]
    text = json.dumps([run, parts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digests_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """(N, 16) bytes of digests in hexadecimal.

    Raises:
        ValueError: One is none.
    """
    try:
        return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), 16)
    except ValueError as error:
        odd = next((text for text in texts if len(text) != 32), texts[0])
        raise ValueError(f"{odd!r} is no digest of 32 hexadecimal digits") from error


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
    known = _identity(manifest)
    files = RowFiles(out)
    count = sum(part.counts.get("kept", 0) for part in manifest.parts())
    with _new_folder(out) as folder:
        about = _write(folder, files, count, similarity, resolve_device(device), progress or ignore)
        about |= {"format": _FORMAT, "version": __version__, "output": known, "folder": os.path.basename(folder)}
        if _identity(Manifest.load(out)) != known:
            raise OutputError(f"{out} changed while it was indexed: wait for the run that writes to it, then try again")
        with explained(folder):
            write_file(os.path.join(out, _FOLDER, _ABOUT_NAME), json.dumps(about, indent=1).encode())
    return Index.load(out, about)


def _write(folder: str, files: RowFiles, count: int, threshold: float, device: str, progress: Told) -> dict[str, Any]:
    """Write all files but index.json; returns the entries of index.json about them."""
    digests = [name for name in _DIGEST_COLUMNS if name in files.schema.names]
    hashes = [name for name in _HASH_COLUMNS if name in files.schema.names]
    dim = files.embedding_dim
    dtype = np.dtype(files.schema.field(EMBEDDING).type.value_type.to_pandas_dtype()) if dim else np.dtype(np.float32)
    embedding: dict[str, Any] | None = None
    with explained(folder), tempfile.TemporaryFile(dir=folder) as scratch:
        rows, found = _read(folder, files, [*digests, *hashes], scratch, count, progress)
        for name in [*digests, *hashes]:
            kind = DigestIndex if name in digests else HashIndex
            kind.write(folder, name, *found[name])
        if dim:
            _, good = found[EMBEDDING]
            embedding = {"dim": dim, "dtype": dtype.name, "count": len(good), "threshold": threshold}
            if len(good):
                scratch.flush()
                vectors = np.memmap(scratch, dtype, "r", shape=(len(good), dim))
                embedding |= VectorIndex.write(folder, vectors, good, threshold, device=device, progress=progress)
    return {"rows": rows, "digests": digests, "hashes": hashes, "embedding": embedding, "lineage": files.lineage}


def _read(
    folder: str, files: RowFiles, names: list[str], scratch: IO[bytes], count: int, progress: Told
) -> tuple[int, dict[str, tuple[NDArray[Any], NDArray[np.int64]]]]:
    """Read the kept rows: ids go into their file, embeddings of use into `scratch`, the rest into memory.

    Returns:
        How many there are; column -> values (none of embeddings), and their rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values: dict[str, list[NDArray[Any]]] = {
        name: [np.empty((0, 16), np.uint8) if name in _DIGEST_COLUMNS else np.empty(0, np.uint64)]
        for name in [*names, EMBEDDING]
    }
    places: dict[str, list[NDArray[np.int64]]] = {name: [np.empty(0, np.int64)] for name in values}
    columns = ["image_id", "status", *names, *([EMBEDDING] if files.embedding_dim else [])]
    rows = 0
    schema = pa.schema([pa.field("image_id", pa.string())])
    with AtomicFile(os.path.join(folder, _IDS_NAME)) as file, pa.ipc.new_file(file, schema) as ids:
        for batch in files.batches(columns, rows=_ROWS_AT_ONCE):
            batch = batch.filter(pc.equal(batch.column("status"), "kept"))
            ids.write_batch(batch.select(["image_id"]).cast(schema))
            for name in names:
                column = batch.column(name)
                part: NDArray[Any]
                if name in _DIGEST_COLUMNS:
                    known, part = find_present(column.is_valid()), digests_of(column.drop_null().to_pylist())
                else:
                    known, part = find_comparable(objects(column.to_pylist()), name)
                places[name].append(rows + known)
                values[name].append(part)
            if files.embedding_dim:
                known, block = usable_embeddings(batch.column(EMBEDDING))
                scratch.write(np.ascontiguousarray(block).view(np.uint8).data)
                places[EMBEDDING].append(rows + known)
            rows += len(batch)
            progress("read", rows, count)
    return rows, {name: (np.concatenate(values[name]), np.concatenate(places[name])) for name in values}


def find_present(mask: Any) -> NDArray[np.int64]:
    """Return the rows where an Arrow array of bools is true."""
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def usable_embeddings(column: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the rows of an Arrow column that have an embedding with a direction, and these: (G,) and (G, D)."""
    rows = find_present(column.is_valid())
    block = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    bad = bad_rows(block)
    return (np.delete(rows, bad), np.delete(block, bad, axis=0)) if len(bad) else (rows, block)


@contextlib.contextmanager
def _new_folder(out: str) -> Iterator[str]:
    """A folder for the files of an index. If what is done in it fails it is removed, else all others are."""
    above = os.path.join(out, _FOLDER)
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
        return bool(parse_json(read_regular(os.path.join(above, _ABOUT_NAME), _MOST_ABOUT_BYTES))["folder"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False
