# SPDX-License-Identifier: Apache-2.0
"""The serial line: frames between log lines, repeated, cut, garbled."""

from __future__ import annotations

import base64
import contextlib
import secrets
import zlib
from typing import Final

from attestation import device_protocol as dp
from attestation import serial_framing as framing
from attestation.cbor import Writable, dumps
from attestation.device_protocol import ErrorCode
from attestation.serial_framing import Frame, Kind
from flashjob.conformance.check import Broken, Need, check
from flashjob.conformance.line import Silent, answer_of
from flashjob.conformance.subject import Subject, expect

_INFO: Final = dumps([0, {}])
_RESETS: Final = 2


def _line(sid: int, place: str, chunk: bytes) -> bytes:
    """One line of a request, its checksum right whatever the rest is."""
    covered = f"FJ1.{sid:02x}.Q.{place}.{base64.urlsafe_b64encode(chunk).rstrip(b'=').decode()}"
    return f"\n~{covered}.{zlib.crc32(covered.encode()):08x}\n".encode()


@check("serial.ignores", Need.SERIAL)
async def serial_ignores(subject: Subject) -> None:
    """Lines that break a rule of the framing are ignored, and the next good request is answered."""
    line = subject.serial
    bad, noise = [line.next_sid() for _ in range(8)], []
    good = [framing.encode(Frame(sid, Kind.REQUEST, _INFO)) for sid in bad]
    noise.append(good[0][:-3] + b"00\n" if not good[0].endswith(b"00\n") else good[0][:-3] + b"11\n")  # checksum
    noise.append(good[1].replace(b"~FJ1", b"~FJ2"))
    noise.append(good[2].replace(b".Q.", b".X."))
    noise.append(_line(bad[3], "2/2", _INFO))  # the end of a message without its beginning
    noise.append(_line(bad[4], "1/49", _INFO))
    noise.append(_line(bad[5], "0/1", _INFO) + _line(bad[5], "01/1", _INFO))
    noise.append(_line(bad[6], "1/2", _INFO) + _line(bad[6], "2/3", _INFO))
    noise.append(b"\n" + b"~FJ1." + b"A" * 4000 + b"\n")
    last = line.next_sid()
    frames = await line.exchange(b"".join(noise) + framing.encode(Frame(last, Kind.REQUEST, _INFO)), last)
    answered = sorted(frame.sid for frame in frames if frame.sid in bad)
    if answered:
        raise Broken(f"bad lines {[bad.index(sid) for sid in answered]} were answered")


@check("serial.log", Need.SERIAL)
async def serial_log(subject: Subject) -> None:
    """A request begins a line of its own: text that stands before it on the line does not matter."""
    sid = subject.serial.next_sid()
    await subject.serial.exchange(b"I (42) main: half a line" + framing.encode(Frame(sid, Kind.REQUEST, _INFO)), sid)


@check("serial.again", Need.SERIAL)
async def serial_again(subject: Subject) -> None:
    """The same request under the same session id gets the cached answer, byte for byte; another request is a new one."""
    line, sid = subject.serial, subject.serial.next_sid()
    await subject.evidence()
    body: list[Writable] = [2, {1: 1}]
    request = framing.encode(Frame(sid, Kind.REQUEST, dumps(body)))
    first = (await line.exchange(request, sid))[-1]
    second = (await line.exchange(request, sid))[-1]
    if first != second:
        raise Broken("the same request again drew another nonce")
    other = framing.encode(Frame(sid, Kind.REQUEST, dumps([2, {1: 2}])))
    if (await line.exchange(other, sid))[-1] == first:
        raise Broken("another request under the same session id got the cached answer")


@check("serial.malformed", Need.SERIAL)
async def serial_malformed(subject: Subject) -> None:
    """What is no request is answered with an error frame [status, body] that says malformed (1)."""
    cases: dict[str, bytes] = {
        "an unknown request": dumps([9, {}]),
        "a request without a body": dumps([0]),
        "a map": dumps({}),
        "info with a body": dumps([0, {1: 1}]),
        "a grant that is no byte string": dumps([3, {}]),
        "bytes that are no CBOR": b"\xff",
    }
    for what, payload in cases.items():
        sid = subject.serial.next_sid()
        frames = await subject.serial.exchange(framing.encode(Frame(sid, Kind.REQUEST, payload)), sid)
        expect(answer_of(frames[-1]), ErrorCode.MALFORMED, what)


@check("serial.long", Need.SERIAL)
async def serial_long(subject: Subject) -> None:
    """Messages of many lines arrive whole: evidence is one."""
    nonce = secrets.token_bytes(32)
    evidence = await subject.evidence(nonce)
    if len(evidence) > framing.MAX_MESSAGE_BYTES:
        raise Broken(f"the evidence has {len(evidence)} bytes, a serial message at most {framing.MAX_MESSAGE_BYTES}")
    subject.open(evidence, nonce)


@check("serial.beacon", Need.SERIAL, Need.RESET)
async def serial_beacon(subject: Subject) -> None:
    """An application that is ready announces itself with a beacon: its `info`.

    What resets the device may still hold the port when it comes, and swallow it: only one that stays away is missing.
    """
    if subject.materials.reset is None:
        raise Broken("nobody can press the reset button")
    for _ in range(_RESETS):
        before = await subject.info()
        await subject.line.close()
        await subject.materials.reset()
        with contextlib.suppress(Silent):
            _announced(await subject.serial.beacon(), before)
            return
    raise Broken(f"no beacon after {_RESETS} resets, though the application answers")


def _announced(payload: bytes, before: dp.Info) -> None:
    try:
        beacon = dp.parse_info(payload)
    except dp.DeviceError as error:
        raise Broken(f"the beacon: {error.message}") from error
    if beacon.ueid != before.ueid or beacon.bootseed == before.bootseed:
        raise Broken("the beacon is not this device's after a reset")


CHECKS: Final = (serial_ignores, serial_log, serial_again, serial_malformed, serial_long, serial_beacon)
