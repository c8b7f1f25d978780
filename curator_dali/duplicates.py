"""What is alike in outputs: the groups that a deduplication found, and what two outputs share."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from curator_dali import html
from curator_dali.arguments import checked
from curator_dali.errors import OutputError
from curator_dali.sinks import Manifest, RowFiles
from curator_dali.sinks.rows import RowSubset
from curator_dali.stages import Deduplicate, StageError
from curator_dali.stages.deduplicate import embeddings_of
from curator_dali.stages.earlier import check_earlier, embedder_lineage, match_earlier

if TYPE_CHECKING:
    import torch

__all__ = ["DuplicateGroup", "Leak", "Member", "duplicate_groups", "leaks"]


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
        title = html.note(f"group {self.number}, {html.count(len(rows), 'image')}")
        return html.block(title, html.table(["image", "status", "reason", "path"], rows))


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
        Leak(ids[row], paths[row], matches.key[row], comparing.ways[matches.way[row]].reason(float(matches.value[row])))
        for row in np.flatnonzero(matches.way >= 0).tolist()
    ]
