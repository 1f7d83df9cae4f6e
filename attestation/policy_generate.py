# SPDX-License-Identifier: Apache-2.0
"""A policy from what an artifact's signed config says, so that nobody copies hashes by hand. Pure.

The input is what ``firmware-pipeline inspect --json`` prints. Rules (tests name them):

1. Read strictly in types; only fields that are used are looked at, since a report may grow. Config schema 1.
2. Every chip of the artifact, or those that are chosen, lends its measurements in every algorithm, its project name, and
   its partition table. Chips that are chosen must be there.
3. The lowest security version that is accepted is the lowest of the chosen chips: nothing older passes. A policy to start
   from keeps its own, which nothing but a person lowers: an artifact below it is refused.
4. A bootloader that is in the artifact is accepted only if that is asked for, and then it must be there: devices often run
   one that was never in an artifact.
5. What an artifact cannot know comes from whoever makes the policy: other bootloaders' measurements, authority hashes, the
   weakest root of trust, signers. Where a policy is given to start from, it is kept, and only added to.
6. Partition tables are left open only where that is asked for, or where neither the chosen chips nor the policy to start
   from name any: one chip that names none does not open the others'.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation.device_file import first_error
from attestation.errors import Code, Reject
from attestation.policy import (
    AttestationPolicySpec,
    Measurement,
    MeasurementRef,
    RequireMeasured,
    RootOfTrust,
    Signer,
)


class _Said(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class _Measured(_Said):
    scheme: str
    alg: int
    value: str


class _App(_Said):
    project_name: Annotated[str, Field(min_length=1, max_length=32)]
    version: str
    secure_version: Annotated[int, Field(ge=0, le=65535)]


class _Config(_Said):
    schema_version: Literal[1]
    app: _App
    measurements: Annotated[tuple[_Measured, ...], Field(min_length=1, max_length=8)]
    partition_table_sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", alias="partitionTableSha256")] = None


class _Image(_Said):
    role: str
    measurements: Annotated[tuple[_Measured, ...], Field(max_length=8)] = ()


class _Chip(_Said):
    chip: Annotated[str, Field(min_length=1, max_length=32)]
    config: _Config
    images: Annotated[tuple[_Image, ...], Field(max_length=64)] = ()

    def bootloader(self) -> list[dict[str, Any]]:
        """Measurements of the bootloader that comes with the application."""
        return [e.model_dump(mode="json") for one in self.images if one.role == "bootloader" for e in one.measurements]


class InspectReport(_Said):
    """The parts of ``firmware-pipeline inspect --json`` that a policy is made from."""

    reference: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    chips: Annotated[tuple[_Chip, ...], Field(min_length=1, max_length=64)]

    @classmethod
    def read(cls, data: bytes) -> "InspectReport":
        """Raises Reject ``policy.invalid``."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise Reject(
                Code.POLICY_INVALID,
                f"not the output of `firmware-pipeline inspect --json REF`: {first_error(error)}",
            ) from error


