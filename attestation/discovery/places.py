# SPDX-License-Identifier: Apache-2.0
"""Places where a device may be, and how to talk to whoever is there.

Rules (tests name them):

1. A name is resolved at every look; the device is reached at the first of its IP addresses that takes a connection,
   and that one is what it is judged by.
2. A serial port is opened only under the locks that a flash takes too; another holder is waited for at most 5 s, and the
   port is given back within `SERIAL_SECONDS`, so that a flash never waits longer than that for us.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from attestation.device_http import HttpDevice
from attestation.device_protocol import CONNECT_SECONDS, DeviceClient, DeviceError
from attestation.device_serial import SerialDevice
from attestation.discovery.addresses import Address
from attestation.discovery.ports import SerialPort
from attestation.serial_port import open_port

NETWORK_SECONDS: Final = 15.0
SERIAL_SECONDS: Final = 4.5
_REPEAT_SECONDS: Final = 1.0
_PORT_WAIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Contact:
    """A device that can be asked now.

    Args:
        client: to ask it.
        endpoint: host:port, with TLS https://host:port, or serial:DEVPATH.
        reached: the address on the network; None: a serial port.
    """

    client: DeviceClient
    endpoint: str
    reached: Address | None


@dataclass(frozen=True, slots=True)
class NetworkPlace:
    """An address."""

    address: Address

    @property
    def key(self) -> str:
        """Tells places apart."""
        return str(self.address)

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[Contact]:
        """Talk to whoever is there. Raises DeviceError."""
        try:
            async with asyncio.timeout(NETWORK_SECONDS):
                reached = self.address if self.address.numeric else await _resolve(self.address)
                client = HttpDevice(reached.host, reached.port, tls=reached.tls)
                try:
                    yield Contact(client, str(reached), reached)
                finally:
                    await client.close()
        except TimeoutError as error:
            raise DeviceError("Timeout", f"{self.address}: no end within {NETWORK_SECONDS:g} s") from error


@dataclass(frozen=True, slots=True)
class PortPlace:
    """A serial port; another stamp is another place."""

    port: SerialPort

    @property
    def key(self) -> str:
        """Tells places apart."""
        return f"serial:{self.port.devpath}"

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[Contact]:
        """Talk to whoever is there (rule 2). Raises DeviceError."""
        stream = await open_port(self.port.devnode, wait_seconds=_PORT_WAIT_SECONDS)
        client = SerialDevice(stream, repeat_seconds=_REPEAT_SECONDS)
        try:
            async with asyncio.timeout(SERIAL_SECONDS):
                yield Contact(client, self.key, None)
        except TimeoutError as error:
            raise DeviceError("Timeout", f"{self.port.devnode}: no end within {SERIAL_SECONDS:g} s") from error
        finally:
            await client.close()


Place = NetworkPlace | PortPlace


async def _resolve(address: Address) -> Address:
    """The first IP address of the name that takes a connection (rule 1)."""
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DeviceError("Unreachable", f"{address}: the name cannot be resolved: {error}") from error
    hosts = dict.fromkeys(str(ipaddress.ip_address(str(answer[4][0]).partition("%")[0])) for answer in answers)
    for host in hosts:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, address.port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return address._replace(host=host)
    raise DeviceError("Unreachable", f"{address}: none of {', '.join(hosts)} takes a connection")
