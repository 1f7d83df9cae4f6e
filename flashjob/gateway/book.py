# SPDX-License-Identifier: Apache-2.0
"""The case book on the cluster: who is assigned, what is known, and the one write.

Everything is read from caches but the FlashTask itself, which is read anew for each ruling: its resourceVersion is the
precondition of the write. Rules of an assignment (door.py, rule 1):

1. The token's pod, by name and UID, is in the cache, is not being deleted and has not ended.
2. Its annotation names the task and the attempt.
3. The Lease of the task's device is held by exactly this attempt.

A device id that two Devices claim is held for both (IdentityConflict): nothing is written until people sort it out.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from attestation import keys
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.errors import Reject
from attestation.policy import AttestationPolicySpec, RootOfTrust
from flashjob.api.device import Device
from flashjob.api.flashtask import FlashTask, Phase, Report
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.lease import LABEL_DEVICE_LOCK, DeviceLease, Holder, lease_name
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES, FLASHJOBS, FLASHTASKS, LEASES, PODS, Obj
from flashjob.errors import FlashJobError
from flashjob.wire.gateway import Outcome, Progress
from flashjob.wire.pod import ANNOTATION_ASSIGNMENTS, LABEL_COMPONENT
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Measurement as Pinned
from flashjob.wire.target import Target

from .case import Case, PermitRecord, Subject, as_measurement
from .record import at_stage
from .service import Clock, Conflict, Gathered
from .tokens import Caller, KeySet, identify

FIELD_MANAGER: Final = "flashjob-gateway"
FLASHER_SELECTOR: Final = f"{LABEL_COMPONENT}=flasher"
_STAGE_AFTER_SECONDS: Final = 10.0


class PodSeen(NamedTuple):
    """The parts of a flashing pod that an assignment rests on."""

    name: str
    uid: str
    live: bool
    assignments: frozenset[tuple[str, int]]


class JobSeen(NamedTuple):
    """The parts of a job that a permit rests on."""

    name: str
    paused: bool
    deleted: bool


class TaskSeen(NamedTuple):
    """The parts of a task that other rulings rest on."""

    name: str
    job: str
    job_uid: str
    device_id: str
    device_name: str
    live: bool
    target: Target | None


def read_pod(obj: Obj) -> PodSeen:
    """Projection of a pod; ValueError where its annotation is not ours."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    annotation = (metadata.get("annotations") or {}).get(ANNOTATION_ASSIGNMENTS, "[]")
    refs = frozenset((str(ref["task"]), int(ref["attempt"])) for ref in json.loads(annotation))
    live = not metadata.get("deletionTimestamp") and status.get("phase") not in ("Succeeded", "Failed")
    return PodSeen(metadata["name"], metadata["uid"], live, refs)


def read_job(obj: Obj) -> JobSeen:
    """Projection of a FlashJob."""
    metadata = obj["metadata"]
    return JobSeen(metadata["name"], bool(obj["spec"].get("paused")), bool(metadata.get("deletionTimestamp")))


def read_task(obj: Obj) -> TaskSeen:
    """Projection of a FlashTask; ValueError where it does not follow the model."""
    task = FlashTask.parse(obj)
    live = not task.status.phase.final and task.metadata.deletion_timestamp is None
    spec = task.spec
    return TaskSeen(
        task.metadata.name, spec.job.name, spec.job.uid, spec.device.id, spec.device.name, live, spec.target
    )


def read_policy(obj: Obj) -> AttestationPolicySpec:
    """Projection of an AttestationPolicy; ValueError where it does not follow the model."""
    return AttestationPolicySpec.model_validate_json(json.dumps(obj.get("spec") or {}))


