# SPDX-License-Identifier: Apache-2.0
"""Whether a device is withheld now: one answer for planning, gateway and discovery handler.

1. What withholds it: its quarantine, and a last look of the discovery handler that says that two devices share its
   identity. Each began at a time of its own.
2. A release ends what began no later than the release's time; what began later holds.
3. A release that is dated later than now ends nothing before its time has come. The answer says so, since whoever wrote
   it believes that it acts.
"""

from dataclasses import dataclass

from flashjob.wire.clock import seconds, stamp

from .device import DeviceStatus


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that withholds a device.

    Args:
        code: why, in one word.
        since: when it began, Unix seconds.
        shared: True where another device seems to have the same identity.
    """

    code: str
    since: float
    shared: bool = False

    def __str__(self) -> str:
        seen = "two devices seem to share its identity, seen at" if self.shared else "in quarantine since"
        return f"{seen} {stamp(self.since)}: {self.code}"


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why a device is withheld now; str() of it is for people.

    Args:
        cause: the first that holds.
        release: time of a release that has not come yet (rule 3), Unix seconds; else None.
    """

    cause: Cause
    release: float | None

    def __str__(self) -> str:
        if self.release is None:
            return str(self.cause)
        return (
            f"{self.cause}; spec.releaseFromQuarantine.at is {stamp(self.release)}, which is yet to come: the release "
            "does nothing before (write the present time, in UTC)"
        )


def causes(status: DeviceStatus) -> tuple[Cause, ...]:
    """Rule 1: all that withholds a device as long as nobody releases it."""
    found = []
    if status.quarantine is not None:
        found.append(Cause(status.quarantine.reason, seconds(status.quarantine.since)))
    if status.attestation is not None and status.attestation.is_clone_alarm:
        found.append(Cause(status.attestation.code, seconds(status.attestation.at), shared=True))
    return tuple(found)


def withheld(by: tuple[Cause, ...], released_at: float | None, now: float) -> Withheld | None:
    """Rules 2 and 3.

    Args:
        by: from `causes`.
        released_at: time of the release, Unix seconds; None where there is none.
        now: Unix seconds.
    """
    early = released_at is not None and released_at > now
    ended = released_at if released_at is not None and not early else float("-inf")
    live = next((cause for cause in by if cause.since > ended), None)
    return Withheld(live, released_at if early else None) if live else None
