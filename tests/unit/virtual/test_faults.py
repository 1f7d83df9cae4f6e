# SPDX-License-Identifier: Apache-2.0
"""Faults below the firmware, each by what a device does afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from attestation.device_http import HttpDevice
from firmware_pipeline.esp import otadata
from firmware_pipeline.esp.builder import build_app, default_partitions
from flashjob.virtual import slip
from flashjob.virtual.device import CableGone, Mode, VirtualDevice
from flashjob.virtual.faults import BrownOut, Crash, Fault, PowerCut, Slow, WrongChip
from flashjob.virtual.flash import SECTOR
from flashjob.virtual.profile import Owner, make_identity
from flashjob.virtual.timing import Timing

TABLE = default_partitions()
SLOT = TABLE.ota_slots[1].offset
OLD, NEW = (build_app("esp32c3", "porch", version, payload_size=32 * 1024) for version in ("1.0", "2.0"))


def board(*faults: Fault, link: Path | None = None, timing: Timing | None = None) -> VirtualDevice:
    identity = make_identity("porch", "esp32c3", tier="SelfReported")
    device = VirtualDevice("porch", identity, Owner(), link=link, faults=faults, timing=timing)
    device.factory_flash(OLD)
    return device


def install(device: VirtualDevice) -> None:
    """What an update leaves behind: the image in ota_1, selected as NEW."""
    device.flash.load(SLOT, NEW)
    place = TABLE.otadata
    assert place is not None
    sector, record = otadata.select_record(device.flash.read(place.offset, place.size), 1, 2, boot_id=bytes(range(16)))
    device.flash.load(place.offset + sector * SECTOR, record)


async def settled(device: VirtualDevice, boots: int) -> str:
    """The version that runs after so many boots."""
    async with asyncio.timeout(5):
        while device.boots < boots or device.mode is not Mode.RUNNING:
            await asyncio.sleep(0.005)
    assert device.application is not None
    return device.application.boot.version


async def test_a_power_cut_leaves_what_came_before_and_starts_again() -> None:
    device = board()
    await device.start()
    device.faults.append(PowerCut(sector=2, back_seconds=0.01))
    with pytest.raises(CableGone):
        device.flash.program(SLOT, b"\0" * 5 * SECTOR)
    assert device.flash.read(SLOT, 5 * SECTOR) == b"\0" * 2 * SECTOR + b"\xff" * 3 * SECTOR
    assert device.mode is Mode.DEAD
    assert await settled(device, 2) == "1.0"
    device.flash.program(SLOT, b"\0" * 5 * SECTOR)
    await device.stop()


async def test_a_power_cut_during_an_erase() -> None:
    device = board(PowerCut(sector=1, during="erase"))
    await device.start()  # erases and writes the first record of OTA data
    with pytest.raises(CableGone):
        device.flash.erase(SLOT, SECTOR)
    await device.stop()


async def test_a_power_cut_in_the_bootloader_costs_a_boot_and_nothing_else() -> None:
    device = board(PowerCut(sector=0, back_seconds=0.01))
    await device.start()
    assert device.mode is Mode.DEAD
    assert await settled(device, 2) == "1.0"
    await device.stop()


@pytest.mark.parametrize("fault", [BrownOut(), Crash(seconds=0.01)], ids=["brown-out", "crash"])
async def test_a_first_boot_that_fails_brings_the_old_image_back(fault: Fault) -> None:
    device = board(fault)
    await device.start()
    install(device)
    device.reset()
    assert await settled(device, 3) == "1.0"
    await device.stop()


async def test_faults_of_the_first_boot_leave_confirmed_images_alone() -> None:
    device = board(BrownOut(times=9), Crash(times=9))
    await device.start()
    device.reset()
    assert await settled(device, 2) == "1.0"
    await device.stop()


async def test_wrong_chip_is_what_the_loader_shows_alone(tmp_path: Path) -> None:
    device = board(WrongChip(chip="esp32s3"), link=tmp_path / "porch")
    await device.start()
    assert device._rom is not None
    assert device._rom.fuses.chip == "esp32s3"
    assert device.application is not None
    assert device.application.info().chip_id == 5
    await device.stop()


async def test_slow_devices_answer_late() -> None:
    device = board(Slow(seconds=0.2))
    await device.start()
    host, port = device.server.address.split(":")
    client = HttpDevice(host, int(port))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await client.info()
    assert loop.time() - started >= 0.2
    await client.close()
    await device.stop()


async def test_a_slow_device_loses_its_power_at_once() -> None:
    device = board(Slow(seconds=60))
    await device.start()
    host, port = device.server.address.split(":")
    heard, slow = asyncio.Event(), device.server._late
    assert slow is not None

    def late(size: int) -> float:
        heard.set()
        return slow(size)

    device.server._late = late
    _, line = await asyncio.open_connection(host, int(port))
    line.write(b"GET /fj/1/info HTTP/1.1\r\nHost: porch\r\n\r\n")
    await line.drain()
    await asyncio.wait_for(heard.wait(), 5)  # the answer is in the making
    device.reset()
    assert await settled(device, 2) == "1.0"
    line.close()
    await device.stop()


async def test_a_slow_loader_answers_before_it_leaves(tmp_path: Path) -> None:
    device = board(Slow(seconds=0.05), link=tmp_path / "porch")
    await device.start()
    sent: list[str] = []
    assert device.port is not None
    device._enter_loader()
    device.port.send = lambda data: sent.append(device.mode.value)  # type: ignore[method-assign]
    end = b"\0\x04\x04\0\0\0\0\0" + b"\0" * 4  # FLASH_END, reboot
    device._received(slip.encode(end))
    assert await settled(device, 2) == "1.0"
    assert sent[0] == "Loader"
    await device.stop()


def test_simulated_times_divide_by_their_speed() -> None:
    timing = Timing(erase_seconds=0.04, radio_bytes_per_second=100_000, speed=10)
    assert timing.erasing(10 * SECTOR) == pytest.approx(0.04)
    assert timing.receiving(50 * SECTOR) == pytest.approx(50 * SECTOR / 1e6 + 0.2)
    assert Timing().receiving(1 << 20) == 0
    with pytest.raises(ValueError, match="speed"):
        Timing(speed=0)
