# SPDX-License-Identifier: Apache-2.0
"""What `gc` removes from a cache, and what it never does."""

import fcntl
import os
import tempfile
import time
from io import BytesIO
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_pipeline import api
from firmware_pipeline.artifact import chips
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cache_gc import Disk, Entry, Limits, collect, plan
from firmware_pipeline.errors import Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import INDEX_TYPE, Descriptor, Index, to_json
from firmware_pipeline.store import BlobReceiver
from tests.unit.firmware.artifacts import SIGNER, TRUSTED, push_to
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import digest_of

HOUR, DAY = 3600.0, 86400.0
NOTHING = Limits(max_bytes=0)
ENTRIES = st.lists(
    st.builds(Entry, st.integers(0, 40).map(lambda n: f"sha256:{n:064x}"), st.integers(0, 100), st.floats(0, 2 * HOUR)),
    unique_by=lambda entry: entry.digest,
)


@given(ENTRIES, st.sets(st.integers(0, 40)), st.integers(0, 2000), st.floats(0, 1), st.integers(0, 1000))
def test_rules_1_to_3_of_the_plan(
    entries: list[Entry], numbers: set[int], max_bytes: int, max_disk: float, used: int
) -> None:
    kept = frozenset(f"sha256:{number:064x}" for number in numbers)
    limits, now = Limits(max_bytes=max_bytes, max_disk=max_disk), 2 * HOUR
    chosen = plan(entries, kept, Disk(1000, used), limits, now)
    assert not {entry.digest for entry in chosen} & kept
    assert all(now - entry.used >= HOUR for entry in chosen)
    free = [e for e in entries if e.digest not in kept and now - e.used >= HOUR]
    assert chosen == sorted(free, key=lambda e: (e.used, e.digest))[: len(chosen)], "longest unused first"

    def excess(without: list[Entry]) -> int:
        size = sum(e.size for e in without)
        return max(sum(e.size for e in entries) - size - max_bytes, used - size - int(1000 * max_disk))

    assert excess(chosen) <= 0 or len(chosen) == len(free)
    assert not chosen or excess(chosen[:-1]) > 0, "no more than needed"


def aged(cache: BlobCache, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*cache.root.glob("blobs/sha256/*"), *cache.root.glob("ingest/*"), *cache.root.glob("locks/*")):
        os.utime(path, (then, then))


def put(cache: BlobCache, data: bytes) -> Descriptor:
    digest = digest_of(data)
    cache.keep(digest, data)
    return Descriptor(media_type="x/y", digest=digest, size=len(data))


