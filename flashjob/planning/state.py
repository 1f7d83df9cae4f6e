# SPDX-License-Identifier: Apache-2.0
"""What planning sees: slim, frozen projections of the cluster's objects, gathered by the operator.

Times are seconds since the epoch. Every mapping is keyed so that a rule needs one lookup: tasks by (namespace, name),
leases by device id. `device` always means the device's id, `name` an object's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from firmware_pipeline.config import FirmwareConfig
from flashjob.api.device import DeviceStatus, Hardware
from flashjob.api.flashjob import FlashJobSpec, FlashJobStatus
from flashjob.api.flashtask import FlashTaskStatus
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.pod import Before, Safety, Timeouts, TransportKind
from flashjob.wire.serial import SerialSettings
from flashjob.wire.target import Measurement, Target

Key = tuple[str, str]
"""(namespace, name)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not done. The reason is a wire Reason; the message ends in what to do next."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A FlashJob."""

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: float
    spec: FlashJobSpec
    status: FlashJobStatus
    deleting: bool = False
    finalizer: bool = True
    """Whether our finalizer is on it. Without, a deletion would not wait for running pods, so nothing starts."""
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A FlashTask, of any job."""

    namespace: str
    name: str
    uid: str
    job: str
    job_uid: str
    device: str
    device_name: str
    transport: TransportKind
    target: Target | None
    before: Before
    timeouts: Timeouts
    safety: Safety
    rediscovery_required: bool
    status: FlashTaskStatus
    created_at: float
    refusal: Refusal | None = None
    """Why it was created only to be refused."""
    resource_version: str = ""
    """Precondition of the operator's writes: the gateway may have permitted since."""

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: a flashing pod of ours, or a foreign one that claims an Akri Instance."""

    namespace: str
    name: str
    uid: str
    phase: str
    created_at: float
    finished_at: float | None = None
    deleting: bool = False
    job_uid: str = ""
    assignments: tuple[tuple[str, int], ...] = ()
    """(task, attempt) of each; empty for a foreign pod."""
    claims: tuple[str, ...] = ()
    """Names of the Akri Instances it claims."""
    results: tuple[DeviceResult, ...] = ()
    """From its termination message."""
    trouble: str = ""
    """Why it does not run, or why it ended, in the words of kubelet and scheduler."""
    resource_version: str = ""

    @property
    def terminal(self) -> bool:
        """Whether none of its processes runs any more."""
        return self.phase in ("Succeeded", "Failed")

    def result(self, task: str, attempt: int) -> DeviceResult | None:
        """What it says about one assignment."""
        return next((r for r in self.results if r.task == task and r.attempt == attempt), None)


@dataclass(frozen=True, slots=True)
class Device:
    """A Device."""

    namespace: str
    name: str
    id: str
    policy: str
    root_of_trust: str
    labels: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    address: str = ""
    """As configured; "" means as discovered."""
    serial_match: Mapping[str, str] | None = None
    serial: SerialSettings | None = None
    """How its line is driven; None without serial.match."""
    hardware: Hardware | None = None
    """As enrolled."""
    suspended: bool = False
    released_at: float | None = None
    """When it was released from quarantine."""
    status: DeviceStatus = field(default_factory=DeviceStatus)
    resource_version: str = ""

    @property
    def facts(self) -> Hardware | None:
        """The hardware: as last read by a preflight, else as enrolled."""
        return self.status.hardware or self.hardware


@dataclass(frozen=True, slots=True)
class Listing:
    """What a verified listing token says (see docs/device-protocol.md)."""

    device: str
    measurement: Measurement
    boot_id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Instance:
    """An Akri Instance. With a token it lists a device, without one it is a port."""

    namespace: str
    name: str
    configuration: str
    properties: Mapping[str, str]
    nodes: tuple[str, ...] = ()
    deleting: bool = False
    token: str = ""
    """Its listing token, not verified."""
    listing: Listing | None = None
    """What the token says, only where it was verified."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The lock of one device."""

    name: str
    owner: Key
    """(namespace, name) of the Device it was made for."""
    holder: str
    acquired_at: float
    transitions: int
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What admission found out about one AttestationPolicy and the job's artifact: refusal None means acceptable."""

    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """What is known of the job's artifact.

    Exactly one of `waiting`, `refused` or neither; only with neither are targets and policies complete.

    Args:
        waiting: trouble that passes by itself.
        refused: ends the job.
        targets: by chip, what a device of that chip is to become; a chip that is absent has no image.
        configs: by chip, the signed config of that target; where it is absent preflight alone judges the hardware.
        policies: by name, whether the policy's demands on the artifact are met; absent: there is no such policy.
        refused_chips: images that exist but cannot be used.
    """

    waiting: Refusal | None = None
    refused: Refusal | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    configs: Mapping[str, FirmwareConfig] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    refused_chips: Mapping[str, Refusal] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether devices may be judged by it."""
        return self.waiting is None and self.refused is None


@dataclass(frozen=True, slots=True)
class State:
    """Everything that `plan` decides on.

    Args:
        job: the job.
        admission: of its artifact; None until it was tried.
        tasks: of all jobs in all namespaces, for locks.
        pods: ours of all jobs, and foreign ones that claim Instances.
        devices: of all namespaces, for conflicts of identity.
        instances: of all namespaces.
        leases: by device id.
        gateway: why the gateway cannot serve now; None while it can.
    """

    job: Job
    admission: Admission | None
    tasks: Mapping[Key, Task]
    pods: tuple[Pod, ...]
    devices: tuple[Device, ...]
    instances: tuple[Instance, ...]
    leases: Mapping[str, Lease]
    gateway: Refusal | None = None

    def pods_by_task(self) -> dict[Key, list[Pod]]:
        """Flashing pods of all jobs, by (namespace, task)."""
        found: dict[Key, list[Pod]] = {}
        for pod in self.pods:
            for task, _ in pod.assignments:
                found.setdefault((pod.namespace, task), []).append(pod)
        return found

    def own_tasks(self) -> list[Task]:
        """The job's tasks, by name."""
        uid = self.job.uid
        return sorted((t for t in self.tasks.values() if t.job_uid == uid), key=lambda t: t.name)
