# SPDX-License-Identifier: Apache-2.0
"""A registry in this process, on loopback: right by default, wrong in exactly the way a test asks for.

It keeps blobs, manifests, tags, upload sessions, tokens and referrers as a real one does, and remembers every request
with its Authorization header, so that a test can say where a secret went.
"""

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    authorization: str | None
    headers: dict[str, str]


@dataclass
class Knobs:
    """What this registry does wrong, or differently. Numbers count down."""

    username: str = ""
    password: str = ""
    auth: str = "none"  # none | basic | token
    realm: str = ""  # another token service than our own
    token_seconds: float = 300
    revoke_tokens: int = 0  # refuse this many good tokens
    referrers_api: bool = False
    referrers_page: int = 0  # entries in each page of the list
    referrers_link: str = ""  # where the list says that it goes on, at the end too
    answer_subject: bool = False
    busy: int = 0  # answer this many requests with `busy_status`
    busy_status: int = 429
    retry_after: str | None = "1"
    blob: str = ""  # tamper | short | long | endless | hang | trickle | cut | cut-no-range
    manifest: str = ""  # tamper | other | html | endless
    blob_redirect: str = ""  # URL prefix
    upload_location: str = ""  # URL prefix of another host
    upload_redirect: str = ""
    put_status: int = 201
    stored_digest: str = ""  # what Docker-Content-Digest claims after a PUT
    extra: dict[str, Any] = field(default_factory=dict)