def test_rule_1_tagged_artifacts_stay_whole_with_their_signatures(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache")
    pushed = push_to(f"oci:{cache.root}:2.1.0", signer=SIGNER)
    loose = put(cache, b"nobody names it")
    aged(cache, 2 * DAY)
    done = collect(cache, NOTHING, time.time())
    assert done.removed == (loose.digest,)
    assert not done.satisfied
    store = LayoutStore(cache.root)
    found = api.verify(store, pushed.index_digest, TRUSTED)
    for chip in chips(found.index):
        for layer in api.open_chip(store, pushed.index_digest, chip).layers:
            api.read_layer(store, layer)


def test_forgetting_a_tag_lets_everything_go(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache")
    push_to(f"oci:{cache.root}:2.1.0", signer=SIGNER)
    aged(cache, 2 * HOUR)
    refused(Reason.ReferenceNotFound, lambda: collect(cache, NOTHING, time.time(), forget=["2.2.0"]))
    told = collect(cache, NOTHING, time.time(), forget=["2.1.0"], dry_run=True)
    assert LayoutStore(cache.root).tags()
    assert len(list(cache.root.glob("blobs/sha256/*"))) == len(told.removed)
    assert collect(cache, NOTHING, time.time(), forget=["2.1.0"]) == told
    assert not list(cache.root.glob("blobs/sha256/*"))
    assert LayoutStore(cache.root).entries() == []


def test_two_tags_share_what_they_share(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache")
    pushed = push_to(f"oci:{cache.root}:2.1.0", signer=SIGNER)
    store = LayoutStore(cache.root)
    index = store.get_manifest("2.1.0")
    store.put_manifest(index.raw, index.media_type, tag="stable")
    aged(cache, 2 * HOUR)
    assert collect(cache, NOTHING, time.time(), forget=["2.1.0"]).removed == ()
    assert set(store.tags().values()) >= {pushed.index_digest}
    api.verify(store, pushed.index_digest, TRUSTED)


def test_rule_2_what_was_used_within_the_hour_stays(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    old, used = put(cache, b"old"), put(cache, b"used")
    aged(cache, 2 * HOUR)
    cache.ensure(used, fail, BytesIO())
    assert collect(cache, NOTHING, time.time()).removed == (old.digest,)


def test_rule_3_the_longest_unused_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    made = [put(cache, bytes([n]) * 100) for n in range(4)]
    for age, one in enumerate(made):
        os.utime(cache.blob_path(one.digest), (1000 + age, 1000 + age))
    done = collect(cache, Limits(max_bytes=250, max_disk=1.0), time.time())
    assert done.removed == (made[0].digest, made[1].digest)
    assert (done.bytes_after, done.freed_bytes, done.satisfied) == (200, 200, True)


def test_rule_4_unfinished_downloads_go_after_a_day_unless_held(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    dead, held, fresh = (f"{n:064x}" for n in range(3))
    for name in (dead, held):
        (tmp_path / "ingest" / name).write_bytes(b"part")
    with cache.lock(dead, fcntl.LOCK_EX):
        pass
    (tmp_path / "blobs" / "sha256" / ".abc.123.part").write_bytes(b"torn")
    aged(cache, 2 * DAY)
    os.utime(tmp_path / "blobs" / "sha256" / ".abc.123.part", (1000, 1000))
    (tmp_path / "ingest" / fresh).write_bytes(b"part")
    with cache.lock(held, fcntl.LOCK_EX):
        done = collect(cache, Limits(max_disk=1.0), time.time())
    assert set(done.swept) == {dead, ".abc.123.part"}
    assert done.freed_bytes == 8
    assert {path.name for path in (tmp_path / "ingest").iterdir()} == {held, fresh}
    assert dead not in {path.name for path in (tmp_path / "locks").iterdir()}


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Whoever waited for a lock file that is gone by now takes the new one: two holders are impossible."""
    cache, name = BlobCache(tmp_path), "0" * 64
    with cache.lock(name, fcntl.LOCK_EX):
        (tmp_path / "locks" / name).unlink()
        with cache.lock(name, fcntl.LOCK_EX) as first, cache.lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB) as second:
            assert (first, second) == (True, False)


def test_rule_5_an_open_file_outlives_its_removal(tmp_path: Path) -> None:
    cache, data = BlobCache(tmp_path), os.urandom(1024 * 1024)
    wanted = put(cache, data)
    readers = [cache.open(wanted.digest) for _ in range(2)]
    aged(cache, 2 * HOUR)
    assert collect(cache, NOTHING, time.time()).removed == (wanted.digest,)
    for reader in readers:
        assert reader is not None
        with reader:
            assert reader.read() == data
    assert cache.open(wanted.digest) is None


def test_rule_5_a_running_download_is_not_touched(tmp_path: Path) -> None:
    cache, data = BlobCache(tmp_path), b"x" * 1000
    wanted = Descriptor(media_type="x/y", digest=digest_of(data), size=len(data))

    def fetch(_wanted: Descriptor, receiver: BlobReceiver) -> None:
        receiver.write(data[:500])
        aged(cache, 3 * DAY)
        assert collect(cache, NOTHING, time.time()).swept == ()
        receiver.write(data[500:])
        receiver.finish()

    sink = BytesIO()
    cache.ensure(wanted, fetch, sink)
    assert sink.getvalue() == data


def fail(_wanted: Descriptor, _receiver: BlobReceiver) -> None:
    raise AssertionError("nothing is to be fetched")


@given(st.binary(max_size=200))
@settings(max_examples=25, deadline=None)
def test_a_broken_entry_keeps_itself_and_breaks_nothing(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        keep_broken_entry(Path(folder), raw)


def keep_broken_entry(root: Path, raw: bytes) -> None:
    cache = BlobCache(root)
    wanted = put(cache, raw)
    entry = wanted.model_copy(update={"media_type": INDEX_TYPE})
    (root / "index.json").write_bytes(to_json(Index(schema_version=2, manifests=[entry])))
    aged(cache, 2 * HOUR)
    assert collect(cache, NOTHING, time.time()).removed == ()
