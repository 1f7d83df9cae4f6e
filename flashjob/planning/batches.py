# SPDX-License-Identifier: Apache-2.0
"""Which starts share a pod. Pure.

1. A serial device has a pod of its own: it claims its port.
2. Network devices that start in the same round share pods of at most MAX_DEVICES, in order of task name. They are of one
   job, so that image, credentials and limits are the same.
3. An attempt that was begun before and got no pod (its Lease is held by it already) starts alone, under the name that
   is its own: whatever happened to the first create, it is not repeated under another name.
4. The pod of one attempt is named by it; a shared one by its first attempt and a hash of all of them.
"""

from collections.abc import Iterable, Sequence

from flashjob.wire.lock import Holder
from flashjob.wire.pod import MAX_DEVICES, TransportKind

from .decisions import Start
from .names import pod_name, shared_pod_name


def batches(starts: Iterable[Start]) -> tuple[tuple[Start, ...], ...]:
    """Each inner tuple is one pod (rules 1 to 3)."""
    alone: list[tuple[Start, ...]] = []
    shared: list[Start] = []
    for start in starts:
        if start.connection.kind is TransportKind.SERIAL or begun(start):
            alone.append((start,))
        else:
            shared.append(start)
    shared.sort(key=lambda start: start.task.name)
    groups = (tuple(shared[at : at + MAX_DEVICES]) for at in range(0, len(shared), MAX_DEVICES))
    return (*alone, *groups)


def name(batch: Sequence[Start]) -> str:
    """Rule 4."""
    first = batch[0]
    if len(batch) == 1:
        return pod_name(first.task.name, first.attempt)
    return shared_pod_name([(start.task.name, start.attempt) for start in batch])


def begun(start: Start) -> bool:
    """Whether its Lease names it already (rule 3)."""
    holder = Holder.parse(start.lease.holder) if start.lease is not None else None
    return holder == Holder(start.task.namespace, start.task.name, start.attempt)
