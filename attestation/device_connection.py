# SPDX-License-Identifier: Apache-2.0
"""The one connection of an `HttpDevice`, kept between requests. Imported when the first request is made: programs that
never speak HTTP need no aiohttp.

Rules (tests name them):

1. At most one connection at a time, kept from request to request where the device allows it, and not used again after
   `KEPT_SECONDS` of silence: the device, or what stands between, may have forgotten it.
2. A request that finds its kept connection closed before any byte of an answer is made again once, on a new connection and
   within the same limit, unless it is an image. `info` changes nothing; a nonce or evidence not received is of no use to
   anybody; a grant and a succession are repeated byte for byte, and a device answers its last one again without acting.
3. An image is never sent again by itself: its sender asks first where the device stands.
4. A device whose kept connections were found closed twice gets a new one for each request.
5. What a device says unasked ends the connection, and is no answer to what is asked next.
6. Over TLS the connection's certificate is kept as `Bond.certificate`; once bound, no other is spoken to.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from attestation import device_protocol as dp

KEPT_SECONDS: Final = 5.0
_DEATHS: Final = 2
_HEAD_LINE_BYTES: Final = 1024
_HEAD_LINES: Final = 32


class Interrupted(aiohttp.ClientError):
    """The connection ended before the answer's head had come. Not an error that aiohttp would ask again for."""


class Bond(aiohttp.Fingerprint):
    """Rule 6: one object for all of a device's connections, bound or not, so that binding does not cost a new one."""

    def __init__(self) -> None:
        super().__init__(bytes(32))
        self.certificate = b""
        """Shown by the newest connection; DER."""
        self.bound: bytes | None = None
        """The certificate whose key was attested; DER."""

    def check(self, transport: asyncio.Transport) -> None:
        """Look at a new connection's certificate. Raises ServerFingerprintMismatch."""
        shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        if self.bound is not None and shown != self.bound:
            expected, got = (hashlib.sha256(certificate).digest() for certificate in (self.bound, shown))
            raise aiohttp.ServerFingerprintMismatch(expected, got, *transport.get_extra_info("peername")[:2])
        self.certificate = shown


class Line(aiohttp.TCPConnector):
    """The connection, and what was learnt about keeping it."""

    def __init__(self) -> None:
        super().__init__(limit=1, keepalive_timeout=KEPT_SECONDS)
        self._newest: object = None
        self._kept = False
        self._deaths = 0

    def session(self) -> aiohttp.ClientSession:
        """A session over this connection: no cookies, and an answer's head is short."""
        return aiohttp.ClientSession(
            connector=self,
            middlewares=(self._exchange,),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=dp.MAX_REPLY_BYTES,
            max_line_size=_HEAD_LINE_BYTES,
            max_field_size=_HEAD_LINE_BYTES,
            max_headers=_HEAD_LINES,
        )

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """The kept connection, or a new one (rules 4 and 5)."""
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        if protocol is self._newest and protocol is not None and (protocol.should_close or self._deaths >= _DEATHS):
            connection.close()
            connection = await super().connect(req, traces, timeout)
        self._kept, self._newest = connection.protocol is self._newest, connection.protocol
        return connection

    async def _exchange(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Rules 2 and 3."""
        tries = 1 if request.method == "PUT" else 2
        while True:
            tries -= 1
            try:
                return await handler(request)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
                died = self._kept and not _answered(error)
                self._deaths += died
                if not (died and tries):
                    raise Interrupted(str(error) or type(error).__name__) from error


def _answered(error: aiohttp.ClientOSError | aiohttp.ServerDisconnectedError) -> bool:
    """Whether part of an answer had come."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)
