# SPDX-License-Identifier: Apache-2.0
"""Whatever stands at a device's address: each answer has its reason, and none holds an attempt longer than its stage."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from attestation import device_protocol as dp
from attestation.cbor import dumps
from attestation.device_protocol import ErrorCode, Info
from firmware_pipeline.esp.otadata import SlotState
from flashjob.virtual.device import VirtualDevice

from .bench import QUICK, Bench, assignment, new_app, push, runs

Answer: TypeAlias = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes, status: int = 200, *extra: str) -> Answer:
    """One plain answer."""

    async def answer(out: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *extra, "", ""]
        out.write("\r\n".join(lines).encode() + body)
        await out.drain()

    return answer


async def endless(out: asyncio.StreamWriter) -> None:
    out.write(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n")
    while True:
        out.write(b"\xa1" * 512)
        await out.drain()


async def endless_head(out: asyncio.StreamWriter) -> None:
    out.write(b"HTTP/1.1 200 X\r\n")
    while True:
        out.write(b"X-More: " + b"y" * 512 + b"\r\n")
        await out.drain()


async def slow(out: asyncio.StreamWriter) -> None:
    out.write(b"HTTP/1.1 200 X\r\nContent-Length: 100000\r\n\r\n")
    while True:
        out.write(b"\xa1")
        await out.drain()
        await asyncio.sleep(0.05)


async def silent(out: asyncio.StreamWriter) -> None:
    await out.wait_closed()


async def no_http(out: asyncio.StreamWriter) -> None:
    out.write(b"SSH-2.0-porch\r\n")


async def hangs_up(out: asyncio.StreamWriter) -> None:
    out.close()


def refuses(code: ErrorCode, next_offset: int | None = None) -> Answer:
    return reply(dp.encode_error(code, "no", next_offset=next_offset), dp.HTTP_STATUS[code])


class Relay:
    """Stands before a true device and answers some requests in its own way.

    Args:
        device: where all else goes.
        evil: request path (info, attest, nonce, grant, image) -> answer; what it answers None to goes to the device.
        lies: rewrites the device's `info`.
        hasty: closes after each answer, and does not say so.
    """

    def __init__(
        self,
        device: VirtualDevice,
        evil: dict[str, Answer],
        lies: Callable[[Info], Info] | None = None,
        *,
        hasty: bool = False,
    ) -> None:
        self.device, self.evil, self.lies, self.hasty = device, evil, lies, hasty
        self.asked: list[str] = []
        self.connections: list[list[str]] = []
        """What was asked on each."""
        self.armed = True
        self.address = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, source: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        heard: list[str] = []
        self.connections.append(heard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer(source, out, heard) and not self.hasty:
                await out.drain()
        out.close()

    async def _answer(self, source: asyncio.StreamReader, out: asyncio.StreamWriter, heard: list[str]) -> bool:
        """One request; whether another one may follow."""
        head = await source.readuntil(b"\r\n\r\n")
        path = head.split(b"/fj/1/")[1].split(b" ")[0].partition(b"?")[0].decode()
        self.asked.append(path)
        heard.append(path)
        if self.armed and path in self.evil:
            await self.evil[path](out)
            return False
        if self.lies is not None and path == "info" and self.device.application is not None:
            await source.readexactly(_length(head))
            await reply(dp.encode_info(self.lies(self.device.application.info())))(out)
            return False
        host, _, port = self.device.server.address.partition(":")
        if not port:
            return False  # it resets: nobody is at the other end
        answers, there = await asyncio.open_connection(host, int(port))
        there.write(head)
        sending = asyncio.create_task(_pass_on(source, there, _length(head)))
        answer = await answers.readuntil(b"\r\n\r\n")
        out.write(answer)
        await _pass_on(answers, out, _length(answer))
        there.close()
        done = sending.done()
        sending.cancel()
        return done


def _length(head: bytes) -> int:
    """Of the body that follows."""
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(lengths[0]) if lengths else 0


async def _pass_on(source: asyncio.StreamReader, out: asyncio.StreamWriter, length: int) -> None:
    while length:
        data = await source.read(min(length, 65536))
        if not data:
            raise ConnectionResetError
        out.write(data)
        await out.drain()
        length -= len(data)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


SHORT = QUICK.model_copy(update={"attest_seconds": 1, "boot_seconds": 1, "write_seconds": 2, "confirm_seconds": 2})
BAD_MAP = reply(dumps({1: b"short", 2: "x"}))
CASES: dict[str, tuple[str, Answer, str]] = {
    "info endless": ("info", endless, "DeviceUnreachable"),
    "info with an endless head": ("info", endless_head, "DeviceUnreachable"),
    "info slow": ("info", slow, "DeviceUnreachable"),
    "info never": ("info", silent, "DeviceUnreachable"),
    "info huge": ("info", reply(b"\x00" * 100_000), "DeviceUnreachable"),
    "info malformed": ("info", reply(b"\xff\xff"), "DeviceUnreachable"),
    "info of another shape": ("info", BAD_MAP, "DeviceUnreachable"),
    "info nested": ("info", reply(b"\x81" * 4000), "DeviceUnreachable"),
    "info elsewhere": ("info", reply(b"", 302, "Location: http://127.0.0.1:1/fj/1/info"), "DeviceUnreachable"),
    "info is no HTTP": ("info", no_http, "DeviceUnreachable"),
    "attest never": ("attest", silent, "AttestTimeout"),
    "attest endless": ("attest", endless, "DeviceUnreachable"),
    "attest malformed": ("attest", reply(b"\xff"), "BeforeAttestationFailed"),
    "attest always too soon": ("attest", refuses(ErrorCode.SLOW_DOWN), "AttestTimeout"),
    "attest hangs up": ("attest", hangs_up, "TransportLost"),
    "nonce never": ("nonce", silent, "DeviceUnreachable"),
    "nonce malformed": ("nonce", BAD_MAP, "DeviceUnreachable"),
    "grant refused": ("grant", refuses(ErrorCode.FENCE), "DeviceRefused"),
    "grant's nonce forgotten for ever": ("grant", refuses(ErrorCode.NONCE), "TransportLost"),
    "grant refused without a code": ("grant", reply(b"no", 403), "TransportLost"),
    "grant refused with an unknown code": ("grant", reply(dumps({-1: "no", 1: 99}), 403), "TransportLost"),
    "grant never": ("grant", silent, "WriteTimeout"),
    "image refused": ("image", refuses(ErrorCode.IMAGE_OR_CHIP), "DeviceRefused"),
    "image never answered": ("image", silent, "WriteTimeout"),
    "image at one place for ever": ("image", refuses(ErrorCode.OFFSET, 0), "TransportLost"),
    "image at a place that it has not": ("image", refuses(ErrorCode.OFFSET, 1 << 40), "TransportLost"),
    "image before its beginning": ("image", refuses(ErrorCode.OFFSET, -5), "TransportLost"),
    "image forgotten for ever": ("image", refuses(ErrorCode.STATE), "TransportLost"),
    "image cut for ever": ("image", hangs_up, "TransportLost"),
    "image accepted by a liar": ("image", reply(dumps({17: 0})), "SilentAfterWrite"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_each_hostile_answer_has_its_reason_in_time(bench: Bench, tmp_path: Path, case: str) -> None:
    path, answer, reason = CASES[case]
    device = await bench.device(network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    relay = Relay(device, {path: answer})
    await relay.start()
    begun = time.monotonic()
    result, judge = await bench.flash(
        device, release, task=assignment(device, release.target, address=relay.address, timeouts=SHORT)
    )
    await relay.stop()
    assert (result.ok, result.reason) == (False, reason), result
    assert judge.outcome is None or judge.outcome.value == "Rejected"
    assert time.monotonic() - begun < 9, "no stage holds longer than its limit"
    assert device.flash.regions["ota_1"].programmed == 0
    await runs(device, "1.0.0")


CONTRADICTIONS: dict[str, tuple[dict[str, object], str]] = {
    "another device": ({"ueid": b"\x01" + b"x" * 32}, "WrongDevice"),
    "another chip": ({"chip_id": 5}, "WrongChip"),
    "no such chip": ({"chip_id": 4711}, "WrongChip"),
    "a slot of no size": ({"target_slot_size": 1}, "ImageTooLarge"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
async def test_info_that_contradicts_the_task_is_refused_untouched(bench: Bench, tmp_path: Path, case: str) -> None:
    changes, reason = CONTRADICTIONS[case]
    device = await bench.device(network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    relay = Relay(device, {}, lambda info: info.model_copy(update=changes))
    await relay.start()
    result, _ = await bench.flash(
        device, release, task=assignment(device, release.target, address=relay.address, timeouts=SHORT)
    )
    await relay.stop()
    assert (result.ok, result.reason, result.bytes_written) == (False, reason, 0), result
    assert device.flash.regions["ota_1"].programmed == 0


async def test_claiming_the_target_earns_nothing(bench: Bench, tmp_path: Path) -> None:
    """Info says that the new image runs and is valid; the evidence says what is true, and the device is updated."""
    device = await bench.device(network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    (claimed,) = [m for m in release.target.measurements if m.alg == -16]
    lie = {"measurement": None, "version": "2.0.0", "slot_state": int(SlotState.VALID)}

    def lies(info: Info) -> Info:
        digest = info.measurement.model_copy(update={"alg": claimed.alg, "value": bytes.fromhex(claimed.value)})
        return info.model_copy(update={**lie, "measurement": digest})

    relay = Relay(device, {}, lies)
    await relay.start()
    result, judge = await bench.flash(
        device, release, task=assignment(device, release.target, address=relay.address, timeouts=QUICK)
    )
    await relay.stop()
    assert device.flash.regions["ota_1"].installs == 1, result
    assert judge.case.permits


async def through(bench: Bench, tmp_path: Path, relay: Relay) -> None:
    """A good update over a relay."""
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    await relay.start()
    task = assignment(relay.device, release.target, address=relay.address, timeouts=QUICK)
    result, judge = await bench.flash(relay.device, release, task=task)
    await relay.stop()
    assert result.ok, result
    assert judge.outcome is not None
    assert judge.outcome.value == "Proven"
    await runs(relay.device, "2.0.0")


async def test_an_update_needs_one_connection_before_the_reset_and_one_after(bench: Bench, tmp_path: Path) -> None:
    relay = Relay(await bench.device(network=True), {})
    await through(bench, tmp_path, relay)
    assert relay.connections[0] == ["info", "attest", "nonce", "grant", "image"]
    assert relay.connections[-1][-3:] == ["attest", "nonce", "grant"]


async def test_a_device_that_closes_after_each_answer_is_updated(bench: Bench, tmp_path: Path) -> None:
    relay = Relay(await bench.device(network=True), {}, hasty=True)
    await through(bench, tmp_path, relay)
    assert all(len(heard) <= 1 for heard in relay.connections)


async def test_a_nonce_that_the_device_forgot_costs_a_permit_more(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)

    async def forgetful(out: asyncio.StreamWriter) -> None:
        relay.armed = False
        await refuses(ErrorCode.NONCE)(out)

    relay = Relay(device, {"grant": forgetful})
    await through(bench, tmp_path, relay)
    assert relay.asked.count("grant") == 3, "refused, taken, confirmed"
