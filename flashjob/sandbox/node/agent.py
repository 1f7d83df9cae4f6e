# SPDX-License-Identifier: Apache-2.0
"""The node agent: registers a Node, keeps its Lease, offers the Instances of its node as resources, runs its pods.

Each loop is level-triggered: it looks at the present state and does what is missing. A pod that the API server says runs
here but that this process did not start was lost with an earlier agent: it ends `Failed`, `ContainerStatusUnknown`.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from ..client import MERGE_PATCH, STRATEGIC_PATCH, ApiClient, ApiError, Changed, Listed
from ..process import Lifeline
from . import status
from .logs import PodLog, ServingFiles, serve_logs
from .worker import Host, PodWorker

Json = dict[str, Any]
_log = logging.getLogger(__name__)
LEASE_NAMESPACE: Final = "kube-node-lease"
LEASE_SECONDS: Final = 40
HEARTBEAT_SECONDS: Final = 10.0
INSTANCES_PATH: Final = "/apis/akri.sh/v0/instances"
_TERMINAL: Final = frozenset({"Succeeded", "Failed"})
_RETRY_SECONDS: Final = 1.0
_LAST_REPORT_SECONDS: Final = 4.0
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What one node is: its name, where it keeps pods and logs, which modules it may run."""

    name: str
    root: Path
    entry_points: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    max_pods: int = 110
    serving: ServingFiles | None = None
    """None: `kubectl logs` does not work."""


