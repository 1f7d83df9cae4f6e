# SPDX-License-Identifier: Apache-2.0
"""`serve`: a node cache over HTTP, read-only and by digest alone, as a mirror for the pods of a node; one that fills itself
where it is told from where (`pull_through`).

    GET, HEAD  /v2/                             that this is a registry
    GET, HEAD  /v2/<name>/blobs/<digest>        any content, with one Range
    GET, HEAD  /v2/<name>/manifests/<digest>    a manifest, with its media type

Rules (tests name them):

1. Nothing is listed, tagged or written: everything else is 404 or 405. Whoever asks must know the digest; `<name>` says
   nothing, the cache has no repositories. A mirror that fills itself answers for the repositories it was given alone.
2. Only what was compared with its digest is sent: all of a file is hashed before its first byte goes out, and again when
   it changed. Receivers check too: a mirror is never trusted.
3. Work is bounded: so many connections at once, more are answered 503; silence ends a connection, and so does its age; a
   request line and its headers have the limits of the standard library; no body is read.
4. What is not here and cannot be fetched is 404 where the registry says that there is no such thing, else 502 with what is
   wrong; hits are served whatever becomes of the registry.

Standard library alone: the flashing pods' image and a node need no more for it than for pulling.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from typing import Any, Final

from firmware_pipeline.cache import BlobCache
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import identified
from firmware_pipeline.oci import MAX_MANIFEST_BYTES, sha256_digest
from firmware_pipeline.pull_through import PullThrough
from firmware_pipeline.store import CHUNK_BYTES, digest_of_file

DEFAULT_PORT: Final = 5080
MAX_CONNECTIONS: Final = 64
SILENCE_SECONDS: Final = 15.0
LIFETIME_SECONDS: Final = 600.0
_KNOWN: Final = 4096
_PATH: Final = re.compile(
    r"^/v2/(?P<name>[a-z0-9][a-z0-9._/-]{0,254})/(?P<kind>blobs|manifests)/(?P<digest>sha256:[0-9a-f]{64})\Z"
)
_RANGE: Final = re.compile(r"^bytes=(?:(?P<first>[0-9]{1,18})-(?P<last>[0-9]{0,18})|-(?P<suffix>[0-9]{1,18}))\Z")
log = logging.getLogger("firmware_pipeline.serving")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, one past the last) byte that a Range header asks for; None where there is nothing to send (416).

    What is no single byte range is ignored: all of it is sent. Source: RFC 9110 section 14.
    """
    match = _RANGE.match(header or "")
    if match is None:
        return 0, size
    if match["suffix"] is not None:
        count = min(int(match["suffix"]), size)
        return (size - count, size) if count else None
    first = int(match["first"])
    end = min(int(match["last"]) + 1, size) if match["last"] else size
    if match["last"] and int(match["last"]) < first:
        return 0, size
    return (first, end) if first < size else None


