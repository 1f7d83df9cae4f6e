# SPDX-License-Identifier: Apache-2.0
"""Adversaries before the real flasher and the real judge: who they are, what must become of them, how often it did.

A *trial* is one update of one device, from the first question to the verdict, in this process: real transport, real
attempt, real rules of the gateway. Chip, tier, moment and harmless faults are drawn at random. A *false success* is a
verdict PROVEN although the device does not run the wanted image, confirmed, at its true root of trust.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from attestation import nonce, verifier
from attestation.device_http import HttpDevice
from attestation.device_protocol import DeviceClient
from attestation.device_serial import SerialDevice
from attestation.keys import Alg
from attestation.policy import RootOfTrust
from attestation.serial_port import open_port
from firmware_pipeline.esp import builder, otadata, partitions
from firmware_pipeline.esp.otadata import SlotState
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt, Firmware
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual import adversaries as evil
from flashjob.virtual import bootloader
from flashjob.virtual import faults as broken
from flashjob.virtual.adversaries import Attest, Behaviour
from flashjob.virtual.application import Application, State
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.faults import Fault
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.profile import DeviceIdentity, Tier, make_identity
from flashjob.wire.gateway import DeviceResult, Outcome
from flashjob.wire.pod import Timeouts

from .bench import KEYS, OWNER, BenchJudge, Release, app, assignment, open_release, push_parts

CHIPS: Final = ("esp32s2", "esp32s3", "esp32c3", "esp32c6", "esp32h2", "esp32p4", "esp32c5")
PATIENCE: Final = Timeouts(boot_seconds=5, attest_seconds=20, write_seconds=60, confirm_seconds=5)
AT_ONCE: Final = 48
"""Trials of one court. Some only wait for who never answers, and the others fill the time."""
AT_ONCE_SERIAL: Final = 4
"""Each has an esptool process."""
ATTEMPTS: Final = 3
HEARINGS: Final = 3
TOLD_EVERY: Final = 250
"""Trials between two lines of progress."""
TIME_ALONE: Final = frozenset(
    {
        "DeviceUnreachable",
        "TransportLost",
        "SilentAfterWrite",
        "ResetBeforeConfirm",
        "WentBack",
        "ConfirmTimeout",
        "AttestTimeout",
    }
)
"""Reasons that a starved machine can cause; who ends so without being known for it is heard anew, on a new device."""


@dataclass(frozen=True)
class Case:
    """One kind of trial: who lies how, and the one reason that ends it."""

    name: str
    reason: str
    behave: Callable[[Make], Behaviour] = lambda _: Behaviour()
    faults: Callable[[random.Random], list[Fault]] = lambda _: []
    tiers: tuple[Tier, ...] = ("SignedBoot", "SelfReported")
    serial: bool = True
    """Whether it can be tried over a serial line as well."""
    named: bool = True
    """Whether the policy names the device's partition table; the artifact does."""

    @property
    def honest(self) -> bool:
        """Whether it must succeed."""
        return self.reason == "Proven"


@dataclass(frozen=True)
class Make:
    """What a liar may need to know of the trial that it is in."""

    identity: DeviceIdentity
    wanted: bytes

    def leak(self) -> Attest:
        """What this very device would answer, had secrets of an earlier installation of the wanted image leaked."""
        return leaked(self.identity, self.wanted).evidence

    def donor(self) -> Attest:
        """An honest device of the same make, which runs the wanted image already."""
        hardware = self.identity.hardware
        tier: Tier = "SignedBoot" if hardware.fuses.secure_boot else "SelfReported"
        other = make_identity(secrets.token_hex(4), hardware.chip.target, tier=tier, verifies_signatures=True)
        return leaked(other, self.wanted).evidence


