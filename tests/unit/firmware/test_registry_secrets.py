# SPDX-License-Identifier: Apache-2.0
"""No credential ever leaves its host: two recording servers, 127.0.0.1 and localhost, are two hosts; a proxy is a third."""

import base64
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import INDEX_TYPE, Index, to_json
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.store import Blob
from tests.unit.firmware.builds import refused
from tests.unit.firmware.certificates import authority
from tests.unit.firmware.hostile_registry import HostileRegistry, digest_of
from tests.unit.firmware.registry_zoo import DATA, Script, answers, both, challenge
from tests.unit.firmware.test_registry import SECRET, put, put_index, store_for

BASIC = base64.b64encode(f"{SECRET.username}:{SECRET.password}".encode()).decode()


def referrers_elsewhere(thief: str) -> Script:
    body = to_json(Index(schema_version=2, manifests=[]))
    link = f'<{thief}/v2/team/porch/referrers/next>; rel="next"'
    return answers("/referrers/", body=body, Content_Type=INDEX_TYPE, Link=link)


LURES: dict[str, Callable[[str], Script]] = {
    "a redirected blob": lambda thief: answers("/blobs/sha256:", 307, Location=f"{thief}/elsewhere/x"),
    "a redirected HEAD": lambda thief: answers("/blobs/sha256:", 307, method="HEAD", Location=f"{thief}/x"),
    "a redirected manifest": lambda thief: answers("/manifests/", 302, Location=f"{thief}/v2/team/porch/manifests/1"),
    "a redirect with a user name": lambda thief: answers(
        "/manifests/", 302, Location=f"http://ci@{urlsplit(thief).netloc}/v2/team/porch/manifests/1"
    ),
    "an upload's Location": lambda thief: answers("/uploads/", 202, method="POST", Location=f"{thief}/upload"),
    "a redirected upload": lambda thief: answers("/uploads/", 307, method="PUT", Location=f"{thief}/upload"),
    "a redirected POST": lambda thief: answers("/uploads/", 308, method="POST", Location=f"{thief}/upload"),
    "a redirected tag": lambda thief: answers("/manifests/", 307, method="PUT", Location=f"{thief}/tag"),
    "the next page of referrers": referrers_elsewhere,
    "a realm": lambda thief: challenge(f'Bearer realm="{thief}/token",service="test"'),
    "a redirected token": lambda thief: both(
        challenge('Bearer realm="{url}/token"'), answers("/token", 307, Location=f"{thief}/token")
    ),
    "a cookie": lambda thief: answers(
        "/blobs/sha256:", 307, Location=f"{thief}/elsewhere/x", Set_Cookie="session=s3cret; Path=/"
    ),
}  # fmt: skip


def everything(store: RegistryStore, descriptor: Any, path: Path) -> list[Callable[[], object]]:
    """All that is ever asked of a registry."""
    return [
        lambda: store.save_blob(descriptor, path),
        lambda: store.resolve("1"),
        lambda: store.referrers(descriptor.digest),
        lambda: store.put_blob(Blob.of(b"new")),
        lambda: store.put_manifest(to_json(Index(schema_version=2, manifests=[])), INDEX_TYPE, tag="2"),
        lambda: store.resolve("1"),
    ]


@pytest.mark.parametrize("auth", ["basic", "token"])
@pytest.mark.parametrize("lure", [pytest.param(lure, id=name.replace(" ", "-")) for name, lure in LURES.items()])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_no_credential_leaves_its_host(lure: Callable[[str], Script], auth: str, name: str, tmp_path: Path) -> None:
    with HostileRegistry() as thief, HostileRegistry(auth=auth, username="ci", password="s3cret") as registry:
        put_index(registry)
        descriptor = put(registry)
        store = store_for(registry, credential=SECRET, push=True)
        store.resolve("1")
        registry.script = lure(thief.url.replace("127.0.0.1", name))
        kept = {"127.0.0.1"} if lure is LURES["a realm"] else set()
        for act in everything(store, descriptor, tmp_path / "app.bin"):
            try:
                act()
            except PipelineError:
                continue
        assert registry.secrets_seen(), "the registry itself was logged in to"
        for seen in thief.seen if name not in kept else []:
            assert seen.authorization is None
            assert "cookie" not in seen.headers
            assert "s3cret" not in seen.path + str(seen.headers)
            assert BASIC not in str(seen.headers)


