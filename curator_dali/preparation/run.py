"""`prepare`: the index of a data set, made by threads, processes, ranks or a cluster."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from curator_dali.arguments import Count, checked
from curator_dali.errors import SourceError
from curator_dali.io import AtomicFile, Stat, Storage, is_remote, join, one_line, printable, store
from curator_dali.preparation.groups import File, Group, index_group, make_groups, shorten, silence_interrupts
from curator_dali.preparation.images import (
    ImageGroup,
    compare,
    fill,
    find_rest,
    index_images,
    make_image_groups,
)
from curator_dali.sampling import Shard
from curator_dali.sources import FolderTable, ShardList, find_shards, list_files, select_names
from curator_dali.sources import dataset_index as layout
from curator_dali.threads import ignore, run_ahead

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], object]
"""Called with the numbers of files and samples done since the last call, and of files in all."""

_THREADS, _REMOTE_THREADS = 4, 16  # files at a time, where nothing is said
_MOST_NAMED = 10  # files in an error


class Executor(Protocol):
    """Has workers; see `curator_dali.curation.worker.Executor`."""

    def workers(self, folder: str) -> AbstractContextManager[Any]:
        """Processes, on machines that see the data and the index; see `curator_dali.stages.Workers`."""


@dataclass(frozen=True)
class Prepared:
    """Summary of the index of a data set.

    Attributes:
        folder: The index's folder.
        files: Files.
        samples: Samples.
        nbytes: Bytes of the files.
        refused: Kind of reason -> images that the gate refuses for it.
        indexed: Files that this call indexed.
        complete: Whether all files are indexed; false where other ranks have not done theirs yet.
        headers: Whether the headers of all images are known.
    """

    folder: str
    files: int
    samples: int = 0
    nbytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    indexed: int = 0
    complete: bool = True
    headers: bool = True

    def __str__(self) -> str:
        if not self.complete:
            return f"indexed {self.indexed:,} of {self.files:,} files; the index is written once all ranks are done"
        refused = sum(self.refused.values())
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in self.refused.items())
        reasons = f" ({reasons})" if reasons else ""
        unknown = "" if self.headers else ". Headers of images are not in it"
        return (
            f"{self.folder}: {self.samples:,} samples in {self.files:,} files, {self.nbytes / 1e9:,.2f} GB, "
            f"{self.indexed:,} files indexed now; images refused: {refused:,}{reasons}{unknown}"
        )


@checked
def prepare(
    source: Any,
    index: str | os.PathLike[str] | None = None,
    *,
    threads: Count | None = None,
    processes: Count = 1,
    shard: Shard | None = None,
    executor: Executor | None = None,
    headers: bool = True,
    anew: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Make the index of a data set, by which `open_source` opens it without looking at its files.

    The index is a folder, `.curator_dali_index/`, beside the data: `files.arrow` and the parts `samples-*.arrow`. That
    of a folder of images has no parts. A
    call that was interrupted is taken up again, group of files by group. A later call indexes files that are new or
    have changed, or whose part is missing or has another size, and drops those that are gone.

    Args:
        source: What `open_source` takes for tars and Parquet files: a folder, a glob, a brace list, URLs; or one
            folder of images. Give an opened `ParquetSource` where its image column is not the one that is found.
        index: The index's folder or URL, where it shall not lie beside the data. Give it to `open_source`, too.
        threads: Files that each process reads at the same time: 4, or 16 of a store.
        processes: Processes on this machine.
        shard: Do the groups of this rank alone. The rank that finds all groups done writes `files.arrow`.
        executor: Has workers of a cluster do the groups, such as `curator_dali.ray.RayExecutor()`. The index must lie
            where all see it.
        headers: Whether the header of each image is read, for width, height, format, orientation and whether it can
            be decoded.
        anew: Whether files are indexed that the index has as they are, too: where it is damaged.
        progress: See `Progress`.

    Returns:
        What the index has.

    Raises:
        SourceError: Files cannot be read; those of other groups are done, and are not read again. In the index's folder
            lies the index of another data set, or the data.
        OSError: The index cannot be written.

    Example:
        >>> print(cd.prepare("s3://bucket/shards/*.tar", processes=8))
    """
    found = find_shards(source)
    if index is not None:
        _check_folder(os.fspath(index), found)
    plan_of = _plan_images if found.kind == layout.FOLDER_KIND else _plan_shards
    plan = plan_of(found, None if index is None else os.fspath(index), headers, anew)
    groups = plan.groups
    wanted = groups if shard is None else groups[shard.rank :: shard.world_size]
    for group in wanted if anew else ():
        store.remove(join(plan.folder, group.record))
    lock, total = threading.Lock(), plan.total

    def tell(files: int, samples: int) -> None:
        if progress is not None:
            with lock:  # threads of one process call it
                progress(files, samples, total)

    tell(plan.kept, 0)
    indexed = _run(wanted, _find_done(plan.folder), threads, processes, executor, tell)
    try:
        with _locked(plan.folder):
            store.listing(plan.folder)  # what the client of a store remembers of the folder is older
            made, parts = plan.finish()
            for name in (*[group.record for group in groups], *parts):
                store.remove(join(plan.folder, name))
    except _UnfinishedError as error:
        if shard is None:
            raise SourceError(
                f"{error} of the index {plan.folder} are not there any more, as if another `prepare` had begun it "
                "anew: run it again once that one is done"
            ) from error
        return Prepared(plan.folder, total, indexed=indexed, complete=False, headers=headers)
    return replace(made, indexed=indexed)