class HostileRegistry:
    """Use as a context manager; `host` is what references name."""

    def __init__(self, tls: ssl.SSLContext | None = None, **knobs: Any) -> None:
        self.knobs = Knobs(**knobs)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.tags: dict[str, str] = {}
        self.seen: list[Seen] = []
        self.tokens: dict[str, str] = {}
        self.released = threading.Event()
        self.on_tag: Callable[[str], None] | None = None
        self.script: Callable[[Any], bool] | None = (
            None  # answers a request itself and returns True, or leaves it to us
        )
        self._serial = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}"

    def requests(self, method: str, part: str = "") -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and part in seen.path]

    def secrets_seen(self) -> list[str]:
        """Every Authorization header that arrived."""
        return [seen.authorization for seen in self.seen if seen.authorization]

    def next_number(self) -> int:
        with self._lock:
            self._serial += 1
            return self._serial


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up on a hostile answer are what the tests want."""


class _Handler(BaseHTTPRequestHandler):
    registry: HostileRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _run(self) -> None:
        registry, knobs = self.registry, self.registry.knobs
        registry.seen.append(
            Seen(
                self.command,
                self.path,
                self.headers.get("Authorization"),
                {k.lower(): v for k, v in self.headers.items()},
            )
        )
        body = self._read_body()
        if registry.script is not None and registry.script(self):
            return None
        if knobs.busy > 0:
            knobs.busy -= 1
            extra = {"Retry-After": knobs.retry_after} if knobs.retry_after else {}
            return self._error(knobs.busy_status, "TOOMANYREQUESTS", extra)
        path = urlsplit(self.path).path
        if path == "/token":
            return self._token(body)
        if path.startswith("/elsewhere/"):
            return self._blob(path.rsplit("/", 1)[1])
        if not self._authorized(path):
            return None
        parts = path.removeprefix("/v2/").split("/")
        if len(parts) >= 3 and parts[-2] == "manifests":
            return self._put_manifest(parts[-1], body) if self.command == "PUT" else self._manifest(parts[-1])
        if len(parts) >= 3 and parts[-2] == "referrers":
            return self._referrers(parts[-1])
        if "uploads" in parts:
            return self._upload(path, body)
        if len(parts) >= 3 and parts[-2] == "blobs":
            return self._blob(parts[-1])
        return self._error(404, "NAME_UNKNOWN")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _run

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": f"\x1b[31m{code.lower()}"}]}).encode()
        self._send(status, body, {"Content-Type": "application/json", **(headers or {})})

    # ---- login -----------------------------------------------------------------------------------------

    def _authorized(self, path: str) -> bool:
        knobs, header = self.registry.knobs, self.headers.get("Authorization", "")
        if knobs.auth == "none":
            return True
        if knobs.auth == "basic":
            pair = base64.b64encode(f"{knobs.username}:{knobs.password}".encode()).decode()
            if header == f"Basic {pair}":
                return True
            self._error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="here"'})
            return False
        needed = "pull" if self.command in ("GET", "HEAD") else "push"
        scope = self.registry.tokens.get(header.removeprefix("Bearer "), "")
        repository = path.removeprefix("/v2/").split("/manifests/")[0].split("/blobs/")[0].split("/referrers/")[0]
        if scope.startswith(f"repository:{repository}:") and needed in scope.rsplit(":", 1)[1].split(","):
            if knobs.revoke_tokens <= 0:
                return True
            knobs.revoke_tokens -= 1
            self.registry.tokens.clear()
        realm = knobs.realm or f"{self.registry.url}/token"
        challenge = f'Bearer realm="{realm}",service="test",scope="repository:{repository}:{needed}"'
        self._error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        return False

    def _token(self, body: bytes) -> None:
        knobs = self.registry.knobs
        query = parse_qs(body.decode() if self.command == "POST" else urlsplit(self.path).query)
        pair = base64.b64encode(f"{knobs.username}:{knobs.password}".encode()).decode()
        by_refresh = query.get("refresh_token") == [knobs.extra.get("refresh_token")]
        if knobs.username and self.headers.get("Authorization") != f"Basic {pair}" and not by_refresh:
            return self._error(401, "UNAUTHORIZED")
        token = f"token-{self.registry.next_number()}"
        self.registry.tokens[token] = query["scope"][0]
        answer = knobs.extra.get("token_answer") or {"token": token, "expires_in": knobs.token_seconds}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    # ---- manifests -------------------------------------------------------------------------------------

    def _manifest(self, selector: str) -> None:
        registry, knobs = self.registry, self.registry.knobs
        digest = selector if selector.startswith("sha256:") else registry.tags.get(selector, "")
        if digest not in registry.manifests:
            return self._error(404, "MANIFEST_UNKNOWN")
        media_type, raw = registry.manifests[digest]
        if media_type not in self.headers.get("Accept", ""):
            return self._error(404, "MANIFEST_UNKNOWN")
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
        if knobs.manifest == "tamper":
            raw = raw.replace(b"schemaVersion", b"schemaVersioN")
        elif knobs.manifest == "other":
            media_type, raw = next(m for d, m in registry.manifests.items() if d != digest)
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(raw)}
        elif knobs.manifest == "html":
            raw, headers = b"<html>Please log in</html>", {"Content-Type": "text/html"}
        elif knobs.manifest == "endless":
            return self._endless(headers)
        return self._send(200, raw, headers)

    def _put_manifest(self, selector: str, body: bytes) -> None:
        registry, knobs = self.registry, self.registry.knobs
        digest, document = digest_of(body), json.loads(body)
        named = [*document.get("manifests", []), *document.get("layers", [])]
        named += [document["config"]] if "config" in document else []
        is_fallback = selector.startswith("sha256-")
        missing = [d for d in named if d["digest"] not in registry.blobs and d["digest"] not in registry.manifests]
        if missing and not is_fallback:
            return self._error(400, "MANIFEST_BLOB_UNKNOWN")
        registry.manifests[digest] = (self.headers["Content-Type"], body)
        if not selector.startswith("sha256:"):
            registry.tags[selector] = digest
            if registry.on_tag:
                registry.on_tag(selector)
        elif selector != digest:
            return self._error(400, "DIGEST_INVALID")
        headers = {"Docker-Content-Digest": knobs.stored_digest or digest}
        if knobs.answer_subject and "subject" in document:
            headers["OCI-Subject"] = document["subject"]["digest"]
        return self._send(knobs.put_status, b"", headers)

    def _referrers(self, digest: str) -> None:
        if not self.registry.knobs.referrers_api:
            return self._error(404, "NOT_FOUND")
        entries = []
        for key, (media_type, raw) in self.registry.manifests.items():
            document = json.loads(raw)
            if document.get("subject", {}).get("digest") == digest:
                entries.append({"mediaType": media_type, "digest": key, "size": len(raw), "artifactType": "wrong/type"})
        headers, size = {"Content-Type": INDEX}, self.registry.knobs.referrers_page
        if size:
            start = int(parse_qs(urlsplit(self.path).query).get("from", ["0"])[0])
            following = self.registry.knobs.referrers_link or f"{urlsplit(self.path).path}?from={start + size}"
            if start + size < len(entries) or self.registry.knobs.referrers_link:
                headers["Link"] = f'<{following}>; rel="next"'
            entries = entries[start : start + size]
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        return self._send(200, body, headers)

    # ---- blobs -----------------------------------------------------------------------------------------

    def _blob(self, digest: str) -> None:
        registry, knobs = self.registry, self.registry.knobs
        if digest not in registry.blobs:
            return self._error(404, "BLOB_UNKNOWN")
        if knobs.blob_redirect and "/elsewhere/" not in self.path and self.command == "GET":
            return self._send(307, b"", {"Location": f"{knobs.blob_redirect}/elsewhere/{digest}"})
        data = registry.blobs[digest]
        if self.command == "HEAD":
            return self._send(200, b"", {"Content-Length": str(len(data))})
        return self._evil_blob(data)

    def _evil_blob(self, data: bytes) -> None:
        kind, start = self.registry.knobs.blob, 0
        wanted = self.headers.get("Range", "")
        headers = {"Content-Type": "application/octet-stream"}
        if wanted and kind != "cut-no-range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        status = 206 if "Content-Range" in headers else 200
        if kind == "tamper":
            data = bytes([data[0] ^ 1]) + data[1:]
        elif kind == "short":
            data = data[:-1]
        elif kind == "long":
            data += b"!"
        elif kind == "endless":
            return self._endless(headers)
        elif kind == "trickle":
            return self._trickle(data)
        elif kind in ("hang", "cut", "cut-no-range"):
            headers["Content-Length"] = str(len(data) - start)
            self._send(status, data[start : len(data) // 2], headers)
            self.wfile.flush()
            if kind == "hang":
                self.registry.released.wait()
            else:
                self.registry.knobs.blob = ""
            self.close_connection = True
            return None
        return self._send(status, data[start:], headers)

    def _endless(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while not self.registry.released.is_set():
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        except OSError:
            self.close_connection = True

    def _trickle(self, data: bytes) -> None:
        """One byte at a time, for ever just fast enough for a read timeout."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                if self.registry.released.wait(0.02):
                    break
        except OSError:
            pass
        self.close_connection = True

    def _upload(self, path: str, body: bytes) -> None:
        registry, knobs = self.registry, self.registry.knobs
        if self.command == "POST":
            if knobs.upload_redirect:
                return self._send(307, b"", {"Location": f"{knobs.upload_redirect}{path}"})
            location = f"{knobs.upload_location}{path}{registry.next_number()}?_state=a%2Fb%3D"
            return self._send(202, b"", {"Location": location})
        query = parse_qs(urlsplit(self.path).query)
        digest = query["digest"][0]
        if query.get("_state") != ["a/b="] or digest_of(body) != digest:
            return self._error(400, "DIGEST_INVALID")
        registry.blobs[digest] = body
        return self._send(knobs.put_status, b"", {"Docker-Content-Digest": knobs.stored_digest or digest})