def test_a_realm_on_another_port_of_the_host_is_the_hosts_own() -> None:
    """Rule 2: token services stand beside their registry, on the same machine."""
    with (
        HostileRegistry(username="ci", password="s3cret") as tokens,
        HostileRegistry(auth="token", username="ci", password="s3cret", realm=f"{tokens.url}/token") as registry,
    ):
        put_index(registry)
        refused(Reason.RegistryUnauthorized, lambda: store_for(registry, credential=SECRET).resolve("1"))
        assert [seen.authorization for seen in tokens.seen] == [f"Basic {BASIC}"]


# ---- proxies ---------------------------------------------------------------------------------------------


class Proxy:
    """A forward proxy on loopback: absolute URLs and CONNECT; remembers what it could read."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        handler = type("Handler", (_ProxyHandler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _ProxyHandler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _note(self) -> None:
        self.proxy.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))

    def do_CONNECT(self) -> None:
        self._note()
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as target:
            self.send_response(200)
            self.end_headers()
            ends = [self.connection, target]
            while all(pairs := [(s, s.recv(65536)) for s in select.select(ends, [], [], 10)[0]]):
                if not pairs or not all(data for _, data in pairs):
                    break
                for source, data in pairs:
                    (target if source is self.connection else self.connection).sendall(data)
        self.close_connection = True

    def do_GET(self) -> None:
        self._note()
        parts = urlsplit(self.path)
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as target:
            lines = [f"{self.command} {parts.path} HTTP/1.0", *(f"{k}: {v}" for k, v in self.headers.items())]
            target.sendall("\r\n".join([*lines, "", ""]).encode())
            while data := target.recv(65536):
                self.connection.sendall(data)
        self.close_connection = True


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    running = Proxy()
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://eve:pr0xy@{running.address}")
    monkeypatch.setenv("https_proxy", f"http://eve:pr0xy@{running.address}")
    yield running
    running.stop()


@pytest.fixture
def trust(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    return authority(tmp_path)


def test_https_goes_through_the_proxy_which_learns_no_login(
    proxy: Proxy, trust: tuple[ssl.SSLContext, Path], tmp_path: Path
) -> None:
    context, ca_file = trust
    with HostileRegistry(tls=context, auth="token", username="ci", password="s3cret") as registry:
        descriptor = put(registry, DATA)
        store = store_for(registry, credential=SECRET, plain_http=False, ca_file=ca_file)
        store.save_blob(descriptor, tmp_path / "app.bin")
        assert (tmp_path / "app.bin").read_bytes() == DATA
        assert {(method, path) for method, path, _ in proxy.seen} == {("CONNECT", registry.host)}
        for _, _, headers in proxy.seen:
            assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"eve:pr0xy").decode()
            assert "authorization" not in headers
        assert all("proxy-authorization" not in seen.headers for seen in registry.seen)


def test_a_proxy_that_cannot_reach_the_registry_is_named(proxy: Proxy) -> None:
    proxy.stop()
    with HostileRegistry() as registry:
        error = refused(Reason.RegistryUnreachable, lambda: store_for(registry).resolve("1"))
        assert registry.seen == []
        assert "pr0xy" not in str(error)


def test_plain_http_goes_through_the_proxy_and_no_proxy_is_obeyed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostileRegistry() as registry:
        raw = put_index(registry)
        assert store_for(registry).resolve("1") == digest_of(raw)
        assert [(method, path) for method, path, _ in proxy.seen] == [
            ("GET", f"{registry.url}/v2/team/porch/manifests/1")
        ]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        store_for(registry).resolve("1")
        assert len(proxy.seen) == 1
