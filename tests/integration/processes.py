# SPDX-License-Identifier: Apache-2.0
"""Find processes that belong to a state directory: the proof that nothing is left."""

from __future__ import annotations

import os
import time
from pathlib import Path


def of_state_dir(state_dir: Path) -> list[str]:
    """Command lines of all living processes that mention the state directory or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            work = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(state_dir) in line or work.startswith(str(state_dir)):
            found.append(line)
    return found


def wait_until_none(state_dir: Path, seconds: float = 10.0) -> None:
    """Wait until no process of the state directory lives; fails with what is left."""
    deadline = time.monotonic() + seconds
    while left := of_state_dir(state_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
