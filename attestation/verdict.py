# SPDX-License-Identifier: Apache-2.0
"""What goes into a judgement and what comes out: context, authentic claims, trail, verdict. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from attestation import eat, nonce
from attestation.anchors import DeviceAnchor, Floors
from attestation.eat import SlotState
from attestation.errors import Code, Reject
from attestation.policy import Acceptance, AttestationPolicySpec, DebugStatus, Measurement, Mode, RootOfTrust

SINGLE_USE: Final = "single use"
"""The last step of a trail: the nonce was consumed, or could not be."""


@dataclass(frozen=True, slots=True)
class ExactNonce:
    """The nonce is this one: for a person who asked a device directly."""

    value: bytes


@dataclass(frozen=True, slots=True)
class IssuedNonce:
    """The nonce is one that this ring issued for this device and audience."""

    ring: nonce.KeyRing
    audience: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything a verdict depends on besides the evidence.

    Args:
        device: the enrolled device; None if there is none with this identity.
        policy: its policy; None if there is none.
        nonce: what the answer must be fresh against.
        now: Unix time in seconds.
        floors: what the device was last confirmed at.
        last_confirmed: its last confirmed measurement, in every algorithm.
        pinned: measurements that live tasks pin for it, in every algorithm.
        expected: the application must be one of these, whatever else is acceptable; None: no such demand.
        any_application: do not judge the application at all; not together with ``expected``.
        boot_ids: the installation must be one of these (16 bytes each); None: no such demand.
        slot_states: the slot must be in one of these states; None: no such demand.
        data_images: label of each expected data image to its digests, one per algorithm; an empty set for an image
            that cannot be measured; None where nothing says which images there must be.
        partition_table: SHA-256 of the one partition table that the application must have booted under, whatever else
            the policy accepts; None: no such demand. Not together with ``any_application``.
    """

    device: DeviceAnchor | None
    policy: AttestationPolicySpec | None
    nonce: ExactNonce | IssuedNonce
    now: int
    floors: Floors = field(default_factory=Floors)
    last_confirmed: frozenset[Measurement] = frozenset()
    pinned: frozenset[Measurement] = frozenset()
    expected: frozenset[Measurement] | None = None
    any_application: bool = False
    boot_ids: frozenset[bytes] | None = None
    slot_states: frozenset[SlotState] | None = None
    data_images: Mapping[str, frozenset[Measurement]] | None = None
    partition_table: bytes | None = None

    def __post_init__(self) -> None:
        if self.any_application and (self.expected is not None or self.partition_table is not None):
            raise ValueError("any_application excludes expected and partition_table")


class DeviceClaims(NamedTuple):
    """What the device proved or said, once the token's signature held. Certified parts come from the chain."""

    ueid: bytes
    bootloader: Measurement
    """Certified."""
    measurement: Measurement
    """Of the application, certified."""
    application: str
    """Project name, certified."""
    secure_version: int
    """Certified."""
    boot_id: bytes
    """Grant id of the running installation, 16 bytes, certified; zeros where it has none."""
    slot: int
    """Partition subtype of the running slot, certified."""
    partition_table: bytes
    """SHA-256, certified."""
    mode: Mode
    """Of the application's layer, certified."""
    authority_hash: bytes
    """Of the application's layer, certified."""
    security_efuses: int
    """Certified."""
    token: eat.Token
    """Said by the application, whose measurement is certified: version, slot state, counters, owner keys, fence."""

    @property
    def version(self) -> str:
        """Version, as the application says."""
        return self.token.version

    @property
    def slot_state(self) -> SlotState:
        """State of the running slot, as the application says."""
        return self.token.slot_state

    @property
    def debug_status(self) -> DebugStatus:
        """Debug status, as the application says."""
        return self.token.debug_status

    @property
    def boot_count(self) -> int:
        """Boot counter."""
        return self.token.boot_count

    @property
    def boot_seed(self) -> bytes:
        """Random value of this boot."""
        return self.token.boot_seed

    @property
    def stored_fence(self) -> int:
        """The highest fence that the device has stored."""
        return self.token.fence

    @property
    def owner_keys(self) -> tuple[bytes, ...]:
        """Key ids of the owner keys that the device accepts grants and releases from."""
        return self.token.owner_keys

    @property
    def data_images(self) -> Mapping[str, Measurement]:
        """Digests of data images, as the application measured them."""
        return self.token.data_images


class Step(NamedTuple):
    """One rule of the trail."""

    rule: str
    held: bool
    detail: str


class Verdict(NamedTuple):
    """The judgement. ``accepted`` alone is not success: that also needs ``proven_at_tier`` and the consumed nonce."""

    accepted: bool
    code: Code | None
    """Why not; None if accepted."""
    message: str
    trail: tuple[Step, ...]
    unproven: tuple[str, ...]
    """What this verdict does not prove, in plain words."""
    claims: DeviceClaims | None
    """Authentic claims; None if the judgement ended before the token's signature held."""
    acceptance: Acceptance | None
    """By which rule the application is acceptable; None where it was not judged."""
    tier: RootOfTrust | None
    """Root of trust of the device, as enrolled."""
    proven_at_tier: bool
    """Accepted, and the device's root of trust is at least the policy's minimum."""
    nonce: bytes | None
    """The nonce that was answered; None if there was none of ours."""
    nonce_until: int
    """Until when that nonce must be remembered as used, Unix seconds."""
    policy_hash: bytes | None
    evidence_sha256: bytes

    def refused(self, rule: str, reject: Reject) -> "Verdict":
        """This verdict after one more rule, which was broken."""
        trail = (*self.trail, Step(rule, False, str(reject)))
        return self._replace(
            accepted=False, proven_at_tier=False, code=reject.code, message=reject.message, trail=trail
        )
