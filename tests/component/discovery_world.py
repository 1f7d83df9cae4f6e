# SPDX-License-Identifier: Apache-2.0
"""A discovery handler between a cluster in memory, the agent's side of the gRPC over a real socket, and virtual devices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.discovery import mdns
from attestation.discovery.details import Transport
from attestation.discovery.handler import DiscoveryHandler
from attestation.discovery.listing import Listing, by_key_id, decode_token, verify_listing
from attestation.discovery.scanner import Scanner
from attestation.discovery.sightings import Pace
from attestation.policy import MeasurementRef, RootOfTrust
from firmware_pipeline.esp.measurement import measure
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import ATTESTATION_POLICIES, CONFIGURATIONS, DEVICES, FLASHTASKS, Obj
from flashjob.sandbox.akri.handlers import Endpoint, HandlerUnavailable, Registry, discover, serve_registration
from flashjob.sandbox.akri.instances import Found
from flashjob.trust.cluster_store import ClusterTrust
from flashjob.trust.discovery import ClusterEnrolment, Configurations, DeviceReports
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.base import b64url
from flashjob.wire.target import Target

from .bench import Bench, policy

KEY = ec.derive_private_key(4711, ec.SECP256R1())
KEYS = by_key_id(KEY.public_key())
NODE = "node-a"
SPACE = "farm"


async def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for something that the world brings about."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s: {what}") from None


@dataclass
class Stream:
    """What one Configuration's stream has delivered."""

    lists: list[tuple[Found, ...]] = field(default_factory=list)
    failure: HandlerUnavailable | None = None
    task: asyncio.Task[None] | None = None

    @property
    def now(self) -> dict[str, dict[str, str]]:
        """The last list: properties by id."""
        return {one.id: dict(one.properties) for one in self.lists[-1]} if self.lists else {}

    def listing(self, device: VirtualDevice) -> Listing | None:
        """What the device is listed as, verified."""
        properties = self.now.get(device.identity.ueid.hex())
        return verify_listing(decode_token(properties["FLASHJOB_LISTING"]), KEYS) if properties else None

    async def lists_only(self, *devices: VirtualDevice) -> None:
        """Wait until exactly these are listed."""
        wanted = {device.identity.ueid.hex() for device in devices}
        await until(lambda: bool(self.lists) and set(self.now) == wanted, f"{self.now} is not {wanted}")


