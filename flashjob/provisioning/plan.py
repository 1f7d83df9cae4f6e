# SPDX-License-Identifier: Apache-2.0
"""What must be burnt into a chip so that it can be enrolled at a root of trust. Pure: it plans, nothing here burns.

Rules (tests name them):

1. SignedBoot needs, in this order: the secret (an eFuse key for the HMAC peripheral), the digest of the secure boot key,
   secure boot, JTAG off, and last the locked loader: after that step nothing can be burnt over this line any more.
2. A chip without an eFuse key for HMAC is never planned for SignedBoot; it needs no eFuses for SelfReported.
3. What the chip shows as done is not planned again. What cannot be seen from outside is planned, and said to be unseen.
4. Flash encryption is not burnt from here: its key must be made by the chip itself at the first boot of an encrypting
   bootloader. The plan says so and counts it as left to do.
5. Every step is irreversible; each is a command line of espefuse, a separate program, with nothing hidden in it.

Field and purpose names are those of espefuse 5.6 for each chip (`espefuse --chip CHIP --virt summary`); tests burn every
plan into espefuse's own virtual eFuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from attestation.policy import RootOfTrust
from firmware_pipeline.esp.chips import Chip
from flashjob.errors import FlashJobError
from flashjob.wire.esptool_lines import ChipEvent
from flashjob.wire.reasons import Reason

RESETS: Final = {"auto": None, "usb-jtag": "usb-reset", "none": "no-reset"}
"""Ways into the loader that espefuse has an option for; None: the one it takes without."""
SECRET_BLOCK: Final = "BLOCK_KEY4"
DIGEST_BLOCK: Final = "BLOCK_KEY0"
_JTAG: Final = {"esp32s2": ("HARD_DIS_JTAG",)}
_JTAG_USUAL: Final = ("DIS_PAD_JTAG", "DIS_USB_JTAG")


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a chip.

    Attributes:
        what: for people.
        arguments: of espefuse, without port and chip; empty where nothing can be done from here.
        done: the chip shows that it is done already.
    """

    what: str
    arguments: tuple[str, ...] = ()
    done: bool = False


def plan(chip: Chip, seen: ChipEvent, tier: RootOfTrust, *, secret: str, digest: str) -> tuple[Step, ...]:
    """The steps to a root of trust.

    Args:
        chip: the model.
        seen: what its loader shows.
        tier: what it is to reach.
        secret: file with the 32 bytes of the HMAC key.
        digest: file with the SHA-256 of the secure boot public key (`espsecure digest-sbv2-public-key`).

    Raises:
        FlashJobError: RootOfTrustTooLow, the chip cannot have this root of trust (rule 2).
    """
    if tier is RootOfTrust.SELF_REPORTED:
        return ()
    if tier is not RootOfTrust.SIGNED_BOOT or not chip.hmac_key:
        raise FlashJobError(
            Reason.ROOT_OF_TRUST_TOO_LOW,
            f"a {chip.display} cannot have root of trust {tier}",
            "provision it with --root-of-trust SelfReported",
        )
    return tuple(_signed_boot(chip, seen, secret, digest))


def _signed_boot(chip: Chip, seen: ChipEvent, secret: str, digest: str) -> Iterator[Step]:
    yield Step(
        "secret for the HMAC peripheral (read-protected; cannot be seen from here)",
        ("burn-key", SECRET_BLOCK, secret, "HMAC_UP"),
    )
    yield Step(
        "digest of the secure boot key", ("burn-key", DIGEST_BLOCK, digest, "SECURE_BOOT_DIGEST0"), seen.secure_boot
    )
    yield Step("secure boot on", ("burn-efuse", "SECURE_BOOT_EN", "1"), seen.secure_boot)
    yield Step(
        "flash encryption in release mode: left to an encrypting bootloader's first boot, which makes the key itself",
        done=seen.flash_encryption,
    )
    off = _JTAG.get(chip.target, _JTAG_USUAL)
    yield Step("JTAG off (cannot be seen from here)", ("burn-efuse", *(word for name in off for word in (name, "1"))))
    yield Step(
        "loader locked: the last step over this line",
        ("burn-efuse", "ENABLE_SECURITY_DOWNLOAD", "1"),
        seen.secure_download,
    )


def command(chip: Chip, port: str, step: Step, reset: str = "auto") -> tuple[str, ...]:
    """The words of the command line of one step.

    Args:
        chip, port, step: what is done to whom.
        reset: the way into the loader, of those in `RESETS`.
    """
    before = RESETS[reset]
    way = ("--before", before) if before else ()
    return ("espefuse", "--chip", chip.target, "--port", port, *way, *step.arguments)
