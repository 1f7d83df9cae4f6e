# SPDX-License-Identifier: Apache-2.0
"""A bare echo over HTTP: what the service's server costs without the service. Prints its port, ends with SIGTERM."""

from __future__ import annotations

import asyncio

from aiohttp import web


async def _echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def serve() -> None:
    """Serve until the process is ended."""
    app = web.Application()
    app.add_routes([web.post("/", _echo)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
