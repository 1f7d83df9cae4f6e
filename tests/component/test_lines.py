# SPDX-License-Identifier: Apache-2.0
"""What plain esptool makes of the virtual chips: over bare TCP and over RFC 2217 with real reset lines.

esptool is the judge here: it finds chip, revision, MAC and flash size by its own rules, and never learns that the chip is
none.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.chips import by_target
from flashjob.virtual.chip_registers import TARGETS
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.profile import Owner, make_identity
from flashjob.virtual.tcp_port import Protocol


async def esptool(device: VirtualDevice, *arguments: str, before: str = "default-reset") -> str:
    """What it prints; fails with it if its exit code is not 0."""
    assert device.port is not None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "esptool", "--port", device.port.path, "--before", before, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def plugged(chip: str, tcp: Protocol, revision: int | None = None) -> VirtualDevice:
    identity = make_identity("line", chip, tier="SelfReported", revision=revision, flash_size="8MB")
    device = VirtualDevice("line", identity, Owner(), tcp=tcp)
    device.factory_flash(build_app(chip, "porch", "1.0.0", payload_size=16 * 1024, pad_to_page=False))
    await device.start()
    return device


REVISIONS = {"esp32": 301, "esp32s2": 100, "esp32s3": 2, "esp32c3": 104, "esp32c6": 2, "esp32h2": 102, "esp32p4": 103}


QUICK = {"esp32", "esp32p4", "esp32c5"}
"""Chips whose registers lie nowhere near the others'."""


@pytest.mark.parametrize(
    "chip", [chip if chip in QUICK else pytest.param(chip, marks=pytest.mark.slow) for chip in sorted(TARGETS)]
)
async def test_esptool_knows_every_virtual_chip(chip: str) -> None:
    revision = REVISIONS.get(chip, 100)
    device = await plugged(chip, "socket", revision)
    try:
        said = await esptool(device, "flash-id")
    finally:
        await device.stop()
    assert by_target(chip).display in said
    assert f"revision v{revision // 100}.{revision % 100}" in said
    assert ":".join(f"{byte:02x}" for byte in device.identity.hardware.mac) in said
    assert "Detected flash size: 8MB" in said


async def test_reset_lines_enter_and_leave_the_loader(tmp_path: Path) -> None:
    """RTS and DTR alone do it (rule 3 of tcp_port): a SYNC frame does not, and the end of a write does not."""
    device = await plugged("esp32c3", "rfc2217")
    image = build_app("esp32c3", "porch", "2.0.0", payload_size=16 * 1024, pad_to_page=False)
    file = tmp_path / "new.bin"
    file.write_bytes(image)
    slot = device.application.boot.slot if device.application else None
    assert slot is not None
    boots = device.boots
    try:
        said = await esptool(device, "--after", "hard-reset", "write-flash", hex(slot.offset), str(file))
        assert "Hash of data verified." in said
        async with asyncio.timeout(5):
            while device.mode is not Mode.RUNNING:
                await asyncio.sleep(0.01)
        assert device.application is not None
        assert device.application.boot.version == "2.0.0"
        assert device.boots > boots
        assert device.flash.read(slot.offset, len(image)) == image
    finally:
        await device.stop()


async def test_rfc2217_without_reset_stays_out_of_the_loader() -> None:
    """Rule 2 of tcp_port holds for bare sockets alone."""
    device = await plugged("esp32c3", "rfc2217")
    try:
        with pytest.raises(AssertionError, match="Failed to connect"):
            await esptool(device, "--connect-attempts", "1", "chip-id", before="no-reset")
    finally:
        await device.stop()


async def test_one_host_at_a_time_and_lines_are_released_when_it_goes() -> None:
    """Rules 1 and 4 of tcp_port."""
    device = await plugged("esp32c3", "socket")
    assert device.port is not None
    host, port = device.port.path.removeprefix("socket://").split(":")
    try:
        first = await asyncio.open_connection(host, int(port))
        second = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(second[0].read(), 5) == b""
        first[1].close()
        await first[1].wait_closed()
        async with asyncio.timeout(5):
            while device.port.connected:
                await asyncio.sleep(0.01)
        third = await asyncio.open_connection(host, int(port))
        third[1].write(b"\n")
        third[1].close()
        assert device.mode is Mode.RUNNING
    finally:
        await device.stop()
