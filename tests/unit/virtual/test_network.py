# SPDX-License-Identifier: Apache-2.0
"""A network device and the real client, over loopback HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from attestation import grants
from attestation.cbor import strict_loads
from attestation.device_http import HttpDevice
from attestation.device_protocol import DeviceError, ErrorCode
from attestation.eat import EVIDENCE_MEDIA_TYPE, parse_evidence
from attestation.grants import ConfirmGrant, Verb
from flashjob.virtual import network
from flashjob.virtual.adversaries import LosesConfirm
from flashjob.virtual.network import DeviceServer
from tests.unit.virtual.workbench import GRANT_KEY, NONCE, Bench, image

NEW = image("2.0")


class Online:
    """A bench device with its server; `rebooted` is set when the device asked for a reset."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rebooted = asyncio.Event()
        self.cut_at: int | None = None
        self.server = DeviceServer(self.rebooted.set, self._bytes)
        self.client = HttpDevice("127.0.0.1", 1)

    def _bytes(self, done: int, total: int) -> None:
        if self.cut_at is not None and done >= self.cut_at:
            self.cut_at = None
            raise ConnectionResetError("cut by the test")

    async def up(self, port: int = 0) -> None:
        await self.server.start(self.bench.application, port=port)
        await self.client.close()
        self.client = HttpDevice(self.server.host, self.server.port)

    async def reset(self, port: int = 0) -> None:
        self.rebooted.clear()
        await self.server.stop()
        self.bench.reset()
        await self.up(port)

    async def install(self, **changes: Any) -> None:
        nonce = await self.client.nonce(Verb.INSTALL)
        grant = self.bench.install_grant(NEW, device_nonce=nonce.value, **changes)
        await self.client.grant(grants.mint(grant, GRANT_KEY))


@pytest.fixture
async def online() -> AsyncIterator[Online]:
    device = Online(Bench())
    await device.up()
    yield device
    await device.client.close()
    await device.server.stop()


async def test_the_whole_update_over_http(online: Online) -> None:
    bench, client = online.bench, online.client
    before = await client.info()
    assert (before.version, before.ueid) == ("1.0", bench.identity.ueid)
    await online.install()
    seen: list[int] = []
    await client.image(NEW, progress=seen.append)
    assert seen[-1] == len(NEW)
    await asyncio.wait_for(online.rebooted.wait(), 5)
    await online.reset()
    client = online.client
    after = await client.info()
    assert (after.version, after.slot_state, after.bootseed == before.bootseed) == ("2.0", 1, False)
    assert len(parse_evidence(await client.attest(NONCE)).certificates) == 2
    nonce = await client.nonce(Verb.CONFIRM)
    confirm = bench.running_grant(ConfirmGrant, device_nonce=nonce.value)
    parse_evidence(await client.grant(grants.mint(confirm, GRANT_KEY)))
    assert (await client.info()).slot_state == 2
    assert not online.rebooted.is_set()


async def test_rule_1_answers_are_cbor_with_a_length(online: Online) -> None:
    base = f"http://{online.server.address}/fj/1"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/info") as response:
            assert response.headers["Content-Length"] == str(len(await response.read()))
            assert response.content_type == "application/cbor"
        async with session.post(f"{base}/attest", data=b"\xa1\x01\x58\x20" + NONCE) as response:
            assert (response.status, response.content_type) == (200, EVIDENCE_MEDIA_TYPE)
        async with session.get(f"{base}/other") as response:
            assert response.status == 404
        async with session.post(f"{base}/grant", data=bytes(2000)) as response:
            assert response.status == 413
            assert strict_loads(await response.read())[1] == ErrorCode.TOO_LARGE  # type: ignore[index]
        for query in ("", "?off=", "?off=-1", "?off=x"):
            async with session.put(f"{base}/image{query}", data=b"x") as response:
                assert response.status == 400


async def test_refusals_arrive_with_their_code(online: Online) -> None:
    with pytest.raises(DeviceError) as caught:
        await online.client.grant(b"\xa0")
    assert (caught.value.reason, caught.value.code) == ("Refused", ErrorCode.MALFORMED)
    with pytest.raises(DeviceError) as caught:
        await online.client.image(NEW)
    assert caught.value.code is ErrorCode.STATE
    await online.install()
    with pytest.raises(DeviceError) as caught:
        await online.client.image(NEW, 4096)
    assert (caught.value.code, caught.value.next_offset) == (ErrorCode.OFFSET, 0)


async def test_rule_2_while_it_reboots_nobody_answers_and_it_may_come_back_elsewhere(online: Online) -> None:
    old = online.server.port
    await online.server.stop()
    assert online.server.address == ""
    with pytest.raises(DeviceError) as caught:
        await online.client.info()
    assert caught.value.reason == "Unreachable"
    await online.reset()
    assert (await online.client.info()).version == "1.0"
    assert online.bench.application.addresses == [online.server.address]
    await online.reset(port=old)
    assert online.server.port == old


async def test_rule_3_the_reset_comes_after_the_answer(online: Online) -> None:
    order: list[str] = []
    online.server = DeviceServer(lambda: order.append("reset"))
    await online.up()
    await online.install()
    await online.client.image(NEW)
    order.append("answered")
    assert "answered" in order
    async with asyncio.timeout(5):
        while "reset" not in order:
            await asyncio.sleep(0)


