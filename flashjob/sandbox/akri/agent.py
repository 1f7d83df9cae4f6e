# SPDX-License-Identifier: Apache-2.0
"""One node's stand-in agent: Configurations in, Discover streams out, Instances written.

Kept from the real agent, because handlers must live with it:
1. A Configuration whose handler is not registered is tried again after 1 s, 2 s, 4 s ... without a cap, and a registration
   does not wake it; any change of the Configuration does.
2. A stream's end makes its devices vanish at once. An endpoint that cannot be reached is forgotten.
3. A handler that registers while streams of its name live gets one more Discover for each.
4. Details and properties are read when a stream is opened, never later; capacity and brokerProperties apply at once.
5. Every list re-applies every Instance: server-side apply, manager = node name, no force.
6. Finalizers: the node's name, on Configurations and Instances, each under a manager of its own.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any, Final

import aiohttp

from ..client import ApiClient, ApiError, Listed
from .handlers import Endpoint, HandlerUnavailable, Registry, discover, serve_registration
from .instances import Found, plan

Json = dict[str, Any]
_log = logging.getLogger(__name__)
GROUP: Final = "/apis/akri.sh/v0"
RESYNC_SECONDS: Final = 600.0


class AkriAgent:
    """The agent of one node. `run` works until it is cancelled."""

    def __init__(self, client: ApiClient, node: str, directory: Path) -> None:
        self.client = client
        self.node = node
        self._directory = directory
        self.registry = Registry(self._registered)
        self._workers: dict[str, tuple[ConfigurationWorker, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Serve, watch and write until cancelled."""
        server = await serve_registration(self._directory, self.registry)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_instances())
                await self._watch_configurations(group)
        finally:
            await server.stop(None)

    def _registered(self, endpoint: Endpoint) -> None:
        for worker, _task in self._workers.values():
            worker.registered(endpoint)

    async def _watch_configurations(self, group: asyncio.TaskGroup) -> None:
        async for event in self.client.follow(f"{GROUP}/configurations"):
            if isinstance(event, Listed):
                present = {item["metadata"]["uid"] for item in event.items}
                for uid in self._workers.keys() - present:
                    self._workers.pop(uid)[1].cancel()
                for item in event.items:
                    self._see(group, item)
            elif event.deleted:
                _worker, task = self._workers.pop(event.item["metadata"]["uid"], (None, None))
                if task is not None:
                    task.cancel()
            else:
                self._see(group, event.item)

    def _see(self, group: asyncio.TaskGroup, configuration: Json) -> None:
        uid = configuration["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid][0].update(configuration)
            return
        worker = ConfigurationWorker(self, configuration)
        self._workers[uid] = (worker, group.create_task(worker.run()))

    async def _watch_instances(self) -> None:
        """An Instance that somebody deletes loses this node's finalizer, and its Configuration is looked at again."""
        async for event in self.client.follow(f"{GROUP}/instances"):
            for item in event.items if isinstance(event, Listed) else (event.item,):
                meta = item["metadata"]
                gone = not isinstance(event, Listed) and event.deleted
                if meta.get("deletionTimestamp") and self.node in (meta.get("finalizers") or ()) and not gone:
                    try:
                        await self.finalizer("instances", meta, present=False)
                    except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                        _log.warning("finalizer of %s: %s", meta["name"], error)
                elif gone:
                    for worker, _task in self._workers.values():
                        if worker.name == item["spec"]["configurationName"]:
                            worker.wake()

    async def finalizer(self, plural: str, meta: Json, *, present: bool) -> None:
        """Set or drop this node's finalizer; an object that is gone needs none."""
        kind = {"instances": "Instance", "configurations": "Configuration"}[plural]
        body: Json = {
            "apiVersion": "akri.sh/v0",
            "kind": kind,
            "metadata": {"name": meta["name"], "uid": meta["uid"], **({"finalizers": [self.node]} if present else {})},
        }
        path = f"{GROUP}/namespaces/{meta['namespace']}/{plural}/{meta['name']}"
        try:
            await self.client.apply(path, body, manager=f"{self.node}-fin")
        except ApiError as error:
            if error.status not in {404, 409}:
                raise


class ConfigurationWorker:
    """One Configuration on one node."""

    def __init__(self, agent: AkriAgent, configuration: Json) -> None:
        self._agent = agent
        self._configuration = configuration
        self._changed = asyncio.Event()
        self._streams: dict[str, set[asyncio.Task[None]]] = {}
        self._lists: dict[str, tuple[Found, ...]] = {}
        self._failure: HandlerUnavailable | None = None
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """The Configuration's name."""
        return str(self._configuration["metadata"]["name"])

    @property
    def _instances_path(self) -> str:
        return f"{GROUP}/namespaces/{self._configuration['metadata']['namespace']}/instances"

    def update(self, configuration: Json) -> None:
        """The Configuration has changed."""
        self._configuration = configuration
        self._changed.set()

    def wake(self) -> None:
        """Look again."""
        self._changed.set()

    def registered(self, endpoint: Endpoint) -> None:
        """Rule 3: only a Configuration with a live stream notices."""
        if any(self._streams.values()) and endpoint.name == self._configuration["spec"]["discoveryHandler"]["name"]:
            task = asyncio.create_task(self._open_again(endpoint))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open_again(self, endpoint: Endpoint) -> None:
        try:
            self._open(endpoint, await self._properties())
        except (ApiError, KeyError, aiohttp.ClientError, TimeoutError) as error:
            _log.warning("%s: %s", self.name, error)

    async def run(self) -> None:
        """Work until cancelled or until the Configuration is deleted."""
        pause = 1.0
        try:
            while not self._configuration["metadata"].get("deletionTimestamp"):
                self._changed.clear()
                wait = RESYNC_SECONDS
                try:
                    await self._reconcile()
                    pause = 1.0
                except (HandlerUnavailable, ApiError, KeyError, aiohttp.ClientError, TimeoutError) as error:
                    _log.warning("%s: %s; next try in %.0f s", self.name, error, pause)
                    wait, pause = pause, pause * 2
                try:
                    await asyncio.wait_for(self._changed.wait(), wait)
                except TimeoutError:
                    continue
            await self._end()
        finally:
            for task in [*self._opening, *(task for tasks in self._streams.values() for task in tasks)]:
                task.cancel()

    async def _reconcile(self) -> None:
        meta = self._configuration["metadata"]
        if self._agent.node not in (meta.get("finalizers") or ()):
            await self._agent.finalizer("configurations", meta, present=True)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            await self._write()
            if not any(self._streams.values()) or failure.refused:
                raise failure
        if not any(self._streams.values()):
            endpoints = self._agent.registry.of(self._configuration["spec"]["discoveryHandler"]["name"])
            if not endpoints:
                await self._write()
                raise HandlerUnavailable("no discovery handler of this name is registered")
            properties = await self._properties()
            for endpoint in endpoints:
                self._open(endpoint, properties)
            return  # the first list follows; until then Instances of an earlier agent stay
        if self._lists:
            await self._write()

    def _open(self, endpoint: Endpoint, properties: dict[str, bytes | None]) -> None:
        task = asyncio.create_task(self._receive(endpoint, properties))
        self._streams.setdefault(endpoint.key, set()).add(task)

    async def _receive(self, endpoint: Endpoint, properties: dict[str, bytes | None]) -> None:
        details = self._configuration["spec"]["discoveryHandler"].get("discoveryDetails") or ""
        try:
            async for devices in discover(endpoint, details, properties):
                self._lists[endpoint.key] = devices
                self._changed.set()
        except HandlerUnavailable as error:
            self._failure = error
            if not error.refused:
                self._agent.registry.drop(endpoint)
        finally:
            live = self._streams[endpoint.key]
            live.discard(asyncio.current_task())
            if not live:
                self._lists.pop(endpoint.key, None)
            self._changed.set()

    async def _properties(self) -> dict[str, bytes | None]:
        resolved: dict[str, bytes | None] = {}
        for entry in self._configuration["spec"]["discoveryHandler"].get("discoveryProperties") or ():
            source = entry.get("valueFrom") or {}
            for field, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if field in source:
                    value = await self._referenced(source[field], plural)
                    if value is not None:
                        resolved[entry["name"]] = value
                    break
            else:
                resolved[entry["name"]] = entry["value"].encode() if "value" in entry else None
        return resolved

    async def _referenced(self, reference: Json, plural: str) -> bytes | None:
        path = f"/api/v1/namespaces/{reference.get('namespace', 'default')}/{plural}/{reference['name']}"
        try:
            data = (await self._agent.client.request("GET", path)).get("data") or {}
            value: str = data[reference["key"]]
        except (ApiError, KeyError):
            if reference.get("optional"):
                return None
            raise
        return base64.b64decode(value) if plural == "secrets" else value.encode()

    async def _write(self) -> None:
        """Make the cluster's Instances those of the present lists."""
        client, node = self._agent.client, self._agent.node
        existing = (await client.request("GET", self._instances_path)).get("items") or ()
        devices = [device for devices in self._lists.values() for device in devices]
        todo = plan(self._configuration, devices, existing, node)
        finalized = {
            item["metadata"]["name"] for item in existing if node in (item["metadata"].get("finalizers") or ())
        }
        for name in todo.delete:
            await self._delete(name)
        for body in (*todo.apply, *todo.leave):
            applied = await client.apply(f"{self._instances_path}/{body['metadata']['name']}", body, manager=node)
            stays = body["spec"]["nodes"] != []
            if stays != (body["metadata"]["name"] in finalized):
                await self._agent.finalizer("instances", applied["metadata"], present=stays)

    async def _delete(self, name: str) -> None:
        try:
            gone = await self._agent.client.request("DELETE", f"{self._instances_path}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            return
        meta = gone.get("metadata") or {}
        if meta.get("deletionTimestamp"):
            await self._agent.finalizer("instances", meta, present=False)

    async def _end(self) -> None:
        """The Configuration is being deleted: its Instances go, then this node's finalizer."""
        self._lists.clear()
        while True:
            try:
                await self._write()
                await self._agent.finalizer("configurations", self._configuration["metadata"], present=False)
                return
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                _log.warning("deletion of %s: %s", self.name, error)
                await asyncio.sleep(1)
