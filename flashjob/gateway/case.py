# SPDX-License-Identifier: Apache-2.0
"""A case: all that is known of one attempt at one device when its pod asks. Pure data, gathered elsewhere."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from attestation.anchors import DeviceAnchor, Floors
from attestation.clones import Sighting
from attestation.dice_chain import ChainCache
from attestation.keys import PrivateKey
from attestation.nonce import KeyRing
from attestation.policy import AttestationPolicySpec, Measurement
from attestation.statement import SHA_256
from flashjob.wire.pod import Before, Data, Safety, Timeouts, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Measurement as PinnedMeasurement
from flashjob.wire.target import Target


@dataclass(frozen=True, slots=True)
class Installation:
    """What runs on a device, by its own proof."""

    measurement: Measurement
    boot_id: bytes


@dataclass(frozen=True, slots=True)
class PermitRecord:
    """A permit that was given: FlashTask.status.report.permits."""

    attempt: int
    grant_id: str
    fence: int
    at: str
    before: Installation | None = None
    """What the device proved to run just before; None where it proved nothing."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The device as enrolled, and what it last proved."""

    id: bytes
    """Its UEID; an owner-given id where it cannot attest."""
    device: DeviceAnchor | None
    """None for a device without a trust anchor."""
    policy: AttestationPolicySpec
    confirmed: frozenset[Measurement] = frozenset()
    """The last confirmed measurement, in every algorithm."""
    pinned: frozenset[Measurement] = frozenset()
    """What live tasks pin for this device."""
    floors: Floors = field(default_factory=Floors)
    boots: tuple[Sighting, ...] = ()
    """Its boots that were seen before, oldest first."""


@dataclass(frozen=True, slots=True)
class Case:
    """One attempt of one task, as of now."""

    namespace: str
    task: str
    task_uid: str
    attempt: int
    target: Target
    transport: TransportKind
    before: Before
    safety: Safety
    timeouts: Timeouts
    subject: Subject
    lease_transitions: int
    permits: tuple[PermitRecord, ...] = ()
    used_nonces: frozenset[str] = frozenset()
    judged: bool = False
    """This attempt has its verdict, or the whole task has one that is no rejection, or is over."""
    refused: Installation | None = None
    """What the device proved to run, by the evidence that this attempt was rejected for."""
    held: tuple[Reason, str] | None = None
    """Why no new write may start now (paused, deleted, suspended, ...): reason and message."""

    @property
    def audience(self) -> bytes:
        """What nonces are bound to beside the device: this attempt of this very task."""
        return f"{self.namespace}/{self.task_uid}/{self.attempt}".encode()

    @property
    def permit(self) -> PermitRecord | None:
        """This attempt's permit, if it has one."""
        return next((p for p in self.permits if p.attempt == self.attempt), None)

    @property
    def grant_ids(self) -> frozenset[bytes]:
        """Every grant id of this task: an earlier attempt's installation may be what runs."""
        return frozenset(bytes.fromhex(p.grant_id) for p in self.permits)

    @property
    def ran(self) -> frozenset[Installation]:
        """What the device proved to run before any write of this task."""
        return frozenset(p.before for p in self.permits if p.before is not None)

    @property
    def wanted(self) -> frozenset[Measurement]:
        """The target's measurement, in every algorithm."""
        return frozenset(as_measurement(m) for m in self.target.measurements)

    @property
    def data_images(self) -> dict[str, frozenset[Measurement]]:
        """The data images that this task writes, by label: with the target they are to be there."""
        if self.safety.data is not Data.WIPE or self.transport is not TransportKind.SERIAL:
            return {}
        images = ((i.label, bytes.fromhex(i.digest.removeprefix("sha256:"))) for i in self.target.data_images)
        return {label: frozenset({Measurement(SHA_256, value)}) for label, value in images}

    @property
    def partition_table(self) -> bytes | None:
        """SHA-256 of the table that the target must boot under; None where its artifact names none."""
        table = self.target.partition_table
        return None if table is None else bytes.fromhex(table)


CHAINS: Final = 1_000
"""Chains that are remembered, about 6 KiB each."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What the gateway signs and recognises with.

    Args:
        ring: nonce keys.
        grant: signs grants.
        chains: devices' chains that were verified before: an attempt brings each of its two chains twice.
    """

    ring: KeyRing
    grant: PrivateKey
    chains: ChainCache = field(default_factory=lambda: ChainCache(CHAINS), repr=False, compare=False)


def as_measurement(pinned: PinnedMeasurement) -> Measurement:
    """From the wire's hex to what the verifier compares."""
    return Measurement(pinned.alg, bytes.fromhex(pinned.value))


def nonce_mark(nonce: bytes) -> str:
    """How a consumed nonce is remembered: 10 bytes of its SHA-256, hex."""
    return hashlib.sha256(nonce).digest()[:10].hex()
