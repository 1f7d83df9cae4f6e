# SPDX-License-Identifier: Apache-2.0
"""Which attempt of a task is open, as far as the cluster shows.

1. An attempt is begun by its Lease (holder), shown by its pod, and counted by its permit; each of them proves that it
   was begun. It is over when `status.lastAttempt` records it or a later one.
2. The open attempt is the highest one that was begun and is not over. There is at most one with a pod that runs.
3. A Lease without pod and without permit means that the operator stopped between two writes: the same attempt goes on,
   under a new fence. Nothing was written, for a permit would be on record, and a pod that is gone gets none.
4. A permit without pod means that the pod vanished unseen: the attempt is Unknown until its deadline.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flashjob.api.flashtask import Permit
from flashjob.wire.lock import Holder

from .state import Lease, Pod, Task


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that was begun and is not over."""

    number: int
    pod: Pod | None
    permit: Permit | None
    acquired_at: float | None
    """When its Lease was taken; None where the Lease says something else."""

    @property
    def unseen(self) -> bool:
        """Rule 4: it may still write, and nobody can see it."""
        return self.pod is None and self.permit is not None


def last_over(task: Task) -> int:
    """The number of the last attempt that is over; 0 before the first."""
    return task.status.last_attempt.attempt if task.status.last_attempt else 0


def permits(task: Task) -> tuple[Permit, ...]:
    """All permits of the task."""
    return task.status.report.permits if task.status.report else ()


def open_attempt(task: Task, pods: Iterable[Pod], lease: Lease | None) -> Attempt | None:
    """Rule 2. `pods` are those that carry an assignment of this task."""
    over = last_over(task)
    by_number = {n: pod for pod in pods for name, n in pod.assignments if name == task.name and n > over}
    permitted = {p.attempt: p for p in permits(task) if p.attempt > over}
    holder = Holder.parse(lease.holder) if lease else None
    held = holder is not None and (holder.namespace, holder.task) == task.key and holder.attempt > over
    numbers = {*by_number, *permitted, *([holder.attempt] if held and holder else [])}
    if not numbers:
        return None
    n = max(numbers)
    acquired = lease.acquired_at if lease and held and holder and holder.attempt == n else None
    return Attempt(n, by_number.get(n), permitted.get(n), acquired)


def next_number(task: Task, attempt: Attempt | None) -> int:
    """The number of the attempt to begin: rule 3's again, else the one after the last that is over."""
    return attempt.number if attempt else last_over(task) + 1