@dataclass(slots=True)
class CaseBook:
    """Reads cases from the cluster and writes reports. Run `run()`; it is ready once all caches are filled.

    Args:
        api: the API server, as the gateway's own ServiceAccount.
        operator_namespace: where the device Leases are.
        issuer, audience: what tokens must say.
        clock: time.
        namespace: which namespace's objects; "" for all.
    """

    api: KubeApi
    operator_namespace: str
    issuer: str
    audience: str
    clock: Clock
    namespace: str = ""
    keys: KeySet | None = None
    _stages: dict[tuple[str, str], tuple[str, float, bool]] = field(default_factory=dict)
    _writes: set[asyncio.Task[None]] = field(default_factory=set)
    tasks: Reflector[TaskSeen] = field(init=False)
    pods: Reflector[PodSeen] = field(init=False)
    jobs: Reflector[JobSeen] = field(init=False)
    devices: Reflector[Device] = field(init=False)
    policies: Reflector[AttestationPolicySpec] = field(init=False)
    leases: Reflector[DeviceLease] = field(init=False)
    _ids: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    _tasks_of: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        api, space = self.api, self.namespace
        self.tasks = Reflector(api, FLASHTASKS, space, project=read_task, on_change=self._index_task)
        self.pods = Reflector(api, PODS, space, project=read_pod, label_selector=FLASHER_SELECTOR)
        self.jobs = Reflector(api, FLASHJOBS, space, project=read_job)
        self.devices = Reflector(api, DEVICES, space, project=Device.parse, on_change=self._index)
        self.policies = Reflector(api, ATTESTATION_POLICIES, space, project=read_policy)
        self.leases = Reflector(
            api, LEASES, self.operator_namespace, project=DeviceLease.read, label_selector=f"{LABEL_DEVICE_LOCK}=true"
        )

    @property
    def reflectors(self) -> tuple[Reflector[Any], ...]:
        """All caches."""
        return (self.tasks, self.pods, self.jobs, self.devices, self.policies, self.leases)

    async def run(self) -> None:
        """Keep the caches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self.reflectors:
                group.create_task(reflector.run())
            group.create_task(self._fetch_keys())

    async def _fetch_keys(self) -> None:
        """The issuer's public keys. Rotation of the issuer's keys is a restart of the API server, and of this process."""
        pause = 0.2
        while self.keys is None:
            try:
                self.keys = KeySet(await self.api.get_raw("/openid/v1/jwks"))
            except ApiError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 10.0)

    @property
    def ready(self) -> bool:
        """Whether all caches are filled and the keys are there."""
        return self.keys is not None and all(reflector.synced.is_set() for reflector in self.reflectors)

    # Who

    def caller(self, token: str) -> Caller:
        """Whose token this is. Raises FlashJobError."""
        if self.keys is None:
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "the API server's token keys are not loaded yet")
        return identify(token, self.keys, issuer=self.issuer, audience=self.audience, now=self.clock.now())

    def assigned(self, caller: Caller, task: str, attempt: int) -> str:
        """Rules 1 to 3; the name of the task's job. Raises FlashJobError NotAssigned."""
        if not self.ready:
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "the caches are filling")
        pod = self.pods.get(caller.namespace, caller.pod)
        if pod is None or pod.uid != caller.pod_uid or not pod.live:
            raise _stranger(f"pod {caller.pod} with this UID is not running")
        if (task, attempt) not in pod.assignments:
            raise _stranger(f"pod {caller.pod} is not assigned attempt {attempt} of {task}")
        seen = self.tasks.get(caller.namespace, task)
        if seen is None:
            raise _stranger(f"there is no task {task}")
        lease = self.leases.get(self.operator_namespace, lease_name(seen.device_id))
        if lease is None or lease.holder != Holder(caller.namespace, task, attempt):
            held = lease.holder if lease else None
            raise _stranger(f"the device's Lease is held by {held or 'nobody'}")
        return seen.job

    def address(self, caller: Caller, task: str) -> str | None:
        """Where the handler last saw the task's device."""
        seen = self.tasks.get(caller.namespace, task)
        pod = self.pods.get(caller.namespace, caller.pod)
        if (
            seen is None
            or pod is None
            or pod.uid != caller.pod_uid
            or task not in {name for name, _ in pod.assignments}
        ):
            raise _stranger(f"pod {caller.pod} is not assigned to {task}")
        device = self.devices.get(caller.namespace, seen.device_name)
        if device is None:
            return None
        fixed = device.spec.connection.network.address if device.spec.connection.network else None
        return fixed or device.status.endpoint or None

    # What

    async def gather(self, namespace: str, task: str, attempt: int) -> Gathered:
        """See service.Cases."""
        try:
            obj = await self.api.get(FLASHTASKS, namespace, task)
            found = FlashTask.parse(obj)
        except ApiError as error:
            if error.status == 404:
                raise _stranger(f"there is no task {task}") from error
            raise _trouble(f"{namespace}/{task} cannot be read: {error}") from error
        except ValidationError as error:
            raise _trouble(f"{namespace}/{task} cannot be understood: {error}") from error
        report = found.status.report or Report()
        return Gathered(self._case(found, report, attempt), report, found.metadata.resource_version)

    async def write(self, namespace: str, task: str, report: Report, version: str) -> None:
        """See service.Cases."""
        try:
            await self.api.patch_status(
                FLASHTASKS,
                namespace,
                task,
                {"report": report.model_dump(mode="json", by_alias=True)},
                field_manager=FIELD_MANAGER,
                resource_version=version,
            )
        except ApiError as error:
            if error.conflict:
                raise Conflict from error
            raise _trouble(f"{namespace}/{task} cannot be written: {error}") from error

    def saw(self, namespace: str, task: str, progress: Progress) -> None:
        """Write the stage of an attempt that has been in it for ten seconds, once, in the background."""
        key, now = (namespace, task), self.clock.now()
        name = f"{progress.attempt}/{progress.stage}"
        known, since, written = self._stages.get(key, ("", now, False))
        if known != name:
            self._stages[key] = (name, now, False)
        elif not written and now - since >= _STAGE_AFTER_SECONDS:
            self._stages[key] = (name, since, True)
            running = asyncio.create_task(self._write_stage(namespace, task, progress, since))
            self._writes.add(running)
            running.add_done_callback(self._writes.discard)

    async def _write_stage(self, namespace: str, task: str, progress: Progress, since: float) -> None:
        # A stage that could not be written is no loss: the next report tries again in another stage.
        with contextlib.suppress(FlashJobError, Conflict):
            gathered = await self.gather(namespace, task, progress.attempt)
            if not gathered.case.judged:
                report = at_stage(gathered.report, progress.stage, self.clock.stamp(since))
                await self.write(namespace, task, report, gathered.version)

    def _case(self, task: FlashTask, report: Report, attempt: int) -> Case:
        namespace, spec = task.metadata.namespace, task.spec
        device = self.devices.get(namespace, spec.device.name)
        if device is None or device.spec.id != spec.device.id:
            raise _stranger(f"Device {spec.device.name} with id {spec.device.id} is not enrolled")
        if spec.target is None:
            raise _stranger(f"{task.metadata.name} has no target")
        policy = self.policies.get(namespace, device.spec.policy_ref.name)
        if policy is None:
            raise FlashJobError(
                Reason.POLICY_MISSING,
                f"AttestationPolicy {namespace}/{device.spec.policy_ref.name} is missing or unreadable",
                Reason.POLICY_MISSING.next_step,
            )
        lease = self.leases.get(self.operator_namespace, lease_name(spec.device.id))
        verdict = report.verdict
        last = task.status.last_attempt
        over = (
            task.status.phase.final
            or (last is not None and last.attempt >= attempt)
            or (verdict is not None and (verdict.outcome is not Outcome.REJECTED or verdict.attempt >= attempt))
        )
        return Case(
            namespace=namespace,
            task=task.metadata.name,
            task_uid=task.metadata.uid,
            attempt=attempt,
            target=spec.target,
            transport=spec.transport,
            before=spec.before,
            safety=spec.safety,
            timeouts=spec.timeouts,
            subject=self._subject(namespace, device, policy),
            lease_transitions=lease.transitions if lease else 0,
            permits=tuple(PermitRecord(p.attempt, p.grant_id, p.fence, p.at) for p in report.permits),
            used_nonces=frozenset(report.used_nonces),
            judged=over or task.status.phase is Phase.UNKNOWN,
            held=self._held(task, device),
        )

    def _held(self, task: FlashTask, device: Device) -> tuple[Reason, str] | None:
        job = self.jobs.get(task.metadata.namespace, task.spec.job.name)
        if job is None or job.deleted or task.metadata.deletion_timestamp:
            return Reason.JOB_DELETED, f"job {task.spec.job.name} is gone or going"
        if job.paused:
            return Reason.PAUSED, f"job {job.name} is paused"
        if device.spec.suspended:
            return Reason.SUSPENDED, f"Device {device.metadata.name} is suspended"
        if len(self._ids.get(device.spec.id, ())) > 1:
            return Reason.IDENTITY_CONFLICT, f"several Devices claim {device.spec.id}"
        return None

    def _subject(self, namespace: str, device: Device, policy: AttestationPolicySpec) -> Subject:
        spec, status = device.spec, device.status
        anchor: DeviceAnchor | None = None
        if spec.trust_anchor is not None:
            try:
                anchor = DeviceAnchor(
                    ueid=bytes.fromhex(spec.id),
                    key=keys.from_cose(spec.trust_anchor.cose_key),
                    tier=RootOfTrust(spec.root_of_trust),
                    policy=spec.policy_ref.name,
                    state=DeviceState.SUSPENDED if spec.suspended else DeviceState.ACTIVE,
                )
            except Reject as error:
                raise _stranger(f"Device {device.metadata.name}: {error}") from error
        floors = status.floors
        pinned: list[Pinned] = []
        for name in self._tasks_of.get((namespace, spec.id), ()):
            task = self.tasks.get(namespace, name)
            if task is not None and task.live and task.target:
                pinned.extend(task.target.measurements)
        return Subject(
            id=bytes.fromhex(spec.id),
            device=anchor,
            policy=policy,
            confirmed=frozenset(map(as_measurement, status.firmware.measurements if status.firmware else ())),
            pinned=frozenset(map(as_measurement, pinned)),
            floors=Floors(floors.security_version, floors.sequence, floors.boot_count) if floors else Floors(),
        )

    def _index_task(self, key: tuple[str, str], before: TaskSeen | None, after: TaskSeen | None) -> None:
        namespace, name = key
        if before is not None:
            self._tasks_of.get((namespace, before.device_id), set()).discard(name)
        if after is not None:
            self._tasks_of.setdefault((namespace, after.device_id), set()).add(name)

    def _index(self, key: tuple[str, str], before: Device | None, after: Device | None) -> None:
        if before is not None:
            self._ids.get(before.spec.id, set()).discard(key)
        if after is not None:
            self._ids.setdefault(after.spec.id, set()).add(key)


def _stranger(why: str) -> FlashJobError:
    return FlashJobError(Reason.NOT_ASSIGNED, why, Reason.NOT_ASSIGNED.next_step)


def _trouble(why: str) -> FlashJobError:
    return FlashJobError(Reason.GATEWAY_UNAVAILABLE, why, Reason.GATEWAY_UNAVAILABLE.next_step)
