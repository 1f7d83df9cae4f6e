# SPDX-License-Identifier: Apache-2.0
"""Carries decisions out, in their order; each is harmless when repeated, and one that fails stops only what rests on it.

1. Creates are by name. A name that is taken counts as done only if owner, device and artifact are the same: else
   NameConflict.
2. A task's status is written only if nobody wrote it since it was read: the gateway may have permitted meanwhile. Its
   Device is written before it, so that a task that is over has never left its Device behind.
3. A start takes the Lease first (PUT with the version it was read at), then creates the pod. Where the Lease was taken
   meanwhile, nothing is created. Of starts that share a pod, each takes its own Lease, and the pod is made for those
   that got theirs. An attempt begun before is first looked for among the job's live pods: nothing is created twice.
4. Conflicts are no errors: the next round sees more and decides again.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flashjob.api.flashtask import Waiting
from flashjob.api.meta import API_VERSION
from flashjob.cluster import lease as locks
from flashjob.cluster.kubeapi import ApiError, KubeApi, list_all
from flashjob.cluster.resources import DEVICES, FLASHJOBS, FLASHTASKS, PODS, Obj
from flashjob.errors import FlashJobError
from flashjob.planning.batches import batches, begun
from flashjob.planning.batches import name as batch_name
from flashjob.planning.decisions import Decisions, NewTask, Patch, Start
from flashjob.planning.names import job_label, pod_name
from flashjob.planning.state import Device, Job, Pod
from flashjob.planning.timeouts import active_deadline_seconds
from flashjob.wire.clock import micro, stamp
from flashjob.wire.lock import Holder
from flashjob.wire.pod import LABEL_JOB, Assignment, Assignments, Base, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.workloads.pod import Owner, Placement, PodSettings, build_pod, owner_reference

from .caches import Caches
from .project import ANNOTATION_REFUSAL, assigned

FIELD_MANAGER: Final = "flashjob-operator"
PARALLEL: Final = 16
log = logging.getLogger("flashjob.operator")


@dataclass(frozen=True, slots=True)
class Applier:
    """Writes to the cluster.

    Args:
        api: as the operator.
        caches: told of every write.
        namespace: the operator's own, where the Leases are.
        settings: of the flashing pods.
        now: wall clock, seconds since the epoch.
    """

    api: KubeApi
    caches: Caches
    namespace: str
    settings: PodSettings
    now: Callable[[], float]

    async def apply(self, job: Job, decisions: Decisions) -> bool:
        """Carry everything out but the job's status and deletion; True where something must be decided again soon.

        Raises:
            ApiError: the API server failed; what was done stays done.
            FlashJobError: NameConflict.
        """
        steps: list[list[Coroutine[Any, Any, bool]]] = [
            [self._create_task(job, new) for new in decisions.create_tasks],
            [self._patch(patch) for patch in decisions.patches],
            [self._start(job, batch) for batch in batches(decisions.starts)],
            [self._delete(pod) for pod in decisions.delete_pods],
        ]
        again = False
        errors: list[Exception] = []
        for step in steps:
            for outcome in await _in_parallel(step):
                if isinstance(outcome, Exception):
                    errors.append(outcome)
                else:
                    again |= outcome
        if errors:
            for error in errors[1:]:
                log.warning("job %s/%s: %s", job.namespace, job.name, error)
            raise errors[0]
        return again

    async def _create_task(self, job: Job, new: NewTask) -> bool:
        obj = task_object(job, new)
        try:
            created = await self.api.create(FLASHTASKS, job.namespace, obj)
        except ApiError as error:
            if not error.already_exists:
                raise
            created = await self.api.get(FLASHTASKS, job.namespace, new.name)
            if not _same_task(created, obj):
                raise FlashJobError(
                    Reason.NAME_CONFLICT,
                    f"FlashTask {job.namespace}/{new.name} exists with another job, device or artifact",
                    Reason.NAME_CONFLICT.next_step,
                ) from None
        self.caches.tasks.wrote(created)
        return False

    async def _patch(self, patch: Patch) -> bool:
        task = patch.task
        if patch.device is not None and patch.device_status is not None:
            namespace, name = patch.device
            try:
                written = await self.api.patch_status(
                    DEVICES, namespace, name, dict(patch.device_status), field_manager=FIELD_MANAGER
                )
                self.caches.devices.wrote(written)
            except ApiError as error:
                if not error.not_found:
                    raise
                log.warning("Device %s/%s is gone; task %s ends without it", namespace, name, task.name)
        try:
            written = await self.api.patch_status(
                FLASHTASKS,
                task.namespace,
                task.name,
                dict(patch.status),
                field_manager=FIELD_MANAGER,
                resource_version=task.resource_version,
            )
        except ApiError as error:
            if error.conflict:
                return True
            if error.not_found:
                return False
            raise
        self.caches.tasks.wrote(written)
        return False

    async def _start(self, job: Job, batch: Sequence[Start]) -> bool:
        taken: list[Start] = []
        errors: list[Exception] = []
        for start in batch:
            try:
                if await self._take(start):
                    taken.append(start)
            except (ApiError, FlashJobError) as error:
                errors.append(error)
        if taken:
            try:
                await self._create_pod(job, taken)
            except ApiError as error:
                if not error.transient:
                    for start in taken:
                        await self._complain(start, error)
                raise
        if errors:
            raise errors[0]
        return len(taken) < len(batch)

    async def _take(self, start: Start) -> bool:
        """Take the Lease; False where somebody was faster."""
        device, task = start.device, start.task
        owner = f"{device.namespace}/{device.name}"
        try:
            if start.lease is None:
                lease = await locks.ensure(self.api, self.namespace, device.id, owner)
            else:
                held = start.lease
                lease = locks.DeviceLease(
                    namespace=self.namespace,
                    name=held.name,
                    resource_version=held.resource_version,
                    device="/".join(held.owner),
                    holder=Holder.parse(held.holder),
                    transitions=held.transitions,
                    acquire_time=micro(held.acquired_at) if held.acquired_at else "",
                )
            if lease.device != owner:
                lease = await locks.adopt(self.api, lease, owner)
            holder = Holder(task.namespace, task.name, start.attempt)
            taken = await locks.take(self.api, lease, holder, micro(self.now()))
        except ApiError as error:
            if error.conflict or error.not_found:
                return False
            raise
        except ValueError as error:
            raise FlashJobError(
                Reason.DEVICE_BUSY, f"the Lease of Device {owner} is not one of ours: {error}", "delete that Lease"
            ) from error
        self.caches.leases.wrote(_lease_object(taken))
        return True

    async def _complain(self, start: Start, error: ApiError) -> None:
        """A pod that the API server refuses (quota, webhook) is no silent state."""
        task, old = start.task, start.task.status.waiting
        text = f"pod {pod_name(task.name, start.attempt)} cannot be created: {error.message}"[:1024]
        if old is not None and old.message == text:
            return
        waiting = Waiting(reason=Reason.POD_PENDING.value, message=text, since=stamp(self.now()))
        await self._patch(Patch(task, {"waiting": waiting.dump()}))

    async def _create_pod(self, job: Job, batch: Sequence[Start]) -> None:
        (first, *others) = batch
        if not others and begun(first) and first.connection.kind is TransportKind.NETWORK:
            live = await find_pod(self.api, job.namespace, job.name, first.task.name, first.attempt)
            if live is not None:
                self.caches.pods.wrote(live)
                return
        obj = pod_object(job, batch, self.settings)
        name = obj["metadata"]["name"]
        try:
            created = await self.api.create(PODS, job.namespace, obj)
        except ApiError as error:
            if not error.already_exists:
                raise
            created = await self.api.get(PODS, job.namespace, name)
            owners = {o["uid"] for o in created["metadata"].get("ownerReferences") or ()}
            if job.uid not in owners:
                raise FlashJobError(
                    Reason.NAME_CONFLICT,
                    f"Pod {job.namespace}/{name} exists and is not of this job",
                    "delete that pod",
                ) from None
        self.caches.pods.wrote(created)

    async def _delete(self, pod: Pod) -> bool:
        try:
            await self.api.delete(PODS, pod.namespace, pod.name, uid=pod.uid)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        return False

    async def job_status(self, job: Job, status: Obj) -> None:
        """The one status write of a round; a job that is gone needs none."""
        try:
            written = await self.api.patch_status(
                FLASHJOBS, job.namespace, job.name, status, field_manager=FIELD_MANAGER
            )
        except ApiError as error:
            if not error.not_found:
                raise
        else:
            self.caches.jobs.wrote(written)

    async def delete_job(self, job: Job) -> None:
        """Its time to live is over."""
        try:
            await self.api.delete(FLASHJOBS, job.namespace, job.name, uid=job.uid)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise


async def _in_parallel(work: list[Coroutine[Any, Any, bool]]) -> list[bool | Exception]:
    """Run a few at a time; errors are returned, cancellation is passed on."""
    slots = asyncio.Semaphore(PARALLEL)

    async def one(coroutine: Coroutine[Any, Any, bool]) -> bool | Exception:
        async with slots:
            try:
                return await coroutine
            except (ApiError, FlashJobError) as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(coroutine)) for coroutine in work]
    return [task.result() for task in tasks]


def owner_of(job: Job) -> Owner:
    """The job as owner of what is made for it."""
    return Owner(job.name, job.uid, job_label(job.name))


def task_object(job: Job, new: NewTask) -> Obj:
    """The FlashTask as it is to be created."""
    spec: Obj = {
        "job": {"name": job.name, "uid": job.uid},
        "device": {"name": new.device.name, "id": new.device.id},
        "transport": new.transport.value,
        "before": new.before.value,
        "timeouts": new.timeouts.dump(),
        "safety": new.safety.dump(),
        "rediscovery": "Required" if new.rediscovery_required else "Skip",
    }
    if new.target is not None:
        spec["target"] = new.target.dump()
    metadata: Obj = {
        "name": new.name,
        "namespace": job.namespace,
        "labels": {LABEL_JOB: job_label(job.name)},
        "ownerReferences": [owner_reference(owner_of(job))],
    }
    if new.refusal is not None:
        note = {"reason": new.refusal.reason, "message": new.refusal.message}
        metadata["annotations"] = {ANNOTATION_REFUSAL: json.dumps(note)}
    return {"apiVersion": API_VERSION, "kind": "FlashTask", "metadata": metadata, "spec": spec}


def _same_task(found: Obj, wanted: Obj) -> bool:
    """Rule 1."""

    def identity(obj: Obj) -> tuple[Any, ...]:
        spec = obj["spec"]
        digest = (spec.get("target") or {}).get("manifestDigest")
        owners = sorted(o["uid"] for o in obj["metadata"].get("ownerReferences") or ())
        return owners, spec["job"]["uid"], spec["device"]["id"], digest

    return identity(found) == identity(wanted)


async def find_pod(api: KubeApi, namespace: str, job: str, task: str, attempt: int) -> Obj | None:
    """The pod of one attempt as it is at the API server now, whatever its name. Raises ApiError."""
    pods = await list_all(api, PODS, namespace, label_selector=f"{LABEL_JOB}={job_label(job)}")
    return next((obj for obj in pods if (task, attempt) in assigned(obj)), None)


def pod_object(job: Job, batch: Sequence[Start], settings: PodSettings) -> Obj:
    """The flashing pod of the starts that share it."""
    first = batch[0]
    return build_pod(
        batch_name(batch),
        owner_of(job),
        Assignments(namespace=job.namespace, job=job.name, items=tuple(map(_assignment, batch))),
        Placement(first.connection.instance, first.connection.node),
        settings,
        deadline_seconds=max(active_deadline_seconds(start.task.timeouts) for start in batch),
        pull_secrets=[secret.name for secret in job.spec.firmware.pull_secrets],
        overrides=job.spec.pod_overrides,
    )


def _assignment(start: Start) -> Assignment:
    task, device = start.task, start.device
    assert task.target is not None
    serial = start.connection.kind is TransportKind.SERIAL
    return Assignment(
        task=task.name,
        attempt=start.attempt,
        device=device.id,
        device_name=device.name,
        transport=start.connection.kind,
        address=start.connection.address,
        mac=device.hardware.mac if serial and device.hardware else None,
        serial=start.connection.serial,
        target=task.target,
        base=None if serial else _base(device),
        before=task.before,
        permitted_before=start.permitted_before,
        timeouts=task.timeouts,
        safety=task.safety,
    )


def _base(device: Device) -> Base | None:
    known = device.status.firmware
    if known is None or not known.repository or known.digest is None:
        return None
    return Base(repository=known.repository, index_digest=known.digest)


def _lease_object(lease: locks.DeviceLease) -> Obj:
    """A Lease as our own cache projects it."""
    return {
        "metadata": {
            "name": lease.name,
            "namespace": lease.namespace,
            "resourceVersion": lease.resource_version,
            "annotations": {locks.ANNOTATION_DEVICE: lease.device},
        },
        "spec": {
            "holderIdentity": str(lease.holder or ""),
            "leaseTransitions": lease.transitions,
            "acquireTime": lease.acquire_time,
        },
    }
