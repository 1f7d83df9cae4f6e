# SPDX-License-Identifier: Apache-2.0
"""The gateway's service over a case book in memory, and a virtual device to be judged: stories without HTTP or cluster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from attestation.anchors import DeviceAnchor, Floors
from attestation.clones import Sighting
from attestation.grants import Verb
from attestation.nonce import KeyRing
from attestation.policy import AttestationPolicySpec, Measurement, RootOfTrust
from firmware_pipeline.esp import partitions
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.measurement import measure
from flashjob.api.flashtask import Report, Verdict
from flashjob.gateway.case import Case, Keys, Subject
from flashjob.gateway.record import permits_of, refused_of
from flashjob.gateway.service import Clock, Conflict, Gathered, Service
from flashjob.virtual.profile import DeviceIdentity
from flashjob.wire.gateway import (
    ConfirmRequest,
    EvidenceReply,
    EvidenceRequest,
    NonceRequest,
    PermitReply,
    PermitRequest,
    Purpose,
    RevertRequest,
    VerdictReply,
)
from flashjob.wire.pod import Before, Safety, Timeouts, TransportKind
from flashjob.wire.target import Measurement as Pinned
from flashjob.wire.target import Target
from tests.unit.virtual.workbench import GRANT_KEY, Bench, bootloader


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def both(data: bytes) -> list[list[object]]:
    """The measurement of an image in both algorithms, as a statement carries it."""
    return [[m.alg, m.value] for m in measure(data)]


def target_of(data: bytes, release: bytes | None, *, sequence: int = 1, table: str | None = None) -> Target:
    """What an artifact with this image would pin."""
    info = parse_image(data)
    assert info.app is not None
    return Target(
        repository="registry.test/porch",
        index_digest=digest(b"index"),
        manifest_digest=digest(b"manifest"),
        config_digest=digest(b"config"),
        release_digest=digest(release) if release is not None else None,
        chip=info.chip.target,
        chip_id=info.chip.chip_id,
        application=info.app.project_name,
        version=info.app.version,
        secure_version=info.app.secure_version,
        sequence=sequence,
        image_size=len(data),
        image_digest=digest(data),
        measurements=tuple(Pinned(scheme=m.scheme, alg=m.alg, value=m.value.hex()) for m in measure(data)),
        partition_table=table,
    )


def authority(identity: DeviceIdentity) -> str:
    """Hash of the device's secure-boot key, as its certificates state it."""
    return hashlib.sha512(identity.hardware.fuses.secure_boot_key_digest or b"").hexdigest()


def policy_for(identity: DeviceIdentity, **changes: Any) -> AttestationPolicySpec:
    """A policy that accepts this make of device."""
    values: dict[str, Any] = {
        "bootloader": {
            "measurements": [
                {"alg": m.alg, "value": m.value.hex()} for m in measure(bootloader(identity.hardware.chip.target))
            ]
        },
        "authorityHashes": [authority(identity)],
    }
    return AttestationPolicySpec.model_validate(values | changes, strict=False)


