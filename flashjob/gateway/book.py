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
import logging
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from attestation.errors import Code, Reject
from attestation.nonce import SIZE as NONCE_SIZE
from attestation.verdict import ExactNonce
from flashjob.api.flashtask import FlashTask, Phase, Report
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.lease import LABEL_DEVICE_LOCK, DeviceLease, lease_name
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import FLASHJOBS, FLASHTASKS, LEASES, PODS, Obj
from flashjob.errors import FlashJobError
from flashjob.trust.cluster_store import ClusterTrust
from flashjob.trust.records import KnownDevice
from flashjob.wire.gateway import Outcome, Progress
from flashjob.wire.lock import Holder
from flashjob.wire.pod import ANNOTATION_ASSIGNMENTS, LABEL_COMPONENT, AssignmentRef
from flashjob.wire.reasons import Reason

from .case import Case, Subject
from .progress import LIMIT as MOST_TASKS
from .record import at_stage, permits_of, refused_of
from .service import Clock, Conflict, Gathered
from .tokens import Caller, KeySet, identify

log = logging.getLogger(__name__)

FIELD_MANAGER: Final = "flashjob-gateway"
FLASHER_SELECTOR: Final = f"{LABEL_COMPONENT}=flasher"
_STAGE_AFTER_SECONDS: Final = 10.0
_ASSIGNMENTS: Final = TypeAdapter(tuple[AssignmentRef, ...])


class PodSeen(NamedTuple):
    """The parts of a flashing pod that an assignment rests on."""

    name: str
    uid: str
    live: bool
    assignments: frozenset[tuple[str, int]]


class JobSeen(NamedTuple):
    """The parts of a job that a permit rests on."""

    name: str
    uid: str
    paused: bool
    deleted: bool


