# SPDX-License-Identifier: Apache-2.0
"""Stores in front of stores: what is asked of the registry, and what is not."""

from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore, MirroredStore, Traffic, mirror_store
from firmware_pipeline.errors import Reason
from firmware_pipeline.store import ArtifactStore, Blob
from tests.unit.firmware.artifacts import PLAIN, TRUSTED, push_to
from tests.unit.firmware.builds import refused
from tests.unit.firmware.cache_workers import CONTEXT, open_and_fetch
from tests.unit.firmware.hostile_registry import HostileRegistry


@pytest.fixture
def registry() -> Iterator[HostileRegistry]:
    with HostileRegistry() as running:
        yield running


def copy_of(registry: HostileRegistry) -> HostileRegistry:
    """A mirror with the same content, not yet started."""
    mirror = HostileRegistry()
    mirror.blobs, mirror.manifests = dict(registry.blobs), dict(registry.manifests)
    return mirror


def fetch_all(store: ArtifactStore, digest: str, folder: Path) -> bytes:
    chip = api.open_chip(store, digest, "esp32s3")
    for layer in chip.layers:
        api.fetch_layer(store, layer, folder / layer.title)
    return (folder / chip.app.title).read_bytes()


def test_a_pinned_pull_from_the_cache_asks_nothing(tmp_path: Path, registry: HostileRegistry) -> None:
    where = f"{registry.host}/porch:1"
    pushed = push_to(where)
    traffic = [Traffic(), Traffic()]
    contents = []
    for number in range(2):
        registry.seen.clear()
        store = CachedStore(api.open_store(where, PLAIN), BlobCache(tmp_path / "cache"), traffic[number])
        contents.append(fetch_all(store, pushed.index_digest, tmp_path / f"out{number}"))
    assert registry.seen == []
    first, second = (one.dump() for one in traffic)
    assert contents[0] == contents[1]
    assert second == {
        "bytesNetwork": 0,
        "bytesCache": first["bytesNetwork"],
        "requests": 0,
        "layersFetched": 0,
        "layersHit": first["layersFetched"],
    }
    assert first["bytesCache"] == 0


def test_a_second_pull_by_tag_is_one_small_request(tmp_path: Path, registry: HostileRegistry) -> None:
    where = f"{registry.host}/porch:1"
    push_to(where)
    for _ in range(2):
        registry.seen.clear()
        store = CachedStore(api.open_store(where, PLAIN), BlobCache(tmp_path / "cache"))
        fetch_all(store, api.resolve(store, where), tmp_path / "out")
    assert [(seen.method, seen.path) for seen in registry.seen] == [("GET", "/v2/porch/manifests/1")]
    assert store.traffic.requests == 1


def test_writes_tags_and_referrers_go_to_the_registry(tmp_path: Path, registry: HostileRegistry) -> None:
    where = f"{registry.host}/porch:1"
    behind = api.open_store(where, PLAIN, push=True)
    store = CachedStore(MirroredStore(behind, api.open_store(where, PLAIN)), BlobCache(tmp_path / "cache"))
    pushed = push_to(where, store=store)
    assert store.name == behind.name
    assert registry.tags["1"] == pushed.index_digest
    assert api.verify(store, pushed.index_digest, TRUSTED).signers == ("ci",)
    blob = Blob.of(b"new")
    assert not store.has_blob(blob.digest, blob.size)
    store.put_blob(blob)
    assert store.has_blob(blob.digest, blob.size)


def test_a_cache_that_cannot_be_written_is_told_once(open_folder: Path, registry: HostileRegistry) -> None:
    where = f"{registry.host}/porch:1"
    pushed = push_to(where)
    (open_folder / "cache").mkdir()
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=open_and_fetch, args=(where, open_folder / "cache", pushed.index_digest, theirs))
    process.start()
    theirs.close()
    notes, traffic = _answer(ours)
    process.join()
    assert len(notes) == 1
    assert "cannot be written" in notes[0]
    assert traffic["layersHit"] == 0
    assert list((open_folder / "cache").iterdir()) == []


def _answer(report: Connection) -> tuple[list[str], dict[str, int]]:
    answer: tuple[list[str], dict[str, int]] = report.recv()
    return answer


# ---- mirrors ---------------------------------------------------------------------------------------------


def test_a_good_mirror_spares_the_registry(tmp_path: Path, registry: HostileRegistry) -> None:
    where = f"{registry.host}/porch:1"
    pushed = push_to(where)
    registry.seen.clear()
    with copy_of(registry) as mirror:
        store = MirroredStore(api.open_store(where, PLAIN), mirror_store(mirror.url, where))
        fetch_all(store, pushed.index_digest, tmp_path / "out")
        assert mirror.seen
        assert mirror.secrets_seen() == []
    assert registry.seen == []


@pytest.mark.parametrize("blob", ["tamper", "short", "long", "endless", "cut"])
@pytest.mark.parametrize("cached", [True, False])
def test_rule_1_a_bad_mirror_costs_time_and_nothing_else(
    tmp_path: Path, registry: HostileRegistry, blob: str, cached: bool
) -> None:
    where = f"{registry.host}/porch:1"
    pushed = push_to(where)
    good = fetch_all(api.open_store(where, PLAIN), pushed.index_digest, tmp_path / "good")
    with copy_of(registry) as mirror:
        mirror.knobs.blob = blob
        mirror.knobs.manifest = "tamper"
        store: ArtifactStore = MirroredStore(api.open_store(where, PLAIN), mirror_store(mirror.url, where))
        if cached:
            store = CachedStore(store, BlobCache(tmp_path / "cache"))
        assert fetch_all(store, pushed.index_digest, tmp_path / "out") == good


@pytest.mark.parametrize("cached", [True, False])
def test_rule_1_a_wrong_beginning_from_a_mirror_is_not_gone_on_with(
    tmp_path: Path, registry: HostileRegistry, cached: bool
) -> None:
    where = f"{registry.host}/porch:1"
    pushed = push_to(where)
    behind = api.open_store(where, PLAIN)
    app = api.open_chip(behind, pushed.index_digest, "esp32s3").app
    with copy_of(registry) as mirror:
        mirror.knobs.blob = "cut"
        mirror.blobs[app.descriptor.digest] = bytes(app.descriptor.size)
        store: ArtifactStore = MirroredStore(behind, mirror_store(mirror.url, where))
        if cached:
            store = CachedStore(store, BlobCache(tmp_path / "cache"))
        assert api.read_layer(store, app) == api.read_layer(behind, app)
        assert mirror.requests("GET", app.descriptor.digest)


def test_a_mirror_that_is_gone(tmp_path: Path, registry: HostileRegistry) -> None:
    where = f"{registry.host}/porch:1"
    pushed = push_to(where)
    with HostileRegistry() as gone:
        url = gone.url
    store = MirroredStore(api.open_store(where, PLAIN), mirror_store(url, where))
    assert fetch_all(store, pushed.index_digest, tmp_path / "out")


@pytest.mark.parametrize("url", ["", "ftp://h:1", "http://", "http://u:p@h:1", "http://h:1/path", "h:1"])
def test_what_is_no_mirror(url: str) -> None:
    refused(Reason.ReferenceMalformed, lambda: mirror_store(url, "r.test/porch:1"))
