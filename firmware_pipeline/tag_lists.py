# SPDX-License-Identifier: Apache-2.0
"""Add an entry to a list that a tag names, while others do the same: registries have no compare-and-swap for tags.

How no entry is lost:
    1. Writers of one user on one machine take turns, by a lock file.
    2. Writers elsewhere may overwrite each other between their reading and their writing. So every writer reads back
       what it wrote, waits for several times as long as its own reading and writing took, and reads again. What it has
       ever seen in the list or put there and does not find any more it puts back, together with what is new.
    3. The list is right when it holds everything known both at once and after the wait.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import SystemRandom
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.store import storage_failed

MAX_ROUNDS: Final = 32
SETTLE_FACTOR: Final = 3.0
MAX_SETTLE_SECONDS: Final = 1.0


def add_to_list(
    place: str,
    entry: Descriptor,
    read: Callable[[], Sequence[Descriptor]],
    write: Callable[[list[Descriptor]], None],
    *,
    same: Callable[[Descriptor], object],
    locks: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make sure that the list at `place` holds `entry`.

    Args:
        place: store and tag; names the lock, and the list in messages.
        entry: what to add.
        read: the list as it stands, empty where there is none.
        write: replaces it.
        same: what two descriptions of the same entry have in common.
        locks: directory for lock files; the user's runtime directory or a private one for temporary files if None.
        sleep: waits for some seconds.

    Raises:
        PipelineError: RegistryBusy when other writers always win; StorageFailed; as `read` and `write`.
    """
    with _turn(place, _lock_folder() if locks is None else locks):
        known, settle = {same(entry): entry}, 0.0
        for _ in range(MAX_ROUNDS):
            started = time.monotonic()
            present = {same(item): item for item in read()}
            lost = known.keys() - present.keys()
            known = {**present, **{key: known[key] for key in known if key in lost}}
            if lost:
                write(list(known.values()))
                settle = SETTLE_FACTOR * (time.monotonic() - started)
            elif settle:
                sleep(min(MAX_SETTLE_SECONDS, settle * SystemRandom().uniform(1, 1.5)))
                settle = 0.0
            else:
                return
    raise PipelineError(
        Reason.RegistryBusy,
        f"{place}: other writers replaced this tag again and again while an entry was being added.",
        "Try again when no other push to this artifact runs.",
    )


@contextlib.contextmanager
def _turn(place: str, folder: Path) -> Iterator[None]:
    """Rule 1. The file stays: to remove it would let two writers hold two locks."""
    path = folder / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.lock"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "the lock folder belongs to somebody else")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise storage_failed(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    return base / f"firmware-pipeline-{os.getuid()}"
