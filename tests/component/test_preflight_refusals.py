# SPDX-License-Identifier: Apache-2.0
"""Every refusal of preflight, over both transports, through the real flasher: 0 bytes, by the device's own counter.

What cannot be built into a virtual device (an application that lies about its chip, a bootloader without rollback) is
said in its place by a transport that bends one answer on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from attestation.device_protocol import Flag, Info
from firmware_pipeline.esp import builder, partitions
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.hardware import HardwareFacts
from flashjob.flasher.content import Content, permitted
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.base import Locate, Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual import secure_boot
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.pod import Data, Safety

from .bench import Bench, BenchJudge, assignment, new_app, open_release, push_parts, runs, signed

CHIP = "esp32s3"
Bend = Callable[[Any], Any]


def same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Refusal:
    """One thing that is wrong, and what it must be called."""

    reason: str
    image: Callable[[], bytes] = lambda: new_app(CHIP)
    parts: dict[int, bytes] = field(default_factory=dict)
    """What the artifact holds beside the application: flash offset -> image."""
    bootloader: bytes = b""
    """Another one than was pushed: push refuses most of what is wrong with one."""
    info: Bend = same
    """Bends what the application says."""
    facts: Bend = same
    """Bends what the chip shows."""
    task: dict[str, Any] = field(default_factory=dict)
    safety: dict[str, Any] = field(default_factory=dict)
    sequence: int = 2
    only: str = ""
    """The one transport it can come up on."""


def said(**changes: Any) -> Bend:
    return lambda value: value.model_copy(update=changes)


def without(flag: Flag) -> Bend:
    return lambda info: info.model_copy(update={"flags": info.flags & ~flag})


def built(**changes: Any) -> Callable[[], bytes]:
    return lambda: signed(builder.build_app(CHIP, "porch", "2.0.0", payload_size=100 * 1024, **changes))


OLD = builder.default_partitions()


def table(**changes: dict[str, Any]) -> bytes:
    """The devices' partition table with rows changed."""
    return partitions.build_table(
        partitions.check([replace(row, **changes.get(row.name, {})) for row in OLD.partitions], table_offset=0x8000)
    )


def loader(**changes: Any) -> bytes:
    """A bootloader of which one thing is wrong."""
    chip = by_target(changes.pop("chip", CHIP))
    entry, code = chip.iram[0] + 0x4000, bytes(changes.pop("size", 16 * 1024))
    return builder.assemble(chip, [(entry, code)], entry=entry, **changes)


