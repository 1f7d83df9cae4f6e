# SPDX-License-Identifier: Apache-2.0
"""What a flashing pod is told: its environment, its mounts and its assignments. Built in workloads, read in flasher."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from .base import DeviceId, Digest, WireModel
from .serial import SerialSettings
from .target import Target

ENV_ASSIGNMENTS: Final = "FLASHJOB_ASSIGNMENTS"
"""JSON: Assignments."""
ENV_GATEWAY_URL: Final = "FLASHJOB_GATEWAY_URL"
ENV_TOKEN_FILE: Final = "FLASHJOB_TOKEN_FILE"
ENV_CA_FILE: Final = "FLASHJOB_CA_FILE"
"""PEM of the CA that signs the gateway's certificate."""
ENV_DOCKER_CONFIG: Final = "DOCKER_CONFIG"
ENV_WORK_DIR: Final = "FLASHJOB_WORK_DIR"
ENV_TERMINATION_FILE: Final = "FLASHJOB_TERMINATION_FILE"
ENV_CACHE_DIR: Final = "FLASHJOB_CACHE_DIR"
"""A node cache (docs/cache.md), mounted read-only; optional. Its bytes are checked like a registry's."""
ENV_MIRROR: Final = "FLASHJOB_MIRROR"
"""URL of a mirror by digest, asked before the registry; optional and trusted in nothing."""
ENV_NODE_IP: Final = "FLASHJOB_NODE_IP"
"""Address of the pod's node, for `$(FLASHJOB_NODE_IP)` in the mirror's URL."""
ENV_PORT: Final = "UDEV_DEVNODE"
"""Set by the device plugin of a claimed port Instance: the path of the serial port."""

MOUNT_TOKEN: Final = "/var/run/flashjob/token"
MOUNT_CA: Final = "/var/run/flashjob/ca"
MOUNT_DOCKER: Final = "/var/run/flashjob/docker"
MOUNT_CACHE: Final = "/var/run/flashjob/cache"
MOUNT_WORK: Final = "/var/run/flashjob/work"
TERMINATION_FILE: Final = "/dev/termination-log"

ANNOTATION_ASSIGNMENTS: Final = "flashjob.dev/assignments"
"""On the pod: JSON list of {task, attempt}; what the gateway matches a token's pod against."""
LABEL_JOB: Final = "flashjob.dev/job"
LABEL_COMPONENT: Final = "flashjob.dev/component"
TOKEN_AUDIENCE: Final = "flashjob-gateway"
VIEWER_SERVICE_ACCOUNT: Final = "flashjob-viewer"
POD_SERVICE_ACCOUNT: Final = "flashjob-flasher"
TERMINATION_LIMIT: Final = 4096
"""Bytes: Kubernetes' limit of a termination message."""
RESULT_BYTES: Final = 150
"""What one device may take of it at least."""
MAX_DEVICES: Final = 25
"""Of one pod: so many results fit into a termination message, with room to spare for its frame."""


class TransportKind(StrEnum):
    """How a device is reached."""

    SERIAL = "Serial"
    NETWORK = "Network"


class Before(StrEnum):
    """What the device must prove before the first byte is written."""

    IDENTITY = "Identity"
    """Chain, nonce and state are right; any application."""
    KNOWN = "Known"
    """As Identity, and the running application is an acceptable one."""
    NONE = "None"
    """Nothing: virgin or bricked boards on serial; a right of its own."""


class Timeouts(WireModel):
    """Upper bounds of the stages, in seconds."""

    start_seconds: Annotated[
        int, Field(ge=1, le=86400, description="From creating the pod to its permit, fetching apart.")
    ] = 300
    fetch_seconds: Annotated[int, Field(ge=1, le=86400, description="Fetching the layers.")] = 120
    write_seconds: Annotated[int, Field(ge=1, le=86400, description="From permit to the end of the write.")] = 300
    boot_seconds: Annotated[int, Field(ge=1, le=86400, description="From reboot to the application answering.")] = 60
    attest_seconds: Annotated[int, Field(ge=1, le=86400, description="From the application answering to evidence.")] = (
        30
    )
    confirm_seconds: Annotated[
        int, Field(ge=1, le=86400, description="The device's own deadline before it rolls back.")
    ] = 300
    rediscover_seconds: Annotated[
        int, Field(ge=1, le=86400, description="From confirm to the Instance being back.")
    ] = 120

    @property
    def attempt_seconds(self) -> int:
        """What an attempt may take in its pod, all stages at their limits."""
        before = self.start_seconds + self.fetch_seconds
        return before + self.write_seconds + self.boot_seconds + self.attest_seconds + self.confirm_seconds


