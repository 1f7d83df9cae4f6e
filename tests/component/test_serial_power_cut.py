# SPDX-License-Identifier: Apache-2.0
"""The power fails at a sector of an update over serial: the old image or the new one boots, and the next attempt ends
updated. A device with one slot, overwritten in place, may lie dead in between; the next attempt heals it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from firmware_pipeline.esp import builder, partitions
from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.faults import PowerCut
from flashjob.wire.gateway import DeviceResult, Outcome, PermitReply
from flashjob.wire.pod import Assignment, Safety
from flashjob.wire.serial import SerialSettings

from .bench import Bench, BenchJudge, Release, app, assignment, new_app, open_release, push

SECTOR = 4096
CHIP = "esp32c3"
FULL_BYTES = 400 * SECTOR
SAMPLE_BYTES = 50 * SECTOR
GRANT = "ab" * 16


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def permit() -> PermitReply:
    return PermitReply.parse({"decision": "Write", "grantId": GRANT, "fence": 1, "writeSeconds": 120})


async def write(device: VirtualDevice, image: bytes, work: Path, *, in_place: bool = False) -> str:
    """What a pod does between permit and reboot: "" or the reason of its failure."""
    assert device.port is not None
    transport = SerialTransport(device.port.path, work, SerialSettings(baud=921_600), in_place=in_place)
    try:
        await transport.probe(device.identity.hardware.table_offset)
        await transport.write(image, permit(), lambda _done, _total: None)
        await transport.abandon()
    except FlashJobError as error:
        return str(error)
    finally:
        await transport.close()
    return ""


class UsbPowerCut(PowerCut):
    """The board lives on its cable: with the power its port is gone."""

    def __init__(self, device: VirtualDevice, sector: int, during: Literal["program", "erase"]) -> None:
        super().__init__(sector=sector, during=during, back_seconds=60)
        self._device = device

    def cuts(self, operation: str) -> bool:
        """While the loader writes, and the port with it; a cut while the bootloader notes its choice is another test's."""
        struck = self._device.mode is Mode.LOADER and PowerCut.cuts(self, operation)
        if struck:
            asyncio.get_running_loop().call_soon(self._device.unplug)
        return struck


async def settled(device: VirtualDevice) -> str:
    """Give it power if it has none, and wait: the version that runs; "" if nothing can boot."""
    assert device.port is not None
    if not device.port.plugged:
        device.boot_failure = ""
        device.replug()
    async with asyncio.timeout(5):
        while not (device.mode is Mode.RUNNING or device.boot_failure):
            await asyncio.sleep(0.005)
    if device.application is None:
        return ""
    return device.application.boot.version


async def cut_at_every(bench: Bench, sectors: list[int], size: int, *, in_place: bool = False) -> None:
    """Cut at each of `sectors` of an update from 1.0.0 to 2.0.0, then try again without a cut."""
    old, new = (app(CHIP, version, size - 5 * SECTOR) for version in ("1.0.0", "2.0.0"))
    device = await bench.device("cut", CHIP, app=old)
    for sector in sectors:
        factory(device, old, one_slot=in_place)
        device.reset()
        assert await settled(device) == "1.0.0"
        device.faults[:] = [UsbPowerCut(device, sector, random.Random(sector).choice(("program", "erase")))]
        failed = await write(device, new, bench.work, in_place=in_place)
        device.faults.clear()
        runs = await settled(device)
        assert failed or runs == "2.0.0", f"cut at {sector}"
        assert runs in (("1.0.0", "2.0.0", "") if in_place else ("1.0.0", "2.0.0")), (
            f"cut at {sector}: {failed}; {device.boot_failure}"
        )
        if runs == "2.0.0":
            continue
        device.boot_failure = ""  # what was said of the spoiled image says nothing of the next one
        assert await write(device, new, bench.work, in_place=in_place) == "", f"after the cut at {sector}"
        assert await settled(device) == "2.0.0", f"after the cut at {sector}"
        assert device.application is not None
        assert device.application.boot.boot_id.hex() == GRANT


def factory(device: VirtualDevice, image: bytes, *, one_slot: bool) -> None:
    """As it left the factory; with `one_slot`, its table has no second one."""
    device.factory_flash(image)
    if one_slot:
        table = builder.default_partitions(table_offset=device.identity.hardware.table_offset)
        rows = [row for row in table.partitions if row.name != "ota_1"]
        device.flash.load(device.identity.hardware.table_offset, partitions.build_table(partitions.check(rows)))


@pytest.mark.parametrize("in_place", [False, True], ids=["two slots", "in place"])
async def test_power_cut_at_some_sectors(bench: Bench, in_place: bool) -> None:
    last = SAMPLE_BYTES // SECTOR
    await cut_at_every(bench, [0, 1, last // 2, last - 1, last, last + 1], SAMPLE_BYTES, in_place=in_place)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True], ids=["two slots", "in place"])
async def test_power_cut_at_every_sector_of_a_large_update(bench: Bench, in_place: bool) -> None:
    """All sectors of 1.6 MB, the tail behind it, and the record that selects it."""
    await cut_at_every(bench, list(range(FULL_BYTES // SECTOR + 20)), FULL_BYTES, in_place=in_place)


async def attempt(
    bench: Bench, device: VirtualDevice, release: Release, task: Assignment, judge: BenchJudge
) -> DeviceResult:
    """A whole attempt that may write in place."""
    assert device.port is not None
    firmware = fetch(open_release(release), release.target, bench.work)
    transport = SerialTransport(device.port.path, bench.work, in_place=True)
    return await Attempt(task, firmware, transport, judge).run()


async def test_a_device_with_one_slot_is_healed_by_the_second_attempt_and_proven(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device("porch-1")
    await device.stop()
    factory(device, app("esp32s3", "1.0.0", 96 * 1024), one_slot=True)
    await device.start()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    refused, _ = await bench.flash(device, release)
    assert (refused.reason, refused.bytes_written) == ("NoUpdateSlot", 0)
    assert await settled(device) == "1.0.0", "a refusal lets it run again"
    device.faults.append(UsbPowerCut(device, 20, "program"))
    task = assignment(device, release.target, safety=Safety(allow_in_place=True))
    judge = BenchJudge(device, task)
    result = await attempt(bench, device, release, task, judge)
    assert not result.ok
    device.faults.clear()
    assert await settled(device) == ""
    judge.next_attempt()
    again = assignment(device, release.target, attempt=2, safety=Safety(allow_in_place=True))
    again = again.model_copy(update={"timeouts": again.timeouts.model_copy(update={"boot_seconds": 2})})
    result = await attempt(bench, device, release, again, judge)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
