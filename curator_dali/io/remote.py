"""Remote stores: which URLs are theirs, what their failures mean, and which of these are tried again."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_VARIABLE = "CURATOR_DALI_TIMEOUT"
_DEFAULT_TIMEOUT = 10.0  # seconds without a byte, for a store that is read
SLOWEST = 1000  # bytes a second: a store that sends less for three times the timeout hangs
PATIENCE = 30.0  # seconds after which a store that is silent is not asked again
# Bytes of a file, or a member of a tar, that is read whole: 178 megapixels are 715 MB before they are packed, and
# records of a million parts have less.
LARGEST_FILE = 1 << 30
_MOST_SERVER_WAIT = 30.0  # seconds of a server's Retry-After that are waited for
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
# Parameters of signed URLs: of S3, GCS, OSS and COS, CloudFront, Azure; a token. The first pattern tells such a URL.
_SIGNATURE = re.compile(r"(x-(amz|goog|oss|cos)-)?signature|q-signature|sig|token|access_token")
_SIGNING = re.compile(
    r"x-(amz|goog|oss|cos)-.*|q-.*|(aws|oss)accesskeyid|googleaccessid|signature|expires|policy|key-pair-id|"
    r"hash-algorithm|security-token|sig|s[eiprstv]|spr|srt|sip|sk(oid|tid|[test]|v)|token|access_token"
)
_PASSING_STATUSES = frozenset([408, 425, 429])  # of the statuses 400 to 499, which say that a request is wrong


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


class StalledError(TimeoutError):
    """A server sends so little that its answer would not end."""


_FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, PermanentError)
"""Failures that trying again does not mend."""


def read_timeout() -> float:
    """Return the seconds that a store which is read may be silent; 0 for no limit.

    Raises:
        ValueError: The variable is no such number.
    """
    return _parse_timeout(os.environ.get(TIMEOUT_VARIABLE, ""))


@lru_cache(maxsize=16)
def _parse_timeout(text: str) -> float:
    try:
        seconds = float(text or _DEFAULT_TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a number of seconds, or 0 for no limit, not {text!r}")
    return seconds


def find_deadline(size: int) -> float | None:
    """Find how many seconds an answer of so many bytes may take in all; None for no limit."""
    seconds = read_timeout()
    return 3 * seconds + size / SLOWEST / 10 if seconds else None


def is_remote(url: str) -> bool:
    """Whether `url` is for fsspec (`s3://...`, `filecache::s3://...`) and not a path of this machine."""
    return "://" in url or "::" in url


def is_http(url: str) -> bool:
    """Whether a URL, or the last one of a chain, is one of a web server: only there is a `?` no part of a name."""
    return url.rpartition("::")[2].startswith(("http://", "https://"))


def strip_signature(url: str) -> str:
    """Return a web URL without the parameters that sign it, which change while the file stays; others as they are.

    Parameters that name a content stay: `versionId` of S3, `id`.
    """
    if "?" not in url or not is_http(url):
        return url
    path, _, query = url.partition("?")
    parameters = query.split("&")
    names = [parameter.partition("=")[0].lower() for parameter in parameters]
    if not any(map(_SIGNATURE.fullmatch, names)):
        return url
    kept = [text for text, name in zip(parameters, names, strict=True) if not _SIGNING.fullmatch(name)]
    return f"{path}?{'&'.join(kept)}" if kept else path


def one_line(error: object) -> str:
    """An exception, after its type, or a text as one line without addresses of objects, which no two runs share."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return " ".join(_ADDRESS.sub("", text).split())


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
        final: Exceptions besides `_FINAL_ERRORS` that come out at once.
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
        final: As of `retry`.
        patience: As of `retry`.
    """
    is_silent = isinstance(failure, TimeoutError) and time.monotonic() - begun > patience
    if delay is None or is_silent or isinstance(failure, (*_FINAL_ERRORS, *final)):
        return None
    return max(delay, min(failure.wait, _MOST_SERVER_WAIT)) if isinstance(failure, ServerError) else delay


def explain(error: BaseException, url: str) -> BaseException:
    """Make an exception that says what a store's own one does not, or hides; others are returned as they are.

    fsspec turns whatever a web server answers to the question for a file's size into a `FileNotFoundError`.
    """
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    if cause is None:
        return error
    status = getattr(cause, "status", None)
    if isinstance(status, int) and status >= 400:
        return _explain_status(status, getattr(cause, "headers", None) or {}, url)
    if isinstance(cause, StalledError):
        return cause
    kind = type(cause).__name__
    if "Timeout" in kind:  # asyncio's, aiohttp's, botocore's and fsspec's own
        seconds = f"sets the seconds, now {read_timeout():g}"
        return TimeoutError(f"{url}: its server was silent for too long (${TIMEOUT_VARIABLE} {seconds})")
    if advice := _CREDENTIALS.get(kind) or _FORBIDDEN.get(str(getattr(cause, "code", ""))):
        return PermissionError(f"{url}: {one_line(str(cause))}. {advice}")
    if type(cause) is PermissionError and cause.errno is None and not str(cause).startswith(tuple("0123456789")):
        return PermissionError(f"{one_line(str(cause))}: {url}. {_RIGHTS}") if _RIGHTS not in str(cause) else cause
    is_own = type(cause).__module__.startswith("aiohttp") or isinstance(cause, OSError)
    return cause if is_own and not isinstance(cause, FileNotFoundError) else error


_AWS = (
    "Give credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role; a public bucket is read "
    "with FSSPEC_S3_ANON=true"
)
_GCP = "Give credentials: `gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS=FILE.json"
_RIGHTS = "The credentials lack the right, or have expired: renew them, or choose others (AWS_PROFILE)"
# kinds of exceptions that say that there are no credentials -> what to do
_CREDENTIALS = {
    **dict.fromkeys(["NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"], _AWS),
    **dict.fromkeys(["ProfileNotFound", "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError"], _AWS),
    **dict.fromkeys(["DefaultCredentialsError", "RefreshError"], _GCP),
}
_FORBIDDEN = {"401": _GCP, "403": _GCP}  # codes of gcsfs' exceptions


def _explain_status(status: int, headers: Mapping[str, str], url: str) -> OSError:
    try:
        text = f"{status} {HTTPStatus(status).phrase}: {url}"
    except ValueError:
        text = f"{status}: {url}"
    if status in (404, 410):
        return FileNotFoundError(text)
    if status in (401, 403):
        return PermissionError(f"{text}: the URL's signature may have expired, or credentials lack the right")
    if status < 500 and status not in _PASSING_STATUSES:
        return PermanentError(text)
    wait = headers.get("Retry-After", "")
    return ServerError(text, float(wait) if re.fullmatch(r"\d{1,9}", wait) else 0.0)
