# SPDX-License-Identifier: Apache-2.0
"""`serve --from`: a mirror that fills itself, from the repositories it was given and from nothing else."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import MirroredStore, mirror_store
from firmware_pipeline.cli import app
from firmware_pipeline.credentials import Credential, Credentials
from firmware_pipeline.errors import Reason
from firmware_pipeline.http_rules import ClientOptions, Limits
from firmware_pipeline.pull_through import MAX_BLOB_BYTES, PullThrough
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.serving import CacheServer
from firmware_pipeline.store import RawManifest
from tests.unit.firmware.artifacts import PLAIN, push_to
from tests.unit.firmware.builds import refused
from tests.unit.firmware.gated_registry import GatedRegistry
from tests.unit.firmware.hostile_registry import HostileRegistry, digest_of

DATA = os.urandom(300_000)
DIGEST = digest_of(DATA)
BLOB = f"/v2/team/porch/blobs/{DIGEST}"
ONCE = Limits(connect_seconds=5, read_seconds=2, attempts=1)


@contextlib.contextmanager
def mirror(
    root: Path, host: str, options: ClientOptions | None = None, *, lifetime: float = 60
) -> Iterator[CacheServer]:
    options = options or ClientOptions(plain_http=True, limits=ONCE)
    origin = PullThrough({"team/porch": RegistryStore(parse_reference(f"{host}/team/porch"), options)})
    with CacheServer(BlobCache(root), ("127.0.0.1", 0), lifetime_seconds=lifetime, origin=origin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: CacheServer, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def problem(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["errors"][0]["message"]


def test_rule_2_24_clients_one_request_of_the_origin(tmp_path: Path) -> None:
    with GatedRegistry() as registry, mirror(tmp_path, registry.host) as server:
        registry.put(DATA)
        registry.hold_after = 100_000
        with ThreadPoolExecutor(24) as clients:
            running = [clients.submit(ask, server, BLOB) for _ in range(24)]
            registry.go_on.set()
            assert {each.result() for each in running} == {(200, DATA)}
        assert registry.gets == {DIGEST: 1}
        assert registry.sent == len(DATA)


@pytest.mark.parametrize("kind", ["tamper", "short", "long", "endless", "cut"])
def test_rule_2_wrong_bytes_are_served_to_nobody(tmp_path: Path, kind: str) -> None:
    with HostileRegistry(blob=kind) as registry, mirror(tmp_path, registry.host) as server:
        registry.blobs[DIGEST] = DATA
        assert problem(ask(server, BLOB))[0] == 502
        assert not server.cache.blob_path(DIGEST).exists()
        registry.knobs.blob = ""
        assert ask(server, BLOB) == (200, DATA)


def test_rule_2_a_poisoned_file_is_fetched_once_more(tmp_path: Path) -> None:
    with HostileRegistry() as registry, mirror(tmp_path, registry.host) as server:
        registry.blobs[DIGEST] = DATA
        server.cache.keep(DIGEST, DATA[:-1] + b"!")
        assert ask(server, BLOB) == (200, DATA)


def test_rule_1_other_repositories_are_not_there(tmp_path: Path) -> None:
    with HostileRegistry() as registry, mirror(tmp_path, registry.host) as server:
        registry.blobs[DIGEST] = DATA
        server.cache.keep(DIGEST, DATA)
        for name in ("team/door", "team", "team/porch/x"):
            status, message = problem(ask(server, f"/v2/{name}/blobs/{DIGEST}"))
            assert (status, message) == (404, "this mirror was not given that repository")
        assert ask(server, BLOB)[0] == 200
        assert registry.seen == []


def test_what_the_registry_does_not_have_is_not_there(tmp_path: Path) -> None:
    with HostileRegistry() as registry, mirror(tmp_path, registry.host) as server:
        assert ask(server, BLOB)[0] == 404
        assert ask(server, f"/v2/team/porch/manifests/{DIGEST}")[0] == 404
        assert ask(server, "/v2/team/porch/manifests/latest")[0] == 404
        assert len(registry.seen) == 2
    assert not list((tmp_path / "ingest").iterdir())


def test_serving_rule_4_without_the_registry_hits_are_served(tmp_path: Path) -> None:
    with HostileRegistry() as registry:
        host = registry.host
        registry.blobs[DIGEST] = DATA
        with mirror(tmp_path, host) as server:
            assert ask(server, BLOB) == (200, DATA)
    with mirror(tmp_path, host) as server:
        assert ask(server, BLOB) == (200, DATA)
        status, message = problem(ask(server, BLOB.replace(DIGEST, digest_of(b"other"))))
        assert status == 502
        assert message.startswith(f"RegistryUnreachable: {host}/team/porch: ")


def test_rule_3_the_registry_sees_our_credentials_and_never_the_clients(tmp_path: Path) -> None:
    with HostileRegistry(auth="basic", username="mirror", password="ours") as registry:
        registry.blobs[DIGEST] = DATA
        options = ClientOptions(
            Credentials({registry.host: Credential("mirror", "ours")}), plain_http=True, limits=ONCE
        )
        with mirror(tmp_path / "a", registry.host, options) as server:
            assert ask(server, BLOB, {"Authorization": "Basic dGhlaXJzOnRoZWlycw=="}) == (200, DATA)
        with mirror(tmp_path / "b", registry.host) as server:
            status, message = problem(ask(server, BLOB, {"Authorization": "Basic bWlycm9yOm91cnM="}))
        assert status == 502
        assert message.startswith("RegistryUnauthorized: ")
        assert not [secret for secret in registry.secrets_seen() if "dGhlaXJz" in secret]


def test_rule_4_what_no_chip_could_hold_is_not_fetched(tmp_path: Path) -> None:
    class Huge:
        def blob_size(self, _digest: str) -> int:
            return MAX_BLOB_BYTES + 1

        def get_manifest(self, selector: str, **_more: object) -> RawManifest:
            raise AssertionError(selector)

        def receive_blob(self, *_more: object) -> None:
            raise AssertionError("asked for it")

    cache = BlobCache(tmp_path)
    refused(Reason.TooLarge, lambda: PullThrough({"a": Huge()}).fetch(cache, "a", "blobs", DIGEST))


def test_a_client_gets_a_whole_artifact_through_it(tmp_path: Path) -> None:
    with HostileRegistry() as registry:
        where = f"{registry.host}/team/porch:1"
        pushed = push_to(where)
        registry.seen.clear()
        with mirror(tmp_path, registry.host) as server:
            for _ in range(2):
                store = MirroredStore(api.open_store(where, PLAIN), mirror_store(server.url, where))
                chip = api.open_chip(store, pushed.index_digest, "esp32c3")
                assert api.read_layer(store, chip.app)
        gets = [seen.path for seen in registry.requests("GET")]
        assert len(gets) == len(set(gets)) == 5  # index, manifest, config, release statement, application


def test_serving_rule_3_age_ends_a_connection(tmp_path: Path) -> None:
    with (
        mirror(tmp_path, "127.0.0.1:9", lifetime=0.05) as server,
        socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as slow,
    ):
        slow.sendall(b"GET /v2/ HT")
        assert slow.recv(100) == b""


@pytest.mark.parametrize("names", [["oci:x"], ["127.0.0.1:5000/a:1"], ["127.0.0.1:5000/a", "127.0.0.1:5001/a"], ["a"]])
def test_origins_that_cannot_be(tmp_path: Path, names: list[str]) -> None:
    options = [word for name in names for word in ("--from", name)]
    done = CliRunner().invoke(app, ["serve", str(tmp_path / "cache"), "--listen", "127.0.0.1:0", *options])
    assert done.exit_code == 2, done.output


def test_as_a_program(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("firmware-pipeline"))
    with HostileRegistry() as registry:
        registry.blobs[DIGEST] = DATA
        given = ["--listen", "127.0.0.1:0", "--plain-http", "--from", f"{registry.host}/team/porch"]
        with subprocess.Popen(
            [program, "serve", str(tmp_path / "cache"), *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            found = re.fullmatch(r"http://127\.0\.0\.1:([0-9]+)\n", process.stdout.readline())
            assert found
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)) as connection:
                connection.request("GET", BLOB)
                assert connection.getresponse().read() == DATA
            process.terminate()
            assert process.wait(30) == 0
