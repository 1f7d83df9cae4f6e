# SPDX-License-Identifier: Apache-2.0
"""SLSA provenance: how an artifact came to be, made of what the build files say, or read from a file.

What is made says: which files went where in flash, with which settings (external parameters); a few variables of the CI
system by an allow-list; the source revision and the framework's version (resolved dependencies); who built it. Never:
paths of the build machine, host names, times.

Source: SLSA specification 1.0, Provenance (predicate type https://slsa.dev/provenance/v1).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final
from urllib.parse import quote

from firmware_pipeline.attachments import Document
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import JsonObject, canonical_json, strict_json
from firmware_pipeline.signing.statements import SLSA_PREDICATE, STATEMENT_V01, STATEMENT_V1

BUILD_TYPE: Final = "https://flashjob.dev/build-types/firmware/v1"
MAX_PROVENANCE_BYTES: Final = 1024 * 1024
ENVIRONMENT: Final = (
    "CI_COMMIT_REF_NAME",
    "CI_COMMIT_SHA",
    "CI_JOB_ID",
    "CI_PIPELINE_ID",
    "CI_PROJECT_PATH",
    "GITHUB_REF",
    "GITHUB_REPOSITORY",
    "GITHUB_RUN_ATTEMPT",
    "GITHUB_RUN_ID",
    "GITHUB_SHA",
    "GITHUB_WORKFLOW_REF",
    "SOURCE_DATE_EPOCH",
)
"""The variables that are recorded; no other is looked at."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BUILDER = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]{1,500}")


def make_provenance(configs: Sequence[FirmwareConfig], builder: str, environment: Mapping[str, str]) -> Document:
    """Describe a build from its signed configs.

    Args:
        configs: one for each chip.
        builder: URI of whoever built it; policies name it.
        environment: variables of the process; see `ENVIRONMENT`.

    Raises:
        PipelineError: ProvenanceMalformed when `builder` is no URI.
    """
    _check_builder(builder, "the builder")
    predicate: JsonObject = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "chips": {config.chip.target: _parameters(config) for config in configs},
                "environment": {key: environment[key][:256] for key in ENVIRONMENT if environment.get(key)},
            },
            "resolvedDependencies": _dependencies(configs),
        },
        "runDetails": {"builder": {"id": builder}},
    }
    return Document(
        "application/vnd.in-toto+json", "provenance.json", canonical_json(predicate), SLSA_PREDICATE, predicate
    )


def read_provenance(raw: bytes, path: PurePath, subjects: Sequence[str]) -> Document:
    """Read provenance that a build system wrote: the bare predicate, or an in-toto statement around it.

    Args:
        raw: content of the file.
        path: names it.
        subjects: digests it will be attached to; a statement must name each of them.

    Raises:
        PipelineError: ProvenanceMalformed.
    """
    if not raw.strip() or len(raw) > MAX_PROVENANCE_BYTES:
        raise _malformed(path.name, f"it has {len(raw)} bytes; 1 to {MAX_PROVENANCE_BYTES} are read")
    try:
        document = strict_json(raw, "the provenance")
    except PipelineError as error:
        raise _malformed(path.name, error.message) from error
    if "_type" in document:
        document = _predicate(document, path.name, subjects)
    definition, run = document.get("buildDefinition"), document.get("runDetails")
    if not isinstance(definition, dict) or not isinstance(run, dict):
        raise _malformed(path.name, "it has no buildDefinition or runDetails: it is not SLSA provenance v1")
    if not isinstance(definition.get("buildType"), str) or not isinstance(definition.get("externalParameters"), dict):
        raise _malformed(path.name, "its buildDefinition has no buildType or externalParameters")
    builder = run.get("builder")
    _check_builder(builder.get("id") if isinstance(builder, dict) else None, f"runDetails.builder.id of {path.name}")
    return Document("application/vnd.in-toto+json", path.name, raw, SLSA_PREDICATE, document)


def _predicate(statement: JsonObject, name: str, subjects: Sequence[str]) -> JsonObject:
    if statement["_type"] not in (STATEMENT_V1, STATEMENT_V01) or statement.get("predicateType") != SLSA_PREDICATE:
        raise _malformed(name, f"it is a statement, but not one with predicateType {SLSA_PREDICATE}")
    listed = statement.get("subject")
    digests = [item.get("digest") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    named = {f"sha256:{digest.get('sha256')}" for digest in digests if isinstance(digest, dict)}
    if missing := [subject for subject in subjects if subject not in named]:
        raise _malformed(name, f"it is about something else than {missing[0]}")
    predicate = statement.get("predicate")
    return predicate if isinstance(predicate, dict) else {}


def _parameters(config: FirmwareConfig) -> JsonObject:
    """The flasher's arguments, without any path."""
    return {
        "flash": config.flash.model_dump(mode="json", exclude_none=True),
        "files": [
            {"role": image.role.value, "offset": image.offset, "size": image.size, "digest": image.digest}
            for image in sorted(config.images, key=lambda image: image.offset)
        ],
        "application": {"name": config.app.project_name, "version": config.app.version},
    }


def _dependencies(configs: Sequence[FirmwareConfig]) -> list[JsonObject]:
    found: dict[str, JsonObject] = {}
    for config in configs:
        build = config.build
        if build.revision:
            digest = {"digest": {"gitCommit": build.revision}} if _COMMIT.fullmatch(build.revision) else {}
            uri = f"git+{_without_login(build.source)}" if build.source else "git"
            found.setdefault(f"source {uri} {build.revision}", {"uri": f"{uri}@{quote(build.revision)}", **digest})
        if build.framework_version:
            uri = f"pkg:generic/{quote(build.framework)}@{quote(build.framework_version)}"
            found.setdefault(uri, {"name": build.framework, "uri": uri})
    return [found[key] for key in sorted(found)]


def _without_login(url: str) -> str:
    """A URL without user name and password."""
    return re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", url)


def _check_builder(builder: object, what: str) -> None:
    if not isinstance(builder, str) or not _BUILDER.fullmatch(builder):
        raise _malformed(what, f"{builder!r:.100} is not a URI that names a builder")


def _malformed(what: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.ProvenanceMalformed,
        f"Provenance cannot be attached: {what}: {problem}.",
        "Name the builder with --builder URI, or give a file with SLSA provenance v1 (predicate or statement).",
    )
