# SPDX-License-Identifier: Apache-2.0
"""`cp`: an artifact with all that is attached to it, somewhere else."""

import json
from typing import Annotated

import typer
from typer import Argument

from firmware_pipeline.cli.options import AlsoTag, AsJson, DigestFile, Keys, Login, Quiet, Ref, Threshold
from firmware_pipeline.cli.running import client_options, err, progress, tell_moved, trusted_keys, verb, write_digest
from firmware_pipeline.opening import locate
from firmware_pipeline.pulling import copy


@verb
def command(
    reference: Ref,
    target: Annotated[str, Argument(help="HOST/REPOSITORY[:TAG] or oci:DIRECTORY[:TAG].")],
    login: Login,
    key: Keys = None,
    threshold: Threshold = 1,
    also_tag: AlsoTag = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Copy an artifact with its signatures and other referrers; the digest stays. Prints TARGET@sha256:...

    Every digest is checked on the way; with --key the signatures too, before anything is copied. --username names the
    user at the target; other credentials come from the credentials file.
    """
    if threshold != 1 and not key:
        raise typer.BadParameter("--threshold needs --key")
    trusted = trusted_keys(key) if key else None
    there = locate(target)
    with progress(quiet) as update:
        copied = copy(
            locate(reference),
            there,
            keys=trusted,
            threshold=threshold,
            options=client_options(login, there),
            also_tags=also_tag or (),
            progress=update,
        )
    write_digest(digest_file, copied.reference)
    tell_moved(copied.moved)
    if as_json:
        report = {
            "reference": str(copied.reference),
            "digest": copied.reference.digest,
            "signers": copied.signers,
            "tags": copied.tags,
            "referrers": copied.referrers,
            "sentBytes": copied.sent_bytes,
            "moved": copied.moved,
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    if not quiet:
        judged = f"signed by {', '.join(copied.signers)}" if copied.signers else "signatures copied, not judged (--key)"
        err(f"{copied.sent_bytes} bytes sent, {len(copied.referrers)} referrers; {judged}.")
    typer.echo(str(copied.reference))
