# SPDX-License-Identifier: Apache-2.0
"""Requests and replies between a flashing pod and the gateway (docs/gateway-api.md).

Every request names task and attempt; the pod proves who it is by its projected token. A refusal is a Problem with a
4xx status; only 5xx and transport errors mean "try again".

    POST /v1/tasks/{task}/nonce      NonceRequest     -> NonceReply
    POST /v1/tasks/{task}/permit     PermitRequest    -> PermitReply
    POST /v1/tasks/{task}/evidence   EvidenceRequest  -> EvidenceReply
    POST /v1/tasks/{task}/confirm    ConfirmRequest   -> VerdictReply
    POST /v1/tasks/{task}/revert     RevertRequest    -> RevertReply
    POST /v1/tasks/{task}/progress   Progress         -> 204
    POST /v1/tasks/{task}/result     DeviceResult     -> 204
    GET  /v1/tasks/{task}/address                     -> AddressReply
    GET  /v1/progress?job=NAME                        -> ProgressList   (viewer token)
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .base import Blob, GrantId, Hex, ReasonCode, WireModel
from .pod import MAX_DEVICES
from .target import Measurement

LOG_LIMIT = 2048
"""Characters of an attempt's log in its result."""


class Purpose(StrEnum):
    """What a nonce is for; part of the audience it is bound to."""

    BEFORE = "before"
    AFTER = "after"


class Stage(StrEnum):
    """Where an attempt is; the names are FlashTask phases."""

    STARTING = "Starting"
    FETCHING = "Fetching"
    PREFLIGHT = "Preflight"
    WRITING = "Writing"
    REBOOTING = "Rebooting"
    ATTESTING = "Attesting"
    CONFIRMING = "Confirming"


class Problem(WireModel):
    """Why the answer is no."""

    reason: ReasonCode
    message: Annotated[str, Field(max_length=1024)]
    next_step: Annotated[str, Field(max_length=512)] = ""
    retryable: Annotated[bool, Field(description="The same question may be put again with fresh evidence.")] = False
    judged: Annotated[bool, Field(description="This attempt has its verdict; it gets no other.")] = False


class NonceRequest(WireModel):
    """Asks for a nonce that the device's evidence must carry."""

    attempt: Annotated[int, Field(ge=1, le=100)]
    purpose: Purpose


class NonceReply(WireModel):
    """32 bytes, bound to device and task attempt, good for `ttl_seconds`."""

    nonce: Annotated[Blob, Field(min_length=32, max_length=32)]
    ttl_seconds: Annotated[int, Field(ge=1, le=3600)]


class DeltaOffer(WireModel):
    """A payload that turns what the device runs into the target's image."""

    base: Measurement
    sha256: Annotated[Hex, Field(min_length=64, max_length=64, description="Of the payload.")]
    size: Annotated[int, Field(gt=0, le=64 * 1024 * 1024, description="Bytes of the payload.")]


class PermitRequest(WireModel):
    """Asked just before byte 1. On the network it carries the device's install nonce, so that the reply can carry a grant."""

    attempt: Annotated[int, Field(ge=1, le=100)]
    evidence: Annotated[
        Blob | None,
        Field(max_length=4096, description="Over the `before` nonce; None only where before is None."),
    ] = None
    device_nonce: Annotated[
        Blob | None,
        Field(min_length=16, max_length=16, description="Network: from POST /fj/1/nonce, verb install."),
    ] = None
    release: Annotated[Blob | None, Field(max_length=4096, description="The release statement, as fetched.")] = None
    delta: Annotated[DeltaOffer | None, Field(description="What the pod would send instead of the image.")] = None


class PermitDecision(StrEnum):
    """What the permit says."""

    WRITE = "Write"
    ALREADY_RUNNING = "AlreadyRunning"
    """The device proves the target and its slot is VALID, before any permit of this task: nothing to write."""
    RESUME = "Resume"
    """An earlier attempt's installation of this task is found running: go on with attestation, do not write."""


class PermitReply(WireModel):
    """The permit. Asked again for the same attempt it gives the same grant id and fence."""

    decision: PermitDecision
    grant_id: GrantId | None = None
    fence: Annotated[int, Field(ge=0)] = 0
    write_seconds: Annotated[int, Field(ge=1, description="Serial: kill the writer after this many seconds.")] = 300
    install_grant: Annotated[Blob | None, Field(max_length=2048)] = None
    delta: Annotated[bool, Field(description="The grant is for the offered delta, not for the image.")] = False


