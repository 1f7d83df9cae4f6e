# SPDX-License-Identifier: Apache-2.0
"""What a place that holds artifacts can do: one interface for registries and layout directories.

Whoever implements `ArtifactStore` checks every byte against digest and size before the caller sees it, so that
no code above has to. `BlobReceiver` is that check, written once.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import Descriptor, check_digest, sha256_digest

CHUNK_BYTES: Final = 256 * 1024
Progress = Callable[[int, int], None]
"""Called as progress(bytes done, bytes in total)."""


@dataclass(frozen=True, slots=True)
class RawManifest:
    """A manifest or index exactly as it was received; `digest` is that of `raw`."""

    raw: bytes
    media_type: str
    digest: str


@dataclass(frozen=True, slots=True)
class Blob:
    """Content to be stored: bytes or a file, with its digest and size (bytes)."""

    source: bytes | Path
    digest: str
    size: int

    @classmethod
    def of(cls, source: bytes | Path) -> "Blob":
        """Measure `source`; a file is read once, in pieces."""
        if isinstance(source, bytes):
            return cls(source, sha256_digest(source), len(source))
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(source, f"sha256:{digest}", stream.tell())

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces of at most `CHUNK_BYTES`."""
        if isinstance(self.source, bytes):
            for start in range(0, self.size, CHUNK_BYTES):
                yield self.source[start : start + CHUNK_BYTES]
            return
        with self.source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


class ArtifactStore(Protocol):
    """One repository of a registry, or one layout directory. Synchronous and safe to use from several threads.

    All methods raise PipelineError: ReferenceNotFound for absent content, DigestMismatch, SizeMismatch or TooLarge
    for wrong content, and the Registry* or StorageFailed reasons for trouble on the way.
    """

    @property
    def name(self) -> str:
        """The place without tag and digest, for people and for signatures' identity."""
        ...

    def get_manifest(self, selector: str, *, max_bytes: int = ...) -> RawManifest:
        """Fetch by digest (checked) or by tag (hashed)."""
        ...

    def resolve(self, tag: str) -> str:
        """The digest that a tag names now."""
        ...

    def has_blob(self, digest: str, size: int) -> bool: ...

    def read_blob(self, descriptor: Descriptor, *, max_bytes: int) -> bytes:
        """A small blob, in memory; refused when the descriptor names more than `max_bytes`."""
        ...

    def save_blob(self, descriptor: Descriptor, path: Path, progress: Progress | None = None) -> None:
        """A blob into `path`, which appears complete and checked, or not at all."""
        ...

    def receive_blob(self, descriptor: Descriptor, receiver: "BlobReceiver") -> None:
        """Feed `receiver` the blob from byte `receiver.received` on, and let it finish. After an error its sink holds
        a beginning, by which a later call can go on."""
        ...

    def put_blob(self, blob: Blob, progress: Progress | None = None) -> None:
        """Store content; nothing is sent when the place has it already."""
        ...

    def put_manifest(self, raw: bytes, media_type: str, *, tag: str | None = None) -> str:
        """Store these very bytes, under their digest or a tag; returns the digest. A manifest with a `subject`
        is listed by `referrers` afterwards, whatever the place supports."""
        ...

    def referrers(self, digest: str) -> list[Descriptor]:
        """Manifests that name `digest` as their subject. A hint: types and subjects must be checked by opening them."""
        ...


class BlobReceiver:
    """Counts and hashes content while it streams; never holds more than the descriptor allows.

    Args:
        descriptor: what the content must be.
        sink: where the bytes go; must support truncation for `restart`.
    """

    def __init__(self, descriptor: Descriptor, sink: BinaryIO, progress: Progress | None = None) -> None:
        check_digest(descriptor.digest)
        self._descriptor, self._sink, self._progress = descriptor, sink, progress
        self._hash = hashlib.sha256()
        self.received = 0

    def resume(self) -> None:
        """Take up what the sink holds already, hashed again; more than the descriptor allows is forgotten."""
        self._sink.seek(0)
        while chunk := self._sink.read(CHUNK_BYTES):
            if self.received + len(chunk) > self._descriptor.size:
                self.restart()
                return
            self._hash.update(chunk)
            self.received += len(chunk)

    def restart(self) -> None:
        """Forget what came so far."""
        self._hash = hashlib.sha256()
        self.received = 0
        self._sink.seek(0)
        self._sink.truncate()

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            PipelineError: SizeMismatch as soon as there is one byte too many.
        """
        if self.received + len(chunk) > self._descriptor.size:
            raise self.wrong_size("longer")
        self._hash.update(chunk)
        self._sink.write(chunk)
        self.received += len(chunk)
        if self._progress:
            self._progress(self.received, self._descriptor.size)

    def finish(self) -> None:
        """Compare size and digest.

        Raises:
            PipelineError: SizeMismatch, DigestMismatch.
        """
        if self.received != self._descriptor.size:
            raise self.wrong_size("shorter")
        actual = "sha256:" + self._hash.hexdigest()
        if actual != self._descriptor.digest:
            raise digest_mismatch(self._descriptor.digest, actual)

    def wrong_size(self, how: str) -> PipelineError:
        return PipelineError(
            Reason.SizeMismatch,
            f"The content named {self._descriptor.digest} is {how} than the {self._descriptor.size} bytes that the "
            "manifest names; it was damaged or replaced.",
            "Nothing was kept. Pull from another source, or push the artifact again.",
        )


class Receiving(Protocol):
    """The other two ways of reading a blob, for a place that can do `ArtifactStore.receive_blob`."""

    def receive_blob(self, descriptor: Descriptor, receiver: BlobReceiver) -> None: ...

    def read_blob(self, descriptor: Descriptor, *, max_bytes: int) -> bytes:
        """See ArtifactStore."""
        if descriptor.size > max_bytes:
            raise too_large(f"Content {descriptor.digest}", descriptor.size, max_bytes)
        sink = BytesIO()
        self.receive_blob(descriptor, BlobReceiver(descriptor, sink))
        return sink.getvalue()

    def save_blob(self, descriptor: Descriptor, path: Path, progress: Progress | None = None) -> None:
        """See ArtifactStore."""
        with atomic_file(path) as sink:
            self.receive_blob(descriptor, BlobReceiver(descriptor, sink, progress))


def digest_of_file(stream: BufferedReader) -> str:
    """The digest of a whole open file, whatever was read of it before. Raises OSError."""
    stream.seek(0)
    return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def digest_mismatch(expected: str, actual: str) -> PipelineError:
    return PipelineError(
        Reason.DigestMismatch,
        f"Asked for {expected}, but the bytes that came have the digest {actual}: they were damaged or replaced.",
        "Nothing was kept. Pull from another source, or push the artifact again.",
    )


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that appears at `path` complete, or not at all.

    Args:
        durable: on the disk before it appears, and its name when this returns. Without, a power failure may spoil what
            had just appeared: good enough for content that whoever reads it compares with its digest (`layout`).

    Raises:
        PipelineError: StorageFailed.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(handle, "w+b") as stream:
                yield stream
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_failed(path, error) from error


def sync_folder(folder: Path) -> None:
    """Flush a directory's entries to disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_failed(path: Path, error: OSError) -> PipelineError:
    return PipelineError(
        Reason.StorageFailed,
        f"{path}: {error.strerror or error}.",
        "Check that the folder exists, is yours to use, and that the disk is not full.",
    )


def too_large(what: str, size: int, limit: int) -> PipelineError:
    return PipelineError(
        Reason.TooLarge,
        f"{what} has at least {size} bytes, {limit} are allowed here.",
        "Check that the reference names a firmware artifact.",
    )
