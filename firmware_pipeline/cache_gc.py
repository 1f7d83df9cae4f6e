# SPDX-License-Identifier: Apache-2.0
"""What of a node cache may go, and its removal. `plan` and `living` are pure; `collect` carries them out.

Rules:

1. Kept: all that a tagged entry of index.json reaches, and the signatures and other referrers of what is reached.
2. Young: what was used within the last hour is kept, too; somebody may be in the middle of a pull.
3. The rest goes, longest unused first, until the blobs hold at most `max_bytes` and the disk is filled to at most
   `max_disk`; no more than that.
4. Unfinished downloads and lock files go after a day, never one that a process holds.
5. Removal holds `locks/gc` exclusively, so no hit is between looking and opening; an open file outlives its removal.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_pipeline.cache import BlobCache
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import REF_NAME, SIGNATURE_TAG, LayoutStore, supports
from firmware_pipeline.oci import (
    DOCKER_INDEX_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    parse_document,
)
from firmware_pipeline.store import storage_failed

_HEX: Final = re.compile(r"^[0-9a-f]{64}\Z")
ReadManifest = Callable[[str], bytes | None]
"""A manifest's bytes by digest; None when it is not there or not right."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Attributes:
        max_bytes: of all blobs together.
        max_disk: share of the file system in use, by whomever.
        young_seconds: rule 2.
        stale_seconds: rule 4.
    """

    max_bytes: int = 2 * 1024**3
    max_disk: float = 0.8
    young_seconds: float = 3600
    stale_seconds: float = 86400


@dataclass(frozen=True, slots=True)
class Entry:
    """One blob: digest, size (bytes), when it was last used (seconds since the epoch)."""

    digest: str
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system: bytes in all, bytes in use."""

    total: int
    used: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was done, or with dry_run what would be.

    Attributes:
        removed: blobs, in the order of removal.
        freed_bytes: by them, unfinished downloads included.
        swept: names of unfinished downloads.
        bytes_after: of the blobs that stay.
        satisfied: whether both limits hold now.
    """

    removed: tuple[str, ...]
    freed_bytes: int
    swept: tuple[str, ...]
    bytes_after: int
    satisfied: bool


def plan(entries: Sequence[Entry], kept: frozenset[str], disk: Disk, limits: Limits, now: float) -> list[Entry]:
    """What to remove, in order (rules 1 to 3)."""
    total = sum(entry.size for entry in entries)
    excess = max(total - limits.max_bytes, disk.used - int(disk.total * limits.max_disk))
    candidates = [e for e in entries if e.digest not in kept and now - e.used >= limits.young_seconds]
    chosen: list[Entry] = []
    for entry in sorted(candidates, key=lambda e: (e.used, e.digest)):
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.size
    return chosen


def living(entries: Iterable[Descriptor], read: ReadManifest) -> tuple[frozenset[str], list[Descriptor]]:
    """(digests to keep, entries of index.json to keep) by rule 1.

    An entry without a tag and without a subject was put there by somebody who meant it: it is kept, as a tag would be.
    """
    reached: set[str] = set()
    waiting: list[tuple[str, Descriptor]] = []
    kept: list[Descriptor] = []
    for entry in entries:
        if (subject := supports(entry, read)) is not None:
            waiting.append((subject, entry))
        else:
            kept.append(entry)
            _reach(entry, read, reached)
    while found := [pair for pair in waiting if pair[0] in reached]:
        waiting = [pair for pair in waiting if pair not in found]
        for _, entry in found:
            kept.append(entry)
            _reach(entry, read, reached)
    return frozenset(reached), kept


def collect(
    cache: BlobCache, limits: Limits, now: float, *, forget: Sequence[str] = (), dry_run: bool = False
) -> Collected:
    """Clean a cache up.

    Args:
        cache: the cache; must be writable.
        limits: when to stop.
        now: seconds since the epoch, by the clock that stamps the files.
        forget: tags that keep nothing any longer.
        dry_run: only tell.

    Raises:
        PipelineError: ReferenceNotFound for a tag that is not there; StorageFailed.
    """
    layout = LayoutStore(cache.root)
    tags = {tag for tag in layout.tags() if not SIGNATURE_TAG.match(tag)}
    unknown = sorted(set(forget) - tags)
    if unknown:
        raise PipelineError(
            Reason.ReferenceNotFound,
            f"The cache {cache.root} holds no tag {unknown[0]!r}; it has: {', '.join(sorted(tags)) or 'none'}.",
            "Name one of its tags.",
        )
    try:
        with cache.lock("gc", fcntl.LOCK_EX) as writable:
            if not writable:
                raise storage_failed(cache.root / "locks", PermissionError(0, "it cannot be written"))
            with layout.editing() as entries:
                remaining = [entry for entry in entries if entry.annotations.get(REF_NAME) not in forget]
                kept, alive = living(remaining, lambda digest: _read(layout, digest))
                if forget and not dry_run:
                    entries[:] = alive
            return _clean(cache, kept, limits, now, dry_run)
    except OSError as error:
        raise storage_failed(cache.root, error) from error


def _clean(cache: BlobCache, kept: frozenset[str], limits: Limits, now: float, dry_run: bool) -> Collected:
    entries, stray = _scan(cache.root / "blobs" / "sha256", limits, now)
    stale = [*stray, *_stale(cache, cache.root / "ingest", limits, now)]
    swept = [(path, size) for path, size in stale if dry_run or _remove(cache, path)]
    swept_bytes = sum(size for _, size in swept)
    space = os.statvfs(cache.root)
    used = (space.f_blocks - space.f_bavail) * space.f_frsize - (swept_bytes if dry_run else 0)
    disk = Disk(space.f_blocks * space.f_frsize, used)
    chosen = plan(entries, kept, disk, limits, now)
    if not dry_run:
        for entry in chosen:
            cache.blob_path(entry.digest).unlink(missing_ok=True)
        _sweep_locks(cache, limits, now)
    freed = sum(entry.size for entry in chosen)
    after = sum(entry.size for entry in entries) - freed
    return Collected(
        removed=tuple(entry.digest for entry in chosen),
        freed_bytes=freed + swept_bytes,
        swept=tuple(path.name for path, _ in swept),
        bytes_after=after,
        satisfied=after <= limits.max_bytes and disk.used - freed <= disk.total * limits.max_disk,
    )


# ---- reading -------------------------------------------------------------------------------------------


def _reach(entry: Descriptor, read: ReadManifest, reached: set[str]) -> None:
    """Add an entry and all below it; what is missing or broken ends there."""
    pending = [entry]
    while pending:
        one = pending.pop()
        if one.digest in reached:
            continue
        reached.add(one.digest)
        document = _document(one, read)
        if isinstance(document, Index):
            pending += document.manifests
        elif document is not None:
            pending += [document.config, *document.layers]


def _document(entry: Descriptor, read: ReadManifest) -> Index | Manifest | None:
    if entry.media_type not in MANIFEST_TYPES or (raw := read(entry.digest)) is None:
        return None
    with contextlib.suppress(PipelineError):
        if entry.media_type in (INDEX_TYPE, DOCKER_INDEX_TYPE):
            return parse_document(Index, raw, entry.digest)
        return parse_document(Manifest, raw, entry.digest)
    return None


def _read(layout: LayoutStore, digest: str) -> bytes | None:
    with contextlib.suppress(PipelineError):
        return layout.get_manifest(digest, max_bytes=MAX_MANIFEST_BYTES).raw
    return None


# ---- files ---------------------------------------------------------------------------------------------


def _scan(folder: Path, limits: Limits, now: float) -> tuple[list[Entry], list[tuple[Path, int]]]:
    """(blobs, files of writers that never finished, with their sizes)."""
    entries, stray = [], []
    with os.scandir(folder) as found:
        for item in found:
            state = item.stat(follow_symlinks=False)
            if _HEX.match(item.name):
                entries.append(Entry(f"sha256:{item.name}", state.st_size, state.st_mtime))
            elif item.is_file(follow_symlinks=False) and now - state.st_mtime >= limits.stale_seconds:
                stray.append((Path(item.path), state.st_size))
    return entries, stray


def _stale(cache: BlobCache, folder: Path, limits: Limits, now: float) -> list[tuple[Path, int]]:
    """Unfinished downloads that are old and held by nobody (rule 4)."""
    blobs, stray = _scan(folder, limits, now)
    found = list(stray)
    for entry in blobs:
        name = entry.digest.removeprefix("sha256:")
        if now - entry.used >= limits.stale_seconds:
            with cache.lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
                if free:
                    found.append((folder / name, entry.size))
    return found


def _remove(cache: BlobCache, path: Path) -> bool:
    """Remove one of those, unless somebody has taken it up meanwhile."""
    if not _HEX.match(path.name):
        path.unlink(missing_ok=True)
        return True
    with cache.lock(path.name, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
        if free:
            path.unlink(missing_ok=True)
        return free


def _sweep_locks(cache: BlobCache, limits: Limits, now: float) -> None:
    for path in (cache.root / "locks").iterdir():
        if _HEX.match(path.name) and now - path.stat().st_mtime >= limits.stale_seconds:
            with cache.lock(path.name, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
                if free:
                    path.unlink(missing_ok=True)
