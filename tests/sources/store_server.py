"""A store on this machine, in a process of its own: HTTP with ranges, a delay, a rate and a limit of connections.

    with SimulatedStore(folder, delay=0.03, rate=100e6, connections=16) as store:
        open_source(f"{store.url}/{{00000..00099}}.tar")
        print(store.total(), store.counts())

The requests and the bytes of bodies are counted where they are sent, by path. A folder is a page of links, so that
fsspec lists it.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

__all__ = ["Count", "SimulatedStore"]

_CHUNK = 1 << 18  # bytes between two looks at the clock
_RANGE = re.compile(rb"^range: *bytes=(\d+)-(\d*)\r?$", re.IGNORECASE | re.MULTILINE)


class Count(NamedTuple):
    """Requests, the bytes of their answers' bodies, and the most that were served at the same time."""

    requests: int
    bytes: int
    most: int = 0


class SimulatedStore:
    """Serves the files below a folder.

    Args:
        root: The folder. Files that are written to it later are served, too.
        delay: Seconds before the first byte of each answer.
        rate: Bytes a second of each connection; 0 for no limit.
        connections: Requests that are served at the same time; further ones wait.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, delay: float = 0.03, rate: float = 100e6, connections: int = 16
    ) -> None:
        self.root = os.fspath(root)
        command = [sys.executable, "-m", "tests.sources.store_server", os.fspath(root)]
        command += ["--delay", str(delay), "--rate", str(rate), "--connections", str(connections)]
        here = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.url: str = f"http://127.0.0.1:{self._ask('port')}"

    def counts(self) -> dict[str, Count]:
        """Path (with its query) -> what was asked for since the last `reset`."""
        return {path: Count(*numbers) for path, numbers in self._ask("counts").items()}

    def total(self) -> Count:
        """Requests and bytes of all paths since the last `reset`, and the most requests at a time."""
        return Count(*self._ask("total"))

    def reset(self) -> None:
        """Count from zero."""
        self._ask("reset")

    def change(self, **settings: float) -> None:
        """Set `delay`, `rate` or `connections` anew."""
        self._ask(json.dumps(settings))

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(10)
        self._process.stdout.close()  # type: ignore[union-attr]

    def __enter__(self) -> SimulatedStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Server:
    def __init__(self, root: str, delay: float, rate: float, connections: int) -> None:
        self.root, self.delay, self.rate, self.connections = os.path.abspath(root), delay, rate, connections
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.active = self.most = 0
        self.turn = threading.Condition()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            client, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        """Answer the requests of one connection, one after the other."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = b""
        with client, suppress(OSError):
            while True:
                while b"\r\n\r\n" not in left:
                    part = client.recv(1 << 16)
                    if not part:
                        return
                    left += part
                head, _, left = left.partition(b"\r\n\r\n")
                with self.turn:
                    self.turn.wait_for(lambda: self.active < self.connections)
                    self.active += 1
                    self.most = max(self.most, self.active)
                try:
                    self.answer(client, head)
                finally:
                    with self.turn:
                        self.active -= 1
                        self.turn.notify()

    def answer(self, client: socket.socket, head: bytes) -> None:
        begun = time.perf_counter()
        method, target = head.split(b" ", 2)[:2]
        path = target.decode("latin-1")
        with self.turn:
            self.requests[path] += 1
        time.sleep(self.delay)
        local = os.path.join(self.root, unquote(path.partition("?")[0]).lstrip("/"))
        if os.path.isdir(local):
            links = "".join(
                f'<a href="{quote(entry.name)}{"/" * entry.is_dir()}">{html.escape(entry.name)}</a>\n'
                for entry in os.scandir(local)
            ).encode()
            self.send(client, 200, f"Content-Type: text/html\r\nContent-Length: {len(links)}\r\n")
            client.sendall(links if method == b"GET" else b"")
            return
        try:
            file = os.open(local, os.O_RDONLY)
        except OSError:
            self.send(client, 404, "Content-Length: 0\r\n")
            return
        try:
            self.send_file(client, file, _RANGE.search(head), path if method == b"GET" else "", begun)
        finally:
            os.close(file)

    def send_file(
        self, client: socket.socket, file: int, found: re.Match[bytes] | None, path: str, begun: float
    ) -> None:
        about = os.fstat(file)
        start, end, told = 0, about.st_size, ""
        if found is not None:
            start, end = int(found[1]), min(int(found[2] or about.st_size) + 1, about.st_size)
            if start >= end:
                self.send(client, 416, f"Content-Length: 0\r\nContent-Range: bytes */{about.st_size}\r\n")
                return
            told = f"Content-Range: bytes {start}-{end - 1}/{about.st_size}\r\n"
        told += f'Accept-Ranges: bytes\r\nETag: "{about.st_mtime_ns:x}-{about.st_size:x}"\r\n'
        told += f"Last-Modified: {formatdate(about.st_mtime, usegmt=True)}\r\n"
        self.send(client, 206 if found else 200, f"{told}Content-Length: {end - start}\r\n")
        at = start
        first = begun + self.delay
        while path and at < end:
            size = min(_CHUNK, end - at)
            # a chunk goes out when its last byte would arrive
            if self.rate and (ahead := first + (at + size - start) / self.rate - time.perf_counter()) > 0:
                time.sleep(ahead)
            with self.turn:  # before they go out: who has read them may ask for the count at once
                self.bytes[path] += size
            sent = os.sendfile(client.fileno(), file, at, size)
            if sent < size:
                with self.turn:
                    self.bytes[path] += sent - size
            if not sent:
                raise OSError("the file was cut")
            at += sent

    def send(self, client: socket.socket, status: int, headers: str) -> None:
        word = {200: "OK", 206: "Partial Content", 404: "Not Found", 416: "Range Not Satisfiable"}[status]
        client.sendall(f"HTTP/1.1 {status} {word}\r\n{headers}\r\n".encode("latin-1"))

    def reply(self, question: str) -> Any:
        with self.turn:
            if question == "port":
                return self.port
            if question == "counts":
                return {path: (count, self.bytes[path]) for path, count in self.requests.items()}
            if question == "total":
                return sum(self.requests.values()), sum(self.bytes.values()), self.most
            if question == "reset":
                self.requests.clear()
                self.bytes.clear()
                self.most = self.active
                return None
            vars(self).update(json.loads(question))
            return None


def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--delay", type=float, default=0.03)
    parser.add_argument("--rate", type=float, default=100e6)
    parser.add_argument("--connections", type=int, default=16)
    server = _Server(**vars(parser.parse_args()))
    for line in sys.stdin:
        print(json.dumps(server.reply(line.strip())), flush=True)


if __name__ == "__main__":
    main()
