# SPDX-License-Identifier: Apache-2.0
"""A device on a serial line and the real client, over a pseudo-terminal that also carries a log."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import tty
from collections.abc import AsyncIterator, Callable

import pytest

from attestation import grants
from attestation import serial_framing as framing
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import DeviceError, ErrorCode
from attestation.device_serial import SerialDevice
from attestation.eat import parse_evidence
from attestation.grants import ConfirmGrant, RevertGrant, Verb
from attestation.serial_framing import Frame, FrameReader, Kind
from attestation.serial_port import open_port
from flashjob.virtual.adversaries import LosesConfirm
from flashjob.virtual.serial_application import SerialApplication
from tests.unit.virtual.test_bootloader import install_by_hand
from tests.unit.virtual.workbench import GRANT_KEY, NONCE, Bench, image


class Console:
    """The device's end of a pseudo-terminal, chattering between its answers."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self._slave)
        self.lines = SerialApplication(bench.application, lambda: bench.now)
        self.requests: list[bytes] = []
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.reboots = 0
        asyncio.get_running_loop().add_reader(self.master, self._serve)

    def _serve(self) -> None:
        data = os.read(self.master, 4096)
        self.requests.append(data)
        output = self.lines.feed(data)
        self.reboots += output.reboot
        if output.data:
            os.write(self.master, b"I (991) wifi: beacon timeout\r\nW (99" + self.spoil(output.data) + b"2) mqtt\r\n")

    def say(self, data: bytes) -> None:
        os.write(self.master, data)

    def restart(self) -> None:
        self.lines = SerialApplication(self.bench.reset(), lambda: self.bench.now)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    made = Console(Bench(takes_image=False))
    yield made
    made.close()


@pytest.fixture
async def device(console: Console) -> AsyncIterator[SerialDevice]:
    client = SerialDevice(await open_port(console.path), repeat_seconds=0.3)
    yield client
    await client.close()


async def test_info_evidence_and_confirm_over_a_chattering_console(console: Console, device: SerialDevice) -> None:
    bench = console.bench
    assert (await device.info()).version == "1.0"
    install_by_hand(bench, image("2.0"), boot_id=b"g" * 16)
    console.restart()
    console.say(console.lines.beacon())
    assert (await device.ready(5)).version == "2.0"
    assert len(parse_evidence(await device.attest(NONCE)).certificates) == 2
    nonce = await device.nonce(Verb.CONFIRM)
    grant = bench.running_grant(ConfirmGrant, device_nonce=nonce.value, fence=3)
    parse_evidence(await device.grant(grants.mint(grant, GRANT_KEY)))
    assert (await device.info()).slot_state == 2
    assert bench.nvs.fence == 3
    assert any("beacon timeout" in line for line in device.log)


async def test_refusals_arrive_with_their_code(console: Console, device: SerialDevice) -> None:
    with pytest.raises(DeviceError) as caught:
        await device.grant(b"\xa0")
    assert (caught.value.reason, caught.value.code) == ("Refused", ErrorCode.MALFORMED)
    grant = console.bench.install_grant(image("2.0"))
    with pytest.raises(DeviceError) as caught:
        await device.grant(grants.mint(grant, GRANT_KEY))
    assert caught.value.code is ErrorCode.STATE, "a serial device is written through its loader"


async def test_client_rule_1_a_damaged_answer_is_asked_for_again_and_acts_once(
    console: Console, device: SerialDevice
) -> None:
    bench = console.bench
    install_by_hand(bench, image("2.0"), boot_id=b"g" * 16)
    console.restart()
    spoilt = 0

    def spoil(data: bytes) -> bytes:
        nonlocal spoilt
        spoilt += 1
        return data if spoilt > 2 else data.replace(b"A", b"B", 1).replace(b"a", b"b", 1)

    nonce = await device.nonce(Verb.CONFIRM)
    console.spoil = spoil
    confirm = bench.running_grant(ConfirmGrant, device_nonce=nonce.value)
    evidence = await device.grant(grants.mint(confirm, GRANT_KEY))
    assert parse_evidence(evidence)
    assert spoilt == 3
    assert len({bytes(request) for request in console.requests[-3:]}) == 1, "byte for byte the same request"


async def test_client_rule_1_silence_ends_in_a_timeout(console: Console, device: SerialDevice) -> None:
    console.bench.behaviour = LosesConfirm(times=9)
    install_by_hand(console.bench, image("2.0"), boot_id=b"g" * 16)
    console.restart()
    confirm = grants.mint(console.bench.running_grant(ConfirmGrant), GRANT_KEY)
    before = len(console.requests)
    with pytest.raises(DeviceError) as caught:
        await device.grant(confirm)
    assert caught.value.reason == "Timeout"
    assert len(console.requests) - before >= 4


