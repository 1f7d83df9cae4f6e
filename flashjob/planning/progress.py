# SPDX-License-Identifier: Apache-2.0
"""Where one task is, from what the cluster shows.

1. A task created with a refusal, or without a target, ends with it.
2. A verdict that is not over decides (outcome.py), once the pod has ended or the grace is over. Trouble that may be tried
   again ends the attempt only.
3. Without one, a terminal pod ends the attempt: with its own result where it says that it failed, else PodFailed. It is
   never a success, whatever exit code or result say.
4. A pod that vanished with a permit on record makes the task Unknown until its deadline, then the attempt ends: PodLost.
5. A pod without a permit in time is given up: StartTimeout. A pod far beyond its deadline is lost: PodLost.
6. An attempt that ends is followed by another where retries.py says so; else the task ends with its reason.
7. Everything else runs, or is idle and may start.
"""

from dataclasses import dataclass

from flashjob.api.flashjob import Retries
from flashjob.api.flashtask import Phase
from flashjob.wire.clock import seconds
from flashjob.wire.gateway import Outcome
from flashjob.wire.reasons import Reason

from . import retries as rules
from .attempts import Attempt, last_over
from .messages import refuse, with_next
from .outcome import Awaited, Ending, failure, judge
from .state import Refusal, Task
from .timeouts import GRACE, QUIET, SETTLE, lost_deadline, start_deadline, unseen_deadline


@dataclass(frozen=True, slots=True)
class Ends:
    """The task is over."""

    ending: Ending
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class AttemptEnds:
    """The attempt is over; the task goes on."""

    attempt: int
    reason: str
    message: str
    stage: str


@dataclass(frozen=True, slots=True)
class Runs:
    """Work goes on; look again at `check_at`. `waiting` says why it does not go faster."""

    check_at: float
    waiting: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Its pod may still write until then, and nobody sees it."""

    until: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is under way. `attempt` was begun but never got a pod."""

    attempt: Attempt | None


Step = Ends | AttemptEnds | Runs | Lost | Idle


def assess(task: Task, attempt: Attempt | None, found: bool, retries: Retries, now: float) -> Step:
    """Rules 1 to 7.

    Args:
        task: not over yet.
        attempt: its open attempt.
        found: whether the device is rediscovered.
        retries: the job's.
        now: seconds since the epoch.
    """
    if task.refusal is not None or task.target is None:
        refusal = task.refusal or refuse(Reason.ARTIFACT_INVALID, "the task has no target")
        phase = Phase.QUARANTINED if refusal.reason == Reason.QUARANTINED else Phase.REJECTED
        return Ends(Ending(phase, refusal.reason, refusal.message))
    by_verdict = _by_verdict(task, attempt, found, retries, now)
    if by_verdict is not None:
        return by_verdict
    if attempt is None:
        return Idle(None)
    if attempt.pod is None:
        return _without_pod(task, attempt, retries, now)
    if attempt.pod.terminal:
        return _terminal(task, attempt, retries, now)
    return _running(task, attempt, retries, now)


def _by_verdict(task: Task, attempt: Attempt | None, found: bool, retries: Retries, now: float) -> Step | None:
    verdict = task.status.report.verdict if task.status.report else None
    if verdict is None:
        return None
    rejected = verdict.outcome is Outcome.REJECTED
    if rejected and (verdict.attempt <= last_over(task) or (attempt is not None and attempt.number > verdict.attempt)):
        return None
    settled = seconds(verdict.at) + GRACE
    if attempt is not None and attempt.pod is not None and not attempt.pod.terminal and now < settled:
        return Runs(settled)
    if rejected and rules.retried(verdict.reason):
        return _over(task, verdict.attempt, verdict.reason, verdict.message, "", retries)
    ending = judge(task, verdict, found, now)
    if isinstance(ending, Awaited):
        message = f"confirmed at {verdict.at}; waiting for its Instance"
        return Runs(ending.until, refuse(Reason.REDISCOVERING, message))
    return Ends(ending, verdict.attempt)


def _without_pod(task: Task, attempt: Attempt, retries: Retries, now: float) -> Step:
    if attempt.permit is None:
        return Idle(attempt)
    permitted = seconds(attempt.permit.at)
    until = max(
        unseen_deadline(attempt.acquired_at if attempt.acquired_at is not None else permitted, task.timeouts),
        permitted + task.timeouts.write_seconds,
    )
    if now < until:
        return Lost(until)
    return _over(task, attempt.number, Reason.POD_LOST, "its pod vanished unseen after the permit", "", retries)


def _terminal(task: Task, attempt: Attempt, retries: Retries, now: float) -> Step:
    pod = attempt.pod
    assert pod is not None
    result = pod.result(task.name, attempt.number)
    ended = pod.finished_at if pod.finished_at is not None else pod.created_at
    failed = result is not None and not result.ok
    settled = ended + ((SETTLE if attempt.permit else 0) if failed else GRACE)
    if now < settled:
        return Runs(settled)
    if result is not None and failed:
        return _over(task, attempt.number, result.reason, result.message, result.stage.value, retries)
    if result is not None:
        text = f"pod {pod.name} says that all was done, but the gateway has no verdict: that proves nothing"
    else:
        text = f"pod {pod.name} ended without a result{': ' + pod.trouble if pod.trouble else ''}"
    return _over(task, attempt.number, Reason.POD_FAILED, text, "", retries)


def _running(task: Task, attempt: Attempt, retries: Retries, now: float) -> Step:
    pod = attempt.pod
    assert pod is not None
    trouble = f": {pod.trouble}" if pod.trouble else ""
    lost = lost_deadline(pod.created_at, task.timeouts)
    if now >= lost:
        text = f"pod {pod.name} is long past its deadline and still not over{trouble}"
        return _over(task, attempt.number, Reason.POD_LOST, text, "", retries)
    start = start_deadline(pod.created_at, task.timeouts)
    if attempt.permit is None and now >= start:
        text = f"pod {pod.name} has no permit after {int(now - pod.created_at)} s{trouble}"
        return _over(task, attempt.number, Reason.START_TIMEOUT, text, "Starting", retries)
    waiting = None
    if pod.phase == "Pending" and now >= pod.created_at + QUIET:
        waiting = refuse(Reason.POD_PENDING, f"pod {pod.name} is not running yet{trouble}")
    check_at = lost if attempt.permit else start
    if pod.phase == "Pending" and waiting is None:
        check_at = min(check_at, pod.created_at + QUIET)
    return Runs(check_at, waiting)


def _over(task: Task, attempt: int, code: str, message: str, stage: str, retries: Retries) -> Step:
    """Rule 6."""
    if not rules.retried(code):
        return Ends(failure(task, code, message), attempt)
    if not rules.attempts_left(attempt, retries, code):
        text = f"attempt {attempt} of {retries.limit + 1}, the last: {message}"
        return Ends(failure(task, code, text), attempt)
    return AttemptEnds(attempt, code, with_next(code, message), stage)
