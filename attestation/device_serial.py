# SPDX-License-Identifier: Apache-2.0
"""Client of one device over a serial line that also carries its log.

Rules (tests name them):

1. A request begins with LF; it is repeated, byte for byte, after 2 s without a reply, three times; then ``Timeout``.
2. Only a reply or an error with the sid of the request counts; anything else on the line is log, a beacon, or noise.
3. Every request has the next sid; the first one is random, so that two sessions rarely meet a cached answer.
4. `ready` awaits the beacon of an application that comes up; nobody sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Final

from attestation import device_protocol as dp
from attestation import serial_framing as framing
from attestation.cbor import Writable, dumps, strict_loads
from attestation.device_protocol import DeviceError, DeviceNonce, Info, OwnerKeys, Request, Verb
from attestation.errors import Reject
from attestation.serial_framing import Frame, FrameReader, Kind
from attestation.serial_port import ByteStream

REPEAT_SECONDS: Final = 2.0
REPEATS: Final = 3


class SerialDevice:
    """A device behind an open byte stream, which this object closes at the end.

    Args:
        stream: the line, exclusively held.
        sid: first session id; random where None.
        repeat_seconds: how long to wait before a request is repeated.
    """

    def __init__(self, stream: ByteStream, *, sid: int | None = None, repeat_seconds: float = REPEAT_SECONDS) -> None:
        self._stream = stream
        self._sid = secrets.randbelow(256) if sid is None else sid
        self._repeat_seconds = repeat_seconds
        self._reader = FrameReader()
        self._beacon: Info | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def log(self) -> list[str]:
        """The newest lines of the device's log, as far as they are text."""
        return [line.decode(errors="replace") for line in self._reader.log]

    async def ready(self, seconds: float) -> Info:
        """Wait for the application's beacon (rule 4). Raises DeviceError Timeout."""
        try:
            async with asyncio.timeout(seconds):
                while self._beacon is None:
                    await self._receive()
        except TimeoutError as error:
            raise DeviceError("Timeout", f"the application did not announce itself within {seconds:g} s") from error
        beacon, self._beacon = self._beacon, None
        return beacon

    async def info(self) -> Info:
        """What the device says about itself."""
        return dp.parse_info(await self._request(Request.INFO, {}))

    async def attest(self, nonce: bytes) -> bytes:
        """Evidence over a 32-byte nonce."""
        body = strict_loads(dp.attest_request(nonce))
        return await dp.patiently(lambda: self._request(Request.ATTEST, body))

    async def nonce(self, verb: Verb) -> DeviceNonce:
        """A nonce for one grant."""
        return dp.parse_nonce(await self._request(Request.NONCE, {1: int(verb)}))

    async def grant(self, grant: bytes) -> bytes:
        """Hand over a signed grant."""
        return await self._request(Request.GRANT, grant)

    async def owner_key(self, succession: bytes) -> OwnerKeys:
        """Hand over a succession statement."""
        return dp.parse_owner_keys(await self._request(Request.OWNER, succession))

    async def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    async def _request(self, request: Request, body: Writable) -> bytes:
        async with self._one_at_a_time:
            return await self._ask(request, body)

    async def _ask(self, request: Request, body: Writable) -> bytes:
        self._sid = (self._sid + 1) % 256
        frame = Frame(self._sid, Kind.REQUEST, dumps([int(request), body]))
        lines = b"\n" + framing.encode(frame)
        for _ in range(1 + REPEATS):
            try:
                async with asyncio.timeout(self._repeat_seconds):
                    await self._stream.write(lines)
                    reply = await self._reply(frame.sid)
            except TimeoutError:
                continue
            if reply.kind is Kind.ERROR:
                raise _refused(reply.payload)
            return reply.payload
        seconds = self._repeat_seconds * (1 + REPEATS)
        raise DeviceError("Timeout", f"{request.name.lower()}: no answer on the serial line within {seconds:g} s")

    async def _reply(self, sid: int) -> Frame:
        while True:
            for frame in await self._receive():
                if frame.sid == sid and frame.kind in (Kind.REPLY, Kind.ERROR):
                    return frame

    async def _receive(self) -> list[Frame]:
        frames = self._reader.feed(await self._stream.read())
        for frame in frames:
            if frame.kind is Kind.BEACON:
                with contextlib.suppress(DeviceError):  # an unreadable beacon is noise (rule 2)
                    self._beacon = dp.parse_info(frame.payload)
        return frames


def _refused(payload: bytes) -> DeviceError:
    try:
        message = strict_loads(payload, dp.MAX_REPLY_BYTES)
    except Reject as error:
        return DeviceError("BadReply", f"error frame: {error}")
    if not isinstance(message, list) or len(message) != 2 or type(message[0]) is not int:
        return DeviceError("BadReply", "an error frame is [status, body]")
    return dp.refused(dumps(message[1]), status=message[0])
