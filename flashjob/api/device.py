# SPDX-License-Identifier: Apache-2.0
"""Device: one physical device: who it is, whom it is trusted as, how it is reached, what it last proved."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from flashjob.wire.base import Blob, DeviceId, Digest, Hex, ReasonCode, WireModel
from flashjob.wire.serial import RESET_PATTERN, RESET_RULE, SerialSettings
from flashjob.wire.target import Measurement

from .meta import Message, Name, Resource, Timestamp, rules

MOST_BOOTS: Final = 4
"""That a status of 2 KB has room for."""
Mac = Annotated[str, Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", max_length=17)]


class TrustAnchor(WireModel):
    """The public half of the device's UDS key."""

    cose_key: Annotated[
        Blob, Field(max_length=256, description="COSE_Key (RFC 9052 section 7), base64url without padding.")
    ]


class PolicyRef(WireModel):
    """An AttestationPolicy in the device's namespace."""

    name: Annotated[Name, Field(description="Name of the AttestationPolicy.")]


class NetworkConnection(WireModel):
    """Over the network."""

    address: Annotated[
        str | None,
        Field(max_length=255, description="host:port, https:// before it for TLS; absent: as status.endpoint."),
    ] = None


class SerialConnection(SerialSettings):
    """Over a serial port that Akri lists."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (f"self.reset.matches(r'{RESET_PATTERN}')", f"spec.connection.serial.reset: {RESET_RULE}"),
        )
    )

    match: Annotated[
        dict[str, Annotated[str, Field(max_length=512)]],
        Field(
            min_length=1, max_length=8, description="Properties that exactly one port Instance must have, all equal."
        ),
    ]

    @property
    def settings(self) -> SerialSettings:
        """How the line is driven, without where it is."""
        return SerialSettings(baud=self.baud, reset=self.reset, stub=self.stub)


class Connection(WireModel):
    """How the device is reached: exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.network) != has(self.serial)", "spec.connection: give exactly one of network, serial")
        )
    )

    network: Annotated[NetworkConnection | None, Field(description="Over the network.")] = None
    serial: Annotated[SerialConnection | None, Field(description="Over a serial port.")] = None


class Hardware(WireModel):
    """Facts of the hardware, as read from the live chip."""

    chip: Annotated[str, Field(pattern=r"^[a-z0-9]{3,16}$", max_length=16, description="IDF target, as esp32s3.")]
    revision: Annotated[int | None, Field(ge=0, le=65535, description="Chip revision: major * 100 + minor.")] = None
    flash_size: Annotated[int | None, Field(ge=0, description="Flash size in bytes.")] = None
    mac: Annotated[Mac | None, Field(description="MAC address in eFuse.")] = None
    secure_boot: Annotated[bool | None, Field(description="Whether secure boot is on.")] = None
    flash_encryption: Annotated[bool | None, Field(description="Whether flash encryption is on.")] = None
    slot_size: Annotated[
        int | None, Field(ge=0, description="Bytes of the application slot that would be written.")
    ] = None


class Release(WireModel):
    """Lets a device out of quarantine, by name."""

    by: Annotated[str, Field(min_length=1, max_length=253, description="Who releases it.")]
    reason: Annotated[str, Field(min_length=1, max_length=512, description="Why.")]
    at: Annotated[
        Timestamp, Field(description="When, in UTC: what began later still holds it; a time to come does nothing yet.")
    ]


class DeviceSpec(WireModel):
    """Identity, trust and connection; id, trustAnchor and rootOfTrust never change."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.id == oldSelf.id", "spec.id never changes: enroll the other device as another Device"),
            (
                "self.rootOfTrust == oldSelf.rootOfTrust",
                "spec.rootOfTrust never changes: it is decided when the device is enrolled",
            ),
            (
                "!has(oldSelf.trustAnchor) || (has(self.trustAnchor) && self.trustAnchor == oldSelf.trustAnchor)",
                "spec.trustAnchor never changes once set: another key is another device",
            ),
        )
    )

    id: Annotated[DeviceId, Field(description="UEID in lower-case hex; an owner-given id where it cannot attest.")]
    trust_anchor: Annotated[TrustAnchor | None, Field(description="What its chain must start from.")] = None
    root_of_trust: Annotated[
        Literal["SelfReported", "SignedBoot", "Isolated"],
        Field(description="What the hardware can prove at best; set at enrolment, never by a claim in evidence."),
    ] = "SelfReported"
    policy_ref: Annotated[PolicyRef, Field(description="The policy that judges it.")]
    connection: Annotated[Connection, Field(description="How it is reached.")]
    hardware: Annotated[Hardware | None, Field(description="As read at enrolment.")] = None
    suspended: Annotated[
        bool,
        Field(description="Nothing is written, nothing is believed; ending it takes the verb release-quarantine."),
    ] = False
    release_from_quarantine: Annotated[
        Release | None,
        Field(description="Ends a quarantine that began before it; takes the verb release-quarantine."),
    ] = None


class FirmwareState(WireModel):
    """What was last proven and confirmed, by whom we can say so."""

    repository: Annotated[str, Field(max_length=512, description="Registry and repository it came from.")] = ""
    digest: Annotated[Digest | None, Field(description="Digest of its index.")] = None
    application: Annotated[str, Field(max_length=32, description="Certified project name.")] = ""
    version: Annotated[str, Field(max_length=32, description="Version.")] = ""
    sequence: Annotated[int, Field(ge=0, description="Release sequence.")] = 0
    measurements: Annotated[
        tuple[Measurement, ...], Field(max_length=8, description="The confirmed measurement, in every algorithm.")
    ] = ()
    boot_id: Annotated[Hex | None, Field(description="Boot id of the installation.")] = None
    confirmed_at: Annotated[Timestamp, Field(description="When it was confirmed.")]


class AttestationState(WireModel):
    """The discovery handler's last look."""

    accepted: Annotated[bool, Field(description="Whether the evidence held.")]
    code: Annotated[str, Field(max_length=64, description="The verifier's code where it did not.")] = ""
    message: Annotated[Message, Field(description="For people.")] = ""
    application: Annotated[str, Field(max_length=32, description="Certified project name.")] = ""
    version: Annotated[str, Field(max_length=32, description="Version claim.")] = ""
    measurement: Annotated[Measurement | None, Field(description="What it measured.")] = None
    slot_state: Annotated[str, Field(max_length=16, description="State of the running slot.")] = ""
    boot_count: Annotated[int | None, Field(ge=0, description="Its boot counter.")] = None
    policy_hash: Annotated[Hex | None, Field(description="SHA-256 of the policy that judged.")] = None
    at: Annotated[Timestamp, Field(description="When.")]

    @property
    def is_clone_alarm(self) -> bool:
        """Whether two devices seem to share this identity: as good as a quarantine, until it is released by name."""
        return self.code.startswith("clone.")