MAKER, STRANGER = secure_boot.maker_key(b""), secure_boot.maker_key(b"another maker")
ENFORCES = {
    "secure_boot": True,
    "secure_boot_key_digests": (secure_boot.key_digest(MAKER.public_key()).hex(),),
}
BOOTLOADER, TABLE, WIPE = {"allow_bootloader": True}, {"allow_partition_table": True}, {"data": Data.WIPE}
GOOD = {0x0: signed(builder.build_bootloader(CHIP, version=2))}
BIGGER = {0x8000: table(ota_1={"size": 0x1B0000}, storage={"offset": 0x390000, "size": 0x70000})}
GONE = {0x8000: table(ota_0={"size": 0x1B0000})}
MOVED = {0x8000: table(nvs={"offset": 0xB000, "size": 0x4000}, otadata={"offset": 0x9000})}
OVER = {0x8000: table(ota_0={"size": 0x100000}, ota_1={"offset": 0x120000, "size": 0x280000})}
UNSIGNED = builder.build_app(CHIP, "porch", "2.0.0", payload_size=100 * 1024)
REFUSALS = {
    "another MAC": Refusal("WrongDevice", task={"mac": "24:6f:28:00:00:00"}, only="serial"),
    "a MAC that is not told": Refusal("WrongDevice", facts=said(mac=None), only="serial"),
    "another id": Refusal("WrongDevice", info=said(ueid=b"\x01" + bytes(32))),
    "the application says another chip": Refusal("HardwareContradiction", info=said(chip_id=5)),
    "another chip in the socket": Refusal("HardwareContradiction", facts=said(target="esp32c3", chip_id=5)),
    "another chip everywhere": Refusal("WrongChip", info=said(chip_id=5), facts=said(target="esp32c3", chip_id=5)),
    "the application says another revision": Refusal("HardwareContradiction", info=said(chip_revision=300)),
    "the application says more flash": Refusal("HardwareContradiction", info=said(flash_size=1 << 25)),
    "the application says another partition table": Refusal(
        "HardwareContradiction", info=said(partition_table=bytes(32))
    ),
    "a chip that enforces what the application denies": Refusal(
        "HardwareContradiction", info=without(Flag.SECURE_BOOT), facts=said(secure_boot=True)
    ),
    "a chip of an older revision": Refusal("ChipRevision", image=built(min_rev=100)),
    "flash smaller than the image was built for": Refusal("FlashTooSmall", image=built(flash_size="16MB")),
    "an image larger than the slot": Refusal("ImageTooLarge", facts=said(target_slot_size=64 * 1024)),
    "no inactive slot": Refusal("NoUpdateSlot", facts=said(target_slot=None, target_slot_size=None)),
    "an unsigned image for secure boot": Refusal("SecureBootMismatch", image=lambda: UNSIGNED),
    "flash encryption over serial": Refusal(
        "SecureBootMismatch", facts=said(flash_encryption="release"), only="serial"
    ),
    "secure download mode": Refusal("SecureBootMismatch", facts=said(secure_download=True), only="serial"),
    "download mode unknown": Refusal("PreflightFailed", facts=said(secure_download=None), only="serial"),
    "a security version below the eFuses": Refusal("SecurityVersionRollback", facts=said(efuse_secure_version=3)),
    "a security version that would burn eFuses": Refusal("SecurityVersionBurn", image=built(secure_version=2)),
    "a bootloader without rollback": Refusal("NoRollback", info=without(Flag.ROLLBACK)),
    "another version to start from": Refusal("FromVersion", safety={"from_versions": ("0.9.0",)}),
    "another partition table": Refusal("PartitionMismatch", parts=BIGGER),
    "another partition table over the network": Refusal(
        "PartitionMismatch", parts=BIGGER, safety=TABLE, only="network"
    ),
    "a partition table that loses data": Refusal("DataWouldBeLost", parts=BIGGER, safety=TABLE, only="serial"),
    "a partition table that moves OTA data": Refusal(
        "PartitionMismatch", parts=MOVED, safety=TABLE | WIPE, only="serial"
    ),
    "a partition table under which nothing goes back": Refusal("NoRollback", parts=GONE, safety=TABLE, only="serial"),
    "a partition table whose slots lie on what runs": Refusal("NoUpdateSlot", parts=OVER, safety=TABLE, only="serial"),
    "data to be wiped over the network": Refusal("WipeNeedsSerial", safety=WIPE, only="network"),
    "a data image that begins no partition": Refusal(
        "PartitionMismatch", parts={0x3A1000: b"files"}, safety=WIPE, only="serial"
    ),
    "a bootloader for another chip": Refusal(
        "WrongChip", parts=GOOD, bootloader=loader(chip="esp32c3"), safety=BOOTLOADER, only="serial"
    ),
    "a bootloader for another revision": Refusal(
        "ChipRevision", parts=GOOD, bootloader=signed(loader(min_rev=100)), safety=BOOTLOADER, only="serial"
    ),
    "a bootloader for more flash": Refusal(
        "FlashTooSmall", parts=GOOD, bootloader=signed(loader(flash_size="16MB")), safety=BOOTLOADER, only="serial"
    ),
    "a bootloader that reaches into the table": Refusal(
        "ImageTooLarge", parts=GOOD, bootloader=signed(loader(size=30 * 1024)), safety=BOOTLOADER, only="serial"
    ),
    "an application in the bootloader's place": Refusal(
        "ArtifactInvalid", parts=GOOD, bootloader=new_app(CHIP), safety=BOOTLOADER, only="serial"
    ),
    "noise in the bootloader's place": Refusal(
        "ArtifactInvalid", parts=GOOD, bootloader=bytes(8192), safety=BOOTLOADER, only="serial"
    ),
    "an unsigned bootloader for secure boot": Refusal(
        "SecureBootMismatch", parts={0x0: builder.build_bootloader(CHIP)}, safety=BOOTLOADER, only="serial"
    ),
    "a bootloader signed by a stranger": Refusal(
        "SecureBootMismatch",
        parts={0x0: secure_boot.sign(builder.build_bootloader(CHIP), STRANGER)},
        facts=said(**ENFORCES),
        safety=BOOTLOADER,
        only="serial",
    ),
    "an older version": Refusal("Downgrade", facts=said(app_name="porch", app_version="9.0.0"), sequence=0),
}


class Bent:
    """A transport whose answers are bent on their way; everything else is the real one's."""

    def __init__(self, way: Transport, refusal: Refusal) -> None:
        self._way, self._refusal = way, refusal

    async def info(self, seconds: float, locate: Locate | None = None) -> Info:
        info: Info = self._refusal.info(await self._way.info(seconds, locate))
        return info

    async def probe(self, partition_table_offset: int, content: Content | None = None) -> HardwareFacts:
        facts: HardwareFacts = self._refusal.facts(await self._way.probe(partition_table_offset, content))
        return facts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._way, name)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def written(device: VirtualDevice) -> tuple[int, int, dict[str, Any]]:
    """What the device itself counted."""
    regions = {name: (r.erased, r.programmed, r.installs) for name, r in device.flash.regions.items()}
    return device.flash.bytes_erased, device.flash.bytes_programmed, regions


CASES = [(name, way) for name, one in REFUSALS.items() for way in ("serial", "network") if one.only in ("", way)]


@pytest.mark.parametrize(("name", "transport"), CASES)
async def test_a_refusal_writes_nothing(bench: Bench, name: str, transport: str) -> None:
    refusal = REFUSALS[name]
    device = await bench.device(network=transport == "network")
    release = push_parts(bench.tmp_path, {0x20000: refusal.image(), **refusal.parts}, CHIP, refusal.sequence or 1)
    target = release.target if refusal.sequence else release.target.model_copy(update={"sequence": 0})
    task = assignment(device, target, safety=Safety(**refusal.safety), **refusal.task)
    roles = permitted(task.safety, task.transport)
    firmware = await asyncio.to_thread(lambda: fetch(open_release(release), release.target, bench.work, roles=roles))
    if refusal.bootloader:
        ((entry, _),) = firmware.extras
        firmware = replace(firmware, extras=((entry, refusal.bootloader),))
    real: Transport
    if device.port is not None:
        real = SerialTransport(device.port.path, bench.work)
    else:
        real = NetworkTransport(device.server.address)
    judge, before = BenchJudge(device, task), written(device)
    result = await Attempt(task, firmware, Bent(real, refusal), judge).run()
    assert (result.reason, result.ok, result.bytes_written) == (refusal.reason, False, 0), result.message
    assert written(device) == before, "not a byte was erased or programmed"
    assert not judge.case.permits, "and no permit was asked for"
    assert result.message
    await runs(device, "1.0.0")
