# SPDX-License-Identifier: Apache-2.0
"""Addresses of devices, in one form: `host:port`, IPv6 in brackets. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 80
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*\.?")


class Address(NamedTuple):
    """Host (a name, or an IP address without brackets) and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def numeric(self) -> bool:
        """Whether the host is an IP address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def parse_address(text: str) -> Address:
    """Read `host`, `host:port`, `ipv6` or `[ipv6]:port`; without a port it is 80.

    Raises:
        ValueError: it is none of these.
    """
    host, port = text, ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in host or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is not [IPv6 address]:port")
        port = port[1:] if port else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        port = port or "-"
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host) or host.replace(".", "").isdigit():
            raise ValueError(f"{text!r} is not host:port") from None
        host = host.lower().rstrip(".")
    if not port:
        return Address(host, DEFAULT_PORT)
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError(f"{text!r}: the port is not a number from 1 to 65535")
    return Address(host, int(port))


def same_address(own: str, reached: Address) -> bool:
    """Whether what a device calls its own address is the one that it was reached at."""
    try:
        return parse_address(own) == reached
    except ValueError:
        return False
