# SPDX-License-Identifier: Apache-2.0
"""A loader that others wrote: what our program writes into it and into our virtual chip is the same, byte for byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from esp32_mock_bootloader import mock_bootloader  # type: ignore[import-untyped]

from firmware_pipeline.esp.builder import build_app
from flashjob.flasher.esptool import Esptool
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.profile import Owner, make_identity
from flashjob.wire.esptool_lines import Region
from flashjob.wire.serial import SerialSettings

APP_OFFSET, RECORD_OFFSET = 0x20000, 0xD000


def silent(_done: int, _total: int) -> None:
    """Progress is not the question here."""


async def write_and_read(port: str, chip: str, image: Path, record: Path, *, stub: bool) -> dict[int, bytes]:
    """What a flashing pod does to a port: image, then record; then both as the chip's ROM reads them."""
    async with Esptool(port, SerialSettings(baud=115_200, reset="none", stub=stub), chip=chip) as tool:
        regions = [Region(offset=APP_OFFSET, file=str(image)), Region(offset=RECORD_OFFSET, file=str(record))]
        await tool.probe()
        await tool.write(regions, [Region(offset=RECORD_OFFSET, size=4096)], silent)
    async with Esptool(port, SerialSettings(baud=115_200, reset="none", stub=False), chip=chip) as rom:
        sizes = (APP_OFFSET, image.stat().st_size), (RECORD_OFFSET, 4096)
        return await rom.read(*(Region(offset=offset, size=size) for offset, size in sizes))


@pytest.mark.parametrize(
    ("chip", "stub"),
    [
        ("esp32c3", True),
        pytest.param("esp32c3", False, marks=pytest.mark.slow),
        pytest.param("esp32", True, marks=pytest.mark.slow),
        pytest.param("esp32s3", True, marks=pytest.mark.slow),
        pytest.param("esp32c6", True, marks=pytest.mark.slow),
    ],
)
async def test_both_loaders_end_with_the_same_flash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: str, stub: bool
) -> None:
    monkeypatch.setenv("ESP32_MOCK_BOOTLOADER_STATE_DIR", str(tmp_path / "theirs"))  # else one folder for all users
    image, record = tmp_path / "app.bin", tmp_path / "record.bin"
    image.write_bytes(build_app(chip, "porch", "2.0.0", payload_size=16 * 1024, pad_to_page=False))
    record.write_bytes(bytes(range(32)).ljust(4096, b"\xff"))
    device = VirtualDevice("ours", make_identity("ours", chip, tier="SelfReported"), Owner(), tcp="socket")
    await device.start()
    assert device.port is not None
    theirs = await asyncio.to_thread(mock_bootloader, chip)
    try:
        in_theirs = await write_and_read(theirs.url(), chip, image, record, stub=stub)
        in_ours = await write_and_read(device.port.path, chip, image, record, stub=stub)
    finally:
        await asyncio.to_thread(theirs.stop)
        await device.stop()
    assert in_ours == in_theirs
    assert in_ours == {APP_OFFSET: image.read_bytes(), RECORD_OFFSET: record.read_bytes()}
    assert device.flash.read(APP_OFFSET, image.stat().st_size) == image.read_bytes()
