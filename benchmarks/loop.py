# SPDX-License-Identifier: Apache-2.0
"""The whole loop: what a true verdict costs beside the plain tool, and what the stack takes for itself."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks._serial import serial
from benchmarks._stack import bench, control_plane, demo, stack
from benchmarks.common import Report, main


def measure(report: Report) -> None:
    """All of it, below a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder:
        root = Path(folder)
        control_plane(report, root / "control-plane")
        bench(report, root / "bench")
        stack(report, root / "stack")
        serial(report, root / "serial")
        demo(report)


if __name__ == "__main__":
    sys.exit(main("loop", measure))