async def test_client_rule_2_foreign_answers_and_broken_beacons_are_noise(
    console: Console, device: SerialDevice
) -> None:
    console.say(framing.encode(Frame(200, Kind.REPLY, b"\xa0")) + framing.encode(Frame(0, Kind.BEACON, b"\xff")))
    assert (await device.info()).version == "1.0"
    with pytest.raises(DeviceError) as caught:
        await device.ready(0.2)
    assert caught.value.reason == "Timeout"


async def test_a_pulled_cable_is_a_lost_connection(console: Console, device: SerialDevice) -> None:
    await device.info()
    waiting = asyncio.ensure_future(device.ready(5))
    await asyncio.sleep(0)
    asyncio.get_running_loop().remove_reader(console.master)
    os.close(console._slave)
    os.close(console.master)
    with pytest.raises(DeviceError) as caught:
        await waiting
    assert caught.value.reason == "ConnectionLost"
    console.master, console._slave = os.openpty()


async def test_a_revert_resets_after_its_answer(console: Console, device: SerialDevice) -> None:
    install_by_hand(console.bench, image("2.0"), boot_id=b"g" * 16)
    console.restart()
    revert = console.bench.running_grant(RevertGrant)
    assert strict_loads(await device.grant(grants.mint(revert, GRANT_KEY))) == {}
    assert console.reboots == 1


# --- the device's side, byte by byte -----------------------------------------------------------------------------


def ask(lines: SerialApplication, sid: int, message: object) -> Frame:
    output = lines.feed(b"\n" + framing.encode(Frame(sid, Kind.REQUEST, dumps(message))))  # type: ignore[arg-type]
    (frame,) = FrameReader().feed(output.data)
    return frame


def test_rule_2_the_same_request_under_the_same_sid_is_answered_from_the_cache() -> None:
    bench = Bench()
    lines = SerialApplication(bench.application, lambda: bench.now)
    first = ask(lines, 7, [2, {1: 2}])
    assert ask(lines, 7, [2, {1: 2}]) == first
    assert ask(lines, 8, [2, {1: 2}]) != first, "another sid draws another nonce"
    again = ask(lines, 9, [2, {1: 2}])
    bench.now += 10
    assert ask(lines, 9, [2, {1: 2}]) != again, "the cache forgets"
    assert ask(lines, 9, [2, {1: 3}]) != again, "another request is a new one"


@pytest.mark.parametrize("message", [[], [0], [0, {1: 1}], [4, {}], [1, b"x"], [3, {}], {1: 1}, [True, {}], [0, {}, 0]])
def test_rule_1_anything_else_is_malformed(message: object) -> None:
    bench = Bench()
    frame = ask(SerialApplication(bench.application, lambda: bench.now), 1, message)
    assert frame.kind is Kind.ERROR
    answer = strict_loads(frame.payload)
    assert isinstance(answer, list)
    assert isinstance(answer[1], dict)
    assert (answer[0], answer[1][1]) == (400, ErrorCode.MALFORMED)


def test_answers_and_beacons_of_other_devices_are_ignored() -> None:
    bench = Bench()
    lines = SerialApplication(bench.application, lambda: bench.now)
    for kind in (Kind.REPLY, Kind.ERROR, Kind.BEACON):
        assert lines.feed(framing.encode(Frame(1, kind, b"\xa0"))).data == b""


# --- the port ----------------------------------------------------------------------------------------------------


async def test_port_rule_1_one_holder_at_a_time(console: Console) -> None:
    first = await open_port(console.path)
    with pytest.raises(DeviceError) as caught:
        await open_port(console.path, wait_seconds=0.1)
    assert caught.value.reason == "PortBusy"
    waiting = asyncio.ensure_future(open_port(console.path))
    await asyncio.sleep(0.1)
    first.close()
    second = await waiting
    second.close()
    second.close()


async def test_port_rule_1_a_pseudo_terminal_is_left_open_to_the_next(console: Console) -> None:
    (await open_port(console.path)).close()
    tiocgexcl = 0x80045440
    assert fcntl.ioctl(console._slave, tiocgexcl, struct.pack("I", 9)) == struct.pack("I", 0)


@pytest.mark.parametrize(("path", "baud"), [("/nonexistent/tty", 115200), ("/dev/null", 115200), ("", 123)])
async def test_a_port_that_is_none_is_unreachable(path: str, baud: int) -> None:
    with pytest.raises(DeviceError) as caught:
        await open_port(path, baud)
    assert caught.value.reason == "Unreachable"
