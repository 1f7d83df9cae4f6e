# SPDX-License-Identifier: Apache-2.0
"""`sign`: one more signature."""

import json
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline.attaching import parts
from firmware_pipeline.cli.options import AsJson, Login, Quiet, Ref
from firmware_pipeline.cli.running import client_options, err, load_signing_key, pairs, verb
from firmware_pipeline.opening import locate, open_store, resolve
from firmware_pipeline.signing.keys import key_hint
from firmware_pipeline.signing.sign import sign_all


@verb
def command(
    reference: Ref,
    key: Annotated[str, Option("--key", help="Who signs: a PEM key file, exec:PROGRAM, or SCHEME:... of a plug-in.")],
    login: Login,
    annotation: Annotated[list[str] | None, Option(help="KEY=VALUE that the signature states; repeatable.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Sign an index and the manifests of its chips, or one manifest by its digest. Other signatures stay. No tag moves.
    Prints the pinned reference."""
    stated = pairs(annotation, "--annotation")
    signer = load_signing_key(key)
    assert signer is not None
    where = locate(reference)
    store = open_store(where, client_options(login, where), push=True)
    digest = resolve(store, where)
    subjects, identity = parts(store, digest, None)
    sign_all(store, subjects, signer, identity, stated)
    pinned = str(where.at(digest))
    if as_json:
        signed = [subject.digest for subject in subjects]
        report = {"reference": pinned, "digest": digest, "signed": signed, "key": key_hint(signer.public_key)}
        typer.echo(json.dumps(report, sort_keys=True))
        return
    if not quiet:
        err(f"Signed {len(subjects)} manifests as {identity}.")
    typer.echo(pinned)
