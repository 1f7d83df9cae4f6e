# SPDX-License-Identifier: Apache-2.0
"""A cluster as pure data: decisions are applied to it, any prefix of them, and the other parties act by their rules."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from flashjob.api.device import DeviceStatus
from flashjob.api.flashjob import FlashJobSpec, FlashJobStatus
from flashjob.api.flashtask import FlashTaskStatus
from flashjob.cluster.lease import lease_name
from flashjob.planning.batches import batches, begun
from flashjob.planning.batches import name as batch_name
from flashjob.planning.decisions import Decisions, NewTask, Patch, Start
from flashjob.planning.state import (
    Admission,
    Device,
    Instance,
    Job,
    Key,
    Lease,
    Listing,
    Pod,
    Policy,
    Refusal,
    State,
    Task,
)
from flashjob.planning.timeouts import active_deadline_seconds
from flashjob.wire.clock import seconds, stamp
from flashjob.wire.gateway import DeviceResult, Stage
from flashjob.wire.lock import Holder
from flashjob.wire.target import Measurement, Target

T0 = 1_767_225_600.0
NEW = Measurement(scheme="esp-image", alg=-16, value="22" * 32)
TARGET = Target(
    repository="registry.example/porch",
    index_digest=f"sha256:{'1' * 64}",
    manifest_digest=f"sha256:{'2' * 64}",
    config_digest=f"sha256:{'3' * 64}",
    chip="esp32s3",
    chip_id=9,
    application="porch",
    version="2.1.0",
    secure_version=0,
    sequence=21,
    image_size=65536,
    image_digest=f"sha256:{'4' * 64}",
    measurements=(NEW,),
)


def job(**spec: Any) -> Job:
    """A job for the devices with label site=berlin."""
    body = {
        "firmware": {"image": "registry.example/porch:2.1.0"},
        "devices": {"selector": {"matchLabels": {"site": "berlin"}}},
        "timeouts": {"startSeconds": 30, "fetchSeconds": 10, "writeSeconds": 30, "rediscoverSeconds": 20},
        "strategy": {"maxInFlight": 2, "retries": {"limit": 3, "backoffSeconds": 2}},
        **spec,
    }
    return Job("farm", "porch", "job-uid", 1, T0, FlashJobSpec.parse(body), FlashJobStatus())


def device(name: str, **changes: Any) -> Device:
    """A network device; its id is a function of its name."""
    made = Device(
        namespace="farm",
        name=name,
        id="01" + name.encode().hex().ljust(64, "0")[:64],
        policy="lab",
        root_of_trust="SignedBoot",
        labels={"site": "berlin"},
        network=True,
        address="127.0.0.1:80",
    )
    return replace(made, **changes)


READY = Admission(targets={"esp32s3": TARGET}, policies={"lab": Policy()})


def merge(old: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    base = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = merge(base.get(key), value)
    return base


class Seat(NamedTuple):
    """One attempt in its pod."""

    pod: Pod
    task: str
    attempt: int


@dataclass
class Model:
    """The cluster. `truth` holds what each device really is; `writers` which pods may write to it now."""

    job: Job
    devices: dict[str, Device]
    tasks: dict[Key, Task] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    now: float = T0
    gateway: Refusal | None = None
    writers: dict[str, dict[str, float]] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)
    ends: dict[str, dict[tuple[str, int], DeviceResult]] = field(default_factory=dict)
    """How attempts ended in each pod (by uid); the API server hears of it when the pod has ended."""
    version: int = 0

    def state(self) -> State:
        return State(
            job=self.job,
            admission=READY,
            tasks=dict(self.tasks),
            pods=tuple(self.pods.values()),
            devices=tuple(self.devices.values()),
            instances=tuple(self.instances.values()),
            leases=dict(self.leases),
            gateway=self.gateway,
        )

    # --- applying decisions, one write at a time

    def writes(self, decisions: Decisions) -> list[Any]:
        """Every single write, in order; a crash may come between any two."""
        out: list[Any] = [lambda n=n: self._create(n) for n in decisions.create_tasks]
        for patch in decisions.patches:
            if patch.device is not None:
                out.append(lambda p=patch: self._device(p))
            out.append(lambda p=patch: self._patch(p))
        for batch in batches(decisions.starts):
            taken: list[Start] = []
            out += [lambda s=start, t=taken: self._take(s, t) for start in batch]
            out.append(lambda t=taken: self._pod(t))
        out += [lambda p=pod: self._delete(p) for pod in decisions.delete_pods]
        if decisions.job_status is not None:
            out.append(lambda: self._status(decisions.job_status))
        return out

    def _next(self) -> str:
        self.version += 1
        return str(self.version)

    def _create(self, new: NewTask) -> None:
        key = (self.job.namespace, new.name)
        self.tasks.setdefault(
            key,
            Task(
                namespace=self.job.namespace,
                name=new.name,
                uid=f"uid-{new.name}",
                job=self.job.name,
                job_uid=self.job.uid,
                device=new.device.id,
                device_name=new.device.name,
                transport=new.transport,
                target=new.target,
                before=new.before,
                timeouts=new.timeouts,
                safety=new.safety,
                rediscovery_required=new.rediscovery_required,
                status=FlashTaskStatus(),
                created_at=self.now,
                refusal=new.refusal,
                resource_version=self._next(),
            ),
        )

    def _patch(self, patch: Patch) -> None:
        task = self.tasks[patch.task.key]
        if task.resource_version != patch.task.resource_version:
            return
        status = FlashTaskStatus.parse(merge(task.status.dump(), dict(patch.status)))
        assert not task.status.phase.final, "a final phase never changes"
        self.tasks[task.key] = replace(task, status=status, resource_version=self._next())

    def _device(self, patch: Patch) -> None:
        found = next(d for d in self.devices.values() if (d.namespace, d.name) == patch.device)
        status = DeviceStatus.parse(merge(found.status.dump(), dict(patch.device_status or {})))
        assert len(json.dumps(status.dump())) <= 2048
        self.devices[found.id] = replace(found, status=status)

    def _take(self, start: Start, taken: list[Start]) -> None:
        """The Lease; a start whose Lease somebody else took first is left out of the pod."""
        old = self.leases.get(start.device.id)
        if (old is None) != (start.lease is None) or (old and start.lease and old != start.lease):
            return
        taken.append(start)
        self.leases[start.device.id] = Lease(
            name=lease_name(start.device.id),
            owner=(start.device.namespace, start.device.name),
            holder=str(Holder(start.task.namespace, start.task.name, start.attempt)),
            acquired_at=self.now,
            transitions=(old.transitions if old else 0) + 1,
            resource_version=self._next(),
        )

    def _pod(self, taken: list[Start]) -> None:
        """One pod for all that were taken, unless the one attempt that was begun before has one already."""
        if not taken:
            return
        name, assignments = batch_name(taken), tuple((start.task.name, start.attempt) for start in taken)
        if len(taken) == 1 and begun(taken[0]) and any(assignments[0] in p.assignments for p in self.pods.values()):
            return
        self.pods.setdefault(
            name,
            Pod(
                namespace=self.job.namespace,
                name=name,
                uid=f"uid-{name}-{self._next()}",
                phase="Pending",
                created_at=self.now,
                job_uid=self.job.uid,
                assignments=assignments,
            ),
        )

    def _delete(self, pod: Pod) -> None:
        if pod.name in self.pods:
            self.pods[pod.name] = replace(self.pods[pod.name], deleting=True)

    def _status(self, status: FlashJobStatus | None) -> None:
        if status is not None:
            self.job = replace(self.job, status=FlashJobStatus.parse(status.dump()))

    # --- the other parties

    def live(self) -> list[Pod]:
        return sorted((p for p in self.pods.values() if not p.terminal), key=lambda p: p.name)

    def seats(self) -> list[Seat]:
        """The attempts that run in live pods."""
        return [Seat(pod, *of) for pod in self.live() for of in pod.assignments if of not in self.ends.get(pod.uid, {})]

    def permit(self, seat: Seat) -> None:
        """The gateway permits, if the pod is the one that the Lease names and its attempt is not over."""
        pod, name, attempt = seat
        task = self.tasks[pod.namespace, name]
        over = task.status.last_attempt.attempt if task.status.last_attempt else 0
        held = self.leases[task.device].holder == str(Holder(pod.namespace, name, attempt))
        report = task.status.report.dump() if task.status.report else {}
        permits = report.get("permits", [])
        if pod.deleting or pod.terminal or not held or over >= attempt or task.status.phase.final:
            return
        if self.job.deleting or self.job.spec.paused or "verdict" in report:
            return
        if not any(p["attempt"] == attempt for p in permits):
            permits = [*permits, {"attempt": attempt, "grantId": f"{attempt:032x}", "fence": 1, "at": stamp(self.now)}]
            self._report(task, {**report, "permits": permits})
        if task.device not in self.proven:
            until = seconds(permits[-1]["at"]) + task.timeouts.write_seconds
            self.writers.setdefault(task.device, {})[pod.uid] = until

    def verdict(self, seat: Seat, outcome: str, reason: str) -> None:
        """The gateway judges; then the attempt ends in its pod."""
        pod, name, attempt = seat
        task = self.tasks[pod.namespace, name]
        permits = task.status.report.permits if task.status.report else ()
        report = task.status.report.dump() if task.status.report else {}
        old = report.get("verdict")
        if pod.terminal or pod.deleting or task.status.phase.final or (old and old["outcome"] != "Rejected"):
            return
        if not any(p.attempt == attempt for p in permits):
            return
        self.writers.get(task.device, {}).pop(pod.uid, None)
        boot_id = permits[-1].grant_id
        if outcome == "Proven":
            self.proven.add(task.device)
        verdict = {
            "attempt": attempt,
            "outcome": outcome,
            "reason": reason,
            "measurement": NEW.dump(),
            "bootId": boot_id,
            "rootOfTrust": "SignedBoot",
            "at": stamp(self.now),
        }
        self._report(task, {**report, "verdict": verdict})
        self.end(seat, None if outcome == "Proven" else reason)

    def _report(self, task: Task, report: dict[str, Any]) -> None:
        status = FlashTaskStatus.parse({**task.status.dump(), "report": report})
        self.tasks[task.key] = replace(task, status=status, resource_version=self._next())

    def end(self, seat: Seat, reason: str | None) -> None:
        """The attempt ends in its pod; with a reason it says that it failed. The last one ends the pod."""
        pod, name, attempt = seat
        ends = self.ends.setdefault(pod.uid, {})
        if pod.name not in self.pods or self.pods[pod.name].terminal or (name, attempt) in ends:
            return
        result = DeviceResult(
            task=name, attempt=attempt, stage=Stage.WRITING, ok=reason is None, reason=reason or "Proven", seconds={}
        )
        ends[name, attempt] = result
        self.writers.get(self.tasks[pod.namespace, name].device, {}).pop(pod.uid, None)
        if len(ends) == len(pod.assignments):
            phase = "Succeeded" if all(each.ok for each in ends.values()) else "Failed"
            self._over(pod, phase, tuple(ends.values()))

    def die(self, pod: Pod) -> None:
        """The pod is killed, and all that runs in it; it has no last words, also of those that had ended."""
        self._over(pod, "Failed", ())

    def _over(self, pod: Pod, phase: str, results: tuple[DeviceResult, ...]) -> None:
        for pods in self.writers.values():
            pods.pop(pod.uid, None)
        self.pods[pod.name] = replace(self.pods[pod.name], phase=phase, finished_at=self.now, results=results)

    def vanish(self, pod: Pod) -> None:
        """The pod's object goes; what it runs may go on (see `writers`)."""
        self.pods.pop(pod.name, None)

    def reap(self) -> None:
        """The kubelet ends what is to be deleted."""
        for pod in list(self.pods.values()):
            if pod.deleting:
                self.vanish(pod)
                for pods in self.writers.values():
                    pods.pop(pod.uid, None)

    def list_device(self, device_id: str) -> None:
        """The handler lists the device as what it proves."""
        task = next((t for t in self.tasks.values() if t.device == device_id), None)
        verdict = task.status.report.verdict if task and task.status.report else None
        if verdict is None or verdict.boot_id is None or verdict.measurement is None:
            return
        self.instances[device_id] = Instance(
            namespace="akri",
            name=f"app-{device_id[:8]}",
            configuration="app",
            properties={},
            token="t",
            listing=Listing(device_id, verdict.measurement, verdict.boot_id, "127.0.0.1:80"),
        )

    def pass_time(self, by: float) -> None:
        """Time passes; what was to be written by then is written."""
        self.now += by
        for pod in self.live():
            timeouts = self.tasks[pod.namespace, pod.assignments[0][0]].timeouts
            if self.now >= pod.created_at + active_deadline_seconds(timeouts):
                self.die(pod)
        for pods in self.writers.values():
            for uid in [uid for uid, until in pods.items() if self.now >= until]:
                del pods[uid]
