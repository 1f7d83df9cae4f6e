# SPDX-License-Identifier: Apache-2.0
"""Stores in front of a store: a node cache, a mirror. Both are `ArtifactStore`s, so nobody above them sees a difference.

    store = CachedStore(MirroredStore(open_store(reference), mirror_store(url, reference)), BlobCache(root))

Rules:

1. What is asked for by digest comes from the nearest place that has it: cache, mirror, registry. Every place's bytes are
   checked alike; a mirror that is wrong, slow or gone costs time and nothing else.
2. What a tag means, who refers to a digest, and every write, go to the registry alone.
3. A mirror gets no credentials, and is asked over plain http where its URL says so.
"""

import contextlib
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from urllib.parse import urlsplit

from firmware_pipeline.cache import BlobCache, Origin
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.http_rules import ClientOptions, Limits
from firmware_pipeline.layout import identified
from firmware_pipeline.oci import MAX_MANIFEST_BYTES, Descriptor
from firmware_pipeline.reference import Reference, parse_reference
from firmware_pipeline.store import (
    CHUNK_BYTES,
    ArtifactStore,
    Blob,
    BlobReceiver,
    Progress,
    RawManifest,
    atomic_file,
    too_large,
)

MIRROR_LIMITS: Final = Limits(connect_seconds=1.0, read_seconds=10.0, attempts=1)
_WRONG: Final = frozenset({Reason.DigestMismatch, Reason.SizeMismatch})
_OURS: Final = frozenset({Reason.StorageFailed})
T = TypeVar("T")


@dataclass
class Traffic:
    """What one process fetched. Bytes are those of content, headers apart; requests are what was asked beyond the cache,
    logins and repetitions apart; layers are blobs of any kind."""

    bytes_network: int = 0
    bytes_cache: int = 0
    requests: int = 0
    layers_fetched: int = 0
    layers_hit: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def dump(self) -> dict[str, int]:
        """For people and logs."""
        return {
            "bytesNetwork": self.bytes_network,
            "bytesCache": self.bytes_cache,
            "requests": self.requests,
            "layersFetched": self.layers_fetched,
            "layersHit": self.layers_hit,
        }


