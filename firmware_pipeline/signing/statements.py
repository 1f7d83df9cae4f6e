# SPDX-License-Identifier: Apache-2.0
"""in-toto statements: a typed claim (the predicate) about content named by its digests (the subjects). Pure data.

Two versions are read and written: v1 by what signs, v0.1 by what attests, since the programs that check them expect
these. Both have the same fields.

Sources: in-toto Attestation Framework, Statement v1 and v0.1; the predicate types' own specifications.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from firmware_pipeline.errors import PipelineError
from firmware_pipeline.oci import JsonObject, canonical_json, strict_json

STATEMENT_V1: Final = "https://in-toto.io/Statement/v1"
STATEMENT_V01: Final = "https://in-toto.io/Statement/v0.1"
SIGN_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
SLSA_PREDICATE: Final = "https://slsa.dev/provenance/v1"
SPDX_PREDICATE: Final = "https://spdx.dev/Document"
CYCLONEDX_PREDICATE: Final = "https://cyclonedx.org/bom"
SBOM_PREDICATES: Final = frozenset({SPDX_PREDICATE, CYCLONEDX_PREDICATE})
MAX_SUBJECTS: Final = 256
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a signed document says.

    Attributes:
        predicate_type: what kind of claim; `SIGN_PREDICATE` for a signature in either format.
        digests: what it is about.
        annotations: what a signer stated beside it.
        identity: repository that a signature in the older format names; None elsewhere.
        predicate: the claim itself.
    """

    predicate_type: str
    digests: frozenset[str]
    annotations: Mapping[str, str]
    identity: str | None
    predicate: JsonObject


def write_statement(
    digests: Sequence[str],
    predicate_type: str,
    predicate: JsonObject,
    *,
    version: str = STATEMENT_V1,
    name: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a statement.

    Args:
        digests: `sha256:...` of the subjects.
        predicate_type: URI.
        predicate: JSON object.
        version: `STATEMENT_V1` or `STATEMENT_V01`.
        name: what people call the subjects.
        annotations: stated about each subject.
    """
    extra: JsonObject = {"name": name} if name is not None else {}
    if annotations:
        extra["annotations"] = dict(annotations)
    return canonical_json(
        {
            "_type": version,
            "predicate": predicate,
            "predicateType": predicate_type,
            "subject": [{"digest": {"sha256": d.removeprefix("sha256:")}, **extra} for d in digests],
        }
    )


def read_statement(body: bytes) -> Claim | None:
    """What a statement claims; None when it is none. A signature is about exactly one subject.

    Call it only with bytes whose signature was verified.
    """
    try:
        document = strict_json(body, "the statement")
    except PipelineError:
        return None
    kind, predicate, subjects = (document.get(key) for key in ("predicateType", "predicate", "subject"))
    if document.get("_type") not in (STATEMENT_V1, STATEMENT_V01) or not isinstance(kind, str):
        return None
    if not isinstance(subjects, list) or not 1 <= len(subjects) <= (1 if kind == SIGN_PREDICATE else MAX_SUBJECTS):
        return None
    digests = [_digest(subject) for subject in subjects]
    if not all(digests) or not isinstance(predicate if predicate is not None else {}, dict):
        return None
    annotations = texts(subjects[0].get("annotations")) if kind == SIGN_PREDICATE else {}
    return Claim(kind, frozenset(d for d in digests if d), annotations, None, predicate or {})


def texts(value: object) -> dict[str, str]:
    """The entries of a JSON object whose values are texts; anything else holds none."""
    return {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def _digest(subject: object) -> str | None:
    named = subject.get("digest") if isinstance(subject, dict) else None
    value = named.get("sha256") if isinstance(named, dict) else None
    return f"sha256:{value}" if isinstance(value, str) and _SHA256.fullmatch(value) else None
