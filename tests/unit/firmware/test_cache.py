# SPDX-License-Identifier: Apache-2.0
"""The node cache: one download per digest, never a torn or a wrong file, whoever is killed and whatever is poisoned."""

import functools
import os
import stat
from collections.abc import Iterator
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from firmware_pipeline.cache import BlobCache, Origin
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.store import BlobReceiver
from tests.unit.firmware import cache_workers
from tests.unit.firmware.builds import refused
from tests.unit.firmware.cache_workers import CONTEXT, registry_store
from tests.unit.firmware.gated_registry import GatedRegistry
from tests.unit.firmware.hostile_registry import HostileRegistry, digest_of

DATA = bytes(range(256)) * 4096  # 1 MiB
MIB = 1024 * 1024


@pytest.fixture
def registry() -> Iterator[GatedRegistry]:
    with GatedRegistry() as running:
        yield running


def described(data: bytes = DATA) -> Descriptor:
    return Descriptor(media_type="x/y", digest=digest_of(data), size=len(data))


def ask(cache: BlobCache, registry: GatedRegistry | HostileRegistry, wanted: Descriptor) -> tuple[bytes, Origin]:
    sink = BytesIO()
    origin = cache.ensure(wanted, registry_store(registry.host).receive_blob, sink)
    return sink.getvalue(), origin


def never(_wanted: Descriptor, _receiver: BlobReceiver) -> None:
    raise AssertionError("nothing is to be fetched")


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.parent.name != "locks"}


def in_process(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


# ---- hits and misses -------------------------------------------------------------------------------------


def test_fetched_once_then_served(tmp_path: Path, registry: GatedRegistry) -> None:
    cache, wanted = BlobCache(tmp_path), registry.put(DATA)
    assert ask(cache, registry, wanted) == (DATA, Origin.NETWORK)
    assert ask(BlobCache(tmp_path), registry, wanted) == (DATA, Origin.CACHE)
    assert registry.gets[wanted.digest] == 1
    final = cache.blob_path(wanted.digest)
    assert stat.S_IMODE(final.stat().st_mode) == 0o444
    assert files(tmp_path) == {"oci-layout", "index.json", f"blobs/sha256/{final.name}"}


def test_an_empty_blob_needs_no_request(tmp_path: Path) -> None:
    sink = BytesIO()
    assert BlobCache(tmp_path).ensure(described(b""), never, sink) is Origin.NETWORK
    assert sink.getvalue() == b""


def test_a_hit_stamps_the_file_as_used(tmp_path: Path, registry: GatedRegistry) -> None:
    cache, wanted = BlobCache(tmp_path), registry.put(DATA)
    ask(cache, registry, wanted)
    path = cache.blob_path(wanted.digest)
    os.utime(path, (1000, 1000))
    cache.ensure(wanted, never, BytesIO())
    assert path.stat().st_mtime > 1000


def test_rule_1_24_processes_one_download(tmp_path: Path, registry: GatedRegistry) -> None:
    wanted = registry.put(os.urandom(16 * MIB))
    barrier = CONTEXT.Barrier(24)
    running = [in_process(cache_workers.pull, registry.host, tmp_path, [wanted], barrier) for _ in range(24)]
    origins = [report.recv()[0] for _, report in running]
    for process, _ in running:
        process.join()
    assert sorted(origins) == ["cache"] * 23 + ["network"]
    assert registry.gets == {wanted.digest: 1}
    assert registry.sent == wanted.size
    assert not list((tmp_path / "ingest").iterdir())


@pytest.mark.slow
def test_rule_1_500_pulls_over_3_caches(tmp_path: Path, registry: GatedRegistry) -> None:
    wanted = [registry.put(os.urandom(size)) for size in (300, 3000, MIB)]
    roots = [tmp_path / f"node{number}" for number in range(3)]
    running = [
        in_process(cache_workers.pull_often, registry.host, roots[n % 3 :] + roots[: n % 3], wanted, 50)
        for n in range(10)
    ]
    assert sum(report.recv() for _, report in running) == 500
    for process, _ in running:
        process.join()
    assert registry.gets == {one.digest: 3 for one in wanted}


def test_rule_3_a_killed_download_is_gone_on_with(tmp_path: Path, registry: GatedRegistry) -> None:
    wanted = registry.put(os.urandom(4 * MIB))
    registry.hold_after = 2 * MIB
    process, steps = in_process(cache_workers.pull_telling, registry.host, tmp_path, wanted)
    while (done := steps.recv()) < MIB:
        pass
    process.kill()
    process.join()
    registry.hold_after = None
    assert files(tmp_path) == {"oci-layout", "index.json", f"ingest/{wanted.digest[7:]}"}
    content, origin = ask(BlobCache(tmp_path), registry, wanted)
    assert (digest_of(content), origin) == (wanted.digest, Origin.NETWORK)
    begun = int(str(registry.ranges[1]).removeprefix("bytes=").removesuffix("-"))
    assert MIB <= done <= begun <= 2 * MIB
    assert registry.gets[wanted.digest] == 2


def test_rule_3_a_broken_connection_is_gone_on_with(tmp_path: Path) -> None:
    with HostileRegistry(blob="cut") as hostile:
        hostile.blobs[digest_of(DATA)] = DATA
        assert ask(BlobCache(tmp_path), hostile, described())[0] == DATA
        assert [seen.headers.get("range") for seen in hostile.requests("GET")] == [None, f"bytes={len(DATA) // 2}-"]


@pytest.mark.parametrize("partial", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1), DATA[:-1] + b"!"])
def test_rule_3_a_poisoned_beginning_is_fetched_anew(tmp_path: Path, registry: GatedRegistry, partial: bytes) -> None:
    cache, wanted = BlobCache(tmp_path), registry.put(DATA)
    (tmp_path / "ingest" / wanted.digest[7:]).write_bytes(partial)
    assert ask(cache, registry, wanted) == (DATA, Origin.NETWORK)
    assert ask(cache, registry, wanted) == (DATA, Origin.CACHE)


