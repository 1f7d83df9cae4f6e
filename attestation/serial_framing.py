# SPDX-License-Identifier: Apache-2.0
"""Frames of the device protocol on a serial line that also carries log text. Pure: bytes in, bytes out.

One message is sent as 1 to 48 lines, each in a single write::

    LF "~FJ1." sid "." type "." i "/" n "." base64url "." crc32 LF

Rules (tests name them):

1. `sid` is two lower-case hex digits chosen by the host; replies carry the sid of their request.
2. `type` is ``Q`` request, ``R`` reply, ``E`` error or ``B`` beacon.
3. `i` counts from 1 to `n`, `n` is at most 48; decimal without leading zeros.
4. `base64url` is unpadded, at most 96 characters (72 bytes), never empty, and canonical (spare bits are zero).
5. `crc32` is eight lower-case hex digits: CRC-32 (as in zlib) of everything between ``~`` and the last ``.``.
6. The leading LF ends whatever log text stands before it. A line that breaks any rule is ignored, like log text:
   whoever waits for it asks again.
7. The lines of a message come in order: line 1 starts it anew, and a line that does not continue it (a gap, another
   `n`) drops what was collected. So lines of an earlier message never complete a later one.
8. A line longer than 160 bytes is dropped up to its end; at most 8 messages are collected at a time, the oldest
   unfinished one is forgotten first.
"""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import dataclass, field
from enum import StrEnum

CHUNK_BYTES = 72
"""Payload bytes of one line (96 characters of base64url)."""
MAX_LINES = 48
MAX_MESSAGE_BYTES = CHUNK_BYTES * MAX_LINES
MAX_LINE_BYTES = 160
_MAX_OPEN_MESSAGES = 8

_LINE = re.compile(
    rb"~(?P<covered>FJ1\.(?P<sid>[0-9a-f]{2})\.(?P<kind>[QREB])\."
    rb"(?P<i>[1-9][0-9]?)/(?P<n>[1-9][0-9]?)\.(?P<data>[A-Za-z0-9_-]{2,96}))\.(?P<crc>[0-9a-f]{8})"
)


class Kind(StrEnum):
    """Type letter of a frame (rule 2)."""

    REQUEST = "Q"
    REPLY = "R"
    ERROR = "E"
    BEACON = "B"


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete message."""

    sid: int
    kind: Kind
    payload: bytes


def encode(frame: Frame) -> bytes:
    """The lines of one message, each beginning and ending with LF.

    Raises ValueError when the payload is empty or longer than 3,456 bytes, or `sid` is not one byte.
    """
    if not 0 < len(frame.payload) <= MAX_MESSAGE_BYTES:
        raise ValueError(f"a serial message carries 1 to {MAX_MESSAGE_BYTES} bytes, not {len(frame.payload)}")
    if not 0 <= frame.sid <= 0xFF:
        raise ValueError(f"sid {frame.sid} is not one byte")
    chunks = [frame.payload[at : at + CHUNK_BYTES] for at in range(0, len(frame.payload), CHUNK_BYTES)]
    lines = []
    for i, chunk in enumerate(chunks, start=1):
        data = base64.urlsafe_b64encode(chunk).rstrip(b"=").decode()
        covered = f"FJ1.{frame.sid:02x}.{frame.kind}.{i}/{len(chunks)}.{data}"
        lines.append(f"\n~{covered}.{zlib.crc32(covered.encode()):08x}\n")
    return "".join(lines).encode()


@dataclass(slots=True)
class FrameReader:
    """Collects frames from a byte stream; everything else on the line ends up in `log`."""

    log: list[bytes] = field(default_factory=list)
    """Lines that are no frames, newest last, at most `log_limit` of them."""
    log_limit: int = 200
    _rest: bytearray = field(default_factory=bytearray, repr=False)
    _overlong: bool = False
    _open: dict[tuple[int, str], tuple[int, int, bytes]] = field(default_factory=dict, repr=False)
    """(sid, kind) -> (last line, n, payload so far) of unfinished messages."""

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream; return the messages that they complete, in order."""
        frames = []
        *lines, rest = bytes(data).split(b"\n")
        for line in lines:
            whole = bytes(self._rest) + line
            self._rest.clear()
            overlong, self._overlong = self._overlong or len(whole) > MAX_LINE_BYTES, False
            if overlong:
                continue
            frame = self._line(whole.removesuffix(b"\r"))
            if frame is not None:
                frames.append(frame)
        self._rest += rest
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest.clear()
            self._overlong = True
        return frames

    def _line(self, line: bytes) -> Frame | None:
        match = _LINE.fullmatch(line)
        chunk = _checked_chunk(match) if match else None
        if match is None or chunk is None:
            if line:
                self.log.append(line)
                del self.log[: -self.log_limit]
            return None
        key = (int(match["sid"], 16), match["kind"].decode())
        i, n = int(match["i"]), int(match["n"])
        last, total, payload = self._open.pop(key, (0, n, b""))
        if i == 1:
            last, total, payload = 0, n, b""
        if i != last + 1 or n != total:
            return None
        if i == n:
            return Frame(key[0], Kind(key[1]), payload + chunk)
        self._open[key] = (i, n, payload + chunk)
        if len(self._open) > _MAX_OPEN_MESSAGES:
            del self._open[next(iter(self._open))]
        return None


def _checked_chunk(match: re.Match[bytes]) -> bytes | None:
    if int(match["crc"], 16) != zlib.crc32(match["covered"]):
        return None
    if not int(match["i"]) <= int(match["n"]) <= MAX_LINES:
        return None
    data = match["data"]
    if len(data) % 4 == 1:
        return None
    chunk = base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))
    return chunk if base64.urlsafe_b64encode(chunk).rstrip(b"=") == data else None
