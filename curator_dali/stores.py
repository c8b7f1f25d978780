"""Filesystems behind fsspec: made in one place, with a limit on silence; failures that are told and tried again."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, TypeVar

__all__ = [
    "LARGEST_FILE",
    "PermanentError",
    "ServerError",
    "explain",
    "filesystem",
    "find_wait",
    "is_http",
    "is_remote",
    "one_line",
    "retry",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_VARIABLE = "CURATOR_DALI_TIMEOUT"
_TIMEOUT = 10.0  # seconds without a byte
PATIENCE = 30.0  # seconds after which a store that is silent is not asked again
# Bytes of a file, or a member of a tar, that is read whole: 178 megapixels are 715 MB before they are packed.
LARGEST_FILE = 1 << 30
_MOST_WAIT = 30.0  # seconds of a server's Retry-After that are waited for
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
_PROTOCOL = re.compile(r"(?:^|::)([a-z0-9+]+)(?=://|::)")
# protocols of stores that take a limit -> their names in fsspec's configuration
_ALIASES = {
    **dict.fromkeys(["http", "https"], ("http", "https")),
    **dict.fromkeys(["gs", "gcs"], ("gs", "gcs")),
    **dict.fromkeys(["s3", "s3a"], ("s3", "s3a")),
    **dict.fromkeys(["abfs", "abfss", "az"], ("abfs", "abfss", "az")),
}
_PASSING = frozenset([408, 425, 429])  # of the statuses 400 to 499, which say that a request is wrong


class PermanentError(OSError):
    """A failed read of a remote file that trying again does not mend."""


class ServerError(OSError):
    """A server is busy or out of order.

    Args:
        message: The status and the URL.
        wait: Seconds until the server wants to be asked again; 0 where the server does not say.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, PermanentError)
"""Failures that trying again does not mend."""


def is_remote(url: str) -> bool:
    """Whether `url` is for fsspec (`s3://...`, `filecache::s3://...`) and not a path of this machine."""
    return "://" in url or "::" in url


def is_http(url: str) -> bool:
    """Whether a URL, or the last one of a chain, is one of a web server: only there is a `?` no part of a name."""
    return url.rpartition("::")[2].startswith(("http://", "https://"))