class World:
    """`start` it when the cluster holds what it shall hold."""

    def __init__(self, bench: Bench, directory: Path, transport: Transport, pace: Pace | None = None) -> None:
        self.bench, self.directory, self.transport = bench, directory, transport
        self.cluster = FakeCluster()
        self.trust = ClusterTrust(self.cluster)
        self.registered: asyncio.Queue[Endpoint] = asyncio.Queue()
        self.pace = pace or Pace(scan_seconds=0.1, ports_seconds=0.05)
        self.streams: list[Stream] = []
        self.browse: Callable[[mdns.Found], Awaitable[None]] = mdns.browse
        self.scanner: Scanner
        self._running: asyncio.Task[None] | None = None
        self._agent: Any = None

    async def start(self) -> None:
        await self.start_agent()
        self._running = asyncio.create_task(self._run())
        self.endpoint = await asyncio.wait_for(self.registered.get(), 10)

    async def start_agent(self) -> None:
        """A new agent, which knows nobody."""
        if self._agent is not None:
            await self._agent.stop(None)
        self._agent = await serve_registration(self.directory, Registry(self.registered.put_nowait))

    async def _run(self) -> None:
        """As `flashjob discovery-handler` composes it."""
        configurations = Configurations(self.cluster, self.transport, NODE)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.trust.run())
            group.create_task(configurations.reflector.run())
            await self.trust.wait_ready()
            await configurations.reflector.synced.wait()
            reports = DeviceReports(self.cluster, self.trust, configurations, time.time)
            self.scanner = Scanner(
                self.transport,
                ClusterEnrolment(self.trust, time.time),
                reports,
                KEY,
                pace=self.pace,
                browse=self.browse,
            )
            group.create_task(reports.run())
            group.create_task(
                DiscoveryHandler(self.scanner, self.directory, configurations.wake, configurations.wanted).run()
            )

    async def stop_handler(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None

    async def stop(self) -> None:
        for stream in self.streams:
            if stream.task:
                stream.task.cancel()
        await self.stop_handler()
        if self._agent is not None:
            await self._agent.stop(None)

    def discover(self, details: str) -> Stream:
        """What the agent does for one Configuration."""
        stream = Stream()

        async def follow() -> None:
            try:
                async for found in discover(self.endpoint, details, {}):
                    stream.lists.append(found)
            except HandlerUnavailable as failure:
                stream.failure = failure

        stream.task = asyncio.create_task(follow())
        self.streams.append(stream)
        return stream

    # The cluster

    async def configure(self, name: str, details: str) -> None:
        spec = {"discoveryHandler": {"name": self.transport.handler_name, "discoveryDetails": details}}
        await self._create(CONFIGURATIONS, {"metadata": {"name": name, "namespace": SPACE}, "spec": spec})

    async def enroll(
        self, device: VirtualDevice, *images: bytes, address: str | None = None, minimum: RootOfTrust | None = None
    ) -> None:
        """Device and policy; the policy knows the images. `address` None: where it is; "": as discovered."""
        who = device.identity
        rules = policy(who.hardware.chip.target, minimum or RootOfTrust.SIGNED_BOOT)
        known = tuple(MeasurementRef(alg=one.alg, value=one.value.hex()) for image in images for one in measure(image))
        rules = rules.model_copy(update={"application": rules.application.model_copy(update={"measurements": known})})
        await self._create(
            ATTESTATION_POLICIES,
            {
                "metadata": {"name": device.name, "namespace": SPACE},
                "spec": rules.model_dump(mode="json", by_alias=True),
            },
        )
        where = device.server.address if address is None else address
        connection: Obj = {"network": {"address": where} if where else {}}
        if device.port is not None:
            connection = {"serial": {"match": {"UDEV_DEVPATH": f"/virtual/{device.name}"}}}
        spec = {
            "id": who.ueid.hex(),
            "trustAnchor": {"coseKey": b64url(keys.encode_cose(who.anchor))},
            "rootOfTrust": "SignedBoot" if who.hardware.fuses.secure_boot else "SelfReported",
            "policyRef": {"name": device.name},
            "connection": connection,
            "hardware": {"chip": who.hardware.chip.target},
        }
        await self._create(DEVICES, {"metadata": {"name": device.name, "namespace": SPACE}, "spec": spec})

    async def begin(self, device: VirtualDevice, target: Target, name: str = "t1") -> None:
        """A task of this device, not permitted yet."""
        spec = {
            "job": {"name": "job", "uid": "job-uid"},
            "device": {"name": device.name, "id": device.identity.ueid.hex()},
            "transport": "Serial" if device.port else "Network",
            "target": target.dump(),
        }
        await self._create(FLASHTASKS, {"metadata": {"name": name, "namespace": SPACE}, "spec": spec})

    async def phase(self, phase: str, name: str = "t1") -> None:
        """The operator says where the task is."""
        await self.cluster.patch_status(FLASHTASKS, SPACE, name, {"phase": phase}, field_manager="operator")

    async def permit(self, grant_id: str, name: str = "t1", attempt: int = 1) -> None:
        """The attempt has its permit."""
        one = {"attempt": attempt, "grantId": grant_id, "fence": attempt, "at": "2026-01-01T00:00:00Z"}
        await self._report({"permits": [one]}, name)

    async def conclude(self, outcome: str, name: str = "t1", attempt: int = 1) -> None:
        """The attempt has its verdict."""
        verdict = {"attempt": attempt, "outcome": outcome, "reason": "Test", "at": "2026-01-01T00:00:00Z"}
        await self._report({"verdict": verdict}, name)

    async def _report(self, report: Obj, name: str) -> None:
        await self.cluster.patch_status(FLASHTASKS, SPACE, name, {"report": report}, field_manager="gateway")

    async def change_device(self, device: VirtualDevice, **spec: Any) -> None:
        await self.cluster.patch(DEVICES, SPACE, device.name, {"spec": spec}, field_manager="people")

    async def change_policy(self, device: VirtualDevice, **spec: Any) -> None:
        await self.cluster.patch(ATTESTATION_POLICIES, SPACE, device.name, {"spec": spec}, field_manager="people")

    def status(self, device: VirtualDevice) -> Obj:
        """Device.status, as it is."""
        (found,) = [obj for obj in self.cluster.all(DEVICES) if obj["metadata"]["name"] == device.name]
        status: Obj = found.get("status") or {}
        return status

    def status_writes(self) -> int:
        """How often Device.status was written."""
        return sum(call.resource == DEVICES and call.subresource == "status" for call in self.cluster.calls)

    async def attested(self, device: VirtualDevice, code: str = "") -> Obj:
        """Wait until the last look's verdict stands in Device.status."""
        await until(
            lambda: (self.status(device).get("attestation") or {}).get("code") == code,
            f"{self.status(device).get('attestation')} is not {code!r}",
        )
        found: Obj = self.status(device)["attestation"]
        return found

    async def _create(self, resource: Any, obj: Obj) -> None:
        whole = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        await self.cluster.create(resource, SPACE, whole)
