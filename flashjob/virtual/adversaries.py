# SPDX-License-Identifier: Apache-2.0
"""How honest a virtual device is: one small class per lie. The base class is the honest device.

Every hook is asked at one defined moment of a device's life; a liar overrides the one it lies at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import cose, eat, mint
from attestation.keys import Alg, PrivateKey
from firmware_pipeline.esp.otadata import NO_BOOT_ID
from firmware_pipeline.esp.partitions import Partition
from flashjob.virtual.flash import SECTOR, Flash

Attest = Callable[[bytes], bytes]
"""Nonce -> evidence."""


@dataclass(slots=True)
class Behaviour:
    """An honest device."""

    def boot_slot(self, selected: int) -> int:
        """The OTA slot that really boots, given the one that OTA data selects."""
        return selected

    def boot_id(self, written: bytes) -> bytes:
        """The boot id that goes into the certificate, given the one in the selecting record."""
        return written

    def comes_back(self, *, unconfirmed: bool) -> bool:
        """Whether the application starts after this reset; `unconfirmed` = first boot of an installation."""
        return True

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        """The answer to an attest request; `attest` makes the true one."""
        return attest(nonce)

    def gives_up(self, *, unconfirmed: bool, confirmed_now: bool) -> bool:
        """Whether the device goes back to the old slot after it has just sent evidence."""
        return False

    def hears_confirm(self) -> bool:
        """Whether a confirm grant gets through; if not, no answer is ever sent."""
        return True

    def reboots(self) -> bool:
        """Whether the chip resets after it answered that it will."""
        return True

    def first_boot(self, flash: Flash, slot: Partition) -> None:
        """Called before an installation is verified and booted first."""

    def certified_loader(self, measured: bytes, *, unconfirmed: bool) -> bytes:
        """The hash that layer 0 is certified with, given the true one."""
        return measured

    def certified_application(self, measured: bytes, selected: Callable[[], bytes]) -> bytes:
        """The hash that the application is certified with; `selected` measures the slot that OTA data selects."""
        return measured

    def certified_table(self, measured: bytes, *, unconfirmed: bool) -> bytes:
        """The partition-table hash that is certified, given the true one."""
        return measured


@dataclass(slots=True)
class RunsOldImage(Behaviour):
    """Takes the write, answers "done", claims the new boot id, and goes on booting the image it always ran."""

    first: int | None = None

    def boot_slot(self, selected: int) -> int:
        if self.first is None:
            self.first = selected
        return self.first


@dataclass(slots=True)
class StaleBootId(Behaviour):
    """Runs the right image, but answers with the boot id of an installation before this one."""

    seen: list[bytes] = field(default_factory=list)

    def boot_id(self, written: bytes) -> bytes:
        if written not in self.seen:
            self.seen.append(written)
        return self.seen[-2] if len(self.seen) > 1 else written


@dataclass(slots=True)
class ReplaysEvidence(Behaviour):
    """Answers every request with the first evidence it ever made."""

    first: bytes | None = None

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        if self.first is None:
            self.first = attest(nonce)
        return self.first


@dataclass(slots=True)
class OtherDevicesEvidence(Behaviour):
    """Lets another, honest device answer: right nonce, right image, wrong identity.

    `device` names it where the fleet hosts it (see fleet.py), `donor` is it anywhere else.
    """

    donor: Attest | None = None
    device: str = ""

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        return attest(nonce) if self.donor is None else self.donor(nonce)


@dataclass(slots=True)
class WrongSlot(RunsOldImage):
    """Boots the slot that it always booted, whatever is selected, and is honest about having no boot id then."""

    def boot_slot(self, selected: int) -> int:
        self.lied = self.first not in (None, selected)
        return RunsOldImage.boot_slot(self, selected)

    lied: bool = False

    def boot_id(self, written: bytes) -> bytes:
        return NO_BOOT_ID if self.lied else written


@dataclass(slots=True)
class StaleNonce(Behaviour):
    """Makes fresh, true evidence each time, but over the nonce it was asked with before."""

    last: bytes | None = None

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        asked, self.last = self.last or nonce, nonce
        return attest(asked)


@dataclass(slots=True)
class ForeignKey(Behaviour):
    """Signs every token after the first with a key that nobody certified."""

    key: PrivateKey | None = None

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        genuine = attest(nonce)
        if self.key is None:
            edwards = cose.parse(eat.parse_evidence(genuine).token).alg is Alg.EDDSA
            self.key = Ed25519PrivateKey.generate() if edwards else ec.generate_private_key(ec.SECP256R1())
            return genuine
        return sign_again(genuine, self.key)


@dataclass(slots=True)
class HoldsUds(RunsOldImage):
    """Its application can read the UDS: it runs the old image and certifies the one it was sent.

    Nothing but hardware isolation stops it; judged as what it is, `SelfReported`, it proves nothing.
    """

    def certified_application(self, measured: bytes, selected: Callable[[], bytes]) -> bytes:
        return selected()


@dataclass(slots=True)
class LeakedCdi(RunsOldImage):
    """Runs the old image and answers with secrets of the wanted one that leaked from an earlier installation.

    `leak` is that installation's evidence maker; without one it is no more than `RunsOldImage`.
    """

    leak: Attest | None = None
    installed: bool = False

    def boot_slot(self, selected: int) -> int:
        self.installed = self.first not in (None, selected)
        return RunsOldImage.boot_slot(self, selected)

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        return self.leak(nonce) if self.installed and self.leak else attest(nonce)


@dataclass(slots=True)
class NeverReboots(Behaviour):
    """Says done and goes on running. On a serial line it stays in its loader, silent."""

    def reboots(self) -> bool:
        return False


@dataclass(slots=True)
class TruncatesImage(Behaviour):
    """Takes the whole image, says done, and keeps only its first `sectors` sectors."""

    sectors: int = 8

    def first_boot(self, flash: Flash, slot: Partition) -> None:
        kept = self.sectors * SECTOR
        flash.erase(slot.offset + kept, slot.size - kept)


@dataclass(slots=True)
class OldBootloader(Behaviour):
    """Boots the new application with a bootloader of long ago."""

    def certified_loader(self, measured: bytes, *, unconfirmed: bool) -> bytes:
        return _other(measured) if unconfirmed else measured


@dataclass(slots=True)
class OtherTable(Behaviour):
    """Boots the new application, with a partition table that nobody approved."""

    def certified_table(self, measured: bytes, *, unconfirmed: bool) -> bytes:
        return _other(measured) if unconfirmed else measured


@dataclass(slots=True)
class NeverComesBack(Behaviour):
    """Takes the write and stays silent from the reboot on."""

    silent: bool = False

    def comes_back(self, *, unconfirmed: bool) -> bool:
        self.silent = self.silent or unconfirmed
        return not self.silent


@dataclass(slots=True)
class RollsBackBeforeConfirm(Behaviour):
    """Proves the new image once, then goes back to the old one before it can be confirmed."""

    def gives_up(self, *, unconfirmed: bool, confirmed_now: bool) -> bool:
        return unconfirmed


@dataclass(slots=True)
class RollsBackAfterAccept(Behaviour):
    """Confirms with true evidence, and then goes back to the old image all the same."""

    def gives_up(self, *, unconfirmed: bool, confirmed_now: bool) -> bool:
        return confirmed_now


@dataclass(slots=True)
class LosesConfirm(Behaviour):
    """Never hears the first `times` confirm grants, so that its deadline runs out."""

    times: int = 1

    def hears_confirm(self) -> bool:
        self.times -= 1
        return self.times < 0


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "Honest": Behaviour,
    **{
        kind.__name__: kind
        for kind in (
            RunsOldImage,
            StaleBootId,
            ReplaysEvidence,
            OtherDevicesEvidence,
            WrongSlot,
            StaleNonce,
            ForeignKey,
            HoldsUds,
            LeakedCdi,
            NeverReboots,
            TruncatesImage,
            OldBootloader,
            OtherTable,
            NeverComesBack,
            RollsBackBeforeConfirm,
            RollsBackAfterAccept,
            LosesConfirm,
        )
    },
}
"""By name, for device lists in files."""


_NOT_IN_FILES: Final = frozenset({"donor", "leak", "key", "first", "last", "seen", "lied", "installed", "silent"})
"""Fields that only a program can set, and memory."""


def make_behaviour(spec: str | dict[str, Any]) -> Behaviour:
    """The behaviour of this name, or that ``{"kind": name, ...}`` describes. Raises ValueError for an unknown kind or field."""
    arguments = {"kind": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("kind", None)
    kind = BEHAVIOURS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"behaviour {name!r} is none of {', '.join(BEHAVIOURS)}")
    unknown = arguments.keys() - ({field.name for field in fields(kind)} - _NOT_IN_FILES)
    if unknown:
        raise ValueError(f"behaviour {name} has no {', '.join(sorted(unknown))}")
    return kind(**arguments)


def sign_again(evidence: bytes, key: PrivateKey) -> bytes:
    """The same claims and chain, the token signed with `key`."""
    genuine = eat.parse_evidence(evidence)
    claims = cose.parse(genuine.token).payload
    return mint.evidence(genuine.anchor_id, genuine.certificates, cose.sign(claims, key))


def _other(measured: bytes) -> bytes:
    return hashlib.shake_256(b"another" + measured).digest(len(measured))
