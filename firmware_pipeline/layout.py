# SPDX-License-Identifier: Apache-2.0
"""An OCI image layout directory as an `ArtifactStore`: the same interface without a network.

Every byte is checked against its digest when it is read: a directory can be edited. Writers in several processes take
a lock on `index.json.lock`; readers need none, since files appear complete or not at all.

Blobs are not flushed to the disk before they appear: a power failure may spoil those written just before it. So whoever
reads one here, or opens a layout's files by itself, compares what it read with the digest; what is spoiled is refused, never
used, and comes again when its file is removed. `index.json`, which nothing is compared with, is flushed.

Source: OCI image specification 1.1, image-layout.md; tags are `org.opencontainers.image.ref.name` annotations.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from firmware_pipeline import referrers
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    canonical_json,
    check_digest,
    parse_document,
    sha256_digest,
    strict_json,
    to_json,
)
from firmware_pipeline.reference import LAYOUT_PREFIX, check_tag
from firmware_pipeline.store import (
    CHUNK_BYTES,
    ArtifactStore,
    Blob,
    BlobReceiver,
    Progress,
    RawManifest,
    Receiving,
    atomic_file,
    digest_mismatch,
    storage_failed,
)

REF_NAME: Final = "org.opencontainers.image.ref.name"
SIGNATURE_TAG: Final = re.compile(r"^sha256-([0-9a-f]{64})(\.[a-z]+)?\Z")
"""Tags that exist for another manifest, whose digest they name."""
MARKER: Final = canonical_json({"imageLayoutVersion": "1.0.0"})
"""Content of the file `oci-layout`."""
EMPTY_INDEX: Final = to_json(Index(schema_version=2, media_type=INDEX_TYPE, manifests=[]))
"""Content of an `index.json` that names nothing."""


def identified(raw: bytes, digest: str, place: str) -> RawManifest:
    """A manifest read from a file, where no header names its type: its own `mediaType`, or if that is left out its shape.

    Raises:
        PipelineError: MediaTypeUnsupported, ArtifactMalformed.
    """
    document = strict_json(raw, f"Manifest {digest}")
    shape = INDEX_TYPE if "manifests" in document else MANIFEST_TYPE if "layers" in document else ""
    media_type = document.get("mediaType", shape)
    if media_type not in MANIFEST_TYPES:
        raise PipelineError(
            Reason.MediaTypeUnsupported,
            f"{digest} in {place} has the type {str(media_type)[:100]!r}, not a manifest's.",
            "Name the digest of an index or manifest.",
        )
    return RawManifest(raw, media_type, digest)


def supports(entry: Descriptor, read: Callable[[str], bytes | None]) -> str | None:
    """The digest that an entry of index.json exists for: a signature's or another referrer's subject; else None.

    Args:
        entry: of index.json.
        read: a manifest's bytes by digest, or None.
    """
    if tag := entry.annotations.get(REF_NAME):
        match = SIGNATURE_TAG.match(tag)
        return f"sha256:{match[1]}" if match else None
    if (raw := read(entry.digest)) is not None:
        with contextlib.suppress(PipelineError):
            described = referrers.describe(raw, entry.media_type)
            return described[0] if described else None
    return None


class LayoutStore(Receiving):
    """One layout directory.

    Args:
        root: the directory.
        create: make an empty layout when there is none.

    Raises:
        PipelineError: ReferenceNotFound when it is no layout; StorageFailed.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self._root = root
        marker = root / "oci-layout"
        if not marker.is_file():
            if not create:
                raise PipelineError(
                    Reason.ReferenceNotFound,
                    f"{root} is not an OCI image layout: it holds no file `oci-layout`.",
                    "Name a directory made by `firmware-pipeline pack`.",
                )
            with atomic_file(marker) as sink:
                sink.write(MARKER)
        version = strict_json(self._read(marker, MAX_MANIFEST_BYTES), str(marker)).get("imageLayoutVersion")
        if version != "1.0.0":
            raise PipelineError(
                Reason.MediaTypeUnsupported,
                f"{root} is an OCI layout of version {version!r}; 1.0.0 is supported.",
                "Copy the artifact with a current tool.",
            )

    @property
    def name(self) -> str:
        return f"{LAYOUT_PREFIX}{self._root}"

    # ---- reading ---------------------------------------------------------------------------------------

    def get_manifest(self, selector: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> RawManifest:
        if not selector.startswith("sha256:"):
            selector = self._tagged(check_tag(selector))
        raw = self._read(self.blob_path(selector), max_bytes)
        if (actual := sha256_digest(raw)) != selector:
            raise digest_mismatch(selector, actual)
        return identified(raw, selector, str(self._root))

    def resolve(self, tag: str) -> str:
        return self.get_manifest(tag).digest

    def entries(self) -> list[Descriptor]:
        """What index.json names."""
        return self._index().manifests

    def tags(self) -> dict[str, str]:
        """Tag -> digest of every tagged entry."""
        return {name: m.digest for m in self._index().manifests if (name := m.annotations.get(REF_NAME))}

    def has_blob(self, digest: str, size: int) -> bool:
        try:
            return self.blob_path(digest).stat().st_size == size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_failed(self.blob_path(digest), error) from error

    def send_blob(self, descriptor: Descriptor, target: ArtifactStore, progress: Progress | None = None) -> None:
        """A blob to another place, which checks it on the way: a registry's client while it sends.

        Raises:
            PipelineError: ReferenceNotFound; SizeMismatch, DigestMismatch; as the target.
        """
        with self._open(self.blob_path(descriptor.digest)):
            blob = Blob(self.blob_path(descriptor.digest), descriptor.digest, descriptor.size)
            target.put_blob(blob, progress)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Manifests listed in index.json whose subject is `digest`, then those of the fallback tag."""
        found = []
        for entry in self._index().manifests:
            with contextlib.suppress(PipelineError):
                described = referrers.describe(self.get_manifest(entry.digest).raw, entry.media_type)
                if described and described[0] == digest:
                    found.append(described[1])
        return found or referrers.read_fallback_tag(self, digest)

    # ---- writing ---------------------------------------------------------------------------------------

    def put_blob(self, blob: Blob, progress: Progress | None = None) -> None:
        if not self.has_blob(blob.digest, blob.size):
            descriptor = Descriptor(media_type="application/octet-stream", digest=blob.digest, size=blob.size)
            with atomic_file(self.blob_path(blob.digest), durable=False) as sink:
                receiver = BlobReceiver(descriptor, sink, progress)
                for chunk in blob.chunks():
                    receiver.write(chunk)
                receiver.finish()
        elif progress:
            progress(blob.size, blob.size)

    def take_blob(self, descriptor: Descriptor, source: ArtifactStore, progress: Progress | None = None) -> None:
        """A blob from another place, checked on its way; it appears complete or not at all.

        Raises:
            PipelineError: StorageFailed; as the source.
        """
        with atomic_file(self.blob_path(descriptor.digest), durable=False) as sink:
            source.receive_blob(descriptor, BlobReceiver(descriptor, sink, progress))

    def put_manifest(self, raw: bytes, media_type: str, *, tag: str | None = None) -> str:
        """See ArtifactStore. Tagged manifests and those with a subject stand in index.json."""
        blob = Blob.of(raw)
        self.put_blob(blob)
        described = referrers.describe(raw, media_type)
        if tag or described:
            annotations = {REF_NAME: check_tag(tag)} if tag else {}
            self._enter(Descriptor(media_type=media_type, digest=blob.digest, size=blob.size, annotations=annotations))
        return blob.digest

    # ---- files -----------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self._root / "blobs" / "sha256" / check_digest(digest).removeprefix("sha256:")

    def _index(self) -> Index:
        path = self._root / "index.json"
        if not path.exists():
            return Index(schema_version=2, manifests=[])
        return parse_document(Index, self._read(path, MAX_MANIFEST_BYTES), str(path))

    def _tagged(self, tag: str) -> str:
        for entry in self._index().manifests:
            if entry.annotations.get(REF_NAME) == tag:
                return entry.digest
        raise PipelineError(
            Reason.ReferenceNotFound,
            f"The layout {self._root} holds no tag {tag!r}; it has: {', '.join(sorted(self.tags())) or 'none'}.",
            "Name one of its tags, or a digest.",
        )

    def _enter(self, entry: Descriptor) -> None:
        """Add or move one entry of index.json. Order is stable, so the same pushes give the same file."""
        tag = entry.annotations.get(REF_NAME)
        with self.editing() as entries:
            kept = [
                item
                for item in entries
                if item.annotations.get(REF_NAME) != tag or (not tag and item.digest != entry.digest)
            ]
            entries[:] = [*kept, entry]

    @contextlib.contextmanager
    def editing(self) -> Iterator[list[Descriptor]]:
        """The entries of index.json, to be changed in place while nobody else changes them; kept when they differ."""
        with self._locked():
            before = self._index().manifests
            entries = list(before)
            yield entries
            if entries == before:
                return
            entries.sort(key=lambda m: (m.annotations.get(REF_NAME, ""), m.digest))
            with atomic_file(self._root / "index.json") as sink:
                sink.write(to_json(Index(schema_version=2, media_type=INDEX_TYPE, manifests=entries)))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._root / "index.json.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_failed(path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self, path: Path, limit: int) -> bytes:
        with self._open(path) as stream:
            raw = stream.read(limit + 1)
        if len(raw) > limit:
            raise PipelineError(
                Reason.TooLarge, f"{path} is larger than the {limit} bytes allowed.", "This is not a firmware artifact."
            )
        return raw

    def receive_blob(self, descriptor: Descriptor, receiver: BlobReceiver) -> None:
        with self._open(self.blob_path(descriptor.digest)) as stream:
            stream.seek(receiver.received)
            while chunk := stream.read(CHUNK_BYTES):
                receiver.write(chunk)
        receiver.finish()

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        try:
            with path.open("rb") as stream:
                yield stream
        except FileNotFoundError as error:
            raise PipelineError(
                Reason.ReferenceNotFound,
                f"The layout {self._root} does not hold {path.name}.",
                "Check the digest; copy the layout again if it is incomplete.",
            ) from error
        except OSError as error:
            raise storage_failed(path, error) from error
