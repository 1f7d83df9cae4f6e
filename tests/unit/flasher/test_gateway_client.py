# SPDX-License-Identifier: Apache-2.0
"""The gateway's client: the rules of gateway_client.py against a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from flashjob.errors import FlashJobError
from flashjob.flasher.gateway_client import GatewayClient
from flashjob.wire.gateway import NonceReply, NonceRequest, Progress, Purpose, Stage
from flashjob.wire.refusal import Refused

NONCE = NonceReply(nonce=b"n" * 32, ttl_seconds=60)
REQUEST = NonceRequest(attempt=1, purpose=Purpose.BEFORE)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers with whatever the test puts in."""

    def __init__(self) -> None:
        self.seen: list[web.Request] = []
        self.answers: list[Callable[[], web.StreamResponse]] = []
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.seen.append(request)
        return self.answers.pop(0)() if self.answers else good()


def good() -> web.Response:
    return web.json_response(text=NONCE.model_dump_json(by_alias=True))


def status(code: int, **body: object) -> Callable[[], web.StreamResponse]:
    return lambda: web.json_response(body, status=code)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", server.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def client(server: Server, tmp_path: Path) -> AsyncIterator[GatewayClient]:
    (tmp_path / "token").write_text("first\n")
    async with GatewayClient(server.url, tmp_path / "token", patience=1.0) as client:
        yield client


async def test_asks_with_the_tasks_name_and_the_token(client: GatewayClient, server: Server) -> None:
    assert await client.judge("a task/1").nonce(REQUEST) == NONCE
    assert server.seen[0].raw_path == "/v1/tasks/a%20task%2F1/nonce"
    assert server.seen[0].headers["Authorization"] == "Bearer first"


async def test_rule_1_a_refusal_is_final(client: GatewayClient, server: Server) -> None:
    server.answers = [status(403, reason="Paused", message="not now", nextStep="wait", retryable=True)]
    with pytest.raises(Refused) as refused:
        await client.judge("t").nonce(REQUEST)
    assert (refused.value.reason, refused.value.problem.retryable, len(server.seen)) == ("Paused", True, 1)


async def test_rule_2_trouble_is_asked_again(client: GatewayClient, server: Server) -> None:
    server.answers = [status(503), status(500)]
    assert await client.judge("t").nonce(REQUEST) == NONCE
    assert len(server.seen) == 3


async def test_rule_2_patience_ends(client: GatewayClient, server: Server) -> None:
    server.answers = [status(503)] * 50
    with pytest.raises(FlashJobError) as refused:
        await client.judge("t").nonce(REQUEST)
    assert refused.value.reason == "GatewayUnavailable"
    assert 3 <= len(server.seen) <= 8


async def test_rule_2_nobody_listens(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    async with GatewayClient("http://127.0.0.1:1", tmp_path / "token", patience=0.3) as client:
        with pytest.raises(FlashJobError) as refused:
            await client.judge("t").nonce(REQUEST)
    assert refused.value.reason == "GatewayUnavailable"


async def test_rule_3_the_token_is_read_for_each_request(client: GatewayClient, server: Server, tmp_path: Path) -> None:
    await client.judge("t").nonce(REQUEST)
    (tmp_path / "token").write_text("renewed")
    await client.judge("t").nonce(REQUEST)
    assert [request.headers["Authorization"] for request in server.seen] == ["Bearer first", "Bearer renewed"]


async def test_rule_4_progress_never_fails_and_goes_to_every_address(
    client: GatewayClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.url.rpartition(":")[2])

    async def addresses(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("127.0.0.1", port)), (2, 1, 6, "", ("127.0.0.2", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    server.answers = [status(500)]
    await client.judge("t").progress(Progress(attempt=1, stage=Stage.WRITING, done=1, total=2))
    assert len(server.seen) == 1  # the one that listens, once; the other is nobody's failure


@pytest.mark.parametrize("url", ["http://gateway.example:8443", "ftp://127.0.0.1", "gateway"])
def test_rule_5_urls_that_would_leak_or_mean_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(FlashJobError) as refused:
        GatewayClient(url, tmp_path / "token")
    assert refused.value.reason == "GatewayUnavailable"


async def test_rule_6_redirects_are_not_followed(client: GatewayClient, server: Server) -> None:
    server.answers = [lambda: web.Response(status=307, headers={"Location": "/elsewhere"})]
    with pytest.raises(FlashJobError):
        await client.judge("t").nonce(REQUEST)
    assert [request.path for request in server.seen] == ["/v1/tasks/t/nonce"]


@pytest.mark.parametrize(
    "answer", [status(200, nonce="short", ttlSeconds=1), status(404), lambda: web.Response(text="<html>")]
)
async def test_answers_of_something_else(
    client: GatewayClient, server: Server, answer: Callable[[], web.Response]
) -> None:
    server.answers = [answer]
    with pytest.raises(FlashJobError) as refused:
        await client.judge("t").nonce(REQUEST)
    assert refused.value.reason == "GatewayUnavailable"


async def test_endless_answers_are_cut(client: GatewayClient, server: Server) -> None:
    server.answers = [lambda: web.Response(body=b"x" * 1_000_000)] * 20
    with pytest.raises(FlashJobError) as refused:
        await client.judge("t").nonce(REQUEST)
    assert "exceeds" in refused.value.message