CASES: Final = (
    Case("honest", "Proven"),
    Case(
        "honest, its line breaks",
        "Proven",
        faults=lambda r: [broken.CablePulled(r.uniform(5, 95), r.randint(1, 2))],
        serial=False,
    ),
    Case(
        "honest, its power fails", "Proven", faults=lambda r: [broken.PowerCut(sector=r.randint(0, 34))], serial=False
    ),
    Case("honest, browns out at its first boot", "Proven", faults=lambda _: [broken.BrownOut()]),
    Case("browns out at every first boot", "WentBack", faults=lambda _: [broken.BrownOut(times=99)]),
    Case("runs the old image", "MeasurementMismatch ref.code", lambda _: evil.RunsOldImage()),
    Case("stays in its old slot", "WentBack", lambda _: evil.WrongSlot()),
    Case("keeps half of the image", "WentBack", lambda _: evil.TruncatesImage()),
    Case("holds the UDS", "RootOfTrustTooLow", lambda _: evil.HoldsUds(), tiers=("SelfReported",)),
    Case("answers with a leaked CDI", "BootIdMismatch boot.id", lambda make: evil.LeakedCdi(leak=make.leak())),
    Case("boot id of long ago", "BootIdMismatch boot.id", lambda _: evil.StaleBootId()),
    Case("replays its evidence", "EvidenceReplayed nonce.mac", lambda _: evil.ReplaysEvidence()),
    Case("another nonce's evidence", "EvidenceReplayed nonce.mac", lambda _: evil.StaleNonce()),
    Case("a key that nobody certified", "EvidenceInvalid sig.invalid", lambda _: evil.ForeignKey()),
    Case("another device answers", "WrongDevice anchor.id", lambda make: evil.OtherDevicesEvidence(make.donor())),
    Case("bootloader of long ago", "PolicyRejected ref.code", lambda _: evil.OldBootloader()),
    Case("another partition table", "PolicyRejected ref.partitions", lambda _: evil.OtherTable()),
    Case(
        "another partition table than the artifact's",
        "PartitionMismatch ref.partitions",
        lambda _: evil.OtherTable(),
        named=False,
    ),
    Case("never reboots", "SilentAfterWrite", lambda _: evil.NeverReboots()),
    Case("never comes back", "SilentAfterWrite", lambda _: evil.NeverComesBack()),
    Case("goes back before the confirm", "ResetBeforeConfirm", lambda _: evil.RollsBackBeforeConfirm()),
    Case("goes back after the confirm", "NotListed", lambda _: evil.RollsBackAfterAccept()),
    Case("never hears the confirm", "ConfirmTimeout", lambda _: evil.LosesConfirm(99)),
)


@dataclass
class Tally:
    """What came out."""

    trials: int = 0
    adjourned: Counter[str] = field(default_factory=Counter)
    """Trials that did not count and were held anew, by case and reason: see `TIME_ALONE`. None on an idle machine."""
    false_successes: int = 0
    honest: int = 0
    proven: int = 0
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Put another tally's numbers to these."""
        self.trials += other.trials
        self.adjourned.update(other.adjourned)
        self.false_successes += other.false_successes
        self.honest += other.honest
        self.proven += other.proven
        for name, reasons in other.reasons.items():
            self.reasons.setdefault(name, Counter()).update(reasons)

    @property
    def strays(self) -> list[str]:
        """Endings that are not the case's own, as text."""
        expected = {case.name: case.reason for case in CASES}
        return [
            f"{name}: {reason} x {count}, expected {expected[name]}"
            for name, reasons in self.reasons.items()
            for reason, count in reasons.items()
            if reason != expected[name]
        ]


