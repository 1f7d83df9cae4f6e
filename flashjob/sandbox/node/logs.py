# SPDX-License-Identifier: Apache-2.0
"""What `kubectl logs` asks a node for: one endpoint of the kubelet's own HTTP interface, for the API server only.

TLS on loopback; a client must show a certificate of the sandbox's CA issued to the API server. Pods that ended keep their
log until the sandbox's state is deleted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from ..identities import KUBELET_CLIENT

CLIENT_NAME: Final = KUBELET_CLIENT
_FOLLOW_SECONDS: Final = 0.2
_CHUNK: Final = 65536


@dataclass(frozen=True, slots=True)
class ServingFiles:
    """Certificate and key to serve with, and the CA that clients must come from (PEM files)."""

    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class PodLog:
    """Where a pod's output is and whether more may come."""

    path: Path
    complete: Callable[[], bool]


LogOf = Callable[[str, str], PodLog | None]
"""(namespace, pod name) -> its newest log; None if this node never ran such a pod."""


def tail_offset(data: bytes, lines: int) -> int:
    """Where the last `lines` lines of `data` begin."""
    position = len(data) - (1 if data.endswith(b"\n") else 0)
    for _ in range(lines):
        position = data.rfind(b"\n", 0, max(position, 0))
        if position < 0:
            return 0
    return position + 1 if lines else len(data)


async def _stream(request: web.Request, log: PodLog) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    follow = request.query.get("follow") == "true"
    with log.path.open("rb") as file:
        if "tailLines" in request.query:
            file.seek(tail_offset(file.read(), int(request.query["tailLines"])))
        while True:
            complete = log.complete()  # asked before reading: what is written until then is read below
            while data := file.read(_CHUNK):
                await response.write(data)
            if not follow or complete:
                break
            await asyncio.sleep(_FOLLOW_SECONDS)
    await response.write_eof()
    return response


async def serve_logs(log_of: LogOf, files: ServingFiles) -> tuple[web.AppRunner, int]:
    """Serve on a free loopback port; returns what to clean up and the port."""

    async def container_logs(request: web.Request) -> web.StreamResponse:
        peer = request.get_extra_info("peercert") or {}
        names = {value for part in peer.get("subject", ()) for key, value in part if key == "commonName"}
        if CLIENT_NAME not in names:
            raise web.HTTPForbidden(text="only the API server may read logs here")
        log = log_of(request.match_info["namespace"], request.match_info["pod"])
        if log is None or not log.path.exists():
            raise web.HTTPNotFound(text="this node has no log of that pod")
        return await _stream(request, log)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.client_ca))
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", container_logs)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port: int = runner.addresses[0][1]
    return runner, port
