# SPDX-License-Identifier: Apache-2.0
"""Used nonces in a directory that several replicas share. Implements ``replay.SingleUse``.

Rules (tests name them):

1. One file per used nonce, made with O_EXCL: of all callers in all processes exactly one can.
2. What cannot be written refuses (``store.unavailable``); the directory is never made by a use, only by ``prepare``.
3. Files stand in one folder per minute of expiry. A folder goes a minute after everything in it has expired, so that
   clocks may differ by that much; nothing is removed that could still be good anywhere.

The files are not flushed: a power loss on the machine that holds them may admit one more result for the same evidence and
nonce within the nonce's lifetime, and nothing else.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Final

from attestation.errors import Code, Reject

SWEEP_SECONDS: Final = 30
_MINUTE: Final = 60


class DirectorySingleUse:
    """Used nonces under one directory.

    Args:
        root: the directory, on a file system that all replicas see and that keeps O_EXCL (local, NFS since version 3).
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._next_sweep = 0

    def prepare(self) -> None:
        """Make the directory where it is missing. Raises Reject."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Reject(Code.STORE_UNAVAILABLE, f"{self._root}: {error.strerror}") from error

    def consume(self, nonce: bytes, *, until: int, now: int) -> None:
        """See ``replay.SingleUse.consume``."""
        folder = self._root / str(until // _MINUTE)
        path = folder / hashlib.sha256(nonce).hexdigest()[:32]
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError as error:
            raise Reject(Code.REPLAY, "the nonce was used before: ask for a new one") from error
        except OSError as error:
            raise Reject(
                Code.STORE_UNAVAILABLE, f"used nonces cannot be kept in {self._root}: {error.strerror}"
            ) from error
        self._sweep(now)

    def _sweep(self, now: int) -> None:
        with self._lock:
            if now < self._next_sweep:
                return
            self._next_sweep = now + SWEEP_SECONDS
        with contextlib.suppress(OSError):  # another replica sweeps too; what stays is seen by the next sweep
            for folder in self._root.iterdir():
                if folder.name.isdecimal() and (int(folder.name) + 2) * _MINUTE <= now:
                    shutil.rmtree(folder, ignore_errors=True)