def test_rule_3_a_whole_but_unnamed_download_needs_no_request(tmp_path: Path) -> None:
    cache, wanted = BlobCache(tmp_path), described()
    ingest = tmp_path / "ingest" / wanted.digest[7:]
    ingest.write_bytes(DATA)
    sink = BytesIO()
    assert cache.ensure(wanted, never, sink) is Origin.NETWORK
    assert sink.getvalue() == DATA


@pytest.mark.parametrize("poison", [b"", b"evil", DATA[:-1] + b"!", DATA + b"!", DATA[:-1]])
def test_rule_4_a_poisoned_file_is_replaced(tmp_path: Path, registry: GatedRegistry, poison: bytes) -> None:
    cache, wanted = BlobCache(tmp_path), registry.put(DATA)
    cache.blob_path(wanted.digest).write_bytes(poison)
    assert ask(cache, registry, wanted) == (DATA, Origin.NETWORK)
    assert cache.blob_path(wanted.digest).read_bytes() == DATA
    assert registry.gets[wanted.digest] == 1


def test_rule_4_a_file_that_is_a_symlink_is_not_followed(tmp_path: Path, registry: GatedRegistry) -> None:
    cache, wanted = BlobCache(tmp_path / "cache"), registry.put(DATA)
    (tmp_path / "elsewhere").write_bytes(DATA)
    cache.blob_path(wanted.digest).symlink_to(tmp_path / "elsewhere")
    assert (
        str(cache.blob_path(wanted.digest))
        in refused(Reason.StorageFailed, lambda: ask(cache, registry, wanted)).message
    )


def test_a_wrong_descriptor_harms_no_file(tmp_path: Path, registry: GatedRegistry) -> None:
    cache, wanted = BlobCache(tmp_path), registry.put(DATA)
    ask(cache, registry, wanted)
    for size in (len(DATA) - 1, len(DATA) + 1):
        wrong = wanted.model_copy(update={"size": size})
        refused(Reason.SizeMismatch, functools.partial(ask, cache, registry, wrong))
    cache.ensure(wanted, never, BytesIO())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tamper", Reason.DigestMismatch),
        ("short", Reason.SizeMismatch),
        ("long", Reason.SizeMismatch),
        ("endless", Reason.SizeMismatch),
    ],
)
def test_rule_2_wrong_content_leaves_nothing(tmp_path: Path, kind: str, reason: Reason) -> None:
    with HostileRegistry(blob=kind) as hostile:
        hostile.blobs[digest_of(DATA)] = DATA
        refused(reason, lambda: ask(BlobCache(tmp_path), hostile, described()))
    assert files(tmp_path) == {"oci-layout", "index.json"}


