# SPDX-License-Identifier: Apache-2.0
"""Raw lines to a device: they send what no client would, and show what came back as it came.

The clients in `attestation` refuse to be wrong; here that is the point. Every wait is bounded by `SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import Final, Protocol

from attestation import device_protocol as dp
from attestation import serial_framing as framing
from attestation.cbor import Value, dumps, strict_loads
from attestation.device_protocol import ErrorCode, Request
from attestation.errors import Reject
from attestation.serial_framing import Frame, FrameReader, Kind
from attestation.serial_port import SerialPort, open_port
from flashjob.conformance.check import Broken

SECONDS: Final = 8.0
"""Longest wait for one answer: what an installation's last byte may take is waited for apart."""
_PATHS: Final = {Request.INFO: ("GET", "info"), Request.ATTEST: ("POST", "attest"), Request.NONCE: ("POST", "nonce"),
                 Request.GRANT: ("POST", "grant"), Request.OWNER: ("POST", "owner")}  # fmt: skip
_HEADER_LIMIT: Final = 16 * 1024


class Silent(Exception):
    """No whole answer came: the connection was refused or cut, or time ran out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device answered: status 200 and a body, or a refusal."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it accepted."""
        return self.status == 200

    @property
    def labels(self) -> dict[int | str, Value]:
        """The body as a map. Raises Broken."""
        try:
            value = strict_loads(self.body, dp.MAX_REPLY_BYTES)
        except Reject as reject:
            raise Broken(
                f"the answer is not deterministic CBOR of at most {dp.MAX_REPLY_BYTES} bytes: {reject}"
            ) from reject
        if not isinstance(value, dict):
            raise Broken("the answer is not a map")
        return value

    @property
    def code(self) -> int | None:
        """The error code of a refusal; None where it accepted. Raises Broken where there is none."""
        if self.ok:
            return None
        found = self.labels.get(1)
        if type(found) is not int:
            raise Broken(f"status {self.status} without an error code under label 1")
        return found

    def __str__(self) -> str:
        if self.ok:
            return "it accepted"
        with contextlib.suppress(ValueError):
            code = ErrorCode(self.code or 0)
            return f"it refused with {int(code)} ({code.name})"
        return f"it refused with {self.code}"


class Line(Protocol):
    """A way to ask one device anything. `ask` raises Silent."""

    async def ask(self, request: Request, body: bytes) -> Answer:
        """Send `body` as it is, as the body of that request."""
        ...

    async def close(self) -> None:
        """Release it."""
        ...


class HttpLine:
    """Requests over HTTP/1.1, a connection each; over TLS whatever certificate is shown."""

    def __init__(self, host: str, port: int, tls: bool = False) -> None:
        self.host, self.port = host, port
        self.certificate = b""
        """That of the last connection, DER; empty without TLS."""
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self._context is not None

    async def ask(self, request: Request, body: bytes) -> Answer:
        """One request."""
        return await self.send(*_PATHS[request], body)

    async def send(
        self, method: str, path: str, body: bytes, *, length: int | None = None, seconds: float = SECONDS
    ) -> Answer:
        """A request to /fj/1/`path` that announces `length` bytes (None: as many as it has), and its answer."""
        upload = await self.begin(method, path, len(body) if length is None else length, body)
        try:
            return await upload.answer(seconds)
        finally:
            upload.cut()

    async def begin(self, method: str, path: str, length: int, body: bytes) -> Upload:
        """Send the head of a request and the first bytes of its body. Raises Silent."""
        try:
            async with asyncio.timeout(dp.CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self.host, self.port, limit=_HEADER_LIMIT, ssl=self._context
                )
        except (OSError, TimeoutError) as error:
            raise Silent(f"{self.host}:{self.port} takes no connection: {error or 'timeout'}") from error
        if (session := writer.get_extra_info("ssl_object")) is not None:
            self.certificate = session.getpeercert(binary_form=True) or b""
        host = f"[{self.host}]" if ":" in self.host else self.host
        head = (
            f"{method} /fj/1/{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nContent-Type: application/cbor\r\n"
            f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
        )
        upload = Upload(reader, writer)
        await upload.more(head.encode() + body)
        return upload

    async def close(self) -> None:
        """Nothing is held."""


