# SPDX-License-Identifier: Apache-2.0
"""What a class of devices must prove. A policy only ever narrows: what it does not name is not accepted.

An application measurement is acceptable by these rules, in this order (``acceptable_measurement``):

1. It is on the policy's deny list: never.
2. It is on the policy's list of application measurements.
3. It is the device's last confirmed one.
4. It is pinned by a signed artifact that a live task wants on this very device.
5. Otherwise it is not acceptable. An empty policy accepts nothing.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

SHA256 = -16
SHA384 = -43
SHA512 = -44
_ALG_OF_LENGTH = {32: SHA256, 48: SHA384, 64: SHA512}
_ALG_NAMES = {SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}


class RootOfTrust(StrEnum):
    """What the hardware can prove at best. Set at enrolment, never by a claim in evidence. Ordered."""

    SELF_REPORTED = "SelfReported"
    SIGNED_BOOT = "SignedBoot"
    ISOLATED = "Isolated"

    def at_least(self, other: "RootOfTrust") -> bool:
        """Whether this root of trust is as strong as ``other``, or stronger."""
        return _STRENGTH[self] >= _STRENGTH[other]


_STRENGTH = {tier: strength for strength, tier in enumerate(RootOfTrust)}


class Algorithm(StrEnum):
    """Signature algorithms, by their COSE names."""

    ES256 = "ES256"
    ES384 = "ES384"
    EDDSA = "EdDSA"


class Mode(StrEnum):
    """How a layer was started (Open Profile for DICE, "Mode Value Details")."""

    NOT_CONFIGURED = "NotConfigured"
    NORMAL = "Normal"
    DEBUG = "Debug"
    RECOVERY = "Recovery"


class DebugStatus(StrEnum):
    """Debug status as the device reports it (RFC 9711 section 4.2.9), in the order of its values 0 to 4."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"
    DISABLED_SINCE_BOOT = "DisabledSinceBoot"
    DISABLED_PERMANENTLY = "DisabledPermanently"
    DISABLED_FULLY_AND_PERMANENTLY = "DisabledFullyAndPermanently"


class RequireMeasured(StrEnum):
    """Which images must be measured for a success."""

    APP = "App"
    ALL = "All"


class IdForm(StrEnum):
    """Which form of a P-256 or P-384 key the ids in a chain are made from."""

    UNCOMPRESSED = "Uncompressed"
    COMPRESSED = "Compressed"


class LeafSigning(StrEnum):
    """Which key signs the token: the application's own CDI key, or a key that it certifies."""

    DIRECT = "Direct"
    ATTESTATION_KEY = "AttestationKey"


class Measurement(NamedTuple):
    """The hash of one layer's code, as a certificate states it.

    Args:
        alg: COSE algorithm: -16 SHA-256, -43 SHA-384, -44 SHA-512.
        value: the hash.
    """

    alg: int
    value: bytes

    @classmethod
    def of_hash(cls, value: bytes) -> Self:
        """The measurement of a certificate, where the length alone tells the algorithm.

        Raises:
            ValueError: not 32, 48 or 64 bytes.
        """
        if len(value) not in _ALG_OF_LENGTH:
            raise ValueError(f"a code hash has 32, 48 or 64 bytes, not {len(value)}")
        return cls(_ALG_OF_LENGTH[len(value)], value)

    @property
    def full(self) -> str:
        """``sha512:`` and the whole hash in hex: for files, options and machine-readable output."""
        return f"{_ALG_NAMES.get(self.alg, self.alg)}:{self.value.hex()}"

    def __str__(self) -> str:
        """For messages: the algorithm and the first 12 hex digits, as in ``sha512:71f78c84ea61...``."""
        return f"{_ALG_NAMES.get(self.alg, self.alg)}:{self.value.hex()[:12]}..."


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


HashHex = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$", max_length=128)]
"""A hash of 32, 48 or 64 bytes, in lower-case hex."""


