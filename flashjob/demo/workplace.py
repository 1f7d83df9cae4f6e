# SPDX-License-Identifier: Apache-2.0
"""The demo's directory, which goes however the demo goes.

Rules:

1. Nobody else can read it (0700): there are private keys in it.
2. Its path is short, since sockets live in it, and a socket's path has at most 107 bytes.
3. After a success or an interruption nothing of it is left. After a failure the logs are left, and nothing else.
4. Whoever kills the demo leaves no directory either: a sweeper of a few lines waits for the demo's end, sees it by the
   end of its standard input, and deletes what is there until all of it is gone.
5. Temporary files of this process and of those it starts are below it, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

from flashjob.errors import FlashJobError

NEEDED_BYTES: Final = 512 << 20
_LONGEST_PARENT: Final = 40
_SWEEPER: Final = """
import pathlib, shutil, sys, time
if not sys.stdin.buffer.read():
    place = pathlib.Path(sys.argv[1])
    give_up = time.monotonic() + 20
    while place.exists() and time.monotonic() < give_up:
        shutil.rmtree(place, ignore_errors=True)
        time.sleep(0.1)
"""


class Workplace:
    """A directory for one run; a context manager.

    Raises:
        FlashJobError: `NoTemporaryDirectory` or `DiskTooSmall`, with the place and the way out.
    """

    def __init__(self) -> None:
        way_out = "set TMPDIR to a directory of yours on a disk with room"
        try:
            parent = tempfile.gettempdir()
            parent = parent if len(parent) <= _LONGEST_PARENT else "/tmp"  # noqa: S108 (rule 2)
            self.directory = Path(tempfile.mkdtemp(prefix="flashjob-demo-", dir=parent))
        except OSError as error:
            raise FlashJobError("NoTemporaryDirectory", f"no place for the demo's state: {error}", way_out) from error
        self._sweeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SWEEPER, str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._tmpdir = os.environ.get("TMPDIR")
        if (free := shutil.disk_usage(self.directory).free) < NEEDED_BYTES:
            self._clear()
            raise FlashJobError(
                "DiskTooSmall",
                f"the demo needs {NEEDED_BYTES >> 20} MB in {parent}, {free >> 20} MB are free",
                way_out,
            )

    def _redirect(self, place: str | None) -> None:
        os.environ.pop("TMPDIR", None)
        if place is not None:
            os.environ["TMPDIR"] = place
        tempfile.tempdir = None  # it is looked up again

    def keep_logs(self) -> Path | None:
        """Delete all but the logs that say something; where they are, None if there are none."""
        kept = None
        for path in sorted(self.directory.rglob("*"), reverse=True):
            if path.suffix == ".log" and path.is_file() and not path.is_symlink() and path.stat().st_size:
                kept = self.directory
            elif path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if kept:
            self._dismiss(b"keep")
        return kept

    def _dismiss(self, word: bytes) -> None:
        if self._sweeper.stdin and not self._sweeper.stdin.closed:
            self._sweeper.stdin.write(word)
            self._sweeper.stdin.close()
        self._sweeper.wait()

    def _clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._dismiss(b"")

    def __enter__(self) -> "Workplace":
        (self.directory / "tmp").mkdir(mode=0o700)
        self._redirect(str(self.directory / "tmp"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redirect(self._tmpdir)
        if self._sweeper.poll() is None:
            self._clear()
