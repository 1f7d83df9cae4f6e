# SPDX-License-Identifier: Apache-2.0
"""What the test pods run: does what its arguments say, and tells its environment in the termination message."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def main(arguments: list[str]) -> int:
    """`exit N`, `wait`, `wait-for FILE`, `stubborn`, `shout TEXT N` or `files NAME...` (contents of the files in variables)."""
    termination = Path(os.environ["FLASHJOB_TERMINATION_FILE"])
    verb, *rest = arguments

    def stopped(_number: int, _frame: FrameType | None) -> None:
        termination.write_text("stopped by SIGTERM")
        sys.exit(143)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if verb == "stubborn" else stopped)
    if verb == "exit":
        termination.write_text(json.dumps(dict(os.environ)))
        return int(rest[0])
    if verb == "files":
        termination.write_text(json.dumps({name: Path(os.environ[name]).read_text() for name in rest}))
        return 0
    if verb == "shout":
        sys.stdout.write(rest[0] + "\n")
        return int(rest[1])
    if verb == "wait-for":
        while not Path(rest[0]).exists():
            time.sleep(0.02)
        sys.stdout.write("released\n")
        termination.write_text(json.dumps({"UDEV_DEVNODE": os.environ.get("UDEV_DEVNODE")}))
        return 0
    while True:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
