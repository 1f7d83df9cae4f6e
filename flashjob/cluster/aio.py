# SPDX-License-Identifier: Apache-2.0
"""The KubeApi of a real API server: kubernetes.aio for credentials, TLS and transport, raw JSON for everything else.

Credentials are asked for explicitly on every request and every status is checked, because the client underneath does
neither by itself. Watches have no total timeout; a connection that is silent for longer than bookmarks are apart is
given up.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from .kubeapi import PAGE, WATCH_SECONDS, ApiError, Page, Token, WatchEvent
from .resources import SERVICE_ACCOUNTS, Obj, Resource

_REQUEST_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=90)
_MERGE_PATCH: Final = "application/merge-patch+json"
_APPLY_PATCH: Final = "application/apply-patch+yaml"


class AioKubeApi:
    """One connection pool with one identity. Make it with `login.connect`; close it, or use it as a context manager."""

    def __init__(self, configuration: Configuration, *, user_agent: str = "flashjob") -> None:
        self.configuration = configuration
        self._client = ApiClient(configuration)
        self._client.user_agent = user_agent

    async def __aenter__(self) -> "AioKubeApi":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See KubeApi."""
        await self._client.close()

    async def list_pages(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = PAGE,
    ) -> AsyncGenerator[Page, None]:
        """See KubeApi."""
        query: dict[str, Any] = {**_selectors(label_selector, field_selector), "limit": limit}
        while True:
            found = await self._call("GET", resource.path(namespace), query)
            yield Page(found.get("items") or [], found["metadata"]["resourceVersion"])
            token = found["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = WATCH_SECONDS,
    ) -> AsyncGenerator[WatchEvent, None]:
        """See KubeApi."""
        path = resource.path(namespace)
        query = {
            **_selectors(label_selector, field_selector),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_seconds,
        }
        response = await self._send("GET", path, query, None, "", _WATCH_TIMEOUT)
        try:
            await _check("watch", path, response)
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _refused("watch", path, event["object"].get("code", 500), event["object"])
                yield WatchEvent(event["type"], event["object"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable("watch", path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(502, "NotJSON", f"watch {path}: the stream holds what is no event: {error!r}") from error
        finally:
            response.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj:
        """See KubeApi."""
        return await self._call("GET", resource.path(namespace, name))

    async def create(self, resource: Resource, namespace: str, obj: Obj) -> Obj:
        """See KubeApi."""
        return await self._call("POST", resource.path(namespace), body=_typed(resource, obj))

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        obj: Obj,
        *,
        field_manager: str,
        force: bool = False,
        subresource: str = "",
    ) -> Obj:
        """See KubeApi."""
        path = resource.path(namespace, obj["metadata"]["name"], subresource)
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._call("PATCH", path, query, _typed(resource, obj), _APPLY_PATCH)

    async def replace(self, resource: Resource, namespace: str, obj: Obj, *, subresource: str = "") -> Obj:
        """See KubeApi."""
        path = resource.path(namespace, obj["metadata"]["name"], subresource)
        return await self._call("PUT", path, body=_typed(resource, obj))

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Obj, *, field_manager: str) -> Obj:
        """See KubeApi."""
        query = {"fieldManager": field_manager}
        return await self._call("PATCH", resource.path(namespace, name), query, patch, _MERGE_PATCH)

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Obj,
        *,
        field_manager: str,
        resource_version: str = "",
    ) -> Obj:
        """See KubeApi."""
        patch: Obj = {"status": status}
        if resource_version:
            patch["metadata"] = {"resourceVersion": resource_version}
        query = {"fieldManager": field_manager}
        return await self._call("PATCH", resource.path(namespace, name, "status"), query, patch, _MERGE_PATCH)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """See KubeApi."""
        options: Obj = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        conditions = {"uid": uid, "resourceVersion": resource_version}
        options["preconditions"] = {key: value for key, value in conditions.items() if value}
        await self._call("DELETE", resource.path(namespace, name), body=options)

    async def token_request(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str],
        seconds: int = 600,
        pod: tuple[str, str] | None = None,
    ) -> Token:
        """See KubeApi."""
        spec: Obj = {"audiences": list(audiences), "expirationSeconds": seconds}
        if pod is not None:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod[0], "uid": pod[1]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = await self._call("POST", SERVICE_ACCOUNTS.path(namespace, service_account, "token"), body=body)
        return Token(made["status"]["token"], made["status"]["expirationTimestamp"])

    async def get_raw(self, path: str) -> Any:
        """See KubeApi."""
        return await self._call("GET", path)

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Obj | None = None,
        content_type: str = "application/json",
    ) -> Obj:
        response = await self._send(method, path, query, body, content_type, _REQUEST_TIMEOUT)
        try:
            await _check(method, path, response)
            answer: Obj = json.loads(await response.read())
            return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(method, path, error) from error
        except ValueError as error:
            raise ApiError(502, "NotJSON", f"{method} {path}: the answer is not JSON: {error}") from error
        finally:
            response.release()

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: Obj | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        try:
            _, url, headers, _, _ = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={
                    "Accept": "application/json, application/jwk-set+json",
                    **({"Content-Type": content_type} if body else {}),
                },
                auth_settings=["BearerToken"],
            )
            sent = await self._client.call_api(method, url, headers, body, _request_timeout=timeout)
            response: aiohttp.ClientResponse = sent.response
            return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(method, path, error) from error


def _selectors(labels: str, fields: str) -> dict[str, str]:
    found = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in found.items() if value}


def _typed(resource: Resource, obj: Obj) -> Obj:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **obj}


async def _check(what: str, path: str, response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text(errors="replace")
    try:
        status = json.loads(text)
    except ValueError:
        status = {"message": text[:500]}
    raise _refused(what, path, response.status, status, response.headers.get("Retry-After"))


def _refused(what: str, path: str, code: int, status: Any, retry_after: str | None = None) -> ApiError:
    status = status if isinstance(status, dict) else {"message": str(status)}
    reason = status.get("reason") or {401: "Unauthorized", 410: "Expired"}.get(code, f"Http{code}")
    wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ApiError(code, reason, f"{what} {path}: {status.get('message') or 'no message'}", wait)


def _unreachable(what: str, path: str, error: BaseException) -> ApiError:
    kind = "timeout" if isinstance(error, asyncio.TimeoutError) else type(error).__name__
    return ApiError(0, "Unreachable", f"{what} {path}: no answer from the API server ({kind}): {error}")