def one_line(error: object) -> str:
    """An exception, after its type, or a text as one line without addresses of objects, which no two runs share."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return " ".join(_ADDRESS.sub("", text).split())


def filesystem(url: str, *, only_read: bool = False) -> tuple[Any, str]:
    """Make the fsspec filesystem of a URL; fsspec keeps it for the next time.

    Args:
        url: The URL.
        only_read: Whether nothing is written by it. A store that sends no byte for 10 seconds has failed then, which
            would be too soon for the answer to an upload. $CURATOR_DALI_TIMEOUT is another number of seconds, or 0 for
            no limit; what fsspec's own configuration says of a timeout goes first.

    Returns:
        The filesystem, and the path in it.

    Raises:
        ValueError: fsspec does not know the protocol, the package that it needs is missing, or the variable is bad.
    """
    import fsspec

    try:
        limited = [name for name in _PROTOCOL.findall(url) if name in _ALIASES] if only_read else ()
        options = {name: _make_options(name) for name in limited}
        if is_http(url) and "::" not in url:
            from curator_dali import httpfs

            if fsspec.get_filesystem_class("http") is httpfs.HTTPFileSystem:  # not another that somebody registered
                return httpfs.RangedHTTPFileSystem(**next(iter(options.values()), {})), url
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {url!r}: {error}") from error
    return fs, path


def retry(
    function: Callable[[], T],
    delays: Sequence[float],
    final: tuple[type[Exception], ...] = (),
    *,
    url: str = "",
    patience: float = math.inf,
) -> T:
    """Call a function that asks a remote filesystem, again where it raises; return its result.

    Args:
        function: The function.
        delays: Seconds before the 2nd, 3rd, ... call; the last call's exception comes out, as `explain` makes it.
        final: Exceptions besides `FINAL` that come out at once.
        url: The file or folder that the function asks for.
        patience: Seconds after the first call from when on a silent store is not called again.
    """
    begun = time.monotonic()
    for delay in (*delays, None):
        try:
            return function()
        except Exception as error:
            failure = explain(error, url)
            wait = find_wait(failure, delay, begun, final, patience)
            if wait is None and failure is error:
                raise
            if wait is None:
                raise failure from error
            logger.warning("a remote read or write failed, trying again: %s", one_line(failure))
        time.sleep(wait)
    raise AssertionError("the last call returns or raises")


def find_wait(
    failure: BaseException,
    delay: float | None,
    begun: float,
    final: tuple[type[Exception], ...] = (),
    patience: float = PATIENCE,
) -> float | None:
    """Find how many seconds to wait before a store is asked again; None where it is not.

    Args:
        failure: What `explain` returned.
        delay: The least to wait; None once a store was asked often enough.
        begun: `time.monotonic()` of the first call.
        final: Failures besides `FINAL` that trying again does not mend.
        patience: Seconds after `begun` from when on a silent store is not asked again.
    """
    is_silent = isinstance(failure, TimeoutError) and time.monotonic() - begun > patience
    if delay is None or is_silent or isinstance(failure, (*FINAL, *final)):
        return None
    return max(delay, min(failure.wait, _MOST_WAIT)) if isinstance(failure, ServerError) else delay


def explain(error: BaseException, url: str) -> BaseException:
    """Make an exception that says what a store's own one does not, or hides; others are returned as they are.

    fsspec turns whatever a web server answers to the question for a file's size into a `FileNotFoundError`.

    Args:
        error: What a filesystem raised.
        url: The file or folder that was asked for.
    """
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    if cause is None:
        return error
    status = getattr(cause, "status", None)
    if isinstance(status, int) and status >= 400:
        return _explain_status(status, getattr(cause, "headers", None) or {}, url)
    if "Timeout" in type(cause).__name__:  # asyncio's, aiohttp's, botocore's and fsspec's own
        return TimeoutError(f"{url}: its server was silent for too long (${TIMEOUT_VARIABLE} sets the seconds)")
    is_own = type(cause).__module__.startswith("aiohttp") or isinstance(cause, OSError)
    return cause if is_own and not isinstance(cause, FileNotFoundError) else error


def _explain_status(status: int, headers: Mapping[str, str], url: str) -> OSError:
    try:
        text = f"{status} {HTTPStatus(status).phrase}: {url}"
    except ValueError:
        text = f"{status}: {url}"
    if status in (404, 410):
        return FileNotFoundError(text)
    if status in (401, 403):
        return PermissionError(f"{text}: the URL's signature may have expired, or credentials lack the right")
    if status < 500 and status not in _PASSING:
        return PermanentError(text)
    wait = headers.get("Retry-After", "")
    return ServerError(text, float(wait) if re.fullmatch(r"\d{1,9}", wait) else 0.0)


def _make_options(protocol: str) -> dict[str, Any]:
    """Make options of a filesystem that limit how long a store may be silent; `protocol` is one of `_ALIASES`."""
    import fsspec

    seconds = _parse_timeout(os.environ.get(TIMEOUT_VARIABLE, ""))
    known: dict[str, Any] = {}
    for name in _ALIASES[protocol]:
        known |= fsspec.config.conf.get(name, {})
    if protocol in ("http", "https", "gs", "gcs"):
        key = "client_kwargs" if protocol.startswith("http") else "session_kwargs"
        return {key: {"timeout": _make_client_timeout(seconds), **(known.get(key) or {})}}
    if not seconds:
        return {}
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": seconds, "read_timeout": seconds}
        return {"config_kwargs": {**limits, **(known.get("config_kwargs") or {})}}
    return {name: known.get(name, seconds) for name in ("connection_timeout", "read_timeout")}


@lru_cache(maxsize=16)
def _parse_timeout(text: str) -> float:
    try:
        seconds = float(text or _TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a number of seconds, or 0 for no limit, not {text!r}")
    return seconds


@lru_cache(maxsize=16)
def _make_client_timeout(seconds: float) -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=seconds or None, sock_read=seconds or None)
