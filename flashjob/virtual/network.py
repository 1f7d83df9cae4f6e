# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 door of one virtual device, on a loopback address.

Rules (tests name them):

1. It serves GET /fj/1/info, POST /fj/1/attest | nonce | grant | owner and PUT /fj/1/image?off=N; every answer is CBOR with a
   Content-Length.
2. It is gone while the device reboots, with every connection, and may come back at another port or address.
3. A reset that an answer asks for happens after the answer was sent.
4. A connection that ends in mid-upload leaves what was written; the sender goes on at the next offset.
5. A connection is kept between requests, closed after `IDLE_SECONDS` without one. There are `SOCKETS` at most, the default of
   ESP-IDF's server: one more takes the place of the one that is idle longest, and is closed where none is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from attestation import device_protocol as dp
from attestation.device_protocol import ErrorCode, Request
from attestation.eat import EVIDENCE_MEDIA_TYPE
from flashjob.virtual.application import Application
from flashjob.virtual.installation import Upload
from flashjob.virtual.replies import Refusal, Reply
from flashjob.virtual.tls import boot_identity

SOCKETS: Final = 7
IDLE_SECONDS: Final = 10.0
_LINGER_SECONDS: Final = 0.001
"""How long the end waits for an answer in the making: not at all, but aiohttp takes 0 for as long as it takes."""
_CHUNK: Final = 16 * 1024
_CBOR: Final = "application/cbor"
_VERBS: Final = {
    "/fj/1/attest": Request.ATTEST,
    "/fj/1/nonce": Request.NONCE,
    "/fj/1/grant": Request.GRANT,
    "/fj/1/owner": Request.OWNER,
}


