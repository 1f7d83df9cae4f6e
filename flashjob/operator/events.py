# SPDX-License-Identifier: Apache-2.0
"""Events on a FlashJob: one when a condition changes its status to something worth telling, never one per device."""

import hashlib
from collections.abc import Iterable
from typing import Final

from flashjob.api.meta import API_VERSION, Condition
from flashjob.cluster.resources import Obj
from flashjob.planning.state import Job
from flashjob.wire.clock import stamp

_GOOD: Final = {"Validated": "True", "ArtifactVerified": "True", "Succeeded": "True"}
_BAD: Final = {"Validated": "False", "ArtifactVerified": "False", "Failed": "True", "Paused": "True"}


def transitions(old: Iterable[Condition], new: Iterable[Condition]) -> list[tuple[Condition, bool]]:
    """Conditions that became worth telling, each with whether it is bad news."""
    before = {c.type: c.status for c in old}
    changed = [c for c in new if before.get(c.type) != c.status]
    told = [(c, _BAD.get(c.type) == c.status) for c in changed]
    return [(c, bad) for c, bad in told if bad or _GOOD.get(c.type) == c.status]


def event(job: Job, condition: Condition, bad: bool, now: float) -> Obj:
    """A core/v1 Event. Its name is a function of what it says, so that a repeated post is refused as a duplicate."""
    said = f"{job.uid}/{condition.type}/{condition.status}/{condition.last_transition_time}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{job.name[:230]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": job.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": "FlashJob",
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "type": "Warning" if bad else "Normal",
        "reason": condition.reason,
        "message": f"{condition.type}={condition.status}: {condition.message or condition.reason}"[:1024],
        "source": {"component": "flashjob-operator"},
        "firstTimestamp": stamp(now),
        "lastTimestamp": stamp(now),
        "count": 1,
    }
