"""`search`, `duplicate_groups` and `leaks`: images of outputs that are alike, by what the outputs store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, checked
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.errors import CuratorDaliError, OutputError, StageError
from curator_dali.index import check_earlier, embedder_lineage, match_earlier
from curator_dali.io import Storage, is_remote, one_line
from curator_dali.loader import ImageLoader
from curator_dali.outputs import EMBEDDING, Manifest, RowFiles, RowSubset
from curator_dali.report.selection import load_samples
from curator_dali.similarity import bad_rows, nearest
from curator_dali.sources import MemorySource, read_bytes
from curator_dali.stages import Deduplicate, embeddings_of
from curator_dali.view import html

if TYPE_CHECKING:
    import torch

    from curator_dali.models import ImageEncoder

_BLOCK_ROWS = 16_384  # embeddings in memory at once


class SearchError(CuratorDaliError, ValueError):
    """Nothing can be searched for by what was given."""


@dataclass(frozen=True)
class Found:
    """What a search found, the most alike first.

    Attributes:
        ids: (K,) `image_id`s.
        paths: (K,) `image_path`s.
        cosines: (K,) float32.
        indices: (K,) int64: places in the source.
        out: The output that was searched.
        source: The data set, where the output does not say how to open it.
    """

    ids: list[str]
    paths: list[str]
    cosines: NDArray[np.float32]
    indices: NDArray[np.int64]
    out: str = ""
    source: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, str, float]]:
        """(id, path, cosine) of each."""
        return iter(zip(self.ids, self.paths, self.cosines.tolist(), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"out": self.out, "found": [{"image_id": i, "image_path": p, "cosine": c} for i, p, c in self]}

    def batch(self, device: str = "auto", transforms: Sequence[Any] = ()) -> ImageBatch:
        """The images, from the data set that the output is of, with the column `cosine`; unreadable ones are left out.

        Args:
            device: Where to decode.
            transforms: What to do to them.

        Raises:
            SourceError: The data set cannot be opened again.
        """
        data = [ImageObject(path, key) for key, path, _ in self]
        known = ImageBatch("search", self.out, data, columns={"cosine": self.cosines})
        return load_samples(known, self.indices, self.source, device=device, transforms=transforms)


@partial(checked, error=SearchError)
def search(
    out: str | os.PathLike[str],
    *,
    image: Any = None,
    text: str | None = None,
    embedding: Any = None,
    id: str | None = None,
    k: Count = 20,
    dropped: bool = False,
    encoder: ImageEncoder | None = None,
    device: str | torch.device = "auto",
    source: Any = None,
) -> Found:
    """Find the images of an output that are most like something: one of `image`, `text`, `embedding` or `id`.

    The output must store embeddings (`embeddings=True`). They are read a block at a time. Those that are NaN or zero
    are passed over.

    Args:
        out: The output.
        image: A path or URL of an image, or its encoded bytes.
        text: Where the encoder has a text tower: "a red bus".
        embedding: (D,) floats.
        id: The `image_id` of an image of the output; it is not among what is found.
        k: How many.
        dropped: Whether to look among dropped images too.
        encoder: The model, where it cannot be loaded by what the output says; by default that one is loaded.
        device: Where to embed and to compute.
        source: The data set, for `Found.batch`, where the output does not say how to open it.

    Raises:
        SearchError: Not exactly one of the four is given, or it is of no use.
        OutputError: There is no output, or it has no embeddings.
        WeightsError: The encoder has other weights than that of the output.
        NoTextTowerError: The encoder embeds images only.
    """
    given = {"image": image, "text": text, "embedding": embedding, "id": id}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise SearchError(f"give one of {', '.join(given)} to search by, not {' and '.join(names) or 'none'}")
    if image is not None and not isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray)):
        raise SearchError(
            f"image is {image!r:.60}; give a path, a URL, or the encoded bytes of an image (JPEG, PNG, ...)"
        )
    out, device = os.fspath(out), str(device)
    run = Manifest.load(out).run
    if not run["samples"]:
        return Found([], [], np.empty(0, np.float32), np.empty(0, np.int64), out, source)
    files = RowFiles(out)
    if not files.embedding_dim:
        raise OutputError(f"{out} stores no embeddings: curate again with embeddings=True (--embeddings)")
    query = _query(files, run, names[0], given[names[0]], encoder, device)
    if query.shape != (files.embedding_dim,):
        raise SearchError(f"the query has the shape {query.shape}; the output's embeddings have {files.embedding_dim}")
    if not np.isfinite(query).all() or not query.any():
        raise SearchError("the query's embedding is zero, NaN or infinite: nothing is like it")
    rows, cosines = _nearest(files, query[None], k + 1 if id is not None else k, dropped, device)
    about = _rows(files, rows)
    keep = [n for n, row in enumerate(about) if row[0] != id][:k]
    return Found(
        [about[n][0] for n in keep],
        [about[n][1] for n in keep],
        cosines[keep],
        np.array([about[n][2] for n in keep], np.int64),
        out,
        source,
    )


def _nearest(
    files: RowFiles, query: NDArray[np.float32], k: int, dropped: bool, device: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows with the highest cosines, of equal ones the first."""
    kept = files.columns(["status"])["status"] == "kept"
    best, values = np.empty(0, np.int64), np.empty(0, np.float32)
    for rows, block in files.embeddings(rows=_BLOCK_ROWS):
        good = np.ones(len(rows), bool) if dropped else kept[rows]
        if len(block):
            good[bad_rows(block)] = False
        if good.any():
            rows, block = rows[good], block[good]
            near, cosines = nearest(query, block, min(k, len(block)), device=device)
            best, values = np.concatenate([best, rows[near[0]]]), np.concatenate([values, cosines[0]])
            order = np.lexsort((best, -values))[:k]
            best, values = best[order], values[order]
    return best, values


