# SPDX-License-Identifier: Apache-2.0
"""Which boots of each device were seen, wherever it was seen: two devices with one identity give themselves away. Pure.

`attestation.clones` decides; this remembers for it. Rules (tests name them):

1. All places of a device have one memory: two devices with one identity, each at its own address, are seen together.
2. An alarm stands, and the device is not listed, until somebody releases it: until the enrolment, having withheld the
   device, withholds it no longer. Then everything is seen for the first time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attestation import clones
from attestation.discovery.enrolled import EnrolledDevice, Judged


@dataclass(slots=True)
class _Memory:
    sightings: tuple[clones.Sighting, ...] = ()
    alarm: Judged | None = None
    withheld: bool = False


class Boots:
    """One memory per device that was ever judged."""

    def __init__(self) -> None:
        self._of: dict[str, _Memory] = {}

    def saw(self, device_id: str, judged: Judged, *, asked_at: int, seen_at: int) -> None:
        """Take note of one more judgement.

        Args:
            device_id: hex.
            judged: of fresh evidence.
            asked_at: when its nonce was drawn, in any unit of any clock that never goes back.
            seen_at: when the answer had come, by the same clock.
        """
        memory = self._of.setdefault(device_id, _Memory())
        finding = clones.observe(memory.sightings, judged.verdict, asked_at=asked_at, seen_at=seen_at)
        memory.sightings = finding.sightings
        if finding.alarm is not None and memory.alarm is None:
            memory.alarm = replace(judged, code=str(finding.alarm), message=finding.message)

    def alarm(self, device_id: str) -> Judged | None:
        """The judgement that raised the alarm, if one stands."""
        memory = self._of.get(device_id)
        return memory.alarm if memory else None

    def enrolled(self, device_id: str, device: EnrolledDevice | None) -> bool:
        """Rule 2: what the enrolment says of the device now (None: it is not enrolled); returns whether that ends all."""
        memory = self._of.get(device_id)
        if memory is None:
            return False
        withheld = device is not None and bool(device.withheld)
        if device is None or (memory.withheld and not withheld):
            del self._of[device_id]
            return True
        memory.withheld = withheld
        return False