class MeasurementRef(_Strict):
    """A measurement in a policy, in the same form as in a signed config and in Device.status."""

    scheme: Annotated[
        str, Field(pattern=r"^(esp-image|mcuboot)$", max_length=16, description="How the measured bytes are delimited.")
    ] = "esp-image"
    alg: Annotated[int, Field(description="COSE algorithm: -16 SHA-256, -43 SHA-384, -44 SHA-512.")]
    value: Annotated[HashHex, Field(description="The hash, lower-case hex.")]

    @model_validator(mode="after")
    def _length_fits(self) -> Self:
        if _ALG_OF_LENGTH[len(self.value) // 2] != self.alg:
            raise ValueError(f"value has {len(self.value) // 2} bytes, which is not the length of algorithm {self.alg}")
        return self

    @property
    def measurement(self) -> Measurement:
        """As the verifier compares it: algorithm and value."""
        return Measurement(self.alg, bytes.fromhex(self.value))


Measurements = Annotated[tuple[MeasurementRef, ...], Field(max_length=64)]
HashList = Annotated[tuple[HashHex, ...], Field(max_length=16)]


class BootloaderRules(_Strict):
    """The first layer: what the chip starts."""

    name: Annotated[str, Field(min_length=1, max_length=32, description="Component name its certificate states.")] = (
        "bootloader"
    )
    measurements: Annotated[
        Measurements, Field(description="Accepted code hashes of the bootloader. Empty accepts none.")
    ] = ()
    min_security_version: Annotated[
        int | None, Field(ge=0, le=65535, description="Lowest security version; absent: the layer need not state one.")
    ] = None


class ApplicationRules(_Strict):
    """The second layer: the firmware that an artifact carries."""

    names: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=32)], ...],
        Field(max_length=16, description="Accepted project names. Empty leaves the choice to the measurements."),
    ] = ()
    measurements: Annotated[
        Measurements,
        Field(description="Accepted measurements, beside the last confirmed one and those that a live task pins."),
    ] = ()
    min_security_version: Annotated[int, Field(ge=0, le=65535, description="Lowest security version.")] = 0


class DenyRules(_Strict):
    """What is never accepted, whatever else says so."""

    measurements: Annotated[
        Measurements,
        Field(description="Code hashes of any layer. Name a withdrawn image in every algorithm in use."),
    ] = ()
    keys: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", max_length=40)], ...],
        Field(max_length=64, description="DICE ids of keys that no chain may hold, lower-case hex."),
    ] = ()


class Signer(_Strict):
    """A key that may sign artifacts."""

    name: Annotated[str, Field(min_length=1, max_length=63, description="What people call the key.")]
    public_key: Annotated[
        str,
        Field(
            max_length=2048,
            pattern=r"^\s*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*$",
            description="The public key, PEM.",
        ),
    ]


class SignatureAnnotation(_Strict):
    """What a signature must state."""

    key: Annotated[str, Field(min_length=1, max_length=253, description="Name of the annotation.")]
    value: Annotated[str, Field(max_length=512, description="Its exact value.")]


class RequiredSigners(_Strict):
    """Who must have signed an artifact before it may go to these devices, and what they must have said with it."""

    keys: Annotated[tuple[Signer, ...], Field(min_length=1, max_length=16, description="The keys that count.")]
    threshold: Annotated[int, Field(ge=1, le=16, description="How many different keys must have signed.")] = 1
    required_annotations: Annotated[
        tuple[SignatureAnnotation, ...],
        Field(max_length=16, description="Annotations that each signature must carry to count."),
    ] = ()
    require_sbom: Annotated[
        bool, Field(description="An SBOM of the artifact, or of each of its chips, must be signed by one of the keys.")
    ] = False
    require_provenance: Annotated[bool, Field(description="SLSA provenance must be signed by one of the keys.")] = False
    builders: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=512)], ...],
        Field(max_length=16, description="Builder ids that provenance may name; not empty: provenance is required."),
    ] = ()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if len({annotation.key for annotation in self.required_annotations}) != len(self.required_annotations):
            raise ValueError("one annotation is required twice")
        if len({signer.name for signer in self.keys}) != len(self.keys):
            raise ValueError("two signers have the same name")
        if len({"".join(signer.public_key.split()) for signer in self.keys}) != len(self.keys):
            raise ValueError("one key is listed twice")
        if self.threshold > len(self.keys):
            raise ValueError(f"threshold {self.threshold} cannot be reached with {len(self.keys)} keys")
        return self


@dataclass(frozen=True, slots=True)
class PolicySets:
    """The lists of a policy, ready to look things up in."""

    denied: frozenset[Measurement]
    bootloaders: frozenset[Measurement]
    applications: frozenset[Measurement]
    authorities: frozenset[bytes]


