# SPDX-License-Identifier: Apache-2.0
"""plan(state, now) -> Decisions: the operator's whole judgement, pure, total and deterministic.

1. A finished job is left alone until its time to live is over.
2. First the artifact is admitted, then the devices are selected, then a task is made for each of them, refused ones
   included; only when all exist is the selection closed (status.startedAt), and nothing starts before.
3. Each task is assessed by itself (progress.py). What ends is written, the Device before the task.
4. Idle tasks may start, in order of name, those whose Lease is taken already first. They wait, each with its reason, for:
   the finalizer, spec.paused, the gateway, their backoff, their connection, foreign pods, the lock, a free place.
5. A connection that is not there within timeouts.startSeconds ends the task as if an attempt had failed for good.
6. A device withheld meanwhile (suspended, quarantined, deleted) ends its idle task. A running attempt is the gateway's
   to refuse.
7. A deleted job starts nothing. Pods without a permit are ended, those with one are left to finish, at most until their
   deadline; tasks that held a Lease end with JobDeleted, so that their devices are free at once.
8. A state that lasts longer than ten seconds is written once: status.waiting.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flashjob.api.flashtask import AttemptRecord, FromTo, Phase, Waiting
from flashjob.wire.clock import seconds, stamp
from flashjob.wire.pod import TransportKind
from flashjob.wire.reasons import Reason

from . import admission, connection, lock, names, selection
from .attempts import Attempt, last_over, next_number, open_attempt, permits
from .decisions import Decisions, NewTask, Patch, Start
from .device_status import after
from .job_status import Line, Situation, finished, render
from .limits import free_places
from .messages import refuse
from .outcome import Ending
from .progress import AttemptEnds, Ends, Idle, Lost, Runs, assess
from .rediscovery import rediscovered
from .retries import next_start
from .state import Device, Instance, Job, Key, Pod, Refusal, State, Task
from .timeouts import QUIET, lost_deadline


def plan(state: State, now: float) -> Decisions:
    """Decide what to do now.

    Args:
        state: the cluster as far as it is known.
        now: seconds since the epoch.
    """
    job = state.job
    if finished(job.status) and not job.deleting:
        return _after_the_end(job, now)
    if job.status.started_at is None and not job.deleting:
        return _begin(state, now)
    return _Round(state, now).decide()


def _after_the_end(job: Job, now: float) -> Decisions:
    """Rule 1."""
    ttl, ended = job.spec.ttl_seconds_after_finished, job.status.finished_at
    if ttl is None or ended is None:
        return Decisions()
    over = seconds(ended) + ttl
    return Decisions(delete_job=True) if now >= over else Decisions(requeue_at=over)


def _begin(state: State, now: float) -> Decisions:
    """Rule 2."""
    job, artifact = state.job, state.admission
    if artifact is None or not artifact.ready:
        refused = artifact.refused if artifact else None
        return Decisions(job_status=render(job, Situation(artifact, None, refused, None, ()), now))
    chosen = selection.select(job, state.devices, state.instances)
    if isinstance(chosen, Refusal):
        return Decisions(job_status=render(job, Situation(artifact, None, chosen, None, ()), now))
    new: list[NewTask] = []
    enrolment = admission.Enrolment.of(state.devices)
    for device in chosen:
        name = names.task_name(job.name, job.uid, device.id)
        existing = state.tasks.get((job.namespace, name))
        if existing is not None and (existing.job_uid, existing.device) != (job.uid, device.id):
            conflict = refuse(
                Reason.NAME_CONFLICT, f"FlashTask {name} exists, but is not of this job and Device {device.name}"
            )
            return Decisions(job_status=render(job, Situation(artifact, None, conflict, None, ()), now))
        if existing is None:
            new.append(_new_task(state, name, device, enrolment, now))
    if new:
        return Decisions(
            create_tasks=tuple(new),
            job_status=render(job, Situation(artifact, None, None, None, ()), now),
            requeue_at=now,
        )
    tasks = state.own_tasks()
    lines = [_line(t, t.status.phase, t.status.reason, t.status.message, False) for t in tasks]
    return Decisions(job_status=render(job, Situation(artifact, len(tasks), None, None, lines), now), requeue_at=now)


def _new_task(state: State, name: str, device: Device, enrolment: admission.Enrolment, now: float) -> NewTask:
    job = state.job
    assert state.admission is not None
    verdict = admission.admit(job, device, enrolment, state.leases, state.admission, now)
    refused = verdict if isinstance(verdict, Refusal) else None
    transport = connection.kind(job.spec.transport, device)
    fallback = TransportKind.NETWORK if device.network else TransportKind.SERIAL
    return NewTask(
        name=name,
        device=device,
        transport=fallback if isinstance(transport, Refusal) else transport,
        target=None if isinstance(verdict, Refusal) else verdict.target,
        before=job.spec.attestation.before,
        timeouts=job.spec.timeouts,
        safety=job.spec.safety,
        rediscovery_required=job.spec.rediscovery == "Required",
        refusal=refused,
    )


def _line(task: Task, phase: Phase, reason: str, message: str, running: bool) -> Line:
    return Line(task.device_name, task.name, phase, reason, message, running)


@dataclass(slots=True)
class _Round:
    """One round over the tasks of a job whose selection is closed."""

    state: State
    now: float
    patches: list[Patch] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    delete: list[Pod] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    wake: list[float] = field(default_factory=list)
    in_flight: int = 0
    open: int = 0
    _devices: Mapping[str, Device] = field(default_factory=dict)
    _pods: Mapping[Key, list[Pod]] = field(default_factory=dict)
    _instances: Mapping[str, list[Instance]] = field(default_factory=dict)
    _ports: Mapping[tuple[str, str], list[Instance]] = field(default_factory=dict)
    _foreign: list[Pod] = field(default_factory=list)
    _enrolment: admission.Enrolment = field(default_factory=lambda: admission.Enrolment.of(()))

    def decide(self) -> Decisions:
        """Rules 3 to 8."""
        state, job = self.state, self.state.job
        self._index()
        idle: list[tuple[Task, Attempt | None]] = []
        for task in state.own_tasks():
            if task.status.phase.final:
                self._show(task, task.status.phase, task.status.reason, task.status.message, running=False)
                continue
            attempt = open_attempt(task, self._pods.get(task.key, []), state.leases.get(task.device))
            if self._step(task, attempt):
                idle.append((task, attempt))
        held = self._held()
        begun_first = sorted(idle, key=lambda item: (item[1] is None, item[0].name))
        for task, attempt in begun_first:
            self._idle(task, attempt, held)
        self._stale_pods()
        total = job.status.counts.total
        status = None
        if not finished(job.status) and not job.deleting:
            status = render(job, Situation(state.admission, total, None, held, self.lines), self.now)
        return Decisions(
            patches=tuple(self.patches),
            starts=tuple(self.starts),
            delete_pods=tuple(dict.fromkeys(self.delete)),
            job_status=status,
            requeue_at=min((t for t in self.wake if t > self.now), default=None),
            drained=job.deleting and self.open == 0 and not self.patches,
        )

    def _index(self) -> None:
        state = self.state
        self._devices = {d.id: d for d in state.devices if d.namespace == state.job.namespace}
        self._pods = state.pods_by_task()
        listed: dict[str, list[Instance]] = defaultdict(list)
        ports: dict[tuple[str, str], list[Instance]] = defaultdict(list)
        for instance in state.instances:
            if instance.listing is not None:
                listed[instance.listing.device].append(instance)
            elif not instance.token:
                for item in instance.properties.items():
                    ports[item].append(instance)
        self._instances, self._ports = listed, ports
        self._foreign = [p for p in state.pods if not p.assignments and not p.terminal]
        self._enrolment = admission.Enrolment.of(state.devices)

    def _candidates(self, device: Device) -> list[Instance]:
        """Ports that have at least one of the properties that the device's port must have."""
        match = device.serial_match or {}
        return self._ports.get(min(match.items()), []) if match else []

    # --- rule 3: what is under way

    def _step(self, task: Task, attempt: Attempt | None) -> bool:
        """Assess one task; True where it is idle."""
        verdict = task.status.report.verdict if task.status.report else None
        found = (
            verdict is not None
            and task.target is not None
            and rediscovered(task.device, task.target, verdict.boot_id or "", self._instances[task.device])
        )
        step = assess(task, attempt, found, self.state.job.spec.strategy.retries, self.now)
        if attempt is not None or self._ending_pod(task) is not None:
            self.in_flight += 1
        match step:
            case Ends():
                self._finish(task, step.ending, step.attempt or last_over(task))
            case AttemptEnds():
                if self.state.job.deleting:
                    self._job_deleted(task, step.attempt)
                else:
                    self._retry(task, step)
            case Runs():
                self._runs(task, attempt, step)
            case Lost():
                self._lost(task, step)
            case Idle():
                return True
        return False

    def _finish(self, task: Task, ending: Ending, attempt: int) -> None:
        device = self._devices.get(task.device)
        pods = self._pods.get(task.key, [])
        result = next((r for p in pods if (r := p.result(task.name, attempt)) is not None), None)
        granted = permits(task)
        status: dict[str, Any] = {
            "phase": ending.phase.value,
            "reason": ending.reason,
            "message": ending.message,
            "waiting": None,
            "finishedAt": stamp(self.now),
        }
        if attempt:
            status |= {"attempt": attempt, "pod": self._pod_of(task, attempt)}
        if granted:
            status["startedAt"] = granted[0].at
        proven = task.status.report.before if task.status.report else None
        known = device.status.firmware if device is not None else None
        if proven is not None:
            status["from"] = proven.dump()
        elif known is not None:
            status["from"] = FromTo(application=known.application, version=known.version).dump()
        if result is not None:
            status["bytesWritten"] = result.bytes_written
            status["seconds"] = {k: round(v, 3) for k, v in list(result.seconds.items())[:16]}
        update = after(device, task, ending, attempt, result, self.now) if device is not None else None
        key = (device.namespace, device.name) if device is not None and update is not None else None
        self.patches.append(Patch(task, status, key, update))
        self._show(task, ending.phase, ending.reason, ending.message, running=False)

    def _retry(self, task: Task, step: AttemptEnds) -> None:
        record = AttemptRecord(
            attempt=step.attempt,
            reason=step.reason,
            message=step.message,
            stage=step.stage,
            ended_at=stamp(self.now),
        )
        again = next_start(step.attempt, self.now, self.state.job.spec.strategy.retries)
        message = f"attempt {step.attempt} ended with {step.reason}; the next one starts at {stamp(again)}"
        waiting = Waiting(reason=Reason.BACKING_OFF.value, message=message, since=stamp(self.now))
        status = {
            "phase": Phase.PENDING.value,
            "reason": step.reason,
            "message": step.message,
            "attempt": step.attempt,
            "pod": self._pod_of(task, step.attempt),
            "lastAttempt": record.dump(),
            "waiting": waiting.dump(),
        }
        self.patches.append(Patch(task, status))
        self.wake.append(again)
        self._show(task, Phase.PENDING, step.reason, step.message, running=False)

    def _runs(self, task: Task, attempt: Attempt | None, step: Runs) -> None:
        pod = attempt.pod if attempt else None
        ended = pod is None or pod.terminal
        if self.state.job.deleting and ended and step.waiting and step.waiting.reason == Reason.REDISCOVERING:
            gone = refuse(Reason.JOB_DELETED, f"confirmed, but job {task.job} was deleted before its Instance was seen")
            return self._finish(task, Ending(Phase.FAILED, gone.reason, gone.message, confirmed=True), last_over(task))
        self.in_flight += attempt is None
        self.open += 1
        self.wake.append(step.check_at)
        if self.state.job.deleting and pod is not None and not pod.terminal and not self._permitted(pod):
            self.delete.append(pod)
        back = {"phase": Phase.PENDING.value} if task.status.phase is Phase.UNKNOWN else {}
        self._explain(task, step.waiting, back)
        return self._show(task, Phase.PENDING, task.status.reason, task.status.message, running=True)

    def _permitted(self, pod: Pod) -> bool:
        """Whether any attempt in this pod may write."""
        mine = ((self.state.tasks.get((pod.namespace, name)), number) for name, number in pod.assignments)
        return any(p.attempt == number for task, number in mine if task is not None for p in permits(task))

    def _pod_of(self, task: Task, attempt: int) -> str:
        """The name of an attempt's pod; one that nobody saw has the name that it would have alone."""
        pods = self._pods.get(task.key, [])
        found = (pod.name for pod in pods if (task.name, attempt) in pod.assignments)
        return next(found, names.pod_name(task.name, attempt))

    def _ending_pod(self, task: Task) -> Pod | None:
        """A pod of this task that still runs, whether or not its attempt is over."""
        pods = self._pods.get(task.key, [])
        return next((p for p in pods if not p.terminal and self.now < lost_deadline(p.created_at, task.timeouts)), None)

    def _lost(self, task: Task, step: Lost) -> None:
        self.open += 1
        self.wake.append(step.until)
        text = f"its pod vanished unseen and may write until {stamp(step.until)}"
        refusal = refuse(Reason.POD_LOST, text)
        if task.status.phase is not Phase.UNKNOWN:
            waiting = Waiting(reason=refusal.reason, message=refusal.message, since=stamp(self.now))
            self.patches.append(
                Patch(
                    task,
                    {
                        "phase": Phase.UNKNOWN.value,
                        "reason": refusal.reason,
                        "message": refusal.message,
                        "waiting": waiting.dump(),
                    },
                )
            )
        self._show(task, Phase.UNKNOWN, refusal.reason, refusal.message, running=True)

    # --- rules 4 to 7: what may start

    def _held(self) -> Refusal | None:
        """What holds every start of this job."""
        job = self.state.job
        if job.spec.paused:
            return refuse(Reason.PAUSED, "the job is paused")
        if self.state.gateway is not None:
            return self.state.gateway
        if not job.finalizer:
            return refuse(Reason.WAITING_FOR_TURN, "the job does not carry its finalizer yet")
        return None

    def _idle(self, task: Task, attempt: Attempt | None, held: Refusal | None) -> None:
        job, device = self.state.job, self._devices.get(task.device)
        if job.deleting:
            self.open += self._ending_pod(task) is not None
            if attempt is not None or last_over(task):
                self._job_deleted(task, attempt.number if attempt else last_over(task))
            return
        if device is None:
            gone = refuse(Reason.DEVICE_NOT_ENROLLED, f"Device {task.device_name} was deleted")
            self._finish(task, Ending(Phase.REJECTED, gone.reason, gone.message), last_over(task))
            return
        withheld = admission.withheld(device, self.now) or admission.conflict(
            device, self._enrolment, self.state.leases
        )
        if withheld is not None:
            phase = Phase.QUARANTINED if withheld.reason == Reason.QUARANTINED else Phase.REJECTED
            self._finish(task, Ending(phase, withheld.reason, withheld.message), last_over(task))
            return
        self._try(task, attempt, device, held)

    def _try(self, task: Task, attempt: Attempt | None, device: Device, held: Refusal | None) -> None:
        """Rule 4: start it, or say why not."""
        state, now = self.state, self.now
        job, record = state.job, task.status.last_attempt
        if record is not None:
            again = next_start(record.attempt, seconds(record.ended_at), job.spec.strategy.retries)
            if now < again:
                self.wake.append(again)
                text = f"attempt {record.attempt} ended with {record.reason}; the next one starts at {stamp(again)}"
                return self._wait(task, refuse(Reason.BACKING_OFF, text))
        ending_pod = self._ending_pod(task)
        if ending_pod is not None:
            return self._wait(task, refuse(Reason.DEVICE_BUSY, f"pod {ending_pod.name} has not ended yet"))
        if held is not None:
            return self._wait(task, held)
        where = connection.connect(task.transport, device, self._candidates(device))
        if isinstance(where, Refusal):
            return self._unconnected(task, where)
        foreign = connection.used_by(device, where, self._instances[device.id], self._foreign)
        if foreign is not None:
            busy = refuse(Reason.DEVICE_IN_USE, f"pod {foreign.namespace}/{foreign.name} uses Device {device.name}")
            if job.spec.strategy.on_busy == "Fail":
                return self._finish(task, Ending(Phase.REJECTED, busy.reason, busy.message), last_over(task))
            return self._wait(task, busy)
        lease = state.leases.get(device.id)
        locked = lock.check(task, device, lease, state.tasks, self._pods, now)
        if locked is not None:
            if locked.until is not None:
                self.wake.append(locked.until)
            return self._wait(task, locked.refusal)
        if attempt is None:
            if not free_places(job.spec.strategy.max_in_flight, self.in_flight):
                return self._show(task, Phase.PENDING, Reason.WAITING_FOR_TURN, "", running=False)
            self.in_flight += 1
        number = next_number(task, attempt)
        self.starts.append(Start(task, number, device, lease, where, bool(permits(task))))
        return self._show(task, Phase.STARTING, task.status.reason, task.status.message, running=True)

    def _unconnected(self, task: Task, refusal: Refusal) -> None:
        """Rule 5."""
        old = task.status.waiting
        since = seconds(old.since) if old is not None and old.reason == refusal.reason else self.now
        over = since + task.timeouts.start_seconds
        if self.now >= over:
            return self._finish(task, Ending(Phase.FAILED, refusal.reason, refusal.message), last_over(task))
        self.wake.append(over)
        return self._wait(task, refusal, at_once=True)

    def _job_deleted(self, task: Task, attempt: int) -> None:
        """Rule 7."""
        gone = refuse(Reason.JOB_DELETED, f"job {task.job} was deleted before this device had proven anything")
        self._finish(task, Ending(Phase.FAILED, gone.reason, gone.message), attempt)

    def _stale_pods(self) -> None:
        """Pods whose attempts are all over, one of them recorded so, have nothing to do any more."""
        own = self.state.own_tasks()
        over = {t.key: last_over(t) for t in own}
        over |= {p.task.key: p.status["lastAttempt"]["attempt"] for p in self.patches if "lastAttempt" in p.status}
        ended = {t.key for t in own if t.status.phase.final}
        ended |= {p.task.key for p in self.patches if "finishedAt" in p.status}
        stale: dict[Key, Pod] = {}
        for pod in (pod for task in own for pod in self._pods.get(task.key, [])):
            recorded = [n <= over.get((pod.namespace, t), 0) for t, n in pod.assignments]
            idle = (done or (pod.namespace, t) in ended for done, (t, _) in zip(recorded, pod.assignments, strict=True))
            if any(recorded) and all(idle) and not (pod.terminal or pod.deleting):
                stale[pod.namespace, pod.name] = pod
        self.delete += stale.values()

    # --- rule 8: never a silent state

    def _wait(self, task: Task, refusal: Refusal, at_once: bool = False) -> None:
        self._explain(task, refusal, {}, at_once)
        self._show(task, Phase.PENDING, refusal.reason, refusal.message, running=False)

    def _explain(self, task: Task, refusal: Refusal | None, extra: dict[str, Any], at_once: bool = False) -> None:
        old = task.status.waiting
        if refusal is None:
            if old is not None or extra:
                self.patches.append(Patch(task, {"waiting": None, **extra}))
            return
        same = old is not None and old.reason == refusal.reason
        if same and not extra:
            return
        record = task.status.last_attempt
        verdict = task.status.report.verdict if task.status.report else None
        base = max(
            task.created_at,
            seconds(record.ended_at) if record else 0.0,
            seconds(old.since) if old else 0.0,
            seconds(self.state.job.status.started_at or stamp(0)),
            seconds(verdict.at) if verdict else 0.0,
        )
        if self.now < base + QUIET and not extra and not at_once:
            self.wake.append(base + QUIET)
            return
        waiting = Waiting(reason=refusal.reason, message=refusal.message, since=stamp(self.now))
        self.patches.append(Patch(task, {"waiting": waiting.dump(), **extra}))

    def _show(self, task: Task, phase: Phase, reason: str, message: str, running: bool) -> None:
        self.lines.append(_line(task, phase, str(reason), message, running))
