# SPDX-License-Identifier: Apache-2.0
"""What a make of virtual device is: chip, eFuses, root of trust, keys, and how honest it is.

Two tiers exist, as on real hardware:

* ``SignedBoot``: secure boot, flash encryption in release mode, JTAG and download locked; boots in DICE mode Normal
  and certifies the hash of its secure-boot key as authority. Refused for chips without an eFuse HMAC key.
* ``SelfReported``: JTAG is off, but any image boots; DICE mode NotConfigured and a zero authority hash.

The secret (UDS) is in `DeviceIdentity`, which only the bootloader gets; applications see `Hardware`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from attestation import mint
from attestation.device_protocol import Flag
from attestation.keys import Alg, PublicKey, dice_id, key_id, ueid
from attestation.mint import Mode
from attestation.statement import SHA_512
from attestation.succession import MOST_KEYS, Kind, Slots
from firmware_pipeline.esp.chips import FLASH_SIZES, Chip, by_target
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET
from flashjob.virtual import secure_boot

Tier = Literal["SelfReported", "SignedBoot"]
DEFAULT_CONFIRM_SECONDS: Final = 300


@dataclass(slots=True)
class Fuses:
    """One-time-programmable state. Only `burn_secure_version` changes it, and only upwards."""

    secure_boot_key_digest: bytes | None = None
    """SHA-256 of the trusted secure-boot key; None = secure boot off."""
    flash_encryption: bool = False
    encryption_release: bool = False
    jtag_off: bool = False
    download_locked: bool = False
    secure_version: int = 0

    @property
    def secure_boot(self) -> bool:
        """Whether only signed images may boot."""
        return self.secure_boot_key_digest is not None

    @property
    def flags(self) -> Flag:
        """The security bits that the bootloader certifies."""
        bits = (
            (self.secure_boot, Flag.SECURE_BOOT),
            (self.flash_encryption, Flag.FLASH_ENCRYPTION),
            (self.encryption_release, Flag.ENCRYPTION_RELEASE),
            (self.jtag_off, Flag.JTAG_OFF),
            (self.download_locked, Flag.DOWNLOAD_LOCKED),
        )
        return Flag(sum(flag for burnt, flag in bits if burnt))

    @property
    def mode(self) -> Mode:
        """DICE mode that follows from the eFuses alone."""
        if not self.secure_boot:
            return Mode.NOT_CONFIGURED
        locked = self.flash_encryption and self.encryption_release and self.jtag_off and self.download_locked
        return Mode.NORMAL if locked else Mode.DEBUG

    def burn_secure_version(self, version: int) -> None:
        """Raise the anti-rollback counter; never lowers it."""
        self.secure_version = max(self.secure_version, version)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What is no secret about one chip."""

    chip: Chip
    revision: int
    """major * 100 + minor."""
    mac: bytes
    flash_size: int = 4 * 1024 * 1024
    fuses: Fuses = field(default_factory=Fuses)
    alg: Alg = Alg.ES256
    hash_alg: int = SHA_512
    """COSE id of the hash in certificates: -16 or -44."""
    oemid: bytes = hashlib.sha256(b"virtual maker").digest()[:16]
    table_offset: int = DEFAULT_TABLE_OFFSET
    anti_rollback: bool = False
    """The bootloader enforces secure_version and burns eFuses on confirmation."""
    verifies_signatures: bool = True
    """With secure boot on, only an image signed by the trusted key boots, as on hardware. False leaves the check out,
    for tests about other things: then even unsigned images boot on a chip that says secure boot is on."""


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """One chip with its secret, as only the bootloader sees it."""

    hardware: Hardware
    uds: bytes = field(repr=False)
    """Unique device secret, 32 bytes."""

    @property
    def anchor(self) -> PublicKey:
        """The key that enrolment pins."""
        return mint.signing_key(self.uds, self.hardware.alg).public_key()

    @property
    def ueid(self) -> bytes:
        """The device id, 33 bytes."""
        return ueid(self.anchor)

    @property
    def anchor_id(self) -> bytes:
        """DICE id of the anchor, 20 bytes."""
        return dice_id(self.anchor)


