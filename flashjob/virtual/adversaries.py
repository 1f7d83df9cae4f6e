# SPDX-License-Identifier: Apache-2.0
"""How honest a virtual device is: one small class per lie. The base class is the honest device.

Every hook is asked at one defined moment of a device's life; a liar overrides the one it lies at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

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
    """Lets another, honest device answer: right nonce, right image, wrong identity."""

    donor: Attest | None = None

    def evidence(self, nonce: bytes, attest: Attest) -> bytes:
        return attest(nonce) if self.donor is None else self.donor(nonce)


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
            NeverComesBack,
            RollsBackBeforeConfirm,
            RollsBackAfterAccept,
            LosesConfirm,
        )
    },
}
"""By name, for device lists in files."""


def make_behaviour(spec: str | dict[str, Any]) -> Behaviour:
    """The behaviour of this name, or that ``{"kind": name, ...}`` describes. Raises ValueError for an unknown kind or field."""
    arguments = {"kind": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("kind", None)
    kind = BEHAVIOURS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"behaviour {name!r} is none of {', '.join(BEHAVIOURS)}")
    unknown = arguments.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"behaviour {name} has no {', '.join(sorted(unknown))}")
    return kind(**arguments)
