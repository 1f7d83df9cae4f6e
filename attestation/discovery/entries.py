# SPDX-License-Identifier: Apache-2.0
"""What is listed to Akri: the whole list of one Configuration. Pure.

Everything in an entry stays the same as long as the device does: each change makes the agent write the Instance anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from attestation.discovery import listing as lst
from attestation.discovery.details import Details
from attestation.discovery.listing import Listing
from attestation.discovery.ports import SerialPort

_PORT_RIGHTS: Final = "rwm"


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed device or port.

    Args:
        id: what its Instance's name is made from.
        properties: of its Instance, and environment of pods that claim it.
        node: device node as (path in the pod, path on the host), None for a device.
    """

    id: str
    properties: Mapping[str, str]
    node: tuple[str, str] | None = None
    rights: str = _PORT_RIGHTS


@dataclass(frozen=True, slots=True)
class Shown:
    """A device that may be listed.

    Args:
        listing: what is proven of it.
        token: the same, signed.
        chip: as enrolled; empty: not known.
    """

    listing: Listing
    token: str
    chip: str = ""
    entry: Entry = field(init=False)
    """How it is listed: made once, since lists are compared often."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "entry", _device(self))


def devices(shown: Iterable[Shown], details: Details) -> tuple[Entry, ...]:
    """The devices whose certified application the Configuration wants, by id."""
    wanted = (one.entry for one in shown if details.wants(one.listing.application))
    return tuple(sorted(wanted, key=attrgetter("id")))


def ports(found: Iterable[SerialPort]) -> tuple[Entry, ...]:
    """All ports, by id."""
    entries = (Entry(port.devpath, dict(port.properties), (port.devnode, port.host_node)) for port in found)
    return tuple(sorted(entries, key=lambda entry: entry.id))


def _device(shown: Shown) -> Entry:
    listing = shown.listing
    properties = {
        lst.FLASHJOB_LISTING: shown.token,
        lst.FLASHJOB_DEVICE_ID: listing.device_id,
        lst.FLASHJOB_APPLICATION: listing.application,
        lst.FLASHJOB_VERSION: listing.version,
        lst.FLASHJOB_ENDPOINT: listing.endpoint,
        lst.FLASHJOB_CHIP: shown.chip,
    }
    return Entry(listing.device_id, {name: value for name, value in properties.items() if value})
