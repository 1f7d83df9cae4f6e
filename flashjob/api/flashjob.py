# SPDX-License-Identifier: Apache-2.0
"""FlashJob: one rollout. What, whom, how; and how far it is.

Immutable: firmware, devices, transport, attestation. Mutable: paused, strategy, timeouts, ttlSecondsAfterFinished.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from flashjob.wire.base import DeviceId, Digest, ReasonCode, WireModel
from flashjob.wire.pod import Before, Safety, Timeouts

from .meta import Condition, Message, Name, Resource, Timestamp, keyed_by, rules


class SecretKeyRef(WireModel):
    """A key of a Secret in the job's namespace."""

    name: Annotated[Name, Field(description="Name of the Secret.")]
    key: Annotated[str, Field(min_length=1, max_length=253, description="Key in the Secret's data.")]


class VerifyKey(WireModel):
    """A public key that may have signed the artifact."""

    name: Annotated[str, Field(min_length=1, max_length=63, description="What messages call this key.")]
    secret_key_ref: Annotated[SecretKeyRef, Field(description="Where the PEM public key is.")]


class Verify(WireModel):
    """Signers the job itself demands. It only adds to what a device's policy demands."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.threshold <= size(self.keys)",
                "spec.firmware.verify.threshold: cannot be reached with so few spec.firmware.verify.keys",
            )
        )
    )

    keys: Annotated[
        tuple[VerifyKey, ...],
        Field(min_length=1, max_length=16, description="Accepted signers.", json_schema_extra=keyed_by("name")),
    ]
    threshold: Annotated[int, Field(ge=1, le=16, description="How many different ones must have signed.")] = 1


class LocalObjectReference(WireModel):
    """A Secret in the job's namespace."""

    name: Annotated[Name, Field(description="Name of the Secret, type kubernetes.io/dockerconfigjson.")]


class Firmware(WireModel):
    """The artifact. A tag is resolved once; what counts from then on is status.firmware.digest."""

    image: Annotated[
        str,
        Field(min_length=1, max_length=512, description="Registry, repository and tag or digest of the signed index."),
    ]
    pull_secrets: Annotated[
        tuple[LocalObjectReference, ...],
        Field(max_length=4, description="Registry credentials, as for pods.", json_schema_extra=keyed_by("name")),
    ] = ()
    plain_http: Annotated[bool, Field(alias="plainHTTP", description="Talk to the registry without TLS.")] = False
    verify: Annotated[Verify | None, Field(description="Signers demanded beyond the device's policy.")] = None


class LabelExpression(WireModel):
    """One requirement of a label selector (metav1.LabelSelectorRequirement)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "spec.devices.selector.matchExpressions: In and NotIn need values, Exists and DoesNotExist have none",
            )
        )
    )

    key: Annotated[str, Field(min_length=1, max_length=317, description="The label's key.")]
    operator: Annotated[Literal["In", "NotIn", "Exists", "DoesNotExist"], Field(description="How values are compared.")]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=64, description="Values for In and NotIn.")
    ] = ()


class Selector(WireModel):
    """Selects Devices by label. An empty selector is refused."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(has(self.matchLabels) && size(self.matchLabels) > 0)"
                " || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                "spec.devices.selector: an empty selector would select every device and is refused",
            )
        )
    )

    match_labels: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(default_factory=dict, max_length=16, description="Labels that must be equal."),
    ]
    match_expressions: Annotated[
        tuple[LabelExpression, ...], Field(max_length=16, description="Requirements that must all hold.")
    ] = ()


class AkriSelection(WireModel):
    """Selects the Devices that an Akri Configuration lists now."""

    configuration: Annotated[str, Field(min_length=1, max_length=56, description="Name of the Akri Configuration.")]


