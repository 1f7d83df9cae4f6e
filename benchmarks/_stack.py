# SPDX-License-Identifier: Apache-2.0
"""What the stack takes on the embedded default: seconds, memory, and writes at the API server.

Our writes are counted in the API server's audit log, by account: what operator and gateway wrote about one device from
the job's creation to its end, and what the discovery handlers wrote about it. Writes about the job itself are not per
device and are a figure of their own.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import requests
from rich.console import Console

from benchmarks.common import Report
from flashjob.cluster.lease import lease_name
from flashjob.demo import act1
from flashjob.demo.materials import Materials
from flashjob.sandbox import programs
from flashjob.sandbox.launcher import ControlPlane
from flashjob.sandbox.process import Program
from flashjob.sandbox.toolchain import build
from tests.integration.world import NEW, Obj, Place, World, end_of

_WRITES: Final = frozenset({"create", "update", "patch", "delete"})
_ACCOUNT: Final = "system:serviceaccount:flashjob-system:flashjob-"
_CHIPS: Final = {"network": "esp32s3", "serial": "esp32c3"}
MB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Update:
    """One device updated by one job."""

    transport: str
    created_to_permit: float
    """Seconds from the pod's creation, as below."""
    running_to_permit: float
    """Seconds, both ends as a watch at the API server shows them."""
    stages: dict[str, float]
    """Seconds of each stage, as the pod saw them."""
    whole: float
    """Seconds from applying the job to its condition Finished."""
    writes: Counter[str]
    """By account and resource."""


def control_plane(report: Report, root: Path) -> None:
    """How long an empty control plane takes to be ready; built before, if need be."""
    binary = build(programs.CONTROL_PLANE, os.environ)
    begun = time.monotonic()
    with ControlPlane.start(root, binary=binary):
        ready = time.monotonic() - begun
    report.bar("control plane ready, seconds", ready, "<=", 6.0, wall_clock=True)


def bench(report: Report, root: Path) -> None:
    """The first true verdict of somebody without a cluster: keys, images, artifact, two devices, one of them a liar."""
    begun = time.monotonic()
    root.mkdir()
    outcomes = asyncio.run(act1.play(Materials.make(root / "materials"), root / "act1", Console(file=io.StringIO())))
    seconds = time.monotonic() - begun
    if not all(outcome.as_expected for outcome in outcomes):
        raise RuntimeError(f"not as expected: {outcomes}")
    report.bar("first verdicts at a bench, seconds", seconds, "<=", 60.0, wall_clock=True)


def stack(report: Report, root: Path) -> None:
    """Single-device jobs on the whole stack, one after another."""
    root.mkdir()
    begun = time.monotonic()
    world = World.up(root, os.environ)
    try:
        report.figure("stack.ready_seconds", time.monotonic() - begun)
        with world.place() as place:
            updates = _updates(world, place, 1 if report.smoke else 3)
        for transport in _CHIPS:
            own = [update for update in updates if update.transport == transport]
            report.figure(f"stack.{transport}.job_seconds", [update.whole for update in own])
            report.figure(f"stack.{transport}.created_to_permit_seconds", [u.created_to_permit for u in own])
            report.figure(f"stack.{transport}.running_to_permit_seconds", [u.running_to_permit for u in own])
            report.figure(f"stack.{transport}.stage_seconds", [update.stages for update in own])
            report.figure(f"stack.{transport}.writes", dict(sorted(own[-1].writes.items())))
            permit = statistics.median(update.running_to_permit for update in own)
            report.bar(f"running pod to permit, {transport}, seconds", permit, "<=", 2.0, wall_clock=True)
        report.bar("API writes of ours per device", max(_of(u, "operator", "gateway") for u in updates), "<=", 8)
        report.bar("API writes of the handlers per device", max(_of(u, "discovery-handler") for u in updates), "<=", 2)
        for name, program, limit in (
            ("operator", world.stack.operator, 120),
            ("gateway", world.stack.gateway, 110),
            *((f"discovery-{role}", program, None) for role, program in world.stack.handlers.items()),
        ):
            now, peak = _memory(program)
            report.figure(f"stack.{name}.peak_megabytes", peak / MB)
            if limit is None:
                report.figure(f"stack.{name}.megabytes", now / MB)
            else:
                report.bar(f"{name} RSS, megabytes", now / MB, "<=", limit)
    finally:
        world.down()


def demo(report: Report) -> None:
    """The whole demo, everything compiled before."""
    if report.smoke:
        report.say("  the demo is no part of a smoke run")
        return
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flashjob.cli", "demo", "--json"], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        raise RuntimeError(f"the demo ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    report.figure("demo.step_seconds", json.loads(done.stdout)["seconds"])
    report.bar("warm demo, seconds", seconds, "<=", 90.0, wall_clock=True)


