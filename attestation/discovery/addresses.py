# SPDX-License-Identifier: Apache-2.0
"""Addresses of devices, in one form: `host:port`, IPv6 in brackets, `https://` before it where the device speaks TLS; and
ranges of them. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 80
DEFAULT_TLS_PORT: Final = 443
TLS_SCHEME: Final = "https://"
MAX_RANGE_HOSTS: Final = 4096
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*\.?")


class Address(NamedTuple):
    """Host (a name, or an IP address without brackets), port, and whether TLS is spoken there."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{TLS_SCHEME if self.tls else ''}{host}:{self.port}"

    @property
    def numeric(self) -> bool:
        """Whether the host is an IP address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def parse_address(text: str) -> Address:
    """Read `host`, `host:port`, `ipv6` or `[ipv6]:port`, each also after `https://`.

    Without a port it is 80, with TLS 443.

    Raises:
        ValueError: it is none of these.
    """
    rest, tls = _scheme(text)
    host, port = rest, ""
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or ":" not in host or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is not [IPv6 address]:port")
        port = port[1:] if port else ""
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
        port = port or "-"
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host) or host.replace(".", "").isdigit():
            message = f"{text!r} is neither an IP address nor a host name, with :port or without"
            raise ValueError(message) from None
        host = host.lower().rstrip(".")
    return Address(host, _port(text, port, tls=tls), tls)


class AddressRange(NamedTuple):
    """All hosts of a network, at one port, all with TLS or all without."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int
    tls: bool = False

    def __len__(self) -> int:
        """How many addresses it spans, network and broadcast address included."""
        return self.network.num_addresses

    def hosts(self) -> Iterator[Address]:
        """Every host's address, in order; not the network's own and the broadcast address of IPv4."""
        for host in self.network.hosts():
            yield Address(str(host), self.port, self.tls)


def is_range(text: str) -> bool:
    """Whether it is meant as a range, not as an address."""
    return "/" in _scheme(text)[0]


def parse_range(text: str) -> AddressRange:
    """Read `network/prefix`, `network/prefix:port` (IPv4) or `[network/prefix]:port`, each also after `https://`.

    Without a port it is 80, with TLS 443.

    Raises:
        ValueError: it is none of these, has bits set behind the prefix, or spans more than `MAX_RANGE_HOSTS` addresses.
    """
    rest, tls = _scheme(text)
    inside, port = rest, ""
    if rest.startswith("["):
        inside, bracket, port = rest[1:].partition("]")
        if not bracket or not port.startswith(":"):
            raise ValueError(f"{text!r} is not [network/prefix]:port")
        port = port[1:] or "-"
    elif rest.count(":") == 1:
        inside, _, port = rest.partition(":")
        port = port or "-"
    address, slash, prefix = inside.partition("/")
    if not slash or not prefix.isascii() or not prefix.isdigit() or "%" in address:
        raise ValueError(f"{text!r} is not network/prefix, as 192.0.2.0/24")
    try:
        network = ipaddress.ip_network(inside)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network: {error}") from None
    if network.num_addresses > MAX_RANGE_HOSTS:
        least = network.max_prefixlen - MAX_RANGE_HOSTS.bit_length() + 1
        raise ValueError(f"{text!r} spans more than {MAX_RANGE_HOSTS} addresses; the prefix is at least /{least}")
    return AddressRange(network, _port(text, port, tls=tls), tls)


def _scheme(text: str) -> tuple[str, bool]:
    return text.removeprefix(TLS_SCHEME), text.startswith(TLS_SCHEME)


def _port(text: str, port: str, *, tls: bool) -> int:
    if not port:
        return DEFAULT_TLS_PORT if tls else DEFAULT_PORT
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError(f"{text!r}: the port is not a number from 1 to 65535")
    return int(port)


def same_address(own: str, reached: Address) -> bool:
    """Whether what a device calls its own address is the one that it was reached at, with TLS or without."""
    try:
        return parse_address(own)[:2] == reached[:2]
    except ValueError:
        return False
