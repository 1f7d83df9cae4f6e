# SPDX-License-Identifier: Apache-2.0
"""Artifacts in one file for sites without a network: an OCI image layout as a plain tar archive.

Rules (tests name them):

1. An archive holds the chosen artifacts with their signatures and everything else that refers to them. The same artifacts
   give the same bytes: uncompressed ustar, sorted, no times, no names of users.
2. Reading is strict: plain files and folders of a layout alone, by their exact names, each once; links, devices, other
   paths, compression, and whatever is beyond the limits are refused before anything leaves the staging folder.
3. Every blob is compared with its name, every artifact read to its last byte, before its tag is set at the destination.
"""

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final

from firmware_pipeline.copying import Copier, CopyProgress
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import REF_NAME, LayoutStore, supports
from firmware_pipeline.oci import MAX_MANIFEST_BYTES, Descriptor
from firmware_pipeline.store import CHUNK_BYTES, ArtifactStore, BlobReceiver, atomic_file, storage_failed

_BLOB: Final = re.compile(r"^blobs/sha256/([0-9a-f]{64})\Z")
_DOCUMENTS: Final = ("oci-layout", "index.json")
_FOLDERS: Final = ("", ".", "blobs", "blobs/sha256")
_MAX_HEADER: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chosen:
    """One artifact to be exported, and the tag it gets in the archive."""

    store: ArtifactStore
    digest: str
    tag: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold at most."""

    files: int = 20_000
    blob_bytes: int = 1024**3
    total_bytes: int = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Imported:
    """One artifact that came out of an archive."""

    digest: str
    tag: str | None


def export(chosen: Sequence[Chosen], output: Path, progress: CopyProgress | None = None) -> int:
    """Write an archive (rule 1). Returns its size in bytes.

    Raises:
        PipelineError: ReferenceMalformed when two artifacts want one tag; StorageFailed; as the stores.
    """
    tags: dict[str, str] = {}
    for one in chosen:
        if tags.setdefault(one.tag, one.digest) != one.digest:
            raise PipelineError(
                Reason.ReferenceMalformed,
                f"Two artifacts would have the tag {one.tag!r} in one archive: {tags[one.tag]} and {one.digest}.",
                "Export them into two archives.",
            )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
            layout = LayoutStore(Path(folder), create=True)
            for one in chosen:
                found = Copier(one.store, layout, progress).copy(one.digest)
                layout.put_manifest(found.raw, found.media_type, tag=one.tag)
            with atomic_file(output) as sink:
                _write(Path(folder), sink)
                return sink.tell()
    except OSError as error:
        raise storage_failed(output, error) from error


def load(
    source: Path, target: ArtifactStore, progress: CopyProgress | None = None, limits: Limits = Limits()
) -> list[Imported]:
    """Read an archive or a layout directory into a store (rules 2 and 3).

    Args:
        source: the tar file, or the directory.
        target: where the artifacts go, with their tags.
        progress: called while blobs are sent.
        limits: for an archive.

    Raises:
        PipelineError: ArtifactMalformed, DigestMismatch, SizeMismatch, TooLarge, StorageFailed; as the stores.
    """
    if source.is_dir():
        return _copy(LayoutStore(source), target, progress)
    try:
        with source.open("rb") as stream, tempfile.TemporaryDirectory(prefix="firmware-pipeline-") as folder:
            _extract(stream, Path(folder), limits, str(source))
            return _copy(LayoutStore(Path(folder)), target, progress)
    except OSError as error:
        raise storage_failed(source, error) from error


def _copy(layout: LayoutStore, target: ArtifactStore, progress: CopyProgress | None) -> list[Imported]:
    copier, found = Copier(layout, target, progress), []
    for entry in layout.entries():
        if supports(entry, lambda digest: layout.get_manifest(digest).raw) is None:  # else it goes with its subject
            found.append((entry.annotations.get(REF_NAME), copier.copy(entry.digest)))
    if not found:
        raise _bad(layout.name, "it names no artifact")
    for tag, manifest in found:
        if tag is not None:
            target.put_manifest(manifest.raw, manifest.media_type, tag=tag)
    return [Imported(manifest.digest, tag) for tag, manifest in found]


# ---- tar -----------------------------------------------------------------------------------------------


def _write(layout: Path, sink: BinaryIO) -> None:
    blobs = sorted((layout / "blobs" / "sha256").iterdir())
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in _DOCUMENTS:
            _add(archive, name, layout / name)
        for name in ("blobs", "blobs/sha256"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for blob in blobs:
            _add(archive, f"blobs/sha256/{blob.name}", blob)


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as stream:
        member = tarfile.TarInfo(name)
        member.size, member.mode = os.fstat(stream.fileno()).st_size, 0o644
        archive.addfile(member, stream)


class _Bounded(io.RawIOBase):
    """A file that gives no large piece at once: an extended header cannot fill the memory."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("a header promises more than any header holds")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _extract(stream: BinaryIO, folder: Path, limits: Limits, name: str) -> None:
    """Rule 2, into an empty folder."""
    seen: set[str] = set()
    count, total = 0, 0
    try:
        with tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
            while (member := archive.next()) is not None:
                count, total = count + 1, total + member.size
                if member.size > limits.blob_bytes or total > limits.total_bytes or count > limits.files:
                    raise _too_much(member, limits, name)
                path = member.name.removeprefix("./")
                if member.type == tarfile.DIRTYPE and path in _FOLDERS:
                    continue
                _check(member, path, seen, name)
                source = archive.extractfile(member)
                if source is None:
                    raise _bad(name, f"{path!r} has no content")
                with source:
                    _place(source, member.size, path, folder)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise _bad(name, f"it is no plain tar archive ({error})") from error
    if missing := [document for document in _DOCUMENTS if document not in seen]:
        raise _bad(name, f"it holds no {missing[0]}")


def _check(member: tarfile.TarInfo, path: str, seen: set[str], name: str) -> None:
    shown = repr(member.name[:120])
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _bad(name, f"{shown} is a link, a device or another thing that no layout holds")
    if path not in _DOCUMENTS and not _BLOB.match(path):
        raise _bad(name, f"{shown} is no file of an OCI layout")
    if path in seen:
        raise _bad(name, f"{shown} occurs twice")
    if path in _DOCUMENTS and member.size > MAX_MANIFEST_BYTES:
        raise _bad(name, f"{shown} has {member.size} bytes")
    seen.add(path)


def _too_much(member: tarfile.TarInfo, limits: Limits, name: str) -> PipelineError:
    return PipelineError(
        Reason.TooLarge,
        f"{name}: with {member.name[:120]!r} ({member.size} bytes) it is beyond the limits: {limits.files} files, "
        f"{limits.blob_bytes} bytes each, {limits.total_bytes} together.",
        "Export fewer artifacts into one archive.",
    )


def _place(source: IO[bytes], size: int, path: str, folder: Path) -> None:
    match = _BLOB.match(path)
    with atomic_file(folder / path) as sink:
        if match is None:
            sink.write(source.read(size))
            return
        receiver = BlobReceiver(
            Descriptor(media_type="application/octet-stream", digest=f"sha256:{match[1]}", size=size), sink
        )
        while chunk := source.read(CHUNK_BYTES):
            receiver.write(chunk)
        receiver.finish()


def _bad(name: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.ArtifactMalformed,
        f"{name} cannot be imported: {problem}.",
        "Use an archive made by `firmware-pipeline export`, or an uncompressed tar of an OCI layout.",
    )
