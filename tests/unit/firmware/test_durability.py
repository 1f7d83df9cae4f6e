# SPDX-License-Identifier: Apache-2.0
"""What a power failure may take: nothing that somebody finds by its name and trusts to be there."""

import os
from io import BytesIO
from pathlib import Path

import pytest

from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore
from firmware_pipeline.errors import Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import Descriptor
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused


class Disk:
    """Remembers which inodes were flushed, and what they were called then; the kernel is asked as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: dict[tuple[int, int], list[str]] = {}
        flush = os.fsync

        def recorded(handle: int) -> None:
            state = os.fstat(handle)
            self.flushed.setdefault((state.st_dev, state.st_ino), []).append(os.readlink(f"/proc/self/fd/{handle}"))
            flush(handle)

        monkeypatch.setattr(os, "fsync", recorded)

    def names(self, path: Path) -> list[str]:
        """What the file or folder at `path` was called whenever it was flushed."""
        state = path.stat()
        return self.flushed.get((state.st_dev, state.st_ino), [])


@pytest.fixture
def layout(tmp_path: Path) -> str:
    where = f"oci:{tmp_path}/layout:1"
    api.push([builds.plan(tmp_path)], where, signer=None, release=None)
    return where


@pytest.fixture
def disk(layout: str, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("cached", [False, True])
def test_what_pull_leaves_was_flushed_before_it_had_its_name(
    tmp_path: Path, layout: str, disk: Disk, cached: bool
) -> None:
    store = api.open_store(layout)
    near = CachedStore(store, BlobCache(tmp_path / "cache")) if cached else store
    pulled = api.pull(layout, "esp32c3", tmp_path / "out", keys=None, store=near)
    assert len(pulled.files) > 3
    for path in pulled.files:
        assert disk.names(path), path
        assert str(path) not in disk.names(path)
        assert str(path.parent) in disk.names(path.parent)


def test_what_a_cache_keeps_was_flushed(tmp_path: Path, layout: str, disk: Disk) -> None:
    cache, store = BlobCache(tmp_path / "cache"), api.open_store(layout)
    near = CachedStore(store, cache)
    api.open_index(near, store.resolve("1"))
    chip = api.open_chip(near, store.resolve("1"), "esp32c3")
    cache.ensure(chip.app.descriptor, store.receive_blob, BytesIO())
    kept = list((tmp_path / "cache/blobs/sha256").iterdir())
    assert len(kept) == 4  # index, manifest, config, application
    assert all(disk.names(path) for path in [*kept, *(tmp_path / "cache").glob("*.json")])
    assert disk.names(tmp_path / "cache/blobs/sha256")


def test_a_layouts_blobs_need_not_be_and_a_spoiled_one_is_refused(tmp_path: Path, layout: str, disk: Disk) -> None:
    copied = api.copy(layout, f"oci:{tmp_path}/copy:1")
    store = LayoutStore(tmp_path / "copy")
    assert disk.names(tmp_path / "copy/index.json")
    app = api.open_chip(store, str(copied.reference.digest), "esp32c3").app.descriptor
    path = store.blob_path(app.digest)
    assert not disk.names(path)
    path.write_bytes(bytes(app.size))
    for read in (
        lambda: store.read_blob(app, max_bytes=app.size),
        lambda: store.save_blob(app, tmp_path / "file"),
        lambda: api.copy(f"oci:{tmp_path}/copy:1", f"oci:{tmp_path}/other:1"),
    ):
        refused(Reason.DigestMismatch, read)
    assert not (tmp_path / "file").exists()
    path.unlink()
    api.copy(layout, f"oci:{tmp_path}/copy:1")
    store.read_blob(Descriptor(media_type="x/y", digest=app.digest, size=app.size), max_bytes=app.size)
