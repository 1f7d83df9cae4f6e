# SPDX-License-Identifier: Apache-2.0
"""The application's side of a serial line: framed requests between log lines. Bytes in, bytes out; no I/O.

Rules (tests name them):

1. A request is ``[0 info | 1 attest | 2 nonce | 3 grant | 4 owner, body]``; the body is a map, for a grant or a
   succession the signed bytes, for info an empty map.
2. The same request under the same sid within ten seconds gets the cached answer, byte for byte: repeating costs
   nothing and never acts twice. Another request under that sid is a new one.
3. A refusal is an error frame ``[status, body]``.
4. When the application is ready it sends a beacon: its `info`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from attestation import device_protocol as dp
from attestation import serial_framing as framing
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import ErrorCode, Request
from attestation.errors import Reject
from attestation.serial_framing import Frame, FrameReader, Kind
from flashjob.virtual.application import Application
from flashjob.virtual.replies import Refusal, Reply

CACHE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Output:
    """What goes onto the line, and whether the device resets after it."""

    data: bytes = b""
    reboot: bool = False


@dataclass(frozen=True, slots=True)
class _Cached:
    sid: int
    request: bytes
    answer: bytes
    until: float


class SerialApplication:
    """Serves one run of an application on a serial line.

    Args:
        application: what answers.
        clock: monotonic seconds.
    """

    def __init__(self, application: Application, clock: Callable[[], float]) -> None:
        self._application = application
        self._clock = clock
        self._reader = FrameReader()
        self._cached: _Cached | None = None

    def beacon(self) -> bytes:
        """The lines that announce a ready application (rule 4)."""
        return framing.encode(Frame(0, Kind.BEACON, dp.encode_info(self._application.info())))

    def feed(self, data: bytes) -> Output:
        """Take bytes from the line; return what to send."""
        out, reboot = b"", False
        for frame in self._reader.feed(data):
            if frame.kind is Kind.REQUEST:
                answer = self._answer(frame)
                out += answer.data
                reboot = reboot or answer.reboot
        return Output(out, reboot)

    def _answer(self, frame: Frame) -> Output:
        now, cached = self._clock(), self._cached
        if cached is not None and (cached.sid, cached.request) == (frame.sid, frame.payload) and now < cached.until:
            return Output(cached.answer)
        try:
            reply = self._application.handle(*_request(frame.payload))
        except Refusal as refusal:
            reply = Reply.refusal(refusal)
        if reply.body is None:
            return Output()
        if reply.status == 200:
            answer = framing.encode(Frame(frame.sid, Kind.REPLY, reply.body))
        else:
            body = dumps([reply.status, strict_loads(reply.body)])
            answer = framing.encode(Frame(frame.sid, Kind.ERROR, body))
        self._cached = _Cached(frame.sid, frame.payload, answer, now + CACHE_SECONDS)
        return Output(answer, reply.reboot)


def _request(payload: bytes) -> tuple[Request, bytes]:
    """Rule 1. Raises Refusal MALFORMED."""
    try:
        message = strict_loads(payload)
    except Reject as error:
        raise Refusal(ErrorCode.MALFORMED, str(error)) from error
    match message:
        case [0, {}] if message[1] == {}:
            return Request.INFO, b""
        case [(1 | 2) as verb, dict(body)]:
            return Request(verb), dumps(body)
        case [(3 | 4) as verb, bytes(signed)]:
            return Request(verb), signed
    raise Refusal(ErrorCode.MALFORMED, "a request is [0 info | 1 attest | 2 nonce | 3 grant | 4 owner, body]")
