# SPDX-License-Identifier: Apache-2.0
"""The node cache: an OCI layout directory that processes share, where each digest is downloaded once.

    $ROOT/{oci-layout, index.json, blobs/sha256/<hex>, ingest/<hex>, locks/<hex>, locks/gc}

Rules (tests name them):

1. One download per digest, however many ask: whoever holds `locks/<hex>` downloads, the others wait and then find it.
2. A final file is whole: bytes go to `ingest/<hex>`, are compared with digest and size, flushed, made read-only, renamed.
3. A download that broke off, or whose process was killed, is gone on with by the next one: what is there is hashed again,
   the rest asked for by Range. A wrong beginning is thrown away and all of it fetched once more.
4. The disk is not trusted: what a hit delivers is hashed on its way out. A wrong file is removed and fetched once more.
5. A directory that cannot be written serves hits; misses are streamed past it. A full disk is StorageFailed, and known
   before the download where the file system tells.
6. A hit holds `locks/gc` shared while it opens and stamps the file; a file once open outlives its removal.

The cache is a plain layout: any OCI tool reads it, `LayoutStore` too. Locks are flock(2): local file systems and NFSv4.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import EMPTY_INDEX, MARKER
from firmware_pipeline.oci import Descriptor, check_digest
from firmware_pipeline.store import (
    CHUNK_BYTES,
    BlobReceiver,
    Progress,
    atomic_file,
    digest_of_file,
    storage_failed,
    sync_folder,
)

Fetch = Callable[[Descriptor, BlobReceiver], None]
"""Feeds a receiver from byte `receiver.received` on; `ArtifactStore.receive_blob` is one."""

STAMP_SECONDS: Final = 60
"""How precisely a file knows when it was last used."""
SPARE_BYTES: Final = 16 * 1024 * 1024
"""Left free on the disk by a download."""
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WRONG: Final = frozenset({Reason.DigestMismatch, Reason.SizeMismatch})
_TRIES: Final = 3


class Origin(StrEnum):
    """Where content came from."""

    CACHE = "cache"
    NETWORK = "network"
    """Downloaded, and now in the cache."""
    PAST = "past"
    """Streamed past a cache that cannot be written (rule 5)."""


class BlobCache:
    """One cache directory. Safe to use from several threads and processes.

    Args:
        root: the directory; made when it does not exist.
        spare_bytes: left free on the disk by a download.

    Raises:
        PipelineError: StorageFailed when it can neither be made nor used.
    """

    def __init__(self, root: Path, *, spare_bytes: int = SPARE_BYTES) -> None:
        self.root, self._spare = root, spare_bytes
        try:
            for folder in (root / "blobs" / "sha256", root / "ingest", root / "locks"):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for name, content in (("index.json", EMPTY_INDEX), ("oci-layout", MARKER)):
                if not (root / name).exists():
                    with atomic_file(root / name) as sink:
                        sink.write(content)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise storage_failed(root, error) from error
        except PipelineError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _READ_ONLY:
                raise

    def blob_path(self, digest: str) -> Path:
        """Where the content of `digest` is, if it is there."""
        return self.root / "blobs" / "sha256" / _hex(digest)

    def open(self, digest: str) -> BufferedReader | None:
        """The file of `digest`, stamped as used, or None. Its content is not checked: hash what you read.

        Raises:
            PipelineError: StorageFailed.
        """
        path = self.blob_path(digest)
        try:
            with self.lock("gc", fcntl.LOCK_SH):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                state = os.fstat(handle)
                if not stat.S_ISREG(state.st_mode):
                    os.close(handle)
                    raise storage_failed(path, OSError(errno.EINVAL, "it is not a plain file"))
                if time.time() - state.st_mtime > STAMP_SECONDS:
                    with contextlib.suppress(OSError):  # another's file, or a read-only mount: only gc wants it
                        os.utime(handle)
                return os.fdopen(handle, "rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(path, error) from error

    def ensure(self, descriptor: Descriptor, fetch: Fetch, sink: BinaryIO, progress: Progress | None = None) -> Origin:
        """Hand content to `sink`, from the cache or by way of it. Every byte is checked as it goes into `sink`.

        Args:
            descriptor: what is wanted.
            fetch: gets it when it is not there.
            sink: empty, readable, seekable; after an error what it holds is worth nothing.
            progress: called as progress(bytes done, bytes in total).

        Raises:
            PipelineError: DigestMismatch, SizeMismatch, StorageFailed; as `fetch`.
        """
        origin = Origin.CACHE
        for _ in range(_TRIES):
            receiver = BlobReceiver(descriptor, sink, progress if origin is Origin.CACHE else None)
            receiver.restart()
            if (stream := self.open(descriptor.digest)) is not None:
                with stream:
                    if self._delivered(stream, receiver, descriptor):
                        return origin
                    self.drop(descriptor.digest, stream)
                receiver.restart()
            with self.lock(_hex(descriptor.digest), fcntl.LOCK_EX) as writable:
                if not writable:
                    fetch(descriptor, BlobReceiver(descriptor, sink, progress))
                    return Origin.PAST
                if not self.blob_path(descriptor.digest).exists():
                    self._download(descriptor, fetch, progress)
                    origin = Origin.NETWORK
        raise storage_failed(
            self.blob_path(descriptor.digest), OSError(errno.EIO, "it is whole when written and wrong when read")
        )

    def ensure_bytes(self, digest: str, fetch: Callable[[], bytes], limit: int) -> tuple[bytes, Origin]:
        """The same for a document whose size nobody knows beforehand: a manifest asked for by digest.

        Args:
            digest: what is wanted.
            fetch: gets it, checked against `digest`.
            limit: bytes that are read at most.

        Raises:
            PipelineError: TooLarge, StorageFailed; as `fetch`.
        """
        if (found := self._whole(digest, limit)) is not None:
            return found, Origin.CACHE
        with self.lock(_hex(digest), fcntl.LOCK_EX) as writable:
            if writable and (found := self._whole(digest, limit)) is not None:
                return found, Origin.CACHE
            raw = fetch()
            if not writable:
                return raw, Origin.PAST
            self._keep(digest, raw)
            return raw, Origin.NETWORK

    def fill(self, digest: str, describe: Callable[[], Descriptor], fetch: Fetch) -> bool:
        """Download content unless it is there, and hand it to nobody; False where the cache cannot be written.

        Args:
            digest: what is wanted.
            describe: asks for its size; called only by whoever downloads (rule 1).
            fetch: gets it.

        Raises:
            PipelineError: DigestMismatch, SizeMismatch, StorageFailed; as `describe` and `fetch`.
        """
        with self.lock(_hex(digest), fcntl.LOCK_EX) as writable:
            if writable and not self.blob_path(digest).exists():
                self._download(describe(), fetch, None)
            return writable

    def keep(self, digest: str, raw: bytes) -> None:
        """Keep a small document that came checked; nothing happens where the cache cannot be written or has it."""
        if not self.blob_path(digest).exists():
            with self.lock(_hex(digest), fcntl.LOCK_EX) as writable:
                if writable:
                    self._keep(digest, raw)

    def drop(self, digest: str, stream: BufferedReader) -> None:
        """Remove the wrong file that `stream` reads, unless another process has replaced it already."""
        path = self.blob_path(digest)
        with self.lock(_hex(digest), fcntl.LOCK_EX) as writable:
            if not writable:
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                    path.unlink()

    @contextlib.contextmanager
    def lock(self, name: str, how: int) -> Iterator[bool]:
        """Hold `locks/<name>` by flock(2); yields False, holding nothing, where the cache cannot be written.

        With LOCK_NB also where somebody else holds it. A lock file may be removed by who holds it exclusively.

        Raises:
            PipelineError: StorageFailed.
        """
        path = self.root / "locks" / name
        handle = _flocked(path, how) if self._writable() else None
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def _writable(self) -> bool:
        """Whether files may come and go: a lock file of one's own can be opened also where nothing else can be done."""
        return all(
            os.access(folder, os.W_OK | os.X_OK) for folder in (self.root / "blobs" / "sha256", self.root / "ingest")
        )

    # ---- files -----------------------------------------------------------------------------------------

    def _download(self, descriptor: Descriptor, fetch: Fetch, progress: Progress | None) -> None:
        """Rules 2 and 3, under the digest's lock."""
        ingest, final = self.root / "ingest" / _hex(descriptor.digest), self.blob_path(descriptor.digest)
        try:
            self._require_space(descriptor, ingest)
            if self._receive(descriptor, fetch, progress, ingest) is not None:
                ingest.unlink(missing_ok=True)  # the beginning was wrong, the source need not be
                if (error := self._receive(descriptor, fetch, progress, ingest)) is not None:
                    ingest.unlink(missing_ok=True)
                    raise error
            ingest.rename(final)
            sync_folder(final.parent)
        except OSError as error:
            if error.errno in _FULL:
                with contextlib.suppress(OSError):
                    ingest.unlink()
            raise storage_failed(ingest, error) from error

    def _receive(
        self, descriptor: Descriptor, fetch: Fetch, progress: Progress | None, ingest: Path
    ) -> PipelineError | None:
        """Complete the ingest file. Returns why it is wrong if a beginning was there before; else raises that."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            handle = os.open(ingest, flags, 0o644)
        except PermissionError:  # killed between the last two steps, or another user's
            ingest.unlink()
            handle = os.open(ingest, flags, 0o644)
        with os.fdopen(handle, "r+b") as sink:
            receiver = BlobReceiver(descriptor, sink, progress)
            receiver.resume()
            begun = receiver.received
            try:
                if begun == descriptor.size:
                    receiver.finish()
                else:
                    fetch(descriptor, receiver)
            except PipelineError as error:
                if error.reason not in _WRONG:
                    raise
                sink.truncate(0)
                if begun:
                    return error
                ingest.unlink(missing_ok=True)
                raise
            sink.flush()
            os.fsync(handle)
            os.fchmod(handle, 0o444)
        return None

    def _delivered(self, stream: BufferedReader, receiver: BlobReceiver, descriptor: Descriptor) -> bool:
        """Rule 4. False when the file is not what its name says; raises when the descriptor's size is what is wrong."""
        try:
            while chunk := stream.read(CHUNK_BYTES):
                receiver.write(chunk)
            receiver.finish()
        except PipelineError as error:
            if error.reason is Reason.SizeMismatch and digest_of_file(stream) == descriptor.digest:
                raise
            if error.reason in _WRONG:
                return False
            raise
        except OSError as error:
            raise storage_failed(self.blob_path(descriptor.digest), error) from error
        return True

    def _whole(self, digest: str, limit: int) -> bytes | None:
        """A small file's content if it is there and right."""
        if (stream := self.open(digest)) is None:
            return None
        with stream:
            raw = stream.read(limit + 1)
            if len(raw) > limit:
                raise PipelineError(
                    Reason.TooLarge,
                    f"{self.blob_path(digest)} is larger than the {limit} bytes allowed here.",
                    "Check that the digest is that of a manifest.",
                )
            return raw if digest_of_file(stream) == digest else None

    def _keep(self, digest: str, raw: bytes) -> None:
        with atomic_file(self.blob_path(digest), mode=0o444) as sink:
            sink.write(raw)

    def _require_space(self, descriptor: Descriptor, ingest: Path) -> None:
        free = os.statvfs(self.root)
        present = ingest.stat().st_size if ingest.exists() else 0
        available, needed = free.f_bavail * free.f_frsize, descriptor.size - present + self._spare
        if available < needed:
            raise PipelineError(
                Reason.StorageFailed,
                f"{self.root}: {available} bytes are free, {needed} are needed for {descriptor.digest}.",
                f"Make room: firmware-pipeline gc {self.root}, or give the cache a larger disk.",
            )


def _hex(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")


def _flocked(path: Path, how: int) -> int | None:
    """A handle that holds the lock, or None; see `BlobCache.lock`."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno in _READ_ONLY or error.errno == errno.ENOENT:
                return None
            raise storage_failed(path, error) from error
        try:
            fcntl.flock(handle, how)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # removed by who held it before: take the new one
