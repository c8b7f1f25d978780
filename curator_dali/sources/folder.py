"""A tree of image files, local or remote, as a source."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.sources.base import HEADER_DTYPE, EncodedBatch, LearningSource
from curator_dali.sources.samples import SIDECARS, is_image, parse_metadata
from curator_dali.sources.storage import Storage, filesystem, fingerprint, is_remote, one_line

__all__ = ["FolderSource", "list_local"]

logger = logging.getLogger(__name__)


class FolderSource(LearningSource):
    """Image files below a folder, in the order of their paths.

    `image_id` is the path below the folder without its extension (`cats/1` for `cats/1.jpg`); files that differ in
    nothing but the extension keep it (`cats/1.jpg` and `cats/1.png`), so that ids are unique. `image_path` is the
    file's path or URL. Files of the same stem that end in `.json`, `.txt` or `.cls` become the metadata, as
    `parse_metadata` says, read when somebody asks for it (remote ones: together with the image).

    Files and folders whose names begin with a dot are passed over; links to folders are followed, once round a loop.

    Args:
        root: The folder, or its URL.
        files: Paths below `root`, instead of all images in it.
        label_from_folder: Whether images get a `label` (int) and a `label_name` from the folders right below `root`,
            numbered by name as torchvision's ImageFolder does, if *every* image lies in one.
        name: The data set's name; by default the folder's.

    Raises:
        SourceError: The folder, or one in it, is missing or cannot be listed.
    """

    def __init__(
        self,
        root: str,
        *,
        files: Sequence[str] | None = None,
        label_from_folder: bool = True,
        name: str | None = None,
    ) -> None:
        self._remote = is_remote(root)
        self._root = root.rstrip("/") if self._remote else os.path.abspath(root)
        self._named = files is not None
        self._storage = Storage()
        self.read_ahead = 8 if self._remote else 1
        self.name = name or self._root.partition("?")[0].rpartition("/")[2] or "images"
        everything = (
            sorted(_list_remote(self._root) if self._remote else list_local(self._root)) if files is None else []
        )
        paths = [path for path in everything if is_image(path)] if files is None else list(files)
        self._files = np.array([os.fsencode(path) for path in paths], object)  # bytes: half the memory of str
        stems = [_stem(path) for path in paths]
        # Which sidecars lie beside each image, as bits: no need to look for them sample by sample.
        there = set(everything) if files is None else None
        self._sidecars = np.array(
            [
                sum(1 << bit for bit, ext in enumerate(SIDECARS) if self._is_there(f"{stem}.{ext}", there))
                for stem in stems
            ],
            np.uint8,
        )
        seen: set[str] = set()
        repeated = {stem for stem in stems if stem in seen or seen.add(stem)}  # type: ignore[func-returns-value]
        self._repeated = np.array([stem in repeated for stem in stems], bool)
        folders = [path.partition("/")[0] if "/" in path else "" for path in paths]
        self._classes: list[str] = sorted(set(folders)) if label_from_folder and all(folders) else []
        numbers = {folder: number for number, folder in enumerate(self._classes)}
        self._labels = np.array([numbers.get(folder, -1) for folder in folders], np.int32)
        self._headers = np.zeros(len(paths), HEADER_DTYPE)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def class_names(self) -> list[str]:
        """Names of the labels, by label; empty where labels do not come from folders."""
        return list(self._classes)

    @property
    def locations(self) -> Sequence[str]:
        """The folder, or the files that were named."""
        if not self._named:
            return [f"{self._root}/"]
        return [f"{self._root}/{os.fsdecode(path)}" for path in self._files]

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' paths below the folder."""
        return fingerprint("folder", self._files)

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read files, each into a buffer of its own; see `Source.read`."""
        indices = np.asarray(indices, np.int64)
        numbers = indices.tolist()
        paths = [os.fsdecode(self._files[number]) for number in numbers]
        sidecars = [self._sidecar_urls(path, int(self._sidecars[n])) for path, n in zip(paths, numbers, strict=True)]
        images, errors, fetched = self._read_images(paths, sidecars)
        if members and not self._remote:
            fetched = {url: _read_or_error(url) for beside in sidecars for url in beside.values()}
        objects = []
        for row, (path, number) in enumerate(zip(paths, numbers, strict=True)):
            label: dict[str, Any] = {}
            if self._classes:
                label = {"label": int(self._labels[number]), "label_name": self._classes[self._labels[number]]}
            metadata: Any = label
            if sidecars[row]:
                beside: dict[str, str | bytes | BaseException] = {
                    ext: fetched.get(url, url) for ext, url in sidecars[row].items()
                }
                metadata = partial(_read_metadata, beside, label)
            key = path if self._repeated[number] else _stem(path)
            objects.append(ImageObject(f"{self._root}/{_printable(path)}", _printable(key), metadata))
        batch = EncodedBatch(indices, objects, images, [self._root] * len(numbers), self.headers(indices), errors)
        if members:
            batch.members = []
            for row, path in enumerate(paths):
                found = {path.rpartition(".")[2]: images[row].data} if row not in errors else {}
                for ext, url in sidecars[row].items():
                    if isinstance(data := fetched.get(url), bytes):
                        found[ext] = memoryview(data)
                batch.members.append(found)
        return batch

    def close(self) -> None:
        """Close threads. A later read opens them again."""
        self._storage.close()

    def _is_there(self, path: str, listed: set[str] | None) -> bool:
        if listed is not None:
            return path in listed
        return not self._remote and os.path.exists(f"{self._root}/{path}")

    def _sidecar_urls(self, path: str, bits: int) -> dict[str, str]:
        stem = f"{self._root}/{_stem(path)}"
        return {ext: f"{stem}.{ext}" for bit, ext in enumerate(SIDECARS) if bits >> bit & 1}

    def _read_images(
        self, paths: list[str], sidecars: list[dict[str, str]]
    ) -> tuple[list[NDArray[np.uint8]], dict[int, str], dict[str, bytes | BaseException]]:
        """Read a batch's images; of remote ones also the sidecars, in the same round trip."""
        if not self._remote:
            results: list[NDArray[np.uint8] | BaseException] = [_read_file(f"{self._root}/{path}") for path in paths]
            fetched: dict[str, bytes | BaseException] = {}
        else:
            urls = [f"{self._root}/{path}" for path in paths]
            more = list(dict.fromkeys(url for beside in sidecars for url in beside.values()))
            got = self._storage.cat([(url, None, None) for url in urls + more])
            results = [
                data if isinstance(data, BaseException) else np.frombuffer(bytearray(data), np.uint8)
                for data in got[: len(urls)]
            ]
            fetched = dict(zip(more, got[len(urls) :], strict=True))
        images, errors = [], {}
        for row, result in enumerate(results):
            if isinstance(result, BaseException):
                errors[row] = one_line(result)
                result = np.empty(0, np.uint8)
            elif len(result) == 0:
                errors[row] = "the image has no bytes"
            images.append(result)
        return images, errors, fetched


