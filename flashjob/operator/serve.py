# SPDX-License-Identifier: Apache-2.0
"""/healthz, /readyz and /metrics of the operator.

1. Healthy: no watch was silent for longer than two minutes; a bookmark comes about every minute.
2. Ready: this process leads, and every kind was listed once.
"""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from .caches import Caches
from .metrics import Metrics

DEAF_SECONDS: Final = 120.0


def application(caches: Caches, metrics: Metrics, leading: Callable[[], bool]) -> web.Application:
    """The web application; it reads and changes nothing."""

    async def healthz(_: web.Request) -> web.Response:
        if not leading() or not caches.is_synced:
            return web.Response(text="ok: standing by\n")
        age, kind = caches.age()
        if age > DEAF_SECONDS:
            return web.Response(status=500, text=f"the watch of {kind} has been silent for {age:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if not leading():
            return web.Response(status=503, text="another process leads\n")
        if not caches.is_synced:
            return web.Response(status=503, text="caches are filling\n")
        return web.Response(text="ok\n")

    async def render(_: web.Request) -> web.Response:
        if caches.is_synced:
            metrics.cache_age.set(caches.age()[0])
        for kind, count in caches.unreadable().items():
            metrics.unreadable.labels(kind).set(count)
        return web.Response(body=metrics.render(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render)])
    return app