class NodeAgent:
    """One node. `run` works until it is cancelled; then every pod process is ended."""

    def __init__(self, client: ApiClient, config: NodeConfig, environ: Mapping[str, str]) -> None:
        self._client = client
        self._config = config
        self._path = f"/api/v1/nodes/{config.name}"
        self._instances: dict[str, Json] = {}
        self._instances_known = asyncio.Event()
        self._devices_changed = asyncio.Event()
        self._workers: dict[str, PodWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifeline = Lifeline()
        self._log_port: int | None = None
        self._host = Host(
            client=client,
            root=config.root,
            entry_points=config.entry_points,
            environ=environ,
            lifeline=self._lifeline,
            capacity=self._capacity,
            in_use=self._in_use,
            properties=lambda name: self._instances.get(name, {}).get("spec", {}).get("brokerProperties") or {},
            now=_now,
        )

    async def run(self) -> None:
        """Register and work until cancelled."""
        self._config.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_server = None
        if self._config.serving is not None:
            log_server, self._log_port = await serve_logs(self._log_of, self._config.serving)
        try:
            async with asyncio.TaskGroup() as group:
                await self._insist(self._register)
                group.create_task(self._heartbeat())
                group.create_task(self._watch_instances())
                group.create_task(self._offer_devices())
                await self._watch_pods()
        finally:
            self._lifeline.close()  # every pod's tether: SIGTERM, two seconds, SIGKILL
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_LAST_REPORT_SECONDS)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if log_server is not None:
                await log_server.cleanup()

    def _log_of(self, namespace: str, name: str) -> PodLog | None:
        """The newest log of a pod of this name; it is complete when no worker of that name is at work."""
        logs = sorted(self._host.log_directory.glob(f"{namespace}_{name}_*.log"), key=lambda path: path.stat().st_mtime)
        return PodLog(logs[-1], lambda: not self._at_work(logs[-1])) if logs else None

    def _at_work(self, log: Path) -> bool:
        return any(worker.log == log and not worker.finished for worker in self._workers.values())

    async def _insist(self, action: Any) -> None:
        while True:
            try:
                await action()
                return
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                _log.warning("%s: %s", self._config.name, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/arch": _MACHINES.get(platform.machine(), platform.machine()),
            **self._config.labels,
        }
        node = status.node(
            self._config.name,
            labels,
            _now(),
            cpus=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            pods=self._config.max_pods,
            log_port=self._log_port,
        )
        try:
            await self._client.request("POST", "/api/v1/nodes", node)
        except ApiError as error:
            if error.status != 409:
                raise
            await self._client.request("PATCH", self._path, {"metadata": node["metadata"]}, content_type=MERGE_PATCH)
        await self._client.request(
            "PATCH", f"{self._path}/status", {"status": node["status"]}, content_type=STRATEGIC_PATCH
        )
        self._devices_changed.set()
        _log.info("node %s is registered", self._config.name)

    async def _heartbeat(self) -> None:
        """The node's Lease, as a kubelet renews it."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases"

        async def renew() -> None:
            renewed = {
                "holderIdentity": self._config.name,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": _now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            }
            try:
                await self._client.request(
                    "PATCH", f"{path}/{self._config.name}", {"spec": renewed}, content_type=MERGE_PATCH
                )
            except ApiError as error:
                if error.status != 404:
                    raise
                body = {"metadata": {"name": self._config.name}, "spec": renewed}
                await self._client.request("POST", path, body)

        while True:
            await self._insist(renew)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _capacity(self) -> dict[str, int]:
        return {name: int(item["spec"].get("capacity", 1)) for name, item in self._instances.items()}

    def _in_use(self) -> dict[str, int]:
        used: dict[str, int] = {}
        for worker in self._workers.values():
            for name, amount in worker.claims.items() if not worker.finished else ():
                used[name] = used.get(name, 0) + amount
        return used

    async def _watch_instances(self) -> None:
        async for event in self._client.follow(INSTANCES_PATH):
            if isinstance(event, Listed):
                self._instances = {item["metadata"]["name"]: item for item in event.items if self._is_here(item)}
                self._instances_known.set()
            elif event.deleted or not self._is_here(event.item):
                self._instances.pop(event.item["metadata"]["name"], None)
            else:
                self._instances[event.item["metadata"]["name"]] = event.item
            self._devices_changed.set()

    def _is_here(self, instance: Json) -> bool:
        return self._config.name in (instance["spec"].get("nodes") or ()) and not instance["metadata"].get(
            "deletionTimestamp"
        )

    async def _offer_devices(self) -> None:
        """Node capacity and allocatable follow the Instances: the scheduler places claiming pods by them."""

        async def offer() -> None:
            node = await self._client.request("GET", self._path)
            change = status.device_capacity(self._capacity(), node["status"].get("capacity") or {})
            if change:
                body = {"status": {"capacity": change, "allocatable": change}}
                await self._client.request("PATCH", f"{self._path}/status", body, content_type=MERGE_PATCH)

        while True:
            await self._devices_changed.wait()
            self._devices_changed.clear()
            if self._instances_known.is_set():
                await self._insist(offer)

    async def _watch_pods(self) -> None:
        await self._instances_known.wait()  # admission checks claims against them
        params = {"fieldSelector": f"spec.nodeName={self._config.name}"}
        async for event in self._client.follow("/api/v1/pods", params):
            if isinstance(event, Changed):
                self._see(event.item, deleted=event.deleted)
                continue
            present = {pod["metadata"]["uid"] for pod in event.items}
            for uid in self._workers.keys() - present:
                self._forget(uid)
            for pod in event.items:
                self._see(pod, deleted=False)

    def _forget(self, uid: str) -> None:
        worker = self._workers.pop(uid, None)
        if worker is not None:
            worker.vanished()

    def _see(self, pod: Json, *, deleted: bool) -> None:
        uid = pod["metadata"]["uid"]
        if deleted:
            self._forget(uid)
            return
        worker = self._workers.get(uid)
        phase = (pod.get("status") or {}).get("phase", "Pending")
        if worker is None:
            worker = self._workers[uid] = PodWorker(self._host, pod)
            if phase in _TERMINAL:
                worker.finished = True
            else:
                self._spawn(worker.run() if phase == "Pending" else worker.lost())
        if pod["metadata"].get("deletionTimestamp"):
            if worker.finished:
                self._spawn(worker.remove_object())
            else:
                worker.delete(float(pod["metadata"].get("deletionGracePeriodSeconds") or 0))

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a pod worker failed", exc_info=task.exception())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
