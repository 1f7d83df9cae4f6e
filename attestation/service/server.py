# SPDX-License-Identifier: Apache-2.0
"""Sockets, signals, and the second hand: everything about a running service that is not a request.

1. A connection must have sent a whole header within `idle_seconds`, the first one and each after an answer; a TLS
   handshake has that long too. One connection too many is closed at once.
2. SIGHUP reads keys and reopens the audit log; keys are also read when their files change.
3. SIGTERM and SIGINT drain: no new connections, requests in progress end (at most `drain_seconds`), their connections
   close. A second signal ends the process at once.
"""

import asyncio
import contextlib
import gc
import logging
import math
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from attestation.errors import Reject
from attestation.service.app import Door, Limits, State
from attestation.service.judge import Judge
from attestation.service.keyring import KeyFiles
from attestation.service.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the service listens, and how.

    Args:
        host, port: address; port 0 takes a free one.
        keys: files of its keys.
        limits: how much at once.
        tls: for HTTPS; None serves HTTP.
    """

    host: str
    port: int
    keys: KeyFiles
    limits: Limits
    tls: ssl.SSLContext | None = None


class Service:
    """A service that runs between ``start`` and ``stop``.

    Args:
        settings: where and how.
        judge: makes results.
        counts: what is counted.

    Raises:
        Reject: the keys cannot be used.
    """

    def __init__(self, settings: Settings, judge: Judge, counts: Metrics) -> None:
        self._settings, self._judge = settings, judge
        self._stamp = settings.keys.stamp()
        self._counts = counts
        self.state = State(settings.keys.read())
        self._door = Door(judge, self.state, settings.limits, counts)

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError."""
        settings = self._settings
        server = self._door.server(
            access_log=None,
            logger=logging.Logger("http", logging.CRITICAL),  # else each malformed request is a traceback in the log
            keepalive_timeout=settings.limits.idle_seconds,
            lingering_time=min(2.0, settings.limits.body_seconds),
            auto_decompress=False,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = _Site(self._runner, settings)
        await site.start()
        self._counts.watch(
            connections=lambda: site.connections, in_flight=lambda: self.state.busy, chains=self._judge.chains
        )
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Rule 3."""
        self.state.draining = True
        log.info("draining: %d requests in progress", self.state.busy)
        for site in list(self._runner.sites):
            await site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.limits.drain_seconds):
                await self.state.idle.wait()
        await self._runner.cleanup()
        self._door.close()

    def look(self) -> None:
        """Read the keys again if a file changed."""
        stamp = self._settings.keys.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            self.read_keys()

    def read_keys(self) -> None:
        """Read the keys again; those that cannot be used change nothing but readiness."""
        try:
            self.state.keys, self.state.trouble = self._settings.keys.read(), ""
            log.info("keys read")
        except Reject as reject:
            self._counts.reload_failures.inc()
            self.state.trouble = f"keys: {reject}"
            log.error("the keys read before stay in force: %s", reject)

    def hang_up(self) -> None:
        """SIGHUP."""
        self.read_keys()
        if self._judge.audit is not None:
            try:
                self._judge.audit.reopen()
            except Reject as reject:
                log.error("the audit log stays where it is: %s", reject)


class _Site(web.BaseSite):
    """A TCP site with a limit of connections and of the TLS handshake (rule 1)."""

    def __init__(self, runner: web.ServerRunner, settings: Settings) -> None:
        super().__init__(runner, ssl_context=settings.tls)
        self._settings = settings

    @property
    def name(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def connections(self) -> int:
        server = self._runner.server
        return len(server.connections) if server is not None else 0

    async def start(self) -> None:
        await super().start()
        settings, server = self._settings, self._runner.server
        if server is None:
            raise RuntimeError("the runner was not set up")
        most = settings.limits.connections

        def protocol() -> asyncio.Protocol:
            return _TooMany() if self.connections >= most else server()

        self._server = await asyncio.get_running_loop().create_server(
            protocol,
            settings.host,
            settings.port,
            ssl=settings.tls,
            ssl_handshake_timeout=settings.limits.idle_seconds if settings.tls else None,
            reuse_address=True,
            backlog=self._backlog,
        )


class _TooMany(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


async def serve(service: Service, judge: Judge, announce: Callable[[int], None]) -> int:
    """Run until a signal ends it; returns that signal's number. Raises OSError where it cannot listen."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    caught: list[int] = []

    def end(number: int) -> None:
        caught.append(number)
        ended.set()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)
            signal.signal(one, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, service.hang_up)
    if judge.began is not None:
        await asyncio.sleep(max(0.0, judge.began - judge.clock()))  # what is issued from now on is ours alone
    port = await service.start()
    gc.collect()
    gc.freeze()  # what the program consists of is not looked through again for garbage
    announce(port)
    looking = asyncio.create_task(_second_hand(service, judge))
    await ended.wait()
    looking.cancel()
    await service.stop()
    if judge.audit is not None:
        judge.audit.close()
    return caught[0]


async def _second_hand(service: Service, judge: Judge) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        service.look()
        if judge.audit is not None:
            try:
                await asyncio.to_thread(judge.audit.flush)
            except Reject as reject:
                log.error("%s", reject)


def begin(now: float) -> int:
    """The first whole second in which this process issues nonces: none of an earlier process bears it."""
    return math.floor(now) + 1