def _rows(files: RowFiles, rows: NDArray[np.int64]) -> list[tuple[str, str, int]]:
    """(id, path, place in the source) of rows."""
    found: dict[int, tuple[str, str, int]] = {}
    start = 0
    for batch in files.batches(["image_id", "image_path", "index"]):
        for row in rows[(rows >= start) & (rows < start + len(batch))].tolist():
            found[row] = tuple(batch.column(n)[row - start].as_py() for n in range(3))
        start += len(batch)
    return [found[row] for row in rows.tolist()]


def _query(
    files: RowFiles, run: Any, name: str, value: Any, encoder: ImageEncoder | None, device: str
) -> NDArray[np.float32]:
    """The embedding to search by, (D,)."""
    if name == "embedding":
        try:
            query: NDArray[np.float32] = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            raise SearchError(f"embedding is {value!r:.60}; give numbers, (D,)") from None
        return query.reshape(-1) if query.ndim == 2 and len(query) == 1 else query
    if name == "id":
        return _by_id(files, value)
    model = _encoder(run, encoder, device)
    if name == "text":
        embedded: NDArray[np.float32] = model.encode_text([value]).cpu().numpy()[0]
        return embedded
    return _embed(value, model)


def _by_id(files: RowFiles, key: str) -> NDArray[np.float32]:
    import pyarrow.compute as pc

    seen = False
    for batch in files.batches(["image_id", EMBEDDING], rows=_BLOCK_ROWS):
        for row in np.flatnonzero(pc.equal(batch.column(0), key).to_numpy(zero_copy_only=False)).tolist():
            seen = True
            if (found := batch.column(1)[row].as_py()) is not None:
                return np.array(found, np.float32)
    what = "has no embedding: it failed, or was dropped before" if seen else "is not in the output"
    raise SearchError(f"image {key!r} {what}")


def _encoder(run: Any, encoder: ImageEncoder | None, device: str) -> ImageEncoder:
    """The model of the output, checked by its weights' hash."""
    from curator_dali.models import WeightsError, load_encoder

    settings = run["settings"]
    stages = [s for s in settings.get("scored") or settings.get("stages", []) if s.get("type") == "Embed"]
    if encoder is None:
        if not stages:
            raise SearchError("the output does not say which model embedded it: give encoder=")
        encoder = load_encoder(stages[-1]["model"], device, **stages[-1].get("options", {}))
    then = embedder_lineage(run)
    if then and then.get("weights") != encoder.lineage.get("weights"):
        raise WeightsError(
            f"{encoder.name} has the weights {encoder.lineage.get('weights')}, and the output was embedded with "
            f"{then.get('weights')}: cosines between them mean nothing. Give the same weights, or curate again"
        )
    return encoder


