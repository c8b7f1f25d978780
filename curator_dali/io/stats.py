"""`Stat`: a file as it was when it was looked at, and what stores tell of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_VERSION_FIELDS = (
    *("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created"),
    "Last-Modified",
)
_HASH_FIELDS = ("md5Hash", "crc32c", "Content-MD5", "blob_id", "ETag", "etag")
_HASH_ETAG = re.compile(r'"?[0-9a-fA-F]{32,}(-\d+)?"?')  # S3's; those of web servers and Azure tell a time


class Stat(NamedTuple):
    """A file as it was when it was looked at.

    Attributes:
        size: Size in bytes.
        version: A number that changes with the content: mtime in ns, or a hash of a remote ETag.
        content: The content hash of a remote file whose store tells one.
        etag: The ETag of a file of a web server.
    """

    size: int
    version: int
    content: str = ""
    etag: str = ""

    @classmethod
    def of_local(cls, status: os.stat_result) -> Stat:
        """Make it of what the system tells of a local file."""
        return cls(status.st_size, status.st_mtime_ns)

    def is_same(self, now: Stat) -> bool:
        """Whether a remote file is what it was: by its size, and its content hash or ETag, else its version."""
        for then, found in ((self.content, now.content), (self.etag, now.etag), (self.version, now.version)):
            if then and found:
                return self.size == now.size and then == found
        return self.size == now.size


def stat_of(info: Mapping[str, Any]) -> Stat:
    """Make the `Stat` of a remote file of what fsspec's `info`, or a detailed listing, tells of it."""
    version = repr([info.get(field) for field in _VERSION_FIELDS])
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little", signed=True)
    return Stat(int(info["size"]), number, content_hash(info), str(info.get("ETag") or ""))


def content_hash(info: Mapping[str, Any]) -> str:
    """Return the content hash in what fsspec tells of a file; "" where the store tells none."""
    for field in _HASH_FIELDS:
        value = str(info.get(field) or "")
        if value and (field.lower() != "etag" or _HASH_ETAG.fullmatch(value)):
            return value.strip('"')
    return ""
