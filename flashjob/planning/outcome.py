# SPDX-License-Identifier: Apache-2.0
"""What a verdict makes of a task. Nothing else ends one well: no exit code, no result of a pod.

1. Proven counts only if the verdict's measurement is one of the target's and its boot id one of this task's grant ids;
   otherwise the task has Failed (MeasurementMismatch, BootIdMismatch), whatever the verdict calls itself.
2. Proven, and the device is rediscovered or the task does not ask for it: Succeeded.
3. Proven, not rediscovered within timeouts.rediscoverSeconds: Failed, RediscoveryTimeout. Until then it waits.
4. BelowPolicy, under the conditions of rule 1: Unproven. It is not listed, so nothing waits for its Instance. Without any
   permit of this task it means that the device ran the target before: the boot id is then another task's, and that is right.
5. AlreadyRunning counts only without any permit of this task and with the target's measurement: Skipped.
6. Rejected: Failed with the verdict's reason, or Rejected where no permit was ever given and the reason is a refusal.
   Whether it is tried again instead is decided before (retries.py).
"""

from dataclasses import dataclass

from flashjob.api.flashtask import Phase, Verdict
from flashjob.wire.clock import seconds
from flashjob.wire.gateway import Outcome
from flashjob.wire.reasons import Reason

from . import retries
from .attempts import permits
from .messages import with_next
from .state import Task


@dataclass(frozen=True, slots=True)
class Ending:
    """How a task ends.

    Args:
        confirmed: the verdict shows a VALID slot with the target's measurement: Device.status may believe it.
    """

    phase: Phase
    reason: str
    message: str
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Awaited:
    """Proven; its Instance must show it until then."""

    until: float


def failure(task: Task, code: str, message: str) -> Ending:
    """Rule 6, also for attempts that ended without a verdict."""
    refused = retries.refusal(code) and not permits(task)
    return Ending(Phase.REJECTED if refused else Phase.FAILED, code, with_next(code, message))


def judge(task: Task, verdict: Verdict, found: bool, now: float) -> Ending | Awaited:
    """Rules 1 to 6.

    Args:
        task: with its target and permits.
        verdict: from the task's own report.
        found: whether the device is rediscovered.
        now: seconds since the epoch.
    """
    if verdict.outcome is Outcome.REJECTED:
        return failure(task, verdict.reason, verdict.message)
    target = task.target
    if target is None or verdict.measurement is None or not _measures(verdict, task):
        return failure(task, Reason.MEASUREMENT_MISMATCH, "the verdict's measurement is none of the target's")
    if verdict.outcome is Outcome.ALREADY_RUNNING:
        if permits(task):
            return failure(
                task, Reason.BOOT_ID_MISMATCH, "the device runs the target, but not by an installation of this task"
            )
        return Ending(Phase.SKIPPED, Reason.ALREADY_RUNNING, _proof("already runs", task, verdict), True)
    ran_before = verdict.outcome is Outcome.BELOW_POLICY and not permits(task)
    if not ran_before and verdict.boot_id not in {p.grant_id for p in permits(task)}:
        return failure(task, Reason.BOOT_ID_MISMATCH, "the verdict's boot id is no grant id of this task")
    if verdict.outcome is Outcome.BELOW_POLICY:
        text = with_next(Reason.ROOT_OF_TRUST_TOO_LOW, _proof("runs", task, verdict))
        return Ending(Phase.UNPROVEN, Reason.ROOT_OF_TRUST_TOO_LOW, text, True)
    if task.rediscovery_required and not found:
        until = seconds(verdict.at) + task.timeouts.rediscover_seconds
        if now < until:
            return Awaited(until)
        text = f"confirmed at {verdict.at}, but no Instance shows it as {target.application} {target.version}"
        return Ending(
            Phase.FAILED, Reason.REDISCOVERY_TIMEOUT, with_next(Reason.REDISCOVERY_TIMEOUT, text), confirmed=True
        )
    return Ending(Phase.SUCCEEDED, Reason.PROVEN, _proof("runs", task, verdict), True)


def _measures(verdict: Verdict, task: Task) -> bool:
    seen = verdict.measurement
    return (
        seen is not None
        and task.target is not None
        and any((m.alg, m.value) == (seen.alg, seen.value) for m in task.target.measurements)
    )


def _proof(verb: str, task: Task, verdict: Verdict) -> str:
    target = task.target
    what = f"{target.application} {target.version}" if target else "the target"
    text = f"{verb} {what}, shown at root of trust {verdict.root_of_trust or 'unknown'}"
    return f"{text}; not proven: {', '.join(verdict.unproven)}" if verdict.unproven else text