def _embed(image: Any, encoder: ImageEncoder) -> NDArray[np.float32]:
    if isinstance(image, (str, os.PathLike)):
        name, storage = os.fspath(image), Storage()
        read = storage.cat([(name, None, None)])[0] if is_remote(name) else read_bytes(os.path.expanduser(name))
        storage.close()
        if isinstance(read, BaseException):
            raise SearchError(f"cannot read the image {name!r}: {one_line(read)}") from read
        data = read
    else:
        name, data = "query", image
    view = tuple(encoder.view)
    with ImageLoader(
        MemorySource({name: data}), batch_size=1, device=encoder.device, transforms=None, views=[view], num_threads=1
    ) as loader:
        for batch in loader:
            embedded: NDArray[np.float32] = encoder(batch.to_torch(view)).cpu().numpy()[0]
            return embedded
        raise SearchError(f"the image {name!r} cannot be used: {loader.errors[0].reason}")


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are alike.

    Attributes:
        number: The column `duplicate_group`.
        members: The one that the others are duplicates of first; that one may be of an earlier output, and not here.
    """

    number: int
    members: tuple[Member, ...]

    def _repr_html_(self) -> str:
        rows = [(member.image_id, member.status, member.reason, member.image_path) for member in self.members]
        head = f"group {self.number}, {html.count(len(rows), 'image')}"
        header = ["image", "status", "reason", "path"]
        return str(html.render("rows.html", head=head, header=header, rows=rows, rest=""))


@checked
def duplicate_groups(out: str | os.PathLike[str]) -> list[DuplicateGroup]:
    """The groups of duplicates that a `Deduplicate` found, the largest first.

    Raises:
        OutputError: There is no output, or none that was deduplicated.
    """
    files = RowFiles(os.fspath(out))
    if "duplicate_group" not in files.schema.names:
        raise OutputError(f"{os.fspath(out)} was not deduplicated: curate it, or rethreshold it, with Deduplicate")
    groups: dict[int, list[tuple[bool, Member]]] = {}
    names = ["duplicate_group", "duplicate_of", "image_id", "image_path", "index", "status", "reason"]
    for batch in files.batches(names):
        columns = batch.to_pydict()
        for number, of, key, path, index, status, reason in zip(*(columns[name] for name in names), strict=True):
            if number is not None and number >= 0:
                member = Member(key, path, index, status, (reason or "") if of is not None else "")
                groups.setdefault(number, []).append((of is not None, member))
    found = [
        DuplicateGroup(number, tuple(member for _, member in sorted(members, key=lambda pair: pair[0])))
        for number, members in groups.items()
    ]
    return sorted(found, key=lambda group: (-len(group.members), group.number))


@dataclass(frozen=True)
class Member:
    """One image of a group.

    Attributes:
        image_id: Its key.
        image_path: Where it is.
        index: Its place in the source.
        status: "kept" or "dropped".
        reason: Why it was dropped, as "duplicate of KEY (cosine 0.973)"; empty for what is kept.
    """

    image_id: str
    image_path: str
    index: int
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Leak:
    """An image of one output that is in another, too.

    Attributes:
        image_id: Of the first output.
        image_path: Its path.
        other: `image_id` of the image of the second output that it is most like.
        why: As "same bytes", "pHash distance 2", "cosine 0.973".
    """

    image_id: str
    image_path: str
    other: str
    why: str


@checked
def leaks(
    out: str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    exact: bool | Literal["bytes", "pixels"] | None = None,
    near: int | None = None,
    similarity: float | None = None,
    device: str | torch.device = "cpu",
) -> list[Leak]:
    """Kept images of one output that are like a kept image of another: of a test set that were trained on.

    Args:
        out: The one, as the test set: its hashes or embeddings are in memory, or in a temporary file.
        other: The other, as the training set: looked up in its index (`write_index`), or read a block at a time.
        exact: Compare the hashes of bytes and of pixels, or of one of these; None: those that both outputs have.
        near: Bits in which perceptual hashes may differ.
        similarity: Least cosine of embeddings, which both outputs must store, of the same model.
        device: Where to compute cosines.

    Returns:
        In the order of `out`, each image once, with what it is most like by the surest comparison.

    Raises:
        StageError: A hash or the embeddings are missing, or of another model; or nothing is compared.
        OutputError: One is no output, or of another version.
    """
    out, other, device = os.fspath(out), os.fspath(other), str(device)
    files, run = RowFiles(out), Manifest.load(out).run
    names = set(files.schema.names) & set(RowFiles(other).schema.names)
    hashes = next((name for name in ("phash", "dhash") if name in names), "phash")
    if exact is None:
        by: dict[tuple[bool, bool], bool | Literal["bytes", "pixels"]]
        by = {(True, True): True, (True, False): "bytes", (False, True): "pixels"}
        exact = by.get(("content_hash" in names, "pixel_hash" in names), False)
    if exact is False and near is None and similarity is None:
        raise StageError(
            f"nothing to compare {out} and {other} by: give near= or similarity=, or curate both with Deduplicate"
        )
    comparing = Deduplicate(exact, near, similarity, keep="first", hash=hashes)  # type: ignore[arg-type]
    dim = files.embedding_dim
    check_earlier("leaks", [out], comparing.ways, 0, {})
    check_earlier("leaks", [other], comparing.ways, dim, embedder_lineage(run))
    status = files.columns(["status"])["status"]
    columns = dict.fromkeys((way.column for way in comparing.ways), "string")
    kept = RowSubset(files, np.flatnonzero(status == "kept"), columns)
    if not len(kept):
        return []
    with tempfile.TemporaryFile() as room:
        new: dict[str, Any] = {way.column: kept.column(way.column) for way in comparing.ways if way.kind != "similar"}
        good = np.empty(0, np.int64)
        if similarity is not None:
            new["embedding"], good = embeddings_of(kept, room)
        matches = match_earlier([other], comparing.ways, len(kept), new, good, device=device)
    ids, paths = kept.column("image_id"), kept.column("image_path")
    return [
        Leak(
            ids[row],
            paths[row],
            matches.key[row],
            comparing.ways[matches.comparison[row]].reason(float(matches.value[row])),
        )
        for row in np.flatnonzero(matches.comparison >= 0).tolist()
    ]