class Court:
    """Holds trials.

    Args:
        root: an existing directory for layouts and ports.
        seed: of all that is drawn.
        trusting: judge every device by its own tier's rules and no more.
        told: hears of the tally after each trial.
    """

    def __init__(
        self,
        root: Path,
        seed: int = 0,
        *,
        trusting: bool = False,
        told: Callable[[Tally], None] = lambda _: None,
    ) -> None:
        self._trusting, self._told = trusting, told
        self._root, self._random, self._number = root, random.Random(seed), 0
        self._releases: dict[str, tuple[Release, Firmware]] = {}
        self.tally = Tally()

    async def hear(self, cases: Sequence[Case], times: int, *, serial: bool = False) -> Tally:
        """Try each case `times` times, `AT_ONCE` or `AT_ONCE_SERIAL` at a time."""
        places = asyncio.Semaphore(AT_ONCE_SERIAL if serial else AT_ONCE)

        async def one(case: Case) -> None:
            async with places:
                for hearing in range(1, HEARINGS + 1):
                    if await self._try(case, serial, last=hearing == HEARINGS):
                        return

        await asyncio.gather(*(one(case) for _ in range(times) for case in cases if case.serial or not serial))
        return self.tally

    async def _try(self, case: Case, serial: bool, *, last: bool) -> bool:
        """One trial; False: it did not count, because the machine was too busy to hear it out."""
        draw = self._random
        self._number += 1
        name, chip = f"d{self._number}", draw.choice(CHIPS[:3] if serial else CHIPS)
        tier = draw.choice(case.tiers)
        alg = draw.choice((Alg.ES256, Alg.EDDSA))
        identity = make_identity(name, chip, tier=tier, alg=alg, verifies_signatures=True)
        release, firmware = await self._release(chip)
        faults = case.faults(draw) + ([broken.Slow(seconds=draw.uniform(0, 0.02))] if draw.random() < 0.2 else [])
        device = VirtualDevice(
            name,
            identity,
            OWNER,
            link=self._root / "ports" / name if serial else None,
            behaviour=case.behave(Make(identity, release.image)),
            faults=faults,
            moves=draw.random() < 0.3,
        )
        device.factory_flash(_old(chip))
        await device.start()
        try:
            strict = case.tiers == ("SelfReported",) and not self._trusting
            minimum = RootOfTrust.SIGNED_BOOT if strict else RootOfTrust(tier)
            reason, judge, now = await self._attempts(case, device, release, firmware, minimum)
            reason = f"{reason} {judge.code}".strip()
            proven = judge.outcome in (Outcome.PROVEN, Outcome.ALREADY_RUNNING)
            if proven and not case.honest and not self._trusting:
                async with asyncio.timeout(10):
                    await _gone_back(device)
                    reason = await _listed(device, judge, now)
            true = _runs(device, release)
        finally:
            await device.stop()
        false_success = proven and not true and reason != "NotListed"
        if not last and not false_success and reason != case.reason and reason in TIME_ALONE:
            self.tally.adjourned[f"{case.name}: {reason}"] += 1
            return False
        self._count(case, reason, false_success)
        return True

    async def _attempts(
        self, case: Case, device: VirtualDevice, release: Release, firmware: Firmware, minimum: RootOfTrust
    ) -> tuple[str, BenchJudge, float]:
        """(reason of the last attempt, its judge, the judge's time). Honest devices may need more than one."""
        shift = self._random.uniform(-1e8, 1e8)
        judge: BenchJudge | None = None
        for attempt in range(1, ATTEMPTS + 1):
            if device.port is None:
                await _answers(device)
            task = assignment(device, release.target, attempt=attempt, timeouts=PATIENCE)
            if judge is None:
                tables = (_table(device),) if case.named else ()
                judge = BenchJudge(device, task, minimum=minimum, tables=tables, clock=lambda: time.time() + shift)
            else:
                judge.next_attempt()
            transport: Transport
            if device.port is not None:
                transport = SerialTransport(device.port.path, self._root)
            else:
                transport = NetworkTransport(task.address or "")
            result: DeviceResult = await Attempt(task, firmware, transport, judge).run()
            if judge.outcome is not None or not case.honest:
                break
        assert judge is not None
        return result.reason, judge, time.time() + shift

    async def _release(self, chip: str) -> tuple[Release, Firmware]:
        if chip not in self._releases:
            release = push_parts(self._root, _build(chip), chip)
            work = self._root / "work"
            work.mkdir(exist_ok=True)
            firmware = await asyncio.to_thread(fetch, open_release(release), release.target, work)
            self._releases[chip] = release, firmware
        return self._releases[chip]

    def _count(self, case: Case, reason: str, false_success: bool) -> None:
        tally = self.tally
        tally.trials += 1
        tally.false_successes += false_success
        tally.honest += case.honest
        tally.proven += case.honest and reason in ("Proven", "AlreadyRunning")
        tally.reasons.setdefault(case.name, Counter())[reason] += 1
        self._told(tally)


def hold(seed: int, times: int) -> Tally:
    """A court of its own, for worker processes: all cases. It tells its progress on standard error."""
    logging.getLogger("flashjob").setLevel(logging.ERROR)

    def told(tally: Tally) -> None:
        if tally.trials % TOLD_EVERY == 0:
            done = f"court {seed}: {tally.trials} of {times * len(CASES)} trials"
            found = f"{tally.false_successes} false successes, {len(tally.strays)} strays"
            sys.stderr.write(f"{done}, {found}, {tally.adjourned.total()} adjourned\n")

    with tempfile.TemporaryDirectory(prefix="flashjob-court-") as folder:
        return asyncio.run(Court(Path(folder), seed, told=told).hear(CASES, times))


