# SPDX-License-Identifier: Apache-2.0
"""Where somebody on the link announces a device: DNS-SD over multicast (RFC 6762, RFC 6763), service `_flashjob._tcp`.

Rules (tests name them):

1. An announcement says where to look and nothing else; anybody can make one. Its `id` is not even read.
2. A service counts with ``v=1`` and an IP address: its first IPv4 address, else its first IPv6 address that is not
   link-local. Others are left out. With ``tls=1`` TLS is spoken there.
3. At most `MAX_SERVICES` count; the rest is left out, and that is logged once.
4. Who says goodbye, or whose records ran out, no longer counts. An enrolled device that was met stays known elsewhere.
5. Without a usable network interface it is tried again every `RETRY_SECONDS`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attestation.discovery.addresses import Address

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf

SERVICE: Final = "_flashjob._tcp.local."
MAX_SERVICES: Final = 1024
RETRY_SECONDS: Final = 30.0
_RESOLVE_MS: Final = 3000
_RESOLVES: Final = 16

Found = Callable[[frozenset[Address]], None]
"""Called in the event loop with all announced addresses whenever they change."""

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether the library that this needs is installed (extra `mdns`)."""
    return importlib.util.find_spec("zeroconf") is not None


async def browse(found: Found, interfaces: Sequence[str] | None = None) -> None:
    """Listen until cancelled (rule 5).

    Args:
        found: told of all announced addresses.
        interfaces: IP addresses of the interfaces to use; None: all.
    """
    from zeroconf import Error

    while True:
        try:
            await _browse(found, interfaces)
        except (OSError, Error) as error:
            _log.warning("mDNS: %s; next try in %g s", error, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)


async def _browse(found: Found, interfaces: Sequence[str] | None) -> None:
    from zeroconf import InterfaceChoice
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

    zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces))
    services = _Services(found)
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[services.changed])
        try:
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            await browser.async_cancel()
    finally:
        await services.close()
        await zeroconf.async_close()


class _Services:
    """Announced services by name, and the look-ups under way."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._names: dict[str, Address | None] = {}
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_RESOLVES)
        self._too_many = False

    def changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """A service came, went, or says something else."""
        from zeroconf import ServiceStateChange

        if (before := self._lookups.pop(name, None)) is not None:
            before.cancel()
        if state_change is ServiceStateChange.Removed:
            if self._names.pop(name, None) is not None:
                self._tell()
            return
        if name not in self._names and len(self._names) >= MAX_SERVICES:
            if not self._too_many:
                _log.warning("mDNS: more than %d services are announced; the rest is left out", MAX_SERVICES)
            self._too_many = True
            return
        self._names.setdefault(name, None)
        task = asyncio.get_running_loop().create_task(self._look_up(zeroconf, service_type, name))
        self._lookups[name] = task
        task.add_done_callback(lambda done: self._done(name, done))

    async def close(self) -> None:
        """End all look-ups."""
        lookups = list(self._lookups.values())
        for task in lookups:
            task.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    async def _look_up(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        async with self._slots:
            info = AsyncServiceInfo(service_type, name)
            complete = await info.async_request(zeroconf, _RESOLVE_MS)
        address = where(info.properties, info.parsed_addresses(), info.port) if complete else None
        if self._names.get(name) != address:
            self._names[name] = address
            self._tell()

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        if self._lookups.get(name) is task:
            del self._lookups[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("mDNS: %r: %s", name, error)

    def _tell(self) -> None:
        self._found(frozenset(address for address in self._names.values() if address is not None))


def where(properties: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None) -> Address | None:
    """Rule 2. Pure.

    Args:
        properties: of the TXT record.
        addresses: of the service's host, IPv4 or IPv6.
        port: of the SRV record.
    """
    if properties.get(b"v") != b"1" or not port:
        return None
    hosts = [ipaddress.ip_address(text.partition("%")[0]) for text in addresses]
    usable = [host for host in hosts if not (host.version == 6 and host.is_link_local)]
    usable.sort(key=lambda host: host.version)
    return Address(str(usable[0]), port, properties.get(b"tls") == b"1") if usable else None