def _printable(path: str) -> str:
    r"""A file name whose bytes are not UTF-8 with these as `\xNN`, so that it can be printed and written to Parquet."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _read_file(path: str) -> NDArray[np.uint8] | BaseException:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            data = np.empty(size, np.uint8)
            view, done = data.data, 0
            while done < size:
                count = os.readv(fd, [view[done:]])
                if count == 0:
                    return OSError(f"{path} became shorter while it was read ({done} of {size} bytes)")
                done += count
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return data


def _read_or_error(path: str) -> bytes | BaseException:
    result = _read_file(path)
    return result if isinstance(result, BaseException) else result.tobytes()


def _read_metadata(sidecars: dict[str, str | bytes | BaseException], defaults: dict[str, Any]) -> dict[str, Any]:
    """A sample's metadata of its sidecars: their bytes, the paths to read them from, or why that failed."""
    found: dict[str, bytes] = {}
    problems = []
    for ext, value in sidecars.items():
        data = _read_or_error(value) if isinstance(value, str) else value
        if isinstance(data, BaseException):
            problems.append(f"a sidecar cannot be read: {one_line(data)}")
        else:
            found[ext] = data
    return parse_metadata(*(found.get(ext) for ext in SIDECARS), defaults=defaults, problem="; ".join(problems))


def list_local(root: str) -> Iterator[str]:
    """All files below a folder, as paths relative to it; links to folders are followed, once round a loop.

    Raises:
        SourceError: The folder, or one in it, is missing or cannot be listed.
    """
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        below, above = stack.pop()
        folder = os.path.join(root, below)
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:  # a link back to a folder that this one lies in
                logger.info("%s is a link to a folder above it: not followed", folder)
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        stack.append((f"{below}{entry.name}/", above | {here}))
                    else:
                        yield below + entry.name
        except OSError as error:
            raise SourceError(f"cannot list the folder {folder!r}: {error.strerror or error}") from error


def _list_remote(root: str) -> Iterator[str]:
    """The same of a remote folder."""
    fs, path = filesystem(root)
    path = path.rstrip("/")
    try:
        found = fs.find(path)
    except Exception as error:
        raise SourceError(f"cannot list {root!r}: {one_line(error)}") from error
    for file in found:
        below = file[len(path) :].lstrip("/")
        if not any(part.startswith(".") for part in below.split("/")):
            yield below
