# SPDX-License-Identifier: Apache-2.0
"""What breaks below the firmware, fault by fault, before the real flasher and judge: what the attempt that it strikes says,
what the device runs then, and that the next attempt updates it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flashjob.virtual.adversaries import Behaviour, LosesConfirm
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.faults import (
    BitFlips,
    BrownOut,
    CablePulled,
    ChipHangs,
    Crash,
    Fault,
    FlashFails,
    PowerCut,
    SilentPort,
    Slow,
    WrongChip,
)
from flashjob.wire.gateway import Outcome
from flashjob.wire.pod import Timeouts

from .bench import Bench, BenchJudge, assignment, new_app, push, runs

LIMITS = Timeouts(boot_seconds=4, attest_seconds=4, write_seconds=30, confirm_seconds=4)
OLD, NEW = "1.0.0", "2.0.0"


@dataclass(frozen=True)
class Case:
    """A fault, and how the attempt that it strikes ends over either transport; None: it cannot strike there."""

    serial: str
    network: str | None
    faults: tuple[Fault, ...] = ()
    behaviour: Behaviour = field(default_factory=Behaviour)
    untouched: bool = False
    """Nothing is written."""


CASES: dict[str, Callable[[], Case]] = {
    "power cut": lambda: Case("Proven", "Proven", (PowerCut(sector=20, back_seconds=0.05),)),
    "corrupt byte": lambda: Case("VerifyFailed", "DeviceRefused", (BitFlips(),)),
    "failing flash": lambda: Case("WriteFailed", "DeviceRefused", (FlashFails(),)),
    "silent": lambda: Case("PortSilent", "DeviceUnreachable", (SilentPort(),), untouched=True),
    "silent in mid-write, once": lambda: Case("Proven", "TransportLost", (ChipHangs(),)),
    "slow": lambda: Case("Proven", "Proven", (Slow(seconds=0.04),)),
    "too slow": lambda: Case("PortSilent", "DeviceUnreachable", (Slow(seconds=6),), untouched=True),
    "disconnect": lambda: Case("PortVanished", "Proven", (CablePulled(),)),
    "wrong chip": lambda: Case("HardwareContradiction", None, (WrongChip(chip="esp32c3"),), untouched=True),
    "brown-out at first boot": lambda: Case("WentBack", "WentBack", (BrownOut(),)),
    "crash after boot": lambda: Case("WentBack", "WentBack", (Crash(seconds=0),)),
    "lost confirm": lambda: Case("Proven", "Proven", behaviour=LosesConfirm(times=1)),
}
STRIKES = [
    (name, transport)
    for name, case in CASES.items()
    for transport in ("serial", "network")
    if transport == "serial" or case().network
]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


@pytest.mark.parametrize(("name", "transport"), STRIKES, ids=[", ".join(strike) for strike in STRIKES])
async def test_fault(bench: Bench, tmp_path: Path, name: str, transport: str) -> None:
    case = CASES[name]()
    device = await bench.device(network=transport == "network", behaviour=case.behaviour)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, timeouts=LIMITS)
    judge = BenchJudge(device, task)
    device.faults.extend(case.faults)
    if name == "silent":
        device.reset()
    result, _ = await bench.flash(device, release, task=task, judge=judge)
    assert result.reason == (case.serial if transport == "serial" else case.network)
    if not result.ok:
        assert judge.outcome is None, "it may be tried again"
        if case.untouched:
            assert result.bytes_written == device.counters()["installs"] == 0
        await by_hand(device)
        judge.next_attempt()
        again = assignment(device, release.target, attempt=2, timeouts=LIMITS)
        result, _ = await bench.flash(device, release, task=again, judge=judge)
    assert judge.outcome is Outcome.PROVEN, result
    await runs(device, NEW)


async def by_hand(device: VirtualDevice) -> None:
    """Mend what is broken, and press the reset button: the old image runs."""
    device.faults.clear()
    device.replug()
    await runs(device, OLD)
    async with asyncio.timeout(5):
        while device.port is None and not device.server.address:
            await asyncio.sleep(0.01)
