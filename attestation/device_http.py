# SPDX-License-Identifier: Apache-2.0
"""Client of one device over HTTP/1.1, plain or over TLS. Authenticity comes from signatures, not from the transport.

Rules (tests name them):

1. Limits: connect 3 s, `info` and `nonce` 3 s, `grant` (two signatures are checked) and `attest` 5 s, an image by its
   size over a floor rate; a reply is cut at 4,096 bytes.
2. Redirects and proxies are never followed.
3. An image leaves from the caller's one buffer, in views of it: no copy per device.
4. Over TLS any certificate is taken at first: it is the device's own, made at this boot. Its key must be the one in the
   evidence (`cnf`); from then on only that certificate is spoken to, until `rebooted`. Who checks the evidence thereby
   checks the connection. A key that differs, or none: NotBound.
5. One connection serves one request after the other; `device_connection` says when a request is made again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation import cose, eat
from attestation import device_protocol as dp
from attestation.device_protocol import DeviceError, DeviceNonce, Info, OwnerKeys, Verb
from attestation.errors import Reject

if TYPE_CHECKING:
    import aiohttp

    from attestation.device_connection import Bond

_CHUNK: Final = 64 * 1024
_IMAGE_GRACE_SECONDS: Final = 30.0
"""Time on top of the transfer for erasing, reading back and measuring."""

Progress = Callable[[int], None]
"""Called with the number of image bytes handed to the network so far, offset included."""


class NotBound(DeviceError):
    """Rule 4: `evidence`, as received, does not name the key of the connection that brought it."""

    def __init__(self, message: str, evidence: bytes) -> None:
        super().__init__("BadReply", message)
        self.evidence = evidence


class HttpDevice:
    """A device at `host`:`port`. `host` is an address or a name; IPv6 without brackets. `tls`: see rule 4."""

    def __init__(self, host: str, port: int = 80, *, tls: bool = False) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._bond: Bond | None = None

    async def rebooted(self) -> None:
        """The device has started anew: its connection is gone, and its next certificate, another one, is to be bound by
        the next `attest`."""
        await self.close()
        self._bond = None

    async def info(self) -> Info:
        """GET /fj/1/info."""
        return dp.parse_info(await self._request("GET", "info", seconds=dp.INFO_SECONDS))

    async def attest(self, nonce: bytes) -> bytes:
        """POST /fj/1/attest."""
        body = dp.attest_request(nonce)
        evidence = await dp.patiently(lambda: self._request("POST", "attest", body, seconds=dp.ATTEST_SECONDS))
        if self._bond is not None and self._bond.bound is None:
            self._bind(evidence, self._bond)
        return evidence

    def _bind(self, evidence: bytes, bond: Bond) -> None:
        """Rule 4."""
        if _attested_key(evidence) != key_of(bond.certificate):
            message = f"{self.host}:{self.port}: the TLS key is not the one that the evidence names (cnf)"
            raise NotBound(message, evidence)
        bond.bound = bond.certificate

    async def nonce(self, verb: Verb) -> DeviceNonce:
        """POST /fj/1/nonce."""
        body = dp.nonce_request(verb)
        return dp.parse_nonce(await self._request("POST", "nonce", body, seconds=dp.INFO_SECONDS))

    async def grant(self, grant: bytes) -> bytes:
        """POST /fj/1/grant."""
        return await self._request("POST", "grant", grant, seconds=dp.ATTEST_SECONDS)

    async def owner_key(self, succession: bytes) -> OwnerKeys:
        """POST /fj/1/owner."""
        return dp.parse_owner_keys(await self._request("POST", "owner", succession, seconds=dp.ATTEST_SECONDS))

    async def image(self, payload: bytes | memoryview, offset: int = 0, progress: Progress | None = None) -> None:
        """PUT /fj/1/image: all bytes from `offset` on, in one request.

        Returns when the device has taken, read back and verified the image; it reboots then.

        Raises:
            DeviceError: ``Refused`` with code OFFSET and `next_offset` when the device is elsewhere;
                ``ConnectionLost`` in mid-upload: read `info`, then send the rest.
        """
        remaining = len(payload) - offset
        view = memoryview(payload)

        async def chunks() -> AsyncIterator[memoryview]:
            for at in range(offset, len(view), _CHUNK):
                piece = view[at : at + _CHUNK]
                yield piece
                if progress is not None:
                    progress(at + len(piece))

        await self._request(
            "PUT",
            "image",
            chunks(),
            query=f"off={offset}",
            length=remaining,
            seconds=remaining / dp.FLOOR_BYTES_PER_SECOND + _IMAGE_GRACE_SECONDS,
        )

    async def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[memoryview] | None = None,
        *,
        seconds: float,
        query: str = "",
        length: int | None = None,
    ) -> bytes:
        import aiohttp
        from yarl import URL

        from attestation.device_connection import Bond, Line

        if self._session is None:
            self._session = Line().session()
        if self.tls and self._bond is None:
            self._bond = Bond()
        url = URL.build(
            scheme="https" if self.tls else "http",
            host=self.host,
            port=self.port,
            path=f"/fj/1/{path}",
            query_string=query,
            encoded=True,
        )
        where = f"{method} {url}"
        headers = {"Content-Type": "application/cbor"} if body is not None else {}
        if length is not None:
            headers["Content-Length"] = str(length)
        timeout = aiohttp.ClientTimeout(total=seconds, connect=min(seconds, dp.CONNECT_SECONDS))
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False, ssl=self._bond or True
            ) as response:
                reply = await _bounded(response)
        except aiohttp.ServerFingerprintMismatch as error:
            message = f"{where}: another certificate than the attested one: not this device, or it has restarted"
            raise DeviceError("ConnectionLost", message) from error
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


def key_of(certificate: bytes) -> bytes:
    """The key of a device's TLS certificate (DER), as SubjectPublicKeyInfo. Raises DeviceError ``BadReply``."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise DeviceError("BadReply", f"the device's TLS certificate does not read: {error}") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _attested_key(evidence: bytes) -> bytes | None:
    """The key in `cnf`, not verified: whoever verifies the evidence does that."""
    try:
        token = eat.parse_evidence(evidence).token
        message = cose.parse(token, protected=eat.PROTECTED_HEADERS, unprotected=eat.UNPROTECTED_HEADERS)
        key = eat.read_token(eat.decode_claims(message.payload)).confirmation_key
    except Reject as error:
        raise NotBound(f"attest: {error}", evidence) from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) if key is not None else None