# ---- rule 5: where it cannot write -----------------------------------------------------------------------


def read_only(root: Path, mode: int = 0o555) -> None:
    for folder in (root, *(p for p in root.rglob("*") if p.is_dir())):
        folder.chmod(mode)


@pytest.mark.parametrize("poisoned", [False, True])
def test_rule_5_a_cache_that_can_only_be_read(open_folder: Path, registry: GatedRegistry, poisoned: bool) -> None:
    root = open_folder / "cache"
    cache = BlobCache(root)
    present, absent = registry.put(DATA), registry.put(DATA[::-1])
    ask(cache, registry, present)
    if poisoned:
        cache.blob_path(present.digest).chmod(0o644)
        cache.blob_path(present.digest).write_bytes(DATA[:-1] + b"!")
    before = files(root)
    read_only(root)
    try:
        process, report = in_process(cache_workers.pull_as_nobody, registry.host, root, [present, absent])
        assert report.recv() == ["past" if poisoned else "cache", "past"]
        process.join()
    finally:
        read_only(root, 0o755)
    assert files(root) == before
    assert registry.gets == {present.digest: 1 + poisoned, absent.digest: 1}


def test_rule_5_a_cache_that_does_not_exist_and_cannot_be_made(open_folder: Path, registry: GatedRegistry) -> None:
    wanted = registry.put(DATA)
    open_folder.chmod(0o555)
    process, report = in_process(cache_workers.pull_as_nobody, registry.host, open_folder / "cache", [wanted])
    assert report.recv() == ["past"]
    process.join()


def test_rule_5_a_full_disk_tears_nothing(tmp_path: Path, registry: GatedRegistry) -> None:
    BlobCache(tmp_path)
    wanted = registry.put(DATA)
    process, report = in_process(cache_workers.pull_on_a_full_disk, registry.host, tmp_path, wanted, MIB // 2)
    reason, message = report.recv()
    process.join()
    assert reason == "StorageFailed"
    assert "ingest" in message
    assert files(tmp_path) == {"oci-layout", "index.json"}
    assert ask(BlobCache(tmp_path), registry, wanted) == (DATA, Origin.NETWORK)


def test_rule_5_too_little_space_is_known_before(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, spare_bytes=2**60)
    said = refused(Reason.StorageFailed, lambda: cache.ensure(described(), never, BytesIO()))
    assert "gc" in said.next_step


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(Reason.StorageFailed, lambda: BlobCache(tmp_path / "file"))


# ---- documents -------------------------------------------------------------------------------------------


def test_documents_are_kept_and_replaced_when_wrong(tmp_path: Path) -> None:
    cache, raw = BlobCache(tmp_path), b'{"schemaVersion":2}'
    digest = digest_of(raw)
    assert cache.ensure_bytes(digest, lambda: raw, 100) == (raw, Origin.NETWORK)
    assert cache.ensure_bytes(digest, lambda: b"", 100) == (raw, Origin.CACHE)
    cache.blob_path(digest).chmod(0o644)
    cache.blob_path(digest).write_bytes(b"evil")
    assert cache.ensure_bytes(digest, lambda: raw, 100) == (raw, Origin.NETWORK)
    refused(Reason.TooLarge, lambda: cache.ensure_bytes(digest, lambda: raw, 5))


def test_a_failed_fetch_leaves_no_lock_held(tmp_path: Path, registry: GatedRegistry) -> None:
    cache, wanted = BlobCache(tmp_path), described(b"nobody has it")

    def fail(_wanted: Descriptor, _receiver: BlobReceiver) -> None:
        raise PipelineError(Reason.RegistryUnreachable, "down", "wait")

    refused(Reason.RegistryUnreachable, lambda: cache.ensure(wanted, fail, BytesIO()))
    refused(Reason.ReferenceNotFound, lambda: ask(cache, registry, wanted))
