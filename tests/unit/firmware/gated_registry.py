# SPDX-License-Identifier: Apache-2.0
"""Blobs by digest over HTTP with Range, counted; a GET can be held in its middle until the test lets it go on."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from firmware_pipeline.oci import Descriptor
from tests.unit.firmware.hostile_registry import digest_of


class GatedRegistry:
    """Use as a context manager. `gets` counts GETs by digest, `ranges` lists their Range headers, `sent` their bytes.

    Attributes:
        hold_after: a GET pauses after so many bytes until `go_on` is set.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.gets: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        self.sent = 0
        self.hold_after: int | None = None
        self.go_on = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def put(self, data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        digest = digest_of(data)
        self.blobs[digest], self.types[digest] = data, media_type
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def count(self, digest: str, wanted: str | None) -> None:
        with self._lock:
            self.gets[digest] += 1
            self.ranges.append(wanted)

    def add_sent(self, count: int) -> None:
        with self._lock:
            self.sent += count


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed in the middle: that is what the tests want."""


class _Handler(BaseHTTPRequestHandler):
    registry: GatedRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        registry, digest = self.registry, self.path.rsplit("/", 1)[1]
        data, wanted = registry.blobs.get(digest), self.headers.get("Range")
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        registry.count(digest, wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Type", registry.types[digest])
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if (hold := registry.hold_after) is not None:
            self._send(data[start : start + hold])
            registry.go_on.wait()
            start += hold
        self._send(data[start:])

    def do_HEAD(self) -> None:
        data = self.registry.blobs.get(self.path.rsplit("/", 1)[1])
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.registry.add_sent(len(data))
