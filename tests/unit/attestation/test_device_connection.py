# SPDX-License-Identifier: Apache-2.0
"""The kept connection to a device, by what a server of our own hears on which connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import pytest

from attestation import device_connection
from attestation import device_protocol as dp
from attestation.cbor import dumps
from attestation.device_http import HttpDevice
from attestation.device_protocol import DeviceError, Verb

NONCE: Final = b"n" * 16
HEAD: Final = b"HTTP/1.1 200 OK\r\n"


def answer(body: bytes = dumps({1: NONCE, 2: 600}), extra: bytes = b"") -> bytes:
    """An answer that a nonce request is content with."""
    return HEAD + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Script:
    """A server that plays one line of its script for each request; the last one for all that follow.

    A line is what it sends; None before it: close instead; None after it: close after it.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[bytes | None, ...]] = [(answer(),)]
        self.greeting = b""
        self.heard: list[tuple[int, str, bytes]] = []
        """(connection, verb, body) of each request."""
        self.connections = 0
        self.open = 0
        self.all_closed = asyncio.Event()
        self.port = 0

    async def serve(self, source: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.all_closed.clear()
        self.newest = out
        number = self.connections
        try:
            out.write(self.greeting)
            while await self.one(number, source, out):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            out.close()
            self.open -= 1
            if not self.open:
                self.all_closed.set()

    async def one(self, number: int, source: asyncio.StreamReader, out: asyncio.StreamWriter) -> bool:
        head = await source.readuntil(b"\r\n\r\n")
        lengths = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        verb = head.split(b"/fj/1/")[1].split(b" ")[0].decode()
        self.heard.append((number, verb, await source.readexactly(int(lengths[0]) if lengths else 0)))
        for part in self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]:
            if part is None:
                return False
            out.write(part)
            await out.drain()
        return True

    @property
    def used(self) -> list[int]:
        """The connection of each request."""
        return [number for number, _, _ in self.heard]


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    script = Script()
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    yield script
    server.close()
    async with asyncio.timeout(5):
        while script.open:
            await script.all_closed.wait()


@pytest.fixture
async def device(script: Script) -> AsyncIterator[HttpDevice]:
    device = HttpDevice("127.0.0.1", script.port)
    yield device
    await device.close()


async def fails(request: Awaitable[object]) -> str:
    """The reason."""
    with pytest.raises(DeviceError) as caught:
        await request
    return caught.value.reason


async def test_rule_1_one_connection_serves_one_request_after_the_other(script: Script, device: HttpDevice) -> None:
    for _ in range(4):
        assert (await device.nonce(Verb.INSTALL)).value == NONCE
    await device.image(bytes(200_000))
    assert script.used == [1, 1, 1, 1, 1]
    await device.close()
    await asyncio.wait_for(script.all_closed.wait(), 5)
    await device.nonce(Verb.INSTALL)
    assert script.used[-1] == 2


async def test_rule_1_a_device_may_close_after_each_answer(script: Script, device: HttpDevice) -> None:
    script.lines = [(answer(extra=b"Connection: close\r\n"), None)]
    for _ in range(3):
        await device.nonce(Verb.INSTALL)
    assert script.used == [1, 2, 3]


async def test_rule_1_after_a_long_silence_a_connection_is_not_trusted(
    script: Script, device: HttpDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_connection, "KEPT_SECONDS", 0.01)
    await device.nonce(Verb.INSTALL)
    await asyncio.wait_for(script.all_closed.wait(), 5)
    await device.nonce(Verb.INSTALL)
    assert script.used == [1, 2]


REPEATED: Final[dict[str, Callable[[HttpDevice], Awaitable[object]]]] = {
    "info": lambda device: device._request("GET", "info", seconds=3),
    "nonce": lambda device: device.nonce(Verb.INSTALL),
    "attest": lambda device: device.attest(b"n" * 32),
    "grant": lambda device: device.grant(b"a grant"),
}


@pytest.mark.parametrize("verb", REPEATED)
async def test_rule_2_a_kept_connection_found_closed_costs_one_more_try(
    script: Script, device: HttpDevice, verb: str
) -> None:
    script.lines = [(answer(),), (None,), (answer(),)]
    await device.nonce(Verb.INSTALL)
    await REPEATED[verb](device)
    (_, _, _), (first, _, body), (second, again, same) = script.heard
    assert (first, second) == (1, 2)
    assert (again, same) == (verb, body), "byte for byte"


@pytest.mark.parametrize("verb", REPEATED)
async def test_rule_2_and_no_more_than_one(script: Script, device: HttpDevice, verb: str) -> None:
    script.lines = [(answer(),), (None,)]
    await device.nonce(Verb.INSTALL)
    assert await fails(REPEATED[verb](device)) == "ConnectionLost"
    assert script.used == [1, 1, 2]


