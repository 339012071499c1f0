"""A real HTTP server over a folder that fails on purpose: by a list, or at seeded random."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal[
    "",  # none
    "drop",  # the connection is reset in the middle of the body
    "truncate",  # it is closed in order, in the middle of the body
    "stall",  # half of the body comes, then nothing
    "reset",  # it is reset before a single byte
    "busy",  # 503
    "slow_down",  # 429, with Retry-After: 0
    "whole",  # the range is ignored: 200 and the whole file
]


@dataclass(frozen=True)
class Asked:
    """A request: the file's path, its range (stop: behind the last byte), and what was done."""

    path: str
    start: int
    stop: int | None
    fault: Fault
    status: int


@dataclass
class FaultServer:
    """What the server does, and what it was asked for.

    Args:
        folder: the files.
        next_faults: of the next requests, in order; used up.
        rates: share of the other requests that each fault befalls.
        only: rates hold for paths that end so.
        ranges: the server knows ranges.
        etags: it names versions by ETag (else by the time of the last change alone).
        mirrors: so many servers take turns, each with ETags of its own for the same bytes.
        answers: status by path, for what can never be read.
    """

    folder: Path
    url: str = ""
    next_faults: list[Fault] = field(default_factory=list)
    rates: Mapping[Fault, float] = field(default_factory=dict)
    only: str = ""
    ranges: bool = True
    etags: bool = True
    mirrors: int = 1
    answers: dict[str, int] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    bytes_sent: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def choose(self, path: str) -> Fault:
        """The fault of this request."""
        with self.lock:
            if self.next_faults:
                return self.next_faults.pop(0)
            draw = self.random.random()
            for fault, rate in self.rates.items() if path.endswith(self.only) else ():
                if draw < rate:
                    return fault
                draw -= rate
        return ""

    def note(self, asked: Asked) -> None:
        """Remember a request."""
        with self.lock:
            self.asked.append(asked)

    def starts(self, ending: str) -> list[int]:
        """First bytes of the requests for paths that end so, in order."""
        return [each.start for each in self.asked if each.path.endswith(ending)]

    def faults(self) -> list[Fault]:
        """The faults that were done, in order."""
        return [each.fault for each in self.asked if each.fault]

    def whole_downloads(self, ending: str = ".tar") -> list[str]:
        """Paths that were asked for from byte 0 on, and for more than a byte."""
        return sorted(
            each.path
            for each in self.asked
            if each.path.endswith(ending) and each.start == 0 and each.stop != 1
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        faults = self.server.faults
        path = self.path.partition("?")[0]
        start, stop, is_range = self._range()
        fault = faults.choose(path)
        file = faults.folder / path.lstrip("/")
        status = faults.answers.get(path, 200)
        if fault in ("busy", "slow_down"):
            status = 503 if fault == "busy" else 429
        elif status == 200 and file.is_dir():
            return self._listing(file)
        elif status == 200 and not file.is_file():
            status = 404
        if fault == "reset":
            faults.note(Asked(path, start, stop, fault, 0))
            return self._reset()
        if status != 200:
            faults.note(Asked(path, start, stop, fault, status))
            self.send_response(status)
            if fault == "slow_down":
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self._send(file, path, start, stop, is_range, fault)

    def _send(
        self, file: Path, path: str, start: int, stop: int | None, is_range: bool, fault: Fault
    ) -> None:
        faults = self.server.faults
        content = file.read_bytes()
        facts = file.stat()
        size, end = len(content), min(stop or len(content), len(content))
        if not is_range or not faults.ranges or fault == "whole":
            status, body = 200, content
        elif start >= size:
            status, body = 416, b""
        else:
            status, body = 206, content[start:end]
        faults.note(Asked(path, start, stop, fault, status))
        self.send_response(status)
        if faults.etags:
            mirror = len(faults.asked) % faults.mirrors
            own = f"-{mirror}" if faults.mirrors > 1 else ""
            self.send_header("ETag", f'"{facts.st_mtime_ns:x}-{facts.st_size:x}{own}"')
        self.send_header("Last-Modified", self.date_time_string(facts.st_mtime))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = body[: len(body) // 2] if fault in ("drop", "truncate", "stall") else body
        try:
            self.wfile.write(part)
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the reader has seen enough
        with faults.lock:
            faults.bytes_sent += len(part)
        if fault == "drop":
            self._reset()
        elif fault == "truncate":
            self.close_connection = True
        elif fault == "stall":
            self.connection.settimeout(0.05)
            while not faults.closing.is_set():
                try:
                    if not self.connection.recv(1):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            self.close_connection = True

    def _listing(self, folder: Path) -> None:
        lines = [f'<a href="{each.name}">{each.name}</a>' for each in sorted(folder.iterdir())]
        page = "\n".join(lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def _reset(self) -> None:
        # Without lingering, closing sends a reset in place of the rest.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.wfile = _Nowhere()  # type: ignore[assignment]

    def _range(self) -> tuple[int, int | None, bool]:
        value = self.headers.get("Range")
        if value is None:
            return 0, None, False
        start, _, last = value.removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1 if last else None, True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Nowhere:
    closed = True

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    faults: FaultServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that has gone is no fault."""


@contextmanager
def serve(folder: Path, next_faults: Sequence[Fault] = ()) -> Iterator[FaultServer]:
    """Serve a folder at a free port of 127.0.0.1, in threads of this process."""
    faults = FaultServer(folder, next_faults=list(next_faults))
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.faults = faults
        faults.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield faults
        finally:
            faults.closing.set()
            server.shutdown()
            thread.join()