def _check_folder(index: str, found: ShardList) -> None:
    """Refuse a folder for an index in which no index may lie, or none would be found."""
    if index in ("", *layout.PLACES_OF_INDEX):
        raise SourceError(
            f"index={index!r} is no folder: give a folder or URL for the index alone, or leave it out (--index), so "
            "that the index lies beside the data"
        )
    place = index.rstrip("/") if is_remote(index) else os.path.abspath(os.path.expanduser(index))
    if place in {found.root.rstrip("/"), *(url.rpartition("/")[0] for url in found.urls)}:
        raise SourceError(
            f"index={index!r} is the folder of the data: give a folder for the index alone, or leave it out (--index), "
            f"so that the index lies in {layout.FOLDER}/ beside the data"
        )


class _UnfinishedError(Exception):
    """Groups are not done; it tells how many."""


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Let no other process of this kind finish an index meanwhile, where the folder's filesystem has locks."""
    if is_remote(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Plan(NamedTuple):
    """Plan of the work that makes an index.

    Attributes:
        folder: The index's folder.
        total: Files in all.
        kept: Files that the index has as they are.
        groups: Groups of the others.
        finish: Writes `files.arrow` once all groups are done, and tells which parts nobody needs any more.
    """

    folder: str
    total: int
    kept: int
    groups: Sequence[Group | ImageGroup]
    finish: Callable[[], tuple[Prepared, Collection[str]]]


def _plan_shards(found: ShardList, index: str | None, headers: bool, anew: bool) -> _Plan:
    """Compare shards with the index."""
    files = _look_at(found.urls, found.root)
    folder = store.prepare_folder(join(found.root, layout.FOLDER) if index is None else index)
    known = _read_known(folder, found)
    kept = {} if anew else _find_kept(known, files, headers)
    rest = [file for file in files if file.name not in kept]
    groups = make_groups(folder, rest, headers, found.kind, found.column)
    about = {
        "root": ".." if index is None else found.root,
        "kind": found.kind,
        "covers": found.covers,
        "column": found.column,
    }

    def finish() -> tuple[Prepared, Collection[str]]:
        now = _read_known(folder, found)
        table, unused = _finish(folder, about, now, groups, files, headers)
        return _summarize(folder, table), unused

    return _Plan(folder, len(files), len(kept), groups, finish)


def _plan_images(found: ShardList, index: str | None, headers: bool, anew: bool) -> _Plan:
    """Compare a folder of images with the index."""
    listed = list_files(found.root, found.listing)
    folder = store.prepare_folder(join(found.root, layout.FOLDER) if index is None else index)
    index_known = _read_known(folder, found)
    known = None if index_known is None or anew else index_known.table
    rows = compare(listed, known)
    total = len(listed.find_images())
    rest = find_rest(listed, known, rows) if headers else np.zeros(0, np.int64)
    groups = make_image_groups(folder, listed, rest)

    def finish() -> tuple[Prepared, Collection[str]]:
        try:
            fill(listed, folder, ".." if index is None else found.root, known, rows, rest, groups)
        except FileNotFoundError as error:  # another rank has finished it meanwhile, or not begun
            now = _read_known(folder, found)
            if now is None or len(find_rest(listed, now.table, compare(listed, now.table))):
                raise _UnfinishedError("groups") from error
            return _summarize_images(folder, now.table), ()
        return _summarize_images(folder, listed), ()

    return _Plan(folder, total, total - len(rest), groups, finish)


def _look_at(urls: Sequence[str], root: str) -> list[File]:
    """Ask what each file is, in the order of their names."""
    storage = Storage()
    names = layout.relative_names(urls, root)
    if len(set(names)) < len(names):
        raise SourceError(f"{max(names, key=names.count)!r} is given twice: an index has each file once")

    if odd := [name for name in names if printable(name) != name]:
        raise SourceError(f"{printable(odd[0])!r} is no UTF-8, as names in an index are: rename the file")

    def ask(url: str) -> Stat | str:
        try:
            return storage.stat(url)
        except (OSError, SourceError) as error:
            return one_line(error)

    with ThreadPoolExecutor(32, thread_name_prefix="curator-dali-stat") as pool:
        stats = list(pool.map(ask, urls))
    bad = {url: stat for url, stat in zip(urls, stats, strict=True) if isinstance(stat, str)}
    if bad:
        raise SourceError(f"{len(bad)} of {len(urls)} files cannot be read: {_list(bad)}")
    pairs = zip(urls, names, stats, strict=True)
    files = [File(url, name, stat) for url, name, stat in pairs if isinstance(stat, Stat)]
    return sorted(files, key=lambda file: file.name)


def _list(bad: Mapping[str, str]) -> str:
    shown = [f"{url}: {reason}" for url, reason in bad.items()]
    return "; ".join(shown[:_MOST_NAMED]) + "; ..." * (len(shown) > _MOST_NAMED)


def _read_known(folder: str, found: ShardList) -> layout.DatasetIndex | None:
    """The index as it is; None where there is none, or one that is damaged, which is made anew.

    Raises:
        SourceError: It is of another data set, or of another image column.
    """
    try:
        known = layout.read_index(folder)
    except FileNotFoundError:
        return None
    except Exception as error:
        logger.warning("the index %s cannot be read, and is made anew: %s", folder, one_line(error))
        return None
    names = {"kind": "files", "column": "image column", "root": "folder"}
    in_one_place = known.root.rstrip("/") == found.root.rstrip("/")
    if in_one_place and known.kind != found.kind and layout.FOLDER_KIND in (known.kind, found.kind):
        return None  # a folder is not opened with images and shards beside each other
    for name, meaning in names.items():
        then, now = getattr(known, name), getattr(found, name)
        if then.rstrip("/") != now.rstrip("/"):
            raise SourceError(
                f"{folder} is an index with the {meaning} {then!r}, not {now!r}: give this one another folder with "
                "index= (--index), or remove that folder first"
            )
    return known


def _find_kept(known: layout.DatasetIndex | None, files: Sequence[File], headers: bool) -> dict[str, int]:
    """Find files that the index has as they are, with their parts: name -> row."""
    there = [] if known is None else [file for file in files if file.name in known.row_of]
    if known is None or not there:
        return {}
    rows = [known.row_of[file.name] for file in there]
    has_headers = known.table.column("headers").to_pylist()
    present = store.listing(known.folder)
    sizes = [present.get(name) for name in known.parts]
    damaged = {number for number, size in enumerate(known.part_sizes) if sizes[number] != size}
    if damaged:
        logger.warning("%d parts of the index %s are missing or damaged, and are made anew", len(damaged), known.folder)
    is_there = [number not in damaged for number in known.part_of.tolist()]
    return {
        file.name: row
        for file, row, stat in zip(there, rows, known.stats(np.array(rows, np.int64)), strict=True)
        if stat == file.stat and (has_headers[row] or not headers) and is_there[row]
    }


def _find_done(folder: str) -> Callable[[Group | ImageGroup], bool]:
    """Make a function that tells of a group whether its part and its record are there, by one listing."""
    present = store.listing(folder)
    return lambda group: group.record in present and group.part in present


def _run(
    groups: Sequence[Group | ImageGroup],
    is_done: Callable[[Group | ImageGroup], bool],
    threads: int | None,
    processes: int,
    executor: Executor | None,
    progress: Callable[[int, int], object],
) -> int:
    """Do groups that are not done; return how many files they have.

    Raises:
        SourceError: Files cannot be read. All other groups are done.
    """
    for group in groups:
        if is_done(group):
            progress(len(group), 0)
    waiting = [group for group in groups if not is_done(group)]
    if not waiting:
        return 0
    threads = threads or (_REMOTE_THREADS if is_remote(f"{waiting[0].root}/") else _THREADS)
    work = partial(_try_group, threads=threads)
    if executor is not None:
        results = _run_on_cluster(executor, waiting, work, progress)
    elif processes > 1 and len(waiting) > 1:
        results = _run_in_processes(min(processes, len(waiting)), waiting, work, progress)
    else:
        results = _run_in_threads(threads, waiting, progress)
    bad = [result for result in results if isinstance(result, str)]
    if bad:
        raise SourceError(
            f"{len(bad)} of {len(waiting)} groups of files are not indexed, as files of these cannot be read: "
            f"{'; '.join(bad[:_MOST_NAMED])}. Tars must be uncompressed: repair these or leave them out. All "
            "other groups are done, and the same call goes on from there"
        )
    return sum(map(len, waiting))


def _try_group(
    group: Group | ImageGroup,
    threads: int,
    progress: Callable[[int, int], object] = ignore,
    is_stopped: Callable[[], bool] = bool,
) -> int | str:
    """Index a group: samples, or why files cannot be read."""
    try:
        if isinstance(group, ImageGroup):
            return index_images(group, progress, is_stopped)
        return index_group(group, threads, progress, is_stopped)
    except SourceError as error:
        return str(error)


def _run_in_threads(
    threads: int, groups: Sequence[Group | ImageGroup], progress: Callable[[int, int], object]
) -> Iterator[int | str]:
    """Do groups in this process, as many at a time as there are threads."""
    count, stopped = min(threads, len(groups)), threading.Event()
    work = partial(_try_group, threads=threads // count, progress=progress, is_stopped=stopped.is_set)
    with ThreadPoolExecutor(count, thread_name_prefix="curator-dali-prepare") as pool:
        try:
            yield from run_ahead(pool, work, groups, count - 1)
        finally:
            stopped.set()


def _run_in_processes(
    count: int,
    groups: Sequence[Group | ImageGroup],
    work: Callable[[Group | ImageGroup], int | str],
    progress: Callable[[int, int], object],
) -> Iterator[int | str]:
    """Have processes do groups, in any order."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=silence_interrupts)
    try:
        futures = {pool.submit(work, group): group for group in groups}
        for future in as_completed(futures):
            result = future.result()
            progress(len(futures[future]), result if isinstance(result, int) else 0)
            yield result
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_on_cluster(
    executor: Executor,
    groups: Sequence[Group | ImageGroup],
    work: Callable[[Group | ImageGroup], int | str],
    progress: Callable[[int, int], object],
) -> Iterator[int | str]:
    """Have the workers of an executor do groups."""
    with executor.workers(join(groups[0].folder, "_work")) as workers:
        if workers is None:
            for group in groups:
                result = work(group)
                progress(len(group), result if isinstance(result, int) else 0)
                yield result
            return
        for group, result in zip(groups, workers.map(work, groups), strict=True):
            progress(len(group), result if isinstance(result, int) else 0)
            yield result


def _finish(
    folder: str,
    about: Mapping[str, Any],
    now: layout.DatasetIndex | None,
    groups: Sequence[Group],
    files: Sequence[File],
    headers: bool,
) -> tuple[Any, Collection[str]]:
    """Write `files.arrow`: rows of the groups, and those of the index as it is now, which others may have finished.

    Returns:
        The table; and parts that only the table before the one of now had. Sources that are open read those of now.

    Raises:
        _UnfinishedError: Groups are not done.
    """
    import pyarrow as pa

    done = list(filter(_find_done(folder), groups))
    fresh = {file.name for group in done for file in group.files}
    kept = _find_kept(now, [file for file in files if file.name not in fresh], headers)
    missing = {file.name for file in files}.difference(fresh, kept)
    if missing:
        count = sum(any(file.name in missing for file in group.files) for group in groups)
        raise _UnfinishedError(f"{count} of {len(groups)} groups of files")
    tables = list(map(_read_record, done))
    rows, old_covers, known_parts = sorted(kept.values()), set[str](), set[str]()
    former = set[str]()
    if now is not None:  # files of another part of the data set, which this call was not given
        old_covers, known_parts, former = set(now.covers), set(now.parts), set(now.former)
        listed = {file.name for file in files}
        covered = {name for pattern in about["covers"] for name in select_names(pattern, now.names)}
        rows += [row for row, name in enumerate(now.names) if name not in listed and name not in covered]
        tables.append(now.table.take(np.array(rows, np.int64)))
    table = pa.concat_tables(tables or [layout.file_schema().empty_table()]).sort_by("name")
    patterns = {*about["covers"], *old_covers}
    patterns = {""} if "" in patterns else patterns
    used = set(table.column("part").to_pylist())
    if now is not None and not fresh and len(table) == len(now) and patterns == old_covers:
        return table, former - used
    written = {**about, "covers": sorted(patterns), "former": sorted(known_parts - used)}
    with AtomicFile(join(folder, layout.FILES)) as file:
        layout.write_files(file, table, written)
    return table, former - used - known_parts


def _read_record(group: Group) -> Any:
    """The rows of a group's files.

    Raises:
        _UnfinishedError: They are damaged, and removed, so that the group is done again; or gone.
    """
    try:
        return layout.read_index(group.folder, group.record).table
    except SourceError as error:
        store.remove(join(group.folder, group.record))
        raise _UnfinishedError("groups of files") from error
    except FileNotFoundError as error:
        raise _UnfinishedError("groups of files") from error


def _summarize(folder: str, table: Any) -> Prepared:
    import pyarrow.compute as pc

    refused: Counter[str] = Counter()
    for reasons in table.column("reasons").to_pylist():
        refused.update(dict(reasons or ()))
    return Prepared(
        folder,
        files=len(table),
        samples=int(pc.sum(table.column("samples")).as_py() or 0),
        nbytes=int(pc.sum(table.column("size")).as_py() or 0),
        refused=dict(refused.most_common()),
        headers=all(table.column("headers").to_pylist()),
    )


def _summarize_images(folder: str, table: FolderTable) -> Prepared:
    images = table.find_images()
    known = table.headers["codec"][images] != 0
    return Prepared(
        folder,
        files=len(images),
        samples=len(images),
        nbytes=int(np.maximum(table.sizes[images], 0).sum()),
        refused=dict(Counter(map(shorten, table.problems.values())).most_common()),
        headers=int(known.sum()) + len(table.problems) == len(images),
    )