class Owner:
    """The owner's public keys that a device holds: at most two for grants, two for releases.

    Raises ValueError for more.
    """

    def __init__(self, grant_keys: Iterable[PublicKey] = (), release_keys: Iterable[PublicKey] = ()) -> None:
        self.slots = {
            Kind.GRANT: Slots({key_id(key): key for key in grant_keys}),
            Kind.RELEASE: Slots({key_id(key): key for key in release_keys}),
        }
        for kind, held in self.slots.items():
            if len(held.keys) > MOST_KEYS:
                raise ValueError(f"a device holds at most {MOST_KEYS} {kind.name.lower()} keys, not {len(held.keys)}")

    @property
    def grant_keys(self) -> Mapping[bytes, PublicKey]:
        """Those that may sign grants, by id."""
        return self.slots[Kind.GRANT].keys

    @property
    def release_keys(self) -> Mapping[bytes, PublicKey]:
        """Those that may sign releases, by id."""
        return self.slots[Kind.RELEASE].keys

    @property
    def key_ids(self) -> list[bytes]:
        """Ids of all of them, sorted, as evidence lists them."""
        return sorted({*self.grant_keys, *self.release_keys})

    def with_slots(self, kind: Kind, slots: Slots) -> Owner:
        """The keys after a succession."""
        after = Owner()
        after.slots = {**self.slots, kind: slots}
        return after


def make_identity(
    name: str,
    target: str,
    *,
    tier: Tier = "SignedBoot",
    secret: bytes = b"",
    alg: Alg = Alg.ES256,
    hash_alg: int = SHA_512,
    revision: int | None = None,
    flash_size: str = "4MB",
    secure_version: int = 0,
    anti_rollback: bool = False,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    secure_boot_key_digest: bytes | None = None,
    verifies_signatures: bool = False,
) -> DeviceIdentity:
    """A chip of its own for every (secret, name): same input, same MAC, same keys.

    Args:
        name: tells devices of one maker apart.
        target: chip, as in the chip table.
        tier: root of trust; decides which eFuses are burnt.
        secret: the maker's secret; whoever knows it can be any of its devices.
        alg: ES256 or EdDSA.
        hash_alg: -16 (SHA-256) or -44 (SHA-512).
        revision: major * 100 + minor; a usual one for the chip where None.
        secure_version: anti-rollback counter already burnt.
        secure_boot_key_digest: trusted secure-boot key; where None that of `secure_boot.maker_key(secret)`.
        verifies_signatures: see `Hardware`; sign images with `secure_boot.sign`, or with espsecure.

    Raises:
        PipelineError: UnknownChip.
        ValueError: SignedBoot on a chip without an eFuse HMAC key.
    """
    chip = by_target(target)
    if tier == "SignedBoot" and not chip.hmac_key:
        raise ValueError(f"{chip.display} has no eFuse HMAC key and can only be SelfReported")
    seed = hashlib.sha512(b"virtual device\0" + secret + b"\0" + chip.target.encode() + b"\0" + name.encode()).digest()
    locked = tier == "SignedBoot"
    trusted = secure_boot_key_digest or secure_boot.key_digest(secure_boot.maker_key(secret).public_key())
    fuses = Fuses(
        secure_boot_key_digest=trusted if locked else None,
        flash_encryption=locked,
        encryption_release=locked,
        jtag_off=True,
        download_locked=locked,
        secure_version=secure_version,
    )
    usual = {"esp32": 301, "esp32s2": 100, "esp32s3": 2, "esp32c3": 4}
    hardware = Hardware(
        chip=chip,
        revision=usual.get(chip.target, 100) if revision is None else revision,
        mac=b"\x24\x6f\x28" + seed[:3],
        flash_size=FLASH_SIZES[flash_size],
        fuses=fuses,
        alg=alg,
        hash_alg=hash_alg,
        table_offset=table_offset,
        anti_rollback=anti_rollback,
        verifies_signatures=verifies_signatures,
    )
    return DeviceIdentity(hardware, seed[32:])