class _Sockets(web.Server):
    """Rule 5."""

    def __init__(self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(self._serve, keepalive_timeout=IDLE_SECONDS, tcp_keepalive=False, access_log=None)
        self._answer = answer
        self._busy: dict[web.RequestHandler, bool] = {}
        """Of each open connection; those used longest ago come first."""

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """One more."""
        super().connection_made(handler, transport)
        self._busy[handler] = False
        if len(self._busy) > SOCKETS:
            idle = next(other for other, busy in self._busy.items() if not busy)
            del self._busy[idle]
            idle.force_close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """One less."""
        super().connection_lost(handler, exc)
        self._busy.pop(handler, None)

    async def cut(self) -> None:
        """All are gone, with whatever was being answered."""
        for connection in self.connections:
            connection.force_close()
        await self.shutdown(_LINGER_SECONDS)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if self._busy.pop(connection, None) is None:
            return web.Response(status=503)  # it made room for another one before it was heard
        self._busy[connection] = True
        try:
            return await self._answer(request)
        except ConnectionError:  # whoever asked is gone
            return _hang_up(request)
        finally:
            if connection in self._busy:
                self._busy[connection] = False


class DeviceServer:
    """Serves one run of an application after the other.

    Args:
        on_reboot: asked for a reset, in the event loop, after the answer was sent.
        on_image_bytes: called with (bytes so far, total) as an image arrives; what it raises as `ConnectionError`
            cuts the connection (for faults).
        late: asked with 0 before each answer and with their number after image bytes: seconds to wait (simulated
            times).
        tls: speak TLS, under another key at each start.
    """

    def __init__(
        self,
        on_reboot: Callable[[], None],
        on_image_bytes: Callable[[int, int], None] | None = None,
        late: Callable[[int], float] | None = None,
        *,
        tls: bool = False,
    ) -> None:
        self.host = ""
        self.port = 0
        self._on_reboot = on_reboot
        self._on_image_bytes = on_image_bytes
        self._late = late
        self.tls = tls
        self._door: tuple[asyncio.Server, _Sockets] | None = None
        self._application: Application | None = None

    @property
    def address(self) -> str:
        """host:port while serving, else empty."""
        return f"{self.host}:{self.port}" if self._door else ""

    @property
    def url(self) -> str:
        """The same as hosts write it: with https:// before it where TLS is spoken."""
        return f"https://{self.address}" if self.tls and self._door else self.address

    async def start(self, application: Application, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve this run; port 0 takes any free one. Tells the application its address."""
        await self.stop()
        sockets = _Sockets(self._answer)
        context, application.tls_key = boot_identity() if self.tls else (None, None)
        server = await asyncio.get_running_loop().create_server(sockets, host, port, ssl=context)
        self._application, self._door = application, (server, sockets)
        self.host, self.port = server.sockets[0].getsockname()[:2]
        application.addresses = [self.address]

    async def stop(self) -> None:
        """Be gone, at once (rule 2). Stopping twice is harmless."""
        door, self._door, self._application = self._door, None, None
        if door is not None:
            server, sockets = door
            server.close()
            await sockets.cut()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._application is None:
            return _hang_up(request)
        match request.method, request.path:
            case "GET", "/fj/1/info":
                return await self._send(request, self._application.handle(Request.INFO, b""))
            case "POST", path if path in _VERBS:
                return await self._post(request, self._application, _VERBS[path])
            case "PUT", "/fj/1/image":
                return await self._image(request, self._application)
            case _:
                return web.Response(status=404)

    async def _post(self, request: web.BaseRequest, application: Application, verb: Request) -> web.StreamResponse:
        if (request.content_length or 0) > dp.MAX_REQUEST_BYTES:
            refusal = Refusal(ErrorCode.TOO_LARGE, f"a request has at most {dp.MAX_REQUEST_BYTES} bytes")
            return await self._send(request, Reply.refusal(refusal))
        body = b""
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > dp.MAX_REQUEST_BYTES:
                break
        try:
            reply = application.handle(verb, body)
        except ConnectionError:
            return _hang_up(request)
        evidence = reply.status == 200 and verb in (Request.ATTEST, Request.GRANT)
        return await self._send(request, reply, EVIDENCE_MEDIA_TYPE if evidence else _CBOR)

    async def _image(self, request: web.BaseRequest, application: Application) -> web.StreamResponse:
        try:
            upload = application.open_upload(_offset(request), request.content_length or 0)
        except Refusal as refusal:
            return await self._send(request, Reply.refusal(refusal))
        try:
            await self._receive(request, upload)
        except Refusal as refusal:
            return await self._send(request, Reply.refusal(refusal))
        except ConnectionError:
            upload.lost()
            return _hang_up(request)
        except BaseException:
            upload.lost()
            raise
        try:
            reply = application.finish_upload(upload)
        except ConnectionError:
            return _hang_up(request)
        return await self._send(request, reply)

    async def _receive(self, request: web.BaseRequest, upload: Upload) -> None:
        install = upload.installation
        async for chunk in request.content.iter_chunked(_CHUNK):
            upload.write(chunk)
            await self._wait(len(chunk))
            if self._on_image_bytes is not None:
                self._on_image_bytes(install.offset, install.grant.payload_size)

    async def _send(self, request: web.BaseRequest, reply: Reply, content_type: str = _CBOR) -> web.StreamResponse:
        if reply.body is None:
            return _hang_up(request)
        await self._wait(0)
        response = web.Response(status=reply.status, body=reply.body, content_type=content_type)
        if reply.reboot or not request.content.is_eof():
            response.force_close()
        await response.prepare(request)
        await response.write_eof()
        if reply.reboot:
            asyncio.get_running_loop().call_soon(self._on_reboot)
        return response

    async def _wait(self, size: int) -> None:
        seconds = self._late(size) if self._late is not None else 0.0
        if seconds > 0:
            await asyncio.sleep(seconds)


def _hang_up(request: web.BaseRequest) -> web.StreamResponse:
    """Cut the connection without an answer, as a device does that loses power."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


def _offset(request: web.BaseRequest) -> int:
    text = request.query.get("off", "")
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise Refusal(ErrorCode.MALFORMED, "PUT /fj/1/image needs ?off=N")
    return int(text)