async def test_rule_2_both_tries_share_one_limit(
    script: Script, device: HttpDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.lines = [(answer(),), (None,), ()]
    await device.nonce(Verb.INSTALL)
    monkeypatch.setattr(dp, "INFO_SECONDS", 0.1)
    assert await fails(device.nonce(Verb.INSTALL)) == "Timeout"
    assert script.used == [1, 1, 2]


async def test_rule_2_a_new_connection_that_is_closed_is_an_answer(script: Script, device: HttpDevice) -> None:
    script.lines = [(None,)]
    assert await fails(device.info()) == "ConnectionLost"
    assert script.used == [1]


@pytest.mark.parametrize(
    "begun", [HEAD[:20], HEAD, HEAD + b"Content-Length: 30\r\n", HEAD + b"Content-Length: 30\r\n\r\n", answer()[:-1]]
)
async def test_rule_2_an_answer_that_has_begun_is_not_asked_for_again(
    script: Script, device: HttpDevice, begun: bytes
) -> None:
    script.lines = [(answer(),), (begun, None)]
    await device.nonce(Verb.INSTALL)
    assert await fails(device.nonce(Verb.INSTALL)) == "ConnectionLost"
    assert script.used == [1, 1]


async def test_rule_3_an_image_is_sent_once(script: Script, device: HttpDevice) -> None:
    script.lines = [(answer(),), (None,)]
    await device.nonce(Verb.INSTALL)
    assert await fails(device.image(b"an image")) == "ConnectionLost"
    assert [verb for _, verb, _ in script.heard] == ["nonce", "image?off=0"]


async def test_rule_4_who_closes_silently_twice_is_not_kept_any_more(script: Script, device: HttpDevice) -> None:
    kept = (answer(),)
    script.lines = [kept, (None,), kept, (None,), kept]
    for _ in range(3):
        await device.nonce(Verb.INSTALL)
    await device.image(b"an image")
    await device.nonce(Verb.INSTALL)
    assert script.used == [1, 1, 2, 2, 3, 4, 5]
    await device.rebooted()
    await device.nonce(Verb.INSTALL)
    await device.nonce(Verb.INSTALL)
    assert script.used[-2:] == [6, 6], "after a reset it has another chance"


OTHER: Final = answer(dumps({1: b"x" * 16, 2: 600}))


async def test_rule_5_a_second_answer_is_nobody_s(script: Script, device: HttpDevice) -> None:
    script.lines = [(answer() + OTHER,), (answer(),)]
    for _ in range(2):
        assert (await device.nonce(Verb.INSTALL)).value == NONCE
    assert script.used == [1, 2]


async def test_rule_5_nor_is_one_that_comes_later(script: Script, device: HttpDevice) -> None:
    await device.nonce(Verb.INSTALL)
    script.newest.write(OTHER)
    for _ in range(5):
        await asyncio.sleep(0)  # it is there at once: this is the loopback
    assert (await device.nonce(Verb.INSTALL)).value == NONCE
    assert script.used == [1, 2]


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [(b"SSH-2.0-porch\r\n", "ConnectionLost"), (bytes(300), "ConnectionLost"), (answer(b"\xff") * 3, "BadReply")],
)
async def test_rule_5_a_server_that_speaks_first(
    script: Script, device: HttpDevice, greeting: bytes, reason: str
) -> None:
    script.greeting = greeting
    assert await fails(device.info()) == reason


async def test_a_kept_connection_that_falls_silent_ends_with_its_request(
    script: Script, device: HttpDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.lines = [(answer(),), (), (answer(),)]
    await device.nonce(Verb.INSTALL)
    monkeypatch.setattr(dp, "INFO_SECONDS", 0.1)
    assert await fails(device.nonce(Verb.INSTALL)) == "Timeout"
    await asyncio.wait_for(script.all_closed.wait(), 5)
    await device.nonce(Verb.INSTALL)
    assert script.used == [1, 1, 2]


@pytest.mark.parametrize(
    "head", [b"X-More: y\r\n" * 10_000, b"X-More: " + b"y" * 100_000 + b"\r\n"], ids=["lines", "one line"]
)
async def test_a_long_head_is_not_read_to_its_end(script: Script, device: HttpDevice, head: bytes) -> None:
    script.lines = [(HEAD, head, b"\r\n")]
    assert await fails(device.info()) == "ConnectionLost"
    assert script.used == [1]
    await asyncio.wait_for(script.all_closed.wait(), 5)
