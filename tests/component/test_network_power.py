# SPDX-License-Identifier: Apache-2.0
"""Power that fails at any 4 KiB sector of a network update: the device boots the old image or the new one, always, and
the update ends with the new one. A device that boots neither would stay silent, and fail the test by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from flashjob.virtual.device import Mode
from flashjob.virtual.faults import PowerCut
from flashjob.virtual.flash import SECTOR
from flashjob.wire.gateway import Outcome

from .bench import Bench, BenchJudge, Release, app, assignment, push

IMAGE_BYTES = 1_600 * 1024
OTADATA_WRITES = 3
"""Selecting the slot, and what the bootloader and the confirm write to its record."""
During = Literal["program", "erase"]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def cut_once(bench: Bench, release: Release, sector: int, during: During) -> None:
    cut = PowerCut(sector=sector, during=during, back_seconds=0.01)
    device = await bench.device(f"porch-{during}-{sector}", network=True)
    device.faults.append(cut)
    task = assignment(device, release.target)
    judge = BenchJudge(device, task)
    result, _ = await bench.flash(device, release, task=task, judge=judge)
    if not result.ok:
        async with asyncio.timeout(10):
            while device.mode is not Mode.RUNNING:
                await asyncio.sleep(0.01)
        assert device.application is not None
        assert device.application.boot.version in ("1.0.0", "2.0.0")
        judge.next_attempt()
        again = assignment(device, release.target, attempt=2)
        result, _ = await bench.flash(device, release, task=again, judge=judge)
    assert result.ok, (sector, during, result)
    assert judge.outcome is Outcome.PROVEN
    assert cut.times == 0, "the power failed"
    assert device.application is not None
    assert device.application.boot.version == "2.0.0"
    await device.stop()
    bench.devices.remove(device)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    image = app("esp32s3", "2.0.0", IMAGE_BYTES - 64 * 1024)
    return push(tmp_path, image, "esp32s3")


@pytest.mark.parametrize("during", ["program", "erase"])
async def test_power_cut_at_some_sectors(bench: Bench, release: Release, during: During) -> None:
    end = len(release.image) // SECTOR
    tail = range(end, end + OTADATA_WRITES) if during == "program" else ()
    for sector in (0, 17, end // 2, end - 1, *tail):
        await cut_once(bench, release, sector, during)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_power_cut_at_every_sector(bench: Bench, release: Release) -> None:
    for sector in range(len(release.image) // SECTOR + OTADATA_WRITES):
        await cut_once(bench, release, sector, "program")
