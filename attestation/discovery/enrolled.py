# SPDX-License-Identifier: Apache-2.0
"""What discovery needs from whoever keeps the devices, and what it tells them: Protocols, so that it needs no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from attestation.discovery.listing import Listing
from attestation.eat import SlotState
from attestation.verdict import Context, ExactNonce, IssuedNonce, Verdict


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """One enrolled device, as far as discovery goes.

    Args:
        id: its ueid, hex.
        address: where it is on the network by configuration, host:port or https://host:port; empty: as discovered, or
            not on the network.
        endpoint: where it was last seen on the network; empty: nowhere.
        port: properties of the serial port it is behind; empty: not on a port.
        chip: its chip, as esp32s3; empty: not known.
        at_work: a task prepares to write it: its serial port is left alone.
        in_hand: a task has its permit and no verdict yet: the device is not to be listed, nor to be talked to.
        withheld: why it is not to be listed though it may be talked to, as a quarantine; empty: nothing of the kind.
    """

    id: str
    address: str = ""
    endpoint: str = ""
    port: Mapping[str, str] = field(default_factory=dict)
    chip: str = ""
    at_work: bool = False
    in_hand: bool = False
    withheld: str = ""


class Enrolment(Protocol):
    """Knows the enrolled devices, their policies and their tasks."""

    def device(self, device_id: str) -> EnrolledDevice | None:
        """The device with this id (hex), or None.

        Raises:
            Reject: it cannot be told.
        """
        ...

    def devices(self) -> Iterable[EnrolledDevice]:
        """All of them that can be told apart."""
        ...

    def context(self, device_id: str, nonce: ExactNonce | IssuedNonce, now: int) -> Context:
        """What a verdict on this device depends on: anchor, policy, floors, acceptable measurements.

        Args:
            device_id: hex.
            nonce: what the answer must be fresh against.
            now: Unix seconds.

        Raises:
            Reject: it cannot be told.
        """
        ...

    def subscribe(self, changed: Callable[[str], None]) -> None:
        """Call `changed` with a device id, in the event loop, whenever what is said here of that device may differ."""
        ...


@dataclass(frozen=True, slots=True)
class Judged:
    """One attestation and what came of it.

    Args:
        verdict: the verifier's.
        code: why the device is not accepted; empty if it is.
        message: for people: why it is not accepted, or why it is not listed though it is, or that all is well.
        is_itself: it proved its identity, reached directly and not by a relay, whatever it runs and in whatever state.
        asked_at: when its nonce was drawn, Unix seconds; 0: not known.
    """

    verdict: Verdict
    code: str
    message: str
    is_itself: bool = False
    asked_at: int = 0

    @property
    def slot_state(self) -> SlotState | None:
        """As the application says; None where it could not be believed."""
        return self.verdict.claims.slot_state if self.verdict.claims else None


@dataclass(frozen=True, slots=True)
class Look:
    """What discovery knows of one device now.

    Args:
        device_id: hex.
        endpoint: where it was seen on the network, host:port or https://host:port; empty: nothing new.
        judged: the last attestation; None: none yet.
        listing: what it is listed as; None: it is not listed.
    """

    device_id: str
    endpoint: str = ""
    judged: Judged | None = None
    listing: Listing | None = None


class Reports(Protocol):
    """Keeps what discovery found."""

    def saw(self, look: Look) -> None:
        """Take note; called in the event loop whenever something changed; must be quick and must not raise."""
        ...