class CacheServer(ThreadingHTTPServer):
    """Serves one cache. `serve_forever` runs it, `shutdown` from another thread ends it.

    Args:
        cache: what is served.
        address: host and port to listen on; port 0 takes a free one.
        max_connections: served at once (rule 3).
        silence_seconds: how long a connection may say or take nothing.
        lifetime_seconds: how long a connection may last, whatever it does.
        origin: fetches what the cache does not have; None = what it does not have is 404.

    Raises:
        OSError: the address cannot be listened on.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        cache: BlobCache,
        address: tuple[str, int],
        *,
        max_connections: int = MAX_CONNECTIONS,
        silence_seconds: float = SILENCE_SECONDS,
        lifetime_seconds: float = LIFETIME_SECONDS,
        origin: PullThrough | None = None,
    ) -> None:
        self.cache, self.origin = cache, origin
        self.silence_seconds, self.lifetime_seconds = silence_seconds, lifetime_seconds
        self._slots = threading.BoundedSemaphore(max_connections)
        self._checked: OrderedDict[tuple[str, int, int, int, int], None] = OrderedDict()
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """What a mirror's user is told."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        try:
            request.settimeout(1)
            request.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection of %s ended early", client_address[0], exc_info=True)

    def find(self, name: str, kind: str, digest: str) -> BufferedReader | None:
        """The open file of a digest, compared with it; fetched first if it is not there or wrong, where there is an origin.

        Raises:
            PipelineError: StorageFailed; as the origin.
        """
        if (stream := self._sound(digest)) is None and self.origin is not None:
            self.origin.fetch(self.cache, name, kind, digest)
            stream = self._sound(digest)
        return stream

    def _sound(self, digest: str) -> BufferedReader | None:
        """The open file if it is there and right; a wrong one is removed where another can be fetched."""
        if (stream := self.cache.open(digest)) is not None and not self.checked(digest, stream):
            with stream:
                if self.origin is not None:
                    self.cache.drop(digest, stream)
            return None
        return stream

    def checked(self, digest: str, stream: BufferedReader) -> bool:
        """Rule 2: whether an open file is what its name says; remembered until it changes."""
        state = os.fstat(stream.fileno())
        key = (digest, state.st_ino, state.st_size, state.st_mtime_ns, state.st_dev)
        with self._lock:
            if key in self._checked:
                self._checked.move_to_end(key)
                return True
        if digest_of_file(stream) != digest:
            log.warning("%s in %s is not what its name says; not served", digest, self.cache.root)
            return False
        with self._lock:
            self._checked[key] = None
            while len(self._checked) > _KNOWN:
                self._checked.popitem(last=False)
        return True


class _Handler(BaseHTTPRequestHandler):
    server: CacheServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "firmware-pipeline", ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.silence_seconds)
        self._end = threading.Timer(self.server.lifetime_seconds, self._expire)
        self._end.daemon = True
        self._end.start()

    def finish(self) -> None:
        self._end.cancel()
        super().finish()

    def _expire(self) -> None:
        with contextlib.suppress(OSError):  # it has just ended by itself
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        if self.path in ("/v2", "/v2/"):
            return self._send(200, b"{}", {"Content-Type": "application/json"})
        match = _PATH.match(self.path)
        if match is None:
            return self._error(404, "UNSUPPORTED", "content is served by digest alone")
        name, kind, digest = match["name"], match["kind"], match["digest"]
        if self.server.origin is not None and not self.server.origin.knows(name):
            return self._error(404, "NAME_UNKNOWN", "this mirror was not given that repository")
        try:
            if (stream := self.server.find(name, kind, digest)) is None:
                return self._error(404, "BLOB_UNKNOWN", "not in this cache")
        except PipelineError as error:
            log.warning("%s", error)
            if error.reason is Reason.ReferenceNotFound or self.server.origin is None:
                return self._error(404, "BLOB_UNKNOWN", "neither in this cache nor in its registry")
            return self._error(502, "UNAVAILABLE", f"{error.reason.value}: {error.message}")
        with stream:
            send: Callable[[str, BufferedReader], None] = self._manifest if kind == "manifests" else self._blob
            return send(digest, stream)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # a body, if any, is not read
        self._error(405, "UNSUPPORTED", "this mirror is read-only")

    do_POST = do_PUT = do_PATCH = do_DELETE = _refuse

    def _manifest(self, digest: str, stream: BufferedReader) -> None:
        stream.seek(0)
        raw = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(raw) > MAX_MANIFEST_BYTES or sha256_digest(raw) != digest:
            return self._error(404, "MANIFEST_UNKNOWN", "no manifest")
        try:
            media_type = identified(raw, digest, "the cache").media_type
        except PipelineError:
            return self._error(404, "MANIFEST_UNKNOWN", "no manifest")
        return self._send(200, raw, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _blob(self, digest: str, stream: BufferedReader) -> None:
        size = os.fstat(stream.fileno()).st_size
        asked = byte_range(self.headers.get("Range"), size)
        if asked is None:
            return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
        first, end = asked
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "Accept-Ranges": "bytes",
        }
        partial = (first, end) != (0, size)
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        self._head(206 if partial else 200, end - first, headers)
        if self.command == "HEAD":
            return None
        stream.seek(first)
        left = end - first
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            self.wfile.write(chunk)
            left -= len(chunk)
        self.close_connection = self.close_connection or bool(left)
        return None

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._send(status, body, {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.client_address[0], format % args)
