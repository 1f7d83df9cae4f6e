# SPDX-License-Identifier: Apache-2.0
"""Tasks and what surrounds them, as the tests of single rules need them."""

from dataclasses import replace
from typing import Any

from flashjob.api.flashtask import FlashTaskStatus
from flashjob.planning.state import Instance, Lease, Listing, Pod, Task
from flashjob.wire.clock import stamp
from flashjob.wire.pod import Before, Safety, Timeouts, TransportKind
from flashjob.wire.target import Measurement
from tests.unit.planning.model import NEW, T0, TARGET, device

GRANT = "0a" * 16
PERMIT = {"attempt": 1, "grantId": GRANT, "fence": 1, "at": stamp(T0)}


def verdict(outcome: str = "Proven", **changes: Any) -> dict[str, Any]:
    base = {
        "attempt": 1,
        "outcome": outcome,
        "reason": "Proven",
        "measurement": NEW.dump(),
        "bootId": GRANT,
        "rootOfTrust": "SignedBoot",
        "at": stamp(T0),
    }
    return {**base, **changes}


def task(status: dict[str, Any] | None = None, **changes: Any) -> Task:
    made = Task(
        namespace="farm",
        name="porch-abc",
        uid="t",
        job="porch",
        job_uid="job-uid",
        device=device("d0").id,
        device_name="d0",
        transport=TransportKind.NETWORK,
        target=TARGET,
        before=Before.IDENTITY,
        timeouts=Timeouts(),
        safety=Safety(),
        rediscovery_required=True,
        status=FlashTaskStatus.parse(status or {}),
        created_at=T0,
    )
    return replace(made, **changes)


def reported(outcome: str = "Proven", permits: int = 1, **changes: Any) -> Task:
    return task({"report": {"permits": [PERMIT][:permits], "verdict": verdict(outcome, **changes)}})


def pod(phase: str = "Running", attempt: int = 1, **changes: Any) -> Pod:
    made = Pod("farm", f"porch-abc-{attempt}", "p", phase, T0, assignments=(("porch-abc", attempt),))
    return replace(made, **changes)


def lease(holder: str = "farm/porch-abc/1", at: float = T0) -> Lease:
    return Lease("fj-x", ("farm", "d0"), holder, at, 1)


def port(name: str = "port-1", **changes: Any) -> Instance:
    made = Instance("akri", name, "ports", {"UDEV_DEVPATH": "/virtual/d0"}, nodes=("node1",))
    return replace(made, **changes)


def listed(boot_id: str = GRANT, endpoint: str = "h:1", measurement: Measurement = NEW, **changes: Any) -> Instance:
    told = Listing(device("d0").id, measurement, boot_id, endpoint)
    return replace(Instance("akri", "app-1", "app", {}, token="t", listing=told), **changes)
