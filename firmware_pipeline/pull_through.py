# SPDX-License-Identifier: Apache-2.0
"""A cache that fills itself: what a mirror is asked for and does not have comes from the registry it belongs to.

Rules (tests name them):

1. Only repositories that were named are asked: this is no proxy for whatever a client names. A digest is all that a client
   can choose, and only what its repository holds comes in.
2. One request for content per digest, however many clients wait (`BlobCache.fill`); it is compared with the digest, whole and
   on the disk, before anybody gets a byte of it.
3. The registry sees the credentials of this process; a client has none, and what it sends is not looked at.
4. Nothing larger than the largest flash chip is fetched.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from firmware_pipeline.cache import BlobCache, Origin
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import FLASH_SIZES
from firmware_pipeline.oci import MAX_MANIFEST_BYTES, Descriptor
from firmware_pipeline.store import BlobReceiver, RawManifest, too_large

MAX_BLOB_BYTES: Final = max(FLASH_SIZES.values())


class Source(Protocol):
    """A repository as it is asked here; `RegistryStore` is one."""

    def get_manifest(self, selector: str, *, max_bytes: int = ...) -> RawManifest: ...

    def blob_size(self, digest: str) -> int:
        """Bytes, as the registry says."""
        ...

    def receive_blob(self, descriptor: Descriptor, receiver: BlobReceiver) -> None: ...


class PullThrough:
    """Fetches into a cache.

    Args:
        sources: repository path, as clients name it -> where it is (rule 1).
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)

    def knows(self, name: str) -> bool:
        """Whether a repository was named."""
        return name in self._sources

    def fetch(self, cache: BlobCache, name: str, kind: str, digest: str) -> None:
        """Make `cache` hold a digest of a known repository.

        Args:
            kind: "manifests", else a blob.

        Raises:
            PipelineError: StorageFailed; TooLarge (rule 4); as the registry, ReferenceNotFound where it has no such content.
        """
        source = self._sources[name]

        def read() -> bytes:
            return source.get_manifest(digest, max_bytes=MAX_MANIFEST_BYTES).raw

        def describe() -> Descriptor:
            if (size := source.blob_size(digest)) > MAX_BLOB_BYTES:
                raise too_large(f"The blob {digest}", size, MAX_BLOB_BYTES)
            return Descriptor(media_type="application/octet-stream", digest=digest, size=size)

        if kind == "manifests":
            kept = cache.ensure_bytes(digest, read, MAX_MANIFEST_BYTES)[1] is not Origin.PAST
        else:
            kept = cache.fill(digest, describe, source.receive_blob)
        if not kept:
            raise PipelineError(
                Reason.StorageFailed,
                f"{cache.root} cannot be written, so nothing that it does not hold can be served.",
                "Give this process a cache of its own that it may write.",
            )
