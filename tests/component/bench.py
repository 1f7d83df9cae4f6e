# SPDX-License-Identifier: Apache-2.0
"""A bench without a cluster: virtual devices, firmware in a layout, and the gateway's own rules as judge."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.anchors import DeviceAnchor
from attestation.keys import PrivateKey
from attestation.nonce import KeyRing
from attestation.policy import (
    AttestationPolicySpec,
    BootloaderRules,
    DebugStatus,
    MeasurementRef,
    RootOfTrust,
)
from attestation.policy import (
    Mode as DiceMode,
)
from firmware_pipeline import api
from firmware_pipeline.esp import builder
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.store import ArtifactStore
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.gateway import judge, ruling
from flashjob.gateway.case import Case, Installation, Keys, Subject
from flashjob.pinning import pin
from flashjob.virtual import secure_boot
from flashjob.virtual.adversaries import Behaviour
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.faults import Fault
from flashjob.virtual.profile import DeviceIdentity, Owner, Tier, make_identity
from flashjob.wire.gateway import (
    ConfirmRequest,
    DeviceResult,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    NonceRequest,
    Outcome,
    PermitReply,
    PermitRequest,
    Progress,
    RevertReply,
    RevertRequest,
    VerdictReply,
)
from flashjob.wire.pod import Assignment, Before, Timeouts, TransportKind
from flashjob.wire.refusal import Refused
from flashjob.wire.target import Target

GRANT_KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
RELEASE_KEY = ec.derive_private_key(0x7654321, ec.SECP256R1())
OWNER = Owner([GRANT_KEY.public_key()], [RELEASE_KEY.public_key()])
KEYS = Keys(KeyRing(0, {0: b"n" * 32}), GRANT_KEY)
QUICK = Timeouts(boot_seconds=5, attest_seconds=10, write_seconds=60, confirm_seconds=20)


def app(chip: str, version: str, payload_size: int) -> bytes:
    """An application, signed by the devices' maker."""
    image = builder.build_app(chip, "porch", version, payload_size=payload_size)
    return image if chip == "esp32" else signed(image)


def signed(image: bytes) -> bytes:
    """With the signature that locked devices of this bench demand."""
    return secure_boot.sign(image, secure_boot.maker_key(b""))


def old_app(chip: str) -> bytes:
    """What devices leave the factory with."""
    return app(chip, "1.0.0", 96 * 1024)


def new_app(chip: str, payload_size: int = 200 * 1024) -> bytes:
    """What they are updated to."""
    return app(chip, "2.0.0", payload_size)


def identity(name: str, chip: str, tier: Tier | None = None) -> DeviceIdentity:
    """A chip of this name; SignedBoot wherever the chip can."""
    tier = tier or ("SelfReported" if chip == "esp32" else "SignedBoot")
    return make_identity(name, chip, tier=tier, verifies_signatures=True)


@dataclass
class Release:
    """A pushed artifact for one chip."""

    layout: Path
    target: Target
    image: bytes = field(repr=False)


def push(tmp_path: Path, image: bytes, chip: str, sequence: int = 2, release_key: PrivateKey = RELEASE_KEY) -> Release:
    """Store `image` as a signed-for release in a layout, and pin it."""
    return push_parts(tmp_path, {0x20000: image}, chip, sequence, release_key)


def push_parts(
    tmp_path: Path,
    parts: dict[int, bytes],
    chip: str,
    sequence: int = 2,
    release_key: PrivateKey = RELEASE_KEY,
    app_at: int = 0x20000,
) -> Release:
    """The same for a whole build: flash offset -> image."""
    stem = f"{chip}-{hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:8]}"
    files = {offset: tmp_path / f"{stem}-{offset:x}.bin" for offset in parts}
    for offset, file in files.items():
        file.write_bytes(parts[offset])
    plan = load_files([f"{offset:#x}={file}" for offset, file in files.items()], chip=chip)
    layout = tmp_path / f"layout-{stem}"
    where = f"oci:{layout}"
    pushed = api.push([plan], where, signer=None, release=api.Release(release_key, sequence))
    store = api.open_store(where)
    target = pin(where, pushed.index_digest, api.open_chip(store, pushed.index_digest, chip))
    return Release(layout, target, parts[app_at])


