# SPDX-License-Identifier: Apache-2.0
"""Copy manifests with everything they name and everything that refers to them; every digest stays.

Order: blobs, manifests below, the manifest itself, then its signatures and other referrers, and theirs. A tag is the
caller's to set, last. Every byte is checked against its digest by the store that it comes from.

Signatures that stand under a tag (`sha256-<hex>.sig`, and cosign's `.att` and `.sbom`) are joined with those that the
target has already: none is lost. What is attached and cannot be read is left behind.
"""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from firmware_pipeline.artifact import TITLE
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import (
    DOCKER_INDEX_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Index,
    Manifest,
    malformed,
    parse_document,
)
from firmware_pipeline.referrers import unusable_is_left
from firmware_pipeline.signing import formats
from firmware_pipeline.store import ArtifactStore, Blob, BlobReceiver, Progress, RawManifest, atomic_file
from firmware_pipeline.together import ask_together, asked_meanwhile, transfer_together

ATTACHED_TAGS: Final = (".sig", ".att", ".sbom")
MAX_DEPTH: Final = 3
"""An index, what refers to it, and what refers to that (the signature of an SBOM)."""
CopyProgress = Callable[[str, int, int], None]
"""Called as progress(what, bytes done, bytes in total)."""


@runtime_checkable
class Mounting(Protocol):
    """A store that can take a blob over from another repository of the same registry."""

    def mount_blob(self, descriptor: Descriptor, source: ArtifactStore) -> bool:
        """True when the blob is there now; False when it must be sent."""
        ...


@dataclass(frozen=True, slots=True)
class _Attached:
    """Tag -> manifest that stands there, and what lists of referrers name."""

    tags: dict[str, RawManifest]
    referrers: list[Descriptor]


