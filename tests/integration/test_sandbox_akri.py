# SPDX-License-Identifier: Apache-2.0
"""The stand-in Akri agent, driven by a discovery handler over the real gRPC: Instances as the real agent writes them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from attestation.discovery.akri_v0 import discovery_pb2, discovery_pb2_grpc
from flashjob.sandbox.akri.handlers import SOCKET_NAME
from flashjob.sandbox.client import MERGE_PATCH, ApiClient, ApiError
from flashjob.sandbox.main import Sandbox

pytestmark = pytest.mark.integration
Json = dict[str, Any]
GROUP = "/apis/akri.sh/v0"


@dataclass
class Handler:
    """A discovery handler that lists what the test tells it."""

    name: str
    directory: Path
    shared: bool = False
    refuse: bool = False
    requests: list[Any] = field(default_factory=list)
    _lists: list[asyncio.Queue[list[Any] | None]] = field(default_factory=list)
    _server: Any = None

    async def Discover(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        if self.refuse:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "these details make no sense")
        queue: asyncio.Queue[list[Any] | None] = asyncio.Queue()
        self._lists.append(queue)
        while (devices := await queue.get()) is not None:
            yield discovery_pb2.DiscoverResponse(devices=devices)

    async def start(self) -> None:
        self._server = grpc.aio.server()
        discovery_pb2_grpc.add_DiscoveryHandlerServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"unix:{self.directory / self.name}.sock")
        await self._server.start()

    async def register(self) -> None:
        target = f"unix:{self.directory / SOCKET_NAME}"
        async with grpc.aio.insecure_channel(target, options=(("grpc.default_authority", "localhost"),)) as channel:
            stub = discovery_pb2_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]
            await stub.RegisterDiscoveryHandler(
                discovery_pb2.RegisterDiscoveryHandlerRequest(
                    name=self.name,
                    endpoint=f"{self.directory / self.name}.sock",
                    endpoint_type="UDS",
                    shared=self.shared,
                )
            )

    async def opened(self, count: int) -> None:
        await until(lambda: len(self._lists) >= count)

    def list(self, *devices: tuple[str, dict[str, str]]) -> None:
        found = [discovery_pb2.Device(id=name, properties=properties) for name, properties in devices]
        for queue in self._lists:
            queue.put_nowait(found)

    def end_streams(self) -> None:
        for queue in self._lists:
            queue.put_nowait(None)
        self._lists.clear()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


class Akri:
    """Configurations and Instances of one namespace."""

    def __init__(self, client: ApiClient, namespace: str, handler: Handler) -> None:
        self.client = client
        self.namespace = namespace
        self.handler = handler
        self._path = f"{GROUP}/namespaces/{namespace}"

    async def configure(self, name: str, handler: str, details: str = "", **spec: Any) -> None:
        body = {
            "apiVersion": "akri.sh/v0",
            "kind": "Configuration",
            "metadata": {"name": name},
            "spec": {
                "discoveryHandler": {"name": handler, "discoveryDetails": details, **spec.pop("more", {})},
                **spec,
            },
        }
        await self.client.request("POST", f"{self._path}/configurations", body)

    async def touch(self, name: str) -> None:
        body = {"metadata": {"annotations": {"touched": uuid.uuid4().hex}}}
        await self.client.request("PATCH", f"{self._path}/configurations/{name}", body, content_type=MERGE_PATCH)

    async def delete(self, name: str) -> None:
        await self.client.request("DELETE", f"{self._path}/configurations/{name}")

    async def get(self, plural: str) -> list[Json]:
        items: list[Json] = (await self.client.request("GET", f"{self._path}/{plural}"))["items"]
        return items

    async def instances(self, condition: Callable[[list[Json]], bool], seconds: float = 20.0) -> list[Json]:
        async with asyncio.timeout(seconds):
            while not condition(items := await self.get("instances")):
                await asyncio.sleep(0.05)
        return items


@pytest.fixture
async def akri(sandbox: Sandbox) -> AsyncIterator[Akri]:
    namespace = f"test-{uuid.uuid4().hex[:10]}"
    handler = Handler(f"h{uuid.uuid4().hex[:6]}", sandbox.akri_directory("node-a"))
    async with ApiClient.from_kubeconfig(sandbox.plane.kubeconfig) as client:
        await client.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        akri = Akri(client, namespace, handler)
        try:
            await handler.start()
            yield akri
        finally:
            for item in await akri.get("configurations"):
                await akri.delete(item["metadata"]["name"])
            await handler.stop()


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:6]}"


async def test_from_a_list_to_an_instance_and_back(akri: Akri) -> None:
    await akri.handler.register()
    name = unique("ports")
    await akri.configure(name, akri.handler.name, "list: Ports", brokerProperties={"SITE": "porch"}, capacity=3)
    await akri.handler.opened(1)
    assert akri.handler.requests[0].discovery_details == "list: Ports"
    akri.handler.list(("dev-a", {"UDEV_DEVNODE": "/dev/a", "SITE": "device"}), ("dev-b", {}))
    first, _ = sorted(
        await akri.instances(lambda items: len(items) == 2), key=lambda item: -len(item["spec"]["brokerProperties"])
    )
    assert first["metadata"]["name"].startswith(f"{name}-")
    assert first["metadata"]["finalizers"] == ["node-a"]
    assert first["metadata"]["ownerReferences"][0]["name"] == name
    assert first["spec"] == {
        "configurationName": name,
        "cdiName": f"akri.sh/{name}={first['metadata']['name'][-6:]}",
        "capacity": 3,
        "brokerProperties": {"UDEV_DEVNODE": "/dev/a", "SITE": "porch"},
        "shared": False,
        "nodes": ["node-a"],
        "deviceUsage": {},
    }
    akri.handler.list(("dev-b", {}))  # dev-a reboots
    await akri.instances(lambda items: len(items) == 1)
    akri.handler.list(("dev-a", {"UDEV_DEVNODE": "/dev/a"}), ("dev-b", {}))
    again = await akri.instances(lambda items: len(items) == 2)
    (returned,) = [item for item in again if item["metadata"]["name"] == first["metadata"]["name"]]
    assert returned["metadata"]["uid"] != first["metadata"]["uid"]


async def test_the_node_offers_what_a_handler_lists(akri: Akri, sandbox: Sandbox) -> None:
    await akri.handler.register()
    name = unique("ports")
    await akri.configure(name, akri.handler.name)
    await akri.handler.opened(1)
    akri.handler.list(("dev-a", {}))
    (item,) = await akri.instances(lambda items: len(items) == 1)
    resource = f"akri.sh/{item['metadata']['name']}"

    async def offered() -> str | None:
        node = await akri.client.request("GET", "/api/v1/nodes/node-a")
        value: str | None = node["status"]["allocatable"].get(resource)
        return value

    async with asyncio.timeout(10):
        while await offered() != "1":
            await asyncio.sleep(0.05)
        akri.handler.list()
        while await offered() != "0":
            await asyncio.sleep(0.05)
    other = await akri.client.request("GET", "/api/v1/nodes/node-b")
    assert resource not in other["status"]["capacity"]


async def test_the_end_of_a_stream_makes_devices_vanish(akri: Akri) -> None:
    await akri.handler.register()
    await akri.configure(unique("ports"), akri.handler.name)
    await akri.handler.opened(1)
    akri.handler.list(("dev-a", {}))
    await akri.instances(lambda items: len(items) == 1)
    akri.handler.end_streams()
    await akri.instances(lambda items: items == [])


async def test_a_late_handler_is_found_when_the_configuration_is_touched(akri: Akri) -> None:
    name = unique("ports")
    await akri.configure(name, akri.handler.name)
    async with asyncio.timeout(10):
        while not (await akri.get("configurations"))[0]["metadata"].get("finalizers"):
            await asyncio.sleep(0.05)
    await asyncio.sleep(3.2)  # tries at 0, 1 and 3 s are over, the next comes at 7 s
    await akri.handler.register()
    await akri.touch(name)
    await akri.handler.opened(1)
    async with asyncio.timeout(2):
        akri.handler.list(("dev-a", {}))
        await akri.instances(lambda items: len(items) == 1)


async def test_a_second_registration_opens_a_second_stream(akri: Akri) -> None:
    await akri.handler.register()
    await akri.configure(unique("ports"), akri.handler.name)
    await akri.handler.opened(1)
    await akri.handler.register()
    await akri.handler.opened(2)
    akri.handler.list(("dev-a", {}))
    await akri.instances(lambda items: len(items) == 1)


async def test_refused_details_leave_the_handler_registered(akri: Akri) -> None:
    akri.handler.refuse = True
    await akri.handler.register()
    name = unique("ports")
    await akri.configure(name, akri.handler.name, "nonsense")
    await until(lambda: len(akri.handler.requests) == 1)
    akri.handler.refuse = False
    await akri.touch(name)
    await akri.handler.opened(1)


async def test_properties_are_resolved(akri: Akri) -> None:
    await akri.handler.register()
    properties = [
        {"name": "PLAIN", "value": "v"},
        {"name": "BARE"},
        {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": True}}},
    ]
    await akri.configure(unique("ports"), akri.handler.name, more={"discoveryProperties": properties})
    await akri.handler.opened(1)
    received = akri.handler.requests[0].discovery_properties
    assert received["PLAIN"].vec == b"v"
    assert not received["BARE"].HasField("vec")
    assert "MAYBE" not in received


async def test_a_deleted_configuration_takes_its_instances_along(akri: Akri) -> None:
    await akri.handler.register()
    name = unique("ports")
    await akri.configure(name, akri.handler.name)
    await akri.handler.opened(1)
    akri.handler.list(("dev-a", {}))
    await akri.instances(lambda items: len(items) == 1)
    await akri.delete(name)
    await akri.instances(lambda items: items == [])
    async with asyncio.timeout(20):
        while await akri.get("configurations"):
            await asyncio.sleep(0.05)


async def test_an_instance_that_somebody_deletes_comes_back(akri: Akri) -> None:
    await akri.handler.register()
    await akri.configure(unique("ports"), akri.handler.name)
    await akri.handler.opened(1)
    akri.handler.list(("dev-a", {}))
    (item,) = await akri.instances(lambda items: len(items) == 1)
    path = f"{GROUP}/namespaces/{akri.namespace}/instances/{item['metadata']['name']}"
    await akri.client.request("DELETE", path)
    uid = item["metadata"]["uid"]
    await akri.instances(lambda items: [i["metadata"]["uid"] for i in items] not in ([], [uid]))


async def test_the_agent_may_write_nothing_else(sandbox: Sandbox) -> None:
    async with ApiClient.from_kubeconfig(sandbox.identity("akri-agent")) as client:
        for method, path in (
            ("GET", "/api/v1/secrets"),
            ("GET", "/api/v1/pods"),
            ("GET", "/apis/flashjob.dev/v1alpha1/devices"),
        ):
            with pytest.raises(ApiError) as caught:
                await client.request(method, path)
            assert caught.value.status == 403
