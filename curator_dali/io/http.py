"""HTTP through fsspec, with every answer checked that should be a range of a file."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from fsspec.asyn import sync_wrapper
from fsspec.implementations.http import HTTPFile, HTTPFileSystem

from curator_dali.io.remote import (
    LARGEST_FILE,
    SLOWEST,
    TIMEOUT_VARIABLE,
    PermanentError,
    ServerError,
    StalledError,
    explain,
    read_timeout,
)

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:(\d+)|\*)")


class RangedHTTPFileSystem(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's HTTP filesystem, which would take any answer to the request for a range for that range."""

    takes_known = True

    async def _cat_file(
        self,
        url: str,
        start: int | None = None,
        end: int | None = None,
        known: Mapping[str, tuple[int, str]] | None = None,
        **kwargs: Any,
    ) -> bytes:
        """Fetch a file or the range [start, end) of it.

        `known` are the size and ETag that a file had when it was opened; "" where there was none.

        Raises:
            PermanentError: The server ignores the range, the file is another one than it was, or too large.
            ServerError: The server sends another range.
        """
        options = {**self.kwargs, **kwargs}
        if start is None and end is None:
            session = await self.set_session()
            async with session.get(self.encode_url(url), **options) as response:
                self._raise_not_found_for_status(response, url)
                whole = await _read_most(response, LARGEST_FILE)
            if len(whole) > LARGEST_FILE:
                raise PermanentError(
                    f"{url}: its server sends more than the limit of {LARGEST_FILE:,} bytes for a file"
                )
            return whole
        if start is None or end is None or not 0 <= start < end:
            return bytes(await super()._cat_file(url, start, end, **kwargs))
        headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        session = await self.set_session()
        async with session.get(self.encode_url(url), headers=headers, **options) as response:
            if response.status == 416:
                return b""  # the file ends before the range begins
            self._raise_not_found_for_status(response, url)
            _check_unchanged(response.headers, url, (known or {}).get(url))
            if response.status == 200:
                return await _read_start(response, url, start, end)
            expected = _check_range(response.headers.get("Content-Range"), url, start, end)
            data = await _read_most(response, end - start)
        if len(data) > end - start:
            raise ServerError(f"{url}: its server sent more bytes than the {end - start:,} of a range")
        if expected is not None and len(data) != expected:
            raise ServerError(f"{url}: its server sent {len(data):,} bytes for a range of {end - start:,}")
        return data

    async def _info(self, url: str, **kwargs: Any) -> dict[str, Any]:
        """Ask for the size of a file. A server that is busy, silent or forbids is not told as a missing file."""
        try:
            return dict(await super()._info(url, **kwargs))
        except FileNotFoundError as error:
            failure = explain(error, url)
            if failure is error:
                raise
            raise failure from error

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file whose reads are checked as those of `_cat_file` are."""
        info = self.info(path)
        if info["size"] is None:
            raise PermanentError(f"{path}: its server does not tell its size. Download it, and open the copy")
        options = {"block_size": self.block_size, "cache_type": self.cache_type, "cache_options": self.cache_options}
        given = {name: value for name, value in kwargs.items() if value is not None and name != "autocommit"}
        return _RangedFile(self, path, mode=mode, size=info["size"], info=info, loop=self.loop, **{**options, **given})


class _RangedFile(HTTPFile):  # type: ignore[misc]
    """A file whose reads are checked."""

    def __init__(self, fs: RangedHTTPFileSystem, url: str, *, info: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(fs, url, **kwargs)
        self.details = dict(info)

    async def async_fetch_range(self, start: int, end: int) -> bytes:
        known = {self.url: (self.size, str(self.details.get("ETag") or ""))}
        return await self.fs._cat_file(self.url, start, end, known=known)  # type: ignore[no-any-return]

    _fetch_range = sync_wrapper(async_fetch_range)

    def _fetch_all(self) -> None:
        """Read a file in parts, as any other; fsspec reads a large one in one request."""


def _check_unchanged(headers: Mapping[str, str], url: str, known: tuple[int, str] | None) -> None:
    """Refuse a file of another size or ETag. Weak ETags do not count, as they may differ for equal files."""
    size, etag = known or (None, "")
    told, now = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip()), headers.get("ETag", "")
    resized = size is not None and told is not None and told[3] is not None and int(told[3]) != size
    if resized or (now != etag and now.startswith('"') and etag.startswith('"')):
        raise PermanentError(f"{url} changed after it was opened: open the source again")


async def _read_start(response: Any, url: str, start: int, end: int) -> bytes:
    """Read the first bytes of a whole file that came instead of a range.

    Raises:
        PermanentError: The range does not begin with the file, or the file is larger than the range.
    """
    length = response.content_length
    if start > 0 or length is None or length > end:
        raise PermanentError(
            f"{url}: its server does not serve byte ranges. Download the file, or let fsspec keep a copy: "
            f"'simplecache::{url}'"
        )
    data = await _read_most(response, end)  # an encoded body may unpack to anything
    if len(data) > end:
        raise PermanentError(f"{url}: its server sent more bytes than it said. Download the file, and open the copy")
    return data


async def _read_most(response: Any, most: int) -> bytes:
    """Read a body up to one byte more than `most`: a body may be endless, or unpack to anything."""
    parts, size = [], 0
    limit = 3 * read_timeout()
    begun, before = time.monotonic(), 0  # of the time in which too little must not come
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if limit and (seconds := time.monotonic() - begun) > limit:
            if size - before < seconds * SLOWEST:
                response.close()
                raise StalledError(
                    f"{response.url}: its server sent {size - before:,} bytes in {seconds:.0f} seconds "
                    f"(${TIMEOUT_VARIABLE} sets a third of these)"
                )
            begun, before = time.monotonic(), size
        if size > most:
            response.close()  # the rest is not waited for
            break
    return b"".join(parts)[: most + 1]


def _check_range(text: str | None, url: str, start: int, end: int) -> int | None:
    """Check the header of a partial answer: the bytes that have to come; None where the header is missing."""
    if text is None:
        return None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is not None:
        first, last, size = int(match[1]), int(match[2]), int(match[3] or 0)
        if first == start and (last == end - 1 or (last < end and (not size or last == size - 1))):
            return last - first + 1
    raise ServerError(f"{url}: its server sent the range {text!r} where bytes {start}-{end - 1} were asked for")
