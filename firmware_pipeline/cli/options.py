# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share. A group is a dataclass: a verb takes it as one parameter, the command line shows
its fields (see `running.verb`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Inputs = Annotated[
    list[str],
    Argument(help="Build folders, or OFFSET=FILE, or CHIP:OFFSET=FILE when several chips are given so."),
]
Ref = Annotated[str, Argument(help="HOST/REPOSITORY:TAG (or @sha256:...), or the directory of an OCI layout.")]
CacheDir = Annotated[
    Path,
    Argument(envvar="FIRMWARE_PIPELINE_CACHE", help="The node cache: a directory, an OCI layout.", file_okay=False),
]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress and no remarks; warnings and errors only.")]
DigestFile = Annotated[Path | None, Option(help="Write the index digest into this file.")]
Keys = Annotated[list[Path] | None, Option("--key", help="PEM public key that is trusted; repeatable.")]
Threshold = Annotated[int, Option(help="How many distinct trusted keys must have signed.", min=1)]
AlsoTag = Annotated[list[str] | None, Option(help="Further tag; repeatable.")]
Sign = Annotated[
    str | None, Option("--sign", help="Who signs: a PEM key file, exec:PROGRAM, or SCHEME:... of a plug-in.")
]
Annotation = Annotated[list[str] | None, Option("--annotation", help="KEY=VALUE for the index; repeatable.")]


@dataclass(frozen=True, slots=True)
class Login:
    """How to reach a registry."""

    plain_http: Annotated[bool, Option("--plain-http", help="Speak http instead of https.")] = False
    ca_file: Annotated[Path | None, Option(help="PEM certificates to trust instead of the system's.")] = None
    trust_host: Annotated[
        list[str] | None, Option(help="Further host of the registry's owner, e.g. its token service; repeatable.")
    ] = None
    username: Annotated[str | None, Option(help="User name; needs --password-stdin.")] = None
    password_stdin: Annotated[bool, Option("--password-stdin", help="Read the password from standard input.")] = False
    registry_config: Annotated[Path | None, Option("--registry-config", help="Credentials file (config.json).")] = None


@dataclass(frozen=True, slots=True)
class Build:
    """How to read the inputs."""

    chip: Annotated[
        str | None,
        Option("--chip-from", "--chip", help="Chip of the OFFSET=FILE arguments (default: read from the image)."),
    ] = None
    kind: Annotated[str | None, Option("--from", help="Kind of the build folders (default: detected).")] = None
    name: Annotated[str | None, Option("--name", help="Application name, where the image has none.")] = None
    app_version: Annotated[
        str | None, Option("--app-version", help="Application version, where the image has none.")
    ] = None
    platform_feature: Annotated[
        list[str] | None,
        Option(help="Hardware that the build demands: psram>=8M, or CHIP:psram>=8M for one of several; repeatable."),
    ] = None
    source: Annotated[str | None, Option(help="URL of the sources.")] = None
    revision: Annotated[str | None, Option(help="Revision of the sources.")] = None


@dataclass(frozen=True, slots=True)
class Describe:
    """What the index says of itself."""

    annotation: Annotation = None
    created: Annotated[
        str | None, Option(help="Time of the build, RFC 3339 (default: SOURCE_DATE_EPOCH, else none).")
    ] = None


@dataclass(frozen=True, slots=True)
class Output:
    """What is printed, and whether anything is stored."""

    dry_run: Annotated[
        bool, Option("--dry-run", help="Show manifests and bytes, ask what is there, store nothing.")
    ] = False
    digest_file: DigestFile = None
    as_json: AsJson = False
    quiet: Quiet = False


@dataclass(frozen=True, slots=True)
class Device:
    """What a device has, for the downgrade rules."""

    device_version: Annotated[str | None, Option(help="Version that the device runs.")] = None
    device_secure_version: Annotated[int | None, Option(help="The device's eFuse security version.", min=0)] = None
    device_sequence: Annotated[int | None, Option(help="Release sequence that the device has.", min=0)] = None
    allow_downgrade: Annotated[bool, Option("--allow-downgrade", help="Permit an older release or version.")] = False
    explain: Annotated[bool, Option("--explain", help="Print every rule, passed or failed.")] = False


@dataclass(frozen=True, slots=True)
class Trust:
    """Who must have signed an artifact, and what must be attached to it."""

    key: Keys = None
    threshold: Threshold = 1
    require_annotation: Annotated[
        list[str] | None, Option(help="KEY=VALUE that each counted signature must state; repeatable.")
    ] = None
    identity_prefix: Annotated[str, Option(help="Repository, or its beginning, that signatures must name.")] = ""
    require_sbom: Annotated[bool, Option("--require-sbom", help="Refuse without a signed SBOM.")] = False
    require_provenance: Annotated[bool, Option("--require-provenance", help="Refuse without signed provenance.")] = (
        False
    )
    builder: Annotated[
        list[str] | None, Option(help="Builder that provenance may name; repeatable; demands provenance.")
    ] = None
    release_key: Annotated[
        list[Path] | None, Option(help="The owner's PEM public key; each chip must be released by one; repeatable.")
    ] = None


@dataclass(frozen=True, slots=True)
class Attachments:
    """What is attached before a tag moves."""

    sbom: Annotated[list[str] | None, Option(help="SBOM of the release, or CHIP=FILE for one chip; repeatable.")] = None
    provenance: Annotated[bool, Option("--provenance", help="Attach SLSA provenance; needs --builder.")] = False
    builder: Annotated[str | None, Option(help="URI of whoever builds, for --provenance.")] = None


@dataclass(frozen=True, slots=True)
class Signing:
    """With which keys."""

    sign: Sign = None
    release_key: Annotated[Path | None, Option("--release-key", help="The owner's release key (PEM).")] = None
    sequence: Annotated[int | None, Option(help="Release number; must grow with every release.", min=0)] = None


GROUPS = (Login, Build, Describe, Output, Device, Trust, Attachments, Signing)
"""The option groups that `running.verb` spreads."""
