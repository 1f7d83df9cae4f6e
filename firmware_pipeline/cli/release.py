# SPDX-License-Identifier: Apache-2.0
"""`release`: the owner's statement, away from the build."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline.cli.options import AlsoTag, AsJson, DigestFile, Login, Quiet, Ref, Sign
from firmware_pipeline.cli.running import (
    client_options,
    err,
    key_password,
    load_signing_key,
    read_file,
    tell_moved,
    verb,
    write_digest,
)
from firmware_pipeline.opening import locate, moved_tags, open_store, resolve
from firmware_pipeline.pushing import Release
from firmware_pipeline.reference import check_tag
from firmware_pipeline.releasing import release
from firmware_pipeline.signing.release import load_release_key


@verb
def command(
    reference: Ref,
    key: Annotated[Path, Option("--key", help="The owner's release key (PEM).")],
    sequence: Annotated[int, Option(help="Release number; must grow with every release.", min=0)],
    login: Login,
    sign: Sign = None,
    also_tag: AlsoTag = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Mint release statements for what was packed or pushed before, sign the result, set the tag last. It has a new
    digest; signatures of the old one do not count for it. Prints REF@sha256:..."""
    owner = Release(load_release_key(read_file(key), str(key), key_password()), sequence)
    signer = load_signing_key(sign)
    where = locate(reference)
    store = open_store(where, client_options(login, where), push=True)
    digest = resolve(store, where)
    tags = tuple(dict.fromkeys(check_tag(tag) for tag in (where.tag, *(also_tag or ())) if tag))
    if signer is None:
        err("warning: not signed (--sign): sign it with `firmware-pipeline sign` before any FlashJob names it.")
    before = moved_tags(store, tags, "")
    done = release(store, digest, owner, signer, tags)
    pinned = where.at(done.digest)
    write_digest(digest_file, pinned)
    tell_moved({tag: old for tag, old in before.items() if old != done.digest})
    if as_json:
        report = {
            "reference": str(pinned),
            "digest": done.digest,
            "from": digest,
            "chips": done.chips,
            "sequence": sequence,
            "signed": signer is not None,
            "tags": tags,
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    if not quiet:
        err(f"Released {', '.join(done.chips)} with sequence {sequence}.")
    typer.echo(str(pinned))
