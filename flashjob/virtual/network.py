# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 door of one virtual device, on a loopback address.

Rules (tests name them):

1. It serves GET /fj/1/info, POST /fj/1/attest | nonce | grant | owner and PUT /fj/1/image?off=N; every answer is CBOR with a
   Content-Length.
2. It is gone while the device reboots, with every connection, and may come back at another port or address.
3. A reset that an answer asks for happens after the answer was sent.
4. A connection that ends in mid-upload leaves what was written; the sender goes on at the next offset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from attestation import device_protocol as dp
from attestation.device_protocol import ErrorCode, Request
from attestation.eat import EVIDENCE_MEDIA_TYPE
from flashjob.virtual.application import Application
from flashjob.virtual.installation import Upload
from flashjob.virtual.replies import Refusal, Reply
from flashjob.virtual.tls import boot_identity

_CHUNK: Final = 16 * 1024
_CBOR: Final = "application/cbor"
_VERBS: Final = {"attest": Request.ATTEST, "nonce": Request.NONCE, "grant": Request.GRANT, "owner": Request.OWNER}


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
        self._runner: web.AppRunner | None = None
        self._application: Application | None = None

    @property
    def address(self) -> str:
        """host:port while serving, else empty."""
        return f"{self.host}:{self.port}" if self._runner else ""

    @property
    def url(self) -> str:
        """The same as hosts write it: with https:// before it where TLS is spoken."""
        return f"https://{self.address}" if self.tls and self._runner else self.address

    async def start(self, application: Application, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve this run; port 0 takes any free one. Tells the application its address."""
        await self.stop()
        app = web.Application(client_max_size=dp.MAX_REQUEST_BYTES)
        app.router.add_get("/fj/1/info", self._info)
        app.router.add_post("/fj/1/{verb:attest|nonce|grant|owner}", self._post)
        app.router.add_put("/fj/1/image", self._image)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0, handle_signals=False)
        await runner.setup()
        context, application.tls_key = boot_identity() if self.tls else (None, None)
        site = web.TCPSite(runner, host, port, ssl_context=context)
        await site.start()
        self._application, self._runner = application, runner
        self.host, self.port = runner.addresses[0][:2]
        application.addresses = [self.address]

    async def stop(self) -> None:
        """Be gone, at once (rule 2). Stopping twice is harmless."""
        runner, self._runner, self._application = self._runner, None, None
        if runner is not None:
            await runner.cleanup()

    async def _info(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, self._running().handle(Request.INFO, b""))

    async def _post(self, request: web.Request) -> web.StreamResponse:
        verb = _VERBS[request.match_info["verb"]]
        if (request.content_length or 0) > dp.MAX_REQUEST_BYTES:
            refusal = Refusal(ErrorCode.TOO_LARGE, f"a request has at most {dp.MAX_REQUEST_BYTES} bytes")
            return await self._send(request, Reply.refusal(refusal))
        body = b""
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > dp.MAX_REQUEST_BYTES:
                break
        try:
            reply = self._running().handle(verb, body)
        except ConnectionError:
            return _hang_up(request)
        evidence = reply.status == 200 and verb in (Request.ATTEST, Request.GRANT)
        return await self._send(request, reply, EVIDENCE_MEDIA_TYPE if evidence else _CBOR)

    async def _image(self, request: web.Request) -> web.StreamResponse:
        application = self._running()
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

    async def _receive(self, request: web.Request, upload: Upload) -> None:
        install = upload.installation
        async for chunk in request.content.iter_chunked(_CHUNK):
            upload.write(chunk)
            await self._wait(len(chunk))
            if self._on_image_bytes is not None:
                self._on_image_bytes(install.offset, install.grant.payload_size)

    async def _send(self, request: web.Request, reply: Reply, content_type: str = _CBOR) -> web.StreamResponse:
        if reply.body is None:
            return _hang_up(request)
        await self._wait(0)
        response = web.Response(status=reply.status, body=reply.body, content_type=content_type)
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

    def _running(self) -> Application:
        if self._application is None:
            raise web.HTTPServiceUnavailable
        return self._application


def _hang_up(request: web.Request) -> web.StreamResponse:
    """Cut the connection without an answer, as a device does that loses power."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


def _offset(request: web.Request) -> int:
    text = request.query.get("off", "")
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise Refusal(ErrorCode.MALFORMED, "PUT /fj/1/image needs ?off=N")
    return int(text)
