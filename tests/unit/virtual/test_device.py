# SPDX-License-Identifier: Apache-2.0
"""A whole virtual device: the rules of device.py, by what a host sees on its port."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.device_protocol import DeviceError
from attestation.device_serial import SerialDevice
from attestation.serial_port import SerialPort, open_port
from firmware_pipeline.esp import otadata
from firmware_pipeline.esp.builder import build_app, default_partitions
from flashjob.virtual import slip
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.faults import SilentPort, make_fault
from flashjob.virtual.profile import Owner, make_identity
from flashjob.virtual.rom import SYNC

TABLE = default_partitions()
OLD, NEW = (build_app("esp32c3", "porch", version, payload_size=32 * 1024) for version in ("1.0", "2.0"))
SYNC_FRAME = slip.encode(struct.pack("<BBHI", 0, 8, len(SYNC), 0) + SYNC)
LEAVE = slip.encode(struct.pack("<BBHII", 0, 4, 4, 0, 0))


def board(tmp_path: Path, **options: object) -> VirtualDevice:
    identity = make_identity("porch", "esp32c3", tier="SelfReported")
    device = VirtualDevice("porch", identity, Owner(), link=tmp_path / "porch", **options)  # type: ignore[arg-type]
    device.factory_flash(OLD)
    return device


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[VirtualDevice]:
    device = board(tmp_path)
    await device.start()
    yield device
    await device.stop()


async def until(device: VirtualDevice, mode: Mode, boots: int) -> None:
    async with asyncio.timeout(5):
        while (device.mode, device.boots) != (mode, boots):
            await asyncio.sleep(0.005)


async def host(device: VirtualDevice) -> SerialPort:
    assert device.port is not None
    return await open_port(device.port.path)


def install(device: VirtualDevice, image: bytes) -> None:
    """What a writer leaves behind: the image in ota_1, selected as NEW."""
    device.flash.load(TABLE.ota_slots[1].offset, image)
    place = TABLE.otadata
    assert place is not None
    sector, record = otadata.select_record(
        device.flash.read(place.offset, place.size),
        1,
        2,
        boot_id=bytes(range(16)),
    )
    device.flash.load(place.offset + sector * 4096, record)


async def test_rules_1_and_2_sync_enters_the_loader_and_leaving_it_boots(device: VirtualDevice) -> None:
    port = await host(device)
    await port.write(b"\n\n")
    await port.write(SYNC_FRAME)
    answers = b""
    while answers.count(slip.END) < 16:
        answers += await port.read()
    assert device.mode is Mode.LOADER
    assert device.application is None
    await port.write(LEAVE)
    await until(device, Mode.RUNNING, 2)
    port.close()


async def test_rule_2_a_loader_answers_no_application_requests(device: VirtualDevice) -> None:
    port = await host(device)
    await port.write(SYNC_FRAME)
    client = SerialDevice(port, repeat_seconds=0.05)
    with pytest.raises(DeviceError) as refused:
        await client.info()
    assert refused.value.reason == "Timeout"
    device.reset()
    await until(device, Mode.RUNNING, 2)
    assert (await client.info()).version == "1.0"
    await client.close()


async def test_rule_3_flash_and_nvs_survive_ram_does_not(device: VirtualDevice) -> None:
    seed = device.application.info().bootseed if device.application else b""
    device.nvs.fence = 7
    device.reset()
    await until(device, Mode.RUNNING, 2)
    assert device.application is not None
    assert device.application.info().bootseed != seed
    assert (device.nvs.fence, device.nvs.boot_count) == (7, 2)


async def test_rule_4_the_deadline_brings_the_old_image_back(tmp_path: Path) -> None:
    device = board(tmp_path, confirm_seconds=1)
    install(device, NEW)
    await device.start()
    assert device.application is not None
    assert device.application.boot.version == "2.0"
    await until(device, Mode.RUNNING, 2)
    assert device.application.boot.version == "1.0"
    await device.stop()


async def test_rule_4_a_reset_before_the_confirmation_does_too(device: VirtualDevice) -> None:
    install(device, NEW)
    device.reset()
    await until(device, Mode.RUNNING, 2)
    assert device.application is not None
    assert device.application.boot.version == "2.0"
    device.reset()
    await until(device, Mode.RUNNING, 3)
    assert device.application.boot.version == "1.0"


async def test_rule_5_counters_tell_what_happened(device: VirtualDevice) -> None:
    slot = TABLE.ota_slots[1]
    device.flash.erase(slot.offset, 4096)
    device.flash.program(slot.offset, NEW[:4096])
    counters = device.counters()
    assert (counters["boots"], counters["installs"], counters["mode"]) == (1, 1, "Running")
    partitions = counters["partitions"]
    assert isinstance(partitions, dict)
    assert partitions["ota_1"] == {"erased": 4096, "programmed": 4096, "installs": 1}
    assert partitions["ota_0"] == {"erased": 0, "programmed": 0, "installs": 0}


async def test_blank_flash_is_dead_but_its_loader_lives(device: VirtualDevice) -> None:
    device.flash.load(0, b"\xff" * device.flash.size)
    device.reset()
    await until(device, Mode.DEAD, 2)
    assert "NoBootloader" in device.boot_failure
    port = await host(device)
    await port.write(SYNC_FRAME)
    await until(device, Mode.LOADER, 2)
    port.close()


async def test_silent_port_answers_nobody(tmp_path: Path) -> None:
    device = board(tmp_path, faults=[SilentPort()])
    await device.start()
    port = await host(device)
    await port.write(SYNC_FRAME)
    client = SerialDevice(port, repeat_seconds=0.05)
    with pytest.raises(DeviceError):
        await client.info()
    assert device.mode is Mode.DEAD
    await client.close()
    await device.stop()


async def test_locked_loader_shows_the_fuses(tmp_path: Path) -> None:
    identity = make_identity("porch", "esp32c3")
    device = VirtualDevice("porch", identity, Owner(), link=tmp_path / "porch", locked_loader=True)
    assert device._rom is not None
    assert device._rom.fuses.secure_download
    assert device._rom.fuses.secure_boot
    open_one = VirtualDevice("porch", identity, Owner(), link=tmp_path / "porch")
    assert open_one._rom is not None
    assert not open_one._rom.fuses.secure_download


async def test_stop_leaves_nothing(tmp_path: Path) -> None:
    device = board(tmp_path)
    await device.start()
    device.reset()
    await device.stop()
    assert list(tmp_path.iterdir()) == []
    await asyncio.sleep(0.1)
    assert device.mode is Mode.DEAD


@pytest.mark.parametrize("spec", [{}, {"kind": "Nothing"}, {"kind": "CablePulled", "wheels": 4}])
def test_unknown_faults_are_refused(spec: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"none of|has no"):
        make_fault(spec)