BootSighting = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{1,20}:[0-9a-f]{12}$",
        max_length=33,
        description="Boot counter, and the first 12 digits of SHA-256 of the boot seed.",
    ),
]


class BootHistory(WireModel):
    """The last boots that proved themselves: two devices that share one identity give themselves away by them."""

    at: Annotated[Timestamp, Field(description="When the last of them had answered.")]
    seen: Annotated[tuple[BootSighting, ...], Field(max_length=MOST_BOOTS, description="The lowest counter first.")]


class Floors(WireModel):
    """What may only rise."""

    security_version: Annotated[int, Field(ge=0, description="Highest confirmed security version.")] = 0
    sequence: Annotated[int, Field(ge=0, description="Highest confirmed release sequence.")] = 0
    boot_count: Annotated[int, Field(ge=0, description="Highest boot counter seen in a verdict.")] = 0


class Quarantine(WireModel):
    """Withheld from Akri and from jobs until released by name."""

    reason: Annotated[ReasonCode, Field(description="Why, in one word.")]
    message: Annotated[Message, Field(description="Why, and what to do next.")] = ""
    task: Annotated[str, Field(max_length=253, description="The task that led to it.")] = ""
    since: Annotated[Timestamp, Field(description="Since when.")]


class OutcomeRecord(WireModel):
    """How a task with this device ended."""

    task: Annotated[str, Field(max_length=253, description="Name of the task.")]
    phase: Annotated[str, Field(max_length=16, description="Its end.")]
    reason: Annotated[ReasonCode, Field(description="Why, in one word.")]
    version: Annotated[str, Field(max_length=32, description="The version it was about.")] = ""
    at: Annotated[Timestamp, Field(description="When.")]


class InstanceRef(WireModel):
    """The Akri Instance that lists the device now."""

    name: Annotated[Name, Field(description="Name of the Instance.")]
    configuration: Annotated[str, Field(max_length=253, description="Name of its Configuration.")]


class DeviceStatus(WireModel):
    """What was last proven; at most 2 KB."""

    hardware: Annotated[Hardware | None, Field(description="As last read by a preflight.")] = None
    firmware: Annotated[FirmwareState | None, Field(description="As last confirmed.")] = None
    attestation: Annotated[AttestationState | None, Field(description="As last attested by the discovery handler.")] = (
        None
    )
    boots: Annotated[BootHistory | None, Field(description="Which boots the discovery handler saw.")] = None
    floors: Annotated[Floors | None, Field(description="What may only rise.")] = None
    quarantine: Annotated[Quarantine | None, Field(description="Why it is withheld.")] = None
    outcomes: Annotated[tuple[OutcomeRecord, ...], Field(max_length=3, description="The last three tasks.")] = ()
    instance: Annotated[InstanceRef | None, Field(description="The Instance that lists it now.")] = None
    endpoint: Annotated[str, Field(max_length=255, description="Where the handler last saw it: as spec's address.")] = (
        ""
    )


class Device(Resource):
    """One physical device."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                (
                    "!has(oldSelf.status) || !has(oldSelf.status.floors) || (has(self.status)"
                    f" && has(self.status.floors) && self.status.floors.{field} >= oldSelf.status.floors.{field})",
                    f"status.floors.{field} only ever rises",
                )
                for field in ("securityVersion", "sequence", "bootCount")
            )
        )
    )

    kind: Literal["Device"] = "Device"
    spec: DeviceSpec
    status: DeviceStatus = DeviceStatus()
