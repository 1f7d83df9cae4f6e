# SPDX-License-Identifier: Apache-2.0
"""Many devices over the network at once, from one process: the flashing pod's transport beside a bare aiohttp loop that
streams the same bytes to the same receivers, by turns."""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.common import Report, main, median_ratio

DEVICES: Final = 200
FULL_BYTES, SMOKE_BYTES = 25 * 64 * 1024, 8 * 64 * 1024
ROUNDS, SMOKE_ROUNDS = 7, 3
MIN_RATE: Final = 0.6
MAX_MEMORY_MIB: Final = 200.0
_ENDS: Final = (sys.executable, "-m", "benchmarks._ota")


@contextmanager
def _devices(size: int) -> Iterator[str]:
    with subprocess.Popen(
        [*_ENDS, "devices", str(DEVICES), str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def _send(who: str, ports: str, image: Path) -> dict[str, float]:
    done = subprocess.run([*_ENDS, who, ports, str(image)], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(report: Report) -> None:
    """Interleaved pairs; a rate is the bytes of all images over the time up to the last device's answer.

    Judged is the time from the install grant on; the stricter and the laxer reading stand beside it.
    """
    size, rounds = (SMOKE_BYTES, SMOKE_ROUNDS) if report.smoke else (FULL_BYTES, ROUNDS)
    report.say(f"{DEVICES} devices at once, {size} bytes each, {rounds} pairs")
    ours, bare = [], []
    with tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder, _devices(size) as ports:
        image = Path(folder) / "image.bin"
        image.write_bytes(secrets.token_bytes(size))
        for _ in range(rounds):
            ours.append(_send("ours", ports, image))
            bare.append(_send("bare", ports, image))
    megabytes = DEVICES * size / 1e6
    for name, runs in (("ours", ours), ("bare aiohttp", bare)):
        report.figure(f"{name}: MB/s, everything", megabytes / statistics.median(run["all"] for run in runs))
        report.figure(
            f"{name}: MB/s, from the first image byte", megabytes / statistics.median(r["byte"] for r in runs)
        )
        report.figure(f"{name}: CPU seconds in all", statistics.median(run["cpu"] for run in runs))
    pairs = list(zip(ours, bare, strict=True))
    report.figure("ratio, everything", median_ratio((b["all"], o["all"]) for o, b in pairs))
    report.figure("ratio, from the first image byte", median_ratio((b["byte"], o["byte"]) for o, b in pairs))
    rate = median_ratio((b["all"], o["grant"]) for o, b in pairs)
    report.bar("throughput against a bare aiohttp loop, from the grant", rate, ">=", MIN_RATE)
    report.bar("memory of the sender, MiB", max(run["rss"] for run in ours), "<=", MAX_MEMORY_MIB)


if __name__ == "__main__":
    sys.exit(main("ota", measure))