@cache
def policy(
    chip: str, minimum: RootOfTrust = RootOfTrust.SIGNED_BOOT, tables: tuple[str, ...] = ()
) -> AttestationPolicySpec:
    """What the makers' devices must prove; the bootloader is the builder's."""
    loader = tuple(MeasurementRef(alg=m.alg, value=m.value.hex()) for m in measure(builder.build_bootloader(chip)))
    digest = secure_boot.key_digest(secure_boot.maker_key(b"").public_key())
    return AttestationPolicySpec(
        bootloader=BootloaderRules(measurements=loader),
        authority_hashes=(hashlib.sha512(digest).hexdigest(),),
        modes=(DiceMode.NORMAL,),
        debug_status=tuple(DebugStatus),
        min_root_of_trust=minimum,
        partition_tables=tables,
    )


def assignment(
    device: VirtualDevice, target: Target, *, before: Before = Before.IDENTITY, attempt: int = 1, **changes: object
) -> Assignment:
    """The attempt at one device that a pod would be given."""
    who = device.identity
    serial = device.port is not None
    fields: dict[str, object] = {
        "task": f"job-{device.name}",
        "attempt": attempt,
        "device": who.ueid.hex(),
        "transport": TransportKind.SERIAL if serial else TransportKind.NETWORK,
        "address": None if serial else device.server.address,
        "mac": ":".join(f"{b:02x}" for b in who.hardware.mac) if serial else None,
        "target": target,
        "before": before,
        "permitted_before": attempt > 1,
        "timeouts": QUICK,
    }
    return Assignment.model_validate(fields | changes)


