# SPDX-License-Identifier: Apache-2.0
"""What the verifier must be told about a device, and the Protocols of the stores that know it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from attestation import keys
from attestation.errors import Code, Reject
from attestation.keys import PublicKey
from attestation.policy import AttestationPolicySpec, Measurement, RootOfTrust


class DeviceState(StrEnum):
    """Whether a device is to be believed at all."""

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    REVOKED = "Revoked"


@dataclass(frozen=True, slots=True)
class DeviceAnchor:
    """One enrolled device.

    Args:
        ueid: its identity.
        key: its UDS public key, which its chain must start from.
        tier: what its hardware can prove, as set at enrolment.
        policy: name of the policy that judges it.
        state: whether it is to be believed.
        oemid: maker it must claim; None accepts any.
        hwmodel: model it must claim; None accepts any.

    Raises:
        Reject: ``anchor.mismatch``, the identity does not belong to the key; ``key.unprovisioned``.
    """

    ueid: bytes
    key: PublicKey
    tier: RootOfTrust
    policy: str
    state: DeviceState = DeviceState.ACTIVE
    oemid: int | bytes | None = None
    hwmodel: bytes | None = None
    anchor_id: bytes = field(init=False, repr=False, compare=False)
    """DICE id of the key, 20 bytes: what evidence names its anchor by."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_id", keys.dice_id(self.key))
        if self.ueid != keys.ueid(self.key):
            expected = keys.ueid(self.key).hex()
            raise Reject(Code.ANCHOR_MISMATCH, f"ueid {self.ueid.hex()} does not belong to the key, {expected} does")
        if self.anchor_id in keys.UNPROVISIONED_IDS:
            raise Reject(Code.KEY_UNPROVISIONED, "the key belongs to the all-zero device secret: provision the device")

    @property
    def anchor_ids(self) -> tuple[bytes, ...]:
        """Every DICE id that evidence may name it by: of the key as it is, and of the compressed point (old builds)."""
        return tuple(dict.fromkeys((self.anchor_id, keys.dice_id(self.key, compressed=True))))


@dataclass(frozen=True, slots=True)
class Floors:
    """What may only rise, as last confirmed for one device."""

    security_version: int = 0
    sequence: int = 0
    boot_count: int = 0

    def raised(self, other: "Floors") -> "Floors":
        """The higher of both, value by value."""
        return Floors(
            max(self.security_version, other.security_version),
            max(self.sequence, other.sequence),
            max(self.boot_count, other.boot_count),
        )


class AnchorStore(Protocol):
    """Enrolled devices."""

    def by_ueid(self, ueid: bytes) -> DeviceAnchor | None:
        """The device with this identity, or None.

        Raises:
            Reject: ``store.unavailable`` or ``store.invalid``: it cannot be told whether the device is enrolled.
        """
        ...

    def by_anchor_id(self, anchor_id: bytes) -> DeviceAnchor | None:
        """The device whose key has this DICE id, in either form, or None. Raises as ``by_ueid``."""
        ...


class PolicyStore(Protocol):
    """Attestation policies."""

    def policy(self, name: str) -> AttestationPolicySpec | None:
        """The policy of this name, or None.

        Raises:
            Reject: ``policy.invalid``, or ``store.unavailable``.
        """
        ...


class FloorStore(Protocol):
    """Floors and last confirmed measurements of devices."""

    def floors(self, ueid: bytes) -> Floors:
        """The floors of a device; zeros for one that was never confirmed. Raises as ``AnchorStore.by_ueid``."""
        ...

    def confirmed(self, ueid: bytes) -> Sequence[Measurement]:
        """Its last confirmed measurement, in every known algorithm. Raises as ``AnchorStore.by_ueid``."""
        ...

    def confirm(self, ueid: bytes, floors: Floors, measurements: Sequence[Measurement]) -> None:
        """After a confirmed verdict: raise the floors, never lower them, and remember the measurement.

        Raises:
            Reject: ``store.unavailable`` or ``store.invalid``: nothing was changed.
        """
        ...
