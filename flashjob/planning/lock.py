# SPDX-License-Identifier: Apache-2.0
"""When a device's Lease may be taken. It never expires by time alone.

1. Nobody holds it.
2. The task that holds it is over.
3. The asking task holds it itself: the caller has found no open attempt that may write (attempts.py).
4. The attempt that holds it is over (recorded); or it has neither pod nor permit some time after it took the Lease (its
   job was paused, say): from then on it can get no permit, since the gateway serves only the pod that the Lease names.
5. The task is gone, but the Device's last outcomes name it: it came to its end before it went.
6. The task is gone, its pod is still there: free as soon as the pod is terminal.
7. Task and pod are gone, and nobody knows how they ended: free when no pod could write any more (timeouts.py, rule 4,
   with the default timeouts).
8. A holder that is not of our making is never overridden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashjob.wire.lock import Holder
from flashjob.wire.pod import Timeouts
from flashjob.wire.reasons import Reason

from .attempts import last_over, permits
from .messages import refuse
from .state import Device, Key, Lease, Pod, Refusal, Task
from .timeouts import MARGIN, unseen_deadline


@dataclass(frozen=True, slots=True)
class Held:
    """The Lease cannot be taken now; `until` is when that may change by itself."""

    refusal: Refusal
    until: float | None = None


def check(
    task: Task,
    device: Device,
    lease: Lease | None,
    tasks: Mapping[Key, Task],
    pods: Mapping[Key, Sequence[Pod]],
    now: float,
) -> Held | None:
    """None where the Lease may be taken for the next attempt of `task`. `pods` are by (namespace, task)."""
    if lease is None or not lease.holder:
        return None
    holder = Holder.parse(lease.holder)
    if holder is None:
        return Held(
            refuse(Reason.DEVICE_BUSY, f"Lease {lease.name} is held by {lease.holder[:100]!r}, not one of ours")
        )
    if (holder.namespace, holder.task) == task.key:
        return None
    theirs = pods.get((holder.namespace, holder.task), ())
    pod = next((p for p in theirs if (holder.task, holder.attempt) in p.assignments), None)
    other = tasks.get((holder.namespace, holder.task))
    if other is not None:
        over = other.status.phase.final or last_over(other) >= holder.attempt
        begun = pod is not None or any(p.attempt >= holder.attempt for p in permits(other))
        if over or (not begun and now >= lease.acquired_at + MARGIN):
            return None
        if not begun:
            return Held(_busy(device, holder, "which is about to start"), lease.acquired_at + MARGIN)
    elif any(outcome.task == holder.task for outcome in device.status.outcomes):
        return None
    elif pod is None:
        until = unseen_deadline(lease.acquired_at, Timeouts())
        if now >= until:
            return None
        return Held(_busy(device, holder, "whose end nobody saw; its pod may still write"), until)
    if pod is not None and pod.terminal and other is None:
        return None
    return Held(_busy(device, holder, "which is not over"))


def _busy(device: Device, holder: Holder, why: str) -> Refusal:
    return refuse(
        Reason.DEVICE_BUSY,
        f"Device {device.name} is held by attempt {holder.attempt} of task {holder.namespace}/{holder.task}, {why}",
    )
