# SPDX-License-Identifier: Apache-2.0
"""Virtual devices: what 2,000 of them cost in one process, and what a thousand liars of each kind achieve."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Report, main
from firmware_pipeline.esp.builder import build_app
from tests.component.court import CASES, Tally, hold

DEVICES: Final = 2000
CHIPS: Final = ("esp32", "esp32s2", "esp32s3", "esp32c3", "esp32c6", "esp32h2", "esp32p4", "esp32c5")
APP_BYTES: Final = 1024 * 1024
WORKERS: Final = 2
SHARE: Final = 100
"""Trials of each kind that a worker holds at a time."""


def measure(report: Report) -> None:
    """All of it, below a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder:
        idle_fleet(report, Path(folder))
    court(report, 20 if report.smoke else 1000)


def idle_fleet(report: Report, root: Path) -> None:
    """Half of them on serial lines, half on the network, all chips mixed, each with 1 MiB of application."""
    report.say(f"{DEVICES} devices in one process")
    for chip in CHIPS:
        (root / f"{chip}.bin").write_bytes(build_app(chip, "porch", "1.0.0", payload_size=APP_BYTES))
    devices = [
        {
            "name": f"d{number}",
            "chip": CHIPS[number % len(CHIPS)],
            "tier": "SelfReported" if CHIPS[number % len(CHIPS)] == "esp32" else "SignedBoot",
            "transport": "serial" if number // len(CHIPS) % 2 else "network",
            "app": str(root / f"{CHIPS[number % len(CHIPS)]}.bin"),
        }
        for number in range(DEVICES)
    ]
    spec = root / "fleet.json"
    spec.write_text(json.dumps({"directory": str(root / "ports"), "devices": devices}))
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flashjob.virtual.fleet", str(spec)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready: dict[str, Any] = json.loads(process.stdout.readline())
        seconds = time.monotonic() - started
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    finally:
        process.terminate()
        process.wait()
    report.bar("devices ready", len(ready["devices"]), "==", DEVICES)
    report.bar("resident at most, MB", int(status["VmHWM"].split()[0]) / 1024, "<=", 600)
    report.bar("start, seconds", seconds, "<=", 20, wall_clock=True)
    report.bar("start, CPU seconds", sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), "<=", 12)


def court(report: Report, times: int) -> None:
    """Each kind of trial `times` times, in two processes: see tests/component/court.py."""
    report.say(f"{len(CASES)} kinds of trials, {times} times each")
    started, spent, total = time.monotonic(), _children_cpu(), Tally()
    share = min(SHARE, times // WORKERS)
    shares = [share] * (times // share)
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for tally in pool.map(hold, range(len(shares)), shares):
            total.add(tally)
    for name, reasons in sorted(total.reasons.items()):
        report.figure(name, dict(reasons))
    report.figure("trials", total.trials)
    report.figure("trials, seconds", time.monotonic() - started)
    report.figure("CPU of a trial, ms", 1000 * (_children_cpu() - spent) / total.trials)
    report.bar("false successes", total.false_successes, "==", 0)
    report.bar("honest devices proven, per cent", 100 * total.proven / total.honest, "==", 100)
    report.bar("endings that are not their kind's own", len(total.strays), "==", 0)
    if total.adjourned:
        report.figure("adjourned", dict(total.adjourned))
    report.bar("trials adjourned and held anew", total.adjourned.total(), "==", 0, wall_clock=True)


def _children_cpu() -> float:
    """Seconds that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main("fleet", measure))
