# SPDX-License-Identifier: Apache-2.0
"""`attach`: documents beside an artifact."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import BadParameter, Option

from firmware_pipeline.attaching import parts
from firmware_pipeline.attachments import attach, other_file
from firmware_pipeline.cli.documents import read_document
from firmware_pipeline.cli.options import AsJson, Login, Quiet, Ref, Sign
from firmware_pipeline.cli.running import client_options, err, load_signing_key, verb
from firmware_pipeline.opening import locate, open_store, resolve
from firmware_pipeline.provenance import read_provenance
from firmware_pipeline.sbom import read_sbom


@verb
def command(
    reference: Ref,
    login: Login,
    sbom: Annotated[Path | None, Option(help="SPDX or CycloneDX, JSON.")] = None,
    provenance: Annotated[Path | None, Option(help="SLSA provenance v1: predicate or in-toto statement.")] = None,
    file: Annotated[Path | None, Option(help="Any other file; needs --type.")] = None,
    media_type: Annotated[str | None, Option("--type", help="Media type of --file.")] = None,
    chip: Annotated[
        str | None, Option("--chip", help="Attach to this chip's manifest (default: to the index; provenance to all).")
    ] = None,
    sign: Sign = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Attach one document as a referrer, and sign it: unsigned it counts for no policy. Prints its digest."""
    named = [path for path in (sbom, provenance, file) if path is not None]
    if len(named) != 1 or (file is None) != (media_type is None):
        raise BadParameter("name one of --sbom FILE, --provenance FILE, or --file FILE with --type MEDIA/TYPE")
    signer = load_signing_key(sign)
    raw = read_document(named[0])
    where = locate(reference)
    store = open_store(where, client_options(login, where), push=True)
    digest = resolve(store, where)
    subjects, identity = parts(store, digest, chip)
    if provenance is not None:
        document = read_provenance(raw, provenance, [subject.digest for subject in subjects])
    else:
        subjects = subjects if chip else subjects[-1:]
        document = other_file(raw, named[0].name, media_type) if media_type else read_sbom(raw, named[0])
    if signer is None:
        err("warning: not signed (--sign): no policy will count it.")
    digests = attach(store, subjects, document, signer, identity)
    if as_json:
        report = {
            "reference": str(where.at(digest)),
            "subjects": [subject.digest for subject in subjects],
            "attached": digests,
            "type": document.media_type,
            "signed": signer is not None,
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    if not quiet:
        err(f"Attached {document.title} ({document.media_type}) to {len(subjects)} manifests.")
    typer.echo(digests[-1])
