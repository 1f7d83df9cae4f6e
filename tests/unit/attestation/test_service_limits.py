# SPDX-License-Identifier: Apache-2.0
"""What the service does when too much is asked, or too slowly; and several replicas. Rules of limits.py, used.py,
keyring.py, server.py."""

import asyncio
import contextlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestation import ear, keys
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.replay import InMemorySingleUse
from attestation.service.app import EVIDENCE_TYPE
from attestation.service.keyring import KeyFiles
from attestation.service.limits import Lane, Rates
from attestation.service.problems import Problem, Refused
from attestation.service.used import DirectorySingleUse
from tests.unit.attestation.serving import AUDIENCE, QUIET, Device, Files, Running, running
from tests.unit.attestation.world import NOW, Minted, rejects

DEVICE = Device()
DEAR = Device(Minted(seed=b"device three", alg=Alg.ES384))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, [DEVICE, DEAR])


class Held(InMemorySingleUse):
    """Used nonces that answer when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.reached = threading.Event(), threading.Semaphore(0)

    def consume(self, nonce: bytes, *, until: int, now: int) -> None:
        self.reached.release()
        assert self.go.wait(20)
        super().consume(nonce, until=until, now=now)


async def ask(service: Running, device: Device = DEVICE) -> "asyncio.Task[str]":
    """A verdict that is under way."""
    nonce = await service.nonce(device.ueid)

    async def code() -> str:
        reply = await service.verify(device.answer(nonce), device.ueid, nonce)
        if reply.status != 200:
            return f"{reply.status} {reply.code} {reply.headers.get('Retry-After')}"
        return ear.check(reply.body, await service.keys(), nonce=bytes.fromhex(nonce), now=int(time.time())).reason

    return asyncio.create_task(code())


async def test_1_2_a_full_lane_refuses_at_once_and_the_other_goes_on(files: Files) -> None:
    held, limits = Held(), replace(QUIET, workers=1, dear_workers=1, queue=1)
    async with running(files, single_use=held, limits=limits) as service:
        try:
            assert len(await service.nonce(DEAR.ueid)) == 64  # the device is known from now on
            under_way = [await ask(service, DEAR) for _ in range(2)]
            await asyncio.to_thread(held.reached.acquire)
            refused = await (await ask(service, DEAR))
            assert refused == "503 limit.busy 1"
            common = await ask(service)
            await asyncio.to_thread(held.reached.acquire)  # it is being judged although the other lane is full
            assert (await service.get("/healthz")).status == 200
        finally:
            held.go.set()
        assert [await one for one in (*under_way, common)] == ["accepted"] * 3


async def test_1_a_lane_raises_what_its_call_raises_and_ends_what_waits() -> None:
    lane = Lane("test", workers=2, queue=100)
    with pytest.raises(ZeroDivisionError):
        await lane.run(lambda: 1 // 0)
    running = [asyncio.create_task(lane.run(lambda n=n: n)) for n in range(50)]  # type: ignore[misc]
    await asyncio.sleep(0)
    lane.close()
    assert await asyncio.gather(*running) == list(range(50))
    assert lane.load == 0


@given(st.integers(1, 50), st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_3_no_more_than_the_rate_and_one_burst_in_any_time(rate: int, pauses: list[float]) -> None:
    rates, now, granted, told = Rates(rate), 100.0, 0, set[int | None]()
    for pause in pauses:
        now += pause
        try:
            rates.take(b"device", now=now)
            granted += 1
        except Refused as refused:
            told.add(refused.retry_after if refused.problem is Problem.RATE else None)
            Rates(rate).take(b"device", now=now)
        assert told <= {1}
        assert granted <= 2 * rate + (now - 100.0) * rate + 1e-6


def test_3_waiting_as_long_as_told_helps_and_memory_is_bounded() -> None:
    rates = Rates(0.5, capacity=10)
    rates.take(b"device", now=0)
    with pytest.raises(Refused) as caught:
        rates.take(b"device", now=0)
    assert caught.value.retry_after is not None
    rates.take(b"device", now=caught.value.retry_after)
    for number in range(1000):
        rates.take(number.to_bytes(2, "big"), now=9)
    assert len(rates) == 10
    Rates(0).take(b"device", now=0)


async def test_3_one_device_does_not_use_up_what_others_have(files: Files) -> None:
    async with running(files, limits=replace(QUIET, rate=0.5)) as service:
        assert await (await ask(service)) == "accepted"
        assert (await (await ask(service))).startswith("429 limit.rate ")
        assert await (await ask(service, DEAR)) == "accepted"


HEAD = f"POST /v1/verify?ueid={DEVICE.ueid}&audience=a&nonce={'00' * 32} HTTP/1.1\r\nHost: x\r\n"
TYPED = f"{HEAD}Content-Type: {EVIDENCE_TYPE}\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ("", ""),
        ("POST /v1/ver", ""),
        (HEAD, ""),
        (f"{TYPED}Content-Length: 1000\r\n\r\nx", "HTTP/1.1 408"),
        (f"{TYPED}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "HTTP/1.1 408"),
        (f"{TYPED}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", "HTTP/1.0 400"),
        (f"{TYPED}Content-Length: -1\r\n\r\n", "HTTP/1.0 400"),
        (f"GET /healthz HTTP/1.1\r\nX: {'y' * 20_000}\r\n\r\n", "HTTP/1.0 400"),
        ("\x16\x03\x01\x02", "HTTP/1.0 400"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nPOST /v1/ver", "HTTP/1.1 200"),
    ],
    ids=["silent", "line", "head", "body", "chunk", "bad chunk", "length", "large head", "tls", "second"],
)
async def test_server_1_whoever_is_slow_is_cut_off(
    files: Files, sent: str, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(files, limits=replace(QUIET, idle_seconds=0.3, body_seconds=0.2)) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(sent.encode())
        said = await asyncio.wait_for(reader.read(), 10)  # to the end: the server closes
        assert said.decode().startswith(answer)
        assert answer or not said
        writer.close()
        assert (await service.get("/healthz")).status == 200
        assert caplog.records == [], "whoever sends nonsense fills the log"


async def test_server_1_one_connection_too_many_is_closed(files: Files) -> None:
    async with running(files, limits=replace(QUIET, connections=3)) as service:
        taken = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(3)]
        for reader, writer in taken:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        for _, other in (*taken, (reader, writer)):
            other.close()


async def test_two_replicas_that_share_a_directory_accept_a_nonce_once(files: Files, tmp_path: Path) -> None:
    shared = [DirectorySingleUse(tmp_path / "used") for _ in range(2)]
    shared[0].prepare()
    async with running(files, single_use=shared[0]) as one, running(files, single_use=shared[1]) as two:
        for _ in range(20):
            nonce = await one.nonce(DEVICE.ueid)
            data = DEVICE.answer(nonce)
            asked = [replica.result(data, DEVICE.ueid, nonce) for replica in (one, two, one, two)]
            reasons = [result.reason for result in await asyncio.gather(*asked)]
            assert sorted(reasons) == ["accepted", "replay", "replay", "replay"]
        nonce = await one.nonce(DEVICE.ueid)
        (tmp_path / "used").rename(tmp_path / "gone")
        reply = await two.verify(DEVICE.answer(nonce), DEVICE.ueid, nonce)
        assert (reply.status, reply.code) == (503, "store.unavailable")


async def test_two_replicas_without_one_may_both_accept_which_is_why_there_is_one(files: Files) -> None:
    async with running(files) as one, running(files) as two:
        nonce = await one.nonce(DEVICE.ueid)
        data = DEVICE.answer(nonce)
        assert [(await each.result(data, DEVICE.ueid, nonce)).reason for each in (one, two)] == ["accepted"] * 2


def test_used_1_of_many_threads_exactly_one_uses_a_nonce(tmp_path: Path) -> None:
    used = DirectorySingleUse(tmp_path)
    codes: list[str] = []
    together = threading.Barrier(8)

    def use() -> None:
        together.wait()
        try:
            used.consume(b"nonce", until=NOW + 100, now=NOW)
            codes.append("accepted")
        except Reject as reject:
            codes.append(reject.code)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["accepted"] + ["replay"] * 7


def test_used_2_a_directory_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    rejects("store.unavailable", lambda: DirectorySingleUse(tmp_path / "no").consume(b"n", until=NOW + 9, now=NOW))
    (tmp_path / "file").touch()
    rejects("store.unavailable", DirectorySingleUse(tmp_path / "file").prepare)


def test_used_3_only_what_expired_a_minute_ago_goes(tmp_path: Path) -> None:
    used = DirectorySingleUse(tmp_path)
    (tmp_path / "a person's note").touch()
    for now in range(NOW, NOW + 600, 10):
        used.consume(os.urandom(32), until=now + 120, now=now)
        assert len(list(tmp_path.iterdir())) <= 1 + 6
        mine = os.urandom(32)
        used.consume(mine, until=now - 1, now=now)
        with pytest.raises(Reject, match="used before"):  # for a clock that is 50 s behind it is still good
            used.consume(mine, until=now - 1, now=now - 50)
    assert (tmp_path / "a person's note").exists()


async def test_keyring_3_keys_rotate_while_it_runs(files: Files) -> None:
    async with running(files) as service:
        old = await service.nonce(DEVICE.ueid)
        before = await service.keys()
        files.write_nonce_key(2)
        new_key = files.write_ear_key()
        service.service.look()
        fresh = await service.nonce(DEVICE.ueid)
        assert (bytes.fromhex(old)[1], bytes.fromhex(fresh)[1]) == (1, 2)
        for nonce in (old, fresh):
            assert (await service.result(DEVICE.answer(nonce), DEVICE.ueid, nonce)).reason == "accepted"
        assert set(await service.keys()) == {keys.key_id(new_key.public_key())}
        assert set(await service.keys()) != set(before)
        old = await service.nonce(DEVICE.ueid)
        (files.nonce_keys / "2").unlink()
        service.service.look()
        assert (await service.result(DEVICE.answer(old), DEVICE.ueid, old)).reason == "nonce.key"


@pytest.mark.parametrize("spoil", ["half an ear key", "no ear key", "no nonce key", "a short nonce key"])
async def test_keyring_3_keys_that_cannot_be_used_change_nothing_but_readiness(files: Files, spoil: str) -> None:
    async with running(files) as service:
        good = files.ear_key.read_bytes()
        match spoil:
            case "half an ear key":
                files.ear_key.write_bytes(good[:60])
            case "no ear key":
                files.ear_key.unlink()
            case "no nonce key":
                (files.nonce_keys / "1").unlink()
            case _:
                (files.nonce_keys / "2").write_bytes(b"short")
        service.service.look()
        ready = await service.get("/readyz")
        assert (ready.status, ready.body[:5]) == (503, b"keys:")
        assert await (await ask(service)) == "accepted"
        assert b"attestation_key_reload_failures_total 1.0" in (await service.get("/metrics")).body
        files.ear_key.write_bytes(good)
        files.write_nonce_key(2)
        service.service.look()
        assert (await service.get("/readyz")).status == 200


def test_keyring_1_2_what_is_published_and_what_is_no_key(files: Files, tmp_path: Path) -> None:
    following = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "next.pub").write_text(keys.to_pem(following.public_key()))
    said = KeyFiles(files.nonce_keys, files.ear_key, [tmp_path / "next.pub"]).read()
    assert keys.key_id(following.public_key()) in said.key_set
    assert keys.key_id(said.ear.public_key()) in said.key_set
    assert "ring" not in repr(said.ear)
    files.ear_key.write_bytes(keys.private_to_pem(ec.generate_private_key(ec.SECP384R1())))
    found = rejects("store.invalid", KeyFiles(files.nonce_keys, files.ear_key).read)
    assert str(files.ear_key) in found.message


async def test_server_3_what_is_in_progress_ends_before_the_service(files: Files) -> None:
    held = Held()
    async with running(files, single_use=held) as service:
        nonce, published = await service.nonce(DEVICE.ueid), await service.keys()
        under_way = asyncio.create_task(service.verify(DEVICE.answer(nonce), DEVICE.ueid, nonce))
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        body = json.dumps({"ueid": DEVICE.ueid, "audience": AUDIENCE})
        head = f"POST /v1/nonce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body[:20]).encode())
        await asyncio.to_thread(held.reached.acquire)
        while service.service.state.busy < 2:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(service.service.stop())
        while not service.service.state.draining:
            await asyncio.sleep(0)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(body[20:].encode())
        said = (await reader.read()).decode()  # to the end: the connection is closed after the answer
        assert said.startswith("HTTP/1.1 200")
        assert "connection: close" in said.lower()
        held.go.set()
        reply = await under_way
        await stopping
        assert reply.status == 200
        assert ear.check(reply.body, published, nonce=bytes.fromhex(nonce), now=int(time.time())).reason == "accepted"
