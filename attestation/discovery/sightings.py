# SPDX-License-Identifier: Apache-2.0
"""What is known of one place, and which of several places counts for a device. No I/O.

Rules (tests name them):

1. Several places may claim one device. The one where it proves what it runs counts; then one where it proves at least
   who it is; of several the configured one, then the first. So a stranger who claims its name says nothing about it.
2. A device is where it has proven to be, whatever it runs: one with unknown firmware must be found, to be updated away
   from it. In a task's hands it is where it alone says it is.
3. A place that answered is looked at again after `scan_seconds`, sooner where there is reason; one that does not answer
   after as long again as it has been silent, from 0.5 s up to `silent_seconds`, or `unknown_seconds` where no enrolled
   device is known to be. While a task has the device in hand `scan_seconds` is the longest pause. On a serial port, which
   is not opened lightly, the longest pause is the attest interval, or `unknown_seconds` for an enrolled device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from attestation.discovery import rules
from attestation.discovery.enrolled import EnrolledDevice, Judged
from attestation.discovery.listing import Listing
from attestation.discovery.places import NetworkPlace, Place, PortPlace
from attestation.discovery.ports import SerialPort
from attestation.verdict import Context

_FIRST_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how much at once."""

    scan_seconds: float = 5.0
    ports_seconds: float = 1.0
    gone_seconds: float = 3.0
    """How much longer a port is listed that is gone (ports, rule 5)."""
    settle_seconds: float = 10.0
    """How long the first list waits for first looks."""
    silent_seconds: float = 60.0
    unknown_seconds: float = 300.0
    survey_seconds: float = 0.2
    """Shortest time between two surveys."""
    looks: int = 64
    """Places that answer, at once."""
    probes: int = 128
    """Places that have not answered, at once: they must not keep others waiting."""


@dataclass(eq=False, slots=True)
class Sighting:
    """What is known of one place."""

    place: Place
    expected: str = ""
    """The device that is enrolled there."""
    device_id: str = ""
    """The device that says it is there."""
    endpoint: str = ""
    attestation: rules.Attestation | None = None
    context: Context | None = None
    judged: Judged | None = None
    listing: Listing | None = None
    enrolled: bool = False
    in_hand: bool = False
    failures: int = 0
    silent: bool = True
    """It did not answer when last asked, or was never asked."""
    looked: bool = False
    filed: set[str] = field(default_factory=set)
    """Devices that the scanner has this place on file for."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None
    rest: asyncio.Timeout | None = None
    """The pause before the next look, while there is one."""

    def forget(self) -> None:
        """Nothing that was proven counts any longer."""
        self.attestation = self.context = self.judged = self.listing = None

    @property
    def boot_seed(self) -> bytes | None:
        """Of the boot that the last answer proved, whether it was accepted or not; None: of none."""
        claims = self.judged.verdict.claims if self.judged else None
        return claims.boot_seed if claims else None

    @property
    def doubtful(self) -> bool:
        """Whether it is to be feared that nobody answers."""
        return self.silent and (self.failures > 0 or not self.expected)

    def pause(self, pace: Pace, *, interval: float, now: float) -> float | None:
        """Seconds until the next look (rule 3; scanner's rule 2 for ports); None: until it is woken."""
        again = _FIRST_PAUSE_SECONDS * 2 ** min(self.failures - 1, 16) if self.failures else 0.0
        if isinstance(self.place, NetworkPlace):
            longest = pace.scan_seconds
            if self.silent and not self.in_hand:
                longest = max(longest, pace.silent_seconds if self.enrolled or self.expected else pace.unknown_seconds)
            return min(again or pace.scan_seconds, longest)
        if self.in_hand:
            return None
        if again:
            known = self.enrolled or self.expected
            return min(again, interval, pace.unknown_seconds if known else interval)
        last = self.attestation
        return max(0.0, interval - (now - last.at)) if last else interval


def hands_off(device: EnrolledDevice | None, place: Place) -> bool:
    """Whether a task is not to be disturbed at this place."""
    return device is not None and (device.in_hand or (device.at_work and isinstance(place, PortPlace)))


def behind(port: SerialPort, enrolled: Sequence[EnrolledDevice]) -> str:
    """The device that is enrolled behind a port; empty if there is none, or more than one."""
    found = [one.id for one in enrolled if one.port and one.port.items() <= port.properties.items()]
    return found[0] if len(found) == 1 else ""


def by_weight(claims: Iterable[Sighting], device_id: str) -> list[Sighting]:
    """All places where the device says it is, the one that counts first (rule 1)."""

    def weight(one: Sighting) -> tuple[bool, bool, bool, str]:
        itself = one.judged is not None and one.judged.is_itself
        return one.listing is None, not itself, one.expected != device_id, one.place.key

    return sorted((one for one in claims if one.device_id == device_id), key=weight)


def network_endpoint(device: EnrolledDevice, claims: Sequence[Sighting]) -> str:
    """Where the device is on the network (rule 2); empty: not known."""
    network = [one for one in claims if isinstance(one.place, NetworkPlace) and one.endpoint]
    accepted = [one.endpoint for one in network if one.judged is not None and not one.judged.code]
    itself = [one.endpoint for one in network if one.judged is not None and one.judged.is_itself]
    if accepted or itself or not device.in_hand:
        return next(iter([*accepted, *itself]), "")
    said = {one.endpoint for one in network if one.failures == 0}
    return said.pop() if len(said) == 1 else ""
