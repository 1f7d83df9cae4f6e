# SPDX-License-Identifier: Apache-2.0
"""Whether an enrolled device is to be believed, and who said so. Pure: time is an argument.

Rules (tests name them):

1. Every change names a person and a reason.
2. ``suspend`` and ``quarantine`` hold an active device; ``suspend`` also replaces a quarantine, never the other way round.
3. ``release`` ends a suspension or a quarantine.
4. ``revoke`` is possible in every state, and final.
5. Every change is kept, newest last, with who, why and when; of more than `MOST_CHANGES` the oldest go.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from attestation.anchors import DeviceState
from attestation.errors import Code, Reject

MOST_CHANGES: Final = 64
_MOST_REASON: Final = 512
_MOST_NAME: Final = 253


class Standing(StrEnum):
    """How a device stands."""

    ACTIVE = "Active"
    QUARANTINED = "Quarantined"
    SUSPENDED = "Suspended"
    REVOKED = "Revoked"

    @property
    def state(self) -> DeviceState:
        """As the verifier sees it: a quarantined device is believed as little as a suspended one."""
        return {
            Standing.ACTIVE: DeviceState.ACTIVE,
            Standing.REVOKED: DeviceState.REVOKED,
        }.get(self, DeviceState.SUSPENDED)


class Verb(StrEnum):
    """What can be done about it."""

    SUSPEND = "suspend"
    QUARANTINE = "quarantine"
    RELEASE = "release"
    REVOKE = "revoke"


_RESULT: Final = {
    Verb.SUSPEND: ({Standing.ACTIVE, Standing.QUARANTINED}, Standing.SUSPENDED),
    Verb.QUARANTINE: ({Standing.ACTIVE}, Standing.QUARANTINED),
    Verb.RELEASE: ({Standing.SUSPENDED, Standing.QUARANTINED}, Standing.ACTIVE),
    Verb.REVOKE: ({Standing.ACTIVE, Standing.QUARANTINED, Standing.SUSPENDED}, Standing.REVOKED),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change of standing: what it became, by whom, why, and when (Unix seconds)."""

    standing: Standing
    by: str
    reason: str
    at: int


def changed(history: tuple[Change, ...], verb: Verb, *, by: str, reason: str, at: int) -> tuple[Change, ...]:
    """The history with one more change.

    Args:
        history: all changes so far; none: Active.
        verb: what is to be done.
        by: the person, or the program, that wants it.
        reason: why.
        at: now, Unix seconds.

    Raises:
        Reject: ``standing``, a rule does not allow it.
    """
    check_who_and_why(by, reason)
    now = current(history)
    sources, result = _RESULT[verb]
    if now not in sources:
        last = f" since {history[-1].by} said so: {history[-1].reason}" if history else ""
        final = ", and that is final: enroll other hardware" if now is Standing.REVOKED else ""
        raise Reject(Code.STANDING, f"cannot {verb} a device that is {now}{last}{final}")
    return (*history, Change(result, by, reason, at))[-MOST_CHANGES:]


def check_who_and_why(by: str, reason: str) -> None:
    """Rule 1, for every decision that a person makes about a device. Raises Reject ``standing``."""
    check_who(by)
    _check_text("reason", reason, _MOST_REASON, "why")


def check_who(by: str) -> None:
    """The first half of rule 1, for decisions that explain themselves. Raises Reject ``standing``."""
    _check_text("by", by, _MOST_NAME, "who")


def _check_text(name: str, value: str, most: int, what: str) -> None:
    if not value.strip() or len(value) > most or not value.isprintable():
        raise Reject(Code.STANDING, f"{name} must be 1 to {most} printable characters: say {what}")


def current(history: tuple[Change, ...]) -> Standing:
    """How the device stands after these changes."""
    return history[-1].standing if history else Standing.ACTIVE
