# SPDX-License-Identifier: Apache-2.0
"""Per cent of running attempts, asked from the gateway as ServiceAccount flashjob-viewer. Comfort, never a verdict.

Rules (tests name them):

1. URL and CA come from the ConfigMaps flashjob-gateway and flashjob-gateway-ca of the job's namespace; a URL given by
   hand comes first. Without a CA there, the system's CAs count.
2. The token is of the viewer's ServiceAccount in that namespace, for the gateway's audience only; it is asked anew
   before it ends, and after a refusal.
3. Plain HTTP would hand the token to anyone: it is refused but for the loopback. No redirect is followed, no proxy used.
4. Trouble is told once, in one line, and asked again at a slower pace; what was known is forgotten, so that nobody takes
   an old per cent for a new one.
"""

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from pydantic import ValidationError

from flashjob.cluster.kubeapi import ApiError, KubeApi, Token
from flashjob.cluster.resources import CONFIG_MAPS
from flashjob.errors import FlashJobError
from flashjob.wire.gateway import ProgressList, TaskProgress
from flashjob.wire.pod import TOKEN_AUDIENCE, VIEWER_SERVICE_ACCOUNT
from flashjob.wire.reasons import Reason

_REQUEST_SECONDS: Final = 3.0
_REPLY_BYTES: Final = 8 * 1024 * 1024
_RENEW_SECONDS: Final = 60


@dataclass(slots=True)
class Percent:
    """The gateway's live progress of one job; `run` keeps `found` fresh.

    Args:
        api: where URL, CA and token come from.
        namespace, job: whose progress.
        on_change: called after each answer and each loss.
        on_trouble: told once, in one line.
        url: of the gateway; "" is the one in the ConfigMap.
        clock: seconds since the epoch.
        every, after_trouble: seconds between two questions.
    """

    api: KubeApi
    namespace: str
    job: str
    on_change: Callable[[], None]
    on_trouble: Callable[[str], None]
    url: str = ""
    clock: Callable[[], float] = time.time
    every: float = 1.0
    after_trouble: float = 5.0
    found: Mapping[str, TaskProgress] = field(default_factory=dict)
    _token: Token | None = None
    _told: bool = False

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            try:
                async with await self._session() as session:
                    while True:
                        items = (await self._ask(session)).items
                        self._keep({item.task: item for item in items})
                        await asyncio.sleep(self.every)
            except FlashJobError as error:
                self._trouble(error)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._trouble(FlashJobError(Reason.GATEWAY_UNAVAILABLE, f"{type(error).__name__}: {error}"))
            self._token = None
            await asyncio.sleep(self.after_trouble)

    async def _session(self) -> aiohttp.ClientSession:
        """Rules 1 and 3."""
        base = self.url or await self._config("flashjob-gateway", "url")
        if not base:
            raise FlashJobError(
                Reason.GATEWAY_UNAVAILABLE, f"ConfigMap {self.namespace}/flashjob-gateway names no url", "--gateway URL"
            )
        parts = urlsplit(base)
        if not parts.hostname:
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, f"{base} names no host", "--gateway https://HOST:PORT")
        if parts.scheme != "https" and not (parts.scheme == "http" and _loopback(parts.hostname)):
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, f"{base} is not https; the token stays here", "use https")
        authority = await self._config("flashjob-gateway-ca", "ca.crt")
        try:
            tls = ssl.create_default_context(cadata=authority or None)
        except ssl.SSLError as error:
            raise FlashJobError(
                Reason.GATEWAY_UNAVAILABLE, f"ca.crt in ConfigMap {self.namespace}/flashjob-gateway-ca: {error}"
            ) from error
        return aiohttp.ClientSession(
            base.rstrip("/") + "/",
            connector=aiohttp.TCPConnector(ssl=tls),
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
            trust_env=False,
        )

    async def _config(self, name: str, key: str) -> str:
        try:
            found = await self.api.get(CONFIG_MAPS, self.namespace, name)
        except ApiError as error:
            if error.not_found:
                return ""
            raise
        return str((found.get("data") or {}).get(key, ""))

    async def _ask(self, session: aiohttp.ClientSession) -> ProgressList:
        headers = {"Authorization": f"Bearer {await self._bearer()}"}
        query = {"job": self.job}
        async with session.get("v1/progress", params=query, headers=headers, allow_redirects=False) as reply:
            body = bytearray()
            async for chunk in reply.content.iter_chunked(64 * 1024):
                body += chunk
                if len(body) > _REPLY_BYTES:
                    raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "its answer is too long")
            if reply.status != 200:
                raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, f"it answers {reply.status}")
        try:
            return ProgressList.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, f"its answer is none: {first}") from error

    async def _bearer(self) -> str:
        """Rule 2."""
        if (
            self._token is None
            or datetime.fromisoformat(self._token.expires).timestamp() < self.clock() + _RENEW_SECONDS
        ):
            self._token = await self.api.token_request(
                self.namespace, VIEWER_SERVICE_ACCOUNT, audiences=[TOKEN_AUDIENCE]
            )
        return self._token.token

    def _keep(self, found: Mapping[str, TaskProgress]) -> None:
        self.found = found
        self.on_change()

    def _trouble(self, error: FlashJobError) -> None:
        """Rule 4."""
        if not self._told:
            self._told = True
            self.on_trouble(f"no per cent, phases only: {error.message}")
        self._keep({})


def _loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"
