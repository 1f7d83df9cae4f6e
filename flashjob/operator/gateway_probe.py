# SPDX-License-Identifier: Apache-2.0
"""Whether the gateway can serve now: no write may start while it cannot."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import aiohttp

from flashjob.planning.messages import refuse
from flashjob.planning.state import Refusal
from flashjob.wire.reasons import Reason

PROBE_SECONDS: Final = 3.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)


class GatewayProbe:
    """Asks `/readyz` again and again. Until the first answer the gateway counts as unready.

    Args:
        url: of the gateway, https.
        ca_file: PEM of the CA that signs its certificate; None for the system's.
        on_change: called when the answer changes.
        seconds: between two questions.
    """

    def __init__(
        self, url: str, ca_file: Path | None, on_change: Callable[[], None], seconds: float = PROBE_SECONDS
    ) -> None:
        self._url, self._ca_file, self._on_change, self._seconds = url.rstrip("/"), ca_file, on_change, seconds
        self.trouble: Refusal | None = refuse(Reason.GATEWAY_UNREADY, f"{self._url} was not asked yet")

    async def run(self) -> None:
        """Probe until cancelled."""
        async with self._session() as session:
            while True:
                trouble = await self._ask(session)
                changed = (trouble is None) != (self.trouble is None)
                self.trouble = trouble
                if changed:
                    self._on_change()
                await asyncio.sleep(self._seconds)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)
        async with aiohttp.ClientSession(
            timeout=_TIMEOUT, connector=aiohttp.TCPConnector(ssl=context), trust_env=False
        ) as session:
            yield session

    async def _ask(self, session: aiohttp.ClientSession) -> Refusal | None:
        try:
            async with session.get(f"{self._url}/readyz") as reply:
                if reply.status == 200:
                    return None
                why = f"HTTP {reply.status}: {(await reply.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
        return refuse(Reason.GATEWAY_UNREADY, f"{self._url}/readyz: {why}")