class Copier:
    """Copies from one store to another; what was copied once is not looked at again.

    Args:
        source, target: may be the same place; then nothing but missing signatures is written.
        progress: called while blobs are sent.
    """

    def __init__(self, source: ArtifactStore, target: ArtifactStore, progress: CopyProgress | None = None) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._done: set[str] = set()
        self._counting = threading.Lock()
        self.sent_bytes = 0
        self.referrers: list[str] = []

    def copy(self, digest: str) -> RawManifest:
        """Copy a manifest or index, all below it, and all that refers to any of them.

        Raises:
            PipelineError: ArtifactMalformed for what is no manifest; as the stores.
        """
        names = [digest, *self._children(self._source.get_manifest(digest))]
        with asked_meanwhile(self._look, names) as answers:
            transfer_together(self._transfer, self._blobs(digest), self._say if self._progress else None)
            found = self._manifest(digest)
            for name, seen in zip(names, answers, strict=True):
                self._attached(name, seen, MAX_DEPTH)
        return found

    def _children(self, found: RawManifest) -> list[str]:
        if found.media_type not in (INDEX_TYPE, DOCKER_INDEX_TYPE):
            return []
        return [entry.digest for entry in parse_document(Index, found.raw, f"The index {found.digest}").manifests]

    def _manifest(self, digest: str, size: int | None = None, depth: int = MAX_DEPTH) -> RawManifest:
        found = self._source.get_manifest(digest)
        what = f"The manifest {digest}"
        if size is not None and size != len(found.raw):
            raise malformed(what, f"it has {len(found.raw)} bytes, {size} are named")
        if digest in self._done:
            return found
        if depth == 0:
            raise malformed(what, f"indexes are nested more than {MAX_DEPTH} deep")
        if found.media_type in (INDEX_TYPE, DOCKER_INDEX_TYPE):
            for entry in parse_document(Index, found.raw, what).manifests:
                self._manifest(entry.digest, entry.size, depth - 1)
        else:
            manifest = parse_document(Manifest, found.raw, what)
            for blob in (manifest.config, *manifest.layers):
                self._transfer(blob)
        self._target.put_manifest(found.raw, found.media_type)
        self._done.add(digest)
        return found

    def _blobs(self, digest: str) -> list[Descriptor]:
        """The distinct blobs of an index's manifests, or of a manifest; deeper ones come with their own."""
        found = self._source.get_manifest(digest)
        names = self._children(found)
        raws = ask_together(self._source.get_manifest, names) if names else [found]
        manifests = [
            parse_document(Manifest, raw.raw, f"The manifest {raw.digest}")
            for raw in raws
            if raw.media_type == MANIFEST_TYPE
        ]
        return list({blob.digest: blob for m in manifests for blob in (m.config, *m.layers)}.values())

    def _say(self, descriptor: Descriptor, done: int, total: int) -> None:
        if self._progress:
            self._progress(descriptor.annotations.get(TITLE, descriptor.digest), done, total)

    def _transfer(self, descriptor: Descriptor, update: Progress | None = None) -> None:
        """Copy one blob, unless the target has it or can take it over."""
        if descriptor.digest in self._done:
            return
        source, target = self._source, self._target
        if not target.has_blob(descriptor.digest, descriptor.size) and not (
            isinstance(target, Mounting) and target.mount_blob(descriptor, source)
        ):
            if isinstance(target, LayoutStore):
                target.take_blob(descriptor, source, update)
            elif isinstance(source, LayoutStore):
                source.send_blob(descriptor, target, update)
            else:
                with tempfile.TemporaryDirectory(prefix="firmware-pipeline-") as folder:
                    path = Path(folder) / "blob"
                    with atomic_file(path, durable=False) as sink:
                        source.receive_blob(descriptor, BlobReceiver(descriptor, sink))
                    target.put_blob(Blob(path, descriptor.digest, descriptor.size), update)
            with self._counting:
                self.sent_bytes += descriptor.size
        self._done.add(descriptor.digest)

    def _look(self, digest: str) -> _Attached:
        """What the source has that refers to a manifest."""
        tags = [digest.replace(":", "-") + suffix for suffix in ATTACHED_TAGS]
        found = {tag: manifest for tag in tags if (manifest := _find(self._source, tag)) is not None}
        return _Attached(found, self._source.referrers(digest))

    def _attached(self, digest: str, seen: _Attached, depth: int) -> None:
        for tag, manifest in seen.tags.items():
            with unusable_is_left():
                self._tagged(tag, manifest)
        for entry in seen.referrers:
            with unusable_is_left():
                self._referrer(entry.digest, digest, depth)

    def _referrer(self, digest: str, subject: str, depth: int) -> None:
        found = self._source.get_manifest(digest)
        if found.media_type != MANIFEST_TYPE or digest in self._done:
            return
        named = parse_document(Manifest, found.raw, f"The referrer {digest}").subject
        if named is None or named.digest != subject:
            return  # a list is only a hint
        self._manifest(digest)
        self.referrers.append(digest)
        if depth > 1:
            self._attached(digest, self._look(digest), depth - 1)

    def _tagged(self, tag: str, ours: RawManifest) -> None:
        """Copy a manifest of signatures under its tag; layers that only the target has stay."""
        theirs = _find(self._target, tag)
        if theirs is not None and theirs.digest == ours.digest:
            return
        self._manifest(ours.digest)
        raw = ours.raw
        if theirs is not None:
            wanted, present = (_layers(found) for found in (ours, theirs))
            # Two signers sign the same payload: their layers have one digest and differ in the annotation.
            raw, config = formats.simple_manifest([*present, *(layer for layer in wanted if layer not in present)])
            self._target.put_blob(Blob.of(config))
        self._target.put_manifest(raw, MANIFEST_TYPE, tag=tag)
        self.referrers.append(ours.digest)


def _find(store: ArtifactStore, tag: str) -> RawManifest | None:
    with unusable_is_left():
        return store.get_manifest(tag)
    return None


def _layers(found: RawManifest) -> list[Descriptor]:
    return parse_document(Manifest, found.raw, f"The signatures {found.digest}").layers
