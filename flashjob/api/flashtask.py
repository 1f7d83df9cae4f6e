# SPDX-License-Identifier: Apache-2.0
"""FlashTask: one device in one job. Made by the operator, judged by the gateway; people only read it.

Writers (server-side field owners): the operator writes spec once, status.phase, reason, message, waiting and result;
the gateway writes status.report and nothing else.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from flashjob.wire.base import DeviceId, GrantId, Hex, ReasonCode, WireModel
from flashjob.wire.gateway import Outcome, Stage
from flashjob.wire.pod import Before, Safety, Timeouts, TransportKind
from flashjob.wire.target import Measurement, Target

from .meta import Message, Name, Resource, Timestamp, rules


class Phase(StrEnum):
    """Where a task is. Only the last seven are final."""

    PENDING = "Pending"
    STARTING = "Starting"
    FETCHING = "Fetching"
    PREFLIGHT = "Preflight"
    WRITING = "Writing"
    REBOOTING = "Rebooting"
    ATTESTING = "Attesting"
    CONFIRMING = "Confirming"
    REDISCOVERING = "Rediscovering"
    UNKNOWN = "Unknown"
    SUCCEEDED = "Succeeded"
    UNPROVEN = "Unproven"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    REJECTED = "Rejected"
    QUARANTINED = "Quarantined"
    ROLLED_BACK = "RolledBack"

    @property
    def final(self) -> bool:
        """Whether the task is over; a final phase never changes."""
        return self in _FINAL


_FINAL = frozenset(
    {
        Phase.SUCCEEDED,
        Phase.UNPROVEN,
        Phase.FAILED,
        Phase.SKIPPED,
        Phase.REJECTED,
        Phase.QUARANTINED,
        Phase.ROLLED_BACK,
    }
)


class JobRef(WireModel):
    """The job this belongs to."""

    name: Annotated[Name, Field(description="Name of the FlashJob.")]
    uid: Annotated[str, Field(min_length=1, max_length=64, description="UID of the FlashJob.")]


class DeviceRef(WireModel):
    """The device this is about."""

    name: Annotated[Name, Field(description="Name of the Device.")]
    id: Annotated[DeviceId, Field(description="Identity of the device.")]


class FlashTaskSpec(WireModel):
    """Immutable: pinned when the task is made."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self == oldSelf", "spec never changes: it is pinned when the task is made"))
    )

    job: Annotated[JobRef, Field(description="The job.")]
    device: Annotated[DeviceRef, Field(description="The device.")]
    transport: Annotated[TransportKind, Field(description="How the device is reached.")]
    target: Annotated[
        Target | None, Field(description="What the device is to become; absent where it was rejected before.")
    ] = None
    before: Annotated[Before, Field(description="What it must prove before the first byte.")] = Before.IDENTITY
    timeouts: Annotated[Timeouts, Field(description="Upper bounds of the stages.")] = Timeouts()
    safety: Annotated[Safety, Field(description="What the job permits beyond the safe default.")] = Safety()
    rediscovery: Annotated[
        Literal["Required", "Skip"], Field(description="Whether success waits for the Instance.")
    ] = "Required"


class Ran(WireModel):
    """An installation, by the device's own proof."""

    measurement: Annotated[Measurement, Field(description="What the device measured.")]
    boot_id: Annotated[Hex, Field(description="The boot id in its certificate.")]


class Permit(WireModel):
    """Written just before byte 1 of an attempt; an attempt counts from here."""

    attempt: Annotated[int, Field(ge=1, le=100, description="Which attempt.")]
    grant_id: Annotated[GrantId, Field(description="Drawn at the first permit; the boot id of the installation.")]
    fence: Annotated[int, Field(ge=0, description="What the device must not have seen a higher one of.")]
    at: Annotated[Timestamp, Field(description="When it was given.")]
    before: Annotated[Ran | None, Field(description="What the device proved to run just before.")] = None


class StageReport(WireModel):
    """Where a long attempt is."""

    name: Annotated[Stage, Field(description="The stage.")]
    since: Annotated[Timestamp, Field(description="Since when.")]


