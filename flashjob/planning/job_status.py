# SPDX-License-Identifier: Apache-2.0
"""What a FlashJob says about itself. One pure function makes the whole status.

 1. Every condition carries the generation it was judged on; its time changes only with its status.
 2. Validated: the selection is closed (True), or why it cannot be (False).
 3. ArtifactVerified: pinned and checked (True), refused (False), not yet known (Unknown, with the reason). Once the
    selection is closed, trouble with the registry does not take it back.
 4. Progressing: True while devices are worked on or may be; False, with the reason, while something holds all of them.
 5. Paused follows spec.paused.
 6. Finished is True at every end: no device left, or the job itself refused. It never becomes False again.
 7. Succeeded is True only if every device has proven the target, freshly or before (Skipped). An unproven one makes it
    False, SomeUnproven; a failed, refused or quarantined one makes Failed True as well.
 8. If all that failed failed for one reason, that is the job's reason too; else SomeFailed.
 9. kstatus: Reconciling is True until the end; Stalled is True if the job ended without all devices updated.
10. At most 50 failures are named, by name of the device. A task that was deleted counts as failed: TaskMissing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from flashjob.api.conditions import set_condition
from flashjob.api.flashjob import Counts, FailureSample, FlashJobStatus
from flashjob.api.flashtask import Phase
from flashjob.api.meta import Condition
from flashjob.wire.clock import stamp
from flashjob.wire.reasons import Reason

from .messages import refuse, with_next
from .state import Admission, Job, Refusal

MAX_FAILURES: Final = 50
_BAD: Final = frozenset({Phase.FAILED, Phase.REJECTED, Phase.QUARANTINED, Phase.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class Line:
    """One device of the job, as it is after this round's decisions."""

    device: str
    task: str
    phase: Phase
    reason: str
    message: str
    running: bool


@dataclass(frozen=True, slots=True)
class Situation:
    """What the status is made from.

    Args:
        admission: of the artifact; None until it was tried.
        selected: number of devices once the selection is closed, else None.
        refused: why the job as a whole ends.
        held: why nothing may start although devices wait.
        lines: one per task.
    """

    admission: Admission | None
    selected: int | None
    refused: Refusal | None
    held: Refusal | None
    lines: Sequence[Line]


def finished(status: FlashJobStatus) -> bool:
    """Whether the job has come to its end."""
    return any(c.type == "Finished" and c.status == "True" for c in status.conditions)


def count(lines: Sequence[Line], total: int) -> Counts:
    """Devices by state (rule 10 for those that are missing)."""
    by = Counter(line.phase for line in lines)
    running = sum(line.running for line in lines if not line.phase.final)
    pending = sum(not line.running for line in lines if not line.phase.final)
    missing = max(0, total - len(lines))
    return Counts(
        total=max(total, len(lines)),
        pending=pending,
        running=running,
        succeeded=by[Phase.SUCCEEDED],
        unproven=by[Phase.UNPROVEN],
        skipped=by[Phase.SKIPPED],
        failed=by[Phase.FAILED] + missing,
        rejected=by[Phase.REJECTED],
        quarantined=by[Phase.QUARANTINED],
        rolled_back=by[Phase.ROLLED_BACK],
    )


def render(job: Job, situation: Situation, now: float) -> FlashJobStatus:
    """The status after this round. Given the same twice, it says the same: times come from the old status."""
    old = job.status
    counts = count(situation.lines, situation.selected or 0)
    over = situation.refused is not None or (
        situation.selected is not None and counts.pending == 0 and counts.running == 0
    )
    why = situation.refused or _why(situation, counts)
    bad = situation.refused is not None or counts.failed + counts.rejected + counts.quarantined + counts.rolled_back > 0
    conditions = _Conditions(job, now)
    _judge_start(conditions, situation)
    _judge_course(conditions, job, situation, counts, over, why)
    _judge_end(conditions, over, bad, counts, why)
    done = counts.total - counts.pending - counts.running
    return FlashJobStatus(
        observed_generation=job.generation,
        phase=_phase(job, situation, counts, over, bad),
        firmware=old.firmware,
        counts=counts,
        progress=f"{done}/{counts.total}",
        conditions=conditions.result(),
        failures=_failures(situation.lines),
        started_at=old.started_at or (stamp(now) if situation.selected is not None else None),
        finished_at=old.finished_at or (stamp(now) if over else None),
    )


def _phase(
    job: Job, situation: Situation, counts: Counts, over: bool, bad: bool
) -> Literal["Pending", "Running", "Paused", "Succeeded", "Unproven", "Failed"]:
    if over:
        return "Failed" if bad else "Unproven" if counts.unproven else "Succeeded"
    if job.spec.paused:
        return "Paused"
    return "Pending" if situation.selected is None else "Running"


