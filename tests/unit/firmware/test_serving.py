# SPDX-License-Identifier: Apache-2.0
"""`serve`: by digest, read-only, checked, bounded."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import MirroredStore, mirror_store
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import INDEX_TYPE
from firmware_pipeline.serving import CacheServer, byte_range
from tests.unit.firmware.artifacts import PLAIN, push_to
from tests.unit.firmware.hostile_registry import HostileRegistry, digest_of

DATA = bytes(range(256)) * 100
DIGEST = digest_of(DATA)


@contextlib.contextmanager
def serving(root: Path, connections: int = 8, silence: float = 10.0) -> Iterator[CacheServer]:
    with CacheServer(BlobCache(root), ("127.0.0.1", 0), max_connections=connections, silence_seconds=silence) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CacheServer]:
    BlobCache(tmp_path).keep(DIGEST, DATA)
    with serving(tmp_path) as running:
        yield running


def at(server: CacheServer) -> tuple[str, int]:
    return "127.0.0.1", int(server.server_address[1])


def ask(
    server: CacheServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*at(server), timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


BLOB = f"/v2/team/porch/blobs/{DIGEST}"


def test_content_by_digest_under_any_name(server: CacheServer) -> None:
    status, headers, body = ask(server, BLOB)
    assert (status, body) == (200, DATA)
    assert headers["docker-content-digest"] == DIGEST
    assert ask(server, BLOB.replace("team/porch", "x"))[2] == DATA
    status, headers, body = ask(server, BLOB, "HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(DATA)), b"")
    assert ask(server, "/v2/")[0] == 200


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [
        ("bytes=5-", 5, len(DATA)),
        ("bytes=5-9", 5, 10),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=5-99999999", 5, len(DATA)),
    ],
)
def test_ranges(server: CacheServer, wanted: str, first: int, end: int) -> None:
    status, headers, body = ask(server, BLOB, headers={"Range": wanted})
    assert (status, body) == (206, DATA[first:end])
    assert headers["content-range"] == f"bytes {first}-{end - 1}/{len(DATA)}"


def test_a_range_behind_the_end(server: CacheServer) -> None:
    assert ask(server, BLOB, headers={"Range": f"bytes={len(DATA)}-"})[:1] == (416,)


@given(
    st.one_of(st.none(), st.text(max_size=40), st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True)),
    st.integers(0, 300),
)
def test_a_range_is_inside_or_nothing(header: str | None, size: int) -> None:
    found = byte_range(header, size)
    if found is None:
        assert header
    else:
        assert 0 <= found[0] <= found[1] <= size
        assert found[0] < found[1] or size == 0


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/_catalog",
        "/v2/team/porch/tags/list",
        "/v2/team/porch/manifests/latest",
        f"/v2/team/porch/referrers/{DIGEST}",
        f"/v2/blobs/{DIGEST}",
        f"/v2/team/../blobs/{DIGEST[:-1]}/../../../index.json",
        "/v2/team/porch/blobs/sha256:" + "0" * 64,
        "/v2/team/porch/blobs/sha256:" + "../" * 21 + "x",
        "/blobs/sha256/" + DIGEST[7:],
        f"/v2/team/porch/manifests/{DIGEST}",
    ],
)
def test_rule_1_nothing_else_is_there(server: CacheServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert DATA not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_rule_1_nothing_is_written(server: CacheServer, method: str) -> None:
    before = sorted(path.name for path in server.cache.root.rglob("*"))
    assert ask(server, BLOB, method)[0] == 405
    assert sorted(path.name for path in server.cache.root.rglob("*")) == before


def test_rule_2_a_poisoned_file_is_not_served(server: CacheServer, caplog: pytest.LogCaptureFixture) -> None:
    path = server.cache.blob_path(DIGEST)
    assert ask(server, BLOB)[0] == 200
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"!")
    assert ask(server, BLOB)[0] == 404
    assert DIGEST in caplog.text


def test_rule_2_what_was_hashed_is_remembered(server: CacheServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(server, BLOB)

    def fail(_stream: object) -> str:
        raise AssertionError("hashed twice")

    monkeypatch.setattr("firmware_pipeline.serving.digest_of_file", fail)
    assert ask(server, BLOB, headers={"Range": "bytes=1-1"})[2] == DATA[1:2]


def test_rule_3_too_many_connections_are_told_so(tmp_path: Path) -> None:
    BlobCache(tmp_path).keep(DIGEST, DATA)
    with serving(tmp_path, connections=1) as server:
        first = http.client.HTTPConnection(*at(server), timeout=10)
        first.request("GET", BLOB)
        assert first.getresponse().read() == DATA
        status, headers, _ = ask(server, BLOB)
        assert (status, headers["retry-after"]) == (503, "1")
        first.close()


def test_rule_3_silence_ends_a_connection(tmp_path: Path) -> None:
    with serving(tmp_path, silence=0.05) as server, socket.create_connection(at(server), timeout=10) as silent:
        silent.sendall(b"GET /v2/ HT")
        assert silent.recv(100) == b""


def test_a_port_that_is_taken(tmp_path: Path, server: CacheServer) -> None:
    with pytest.raises(OSError, match="in use"):
        CacheServer(BlobCache(tmp_path), at(server))


def test_an_oci_client_takes_it_as_a_mirror(tmp_path: Path) -> None:
    with HostileRegistry() as registry:
        where = f"{registry.host}/porch:1"
        pushed = push_to(where)
        push_to(f"oci:{BlobCache(tmp_path).root}:1")
        registry.seen.clear()
        with serving(tmp_path) as server:
            mirror = mirror_store(server.url, where)
            index = mirror.get_manifest(pushed.index_digest)
            assert index.media_type == INDEX_TYPE
            store = MirroredStore(api.open_store(where, PLAIN), mirror)
            chip = api.open_chip(store, pushed.index_digest, "esp32c3")
            assert api.read_layer(store, chip.app) == api.read_layer(LayoutStore(tmp_path), chip.app)
            with pytest.raises(PipelineError) as caught:
                mirror.get_manifest("1")
            assert caught.value.reason is Reason.ReferenceNotFound
        assert registry.seen == []