class Data(StrEnum):
    """What becomes of the device's data partitions (docs/decisions/0014)."""

    KEEP = "Keep"
    """Every one stays byte for byte."""
    WIPE = "Wipe"
    """Serial: what applications wrote is erased, and the artifact's images of such partitions are written."""


class Safety(WireModel):
    """What the job explicitly permits beyond the safe default."""

    allow_downgrade: Annotated[
        bool, Field(description="Permit a version or release sequence below what the device has.")
    ] = False
    allow_security_version_burn: Annotated[
        bool,
        Field(description="Permit a secure_version above the device's eFuse counter, which confirming burns for ever."),
    ] = False
    allow_in_place: Annotated[
        bool,
        Field(description="Serial: permit to overwrite the only application slot; a failure leaves nothing to boot."),
    ] = False
    allow_without_rollback: Annotated[
        bool, Field(description="Permit devices whose bootloader does not go back from an image that fails.")
    ] = False
    allow_bootloader: Annotated[
        bool, Field(description="Serial: permit to write the artifact's bootloader; a network device keeps its own.")
    ] = False
    allow_partition_table: Annotated[
        bool, Field(description="Serial: permit to write the artifact's partition table where the device has another.")
    ] = False
    data: Annotated[
        Data,
        Field(
            description="Keep: data partitions stay as they are. Wipe, serial only: what applications wrote is erased, "
            "and the artifact's images of data partitions are written."
        ),
    ] = Data.KEEP
    from_versions: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=32)], ...],
        Field(max_length=16, description="Only devices that run one of these versions; empty: any."),
    ] = ()

    def wipe_impossible(self, transport: TransportKind) -> bool:
        """Whether a wipe is asked for that this way cannot carry out: the device protocol has no verb for it."""
        return self.data is Data.WIPE and transport is not TransportKind.SERIAL


class AssignmentRef(WireModel):
    """Names one attempt of one task; the pod's annotation is a list of these."""

    task: Annotated[str, Field(min_length=1, max_length=253)]
    attempt: Annotated[int, Field(ge=1, le=100)]


class Base(WireModel):
    """The artifact that the device was last proven to run: what a delta may start from."""

    repository: Annotated[str, Field(min_length=1, max_length=512)]
    index_digest: Digest


class Assignment(WireModel):
    """One attempt at one device, as told to the pod."""

    task: Annotated[str, Field(min_length=1, max_length=253)]
    attempt: Annotated[int, Field(ge=1, le=100)]
    device: DeviceId
    device_name: Annotated[str, Field(max_length=253)] = ""
    transport: TransportKind
    address: Annotated[
        str | None, Field(max_length=255, description="Of a network device: host:port, https:// before it for TLS.")
    ] = None
    mac: Annotated[
        str | None,
        Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", description="eFuse MAC the serial device must have."),
    ] = None
    serial: Annotated[SerialSettings | None, Field(description="How its line is driven; serial only.")] = None
    target: Target
    base: Base | None = None
    before: Before = Before.IDENTITY
    permitted_before: Annotated[
        bool,
        Field(
            description="An earlier attempt had a permit: attest first, never rewrite a device that proves the target."
        ),
    ] = False
    timeouts: Timeouts = Timeouts()
    safety: Safety = Safety()


class Assignments(WireModel):
    """The whole work of one pod."""

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    job: Annotated[str, Field(min_length=1, max_length=253)]
    items: Annotated[tuple[Assignment, ...], Field(min_length=1, max_length=MAX_DEVICES)]
