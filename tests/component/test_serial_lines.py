# SPDX-License-Identifier: Apache-2.0
"""The lines behind which a chip may be: noisy ones, TCP, RFC 2217 with true reset lines; and what a write spares."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest

from firmware_pipeline.esp import builder
from flashjob.errors import FlashJobError
from flashjob.flasher.esptool import Esptool
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.faults import BitFlips, ChipHangs, NoisyLine
from flashjob.virtual.reset_lines import ResetLines, UartBridge, UsbSerialJtag
from flashjob.wire.esptool_lines import Region
from flashjob.wire.gateway import Outcome
from flashjob.wire.serial import SerialSettings

from .bench import OWNER, Bench, BenchJudge, assignment, identity, new_app, old_app, open_release, push

SLOT = builder.default_partitions().ota_slots[1].offset
SECTOR = 4096


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def quiet(_done: int, _total: int) -> None:
    """Nobody watches."""


async def far(bench: Bench) -> VirtualDevice:
    """A chip behind true reset lines."""
    device = VirtualDevice("far", identity("far", "esp32c3"), OWNER, tcp="rfc2217")
    device.factory_flash(old_app("esp32c3"))
    bench.devices.append(device)
    await device.start()
    return device


async def runs_again(device: VirtualDevice) -> None:
    """It left its loader: the line is one way, so that takes a moment."""
    async with asyncio.timeout(5):
        while device.mode is not Mode.RUNNING:
            await asyncio.sleep(0.01)


async def write(device: VirtualDevice, file: Path, *, baud: int = 460_800, stub: bool = True) -> int:
    """Write `file` into the second slot: bytes written."""
    assert device.port is not None
    async with Esptool(device.port.path, SerialSettings(baud=baud, stub=stub)) as tool:
        await tool.write([Region(offset=SLOT, file=str(file))], [], quiet)
        return tool.bytes_written


@pytest.mark.parametrize("protocol", ["socket", "rfc2217"])
async def test_an_update_over_tcp_is_proven(
    bench: Bench, tmp_path: Path, protocol: Literal["socket", "rfc2217"]
) -> None:
    device = VirtualDevice("far", identity("far", "esp32s3"), OWNER, tcp=protocol)
    device.factory_flash(old_app("esp32s3"))
    bench.devices.append(device)
    await device.start()
    assert device.port is not None
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    judge = BenchJudge(device, task)
    firmware = fetch(open_release(release), release.target, bench.work)
    transport = SerialTransport(device.port.path, bench.work)
    result = await Attempt(task, firmware, transport, judge).run()
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert device.flash.read(SLOT, len(release.image)) == release.image


@pytest.mark.parametrize("reset", ["classic", "D0|R1|W0.1|D1|R0|W0.05|D0"])
async def test_reset_lines_bring_a_chip_into_its_loader_and_out_again(bench: Bench, reset: str) -> None:
    device = await far(bench)
    assert device.port is not None
    boots = device.boots
    async with Esptool(device.port.path, SerialSettings(reset=reset)) as tool:
        await tool.probe()
        assert device.mode is Mode.LOADER
        assert device.boots == boots, "opening the port reset nothing"
        await tool.reset()


@pytest.mark.parametrize(
    ("wiring", "reset", "wrong"),
    [
        (UsbSerialJtag, "usb-jtag", "classic"),
        (lambda: UartBridge(inverted=True), "D1|R1|W0.1|D0|R0|W0.05|D1", "classic"),
    ],
    ids=["usb-jtag", "own sequence"],
)
async def test_a_board_that_is_wired_otherwise_needs_its_own_way(
    bench: Bench, wiring: Callable[[], ResetLines], reset: str, wrong: str
) -> None:
    device = await far(bench)
    assert device.port is not None
    device.wiring = wiring()
    async with Esptool(device.port.path, SerialSettings(reset=wrong)) as tool:
        with pytest.raises(FlashJobError, match="PortSilent"):
            await tool.probe()
    assert device.mode is Mode.RUNNING
    async with Esptool(device.port.path, SerialSettings(reset=reset)) as tool:
        chip, _ = await tool.probe()
        assert (chip.chip, device.mode) == ("esp32c3", Mode.LOADER)
        await tool.reset()
    await runs_again(device)


async def test_who_pressed_the_button_leaves_the_loader_without_lines(bench: Bench) -> None:
    device = await far(bench)
    assert device.port is not None
    device._enter_loader()
    async with Esptool(device.port.path, SerialSettings(reset="none")) as tool:
        await tool.probe()
        await tool.reset()
    await runs_again(device)


async def test_without_reset_lines_nobody_gets_a_running_chip_into_its_loader(bench: Bench) -> None:
    device = await far(bench)
    assert device.port is not None
    async with Esptool(device.port.path, SerialSettings(reset="none")) as tool:
        with pytest.raises(FlashJobError) as refused:
            await tool.probe()
    assert refused.value.reason == "PortSilent"
    assert device.mode is Mode.RUNNING


@pytest.mark.parametrize(("limit", "stub"), [(460_800, True), (115_200, False)], ids=["stub", "rom"])
async def test_a_rate_that_does_not_carry_is_left(bench: Bench, tmp_path: Path, limit: int, stub: bool) -> None:
    device = await bench.device(faults=[NoisyLine(baud=limit)])
    file = tmp_path / "app.bin"
    file.write_bytes(new_app("esp32s3"))
    assert await write(device, file, baud=921_600, stub=stub) == len(file.read_bytes())
    assert device.port is not None
    assert device.port.baud == limit
    assert device.flash.read(SLOT, file.stat().st_size) == file.read_bytes()


@pytest.mark.parametrize("stub", [True, False], ids=["stub", "rom"])
async def test_only_changed_sectors_are_written(bench: Bench, tmp_path: Path, stub: bool) -> None:
    device = await bench.device()
    image = bytearray(random.Random(1).randbytes(50 * SECTOR + 1000))
    file = tmp_path / "app.bin"
    file.write_bytes(image)
    assert await write(device, file, stub=stub) == len(image)
    programmed = device.flash.bytes_programmed
    assert await write(device, file, stub=stub) == 0
    assert device.flash.bytes_programmed == programmed
    image[7 * SECTOR + 5] ^= 0xFF
    image[50 * SECTOR + 999] ^= 0xFF
    file.write_bytes(image)
    assert await write(device, file, stub=stub) == SECTOR + 1000
    assert device.flash.read(SLOT, 51 * SECTOR) == bytes(image).ljust(51 * SECTOR, b"\xff")


async def test_changed_sectors_that_came_out_wrong_are_followed_by_the_whole(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device()
    image = bytearray(random.Random(1).randbytes(60 * SECTOR))
    file = tmp_path / "app.bin"
    file.write_bytes(image)
    await write(device, file)
    image[: 20 * SECTOR] = random.Random(2).randbytes(20 * SECTOR)
    file.write_bytes(image)
    device.faults.append(BitFlips(percent=0))
    assert await write(device, file) == 20 * SECTOR + len(image)
    assert device.flash.read(SLOT, len(image)) == image


async def test_a_chip_that_hangs_once_is_connected_again_and_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(faults=[ChipHangs(percent=60)])
    file = tmp_path / "app.bin"
    file.write_bytes(random.Random(1).randbytes(600 * 1024))
    seen: list[tuple[int, int]] = []
    assert device.port is not None
    async with Esptool(device.port.path) as tool:
        await tool.write([Region(offset=SLOT, file=str(file))], [], lambda *at: seen.append(at))
        assert tool.bytes_written == file.stat().st_size, "what was acknowledged is not written again"
    assert device.flash.read(SLOT, file.stat().st_size) == file.read_bytes()
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)


@pytest.mark.parametrize(("offset", "reason"), [(SLOT + 1, "InternalError"), (0x3FF000, "ImageTooLarge")])
async def test_what_does_not_fit_is_refused_before_a_byte_is_erased(
    bench: Bench, tmp_path: Path, offset: int, reason: str
) -> None:
    device = await bench.device()
    assert device.port is not None
    file = tmp_path / "app.bin"
    file.write_bytes(b"\xe9" * 2 * SECTOR)
    erased = device.flash.bytes_erased
    async with Esptool(device.port.path) as tool:
        with pytest.raises(FlashJobError) as refused:
            await tool.write([Region(offset=offset, file=str(file))], [], quiet)
    assert refused.value.reason == reason
    assert device.flash.bytes_erased == erased
