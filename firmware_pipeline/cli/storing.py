# SPDX-License-Identifier: Apache-2.0
"""What `push` and `pack` have in common."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from firmware_pipeline.cli.options import Attachments, Build, Describe, Output, Signing
from firmware_pipeline.cli.running import (
    err,
    key_password,
    load_signing_key,
    pairs,
    progress,
    read_file,
    tell_moved,
    write_digest,
)
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.features import normalise_features
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.inputs.reconcile import Overrides
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.pushing import Attach, Preview, Pushed, Release, preview, push
from firmware_pipeline.reference import Reference

if TYPE_CHECKING:
    from firmware_pipeline.signing.keys import Signer

CREATED = "org.opencontainers.image.created"


def store_builds(
    inputs: Sequence[str],
    where: Reference,
    *,
    build: Build,
    describe: Describe,
    signing: Signing,
    attachments: Attachments,
    output: Output,
    options: ClientOptions,
    also_tags: Sequence[str] = (),
) -> None:
    """Load, sign, store, report; with `--dry-run` load and show.

    Raises:
        PipelineError: as `load_builds`, `push` and `preview`.
    """
    annotations = index_annotations(describe, os.environ)
    signer, release = load_keys(signing)
    attach = attach_callback(attachments, signer)
    overrides = Overrides(build.name, build.app_version, build.source, build.revision)
    plans = load_builds(inputs, chip=build.chip, kind=build.kind, overrides=overrides)
    plans = demand(plans, build.platform_feature or ())
    for plan in plans:
        for warning in plan.warnings:
            err(f"warning: {plan.target}: {warning}")
    if signer is None:
        err("warning: not signed (--sign): no FlashJob will accept it.")
    if release is None:
        err("warning: no release statement (--release-key, --sequence): devices will not install it.")
    if output.dry_run:
        found = preview(plans, where, release=release, options=options, also_tags=also_tags, annotations=annotations)
        show(found, output)
        return
    with progress(output.quiet) as update:
        pushed = push(
            plans,
            where,
            signer=signer,
            release=release,
            options=options,
            also_tags=also_tags,
            annotations=annotations,
            progress=update,
            attach=attach,
        )
    report(pushed, output.digest_file, output.as_json, output.quiet)


def attach_callback(attachments: Attachments, signer: "Signer | None") -> Attach | None:
    """See `documents`, which is loaded only where something is to be attached.

    Raises:
        PipelineError: SbomMalformed, ProvenanceMalformed.
    """
    if not (attachments.sbom or attachments.provenance or attachments.builder is not None):
        return None
    from firmware_pipeline.cli import documents

    return documents.attach_callback(attachments, signer)


def demand(plans: Sequence[BuildPlan], features: Sequence[str]) -> list[BuildPlan]:
    """The builds with the features of `--platform-feature`, FEATURE for all of them or CHIP:FEATURE for one.

    Raises:
        PipelineError: FeatureMalformed, UnknownChip.
    """
    wanted: dict[str | None, list[str]] = {}
    for text in features:
        chip, colon, feature = text.rpartition(":")
        wanted.setdefault(by_target(chip).target if colon else None, []).append(feature)
    if absent := [chip for chip in wanted if chip is not None and chip not in {plan.target for plan in plans}]:
        raise typer.BadParameter(f"--platform-feature names {absent[0]}, for which there is no build")
    return [
        plan.model_copy(
            update={
                "features": normalise_features([*plan.features, *wanted.get(None, ()), *wanted.get(plan.target, ())])
            }
        )
        for plan in plans
    ]


def index_annotations(describe: Describe, environment: Mapping[str, str]) -> dict[str, str]:
    """The index's own annotations. A time is there only when it was given: the same inputs give the same digest."""
    found = pairs(describe.annotation, "--annotation")
    if describe.created is not None:
        created = describe.created
    elif epoch := environment.get("SOURCE_DATE_EPOCH"):
        if not (epoch.isascii() and epoch.isdigit() and len(epoch) <= 11):
            raise typer.BadParameter(f"SOURCE_DATE_EPOCH is {epoch[:40]!r}, not a number of seconds since 1970")
        created = datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    else:
        return found
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(f"--created needs a time with its zone, 2026-01-31T12:00:00Z, not {created[:40]!r}")
    return {CREATED: moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **found}


def load_keys(signing: Signing) -> "tuple[Signer | None, Release | None]":
    """Signer and release that the options name.

    Raises:
        PipelineError: KeyMalformed.
    """
    if (signing.release_key is None) != (signing.sequence is None):
        raise typer.BadParameter("--release-key and --sequence belong together")
    signer = load_signing_key(signing.sign)
    if signing.release_key is None or signing.sequence is None:
        return signer, None
    from firmware_pipeline.signing.release import load_release_key

    key = load_release_key(read_file(signing.release_key), str(signing.release_key), key_password())
    return signer, Release(key, signing.sequence)


def report(pushed: Pushed, digest_file: Path | None, as_json: bool, quiet: bool) -> None:
    """Tell what was stored: the last line is the pinned reference, or the only one a JSON object."""
    write_digest(digest_file, pushed.reference)
    tell_moved(pushed.moved)
    if as_json:
        typer.echo(json.dumps(describe_pushed(pushed), sort_keys=True))
        return
    if not quiet:
        err(f"{len(pushed.chips)} chips, {pushed.size} bytes, tags: {', '.join(pushed.tags) or 'none'}")
    typer.echo(str(pushed.reference))


def describe_pushed(pushed: Pushed) -> dict[str, object]:
    """The JSON of `push`, `pack` and `index`."""
    return {
        "reference": str(pushed.reference),
        "digest": pushed.index_digest,
        "tags": pushed.tags,
        "moved": pushed.moved,
        "signed": pushed.signed,
        "size": pushed.size,
        "chips": [
            {"chip": c.target, "manifest": c.manifest_digest, "config": c.config_digest, "release": c.release_digest}
            for c in pushed.chips
        ],
    }


def show(preview: Preview, output: Output) -> None:
    """What a push would store. `--digest-file` is written too: the digest is the one that a push would give."""
    write_digest(output.digest_file, preview.reference)
    manifests = [*((chip.target, chip.manifest) for chip in preview.chips), ("index", preview.index)]
    if output.as_json:
        shown = {
            "reference": str(preview.reference),
            "digest": preview.reference.digest,
            "tags": preview.tags,
            "moved": preview.moved,
            "totalBytes": preview.total_bytes,
            "newBytes": preview.new_bytes,
            "manifests": {name: json.loads(raw) for name, raw in manifests},
            "blobs": [
                {"title": title, "digest": digest, "size": size, "present": present}
                for title, digest, size, present in preview.blobs
            ],
        }
        typer.echo(json.dumps(shown, sort_keys=True))
        return
    for name, raw in manifests:
        typer.echo(f"{name}: {json.dumps(json.loads(raw), indent=2, sort_keys=True)}")
    for title, digest, size, present in preview.blobs:
        typer.echo(f"{'there' if present else 'new':<6}{size:>10}  {digest}  {title}")
    for tag, digest in preview.moved.items():
        typer.echo(f"would move: the tag {tag} names {digest}")
    typer.echo(f"{preview.total_bytes} bytes in total, {preview.new_bytes} new; nothing was sent")
    typer.echo(str(preview.reference))
