# SPDX-License-Identifier: Apache-2.0
"""reconcile(job): gather, plan, apply, one status write, then events. Level-triggered: it may be called at any time.

1. Nothing is decided before every kind was listed once.
2. The digest is written into status.firmware before anything rests on it: a restarted operator never resolves again.
3. A pod that seems to have vanished after its permit is asked for once more, live, before it counts as lost.
4. A deletion waits in `drained` until planning says that nothing is under way.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from flashjob.api.flashjob import FlashJobStatus
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.resources import EVENTS, Obj
from flashjob.planning.attempts import open_attempt
from flashjob.planning.decisions import Decisions
from flashjob.planning.job_status import finished
from flashjob.planning.plan import plan
from flashjob.planning.selection import select
from flashjob.planning.state import Admission, Device, Job, Key, Lease, Pod, Refusal, State

from .admit import Admitter, Found
from .apply import Applier, find_pod
from .caches import Caches
from .events import event, transitions
from .metrics import Metrics

ROUNDS: Final = 5
"""Rounds in one go while each leads to the next: pin, create, close, start."""
log = logging.getLogger("flashjob.operator")


class Gateway(Protocol):
    """Whether the gateway can serve."""

    @property
    def trouble(self) -> Refusal | None:
        """Why it cannot; None while it can."""
        ...


class Controller:
    """The reconciler of FlashJobs.

    Args:
        api: as the operator.
        caches: what is known of the cluster.
        admitter: of artifacts.
        applier: writes.
        gateway: its readiness.
        metrics: counters.
        now: wall clock, seconds since the epoch.
    """

    def __init__(
        self,
        api: KubeApi,
        caches: Caches,
        admitter: Admitter,
        applier: Applier,
        gateway: Gateway,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._caches, self._admitter, self._applier = api, caches, admitter, applier
        self._gateway, self._metrics, self._now = gateway, metrics, now
        self._drained: dict[str, asyncio.Event] = {}

    async def drained(self, uid: str) -> None:
        """Wait until a deleted job has nothing under way (rule 4)."""
        await self._drained.setdefault(uid, asyncio.Event()).wait()
        self._drained.pop(uid, None)

    async def reconcile(self, key: Key) -> float | None:
        """One round for one job; returns the seconds after which to do the next one though nothing changed.

        Raises:
            ApiError, FlashJobError: what could not be done; another round will.
        """
        await self._caches.synced()
        again: float | None = 0.0
        for _ in range(ROUNDS):
            job = self._caches.jobs.get(key)
            if job is None:
                return None
            with self._metrics.seconds.time():
                try:
                    again = await self._round(job)
                except Exception:
                    self._metrics.reconciles.labels("error").inc()
                    raise
            self._metrics.reconciles.labels("ok").inc()
            if again != 0.0:
                break
        return again

    async def _round(self, job: Job) -> float | None:
        if finished(job.status) and not job.deleting:
            return await self._carry_out(job, plan(self._nothing(job), self._now()), None)
        found, job = await self._admission(job)
        pinned_now = found is not None and found.firmware is not None and job.status.firmware is None
        if found is not None and found.firmware is not None:
            job = replace(job, status=job.status.model_copy(update={"firmware": found.firmware}))
        state = await self._gather(job, found.admission if found else None)
        decisions = plan(state, self._now())
        if pinned_now and decisions.job_status is not None:
            await self._write_status(job, decisions.job_status)
            return 0.0
        return await self._carry_out(job, decisions, found.retry_at if found else None)

    async def _admission(self, job: Job) -> tuple[Found | None, Job]:
        """Asks the registry only while the selection is open."""
        if job.deleting or job.status.started_at is not None:
            self._admitter.forget(job.uid)
            return None, job
        devices = self._caches.devices.values()
        chosen = select(job, devices, self._caches.instances())
        selected: tuple[Device, ...] = () if isinstance(chosen, Refusal) else chosen
        return await self._admitter.admit(job, selected, self._caches.policies(job.namespace), self._now()), job

    def _nothing(self, job: Job) -> State:
        return State(job, None, {}, (), (), (), {})

    async def _gather(self, job: Job, admission: Admission | None) -> State:
        caches = self._caches
        devices = tuple(caches.devices.values())
        tasks = {t.key: t for t in caches.tasks.values()}
        leases = caches.leases_of(d for d in devices if d.namespace == job.namespace)
        state = State(
            job=job,
            admission=admission,
            tasks=tasks,
            pods=tuple(caches.pods.values()),
            devices=devices,
            instances=caches.instances(),
            leases=leases,
            gateway=self._gateway.trouble,
        )
        seen = await self._look_again(state, leases)
        return replace(state, pods=(*state.pods, *seen)) if seen else state

    async def _look_again(self, state: State, leases: dict[str, Lease]) -> list[Pod]:
        """Rule 3."""
        found: list[Pod] = []
        by_task = state.pods_by_task()
        for task in state.own_tasks():
            if task.status.phase.final:
                continue
            pods = by_task.get(task.key, ())
            attempt = open_attempt(task, pods, leases.get(task.device))
            if attempt is None or not attempt.unseen:
                continue
            obj = await find_pod(self._api, task.namespace, task.job, task.name, attempt.number)
            if obj is None:
                continue
            self._caches.pods.wrote(obj)
            pod = self._caches.pods.get((task.namespace, obj["metadata"]["name"]))
            if pod is not None and pod.job_uid == task.job_uid:
                found.append(pod)
        return found

    async def _carry_out(self, job: Job, decisions: Decisions, retry_at: float | None) -> float | None:
        again = await self._applier.apply(job, decisions)
        self._metrics.starts.inc(len(decisions.starts))
        for start in decisions.starts:
            log.info("attempt %d of %s/%s begins", start.attempt, job.namespace, start.task.name)
        for patch in decisions.patches:
            if "finishedAt" in patch.status:
                phase, reason = patch.status["phase"], patch.status["reason"]
                log.info("%s/%s is over: %s, %s", job.namespace, patch.task.name, phase, reason)
                self._metrics.ends.labels(phase, reason).inc()
        if decisions.job_status is not None:
            await self._write_status(job, decisions.job_status)
        if decisions.drained:
            self._drained.setdefault(job.uid, asyncio.Event()).set()
        if decisions.delete_job:
            await self._applier.delete_job(job)
        if again:
            return 0.0
        at = min((t for t in (decisions.requeue_at, retry_at) if t is not None), default=None)
        return None if at is None else max(0.0, at - self._now())

    async def _write_status(self, job: Job, new: FlashJobStatus) -> None:
        cached = self._caches.jobs.get((job.namespace, job.name))
        if cached is None or cached.uid != job.uid:
            return
        patch = difference(cached.status.dump(), new.dump())
        if not patch:
            return
        await self._applier.job_status(job, patch)
        for condition, bad in transitions(job.status.conditions, new.conditions):
            try:
                await self._api.create(EVENTS, job.namespace, event(job, condition, bad, self._now()))
            except ApiError as error:
                if not error.already_exists:
                    log.warning("Event of job %s/%s: %s", job.namespace, job.name, error)


def difference(old: Obj, new: Obj) -> Obj:
    """The JSON merge patch (RFC 7386) from `old` to `new`; lists are replaced."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = difference(before, value)
            if inner:
                patch[key] = inner
        elif value != before:
            patch[key] = value
    return patch
