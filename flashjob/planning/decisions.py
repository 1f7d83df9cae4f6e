# SPDX-License-Identifier: Apache-2.0
"""What `plan` decides. Each decision names its object and is harmless when carried out twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashjob.api.flashjob import FlashJobStatus
from flashjob.wire.pod import Before, Safety, Timeouts, TransportKind
from flashjob.wire.target import Target

from .connection import Connection
from .state import Device, Key, Lease, Pod, Refusal, Task


@dataclass(frozen=True, slots=True)
class NewTask:
    """Create a FlashTask. Where the name is taken by anything but the same job, device and artifact: NameConflict."""

    name: str
    device: Device
    transport: TransportKind
    target: Target | None
    before: Before
    timeouts: Timeouts
    safety: Safety
    rediscovery_required: bool
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Start:
    """Take the Lease for this attempt (a new PUT, whoever held it), then create the pod. In this order, or not at all."""

    task: Task
    attempt: int
    device: Device
    lease: Lease | None
    connection: Connection
    permitted_before: bool


@dataclass(frozen=True, slots=True)
class Patch:
    """Merge into the status of a FlashTask, if nobody wrote since it was read.

    Args:
        device: (namespace, name) of the Device whose status is written before; None where there is nothing to write.
    """

    task: Task
    status: Mapping[str, Any]
    device: Key | None = None
    device_status: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do now, in the order of the fields; then the job's status, once.

    Args:
        requeue_at: when to plan again even if nothing changes; seconds since the epoch.
        drained: a deleted job has nothing under way; its finalizer may go.
        delete_job: its time to live is over.
    """

    create_tasks: tuple[NewTask, ...] = ()
    patches: tuple[Patch, ...] = ()
    starts: tuple[Start, ...] = ()
    delete_pods: tuple[Pod, ...] = ()
    job_status: FlashJobStatus | None = None
    requeue_at: float | None = None
    drained: bool = False
    delete_job: bool = False
