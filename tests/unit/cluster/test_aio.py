# SPDX-License-Identifier: Apache-2.0
"""The real client against a server that misbehaves: every trouble is one ApiError with the right status."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from flashjob.cluster.aio import AioKubeApi
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import CONFIG_MAPS, LEASES
from tests.clusters import until

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[AioKubeApi]:
    """A client of a server on loopback that answers everything with `handler`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    configuration = Configuration(host=f"http://{host}:{port}", api_key={"BearerToken": "Bearer secret"})
    configuration.client_session_kwargs = {"trust_env": False}
    async with AioKubeApi(configuration) as api:
        try:
            yield api
        finally:
            await runner.cleanup()


def line(kind: str, version: str = "5", name: str = "a", **fields: Any) -> bytes:
    obj = {"metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": version}, **fields}
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


async def stream(request: web.Request, *lines: bytes, cut: bool = False) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for part in lines:
        await response.write(part)
    if cut:
        assert request.transport is not None
        request.transport.abort()
    return response


async def watched(api: AioKubeApi, types: list[str] | None = None) -> list[str]:
    """The types of all events of one watch; also in `types`, for watches that fail."""
    types = [] if types is None else types
    async for event in api.watch(CONFIG_MAPS, "n", resource_version="4"):
        types.append(event.type)
    return types


async def test_every_request_carries_credentials_and_says_what_it_is() -> None:
    seen: list[tuple[str, str, str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append(
            (request.method, request.path_qs, headers.get("Content-Type", ""), headers.get("Authorization", ""))
        )
        return web.json_response({"metadata": {"name": "x", "resourceVersion": "1"}})

    async with serving(handler) as api:
        await api.get(LEASES, "n", "x")
        await api.apply(LEASES, "n", {"metadata": {"name": "x"}}, field_manager="me", force=True)
        await api.patch_status(LEASES, "n", "x", {"a": 1}, field_manager="me")
        await api.delete(LEASES, "n", "x")
    base = "/apis/coordination.k8s.io/v1/namespaces/n/leases/x"
    assert [(method, path) for method, path, _, _ in seen] == [
        ("GET", base),
        ("PATCH", f"{base}?fieldManager=me&force=true"),
        ("PATCH", f"{base}/status?fieldManager=me"),
        ("DELETE", base),
    ]
    assert [content for _, _, content, _ in seen][1:3] == [
        "application/apply-patch+yaml",
        "application/merge-patch+json",
    ]
    assert {credentials for _, _, _, credentials in seen} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("status", "body", "reason", "transient"),
    [
        (409, {"kind": "Status", "reason": "Conflict", "message": "modified"}, "Conflict", False),
        (429, {"kind": "Status", "reason": "TooManyRequests", "message": "slow down"}, "TooManyRequests", True),
        (500, "<html>proxy error</html>", "Http500", True),
        (401, "", "Unauthorized", False),
        (503, [1, 2], "Http503", True),
    ],
)
async def test_a_refusal_is_read_whatever_its_form(status: int, body: Any, reason: str, transient: bool) -> None:
    async def handler(_: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, headers={"Retry-After": "7"})

    async with serving(handler) as api:
        with pytest.raises(ApiError) as caught:
            await api.get(CONFIG_MAPS, "n", "a")
    error = caught.value
    assert (error.status, error.reason, error.transient, error.retry_after) == (status, reason, transient, 7.0)
    assert "/namespaces/n/configmaps/a" in error.message
    assert "secret" not in str(error)


async def test_success_that_is_not_json_is_no_success() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="<html>captive portal</html>")

    async with serving(handler) as api:
        with pytest.raises(ApiError) as caught:
            await api.get(CONFIG_MAPS, "n", "a")
    assert (caught.value.reason, caught.value.transient) == ("NotJSON", True)


async def test_an_error_in_a_stream_is_raised_after_what_came_before() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        status = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
        return await stream(request, line("ADDED"), json.dumps(status).encode() + b"\n")

    async with serving(handler) as api:
        types: list[str] = []
        with pytest.raises(ApiError) as caught:
            await watched(api, types)
    assert types == ["ADDED"]
    assert caught.value.gone


@pytest.mark.parametrize("rest", [b"", b'{"type": "ADD'])
async def test_a_stream_that_is_cut_is_unreachable(rest: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, line("ADDED"), rest or b" ", cut=True)

    async with serving(handler) as api:
        with pytest.raises(ApiError) as caught:
            await watched(api)
    assert caught.value.status in (0, 502)
    assert caught.value.transient


async def test_a_stream_that_ends_in_the_middle_of_an_event_is_trouble() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, line("ADDED"), b'{"type": "MODI')

    async with serving(handler) as api:
        with pytest.raises(ApiError) as caught:
            await watched(api)
    assert (caught.value.reason, caught.value.transient) == ("NotJSON", True)


async def test_a_large_event_passes() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, line("ADDED", data={"k": "x" * 1_500_000}))

    async with serving(handler) as api:
        assert await watched(api) == ["ADDED"]


async def test_a_reflector_survives_all_of_it() -> None:
    """A cut, an ERROR 410, a 500 and a broken line, one after another; then the truth."""
    watches = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal watches
        if request.query.get("watch") != "true":
            meta = {"name": "kept", "namespace": "n", "uid": "u", "resourceVersion": "9"}
            return web.json_response({"metadata": {"resourceVersion": "9"}, "items": [{"metadata": meta}]})
        watches += 1
        match watches:
            case 1:
                return await stream(request, line("ADDED", "10"), cut=True)
            case 2:
                error = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
                return await stream(request, json.dumps(error).encode() + b"\n")
            case 3:
                return web.Response(status=500, text="oops")
            case 4:
                return await stream(request, b"not json\n")
            case _:
                await asyncio.sleep(60)
                return web.Response()

    async with serving(handler) as api:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        reflector = Reflector(api, CONFIG_MAPS, "n", project=lambda obj: obj["metadata"]["uid"], sleep=sleep)
        running = asyncio.create_task(reflector.run())
        await until(lambda: watches == 5)
        assert dict(reflector.items()) == {("n", "kept"): "u"}
        assert reflector.lists == 4
        assert 3 <= len(waits) <= 4
        running.cancel()
