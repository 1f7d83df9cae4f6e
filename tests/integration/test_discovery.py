# SPDX-License-Identifier: Apache-2.0
"""The discovery handlers as processes of their own, with the rights that `deploy/` ships, beside the stand-in agent."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.discovery.listing import by_key_id, decode_token, verify_listing
from attestation.policy import MeasurementRef
from firmware_pipeline.esp.measurement import measure
from flashjob.sandbox.client import ApiClient
from flashjob.sandbox.main import Sandbox
from flashjob.sandbox.process import Program
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.base import b64url
from tests.component.bench import Bench, old_app, policy

pytestmark = pytest.mark.integration
Json = dict[str, Any]
OURS = "/apis/flashjob.dev/v1alpha1"
AKRI = "/apis/akri.sh/v0"
KEY = ec.derive_private_key(991, ec.SECP256R1())
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "configurations").glob("*.yaml"))


class Farm:
    """One namespace with devices, Configurations and the two handlers."""

    def __init__(self, sandbox: Sandbox, client: ApiClient, bench: Bench, namespace: str) -> None:
        self.sandbox, self.client, self.bench, self.namespace = sandbox, client, bench, namespace
        self.key = bench.tmp_path / "listing.pem"
        self.key.write_bytes(keys.private_to_pem(KEY))
        self._handlers: dict[str, Program] = {}

    def start(self, role: str, node: str = "node-a") -> None:
        arguments = ["--role", role, "--directory", str(self.sandbox.akri_directory(node)), "--node", node]
        arguments += ["--listing-key", str(self.key), "--namespace", self.namespace]
        arguments += ["--kubeconfig", str(self.sandbox.identity("discovery-handler"))]
        command = [sys.executable, "-m", "flashjob.cli", "discovery-handler", *arguments]
        self._handlers[role] = self.sandbox.spawn(f"discovery-{role}", command)

    def stop(self, role: str) -> str:
        """End it; returns its log."""
        self.sandbox.forget(self._handlers.pop(role))
        return (self.sandbox.log_directory / f"discovery-{role}.log").read_text()

    def stop_all(self) -> None:
        for role in list(self._handlers):
            self.stop(role)

    async def make(self, path: str, kind: str, name: str, spec: Json, api: str = "flashjob.dev/v1alpha1") -> None:
        body = {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec}
        await self.client.request("POST", path, body)

    async def configure(self, name: str, role: str, details: Json) -> str:
        name = f"{name}-{self.namespace[-6:]}"  # unique in the cluster, as Akri demands
        asked = {"name": f"flashjob-{role}", "discoveryDetails": json.dumps(details)}
        path = f"{AKRI}/namespaces/{self.namespace}/configurations"
        await self.make(path, "Configuration", name, {"discoveryHandler": asked}, "akri.sh/v0")
        return name

    async def enroll(self, device: VirtualDevice) -> None:
        who, path = device.identity, f"{OURS}/namespaces/{self.namespace}"
        chip = who.hardware.chip.target
        known = tuple(MeasurementRef(alg=m.alg, value=m.value.hex()) for m in measure(old_app(chip)))
        rules = policy(chip)
        rules = rules.model_copy(update={"application": rules.application.model_copy(update={"measurements": known})})
        spec = rules.model_dump(mode="json", by_alias=True, exclude_none=True)
        await self.make(f"{path}/attestationpolicies", "AttestationPolicy", device.name, spec)
        connection: Json = {"network": {"address": device.server.address}}
        if device.port is not None:
            connection = {"serial": {"match": {"UDEV_DEVPATH": f"/virtual/{device.name}"}}}
        spec = {
            "id": who.ueid.hex(),
            "trustAnchor": {"coseKey": b64url(keys.encode_cose(who.anchor))},
            "rootOfTrust": "SignedBoot",
            "policyRef": {"name": device.name},
            "connection": connection,
        }
        await self.make(f"{path}/devices", "Device", device.name, spec)

    async def instances(self, done: Callable[[list[Json]], bool], seconds: float = 30.0) -> list[Json]:
        path = f"{AKRI}/namespaces/{self.namespace}/instances"
        found: list[Json] = []
        try:
            async with asyncio.timeout(seconds):
                while not done(found := (await self.client.request("GET", path))["items"]):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError([item["spec"] for item in found]) from None
        return found

    async def status(self, device: VirtualDevice, done: Callable[[Json], bool]) -> Json:
        path = f"{OURS}/namespaces/{self.namespace}/devices/{device.name}"
        status: Json = {}
        try:
            async with asyncio.timeout(10):
                while not done(status := (await self.client.request("GET", path)).get("status", {})):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{device.name}: {status}") from None
        return status


@pytest.fixture
async def farm(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Farm]:
    namespace = f"test-{uuid.uuid4().hex[:10]}"
    bench = Bench(tmp_path)
    async with ApiClient.from_kubeconfig(sandbox.plane.kubeconfig) as client:
        await client.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        farm = Farm(sandbox, client, bench, namespace)
        try:
            yield farm
        finally:
            path = f"{AKRI}/namespaces/{namespace}/configurations"
            for item in (await client.request("GET", path))["items"]:
                await client.request("DELETE", f"{path}/{item['metadata']['name']}")
            farm.stop_all()
            await bench.close()


async def test_devices_and_ports_become_instances(farm: Farm) -> None:
    away = await farm.bench.device("away", network=True)
    near = await farm.bench.device("near", "esp32c3")
    for device in (away, near):
        await farm.enroll(device)
    globs = {"serial": {"ports": [f"{farm.bench.tmp_path}/ports/*"]}}
    devices = await farm.configure("away", "network", {"list": "Devices", "applications": ["porch"]})
    ports = await farm.configure("ports", "serial", {"list": "Ports", **globs})
    nears = await farm.configure("near", "serial", {"list": "Devices", **globs})
    await asyncio.sleep(1.5)  # the agent's tries at 0 and 1 s are over
    farm.start("network")
    farm.start("serial")
    found = await farm.instances(lambda items: len(items) == 3)
    by_configuration = {item["spec"]["configurationName"]: item for item in found}
    port = by_configuration[ports]["spec"]
    assert port["brokerProperties"]["UDEV_DEVPATH"] == "/virtual/near"
    assert (port["nodes"], port["shared"]) == (["node-a"], False)
    for configuration, device in ((devices, away), (nears, near)):
        item = by_configuration[configuration]
        token = decode_token(item["spec"]["brokerProperties"]["FLASHJOB_LISTING"])
        assert verify_listing(token, by_key_id(KEY.public_key())).ueid == device.identity.ueid
        status = await farm.status(device, lambda status: "instance" in status)
        assert status["instance"] == {"name": item["metadata"]["name"], "configuration": configuration}
        assert status["attestation"]["accepted"] is True
    await away.stop()
    await farm.instances(lambda items: len(items) == 2)


async def test_sigterm_ends_it_without_a_word_of_an_empty_list(farm: Farm) -> None:
    device = await farm.bench.device("away", network=True)
    await farm.enroll(device)
    await farm.configure("away", "network", {"list": "Devices"})
    farm.start("network")
    await farm.instances(lambda items: len(items) == 1)
    program = farm._handlers["network"]
    program.send_signal(signal.SIGTERM)
    assert program.wait(10) == 0
    log = farm.stop("network")
    assert "Traceback" not in log
    farm.start("network")
    await farm.instances(lambda items: len(items) == 1)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_taken(sandbox: Sandbox, path: Path) -> None:
    sandbox.plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", str(path))
