# SPDX-License-Identifier: Apache-2.0
"""The power fails at a sector of a write of the whole board: what boots then, and that the next attempt ends proven.

Every sector, without esptool, is in tests/unit/flasher/test_writing.py; here is the real loop, at the borders between the
steps of a small release, and with `slow` throughout a large one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from firmware_pipeline.esp import builder
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.flash import Operation
from flashjob.wire.gateway import Outcome
from flashjob.wire.pod import Timeouts
from flashjob.wire.target import Target

from .bench import Bench, app, assignment, old_app, signed
from .power import During, Outage
from .whole_board import CHIP, EVERYTHING, TABLE, attempt, board, judge_of, live, publish, settled, table, whole

QUICK: Final = Timeouts(boot_seconds=1, attest_seconds=10, write_seconds=60, confirm_seconds=20)
PATIENT: Final = Timeouts(boot_seconds=5, attest_seconds=30, write_seconds=300, confirm_seconds=20)
ENDINGS: Final = {
    ("image", 0): "1.0.0",
    ("bootloader", 0): "",
    ("bootloader", 1): "",
    ("table", 0): "",
    ("files", 0): "1.0.0",
    ("otadata", 0): "1.0.0",
    ("otadata", 1): "1.0.0",
}
"""What boots after a cut before the n-th change of a part of flash (1 of OTA data: what the bootloader notes there itself,
which is an erased sector then); "": nothing, the chip waits in its loader."""

STRIDE: Final = 17
"""Changes of image and files from one cut to the next; all else is cut before each change."""


def part(offset: int) -> str:
    """Of the flash, by name."""
    if offset < TABLE:
        return "bootloader"
    rows = table().partitions
    name = next((row.name for row in rows if row.offset <= offset < row.end), "table")
    return {"storage": "files", "ota_1": "image"}.get(name, name)


async def rehearsed(bench: Bench, target: Target, during: During) -> list[str]:
    """What an update without a cut changes, in its order, by part."""
    device = await board(bench, name="rehearsal")
    changes, faults = [], device.flash.hook

    def note(operation: Operation, offset: int, length: int) -> None:
        if operation == during:
            changes.append(part(offset))
        if faults is not None:
            faults(operation, offset, length)

    device.flash.hook = note
    task = assignment(device, target, safety=EVERYTHING, timeouts=PATIENT)
    result = await attempt(bench, device, task, judge_of(device, task, 1, 2))
    assert result.ok, result.message
    return changes


async def cut(
    bench: Bench, device: VirtualDevice, target: Target, during: During, sector: int, limits: Timeouts
) -> str:
    """One attempt that is cut, and one that is not, which must end proven; what booted in between."""
    outage = Outage(device, sector, during)
    device.faults.append(outage)
    task = assignment(device, target, safety=EVERYTHING, timeouts=limits)
    judge = judge_of(device, task, 1, 2)
    first = await attempt(bench, device, task, judge)
    assert outage.began.is_set(), f"{during} {sector}: no cut"
    device.boot_failure = ""
    device.replug()
    between = await settled(device)
    if not first.ok:
        judge.next_attempt()
        again = assignment(device, target, attempt=2, safety=EVERYTHING, timeouts=limits)
        last = await attempt(bench, device, again, judge)
        assert last.ok, f"{during} {sector}: {first.reason}, booted {between!r}, then {last.message}"
    assert judge.outcome is Outcome.PROVEN
    assert await settled(device) == "2.0.0"
    return between


async def test_a_cut_between_the_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    image = signed(builder.build_app(CHIP, "porch", "2.0.0", payload_size=16 * 1024))
    try:
        target = publish(tmp_path, whole(image=image))
        changes = await rehearsed(bench, target, "program")
        device = await board(bench)
        for (name, which), boots in ENDINGS.items():
            sector = [number for number, part in enumerate(changes) if part == name][which]
            await renewed(device)
            assert await cut(bench, device, target, "program", sector, QUICK) == boots, f"{name} {which}"
    finally:
        await bench.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("during", ["program", "erase"])
async def test_cuts_throughout_a_large_release(tmp_path: Path, during: During) -> None:
    bench = Bench(tmp_path)
    try:
        target = publish(tmp_path, whole(image=app(CHIP, "2.0.0", 1_500 * 1024)))
        changes = await rehearsed(bench, target, during)
        device = await board(bench)
        for sector, name in enumerate(changes):
            inside = name in ("image", "files") and name == changes[sector - 1]
            if inside and sector % STRIDE:
                continue
            await renewed(device)
            await cut(bench, device, target, during, sector, PATIENT)
    finally:
        await bench.close()


async def renewed(device: VirtualDevice) -> None:
    """As it left the factory, and has lived since."""
    device.faults.clear()
    device.factory_flash(old_app(CHIP))
    live(device)
    device.reset()
    assert await settled(device) == "1.0.0"
