# SPDX-License-Identifier: Apache-2.0
"""The thin API client against a server that misbehaves: gaps in a watch, expired versions, refusals, split lines."""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flashjob.sandbox.client import ApiClient, ApiError, Listed
from flashjob.sandbox.kubeconfig import write_kubeconfig
from flashjob.sandbox.pki import Authority

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listing(version: str, *names: str, more: str = "") -> web.Response:
    meta = {"resourceVersion": version, **({"continue": more} if more else {})}
    return web.json_response({"metadata": meta, "items": [{"metadata": {"name": name}} for name in names]})


def event(kind: str, name: str, version: str) -> bytes:
    return (
        json.dumps({"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}}).encode() + b"\n"
    )


async def stream(request: web.Request, *parts: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    return response


class Server:
    """Answers requests from a script, one entry each, and remembers their queries."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.queries: list[dict[str, str]] = []
        self.agents: list[Any] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        self.agents.append((request.headers.get("Authorization"), request.get_extra_info("peercert")))
        if not self.script:
            raise web.HTTPServiceUnavailable
        return await self.script.pop(0)(request)

    def then(self, answer: web.Response | None = None, *parts: bytes) -> Server:
        async def reply(request: web.Request) -> web.StreamResponse:
            return answer if answer is not None else await stream(request, *parts)

        self.script.append(reply)
        return self


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", datetime.datetime.now(datetime.UTC))


@pytest.fixture
async def served(authority: Authority) -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    certificate, key = authority.issue("server", "server", hosts=["127.0.0.1"], server=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate_file))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_cert_chain(certificate, key)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield server, f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def client(served: tuple[Server, str], authority: Authority, tmp_path: Path) -> AsyncIterator[ApiClient]:
    path = write_kubeconfig(tmp_path / "config", url=served[1], ca=authority.certificate_file, token="tok")
    assert path.stat().st_mode & 0o777 == 0o600
    async with ApiClient.from_kubeconfig(path) as opened:
        yield opened


async def collect(client: ApiClient, count: int) -> list[Any]:
    seen: list[Any] = []
    async for happened in client.follow("/things"):
        if isinstance(happened, Listed):
            seen.append([item["metadata"]["name"] for item in happened.items])
        else:
            seen.append((happened.item["metadata"]["name"], happened.deleted))
        if len(seen) == count:
            break
    return seen


async def test_pages_events_and_bookmarks(served: tuple[Server, str], client: ApiClient) -> None:
    server, _url = served
    server.then(listing("9", "a", more="next")).then(listing("10", "b"))
    added, gone = event("ADDED", "c", "12"), event("DELETED", "a", "13")
    server.then(None, event("BOOKMARK", "", "11") + added[:10], added[10:] + gone[:-1], gone[-1:])
    server.then(None, event("MODIFIED", "c", "14"))
    assert await collect(client, 4) == [["a", "b"], ("c", False), ("a", True), ("c", False)]
    assert server.queries[1]["continue"] == "next"
    assert server.queries[2]["resourceVersion"] == "10"
    assert server.queries[3]["resourceVersion"] == "13"  # goes on where the stream ended
    assert server.agents[0][0] == "Bearer tok"


@pytest.mark.parametrize("as_event", [True, False])
async def test_an_expired_version_means_list_again(
    served: tuple[Server, str], client: ApiClient, as_event: bool
) -> None:
    server, _url = served
    server.then(listing("1", "a"))
    if as_event:
        server.then(None, json.dumps({"type": "ERROR", "object": {"code": 410}}).encode() + b"\n")
    else:
        server.then(web.json_response({"code": 410}, status=410))
    server.then(listing("5", "b"))
    assert await collect(client, 2) == [["a"], ["b"]]


@pytest.mark.parametrize("status", [500, 403, 429])
async def test_refusals_are_survived(served: tuple[Server, str], client: ApiClient, status: int) -> None:
    server, _url = served
    server.then(web.json_response({}, status=status)).then(listing("1", "a"))
    server.then(web.json_response({}, status=status)).then(listing("2", "b"))
    assert await collect(client, 2) == [["a"], ["b"]]


async def test_a_broken_stream_is_survived(served: tuple[Server, str], client: ApiClient) -> None:
    server, _url = served
    server.then(listing("1", "a")).then(None, b"this is no JSON\n").then(listing("2", "b"))
    assert await collect(client, 2) == [["a"], ["b"]]


async def test_errors_carry_the_servers_words(served: tuple[Server, str], client: ApiClient) -> None:
    server, _url = served
    server.then(web.json_response({"reason": "AlreadyExists", "message": "there is one"}, status=409))
    with pytest.raises(ApiError) as caught:
        await client.request("POST", "/things", {})
    assert (caught.value.status, caught.value.reason) == (409, "AlreadyExists")
    assert "there is one" in caught.value.message
    server.then(web.Response(status=502, text="<html>"))
    with pytest.raises(ApiError) as caught:
        await client.request("GET", "/things")
    assert (caught.value.status, caught.value.reason) == (502, "502")


async def test_client_certificates(served: tuple[Server, str], authority: Authority, tmp_path: Path) -> None:
    server, url = served
    pair = authority.issue("user", "system:user", organizations=["group"])
    path = write_kubeconfig(tmp_path / "config", url=url, ca=authority.certificate_file, client_certificate=pair)
    async with ApiClient.from_kubeconfig(path) as opened:
        server.then(web.json_response({}))
        await opened.request("GET", "/")
    authorization, certificate = server.agents[0]
    assert authorization is None
    subject = {key: value for part in certificate["subject"] for key, value in part}
    assert subject == {"organizationName": "group", "commonName": "system:user"}


def test_an_authority_is_used_again(authority: Authority, tmp_path: Path) -> None:
    again = Authority(tmp_path / "pki", datetime.datetime.now(datetime.UTC))
    assert again.certificate_file.read_bytes() == authority.certificate_file.read_bytes()
    assert again.service_account_keys() == authority.service_account_keys()
    assert (tmp_path / "pki").stat().st_mode & 0o777 == 0o700
