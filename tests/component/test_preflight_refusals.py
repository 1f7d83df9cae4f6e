# SPDX-License-Identifier: Apache-2.0
"""Every refusal of preflight, over both transports, through the real flasher: 0 bytes, by the device's own counter.

What cannot be built into a virtual device (an application that lies about its chip, a bootloader without rollback) is
said in its place by a transport that bends one answer on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attestation.device_protocol import Flag, Info
from firmware_pipeline.esp import builder
from firmware_pipeline.hardware import HardwareFacts
from flashjob.flasher.content import Content
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.pod import Safety

from .bench import Bench, BenchJudge, assignment, new_app, open_release, push, runs, signed

CHIP = "esp32s3"
Bend = Callable[[Any], Any]


def same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Refusal:
    """One thing that is wrong, and what it must be called."""

    reason: str
    image: Callable[[], bytes] = lambda: new_app(CHIP)
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
    "an older version": Refusal("Downgrade", facts=said(app_name="porch", app_version="9.0.0"), sequence=0),
}


class Bent:
    """A transport whose answers are bent on their way; everything else is the real one's."""

    def __init__(self, way: Transport, refusal: Refusal) -> None:
        self._way, self._refusal = way, refusal

    async def info(self, seconds: float) -> Info:
        info: Info = self._refusal.info(await self._way.info(seconds))
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
    release = push(bench.tmp_path, refusal.image(), CHIP, refusal.sequence or 1)
    target = release.target if refusal.sequence else release.target.model_copy(update={"sequence": 0})
    task = assignment(device, target, safety=Safety(**refusal.safety), **refusal.task)
    firmware = await asyncio.to_thread(fetch, open_release(release), release.target, bench.work)
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