class AttestationPolicySpec(_Strict):
    """What devices of one class must prove, and who must have signed what they are to run."""

    algorithms: Annotated[
        tuple[Algorithm, ...], Field(min_length=1, max_length=3, description="Accepted signature algorithms.")
    ] = (Algorithm.ES256, Algorithm.EDDSA)
    bootloader: Annotated[BootloaderRules, Field(description="The first layer of the chain.")] = BootloaderRules()
    application: Annotated[ApplicationRules, Field(description="The second layer of the chain.")] = ApplicationRules()
    deny: Annotated[DenyRules, Field(description="What is never accepted.")] = DenyRules()
    authority_hashes: Annotated[
        HashList,
        Field(description="Accepted hashes of the secure boot authority. Zero bytes mean no verified boot."),
    ] = ()
    modes: Annotated[
        tuple[Mode, ...],
        Field(
            min_length=1,
            max_length=4,
            description="Accepted modes, for every layer. Above SelfReported all security eFuses must be locked as well.",
        ),
    ] = (Mode.NORMAL,)
    debug_status: Annotated[
        tuple[DebugStatus, ...], Field(min_length=1, max_length=5, description="Accepted debug states.")
    ] = tuple(DebugStatus)[1:]
    partition_tables: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)], ...],
        Field(max_length=32, description="Accepted SHA-256 of the partition table. Empty accepts any."),
    ] = ()
    min_root_of_trust: Annotated[
        RootOfTrust, Field(description="Weakest root of trust whose proof counts as success.")
    ] = RootOfTrust.SIGNED_BOOT
    require_measured: Annotated[
        RequireMeasured, Field(description="App: data images may stay unproven, and are named. All: none may.")
    ] = RequireMeasured.APP
    required_signers: Annotated[
        RequiredSigners | None, Field(description="Signers of artifacts. Absent: nothing may be flashed.")
    ] = None
    nonce_ttl_seconds: Annotated[int, Field(ge=10, le=600, description="How long a nonce is good, in seconds.")] = 120
    id_form: Annotated[IdForm, Field(description="Form of key that the chain's ids are made from.")] = (
        IdForm.UNCOMPRESSED
    )
    leaf_signing: Annotated[LeafSigning, Field(description="Which key signs the token.")] = LeafSigning.DIRECT

    @cached_property
    def canonical_hash(self) -> bytes:
        """See ``policy_hash``. Made once for each policy object, which cannot change; a copy makes its own."""
        content = self.model_dump(mode="json", by_alias=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()

    @cached_property
    def sets(self) -> "PolicySets":
        """What the policy lists, as the verifier compares it. Made once, as ``canonical_hash``."""
        return PolicySets(
            denied=frozenset(ref.measurement for ref in self.deny.measurements),
            bootloaders=frozenset(ref.measurement for ref in self.bootloader.measurements),
            applications=frozenset(ref.measurement for ref in self.application.measurements),
            authorities=frozenset(map(bytes.fromhex, self.authority_hashes)),
        )

    def __copy__(self) -> Self:
        return self._forget(super().__copy__())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self._forget(super().__deepcopy__(memo))

    def _forget(self, copied: Self) -> Self:
        """A copy may be about to differ: it makes its own hash and sets."""
        for made in ("canonical_hash", "sets"):
            copied.__dict__.pop(made, None)
        return copied


class Acceptance(StrEnum):
    """By which rule an application measurement is acceptable, or why it is not."""

    POLICY = "Policy"
    CONFIRMED = "Confirmed"
    PINNED = "Pinned"
    UNKNOWN = "Unknown"
    DENIED = "Denied"

    @property
    def ok(self) -> bool:
        """Whether the measurement is acceptable."""
        return self not in (Acceptance.UNKNOWN, Acceptance.DENIED)


def acceptable_measurement(
    measurement: Measurement,
    policy: AttestationPolicySpec,
    last_confirmed: Iterable[Measurement] = (),
    pinned: Iterable[Measurement] = (),
) -> Acceptance:
    """Decide whether a device may run this application, by the rules of this module.

    Args:
        measurement: what the chain states.
        policy: the device's policy.
        last_confirmed: the last confirmed measurement of this device, in every known algorithm.
        pinned: measurements in signed configs that live tasks pin for this device.
    """
    if is_denied(measurement, policy):
        return Acceptance.DENIED
    if measurement in policy.sets.applications:
        return Acceptance.POLICY
    if measurement in tuple(last_confirmed):
        return Acceptance.CONFIRMED
    if measurement in tuple(pinned):
        return Acceptance.PINNED
    return Acceptance.UNKNOWN


def is_denied(measurement: Measurement, policy: AttestationPolicySpec) -> bool:
    """Rule 1, for the measurement of any layer."""
    return measurement in policy.sets.denied


def policy_hash(policy: AttestationPolicySpec) -> bytes:
    """SHA-256 of the policy's canonical JSON, defaults written out: equal hashes mean equal judgement."""
    return policy.canonical_hash
