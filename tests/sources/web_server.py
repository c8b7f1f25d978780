"""A web server on this machine that serves files by range, records what it is asked for, and misbehaves as told."""

from __future__ import annotations

import gzip
import re
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Server"]


class Server(ThreadingHTTPServer):
    """Serves `files` by their paths, which are as they come: encoded, and with their queries.

    Attributes:
        files: Path -> content.
        ranges: Whether byte ranges are served; without them the whole file is.
        failures: Path -> how many of the next GET requests are answered with 500.
        broken: Requests for this byte are answered with 500.
        statuses: Path -> statuses of the next answers, one each, to HEAD and to GET.
        status: The status of all answers, if it is not 0.
        redirects: Path -> the URL or path that a `302` answers with.
        headers: Headers of every answer.
        etag: The ETag of every file; "" for none.
        etags: Path -> the ETag of a file that has its own.
        shift: How many bytes further a range is than it was asked for.
        short: How many bytes less of a range are sent than its header says.
        silent: Methods that are never answered.
        held: Paths whose GET requests are not answered before `over`, or before they are taken out.
        endless: Bodies of these statuses go on and on.
        encoded: Whether bodies of answers are packed by gzip.
        stops: Whether the bodies of ranges stop halfway, without an end.
        trickle: Seconds between two bytes of a body; 0 sends them at once.
        requests: (method, path and range) of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.failures: Counter[str] = Counter()
        self.broken = -1
        self.statuses: dict[str, list[int]] = {}
        self.status = 0
        self.redirects: dict[str, str] = {}
        self.headers: Mapping[str, str] = {}
        self.etag = ""
        self.etags: dict[str, str] = {}
        self.shift = 0
        self.short = 0
        self.silent: set[str] = set()
        self.held: set[str] = set()
        self.endless: set[int] = set()
        self.encoded = False
        self.stops = False
        self.trickle = 0.0
        self.over = threading.Event()
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""

    def ranges_sent(self, path: str) -> list[tuple[int, int]]:
        """(begin, end) of the ranges that were asked for, in order."""
        asked = (re.fullmatch(rf"{re.escape(path)} bytes=(\d+)-(\d+)", text) for _, text in self.requests)
        end = len(self.files[path])
        return [(int(match[1]), min(int(match[2]) + 1, end)) for match in asked if match]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.command, f"{self.path} {wanted}"))
        if self.command in server.silent:
            server.over.wait(60)
            self.close_connection = True
            return
        while body and self.path in server.held and not server.over.wait(0.01):
            pass
        if (target := server.redirects.get(self.path)) is not None:
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = server.files.get(self.path)
        status = 404 if data is None else 200
        if server.status or server.statuses.get(self.path):
            data, status = b"out of order", server.status or server.statuses[self.path].pop(0)
        if body and server.failures[self.path] > 0:
            server.failures[self.path] -= 1
            data, status = b"out of order", 500
        data = data or b""
        size = len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if match and int(match[1]) <= server.broken <= int(match[2]):
            data, status = b"out of order", 500
        told = ""
        if server.ranges and match and status == 200:
            begin, end = int(match[1]), min(int(match[2]) + 1, size)
            begin, end = begin + server.shift, min(end + server.shift, size)
            told = f"bytes {begin}-{end - 1}/{size}"
            end -= server.short
            data, status = (data[begin:end], 206) if begin < size else (b"", 416)
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", told)
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if body and server.encoded:
            data = gzip.compress(data)
            self.send_header("Content-Encoding", "gzip")
        if body and status in server.endless:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):  # until the client has enough
                while not server.over.is_set():
                    self.wfile.write(b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16)))
            return
        self.send_header("Content-Length", str(len(data)))
        if etag := server.etags.get(self.path, server.etag):
            self.send_header("ETag", etag)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body and server.stops and status == 206:
            self.wfile.write(data[: len(data) // 2])
            server.over.wait(60)
            self.close_connection = True
        elif body and server.trickle:
            self.close_connection = True
            with suppress(OSError):  # until the client has enough
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    if server.over.wait(server.trickle):
                        break
        elif body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass
