# SPDX-License-Identifier: Apache-2.0
"""Power that fails at any sector of a whole update: who boots afterwards, and what becomes of the next attempt.

A *cut* is one update of one device by the real flasher before the real judge, in which the power fails just before the
n-th sector of flash is programmed, or erased, wherever that is: image, the rest of its last page, OTA data, and what the
bootloader and the confirmation write there. Rules (tests name them):

1. With two slots the device then boots the old image or the new one. With one slot, overwritten in place, it may boot
   nothing; never something else.
2. The next attempt is PROVEN, and the new image runs.
3. A cut counts only if the power really failed.
4. Where an attempt ended for a reason that a starved machine can cause, the cut is made anew on a new device, and told.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal

from firmware_pipeline.esp import builder, partitions
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt, Firmware
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.faults import PowerCut
from flashjob.wire.gateway import DeviceResult, Outcome
from flashjob.wire.pod import Safety, Timeouts

from .bench import Bench, BenchJudge, Release, app, assignment, open_release, push
from .court import HEARINGS, TIME_ALONE

Layout = Literal["serial, two slots", "serial, in place", "network"]
During = Literal["program", "erase"]
KINDS: Final[tuple[tuple[Layout, During], ...]] = (
    ("serial, two slots", "program"),
    ("serial, two slots", "erase"),
    ("serial, in place", "program"),
    ("serial, in place", "erase"),
    ("network", "program"),
    ("network", "erase"),
)

CHIP: Final = "esp32c3"
IMAGE_BYTES: Final = 1_600 * 1024
SAMPLE_BYTES: Final = 200 * 1024
WORKERS: Final = 2
AT_ONCE: Final = 8
"""Devices of one worker: each has an esptool process, and some wait for a chip that cannot answer."""
SHARE: Final = 24
"""Cuts that a worker makes before it reports."""
_LAST: Final = 4
"""Sectors at the end of an update: of the image, and the selecting record as written, booted, confirmed."""
_STARVED: Final = TIME_ALONE | {"PortSilent", "PortVanished", "BeforeAttestationFailed", "WriteTimeout"}
_NEVER: Final = 1 << 30


@dataclass(frozen=True)
class Cut:
    """Where the power fails."""

    layout: Layout
    during: During
    sector: int
    image_bytes: int = IMAGE_BYTES


@dataclass
class Tally:
    """What came of the cuts of one kind, or of all."""

    cuts: int = 0
    booted: Counter[str] = field(default_factory=Counter)
    """"old", "new", "none": which image ran when the power was back, by number of cuts; "uncut" breaks rule 3."""
    proven: int = 0
    strays: list[str] = field(default_factory=list)
    """What broke a rule, as text."""
    adjourned: Counter[str] = field(default_factory=Counter)
    """Cuts made anew (rule 4), by reason. None on an idle machine."""

    def add(self, other: Tally) -> None:
        """Put another tally's numbers to these."""
        self.cuts += other.cuts
        self.booted.update(other.booted)
        self.proven += other.proven
        self.strays += other.strays
        self.adjourned.update(other.adjourned)


class Outage(PowerCut):
    """Power that comes back only by hand. A board on a serial line lives on its cable: its port is gone with the power."""

    def __init__(self, device: VirtualDevice, sector: int, during: During) -> None:
        super().__init__(sector=sector, during=during, back_seconds=None)
        self._device = device
        self.began = asyncio.Event()

    def cuts(self, operation: str) -> bool:
        struck = PowerCut.cuts(self, operation)
        if struck:
            self.began.set()
            if self._device.port is not None:
                asyncio.get_running_loop().call_soon(self._device.unplug)
        return struck


class Matrix:
    """Cuts the power of devices below one directory.

    Args:
        root: an existing directory.
        boot_seconds: how long a device is waited for; a busy machine needs long, and what boots nothing takes it twice.
    """

    def __init__(self, root: Path, boot_seconds: int = 10) -> None:
        self._patience = Timeouts(boot_seconds=boot_seconds, attest_seconds=30, write_seconds=300, confirm_seconds=20)
        self._bench, self._root = Bench(root), root
        self._releases: dict[int, tuple[Release, Firmware]] = {}
        self._number = 0

    async def sectors(self, layout: Layout, during: During, image_bytes: int = IMAGE_BYTES) -> int:
        """How many sectors an update programs or erases, from its first byte to its confirmation: found by one."""
        counter = PowerCut(sector=_NEVER, during=during)
        device = await self._device(Cut(layout, during, _NEVER, image_bytes))
        device.faults.append(counter)
        result, _ = await self._attempt(device, Cut(layout, during, _NEVER, image_bytes), None)
        await device.stop()
        assert result.ok, result
        return counter.passed

    async def cut_all(self, cuts: Iterable[Cut]) -> Tally:
        """All of them, `AT_ONCE` at a time."""
        total, places = Tally(), asyncio.Semaphore(AT_ONCE)

        async def one(cut: Cut) -> None:
            async with places:
                for hearing in range(1, HEARINGS + 1):
                    tally, reason = await self._cut(cut)
                    if not tally.strays or reason not in _STARVED or hearing == HEARINGS:
                        break
                    total.adjourned[reason] += 1
                total.add(tally)

        await asyncio.gather(*map(one, cuts))
        return total

    async def _cut(self, cut: Cut) -> tuple[Tally, str]:
        """What came of it; the reason of the attempt that failed though nothing was wrong, "" if an image was."""
        device = await self._device(cut)
        fault = Outage(device, cut.sector, cut.during)
        device.faults.append(fault)
        power = asyncio.create_task(_power_back(device, fault)) if device.port is None else None
        first, judge = await self._attempt(device, cut, None)
        if not fault.began.is_set():
            booted = "uncut"
        else:
            booted = await (power or _power_back(device, fault))
        if power is not None:
            power.cancel()
        last = first
        if not first.ok:
            judge.next_attempt()
            last, judge = await self._attempt(device, cut, judge)
        running = await _settled(device) if last.ok else "what it was left with"
        await device.stop()
        tally = Tally(cuts=1, booted=Counter([booted]))
        tally.proven = int(last.ok and judge.outcome in (Outcome.PROVEN, Outcome.ALREADY_RUNNING) and running == "new")
        told = f"{cut}: {first.reason}, booted {booted}; {last.reason}: {last.message}; runs {running}"
        allowed = ("old", "new", "none") if cut.layout == "serial, in place" else ("old", "new")
        if booted not in allowed or not tally.proven:
            tally.strays.append(f"{told}; {device.boot_failure}" if device.boot_failure else told)
        if booted == "uncut":
            return tally, first.reason
        return tally, last.reason if booted in allowed else ""

    async def _device(self, cut: Cut) -> VirtualDevice:
        self._number += 1
        network = cut.layout == "network"
        old = _old(cut.image_bytes)
        device = await self._bench.device(f"d{self._number}", CHIP, network=network, app=old)
        self._bench.devices.remove(device)
        if cut.layout == "serial, in place":
            await device.stop()
            one_slot(device, old)
            await device.start()
        return device

    async def _attempt(
        self, device: VirtualDevice, cut: Cut, judge: BenchJudge | None
    ) -> tuple[DeviceResult, BenchJudge]:
        release, firmware = await self._release(cut.image_bytes)
        task = assignment(
            device,
            release.target,
            attempt=1 if judge is None else judge.case.attempt,
            timeouts=self._patience,
            safety=Safety(allow_in_place=cut.layout == "serial, in place"),
        )
        judge = judge or BenchJudge(device, task)
        transport: Transport
        if device.port is not None:
            transport = SerialTransport(device.port.place, self._bench.work)
        else:
            transport = NetworkTransport(task.address or "")
        return await Attempt(task, firmware, transport, judge).run(), judge

    async def _release(self, image_bytes: int) -> tuple[Release, Firmware]:
        if image_bytes not in self._releases:
            release = push(self._root, _new(image_bytes), CHIP)
            firmware = await asyncio.to_thread(fetch, open_release(release), release.target, self._bench.work)
            self._releases[image_bytes] = release, firmware
        return self._releases[image_bytes]


def one_slot(device: VirtualDevice, image: bytes) -> None:
    """As it left the factory, but that its table has no second slot."""
    device.factory_flash(image)
    offset = device.identity.hardware.table_offset
    rows = [row for row in builder.default_partitions(table_offset=offset).partitions if row.name != "ota_1"]
    device.flash.load(offset, partitions.build_table(partitions.check(rows)))


async def _power_back(device: VirtualDevice, outage: Outage) -> str:
    """Give it power again once it has failed: what boots, see `_settled`."""
    await outage.began.wait()
    device.boot_failure = ""
    if device.port is None:
        device.reset()
    else:
        device.replug()
    return await _settled(device)


async def _settled(device: VirtualDevice) -> str:
    """Wait until it runs and can be reached: "old", "new", or "none" if nothing can boot."""
    async with asyncio.timeout(30):
        while not device.boot_failure and not (
            device.mode is Mode.RUNNING and (device.port is not None or device.server.address)
        ):
            await asyncio.sleep(0.005)
    if device.application is None:
        return "none"
    return {"1.0.0": "old", "2.0.0": "new"}[device.application.boot.version]


def hold(cuts: Sequence[Cut]) -> Tally:
    """Cuts in a directory of their own: for worker processes."""
    logging.getLogger("flashjob").setLevel(logging.ERROR)

    async def all_of_them(root: Path) -> Tally:
        return await Matrix(root).cut_all(cuts)

    with tempfile.TemporaryDirectory(prefix="flashjob-power-") as folder:
        return asyncio.run(all_of_them(Path(folder)))


def workers() -> ProcessPoolExecutor:
    """Processes for `matrix`."""
    return ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=unwind_on_sigterm)


def unwind_on_sigterm() -> None:
    """SIGTERM ends this process with its directory put away."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def matrix(pool: ProcessPoolExecutor, layout: Layout, during: During, step: int = 1) -> Iterator[tuple[int, Tally]]:
    """Every `step`-th sector of a whole update, and its last four.

    Yields, as shares of them are done, (number of cuts wanted, tally so far).
    """
    end = pool.submit(_rehearse, layout, during).result()
    wanted = sorted({*range(0, end, step), *range(end - _LAST, end)})
    shares = max(WORKERS, len(wanted) // SHARE)
    total = Tally()
    for tally in pool.map(hold, ([Cut(layout, during, n) for n in wanted[i::shares]] for i in range(shares))):
        total.add(tally)
        yield len(wanted), total


def _rehearse(layout: Layout, during: During) -> int:
    async def count(root: Path) -> int:
        return await Matrix(root).sectors(layout, during)

    with tempfile.TemporaryDirectory(prefix="flashjob-power-") as folder:
        return asyncio.run(count(Path(folder)))


@cache
def _old(image_bytes: int) -> bytes:
    return app(CHIP, "1.0.0", image_bytes - 64 * 1024)


@cache
def _new(image_bytes: int) -> bytes:
    return app(CHIP, "2.0.0", image_bytes - 64 * 1024)