class Devices(WireModel):
    """Whom: exactly one of selector, akri, properties."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.selector), has(self.akri), has(self.properties)].filter(given, given).size() == 1",
                "spec.devices: give exactly one of selector, akri, properties",
            )
        )
    )

    selector: Annotated[Selector | None, Field(description="By labels of the Device.")] = None
    akri: Annotated[AkriSelection | None, Field(description="By Akri Configuration.")] = None
    properties: Annotated[
        dict[str, Annotated[str, Field(max_length=256)]] | None,
        Field(min_length=1, max_length=16, description="By properties of the device's Instance, all equal."),
    ] = None


class Attestation(WireModel):
    """What is demanded of the device beyond its policy."""

    before: Annotated[
        Before, Field(description="What it must prove before the first byte; None takes the verb allow-unsafe.")
    ] = Before.IDENTITY


class Retries(WireModel):
    """How often and how fast a failed attempt is made again."""

    limit: Annotated[int, Field(ge=0, le=20, description="Attempts after the first.")] = 2
    backoff_seconds: Annotated[
        int, Field(ge=0, le=86400, description="Wait before the first retry; doubled each time.")
    ] = 30


class Strategy(WireModel):
    """How the rollout goes."""

    max_in_flight: Annotated[int, Field(ge=1, le=10000, description="Devices worked on at once.")] = 20
    on_busy: Annotated[
        Literal["Wait", "Fail"], Field(description="What to do while a foreign pod uses the device.")
    ] = "Wait"
    retries: Annotated[Retries, Field(description="Retries per device.")] = Retries()


class Toleration(WireModel):
    """core/v1 Toleration."""

    key: Annotated[str, Field(max_length=317, description="Key of the taint; empty matches all.")] = ""
    operator: Annotated[Literal["Equal", "Exists"], Field(description="How values are compared.")] = "Equal"
    value: Annotated[str, Field(max_length=63, description="Value of the taint.")] = ""
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None, Field(description="Effect; absent: all.")
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(ge=0, le=31_536_000, description="How long a NoExecute taint is tolerated.")
    ] = None


class PodOverrides(WireModel):
    """What a cluster needs of the flashing pods beyond our default."""

    labels: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(default_factory=dict, max_length=16, description="Labels added to the pods."),
    ]
    priority_class_name: Annotated[str | None, Field(max_length=253, description="priorityClassName of the pods.")] = (
        None
    )
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=16, description="Tolerations of the pods (core/v1 Toleration).")
    ] = ()


class FlashJobSpec(WireModel):
    """What, whom, how."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                (f"self.{field} == oldSelf.{field}", f"spec.{field} never changes: make another FlashJob")
                for field in ("firmware", "devices", "transport", "attestation")
            ),
            (
                "self.attestation.before != 'None' || self.transport == 'Serial'",
                "spec.attestation.before: None is for blank boards on a serial port; set spec.transport: Serial",
            ),
        )
    )

    firmware: Annotated[Firmware, Field(description="What is rolled out.")]
    devices: Annotated[Devices, Field(description="Whom it is rolled out to.")]
    transport: Annotated[Literal["Auto", "Serial", "Network"], Field(description="How devices are reached.")] = "Auto"
    attestation: Annotated[Attestation, Field(description="What devices must prove.")] = Attestation()
    strategy: Annotated[Strategy, Field(description="How the rollout goes.")] = Strategy()
    timeouts: Annotated[Timeouts, Field(description="Upper bounds of the stages.")] = Timeouts()
    safety: Annotated[
        Safety, Field(description="What is permitted beyond the safe default; takes the verb allow-unsafe.")
    ] = Safety()
    rediscovery: Annotated[
        Literal["Required", "Skip"],
        Field(description="Whether success waits for the device's Instance; Skip: devices without Akri."),
    ] = "Required"
    paused: Annotated[bool, Field(description="Start nothing new; what has its permit goes on.")] = False
    ttl_seconds_after_finished: Annotated[
        int | None, Field(ge=0, le=31_536_000, description="Delete the job this long after its end; absent: never.")
    ] = None
    pod_overrides: Annotated[PodOverrides | None, Field(description="Changes to the flashing pods.")] = None


class PinnedFirmware(WireModel):
    """The artifact, resolved once."""

    repository: Annotated[str, Field(max_length=512, description="Registry and repository.")]
    digest: Annotated[Digest, Field(description="Digest of the index; nothing else is ever fetched by tag.")]
    version: Annotated[str, Field(max_length=128, description="Version in the index's annotations, for people.")] = ""
    signers: Annotated[
        tuple[Annotated[str, Field(max_length=63)], ...],
        Field(max_length=32, description="Names of the keys whose signature was verified."),
    ] = ()
    pinned_at: Annotated[Timestamp, Field(description="When the tag was resolved.")]


class Counts(WireModel):
    """Devices by state. Unproven ones are never part of succeeded."""

    total: Annotated[int, Field(ge=0, description="Devices selected.")] = 0
    pending: Annotated[int, Field(ge=0, description="Not started.")] = 0
    running: Annotated[int, Field(ge=0, description="Being worked on.")] = 0
    succeeded: Annotated[int, Field(ge=0, description="Proven.")] = 0
    unproven: Annotated[int, Field(ge=0, description="Written, but not provable at the demanded root of trust.")] = 0
    skipped: Annotated[int, Field(ge=0, description="Ran the target already, proven.")] = 0
    failed: Annotated[int, Field(ge=0, description="Failed.")] = 0
    rejected: Annotated[int, Field(ge=0, description="Refused before the first byte.")] = 0
    quarantined: Annotated[int, Field(ge=0, description="Withheld until released by name.")] = 0
    rolled_back: Annotated[int, Field(ge=0, description="Taken back to what they had proven before.")] = 0


class FailureSample(WireModel):
    """One device that did not get there."""

    device: Annotated[Name, Field(description="Name of the Device.")]
    task: Annotated[Name, Field(description="Name of the FlashTask.")]
    reason: Annotated[ReasonCode, Field(description="Why, in one word.")]
    message: Annotated[Message, Field(description="Why, and what to do next.")] = ""


class FlashJobStatus(WireModel):
    """How far it is. Nothing here grows with the fleet."""

    observed_generation: Annotated[int, Field(ge=0, description="The generation this status is about.")] = 0
    phase: Annotated[
        Literal["Pending", "Running", "Paused", "Succeeded", "Unproven", "Failed"],
        Field(description="Summary for people."),
    ] = "Pending"
    firmware: Annotated[
        PinnedFirmware | None, Field(description="What spec.firmware.image was when the job began.")
    ] = None
    counts: Annotated[Counts, Field(description="Devices by state.")] = Counts()
    progress: Annotated[str, Field(max_length=32, description="Devices at their end, of all, as 3/8.")] = ""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            description="Validated, ArtifactVerified, Progressing, Paused, Finished, Succeeded, Failed, Reconciling, Stalled.",
            json_schema_extra=keyed_by("type"),
        ),
    ] = ()
    failures: Annotated[
        tuple[FailureSample, ...], Field(max_length=50, description="At most 50 devices that did not get there.")
    ] = ()
    started_at: Annotated[Timestamp | None, Field(description="When the job was admitted.")] = None
    finished_at: Annotated[Timestamp | None, Field(description="When the last device reached its end.")] = None


class FlashJob(Resource):
    """One rollout of one signed artifact to a set of devices."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("size(self.metadata.name) <= 63", "metadata.name: at most 63 characters, because it is a label's value")
        )
    )

    kind: Literal["FlashJob"] = "FlashJob"
    spec: FlashJobSpec
    status: FlashJobStatus = FlashJobStatus()


__all__ = ["DeviceId", "FlashJob", "FlashJobSpec", "FlashJobStatus"]
