# SPDX-License-Identifier: Apache-2.0
"""The operator as a process: lead, keep caches, work the queue, serve probes. It ends with whatever part ends first.

1. Only the leader reads and writes; it lists everything anew before its first decision.
2. Crash-only: an error nobody expected ends the process, and the next one starts from what is stored.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import kopf
from aiohttp import web
from kubernetes.aio.client import Configuration

from flashjob.cluster.kubeapi import KubeApi
from flashjob.cluster.leader import LeaderElection
from flashjob.cluster.queue import WorkQueue
from flashjob.planning.state import Key
from flashjob.workloads.pod import PodSettings

from . import handlers, serve
from .admit import Admitter
from .apply import Applier
from .artifacts import Artifacts
from .caches import Caches
from .gateway_probe import GatewayProbe
from .metrics import Metrics
from .reconcile import Controller

LEADER_LEASE: Final = "flashjob-operator"
RESYNC_SECONDS: Final = 600.0
log = logging.getLogger("flashjob.operator")


@dataclass(frozen=True, slots=True)
class Options:
    """How this operator runs.

    Args:
        namespace: its own; Leases are there.
        watch_namespace: serve one namespace only; "" for all.
        identity: of this process in the leader's Lease.
        pods: what flashing pods have in common.
        gateway_ca: PEM of the CA that signs the gateway's certificate.
        listen: address and port of the probes.
    """

    namespace: str
    watch_namespace: str
    identity: str
    pods: PodSettings
    gateway_ca: Path | None
    listen: tuple[str, int]


class Operator:
    """All parts of one operator process, composed.

    Args:
        api: as the operator.
        login: credentials for kopf's own client.
        artifacts: where firmware comes from.
        now: wall clock, seconds since the epoch.
    """

    def __init__(
        self,
        api: KubeApi,
        login: Callable[[], Awaitable[Configuration]],
        artifacts: Artifacts,
        options: Options,
        now: Callable[[], float],
    ) -> None:
        self._options, self._login = options, login
        self._leader = LeaderElection(api, options.namespace, LEADER_LEASE, options.identity)
        self._leading = False
        self._metrics = Metrics()
        self._caches = Caches(api, options.namespace, self._wake, options.watch_namespace)
        self._gateway = GatewayProbe(options.pods.gateway_url, options.gateway_ca, self._wake_all)
        self._controller = Controller(
            api,
            self._caches,
            Admitter(api, artifacts),
            Applier(api, self._caches, options.namespace, options.pods, now),
            self._gateway,
            self._metrics,
            now,
        )
        self._queue: WorkQueue[Key] = WorkQueue(self._controller.reconcile)

    async def run(self, take_signals: Callable[[], None]) -> None:
        """Run until cancelled, or until leadership is lost.

        Args:
            take_signals: has signals cancel this run; called once kopf, which takes them for itself, has started.

        Raises:
            LeadershipLost: within an ExceptionGroup.
        """
        async with self._probes():
            epoch = await self._leader.acquire()
            log.info("leading, epoch %d", epoch)
            self._leading = True
            try:
                async with asyncio.TaskGroup() as group:
                    for part in (
                        self._leader.hold(),
                        self._caches.run(),
                        self._queue.run(),
                        self._gateway.run(),
                        self._resync(),
                        self._kopf(take_signals),
                    ):
                        group.create_task(part)
            finally:
                self._leading = False
                await self._leader.release()

    @contextlib.asynccontextmanager
    async def _probes(self) -> AsyncIterator[None]:
        runner = web.AppRunner(serve.application(self._caches, self._metrics, lambda: self._leading), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, *self._options.listen).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _kopf(self, take_signals: Callable[[], None]) -> None:
        scope, ready = self._options.watch_namespace, asyncio.Event()
        running = asyncio.create_task(
            kopf.operator(
                registry=handlers.registry(self._wake, self._controller.drained, self._login),
                settings=handlers.settings(),
                ready_flag=ready,
                standalone=True,
                clusterwide=not scope,
                namespaces=[scope] if scope else [],
            )
        )
        try:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            take_signals()
            await running
        finally:
            running.cancel()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            self._wake_all()

    def _wake(self, key: Key) -> None:
        self._queue.add(key)

    def _wake_all(self) -> None:
        for job in self._caches.jobs.values():
            self._queue.add((job.namespace, job.name))