def leaked(identity: DeviceIdentity, image: bytes) -> Application:
    """The application of an earlier, confirmed installation of `image` on this chip."""
    scratch = VirtualDevice("scratch", identity, OWNER)
    scratch.factory_flash(image)
    flash, hardware, nvs = scratch.flash, identity.hardware, Nvs()
    raw = flash.read(hardware.table_offset, partitions.TABLE_SIZE)
    table = partitions.parse_table(raw, table_offset=hardware.table_offset, flash_size=flash.size)
    sector, record = otadata.select_record(
        otadata.blank_otadata(), 0, len(table.ota_slots), boot_id=secrets.token_bytes(16), state=SlotState.VALID
    )
    bootloader.write_record(flash, table, sector, record)
    area = bytearray(bootloader.HANDOVER_SIZE)
    booted = bootloader.boot(flash, identity, nvs=nvs, area=area, random=secrets.token_bytes)
    return Application(
        booted,
        flash=flash,
        hardware=hardware,
        owner=OWNER,
        nvs=nvs,
        clock=time.monotonic,
        random=secrets.token_bytes,
    )


@cache
def _old(chip: str) -> bytes:
    return app(chip, "1.0.0", 16 * 1024)


@cache
def _new(chip: str) -> bytes:
    return app(chip, "2.0.0", 80 * 1024)


def _build(chip: str) -> dict[int, bytes]:
    """The new application, and the table that every device here left the factory with."""
    return {partitions.DEFAULT_TABLE_OFFSET: partitions.build_table(builder.default_partitions()), 0x20000: _new(chip)}


@cache
def _table_hash(table_offset: int, flash_size: int) -> str:
    table = builder.default_partitions(table_offset=table_offset, flash_size=flash_size)
    return partitions.table_sha256(partitions.build_table(table)).hex()


def _table(device: VirtualDevice) -> str:
    hardware = device.identity.hardware
    return _table_hash(hardware.table_offset, hardware.flash_size)


def _runs(device: VirtualDevice, release: Release) -> bool:
    """The truth: what really booted, and whether OTA data says that it is confirmed."""
    application = device.application
    if application is None:
        return False
    boot = application.boot
    wanted = {(m.alg, m.value) for m in release.target.measurements}
    real = bootloader.measure(device.flash, boot.slot, boot.image, device.identity.hardware.hash_alg)
    return (real.alg, real.value.hex()) in wanted and application.info().slot_state == SlotState.VALID


async def _gone_back(device: VirtualDevice) -> None:
    """Until a device that means to go back has done so."""
    while device.application is None or device.application.state is State.REBOOT:
        await asyncio.sleep(0.01)


async def _answers(device: VirtualDevice) -> None:
    """Until it has an address."""
    async with asyncio.timeout(10):
        while not device.server.address:
            await asyncio.sleep(0.01)


async def _reached(device: VirtualDevice) -> DeviceClient:
    """As whoever did not update it asks it."""
    if device.port is not None:
        return SerialDevice(await open_port(device.port.path))
    await _answers(device)
    host, port = device.server.address.split(":")
    return HttpDevice(host, int(port))


async def _listed(device: VirtualDevice, judge: BenchJudge, now: float) -> str:
    """What discovery finds afterwards, on its own: a device is listed only with the measurement it was updated to."""
    subject, audience = judge.case.subject, b"discovery"
    asked = nonce.issue(KEYS.ring, subject.id, audience, now=int(now), ttl=300, random=secrets.token_bytes(10))
    client = await _reached(device)
    try:
        evidence = await client.attest(asked)
    finally:
        await client.close()
    context = verifier.Context(
        device=subject.device,
        policy=subject.policy,
        nonce=verifier.IssuedNonce(KEYS.ring, audience),
        now=int(now),
        pinned=judge.case.wanted,
        expected=judge.case.wanted,
    )
    return "Listed" if verifier.verify(evidence, context).accepted else "NotListed"
