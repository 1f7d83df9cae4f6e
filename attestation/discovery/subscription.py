# SPDX-License-Identifier: Apache-2.0
"""One Configuration's view of the scanner: what is listed for it, and when that has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from attestation.discovery import entries
from attestation.discovery.details import Details
from attestation.discovery.entries import Entry, Shown
from attestation.discovery.places import NetworkPlace
from attestation.discovery.ports import Found, Kept, SerialPort
from attestation.discovery.sightings import Pace

_log = logging.getLogger(__name__)


class Source(Protocol):
    """The scanner, as far as a subscription goes."""

    pace: Pace

    @property
    def shown(self) -> Mapping[str, Shown]:
        """Devices that may be listed, by id."""
        ...

    def settled(self, subscription: Subscription) -> bool:
        """Whether every place was looked at once."""
        ...

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listing for it."""
        ...


class Subscription:
    """Made by `Scanner.subscribe`; end it with `close`.

    Args:
        scanner: what it is a view of.
        details: what the Configuration wants.
    """

    def __init__(self, scanner: Source, details: Details) -> None:
        self.details = details
        self.changed = asyncio.Event()
        self.places = tuple(map(NetworkPlace, details.addresses))
        self.ports: tuple[SerialPort, ...] = ()
        self.surveyed = False
        """Whether all its places are known by now."""
        self.unreadable: tuple[str, ...] = ()
        self._kept = Kept()
        self._scanner = scanner

    def entries(self) -> tuple[Entry, ...]:
        """The whole list now."""
        if self.details.list == "Ports":
            return entries.ports(self.ports)
        return entries.devices(self._scanner.shown.values(), self.details)

    def found(self, found: Found, *, now: float) -> tuple[SerialPort, ...]:
        """Take note of a look at the ports; returns those to be listed."""
        ports = self._kept.after(found, now=now, grace=self._scanner.pace.gone_seconds)
        if self.ports != ports:
            self.ports = ports
            self.changed.set()
        for trouble in found.unreadable:
            if trouble not in self.unreadable:
                _log.warning("serial ports: %s; what was found before stays listed", trouble)
        self.unreadable = found.unreadable
        return ports

    async def settled(self) -> None:
        """Wait until every place was looked at once, or the pace's `settle_seconds` are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._scanner.pace.settle_seconds):
                while not self._scanner.settled(self):
                    self.changed.clear()
                    await self.changed.wait()

    def close(self) -> None:
        """The Configuration no longer listens."""
        self._scanner.unsubscribe(self)
