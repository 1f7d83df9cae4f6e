# SPDX-License-Identifier: Apache-2.0
"""OCI documents as pure data: descriptors, manifests, indexes, digests, canonical JSON.

Source: OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md). Unknown fields are ignored, as the
specification demands of readers; known fields are strict. Nothing here reads a file or a network.
"""

import hashlib
import json
import re
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from firmware_pipeline.errors import PipelineError, Reason

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX_TYPE: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY_JSON: Final = b"{}"
MANIFEST_TYPES: Final = (INDEX_TYPE, MANIFEST_TYPE, DOCKER_INDEX_TYPE, DOCKER_MANIFEST_TYPE)

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
DIGEST_PATTERN: Final = "^sha256:[0-9a-f]{64}$"
_DIGEST = re.compile(DIGEST_PATTERN)

JsonObject = dict[str, Any]


def sha256_digest(data: bytes) -> str:
    """The OCI digest of `data`: `sha256:` and 64 lower-case hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """Return `digest` if it is a well-formed SHA-256 digest, so that it may be used in a path or URL.

    Raises:
        PipelineError: ReferenceMalformed.
    """
    if not _DIGEST.fullmatch(digest):
        raise PipelineError(
            Reason.ReferenceMalformed,
            f"{digest[:100]!r} is not a digest of the form sha256:<64 lower-case hex digits>.",
            "Copy the digest from the last line that `firmware-pipeline push` printed.",
        )
    return digest


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", populate_by_name=True)


class Platform(_Document):
    """Where an image runs. Here: os = runtime, architecture = instruction set, variant = chip."""

    architecture: str = Field(max_length=64)
    os: str = Field(max_length=64)
    variant: str | None = Field(default=None, max_length=64)
    os_features: list[str] = Field(default_factory=list, alias="os.features", max_length=32)


class Descriptor(_Document):
    """Names content by type, digest and size (bytes)."""

    media_type: str = Field(alias="mediaType", min_length=1, max_length=255)
    digest: str = Field(pattern=DIGEST_PATTERN)
    size: int = Field(ge=0, le=2**53)
    annotations: dict[str, str] = Field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = Field(default=None, alias="artifactType", max_length=255)


class Manifest(_Document):
    """An OCI image manifest, or an artifact in the form of one."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default=MANIFEST_TYPE, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType", max_length=255)
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=256)
    subject: Descriptor | None = None
    annotations: dict[str, str] = Field(default_factory=dict)


class Index(_Document):
    """An OCI image index: one entry per platform, or a list of referrers."""

    schema_version: int = Field(alias="schemaVersion", ge=2, le=2)
    media_type: str = Field(default=INDEX_TYPE, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType", max_length=255)
    manifests: list[Descriptor] = Field(max_length=1024)
    subject: Descriptor | None = None
    annotations: dict[str, str] = Field(default_factory=dict)


DocumentT = TypeVar("DocumentT", bound=_Document)


def canonical_json(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN. Reproducible digests need it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def strict_json(raw: bytes, what: str) -> JsonObject:
    """Parse one JSON object; a key that occurs twice, NaN and infinities are refused.

    Args:
        raw: UTF-8 text.
        what: names the document in messages.

    Raises:
        PipelineError: ArtifactMalformed.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise malformed(what, f"it is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise malformed(what, "it is not a JSON object")
    return value


def parse_document(model: type[DocumentT], raw: bytes, what: str) -> DocumentT:
    """Parse and check an OCI document.

    Raises:
        PipelineError: ArtifactMalformed; TooLarge above 4 MiB.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise PipelineError(
            Reason.TooLarge,
            f"{what} has {len(raw)} bytes, more than the {MAX_MANIFEST_BYTES} that a manifest may have.",
            "This is not a firmware artifact; check the reference.",
        )
    try:
        return model.model_validate(strict_json(raw, what), by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise malformed(what, f"field {field}: {first['msg']}") from error


def to_json(document: _Document) -> bytes:
    """Canonical bytes of a document; absent optional fields are left out."""
    dumped = document.model_dump(by_alias=True, exclude_none=True)
    return canonical_json(_without_empty(dumped))


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        optional = ("annotations", "os.features")
        return {k: _without_empty(v) for k, v in value.items() if not (k in optional and not v)}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def malformed(what: str, problem: str) -> PipelineError:
    """The error for a document that is not what it should be."""
    return PipelineError(
        Reason.ArtifactMalformed,
        f"{what} cannot be used: {problem}.",
        "Check that the reference names an artifact made by `firmware-pipeline push` or `pack`; if so, push it again.",
    )
