# SPDX-License-Identifier: Apache-2.0
"""AttestationPolicy: what devices of one class must prove. The spec is attestation's own model, and its rules are CEL here."""

from typing import Annotated, Literal

from pydantic import Field

from attestation.policy import AttestationPolicySpec

from .meta import Resource, rules

_LENGTHS = " || ".join(
    f"(m.alg == {alg} && size(m.value) == {digits})" for alg, digits in ((-16, 64), (-43, 96), (-44, 128))
)

_RULES = rules(
    (
        "!has(self.requiredSigners) || self.requiredSigners.threshold <= size(self.requiredSigners.keys)",
        "spec.requiredSigners.threshold: cannot be reached with so few spec.requiredSigners.keys",
    ),
    (
        "!has(self.requiredSigners)"
        " || self.requiredSigners.keys.all(k, self.requiredSigners.keys.exists_one(o, o.name == k.name))",
        "spec.requiredSigners.keys: two signers have the same name",
    ),
    (
        "!has(self.requiredSigners) || !has(self.requiredSigners.requiredAnnotations)"
        " || self.requiredSigners.requiredAnnotations.all(a,"
        " self.requiredSigners.requiredAnnotations.exists_one(o, o.key == a.key))",
        "spec.requiredSigners.requiredAnnotations: one annotation is required twice",
    ),
    *(
        (
            f"!has(self.{part}) || !has(self.{part}.measurements) || self.{part}.measurements.all(m, {_LENGTHS})",
            f"spec.{part}.measurements: the length of a value does not fit its alg (-16: 32, -43: 48, -44: 64 bytes)",
        )
        for part in ("bootloader", "application", "deny")
    ),
)


class AttestationPolicy(Resource):
    """What devices of one class must prove, and who must have signed what they are to run."""

    kind: Literal["AttestationPolicy"] = "AttestationPolicy"
    spec: Annotated[
        AttestationPolicySpec,
        Field(description="What is demanded. What it does not name is not accepted.", json_schema_extra=_RULES),
    ]
