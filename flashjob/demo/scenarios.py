# SPDX-License-Identifier: Apache-2.0
"""The scenarios, and what each must come to. The demo succeeds only if every outcome is the expected one."""

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flashjob.api.flashtask import FlashTask
from flashjob.cluster.kubeapi import KubeApi, list_all
from flashjob.cluster.resources import DEVICES, FLASHJOBS, FLASHTASKS, INSTANCES, Obj

from .act2 import NAMESPACE, NEW, Stage, until
from .materials import APP_A, APP_B

Watch = Callable[[KubeApi, str], Awaitable[None]]
"""Shows a job until it is finished."""

FINISHED_SECONDS: Final = 240.0
NEXT: Final = "2.1.0"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One statement the demo checks against the API server or the device itself."""

    scenario: str
    what: str
    expected: str
    found: str

    @property
    def holds(self) -> bool:
        """Whether it is as it must be."""
        return self.expected == self.found


async def finished(stage: Stage, api: KubeApi, job: str, watch: Watch) -> dict[str, FlashTask]:
    """Watch a job to its end, then ask `kubectl wait`, as CI would; its tasks by device name."""
    await watch(api, job)
    stage.shell(f"kubectl wait --for=condition=Finished flashjob/{job}")
    stage.sandbox.plane.kubectl(
        "wait", "--for=condition=Finished", f"flashjob/{job}", f"--timeout={FINISHED_SECONDS:.0f}s"
    )
    tasks = [FlashTask.parse(obj) for obj in await list_all(api, FLASHTASKS, NAMESPACE)]
    return {task.spec.device.name: task for task in tasks if task.spec.job.name == job}


async def update(stage: Stage, api: KubeApi, watch: Watch) -> list[Outcome]:
    """Version 2.0 for all devices at once; the classic ESP32 is written, and cannot prove it."""
    stage.say("\n[bold]Update[/]: one signed artifact for four chips, one job for all devices")
    stage.push(APP_A, NEW, 2)
    stage.job("porch-2-0", f"{APP_A}:{NEW}", {"site": "berlin"})
    tasks = await finished(stage, api, "porch-2-0", watch)
    outcomes = []
    for device in stage.devices:
        provable = not (device.policy == "field" and device.tier == "SelfReported")
        task = tasks.get(device.name)
        found = f"{task.status.phase} {task.status.reason}" if task else "no task"
        expected = "Succeeded Proven" if provable else "Unproven RootOfTrustTooLow"
        outcomes.append(Outcome("update", device.name, expected, found))
        written = stage.fleet.counters(device.name)
        outcomes.append(Outcome("update", f"{device.name}: installations it counted", "1", str(written["installs"])))
    return outcomes


async def repurpose(stage: Stage, api: KubeApi, watch: Watch) -> list[Outcome]:
    """Application A becomes B on one device: its Instance moves from one Configuration to the other."""
    device = next(d for d in stage.devices if d.transport == "network")
    stage.say(f"\n[bold]Repurpose[/]: {device.name} turns from {APP_A} into {APP_B}")
    before = await api.get(DEVICES, NAMESPACE, device.name)
    await until(
        api,
        INSTANCES,
        lambda found: _listed(found, before) in (["yard"], ["real-network"]),
        60,
        f"{device.name} listed",
    )
    stage.push(APP_B, NEW, 2)
    stage.job("yard-to-cellar", f"{APP_B}:{NEW}", {"device": device.name})
    tasks = await finished(stage, api, "yard-to-cellar", watch)
    task = tasks.get(device.name)
    instances = await until(
        api, INSTANCES, lambda found: _listed(found, before) == ["cellar"], 60, f"{device.name} under cellar"
    )
    after = await api.get(DEVICES, NAMESPACE, device.name)
    same = "same Device" if after["metadata"]["uid"] == before["metadata"]["uid"] else "another Device"
    return [
        Outcome(
            "repurpose",
            device.name,
            "Succeeded Proven",
            f"{task.status.phase} {task.status.reason}" if task else "no task",
        ),
        Outcome("repurpose", f"{device.name}: listed under", "cellar", " ".join(_listed(instances, before))),
        Outcome("repurpose", f"{device.name}: identity", "same Device", same),
    ]


async def adversary(stage: Stage, api: KubeApi, watch: Watch) -> list[Outcome]:
    """A device that takes the write, answers "done", and goes on running the old image."""
    device = [d for d in stage.devices if d.transport == "network"][-1]
    stage.say(f"\n[bold]Adversary[/]: {device.name} takes the write, says done, and runs the old image")
    stage.fleet.ask("behave", device.name, behaviour="RunsOldImage")
    stage.push(APP_A, NEXT, 3)
    stage.job("porch-2-1", f"{APP_A}:{NEXT}", {"device": device.name})
    tasks = await finished(stage, api, "porch-2-1", watch)
    job = await api.get(FLASHJOBS, NAMESPACE, "porch-2-1")
    task = tasks.get(device.name)
    return [
        Outcome(
            "adversary",
            device.name,
            "Failed MeasurementMismatch",
            f"{task.status.phase} {task.status.reason}" if task else "no task",
        ),
        Outcome("adversary", "porch-2-1: counted as succeeded", "0", str(job["status"]["counts"]["succeeded"])),
        Outcome("adversary", "porch-2-1: phase", "Failed", str(job["status"]["phase"])),
    ]


SCENARIOS: Final = {"update": update, "repurpose": repurpose, "adversary": adversary}


def _listed(instances: Mapping[tuple[str, str], Obj], device: Obj) -> list[str]:
    """Configurations under which a device is listed now, ports apart."""
    wanted = device["spec"]["id"]
    return sorted(
        one["spec"]["configurationName"]
        for one in instances.values()
        if (one["spec"].get("brokerProperties") or {}).get("FLASHJOB_DEVICE_ID") == wanted
        and not one["metadata"].get("deletionTimestamp")
    )


def private_keys_in_cluster(stage: Stage) -> list[str]:
    """Secrets that hold one of the keys that must never enter the cluster; the demo ends badly if there is one."""
    listed: dict[str, Any] = json.loads(stage.sandbox.plane.kubectl("get", "secrets", "-A", "-o", "json"))
    private = [stage.materials.key(name).read_bytes().strip() for name in ("signer", "release")]
    bad = []
    for secret in listed["items"]:
        values = [base64.b64decode(value) for value in (secret.get("data") or {}).values()]
        if any(key in value for key in private for value in values):
            bad.append(f"{secret['metadata']['namespace']}/{secret['metadata']['name']}")
    return bad