def read_pod(obj: Obj) -> PodSeen:
    """Projection of a pod; ValueError where its annotation is not ours."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    annotation = (metadata.get("annotations") or {}).get(ANNOTATION_ASSIGNMENTS, "[]")
    refs = frozenset((ref.task, ref.attempt) for ref in _ASSIGNMENTS.validate_json(annotation))
    live = not metadata.get("deletionTimestamp") and status.get("phase") not in ("Succeeded", "Failed")
    return PodSeen(metadata["name"], metadata["uid"], live, refs)


def read_job(obj: Obj) -> JobSeen:
    """Projection of a FlashJob."""
    metadata, paused = obj["metadata"], bool(obj["spec"].get("paused"))
    return JobSeen(metadata["name"], metadata["uid"], paused, bool(metadata.get("deletionTimestamp")))


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
    trust: ClusterTrust = field(init=False)
    pods: Reflector[PodSeen] = field(init=False)
    jobs: Reflector[JobSeen] = field(init=False)
    leases: Reflector[DeviceLease] = field(init=False)

    def __post_init__(self) -> None:
        api, space = self.api, self.namespace
        self.trust = ClusterTrust(api, space)
        self.pods = Reflector(api, PODS, space, project=read_pod, label_selector=FLASHER_SELECTOR)
        self.jobs = Reflector(api, FLASHJOBS, space, project=read_job)
        self.leases = Reflector(
            api, LEASES, self.operator_namespace, project=DeviceLease.read, label_selector=f"{LABEL_DEVICE_LOCK}=true"
        )

    @property
    def reflectors(self) -> tuple[Reflector[Any], ...]:
        """All caches."""
        return (*self.trust.reflectors, self.pods, self.jobs, self.leases)

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
            except (ApiError, FlashJobError) as error:
                log.warning("no token can be checked yet: %s", error)
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
        pod = self._pod(caller)
        if (task, attempt) not in pod.assignments:
            raise _stranger(f"pod {caller.pod} is not assigned attempt {attempt} of {task}")
        seen = self.trust.tasks.get(caller.namespace, task)
        if seen is None:
            raise _stranger(f"there is no task {task}")
        lease = self.leases.get(self.operator_namespace, lease_name(seen.device_id))
        if lease is None or lease.holder != Holder(caller.namespace, task, attempt):
            held = lease.holder if lease else None
            raise _stranger(f"the device's Lease is held by {held or 'nobody'}")
        return seen.job

    def address(self, caller: Caller, task: str) -> str | None:
        """Where the handler last saw the task's device. Rules 1 to 3, for the latest attempt that the pod was given."""
        attempts = [attempt for name, attempt in self._pod(caller).assignments if name == task]
        self.assigned(caller, task, max(attempts, default=0))
        seen = self.trust.tasks.get(caller.namespace, task)
        if seen is None:
            raise _stranger(f"there is no task {task}")
        device = self._device(caller.namespace, seen.device_id)
        fixed = device.connection.network.address if device.connection.network else None
        return fixed or device.endpoint or None

    def _pod(self, caller: Caller) -> PodSeen:
        """Rule 1."""
        if not self.ready:
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "the caches are filling")
        pod = self.pods.get(caller.namespace, caller.pod)
        if pod is None or pod.uid != caller.pod_uid or not pod.live:
            raise _stranger(f"pod {caller.pod} with this UID is not running")
        return pod

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
        known, since, written = self._stages.pop(key, ("", now, False))
        due = known == name and not written and now - since >= _STAGE_AFTER_SECONDS
        self._stages[key] = (name, since, written or due) if known == name else (name, now, False)
        if len(self._stages) > MOST_TASKS:
            del self._stages[next(iter(self._stages))]
        if due:
            running = asyncio.create_task(self._write_stage(namespace, task, progress, since))
            self._writes.add(running)
            running.add_done_callback(self._writes.discard)

    async def _write_stage(self, namespace: str, task: str, progress: Progress, since: float) -> None:
        # A stage that could not be written is no loss: the next report tries again in another stage.
        with contextlib.suppress(FlashJobError, Conflict):
            gathered = await self.gather(namespace, task, progress.attempt)
            seen = gathered.report.stage
            told = seen and seen.name is progress.stage and seen.since >= self.clock.stamp(since - _STAGE_AFTER_SECONDS)
            if not gathered.case.judged and not told:  # every replica hears of progress; one write is enough
                report = at_stage(gathered.report, progress.stage, self.clock.stamp(since))
                await self.write(namespace, task, report, gathered.version)

    def _case(self, task: FlashTask, report: Report, attempt: int) -> Case:
        namespace, spec = task.metadata.namespace, task.spec
        device = self._device(namespace, spec.device.id)
        if spec.target is None:
            raise _stranger(f"{task.metadata.name} has no target")
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
            subject=self._subject(device),
            lease_transitions=lease.transitions if lease else 0,
            permits=permits_of(report),
            used_nonces=frozenset(report.used_nonces),
            refused=refused_of(report, attempt),
            judged=over or task.status.phase is Phase.UNKNOWN,
            held=self._held(task, device),
        )

    def _held(self, task: FlashTask, device: KnownDevice) -> tuple[Reason, str] | None:
        job = self.jobs.get(task.metadata.namespace, task.spec.job.name)
        if job is None or job.uid != task.spec.job.uid or job.deleted or task.metadata.deletion_timestamp:
            return Reason.JOB_DELETED, f"job {task.spec.job.name} is gone or going"
        if job.paused:
            return Reason.PAUSED, f"job {job.name} is paused"
        if device.suspended:
            return Reason.SUSPENDED, f"Device {device.name} is suspended"
        if why := device.withheld(self.clock.now()):
            return Reason.QUARANTINED, f"Device {device.name} is withheld, {why}"
        return None

    def _device(self, namespace: str, device_id: str) -> KnownDevice:
        """The enrolled device, in the task's own namespace. Raises FlashJobError."""
        try:
            known = self.trust.device(device_id)
        except Reject as reject:
            reason = Reason.IDENTITY_CONFLICT if reject.code is Code.STORE_INVALID else Reason.GATEWAY_UNAVAILABLE
            raise FlashJobError(reason, reject.message, reason.next_step) from reject
        if known is None or known.namespace != namespace:
            raise FlashJobError(
                Reason.DEVICE_NOT_ENROLLED, f"no Device of {namespace} has id {device_id}", "flashjob device enroll"
            )
        return known

    def _subject(self, device: KnownDevice) -> Subject:
        # The context's nonce is not used: each ruling brings its own expectation.
        try:
            context = self.trust.context(device.id, ExactNonce(bytes(NONCE_SIZE)), 0)
        except Reject as reject:
            reason = Reason.POLICY_MISSING if reject.code is Code.POLICY_INVALID else Reason.EVIDENCE_INVALID
            raise FlashJobError(reason, reject.message, reason.next_step) from reject
        if context.policy is None:
            raise FlashJobError(
                Reason.POLICY_MISSING,
                f"AttestationPolicy {device.namespace}/{device.policy} does not exist",
                Reason.POLICY_MISSING.next_step,
            )
        return Subject(
            id=bytes.fromhex(device.id),
            device=context.device,
            policy=context.policy,
            confirmed=context.last_confirmed,
            pinned=context.pinned,
            floors=context.floors,
            boots=device.boots,
        )


def _stranger(why: str) -> FlashJobError:
    return FlashJobError(Reason.NOT_ASSIGNED, why, Reason.NOT_ASSIGNED.next_step)


def _trouble(why: str) -> FlashJobError:
    return FlashJobError(Reason.GATEWAY_UNAVAILABLE, why, Reason.GATEWAY_UNAVAILABLE.next_step)
