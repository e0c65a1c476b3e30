"""A folder served over HTTP on the loopback device, with ranges, and with the faults that a test asks for."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Fault = int | Literal["cut", "slow", "whole"]
"""A status; a body that ends early; an answer that does not come; the whole file where a part was asked for."""


@dataclass
class Served:
    """A running server: where it is, what it was asked, and what it should do wrong."""

    url: str
    faults: dict[str, Fault] = field(default_factory=dict)
    """By the end of the path."""
    requests: list[str] = field(default_factory=list)
    """Method and path."""
    authorization: list[str | None] = field(default_factory=list)
    faults_left: int = 10**9
    """After so many the server recovers."""


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve the folder until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_port}")
    server.folder, server.served = folder, served  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        served: Served = self.server.served  # type: ignore[attr-defined]
        path = self.path.split("?")[0]
        served.requests.append(f"{self.command} {path}")
        served.authorization.append(self.headers.get("Authorization"))
        fault = next((fault for end, fault in served.faults.items() if path.endswith(end)), None)
        if fault is not None:
            served.faults_left -= 1
            fault = fault if served.faults_left >= 0 else None
        if isinstance(fault, int):
            self._answer(fault, b"")
            return
        if fault == "slow":
            time.sleep(3)
        file: Path = self.server.folder / path.lstrip("/")  # type: ignore[attr-defined]
        if not file.is_file():
            self._answer(404, b"")
            return
        data, asked = file.read_bytes(), self.headers.get("Range")
        if asked is None or fault == "whole":
            self._answer(200, data, cut=fault == "cut")
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            self._answer(416, b"")
            return
        self._answer(206, data[start:end], cut=fault == "cut", place=f"bytes {start}-{end - 1}/{len(data)}")

    def _answer(self, status: int, body: bytes, *, cut: bool = False, place: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests read `Served.requests`."""