class Verdict(WireModel):
    """What the device proved, or failed to."""

    attempt: Annotated[int, Field(ge=1, le=100, description="Which attempt.")]
    outcome: Annotated[Outcome, Field(description="What the judge found.")]
    reason: Annotated[ReasonCode, Field(description="Why, in one word.")]
    code: Annotated[str, Field(max_length=64, description="The verifier's own code where evidence was rejected.")] = ""
    message: Annotated[Message, Field(description="Why, for people.")] = ""
    measurement: Annotated[Measurement | None, Field(description="What the device measured.")] = None
    application: Annotated[str, Field(max_length=32, description="The certified project name.")] = ""
    version: Annotated[str, Field(max_length=32, description="The application's own version claim.")] = ""
    secure_version: Annotated[int | None, Field(ge=0, description="The certified security version.")] = None
    boot_id: Annotated[Hex | None, Field(description="The boot id in the certificate.")] = None
    root_of_trust: Annotated[str, Field(max_length=32, description="The tier it was proven at.")] = ""
    unproven: Annotated[
        tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=16, description="What was not proven.")
    ] = ()
    policy_hash: Annotated[Hex | None, Field(description="SHA-256 of the policy that judged.")] = None
    evidence_hash: Annotated[Hex | None, Field(description="SHA-256 of the deciding evidence as received.")] = None
    boot_count: Annotated[int | None, Field(ge=0, description="The device's boot counter.")] = None
    at: Annotated[Timestamp, Field(description="When it was judged.")]

    @property
    def is_clone_alarm(self) -> bool:
        """Whether two devices seem to share this identity (attestation.clones)."""
        return self.code.startswith("clone.")


class FromTo(WireModel):
    """An application and its version."""

    application: Annotated[str, Field(max_length=32, description="Project name.")] = ""
    version: Annotated[str, Field(max_length=32, description="Version.")] = ""


class Report(WireModel):
    """What the gateway knows; its own field, its own field manager."""

    permits: Annotated[
        tuple[Permit, ...], Field(max_length=100, description="One per attempt that may have written.")
    ] = ()
    before: Annotated[FromTo | None, Field(description="What the device proved to run before the first byte.")] = None
    stage: Annotated[StageReport | None, Field(description="Where a long attempt is.")] = None
    used_nonces: Annotated[
        tuple[Hex, ...], Field(max_length=64, description="Hashes of consumed nonces; a nonce is good once.")
    ] = ()
    verdict: Annotated[Verdict | None, Field(description="The last verdict.")] = None


class Waiting(WireModel):
    """Why the task does not go on, and since when."""

    reason: Annotated[ReasonCode, Field(description="Why, in one word.")]
    message: Annotated[Message, Field(description="Why, and what to do next.")] = ""
    since: Annotated[Timestamp, Field(description="Since when.")]


class AttemptRecord(WireModel):
    """How the last attempt ended, where it did not reach a verdict that counts."""

    attempt: Annotated[int, Field(ge=1, le=100, description="Which attempt.")]
    reason: Annotated[ReasonCode, Field(description="Why, in one word.")]
    message: Annotated[Message, Field(description="Why, for people.")] = ""
    stage: Annotated[str, Field(max_length=32, description="Where it ended.")] = ""
    ended_at: Annotated[Timestamp, Field(description="When it ended.")]


class FlashTaskStatus(WireModel):
    """Phase, reason and what it rests on."""

    phase: Annotated[Phase, Field(description="Where the task is.")] = Phase.PENDING
    reason: Annotated[ReasonCode, Field(description="Why, in one word.")] = "WaitingForTurn"
    message: Annotated[Message, Field(description="Why, and what to do next.")] = ""
    attempt: Annotated[int, Field(ge=0, le=100, description="The running or last attempt.")] = 0
    pod: Annotated[str, Field(max_length=253, description="The last pod.")] = ""
    waiting: Annotated[Waiting | None, Field(description="Why it does not go on.")] = None
    last_attempt: Annotated[AttemptRecord | None, Field(description="How the last attempt ended.")] = None
    from_: Annotated[FromTo | None, Field(alias="from", description="What the device ran before.")] = None
    started_at: Annotated[Timestamp | None, Field(description="When the first attempt was permitted.")] = None
    finished_at: Annotated[Timestamp | None, Field(description="When the task reached its end.")] = None
    seconds: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=31_536_000)]] | None,
        Field(max_length=16, description="Seconds spent, by stage."),
    ] = None
    bytes_written: Annotated[int | None, Field(ge=0, description="Bytes written by the last attempt.")] = None
    report: Annotated[Report | None, Field(description="Written by the gateway alone.")] = None


class FlashTask(Resource):
    """One device in one rollout."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(oldSelf.status) || !has(oldSelf.status.phase)"
                f" || !(oldSelf.status.phase in [{', '.join(repr(str(phase)) for phase in sorted(_FINAL))}])"
                " || (has(self.status) && has(self.status.phase) && self.status.phase == oldSelf.status.phase)",
                "status.phase never changes once it is final",
            ),
            *(
                (
                    f"!has(oldSelf.status) || !has(oldSelf.status.report) || !has(oldSelf.status.report.{field})"
                    f" || (has(self.status) && has(self.status.report) && has(self.status.report.{field})"
                    f" && size(self.status.report.{field}) >= size(oldSelf.status.report.{field}))",
                    f"status.report.{field} is never shortened: a permit or nonce that was given stays given",
                )
                for field in ("permits", "usedNonces")
            ),
        )
    )

    kind: Literal["FlashTask"] = "FlashTask"
    spec: FlashTaskSpec
    status: FlashTaskStatus = FlashTaskStatus()
