# SPDX-License-Identifier: Apache-2.0
"""The library inside a bare server: two echoes that also make a nonce and a result, and check nothing about the request.

Arguments: trust directory, folder of nonce keys, key of results, the one device's ueid in hex, the audience of nonces and
their lifetime in seconds. Prints its port, ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from pathlib import Path

from aiohttp import web

from attestation import nonce
from attestation.directory import TrustDirectory
from attestation.ear import Verifier
from attestation.replay import InMemorySingleUse
from attestation.service.judge import Judge, Question
from attestation.service.keyring import KeyFiles
from attestation.service.trust import LiveTrust
from attestation.verifier import ChainCache


async def serve(trust: Path, key_files: KeyFiles, ueid: bytes, audience: str, lifetime: int) -> None:
    """Serve until the process is ended."""
    keys = key_files.read()
    judge = Judge(
        trust=LiveTrust(TrustDirectory(trust)),
        single_use=InMemorySingleUse(),
        chains=ChainCache(100),
        verifier=Verifier("flashjob.dev", "bare"),
        clock=time.time,
    )

    async def issue(request: web.Request) -> web.Response:
        await request.read()
        now, fresh = int(time.time()), os.urandom(nonce.RANDOM_SIZE)
        made = nonce.issue(keys.ring, ueid, audience.encode(), now=now, ttl=lifetime, random=fresh)
        return web.Response(body=made)

    async def result(request: web.Request) -> web.Response:
        question = Question(ueid, audience, bytes.fromhex(request.headers["Nonce"]))
        made = judge.result(question, await request.read(), keys)
        return web.Response(status=200 if made.verdict.proven_at_tier else 500, body=made.ear)

    app = web.Application()
    app.add_routes([web.post("/nonce", issue), web.post("/result", result)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    gc.collect()
    gc.freeze()  # as the service does
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    folder, nonce_keys, ear_key = (Path(given) for given in sys.argv[1:4])
    device, asked_for, seconds = sys.argv[4:]
    asyncio.run(serve(folder, KeyFiles(nonce_keys, ear_key), bytes.fromhex(device), asked_for, int(seconds)))