async def test_rule_4_a_cut_upload_goes_on(online: Online) -> None:
    await online.install()
    online.cut_at = 16 * 1024
    with pytest.raises(DeviceError) as caught:
        await online.client.image(NEW)
    assert caught.value.reason == "ConnectionLost"
    offset = (await online.client.info()).next_offset
    assert offset is not None
    assert 0 < offset < len(NEW)
    await online.client.image(NEW, offset)
    await asyncio.wait_for(online.rebooted.wait(), 5)
    assert online.bench.reset().boot.version == "2.0"
    erased = online.bench.flash.bytes_erased
    assert erased < 2 * 0x10000, "no sector of the slot was erased twice"


class Visitor:
    """One bare connection to a device."""

    def __init__(self, source: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        self._source, self._out = source, out

    @classmethod
    async def enter(cls, online: Online) -> Visitor:
        return cls(*await asyncio.open_connection(online.server.host, online.server.port))

    async def ask(self) -> None:
        self._out.write(b"GET /fj/1/info HTTP/1.1\r\nHost: porch\r\n\r\n")
        head = await self._source.readuntil(b"\r\n\r\n")
        (length,) = [line[15:] for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
        await self._source.readexactly(int(length))

    async def shown_out(self) -> None:
        async with asyncio.timeout(5):
            assert await self._source.read() == b""
        self._out.close()

    def leave(self) -> None:
        self._out.close()


async def test_rule_2_kept_connections_end_with_the_boot(online: Online) -> None:
    asked, silent = await Visitor.enter(online), await Visitor.enter(online)
    await asked.ask()
    await online.server.stop()
    await asked.shown_out()
    await silent.shown_out()


async def test_rule_5_a_connection_is_kept_until_it_is_idle_too_long(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "IDLE_SECONDS", 0.05)
    await online.reset()
    visitor = await Visitor.enter(online)
    for _ in range(3):
        await visitor.ask()
    await visitor.shown_out()


async def test_rule_5_the_eighth_takes_the_place_of_the_longest_idle(online: Online) -> None:
    visitors = [await Visitor.enter(online) for _ in range(network.SOCKETS)]
    for visitor in (*visitors[1:], visitors[0]):
        await visitor.ask()
    eighth = await Visitor.enter(online)
    await visitors[1].shown_out()
    for visitor in (*visitors[2:], visitors[0], eighth):
        await visitor.ask()
        visitor.leave()


async def test_rule_5_there_is_no_room_beside_seven_that_are_busy(online: Online) -> None:
    heard = 0

    def late(size: int) -> float:
        nonlocal heard
        heard += 1
        return 3600.0

    online.server._late = late
    visitors = [await Visitor.enter(online) for _ in range(network.SOCKETS)]
    asking = [asyncio.create_task(visitor.ask()) for visitor in visitors]
    async with asyncio.timeout(5):
        while heard < len(visitors):
            await asyncio.sleep(0.005)
    await (await Visitor.enter(online)).shown_out()
    await online.server.stop()
    assert all(isinstance(one, EOFError) for one in await asyncio.gather(*asking, return_exceptions=True))


async def test_over_tls_one_handshake_serves_a_boot(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    handshakes = 0
    made = network._Sockets.connection_made

    def counted(*arguments: Any) -> None:
        nonlocal handshakes
        handshakes += 1
        made(*arguments)

    monkeypatch.setattr(network._Sockets, "connection_made", counted)
    online.server = DeviceServer(online.rebooted.set, tls=True)
    await online.up()
    client = online.client = HttpDevice(online.server.host, online.server.port, tls=True)
    await client.info()
    await client.attest(NONCE)
    await client.nonce(Verb.INSTALL)
    assert handshakes == 1, "the connection that was attested goes on"
    await online.server.stop()
    online.bench.reset()
    await online.server.start(online.bench.application, port=client.port)
    with pytest.raises(DeviceError, match="it has restarted"):
        await client.info()
    await client.rebooted()
    assert (await client.info()).version == "1.0"


async def test_a_lost_confirm_hangs_up(online: Online) -> None:
    bench = online.bench
    bench.behaviour = LosesConfirm()
    bench.install(NEW)
    await online.reset()
    confirm = grants.mint(bench.running_grant(ConfirmGrant), GRANT_KEY)
    with pytest.raises(DeviceError) as caught:
        await online.client.grant(confirm)
    assert caught.value.reason == "ConnectionLost"
    assert bench.info().slot_state == 1


async def test_an_impatient_second_attestation_is_answered_a_second_later(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    await online.client.attest(NONCE)
    asked = 0
    honest = online.bench.application.handle

    def counted(*request: Any) -> Any:
        nonlocal asked
        asked += 1
        online.bench.now += 0.6
        return honest(*request)

    monkeypatch.setattr(online.bench.application, "handle", counted)
    assert parse_evidence(await online.client.attest(NONCE))
    assert asked == 2


async def test_a_device_that_sends_too_much_is_cut_off() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100000))
        writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    client = HttpDevice("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        with pytest.raises(DeviceError) as caught:
            await client.info()
        assert caught.value.reason == "BadReply"
    finally:
        await client.close()
        server.close()


async def test_redirects_are_refused() -> None:
    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    client = HttpDevice("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        with pytest.raises(DeviceError) as caught:
            await client.info()
        assert (caught.value.reason, caught.value.code) == ("BadReply", None)
    finally:
        await client.close()
        server.close()
