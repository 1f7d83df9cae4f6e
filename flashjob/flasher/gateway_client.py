# SPDX-License-Identifier: Apache-2.0
"""The gateway as a `Judge`, over HTTPS.

Rules (tests name them):

1. A 4xx answer is the gateway's own no: `Refused`, never asked again.
2. 5xx answers and transport errors are asked again, with growing pauses, for `patience` seconds; then
   GatewayUnavailable. The gateway's answers are idempotent within an attempt.
3. The token is read from its file for each request: it is renewed there.
4. Progress goes to every address of the gateway's name, once, and is never worth a failure.
5. Plain HTTP would hand the token to anyone: it is refused but for the loopback.
6. No redirect is followed and no proxy is used: the token goes to the gateway only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
from pydantic import ValidationError

from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import problem
from flashjob.wire.base import WireModel
from flashjob.wire.gateway import (
    AddressReply,
    ConfirmRequest,
    DeviceResult,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    NonceRequest,
    PermitReply,
    PermitRequest,
    Problem,
    Progress,
    RevertReply,
    RevertRequest,
    VerdictReply,
)
from flashjob.wire.reasons import Reason
from flashjob.wire.refusal import Refused

_REQUEST_SECONDS = 10.0
_PROGRESS_SECONDS = 2.0
_REPLY_BYTES = 64 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
_Reply = TypeVar("_Reply", bound=WireModel)


class GatewayClient:
    """One connection pool to one gateway; `judge` gives the judge of a task. Use as `async with`.

    Args:
        url: base URL, as https://name:port.
        token_file: the projected token.
        ca_file: PEM of the CA that signs the gateway's certificate; None: the system's.
        patience: seconds for which an unavailable gateway is asked again.
    """

    def __init__(self, url: str, token_file: Path, ca_file: Path | None = None, *, patience: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise problem(Reason.GATEWAY_UNAVAILABLE, f"{url!r} is not the URL of a gateway")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise problem(Reason.GATEWAY_UNAVAILABLE, f"{url!r} would show the token to the network; use https")
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._base = url.rstrip("/")
        self._token_file, self._ca_file = token_file, ca_file
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> GatewayClient:
        context: ssl.SSLContext | bool = True
        if self._tls and self._ca_file is not None:
            context = await asyncio.to_thread(ssl.create_default_context, cafile=str(self._ca_file))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def judge(self, task: str) -> HttpJudge:
        """The judge of one task."""
        return HttpJudge(self, task)

    async def ask(self, method: str, path: str, body: WireModel | None, reply: type[_Reply] | None) -> _Reply | None:
        """One request, by rules 1 to 3. Returns None where `reply` is None. Raises FlashJobError."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, _FIRST_PAUSE
        while True:
            try:
                status, data = await self._once(method, self._base + path, body)
                if status < 500:
                    break
                trouble = f"status {status}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                trouble = str(error) or type(error).__name__
            if loop.time() + pause > deadline:
                raise problem(Reason.GATEWAY_UNAVAILABLE, f"{method} {path}: {trouble}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            if status >= 400:
                raise Refused(Problem.model_validate_json(data))
            return reply.model_validate_json(data) if reply is not None else None
        except ValidationError as error:
            message = f"{method} {path}: status {status} with an answer that is none of this version"
            raise problem(Reason.GATEWAY_UNAVAILABLE, message) from error

    async def tell_all(self, path: str, body: WireModel) -> None:
        """Post to every address of the gateway's name (rule 4)."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            addresses = {entry[4][0] for entry in found}
            await asyncio.gather(*(self._tell(str(address), path, body) for address in addresses))

    async def _tell(self, address: str, path: str, body: WireModel) -> None:
        host = f"[{address}]" if ":" in address else address
        url = f"{'https' if self._tls else 'http'}://{host}:{self._port}{path}"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with asyncio.timeout(_PROGRESS_SECONDS):
                await self._once("POST", url, body)

    async def _once(self, method: str, url: str, body: WireModel | None) -> tuple[int, bytes]:
        if self._session is None:
            raise problem(Reason.INTERNAL_ERROR, "the gateway client is closed")
        token = (await asyncio.to_thread(self._token_file.read_text, encoding="ascii")).strip()
        headers = {"Authorization": f"Bearer {token}", "Host": f"{self._host}:{self._port}"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = body.model_dump_json(by_alias=True, exclude_none=True).encode()
        async with self._session.request(
            method,
            url,
            data=data,
            headers=headers,
            allow_redirects=False,
            server_hostname=self._host if self._tls else None,
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > _REPLY_BYTES:
                    raise aiohttp.ClientPayloadError(f"the answer exceeds {_REPLY_BYTES} bytes")
            return response.status, bytes(answer)


class HttpJudge:
    """The judge of one task, by the gateway's routes (wire/gateway.py)."""

    def __init__(self, client: GatewayClient, task: str) -> None:
        self._client = client
        self._path = f"/v1/tasks/{quote(task, safe='')}"

    async def nonce(self, request: NonceRequest) -> NonceReply:
        """A fresh nonce for evidence."""
        return await self._post("nonce", request, NonceReply)

    async def permit(self, request: PermitRequest) -> PermitReply:
        """Asked just before byte 1."""
        return await self._post("permit", request, PermitReply)

    async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
        """Hand in evidence taken after the reboot."""
        return await self._post("evidence", request, EvidenceReply)

    async def confirm(self, request: ConfirmRequest) -> VerdictReply:
        """Hand in evidence that says VALID."""
        return await self._post("confirm", request, VerdictReply)

    async def revert(self, request: RevertRequest) -> RevertReply:
        """The order to give up an installation that was refused."""
        return await self._post("revert", request, RevertReply)

    async def progress(self, progress: Progress) -> None:
        """Tell every replica how far the attempt is."""
        await self._client.tell_all(f"{self._path}/progress", progress)

    async def result(self, result: DeviceResult) -> None:
        """Tell how the attempt ended."""
        await self._client.ask("POST", f"{self._path}/result", result, None)

    async def address(self) -> str | None:
        """Where the device was last seen."""
        reply = await self._client.ask("GET", f"{self._path}/address", None, AddressReply)
        return reply.address if reply is not None else None

    async def _post(self, name: str, request: WireModel, reply: type[_Reply]) -> _Reply:
        answer = await self._client.ask("POST", f"{self._path}/{name}", request, reply)
        if answer is None:
            raise FlashJobError(Reason.INTERNAL_ERROR.value, f"{name} was not answered")
        return answer


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