class Upload:
    """A request under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def more(self, data: bytes) -> None:
        """Send more of the body. A device that has already refused may have hung up: its answer says so."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self, seconds: float = SECONDS) -> Answer:
        """The answer. Raises Silent, or Broken for one without Content-Length."""
        try:
            async with asyncio.timeout(seconds):
                head = await self._reader.readuntil(b"\r\n\r\n")
                status, length = _head(head)
                return Answer(status, await self._reader.readexactly(length))
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise Silent(f"no whole answer: {error or 'timeout'}") from error

    def cut(self) -> None:
        """Cut the connection, as a lost network does."""
        self._writer.transport.abort()


def _head(head: bytes) -> tuple[int, int]:
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    words = lines[0].split(" ")
    length = fields.get("content-length", "")
    if len(words) < 2 or not words[1].isdigit() or not length.isdigit():
        raise Broken(f"the answer {lines[0]!r:.60} has no status or no Content-Length")
    if int(length) > dp.MAX_REPLY_BYTES:
        raise Broken(f"the answer has {length} bytes, allowed are {dp.MAX_REPLY_BYTES}")
    return int(words[1]), int(length)


class SerialLine:
    """Frames on a serial line, which stays open."""

    def __init__(self, path: str) -> None:
        self._path, self._reader = path, FrameReader()
        self._port: SerialPort | None = None
        self._sid = 0x40

    def next_sid(self) -> int:
        """A session id that was not used lately."""
        self._sid = (self._sid + 1) % 256
        return self._sid

    async def ask(self, request: Request, body: bytes) -> Answer:
        """One request, repeated once a second as a host does."""
        inner = dumps(body) if request in (Request.GRANT, Request.OWNER) else body
        payload = b"\x82" + dumps(int(request)) + (dumps({}) if request is Request.INFO and not body else inner)
        frame = Frame(self.next_sid(), Kind.REQUEST, payload)
        return answer_of((await self.exchange(framing.encode(frame), frame.sid))[-1])

    async def exchange(self, lines: bytes, last: int, *, repeat_seconds: float = 2.0) -> list[Frame]:
        """Send raw bytes; every reply and error up to the one with sid `last`. Raises Silent."""
        port = await self._open()
        frames: list[Frame] = []
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    await port.write(b"\n" + lines)
                    try:
                        async with asyncio.timeout(repeat_seconds):
                            while not any(frame.sid == last for frame in frames):
                                got = self._reader.feed(await port.read())
                                frames += [f for f in got if f.kind in (Kind.REPLY, Kind.ERROR)]
                        return frames
                    except TimeoutError:
                        continue
        except TimeoutError as error:
            raise Silent(f"no answer on {self._path} within {SECONDS:g} s") from error
        except dp.DeviceError as error:
            raise Silent(error.message) from error

    async def beacon(self) -> bytes:
        """The next beacon's payload, be it that it came before the port was opened. Raises Silent."""
        port = await self._open(earlier=True)
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    for frame in self._reader.feed(await port.read()):
                        if frame.kind is Kind.BEACON:
                            return frame.payload
        except TimeoutError as error:
            raise Silent(f"no beacon on {self._path} within {SECONDS:g} s") from error
        except dp.DeviceError as error:
            raise Silent(error.message) from error

    async def close(self) -> None:
        """Close the port."""
        port, self._port = self._port, None
        if port is not None:
            port.close()

    async def _open(self, *, earlier: bool = False) -> SerialPort:
        if self._port is None:
            try:
                self._port = await open_port(self._path, earlier=earlier)
            except dp.DeviceError as error:
                raise Silent(error.message) from error
        return self._port


def answer_of(frame: Frame) -> Answer:
    """A reply or an error as an answer. Raises Broken for an error that is not [status, body]."""
    if frame.kind is Kind.REPLY:
        return Answer(200, frame.payload)
    try:
        value = strict_loads(frame.payload, framing.MAX_MESSAGE_BYTES)
    except Reject as reject:
        raise Broken(f"an error frame is not strict CBOR: {reject}") from reject
    if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int or not isinstance(value[1], dict):
        raise Broken("an error frame is not [status, body]")
    return Answer(value[0], dumps(value[1]))