class _InFront:
    """What every store in front of another one leaves to it (rule 2)."""

    def __init__(self, behind: ArtifactStore) -> None:
        self._behind = behind

    @property
    def name(self) -> str:
        return self._behind.name

    def resolve(self, tag: str) -> str:
        return self.get_manifest(tag).digest

    def get_manifest(self, selector: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> RawManifest:
        return self._behind.get_manifest(selector, max_bytes=max_bytes)

    def has_blob(self, digest: str, size: int) -> bool:
        return self._behind.has_blob(digest, size)

    def put_blob(self, blob: Blob, progress: Progress | None = None) -> None:
        self._behind.put_blob(blob, progress)

    def put_manifest(self, raw: bytes, media_type: str, *, tag: str | None = None) -> str:
        return self._behind.put_manifest(raw, media_type, tag=tag)

    def referrers(self, digest: str) -> list[Descriptor]:
        return self._behind.referrers(digest)


class CachedStore(_InFront):
    """A store whose content by digest is kept in a node cache.

    Args:
        behind: where a miss is fetched.
        cache: the node cache.
        traffic: counts what was fetched and what was not.
        note: told once, in a sentence, that the cache cannot be written.
    """

    def __init__(
        self,
        behind: ArtifactStore,
        cache: BlobCache,
        traffic: Traffic | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(behind)
        self._cache, self._note = cache, note
        self.traffic = traffic or Traffic()

    def get_manifest(self, selector: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> RawManifest:
        if not selector.startswith("sha256:"):
            self.traffic.add(requests=1)
            found = self._behind.get_manifest(selector, max_bytes=max_bytes)
            self.traffic.add(bytes_network=len(found.raw))
            self._cache.keep(found.digest, found.raw)
            return found
        raw, origin = self._cache.ensure_bytes(
            selector, lambda: self._behind.get_manifest(selector, max_bytes=max_bytes).raw, max_bytes
        )
        hit = origin is Origin.CACHE
        self.traffic.add(requests=int(not hit), **{"bytes_cache" if hit else "bytes_network": len(raw)})
        self._say(origin)
        return identified(raw, selector, self.name)

    def has_blob(self, digest: str, size: int) -> bool:
        with contextlib.suppress(OSError):
            if self._cache.blob_path(digest).stat().st_size == size:
                return True
        return self._behind.has_blob(digest, size)

    def referrers(self, digest: str) -> list[Descriptor]:
        self.traffic.add(requests=1)
        return self._behind.referrers(digest)

    def read_blob(self, descriptor: Descriptor, *, max_bytes: int) -> bytes:
        if descriptor.size > max_bytes:
            raise too_large(f"Content {descriptor.digest}", descriptor.size, max_bytes)
        sink = BytesIO()
        self._ensure(descriptor, sink, None)
        return sink.getvalue()

    def save_blob(self, descriptor: Descriptor, path: Path, progress: Progress | None = None) -> None:
        with atomic_file(path) as sink:
            self._ensure(descriptor, sink, progress)

    def receive_blob(self, descriptor: Descriptor, receiver: BlobReceiver) -> None:
        with tempfile.TemporaryFile() as sink:
            self._ensure(descriptor, sink, None)
            sink.seek(receiver.received)
            while chunk := sink.read(CHUNK_BYTES):
                receiver.write(chunk)
        receiver.finish()

    def _ensure(self, descriptor: Descriptor, sink: BinaryIO, progress: Progress | None) -> None:
        def fetch(wanted: Descriptor, receiver: BlobReceiver) -> None:
            before = receiver.received
            self.traffic.add(requests=1)
            try:
                self._behind.receive_blob(wanted, receiver)
            finally:
                self.traffic.add(bytes_network=max(receiver.received - before, 0))

        origin = self._cache.ensure(descriptor, fetch, sink, progress)
        if origin is Origin.CACHE:
            self.traffic.add(layers_hit=1, bytes_cache=descriptor.size)
        else:
            self.traffic.add(layers_fetched=1)
        self._say(origin)

    def _say(self, origin: Origin) -> None:
        if origin is Origin.PAST and self._note is not None:
            note, self._note = self._note, None
            note(f"The cache {self._cache.root} cannot be written here: what it does not hold is fetched past it.")


class MirroredStore(_InFront):
    """A store whose content by digest is asked of a mirror first.

    Args:
        behind: the registry.
        mirror: the same content by digest, trusted in nothing.
    """

    def __init__(self, behind: ArtifactStore, mirror: ArtifactStore) -> None:
        super().__init__(behind)
        self._mirror = mirror

    def get_manifest(self, selector: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> RawManifest:
        if not selector.startswith("sha256:"):
            return self._behind.get_manifest(selector, max_bytes=max_bytes)
        return self._first(lambda store: store.get_manifest(selector, max_bytes=max_bytes))

    def read_blob(self, descriptor: Descriptor, *, max_bytes: int) -> bytes:
        return self._first(lambda store: store.read_blob(descriptor, max_bytes=max_bytes))

    def save_blob(self, descriptor: Descriptor, path: Path, progress: Progress | None = None) -> None:
        self._first(lambda store: store.save_blob(descriptor, path, progress))

    def receive_blob(self, descriptor: Descriptor, receiver: BlobReceiver) -> None:
        before = receiver.received
        try:
            self._mirror.receive_blob(descriptor, receiver)
        except PipelineError as error:
            if error.reason in _OURS:
                raise
            if receiver.received != before or error.reason in _WRONG:
                receiver.restart()  # nothing of a mirror that failed is gone on with
            self._behind.receive_blob(descriptor, receiver)

    def _first(self, ask: Callable[[ArtifactStore], T]) -> T:
        try:
            return ask(self._mirror)
        except PipelineError as error:
            if error.reason in _OURS:
                raise
            return ask(self._behind)


def mirror_store(url: str, reference: Reference | str) -> ArtifactStore:
    """The mirror at `url` as the repository that a reference names (rule 3).

    Raises:
        PipelineError: ReferenceMalformed when it is no http or https URL of a host alone.
    """
    parts = urlsplit(url)
    where = parse_reference(reference) if isinstance(reference, str) else reference
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.username or parts.path.strip("/"):
        raise PipelineError(
            Reason.ReferenceMalformed,
            f"{url[:200]!r} is not the URL of a mirror.",
            "Write http://HOST:PORT or https://HOST:PORT, as `firmware-pipeline serve` prints it.",
        )
    from firmware_pipeline.registry import RegistryStore  # takes 0.3 s to import

    at = parse_reference(f"{parts.netloc}/{where.path}")
    store: ArtifactStore = RegistryStore(at, ClientOptions(plain_http=parts.scheme == "http", limits=MIRROR_LIMITS))
    return store
