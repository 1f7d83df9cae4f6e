# SPDX-License-Identifier: Apache-2.0
"""Files that trust is kept in: bounded reads, atomic writes, one writer at a time, appends that survive a crash.

Every failure is a Reject: ``store.unavailable`` where a file cannot be read or written, ``store.invalid`` where it is
larger than anything we write.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attestation.errors import Code, Reject

FILE_LIMIT = 64 * 1024
"""Most bytes of one file, unless a reader says otherwise."""


def read(path: Path, limit: int = FILE_LIMIT) -> bytes:
    """The content of a file of at most `limit` bytes. Raises Reject."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error
    if len(content) > limit:
        raise Reject(Code.STORE_INVALID, f"{path.name} is larger than {limit} bytes")
    return content


def replace(path: Path, content: bytes) -> None:
    """Write beside, flush, rename: a crash leaves the old file or the new one. Mode 0600. Raises Reject."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error


def append(path: Path, line: bytes) -> None:
    """Add to the end and flush. What a crash leaves is a whole prefix, perhaps with half a last line. Raises Reject."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Hold the lock file for a short change; others wait. Raises Reject."""
    try:
        handle = path.open("a")
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def to_json(content: object) -> bytes:
    """As a person can read it: indented, sorted."""
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
