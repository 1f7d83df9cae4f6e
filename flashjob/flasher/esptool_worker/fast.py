# SPDX-License-Identifier: GPL-2.0-or-later
"""What is replaced inside esptool so that a flash costs a fraction of its CPU, and so that no answer is endless.

1. No hex dump of packets that nobody traces.
2. The checksum of a block is folded from wide integers, not byte by byte.
3. Packets are cut out of what was read in one step. A packet of more than `PACKET_BYTES`, or one that takes longer
   than `PACKET_SECONDS`, is a broken line, however busily it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import esptool.loader
from esptool.util import FatalError

PACKET_BYTES: Final = 64 * 1024
PACKET_SECONDS: Final = 30.0
_END = b"\xc0"


def install() -> None:
    """Put the replacements in place, for this process."""
    if isinstance(getattr(esptool.loader, "HexFormatter", None), type):
        esptool.loader.HexFormatter = lambda _data, _split=True: ""
    esptool.loader.slip_reader = slip_reader
    esptool.loader.ESPLoader.checksum = staticmethod(checksum)


def checksum(data: bytes, state: int = 0xEF) -> int:
    """XOR of `state` and all bytes: the ROM's checksum."""
    value, width = int.from_bytes(data, "little"), 1
    while width < len(data):
        width *= 2
    while width > 1:
        width //= 2
        value = value >> (8 * width) ^ value & ((1 << (8 * width)) - 1)
    return value ^ state


def slip_reader(port: Any, _trace: object = None) -> Iterator[bytes]:
    """Yield one unescaped packet after the other. Raises FatalError in esptool's words; it is spent then."""
    rest, before = b"", False
    while True:
        if not rest:
            stopped = "Serial data stream stopped: Possible serial noise or corruption."
            rest = _more(port, stopped if before else "No serial data received.")
        if rest[:1] != _END:
            raise FatalError(f"Invalid head of packet (0x{rest[0]:02x}): Possible serial noise or corruption.")
        deadline = time.monotonic() + PACKET_SECONDS
        body = bytearray(rest[1:])
        while (end := body.find(_END)) < 0:
            if len(body) > PACKET_BYTES or time.monotonic() > deadline:
                raise FatalError(f"Packet content transfer stopped: no end after {len(body)} bytes.")
            body += _more(port, "Packet content transfer stopped.")
        packet, rest, before = bytes(body[:end]), bytes(body[end + 1 :]), True
        if packet.count(b"\xdb") != packet.count(b"\xdb\xdc") + packet.count(b"\xdb\xdd"):
            raise FatalError("Packet content transfer stopped: invalid SLIP escape.")
        yield packet.replace(b"\xdb\xdc", _END).replace(b"\xdb\xdd", b"\xdb")


def _more(port: Any, stopped: str) -> bytes:
    data = bytes(port.read(port.in_waiting or 1))
    if not data:
        raise FatalError(stopped)
    return data