@dataclass
class Court:
    """One task of one device. Attributes may be changed between requests, as the world would."""

    bench: Bench
    image: bytes
    tier: RootOfTrust = RootOfTrust.SIGNED_BOOT
    transport: TransportKind = TransportKind.NETWORK
    before: Before = Before.IDENTITY
    safety: Safety = field(default_factory=Safety)
    floors: Floors = field(default_factory=Floors)
    boots: tuple[Sighting, ...] = ()
    sequence: int = 1
    attempt: int = 1
    transitions: int = 1
    held: Any = None
    conflicts: int = 0
    policy_changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.release = self.bench.release(
            self.image,
            sequence=self.sequence,
            measurements=both(self.image),
        )
        table = partitions.table_sha256(partitions.build_table(self.bench.table)).hex()
        self.target = target_of(self.image, self.release, sequence=self.sequence, table=table)
        self.report, self.version, self.writes = Report(), 0, 0
        keys = Keys(KeyRing(current=1, keys={1: b"n" * 32}), GRANT_KEY)
        self.service = Service(self, keys, Clock(now=lambda: self.bench.now, random=self.bench.random))

    # service.Cases

    async def gather(self, namespace: str, task: str, attempt: int) -> Gathered:
        identity = self.bench.identity
        verdict = self.report.verdict
        case = Case(
            namespace=namespace,
            task=task,
            task_uid="uid-of-" + task,
            attempt=attempt,
            target=self.target,
            transport=self.transport,
            before=self.before,
            safety=self.safety,
            timeouts=Timeouts(confirm_seconds=120),
            subject=Subject(
                id=identity.ueid,
                device=DeviceAnchor(ueid=identity.ueid, key=identity.anchor, tier=self.tier, policy="field"),
                policy=policy_for(identity, **self.policy_changes),
                confirmed=frozenset[Measurement](),
                floors=self.floors,
                boots=self.boots,
            ),
            lease_transitions=self.transitions,
            permits=permits_of(self.report),
            used_nonces=frozenset(self.report.used_nonces),
            judged=verdict is not None and (verdict.outcome != "Rejected" or verdict.attempt >= attempt),
            refused=refused_of(self.report, attempt),
            held=self.held,
        )
        return Gathered(case, self.report, str(self.version))

    async def write(self, namespace: str, task: str, report: Report, version: str) -> None:
        if self.conflicts:
            self.conflicts, self.version = self.conflicts - 1, self.version + 1
        if version != str(self.version):
            raise Conflict
        self.report, self.version, self.writes = report, self.version + 1, self.writes + 1

    @property
    def verdict(self) -> Verdict | None:
        return self.report.verdict

    # what a pod does

    async def nonce(self, purpose: Purpose) -> bytes:
        return (await self.service.nonce("ns", "t", NonceRequest(attempt=self.attempt, purpose=purpose))).nonce

    async def permit(self, evidence: bytes | None = None, *, unseen: bool = False) -> PermitReply:
        if evidence is None and not unseen:
            evidence = self.bench.evidence(await self.nonce(Purpose.BEFORE))
        network = self.transport is TransportKind.NETWORK
        request = PermitRequest(
            attempt=self.attempt,
            evidence=evidence,
            device_nonce=self.bench.nonce(Verb.INSTALL) if network else None,
            release=self.release,
        )
        return await self.service.permit("ns", "t", request)

    async def write_and_reboot(self, permit: PermitReply) -> None:
        assert permit.install_grant is not None
        assert self.bench.send_bytes(permit.install_grant).status == 200
        assert self.bench.upload(self.image).status == 200
        self.bench.reset()

    async def prove(self, evidence: bytes | None = None) -> EvidenceReply:
        evidence = evidence or self.bench.evidence(await self.nonce(Purpose.AFTER))
        request = EvidenceRequest(attempt=self.attempt, evidence=evidence, device_nonce=self.bench.nonce(Verb.CONFIRM))
        return await self.service.evidence("ns", "t", request)

    async def confirm(self, evidence: bytes) -> VerdictReply:
        return await self.service.confirm("ns", "t", ConfirmRequest(attempt=self.attempt, evidence=evidence))

    async def revert(self) -> bytes:
        request = RevertRequest(attempt=self.attempt, device_nonce=self.bench.nonce(Verb.REVERT))
        return (await self.service.revert("ns", "t", request)).revert_grant

    def hand_over(self, reply: EvidenceReply) -> bytes:
        """Give the confirm grant to the device; its answer."""
        assert reply.confirm_grant is not None
        answer = self.bench.send_bytes(reply.confirm_grant)
        assert answer.status == 200, answer
        assert answer.body is not None
        return answer.body

    async def whole_update(self) -> VerdictReply:
        await self.write_and_reboot(await self.permit())
        return await self.confirm(self.hand_over(await self.prove()))

    def retried(self) -> Court:
        """The next attempt of the same task."""
        self.attempt, self.transitions = self.attempt + 1, self.transitions + 1
        return self
