# SPDX-License-Identifier: Apache-2.0
"""Client of one device over plain HTTP/1.1. Authenticity comes from signatures, not from the transport.

Limits: connect 3 s, `info`, `nonce` and `grant` 3 s (a confirm or an install checks two signatures: 5 s), `attest` 5 s,
an image by its size over a floor rate; a reply is cut at 4,096 bytes. Redirects and proxies are never followed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from attestation import device_protocol as dp
from attestation.device_protocol import DeviceError, DeviceNonce, Info, Verb

if TYPE_CHECKING:
    import aiohttp

_CHUNK: Final = 16 * 1024
_IMAGE_GRACE_SECONDS: Final = 30.0
"""Time on top of the transfer for erasing, reading back and measuring."""

Progress = Callable[[int], None]
"""Called with the number of image bytes handed to the network so far, offset included."""


class HttpDevice:
    """A device at `host`:`port`. `host` is an address or a name; IPv6 without brackets."""

    def __init__(self, host: str, port: int = 80) -> None:
        self.host = host
        self.port = port
        self._session: aiohttp.ClientSession | None = None

    async def info(self) -> Info:
        """GET /fj/1/info."""
        return dp.parse_info(await self._request("GET", "info", seconds=dp.INFO_SECONDS))

    async def attest(self, nonce: bytes) -> bytes:
        """POST /fj/1/attest."""
        body = dp.attest_request(nonce)
        return await dp.patiently(lambda: self._request("POST", "attest", body, seconds=dp.ATTEST_SECONDS))

    async def nonce(self, verb: Verb) -> DeviceNonce:
        """POST /fj/1/nonce."""
        body = dp.nonce_request(verb)
        return dp.parse_nonce(await self._request("POST", "nonce", body, seconds=dp.INFO_SECONDS))

    async def grant(self, grant: bytes) -> bytes:
        """POST /fj/1/grant."""
        return await self._request("POST", "grant", grant, seconds=dp.ATTEST_SECONDS)

    async def image(self, payload: bytes, offset: int = 0, progress: Progress | None = None) -> None:
        """PUT /fj/1/image: all bytes from `offset` on, in one request.

        Returns when the device has taken, read back and verified the image; it reboots then.

        Raises:
            DeviceError: ``Refused`` with code OFFSET and `next_offset` when the device is elsewhere;
                ``ConnectionLost`` in mid-upload: read `info`, then send the rest.
        """
        remaining = len(payload) - offset

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(offset, len(payload), _CHUNK):
                piece = payload[at : at + _CHUNK]
                yield piece
                if progress is not None:
                    progress(at + len(piece))

        await self._request(
            "PUT",
            f"image?off={offset}",
            chunks(),
            length=remaining,
            seconds=remaining / dp.FLOOR_BYTES_PER_SECOND + _IMAGE_GRACE_SECONDS,
        )

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        seconds: float,
        length: int | None = None,
    ) -> bytes:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, force_close=True))
        host = f"[{self.host}]" if ":" in self.host else self.host
        url = f"http://{host}:{self.port}/fj/1/{path}"
        where = f"{method} {url}"
        headers = {"Content-Type": "application/cbor"}
        if length is not None:
            headers["Content-Length"] = str(length)
        timeout = aiohttp.ClientTimeout(total=seconds, connect=min(seconds, dp.CONNECT_SECONDS))
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                reply = await _bounded(response)
        except aiohttp.ConnectionTimeoutError as error:
            raise DeviceError("Unreachable", f"{where}: no connection within {dp.CONNECT_SECONDS:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise DeviceError("Unreachable", f"{where}: {error.strerror or error}") from error
        except TimeoutError as error:
            raise DeviceError("Timeout", f"{where}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise DeviceError("ConnectionLost", f"{where}: {error or type(error).__name__}") from error
        if response.status != 200:
            raise dp.refused(reply, status=response.status)
        return reply


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > dp.MAX_REPLY_BYTES:
            raise DeviceError("BadReply", f"the reply is longer than {dp.MAX_REPLY_BYTES} bytes")
    return bytes(data)