def _updates(world: World, place: Place, rounds: int) -> list[Update]:
    names = {f"{kind}-{number}": kind for number in range(rounds) for kind in _CHIPS}
    place.start_fleet(*({"name": n, "chip": _CHIPS[kind], "transport": kind} for n, kind in names.items()))
    image = world.push(place.namespace, world.plans(_CHIPS.values(), NEW), signer=world.signer())
    place.apply(
        *(place.device(name, job=name) for name in names),
        place.configuration("devices-network", "network", {"list": "Devices", "network": {}}),
        place.configuration(
            "devices-serial",
            "serial",
            {"list": "Devices", "serial": {"ports": [f"{place.directory / 'ports'}/*"]}},
        ),
    )
    place.until("devices", lambda devices: len(devices) == len(names) and all(map(_listed, devices.values())))
    return [_update(world, place, name, kind, image) for name, kind in names.items()]


def _listed(device: Obj) -> bool:
    """Attested, and its Instance is known: what the handler wrote before the job is then written, and not counted."""
    status = device.get("status", {})
    return bool(status.get("attestation", {}).get("accepted")) and "instance" in status


def _update(world: World, place: Place, name: str, transport: str, image: str) -> Update:
    audit = world.root / "audit.log"
    start = audit.stat().st_size
    job = place.job(name, image, rediscovery="Required", timeouts={})
    created = _Seen(place, "pods", bool)
    running = _Seen(place, "pods", lambda pods: any(pod["status"].get("phase") == "Running" for pod in pods))
    permit = _Seen(
        place, "flashtasks", lambda tasks: any(t["spec"]["job"]["name"] == name and _permits(t) for t in tasks)
    )
    begun = time.monotonic()
    place.apply(job)
    for seen in (created, running, permit):
        seen.wait()
    place.finished(name)
    whole = time.monotonic() - begun
    (task,) = place.tasks(name).values()
    if end_of(task) != ("Succeeded", "Proven"):
        raise RuntimeError(f"{name} ended {end_of(task)}\n{place.story()}")
    place.until("devices", lambda devices: _shows(devices[place.full(name)], NEW))
    writes = _writes(audit, start, task, place)
    place.kubectl("delete", "flashjob", name)
    place.until("pods", lambda pods: not pods or None)
    stages: dict[str, float] = task["status"]["seconds"]
    return Update(transport, permit.at - created.at, permit.at - running.at, stages, whole, writes)


class _Seen:
    """When a watch first shows something; watches in a thread of its own."""

    def __init__(self, place: Place, kind: str, holds: Callable[[list[Obj]], bool]) -> None:
        self.at = 0.0
        self._error: BaseException | None = None
        own = replace(place, _session=requests.Session())
        self._thread = threading.Thread(target=self._watch, args=(own, kind, holds), daemon=True)
        self._thread.start()

    def _watch(self, place: Place, kind: str, holds: Callable[[list[Obj]], bool]) -> None:
        try:
            place.until(kind, lambda objects: holds(list(objects.values())))
            self.at = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            self._error = error

    def wait(self) -> None:
        """Return when it was seen; raises what the watch raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def _permits(task: Obj) -> bool:
    return bool(task.get("status", {}).get("report", {}).get("permits"))


def _shows(device: Obj, version: str) -> bool:
    attestation = device["status"].get("attestation", {})
    return bool(attestation.get("accepted")) and attestation.get("version") == version


def _writes(audit: Path, start: int, task: Obj, place: Place) -> Counter[str]:
    """Our writes since byte `start` of the audit log that are about this task's device."""
    device = task["spec"]["device"]
    about = {
        ("flashtasks", task["metadata"]["name"]),
        ("leases", lease_name(device["id"])),
        ("devices", device["name"]),
        *(("pods", pod["metadata"]["name"]) for pod in place.items("pods")),
    }
    with audit.open("rb") as lines:
        lines.seek(start)
        return count_writes(lines, about)


def count_writes(lines: Iterable[bytes], about: Container[tuple[str, str]]) -> Counter[str]:
    """Count what accounts of ours changed.

    Args:
        lines: of the API server's audit log, in JSON.
        about: (resource, name) of the objects that are counted by "account verb resource[/subresource]"; writes to
            FlashJobs are counted as "job: ...", refused ones as "refused: ..."; reads and other objects not at all.
    """
    found: Counter[str] = Counter()
    for line in lines:
        entry: dict[str, Any] = json.loads(line)
        account = entry["user"].get("username", "").partition(_ACCOUNT)[2]
        if not account or entry["verb"] not in _WRITES:
            continue
        ref = entry.get("objectRef", {})
        resource = ref.get("resource", "")
        what = "/".join(filter(None, (resource, ref.get("subresource"))))
        said = f"{account} {entry['verb']} {what}"
        if entry["responseStatus"]["code"] >= 400:
            found[f"refused: {said}"] += 1
        elif (resource, ref.get("name")) in about:
            found[said] += 1
        elif resource == "flashjobs":
            found[f"job: {said}"] += 1
    return found


def _of(update: Update, *accounts: str) -> int:
    return sum(count for name, count in update.writes.items() if name.partition(" ")[0] in accounts)


def _memory(program: Program | None) -> tuple[int, int]:
    """(resident bytes now, at most) of a program behind its tether."""
    if program is None:
        raise RuntimeError("the program does not run")
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    lines = Path(f"/proc/{children[0]}/status").read_text().splitlines()
    fields = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024