class EvidenceRequest(WireModel):
    """Evidence after the reboot, and the device's confirm nonce."""

    attempt: Annotated[int, Field(ge=1, le=100)]
    evidence: Annotated[Blob, Field(min_length=1, max_length=4096)]
    device_nonce: Annotated[
        Blob,
        Field(min_length=16, max_length=16, description="From the device's nonce message, verb confirm."),
    ]


class EvidenceReply(WireModel):
    """Accepted so far: a confirm grant that carries the second nonce. Not a success yet.

    `confirm_grant` is None where the slot was found VALID already (a lost answer of an earlier confirm): then the pod
    takes evidence over `second_nonce` and posts it to confirm.
    """

    confirm_grant: Annotated[Blob | None, Field(max_length=2048)] = None
    second_nonce: Annotated[Blob, Field(min_length=32, max_length=32)]


class ConfirmRequest(WireModel):
    """Evidence over the second nonce, saying VALID."""

    attempt: Annotated[int, Field(ge=1, le=100)]
    evidence: Annotated[Blob, Field(min_length=1, max_length=4096)]


class RevertRequest(WireModel):
    """Asks for the order to give up the installation that this attempt was refused for."""

    attempt: Annotated[int, Field(ge=1, le=100)]
    device_nonce: Annotated[
        Blob,
        Field(min_length=16, max_length=16, description="From the device's nonce message, verb revert."),
    ]


class RevertReply(WireModel):
    """The order; the device boots what it ran before. It changes nothing about the verdict."""

    revert_grant: Annotated[Blob, Field(max_length=1024)]


class Outcome(StrEnum):
    """What the judge found, for the record in FlashTask.status.report."""

    PROVEN = "Proven"
    """Fresh evidence of this installation, VALID, at the demanded root of trust."""
    BELOW_POLICY = "BelowPolicy"
    """All of that, but the device's root of trust is below the policy's minimum: ends Unproven."""
    ALREADY_RUNNING = "AlreadyRunning"
    REJECTED = "Rejected"


class VerdictReply(WireModel):
    """All that the pod, and so the device's side, learns."""

    outcome: Outcome
    reason: ReasonCode
    message: Annotated[str, Field(max_length=1024)] = ""


class Progress(WireModel):
    """Bytes are of the wire where the writer compresses: a per cent, not a promise."""

    attempt: Annotated[int, Field(ge=1, le=100)]
    stage: Stage
    done: Annotated[int, Field(ge=0, description="Bytes.")] = 0
    total: Annotated[int, Field(ge=0, description="Bytes; 0 where unknown.")] = 0


class TaskProgress(WireModel):
    """Progress of one task as the viewer sees it."""

    task: str
    attempt: int
    stage: Stage
    done: int
    total: int


class ProgressList(WireModel):
    """All live progress of one job."""

    items: tuple[TaskProgress, ...]


class AddressReply(WireModel):
    """Where the handler last saw the device; None while it is not seen."""

    address: Annotated[str | None, Field(max_length=255, description="host:port, https:// before it for TLS.")] = None


class HardwareReport(WireModel):
    """What preflight read from the live chip; the operator keeps it in Device.status.hardware."""

    chip: Annotated[str, Field(max_length=16)]
    revision: Annotated[int | None, Field(ge=0, description="major * 100 + minor")] = None
    flash_size: Annotated[int | None, Field(ge=0, description="bytes")] = None
    mac: Annotated[str | None, Field(max_length=17)] = None
    secure_boot: bool | None = None
    flash_encryption: bool | None = None


class DeviceResult(WireModel):
    """What became of one attempt, as the pod sees it. It is never what success rests on."""

    task: Annotated[str, Field(max_length=253)]
    attempt: Annotated[int, Field(ge=1, le=100)]
    stage: Stage
    ok: Annotated[bool, Field(description="The whole path was walked; the gateway knows whether it convinced.")]
    reason: ReasonCode
    message: Annotated[str, Field(max_length=1024)] = ""
    bytes_written: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[dict[str, float], Field(default_factory=dict, description="Seconds spent, by stage.")]
    hardware: HardwareReport | None = None
    log: Annotated[str, Field(max_length=LOG_LIMIT, description="The last lines of the attempt's log.")] = ""


class PodResult(WireModel):
    """The termination message: at most 4,096 bytes, so without logs and hardware and with shortened messages where needed."""

    items: Annotated[tuple[DeviceResult, ...], Field(max_length=MAX_DEVICES)]
