"""The index of a folder of images: groups of images whose headers are read in one go, and the table of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import AtomicFile, fingerprint, join
from curator_dali.preparation.groups import CODECS, read_image_headers
from curator_dali.sources import FolderSource, FolderTable, iterate_texts
from curator_dali.sources import dataset_index as layout
from curator_dali.threads import ignore

_MOST_IMAGES, _FEWEST_IMAGES = 8192, 256  # of a group
_LEAST_GROUPS = 64  # so that there is work for many, where there are as many images


@dataclass(frozen=True)
class ImageGroup:
    """Images whose headers make one record.

    Attributes:
        folder: The index's folder.
        table: The images, without headers.
    """

    folder: str
    table: FolderTable

    def __len__(self) -> int:
        return len(self.table)

    @property
    def root(self) -> str:
        """The folder that the images lie in."""
        return self.table.root

    @cached_property
    def record(self) -> str:
        """Name of the file that has the headers; other images, or other contents of these, have another one."""
        table = self.table
        columns = (table.paths.to_pylist(), table.sizes.tolist(), table.versions.tolist(), table.contents.to_pylist())
        facts = zip(*columns, strict=True)
        return f"group-{fingerprint('', facts).strip('-')}.arrow"

    @property
    def part(self) -> str:
        """Name of the record, as there are no parts."""
        return self.record


def compare(listed: FolderTable, known: FolderTable | None) -> NDArray[np.int64]:
    """(M,) int64: the row that each file of a listing has in an index, -1 where it has none or is another file now."""
    import pyarrow.compute as pc

    rows = np.full(len(listed), -1, np.int64) if known is None else known.find(iterate_texts(listed.paths))
    at = np.flatnonzero(rows >= 0)
    if known is not None and len(at):
        there = rows[at]
        same = (listed.sizes[at] == known.sizes[there]) & (listed.versions[at] == known.versions[there])
        same &= pc.equal(listed.contents.take(at), known.contents.take(there)).to_numpy()
        rows[at[~same]] = -1
    return rows


def find_rest(listed: FolderTable, known: FolderTable | None, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the listing whose images' headers are to be read: those that `compare` finds no row with headers for."""
    images = listed.find_images()
    if known is None:
        return images
    done = known.headers["codec"] != 0  # (K,)
    done[list(known.problems)] = True
    is_unknown: NDArray[np.bool_] = ~np.append(done, False)[rows[images]]  # -1 is the last one, which is not done
    return images[is_unknown]


def make_image_groups(folder: str, listed: FolderTable, rest: NDArray[np.int64]) -> list[ImageGroup]:
    """Cut images, rows of a listing, into groups, the same whoever does so."""
    most = min(_MOST_IMAGES, max(_FEWEST_IMAGES, len(rest) // _LEAST_GROUPS))
    return [ImageGroup(folder, listed.take(rest[start : start + most])) for start in range(0, len(rest), most)]


def index_images(
    group: ImageGroup,
    progress: Callable[[int, int], object] = ignore,
    is_stopped: Callable[[], bool] = bool,
) -> int:
    """Read the headers of the images of a group, and write its record.

    Args:
        group: The group.
        progress: Called with how many images were done since the last call, twice.
        is_stopped: Tells whether the group is not wanted any more. Nothing is written then.

    Returns:
        How many images there are.

    Raises:
        SourceError: An image cannot be read now. Nothing is written.
        OSError: The record cannot be written.
    """
    table, paths = group.table, group.table.paths.to_pylist()
    listing = table.make_listing() if table.is_listing_of(table.root) else table.make_listing()._replace(versions={})
    with closing(FolderSource(table.root, files=paths, label_from_folder=False, listing=listing)) as source:
        _ = source.fingerprint  # by which a local image that never could be read is a bad one
        found, _, problems = read_image_headers(source, True, lambda count: progress(count, count), is_stopped)
    if is_stopped():
        return 0
    table.headers[:] = found
    table.problems.update(problems)
    _write(join(group.folder, group.record), table, {"root": "", "covers": []})
    return len(paths)


def fill(
    listed: FolderTable,
    folder: str,
    root: str,
    known: FolderTable | None,
    rows: NDArray[np.int64],
    rest: NDArray[np.int64],
    groups: Sequence[ImageGroup],
) -> None:
    """Fill a listing with the headers of the index and of groups, and write `files.arrow` unless it is as that.

    Args:
        listed: The M files, without headers.
        folder: The index's folder.
        root: As the index has it.
        known: The index as it is.
        rows: What `compare` found.
        rest: Rows of the images of the groups, in order.
        groups: The groups, which are done.

    Raises:
        FileNotFoundError: Another rank has finished the index, and removed the records.
    """
    at = np.flatnonzero(rows >= 0)
    if known is not None:
        listed.headers[at] = known.headers[rows[at]]
        reasons = {int(row): known.problems[int(rows[row])] for row in at if int(rows[row]) in known.problems}
        listed.problems.update(reasons)
    begin = 0
    for group in groups:
        done: FolderTable = layout.read_index(folder, group.record).table
        some = rest[begin : begin + len(done)]
        listed.headers[some] = done.headers
        listed.problems.update({int(some[row]): reason for row, reason in done.problems.items()})
        begin += len(done)
    same = known is not None and len(known) == len(listed) == len(at)
    if same and not groups and known is not None and _facts(known) == _facts(listed):
        return
    _write(join(folder, layout.FILES), listed, {"root": root, "covers": [""]})


def _facts(table: FolderTable) -> tuple[str, tuple[str, ...]]:
    return table.root, tuple(table.folders)


def _write(url: str, table: FolderTable, about: dict[str, Any]) -> None:
    with AtomicFile(url) as file:
        layout.write_folder(file, table, about, CODECS)