def _why(situation: Situation, counts: Counts) -> Refusal:
    """Rule 8."""
    reasons = {line.reason for line in situation.lines if line.phase in _BAD}
    lost = counts.total - len(situation.lines)
    if lost > 0:
        reasons.add(Reason.TASK_MISSING)
    if reasons:
        bad = counts.failed + counts.rejected + counts.quarantined + counts.rolled_back
        code = next(iter(reasons)) if len(reasons) == 1 else Reason.SOME_FAILED.value
        sample = next((line.message for line in situation.lines if line.phase in _BAD), "")
        text = f"{bad} of {counts.total} device(s) did not get there" + (f": {sample}" if len(reasons) == 1 else "")
        return Refusal(str(code), with_next(code, text))
    if counts.unproven:
        return refuse(Reason.SOME_UNPROVEN, f"{counts.unproven} of {counts.total} device(s) cannot prove what they run")
    return Refusal(Reason.ALL_PROVEN.value, f"{counts.total} of {counts.total} device(s) have proven the target")


class _Conditions:
    """Conditions under construction (rule 1)."""

    def __init__(self, job: Job, now: float) -> None:
        self._all = job.status.conditions
        self._generation, self._now = job.generation, stamp(now)

    def set(self, kind: str, status: bool | None, reason: str, message: str = "") -> None:
        self._all = set_condition(self._all, kind, status, str(reason), message, self._generation, self._now)

    def has(self, kind: str) -> bool:
        return any(c.type == kind for c in self._all)

    def result(self) -> tuple[Condition, ...]:
        return self._all


def _judge_start(conditions: _Conditions, situation: Situation) -> None:
    """Rules 2 and 3."""
    admission, refused = situation.admission, situation.refused
    verified = admission is not None and admission.ready
    if situation.selected is not None:
        conditions.set("Validated", True, Reason.ACCEPTED, f"{situation.selected} device(s) selected")
    elif refused is not None and verified:
        conditions.set("Validated", False, refused.reason, refused.message)
    else:
        conditions.set("Validated", None, Reason.IN_PROGRESS, "the artifact is being checked")
    if situation.selected is not None and not verified and conditions.has("ArtifactVerified"):
        return
    if admission is not None and admission.refused is not None:
        conditions.set("ArtifactVerified", False, admission.refused.reason, admission.refused.message)
    elif admission is not None and admission.waiting is not None:
        conditions.set("ArtifactVerified", None, admission.waiting.reason, admission.waiting.message)
    elif situation.selected is None and not verified:
        conditions.set("ArtifactVerified", None, Reason.IN_PROGRESS, "the artifact is being checked")
    else:
        unmet = _unmet(admission)
        if unmet is not None:
            conditions.set("ArtifactVerified", False, unmet.reason, unmet.message)
        else:
            conditions.set("ArtifactVerified", True, Reason.VERIFIED, "digest pinned, required signatures verified")


def _unmet(admission: Admission | None) -> Refusal | None:
    policies = admission.policies if admission else {}
    return next((p.refusal for _, p in sorted(policies.items()) if p.refusal is not None), None)


def _judge_course(
    conditions: _Conditions, job: Job, situation: Situation, counts: Counts, over: bool, why: Refusal
) -> None:
    """Rules 4 and 5."""
    waiting = situation.admission.waiting if situation.admission else None
    if over:
        conditions.set("Progressing", False, why.reason, why.message)
    elif situation.selected is None and waiting is not None:
        conditions.set("Progressing", False, waiting.reason, waiting.message)
    elif situation.held is not None and counts.running == 0:
        conditions.set("Progressing", False, situation.held.reason, situation.held.message)
    else:
        text = f"{counts.running} running, {counts.pending} pending of {counts.total}"
        conditions.set("Progressing", True, Reason.IN_PROGRESS, text)
    paused = job.spec.paused
    conditions.set("Paused", paused, Reason.PAUSED if paused else Reason.ACCEPTED)


def _judge_end(conditions: _Conditions, over: bool, bad: bool, counts: Counts, why: Refusal) -> None:
    """Rules 6, 7 and 9."""
    good = over and not bad and not counts.unproven
    if over:
        conditions.set("Finished", True, why.reason, why.message)
        conditions.set("Succeeded", good, why.reason, why.message)
        conditions.set("Failed", bad, why.reason, why.message)
        conditions.set("Reconciling", False, why.reason, why.message)
        conditions.set("Stalled", not good, why.reason, why.message)
        return
    for kind in ("Finished", "Succeeded", "Failed"):
        conditions.set(kind, False, Reason.IN_PROGRESS)
    conditions.set("Reconciling", True, Reason.IN_PROGRESS)
    conditions.set("Stalled", False, Reason.IN_PROGRESS)


def _failures(lines: Sequence[Line]) -> tuple[FailureSample, ...]:
    """Rule 10."""
    bad = sorted((line for line in lines if line.phase in _BAD), key=lambda line: line.device)
    return tuple(
        FailureSample(device=line.device, task=line.task, reason=line.reason, message=line.message[:512])
        for line in bad[:MAX_FAILURES]
    )