def generate(
    report: InspectReport,
    *,
    chips: Sequence[str] = (),
    base: AttestationPolicySpec | None = None,
    bootloaders: Sequence[Measurement] = (),
    with_bootloader: bool = False,
    authorities: Sequence[bytes] = (),
    signers: Sequence[Signer] = (),
    min_root_of_trust: RootOfTrust | None = None,
    require_measured: RequireMeasured | None = None,
    any_partition_table: bool = False,
) -> AttestationPolicySpec:
    """The policy (rules 2 to 6).

    Args:
        report: what the artifact holds.
        chips: only these; none: all.
        base: the policy to start from; its lists are added to, its other fields kept.
        bootloaders, authorities, signers: what an artifact cannot know; added to the base's.
        with_bootloader: accept the artifact's own bootloaders.
        min_root_of_trust, require_measured: None: the base's, or the default.
        any_partition_table: leave partition tables open.

    Raises:
        Reject: ``policy.invalid``, a chosen chip, its bootloader or its partition table is not in the artifact, the
            artifact is older than the policy to start from allows, or the outcome is not a valid policy.
    """
    unknown = sorted(set(chips) - {chip.chip for chip in report.chips})
    if unknown:
        there = ", ".join(sorted(chip.chip for chip in report.chips))
        raise Reject(Code.POLICY_INVALID, f"the artifact has no chip {unknown[0]!r:.40}; it has: {there}")
    selected = [chip for chip in report.chips if not chips or chip.chip in chips]
    chosen = [chip.config for chip in selected]
    own = [entry for chip in selected for entry in chip.bootloader()] if with_bootloader else []
    if with_bootloader and (without := [chip.chip for chip in selected if not chip.bootloader()]):
        raise Reject(Code.POLICY_INVALID, f"the artifact holds no bootloader for {without[0]}")
    start = base or AttestationPolicySpec()
    content: dict[str, Any] = start.model_dump(mode="json", by_alias=True, exclude_none=True)
    application, bootloader = content["application"], content["bootloader"]
    application["names"] = _with(application["names"], (one.app.project_name for one in chosen))
    application["measurements"] = _with(
        application["measurements"], (entry.model_dump(mode="json") for one in chosen for entry in one.measurements)
    )
    lowest = min(one.app.secure_version for one in chosen)
    if base is not None and lowest < base.application.min_security_version:
        raise Reject(
            Code.POLICY_INVALID,
            f"the artifact has security version {lowest}, the policy to start from demands"
            f" {base.application.min_security_version}: lower its application.minSecurityVersion by hand if that is meant",
        )
    application["minSecurityVersion"] = lowest if base is None else base.application.min_security_version
    bootloader["measurements"] = _with(bootloader["measurements"], [*own, *map(_ref, bootloaders)])
    content["authorityHashes"] = _with(content["authorityHashes"], (value.hex() for value in authorities))
    content["partitionTables"] = [] if any_partition_table else _tables(selected, base)
    if signers:
        required = content.setdefault("requiredSigners", {"keys": []})
        required["keys"] = _with(required["keys"], (one.model_dump(mode="json", by_alias=True) for one in signers))
    if min_root_of_trust is not None:
        content["minRootOfTrust"] = min_root_of_trust.value
        if min_root_of_trust is RootOfTrust.SELF_REPORTED:
            content["modes"] = _with(content["modes"], ["NotConfigured"])
    if require_measured is not None:
        content["requireMeasured"] = require_measured.value
    try:
        return AttestationPolicySpec.model_validate_json(_json(content))
    except ValidationError as error:
        raise Reject(Code.POLICY_INVALID, f"the policy that this would make: {first_error(error)}") from error


def _tables(selected: Sequence[_Chip], base: AttestationPolicySpec | None) -> list[str]:
    """Rule 6, where they need not stay open."""
    known = list(base.partition_tables) if base is not None else []
    found = [chip.config.partition_table_sha256 for chip in selected]
    if base is not None and not known:
        return []
    if without := [chip.chip for chip in selected if chip.config.partition_table_sha256 is None]:
        if not known and not any(found):
            return []
        raise Reject(
            Code.POLICY_INVALID,
            f"the artifact names no partition table for {without[0]}: choose other chips, or leave all tables open"
            " (--any-partition-table)",
        )
    return _with(known, found)


def weak_points(policy: AttestationPolicySpec) -> list[str]:
    """What a reader of the policy should know before using it: what it cannot accept, and what it leaves open."""
    said = []
    if not policy.bootloader.measurements:
        said.append("no bootloader measurement: no device can pass (--bootloader, --with-bootloader)")
    if policy.min_root_of_trust is not RootOfTrust.SELF_REPORTED and not policy.authority_hashes:
        said.append("no authority hash: no device with secure boot can pass (--authority)")
    if policy.required_signers is None:
        said.append("no required signers: nothing may be flashed to these devices (--signer)")
    if policy.min_root_of_trust is RootOfTrust.SELF_REPORTED:
        said.append("minRootOfTrust SelfReported: finds accidents, not attackers")
    if not policy.partition_tables:
        said.append("any partition table is accepted")
    return said


def differences(old: AttestationPolicySpec, new: AttestationPolicySpec) -> list[tuple[str, str, str]]:
    """(field, in the old, in the new) for every leaf that differs; elements of lists are fields of their own."""
    left = dict(_leaves("", old.model_dump(mode="json", by_alias=True)))
    right = dict(_leaves("", new.model_dump(mode="json", by_alias=True)))
    return [
        (name, left.get(name, ""), right.get(name, ""))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]


def _leaves(path: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield f"{path}[{_json(inner).decode()}]", "present"
    else:
        yield path, _json(value).decode()


def _with(known: list[Any], more: Iterable[Any]) -> list[Any]:
    found = list(known)
    for one in more:
        if one not in found:
            found.append(one)
    return found


def _ref(value: Measurement) -> dict[str, Any]:
    return MeasurementRef(alg=value.alg, value=value.value.hex()).model_dump(mode="json", by_alias=True)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