class BenchJudge:
    """The gateway's rules over a record in memory: what one task's report would hold."""

    def __init__(
        self,
        device: VirtualDevice,
        task: Assignment,
        *,
        minimum: RootOfTrust | None = None,
        tables: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        who = device.identity
        tier = RootOfTrust.SIGNED_BOOT if who.hardware.fuses.secure_boot else RootOfTrust.SELF_REPORTED
        rules = policy(task.target.chip, minimum or RootOfTrust.SIGNED_BOOT, tables)
        self._clock = clock
        self.case = Case(
            namespace="bench",
            task=task.task,
            task_uid="11111111-2222-3333-4444-555555555555",
            attempt=task.attempt,
            target=task.target,
            transport=task.transport,
            before=task.before,
            safety=task.safety,
            timeouts=task.timeouts,
            subject=Subject(who.ueid, DeviceAnchor(who.ueid, who.anchor, tier, "bench"), rules),
            lease_transitions=1,
        )
        self.outcome: Outcome | None = None
        self.code = ""
        """The verifier's own code, where evidence was rejected."""
        self.unproven: tuple[str, ...] = ()
        """What the verdict leaves open."""
        self.reverts = 0
        self.results: list[DeviceResult] = []
        self.seen: list[Progress] = []
        self.device = device

    def next_attempt(self) -> None:
        """The task is tried again: permits and used nonces stay."""
        self.case = replace(
            self.case,
            attempt=self.case.attempt + 1,
            lease_transitions=self.case.lease_transitions + 1,
            judged=False,
            refused=None,
        )

    async def nonce(self, request: NonceRequest) -> NonceReply:
        """A fresh nonce."""
        try:
            random = secrets.token_bytes(10)
            return judge.issue_nonce(self.case, request.purpose, KEYS, now=int(self._clock()), random=random)
        except ruling.Refused as refused:
            raise self._no(refused) from refused

    async def permit(self, request: PermitRequest) -> PermitReply:
        """The permit."""
        try:
            random = secrets.token_bytes(16)
            reply, addition = judge.permit(
                self.case, request, KEYS, now=int(self._clock()), at="2026-01-01T00:00:00Z", random=random
            )
        except ruling.Refused as refused:
            raise self._no(refused) from refused
        self._add(addition)
        return reply

    async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
        """First evidence."""
        try:
            reply, addition = judge.first_evidence(self.case, request, KEYS, now=int(self._clock()))
        except ruling.Refused as refused:
            raise self._no(refused) from refused
        self._add(addition)
        return reply

    async def confirm(self, request: ConfirmRequest) -> VerdictReply:
        """The verdict."""
        try:
            reply, addition = judge.confirm(self.case, request, KEYS, now=int(self._clock()))
        except ruling.Refused as refused:
            raise self._no(refused) from refused
        self._add(addition)
        return reply

    async def revert(self, request: RevertRequest) -> RevertReply:
        """The order to go back."""
        reply = judge.revert(self.case, request, KEYS)
        self.reverts += 1
        return reply

    async def progress(self, progress: Progress) -> None:
        """Remembered."""
        self.seen.append(progress)

    async def result(self, result: DeviceResult) -> None:
        """Remembered."""
        self.results.append(result)

    async def address(self) -> str | None:
        """Where the device is."""
        return self.device.server.address or None

    def _no(self, refused: ruling.Refused) -> Refused:
        self._add(refused.addition)
        return refused

    def _add(self, addition: ruling.Addition) -> None:
        permits = (*self.case.permits, addition.permit) if addition.permit else self.case.permits
        self.case = replace(
            self.case,
            permits=permits,
            used_nonces=self.case.used_nonces | set(addition.used_nonces),
            judged=self.case.judged or addition.finding is not None,
            refused=_refused(addition) or self.case.refused,
        )
        if addition.finding is not None:
            self.outcome = addition.finding.outcome
            verdict = addition.finding.verdict
            self.unproven = verdict.unproven if verdict is not None else ()
            self.code = str(verdict.code) if verdict is not None and verdict.code is not None else ""


def _refused(addition: ruling.Addition) -> Installation | None:
    """What a rejection in this addition was about."""
    finding = addition.finding
    claims = finding.verdict.claims if finding is not None and finding.verdict is not None else None
    if finding is None or claims is None or finding.outcome is not Outcome.REJECTED:
        return None
    return Installation(claims.measurement, claims.boot_id)


class Bench:
    """Starts devices and flashes them the way a pod does."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.work = tmp_path / "work"
        self.work.mkdir()
        self.devices: list[VirtualDevice] = []

    async def device(
        self,
        name: str = "porch-1",
        chip: str = "esp32s3",
        *,
        network: bool = False,
        app: bytes | None = None,
        behaviour: Behaviour | None = None,
        faults: list[Fault] | None = None,
        confirm_seconds: int = 300,
        moves: bool = False,
        locked_loader: bool = False,
        tls: bool = False,
    ) -> VirtualDevice:
        """A device that left the factory with `app`, running."""
        device = VirtualDevice(
            name,
            identity(name, chip),
            OWNER,
            link=None if network else self.tmp_path / "ports" / name,
            behaviour=behaviour,
            faults=faults or [],
            confirm_seconds=confirm_seconds,
            moves=moves,
            locked_loader=locked_loader,
            tls=tls,
        )
        device.factory_flash(old_app(chip) if app is None else app)
        self.devices.append(device)
        await device.start()
        return device

    async def flash(
        self,
        device: VirtualDevice,
        release: Release,
        *,
        task: Assignment | None = None,
        judge: BenchJudge | None = None,
        port: str | None = None,
    ) -> tuple[DeviceResult, BenchJudge]:
        """One attempt."""
        task = task or assignment(device, release.target)
        judge = judge or BenchJudge(device, task)
        firmware = await asyncio.to_thread(fetch, open_release(release), release.target, self.work)
        transport: Transport
        if device.port is not None:
            transport = SerialTransport(port or device.port.place, self.work)
        else:
            transport = NetworkTransport(task.address or "")
        return await Attempt(task, firmware, transport, judge).run(), judge

    async def close(self) -> None:
        """Stop all devices."""
        for device in self.devices:
            await device.stop()


def open_release(release: Release) -> ArtifactStore:
    """The layout that holds it."""
    return api.open_store(release.target.repository)


async def runs(device: VirtualDevice, version: str) -> None:
    """Wait until the application runs, and see which."""
    async with asyncio.timeout(5):
        while device.mode is not Mode.RUNNING:
            await asyncio.sleep(0.01)
    assert device.application is not None
    assert device.application.boot.version == version


def public_hex(key: ec.EllipticCurvePrivateKey) -> str:
    """COSE_Key in hex, as fleets take it."""
    return keys.encode_cose(key.public_key()).hex()
