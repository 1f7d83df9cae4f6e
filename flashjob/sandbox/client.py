# SPDX-License-Identifier: Apache-2.0
"""A thin client of the API server for the two stand-ins (node agent, Akri agent): requests, patches, list and watch.

It acts with the kubeconfig it is given and with nothing else: no in-cluster credentials, no KUBECONFIG, no proxies.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import aiohttp
import yaml

from flashjob.errors import FlashJobError

Json = dict[str, Any]
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
_REQUEST_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=90)
_WATCH_SECONDS: Final = 300
_PAGE: Final = 200
_BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


class ApiError(FlashJobError):
    """The API server refused a request.

    Args:
        status: the HTTP status.
        reason: the Status object's reason (`NotFound`, `AlreadyExists`, `Conflict`, ...).
        message: method, path and the API server's own message.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(reason, message, "see the API server's message")
        self.status = status


@dataclass(frozen=True, slots=True)
class Listed:
    """The complete present state of a collection: what is not in it does not exist."""

    items: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """One object was added or modified, or is gone (`deleted`, its last state)."""

    item: Json
    deleted: bool = False


class _Relist(Exception):
    """The watch cannot go on from its resource version."""


class ApiClient:
    """One connection pool with one identity. Use as an async context manager."""

    def __init__(self, url: str, context: ssl.SSLContext, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path) -> ApiClient:
        """The client of a kubeconfig's current context (inline CA; token or inline client certificate)."""
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as pair:
                for part in ("client-certificate-data", "client-key-data"):
                    pair.write(base64.b64decode(user[part]))
                pair.flush()
                tls.load_cert_chain(pair.name)
        return cls(cluster["server"], tls, user.get("token"))

    async def __aenter__(self) -> ApiClient:
        self._session = aiohttp.ClientSession(
            headers=self._headers, connector=aiohttp.TCPConnector(ssl=self._context, limit=32), trust_env=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise FlashJobError("ClientNotOpen", "the API client is used outside `async with`", "open it first")
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Json:
        """One request; returns the decoded object.

        Raises:
            ApiError: any answer but 2xx.
            aiohttp.ClientError, TimeoutError: no answer.
        """
        data = None if body is None else json.dumps(body)
        async with self._opened().request(
            method,
            self._url + path,
            data=data,
            params=params,
            headers={"Content-Type": content_type} if data is not None else {},
            timeout=_REQUEST_TIMEOUT,
        ) as response:
            text = await response.text()
            if response.status >= 300:
                raise _error(response.status, f"{method} {path}", text)
            answer: Json = json.loads(text) if text else {}
            return answer

    async def apply(self, path: str, body: Json, *, manager: str, force: bool = False) -> Json:
        """Server-side apply under a field manager."""
        params = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self.request("PATCH", path, body, content_type=APPLY_PATCH, params=params)

    async def follow(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]:
        """List, then watch, for ever: a `Listed` first and after every gap, a `Changed` for each event.

        Network errors and refusals are retried with a growing pause; the consumer sees only the next `Listed`.
        """
        failures = 0
        while True:
            try:
                items, version = await self._list(path, params or {})
                yield Listed(items)
                failures = 0
                async for change in self._watch(path, params or {}, version):
                    yield change
            except _Relist:
                continue
            except (ApiError, aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
                await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
                failures += 1

    async def _list(self, path: str, params: Mapping[str, str]) -> tuple[tuple[Json, ...], str]:
        items: list[Json] = []
        page = {**params, "limit": str(_PAGE)}
        while True:
            answer = await self.request("GET", path, params=page)
            items += answer.get("items") or []
            token = answer["metadata"].get("continue")
            if not token:
                return tuple(items), answer["metadata"]["resourceVersion"]
            page["continue"] = token

    async def _watch(self, path: str, params: Mapping[str, str], version: str) -> AsyncIterator[Changed]:
        while True:
            query = {
                **params,
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(_WATCH_SECONDS),
            }
            async with self._opened().get(self._url + path, params=query, timeout=_WATCH_TIMEOUT) as response:
                if response.status == 410:
                    raise _Relist
                if response.status >= 300:
                    raise _error(response.status, f"WATCH {path}", await response.text())
                buffer = b""
                async for chunk in response.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        item = event["object"]
                        if event["type"] == "ERROR":
                            raise _Relist
                        version = item["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield Changed(item, event["type"] == "DELETED")


def _named(entries: list[Json], name: str) -> Json:
    return next(entry for entry in entries if entry["name"] == name)


def _error(status: int, what: str, text: str) -> ApiError:
    try:
        answer = json.loads(text)
        reason, message = str(answer.get("reason") or status), str(answer.get("message") or text)
    except (json.JSONDecodeError, AttributeError):
        reason, message = str(status), text
    return ApiError(status, reason, f"{what}: {status} {message[:1000]}")
