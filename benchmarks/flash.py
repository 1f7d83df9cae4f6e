# SPDX-License-Identifier: Apache-2.0
"""Writing over serial beside the plain esptool command line: same virtual device, same bytes, by turns.

- rate: at a simulated 921,600 Bd, from the first byte to the end of the verification.
- CPU: without a line rate, the two programs alone, in CPU seconds; random bytes, and bytes that compress like firmware.
- unchanged, changed: what is written when the flash holds the image, or all but 5 % of its sectors.
- ports: sixteen devices at once, each at a simulated 921,600 Bd.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import _esptool_runs as runs
from benchmarks._esptool_runs import Write, child_cpu
from benchmarks.common import Report, main, median_ratio
from firmware_pipeline.esp import builder
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import DemoDevice, Materials

SECTOR: Final = 4096
OFFSET: Final = builder.default_partitions().ota_slots[1].offset
CHANGED: Final = 0.05
_FREE: Final = "free"

Way = Callable[[str, int, Path], Awaitable[Write]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, and the limits that depend on it: starting a program weighs more in a small image."""

    image: int
    pairs: int
    ports: int
    cpu: float
    faster: float


FULL: Final = Size(400 * SECTOR, 3, 16, cpu=1 / 3, faster=5.0)
SMOKE: Final = Size(128 * SECTOR, 1, 4, cpu=0.5, faster=2.0)


class Rig:
    """One device without a line rate, several with a simulated one, and files to write."""

    def __init__(self, root: Path, size: Size) -> None:
        self.root, self.size = root, size
        devices = [DemoDevice(_FREE, "esp32c3", "serial", "SelfReported", "bench")]
        devices += [DemoDevice(f"line-{n}", "esp32c3", "serial", "SelfReported", "bench") for n in range(size.ports)]
        spec = Materials.make(root / "materials").fleet(devices, root)
        spec["devices"] = [{**entry, "simulateRate": entry["name"] != _FREE} for entry in spec["devices"]]
        self.fleet = FleetProcess(spec, root)
        self._random = random.Random(20)

    def port(self, name: str) -> str:
        """Where the device is."""
        return str(self.fleet.devices[name].link)

    def file(self, content: bytes) -> Path:
        """A file of this content."""
        path = self.root / f"{self._random.getrandbits(64):x}.bin"
        path.write_bytes(content)
        return path

    def noise(self) -> bytes:
        """What does not compress."""
        return os.urandom(self.size.image)

    def firmware(self) -> bytes:
        """What compresses to about 60 %, as firmware does: noise and repeated words in turn."""
        words = [os.urandom(16) for _ in range(64)]
        parts = (
            b"".join(self._random.choices(words, k=8)) + os.urandom(136) for _ in range(self.size.image // 264 + 1)
        )
        return b"".join(parts)[: self.size.image]

    def changed(self, content: bytes) -> bytes:
        """`content` with 5 % of its sectors new, anywhere."""
        result, count = bytearray(content), len(content) // SECTOR
        for sector in self._random.sample(range(count), round(count * CHANGED)):
            result[sector * SECTOR : (sector + 1) * SECTOR] = os.urandom(SECTOR)
        return bytes(result)

    async def pair(self, content: bytes, turn: int) -> tuple[float, float]:
        """CPU seconds of (ours, plain) for the same bytes; who is first depends on `turn`. The slot holds others."""
        file, found = self.file(content), {}
        for way in (runs.plain, runs.ours) if turn % 2 else (runs.ours, runs.plain):
            await runs.ours(self.port(_FREE), OFFSET, self.file(self.noise()))
            before = child_cpu()
            await way(self.port(_FREE), OFFSET, file)
            found[way] = child_cpu() - before
        return found[runs.ours], found[runs.plain]


async def rate(report: Report, rig: Rig) -> None:
    """Rate at 921,600 Bd, and 5 % changed sectors against the whole image by the plain tool."""
    ratios, faster = [], []
    for turn in range(rig.size.pairs):
        found: dict[Way, Write] = {}
        for way in (runs.plain, runs.ours) if turn % 2 else (runs.ours, runs.plain):
            content = rig.noise()
            found[way] = await way(rig.port("line-0"), OFFSET, rig.file(content))
        few = await runs.ours(rig.port("line-0"), OFFSET, rig.file(rig.changed(content)))
        report.say(f"  pair {turn + 1}: plain {found[runs.plain].write:.2f} s, ours {found[runs.ours].write:.2f} s")
        ratios.append((found[runs.plain].write, found[runs.ours].write))
        faster.append((found[runs.plain].whole, few.whole))
        report.bar("changed: bytes written", few.written, "<=", round(rig.size.image * CHANGED) + SECTOR)
    report.figure("rate.plain_seconds", statistics.median(plain for plain, _ in ratios))
    report.figure("rate.seconds", statistics.median(ours for _, ours in ratios))
    report.bar("rate to esptool at 921,600 Bd", median_ratio(ratios), ">=", 0.98)
    report.bar("5 % changed: times faster than esptool", median_ratio(faster), ">=", rig.size.faster)


async def processor(report: Report, rig: Rig) -> None:
    """CPU seconds of the two programs, and the image that is there already."""
    for kind, make, limit in (("random", rig.noise, rig.size.cpu), ("firmware", rig.firmware, 0.65)):
        pairs = [await rig.pair(make(), turn) for turn in range(rig.size.pairs)]
        report.figure(f"cpu.{kind}.plain_seconds", statistics.median(theirs for _, theirs in pairs))
        report.figure(f"cpu.{kind}.seconds", statistics.median(mine for mine, _ in pairs))
        report.bar(f"CPU to esptool, {kind}", median_ratio(pairs), "<=", limit)
    file = rig.file(rig.noise())
    await runs.ours(rig.port(_FREE), OFFSET, file)
    again = await runs.ours(rig.port(_FREE), OFFSET, file)
    report.bar("unchanged: bytes written", again.written, "==", 0)
    report.bar("unchanged: seconds", again.whole, "<=", 2.0, wall_clock=True)


async def ports(report: Report, rig: Rig) -> None:
    """All ports at once."""
    names = [f"line-{n}" for n in range(rig.size.ports)]

    async def all_at_once(way: Way) -> tuple[list[Write], float]:
        before = child_cpu()
        files = [rig.file(rig.noise()) for _ in names]
        done = await asyncio.gather(
            *(way(rig.port(name), OFFSET, file) for name, file in zip(names, files, strict=True))
        )
        return list(done), child_cpu() - before

    alone = await runs.ours(rig.port(names[0]), OFFSET, rig.file(rig.noise()))
    mine, my_cpu = await all_at_once(runs.ours)
    _, their_cpu = await all_at_once(runs.plain)
    report.figure("ports.count", len(names))
    report.figure("ports.cpu_seconds", my_cpu)
    report.figure("ports.plain_cpu_seconds", their_cpu)
    report.bar("ports: slowest rate to one alone", alone.write / max(write.write for write in mine), ">=", 0.95)
    report.bar("ports: CPU to as many plain tools", my_cpu / their_cpu, "<=", rig.size.cpu)


def measure(report: Report) -> None:
    """All of it, below a directory that is gone afterwards."""

    async def everything(rig: Rig) -> None:
        await processor(report, rig)
        await rate(report, rig)
        await ports(report, rig)

    with tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder:
        rig = Rig(Path(folder), SMOKE if report.smoke else FULL)
        report.figure("image_bytes", rig.size.image)
        report.figure("baud", runs.BAUD)
        with rig.fleet:
            asyncio.run(everything(rig))


if __name__ == "__main__":
    sys.exit(main("flash", measure))
