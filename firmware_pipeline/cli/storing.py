# SPDX-License-Identifier: Apache-2.0
"""What `push` and `pack` have in common."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from firmware_pipeline import api
from firmware_pipeline.cli.options import Build, Signing
from firmware_pipeline.cli.running import err, pairs, progress, read_file
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.inputs.reconcile import Overrides
from firmware_pipeline.reference import Reference
from firmware_pipeline.signing.keys import Signer, load_signer
from firmware_pipeline.signing.release import load_release_key
from firmware_pipeline.store import atomic_file


def store_builds(
    inputs: Sequence[str],
    where: Reference,
    *,
    build: Build,
    signing: Signing,
    options: ClientOptions,
    also_tags: Sequence[str],
    annotations: Sequence[str] | None,
    digest_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Load, sign, store, report.

    Raises:
        PipelineError: as `load_builds` and `api.push`.
    """
    extra = pairs(annotations, "--annotation")
    signer, release = load_keys(signing)
    overrides = Overrides(build.name, build.app_version, build.source, build.revision)
    plans = load_builds(inputs, chip=build.chip, kind=build.kind, overrides=overrides)
    for plan in plans:
        for warning in plan.warnings:
            err(f"warning: {plan.target}: {warning}")
    if signer is None:
        err("warning: not signed (--sign): no FlashJob will accept it.")
    if release is None:
        err("warning: no release statement (--release-key, --sequence): devices will not install it.")
    with progress(quiet) as update:
        pushed = api.push(
            plans,
            where,
            signer=signer,
            release=release,
            options=options,
            also_tags=also_tags,
            annotations=extra,
            progress=update,
        )
    report(pushed, digest_file, as_json, quiet)


def load_keys(signing: Signing) -> tuple[Signer | None, api.Release | None]:
    """Signer and release that the options name.

    Raises:
        PipelineError: KeyMalformed.
    """
    if (signing.release_key is None) != (signing.sequence is None):
        raise typer.BadParameter("--release-key and --sequence belong together")
    signer = load_signer(read_file(signing.sign), str(signing.sign)) if signing.sign else None
    if signing.release_key is None or signing.sequence is None:
        return signer, None
    key = load_release_key(read_file(signing.release_key), str(signing.release_key))
    return signer, api.Release(key, signing.sequence)


def report(pushed: api.Pushed, digest_file: Path | None, as_json: bool, quiet: bool) -> None:
    """Tell what was stored: the last line is the pinned reference, or the only one a JSON object."""
    if digest_file:
        with atomic_file(digest_file) as sink:
            sink.write(pushed.index_digest.encode() + b"\n")
    if as_json:
        typer.echo(json.dumps(describe(pushed), sort_keys=True))
        return
    if not quiet:
        err(f"{len(pushed.chips)} chips, {pushed.size} bytes, tags: {', '.join(pushed.tags) or 'none'}")
    typer.echo(str(pushed.reference))


def describe(pushed: api.Pushed) -> dict[str, object]:
    """The JSON of `push`, `pack` and `index`."""
    return {
        "reference": str(pushed.reference),
        "digest": pushed.index_digest,
        "tags": pushed.tags,
        "signed": pushed.signed,
        "size": pushed.size,
        "chips": [
            {"chip": c.target, "manifest": c.manifest_digest, "config": c.config_digest, "release": c.release_digest}
            for c in pushed.chips
        ],
    }
