# SPDX-License-Identifier: Apache-2.0
"""`index`: what the jobs of a build matrix pushed, joined into one artifact."""

from typing import Annotated

from typer import Argument, BadParameter

from firmware_pipeline.cli.options import (
    AlsoTag,
    Annotation,
    AsJson,
    Attachments,
    DigestFile,
    Keys,
    Login,
    Quiet,
    Sign,
    Threshold,
)
from firmware_pipeline.cli.running import client_options, err, load_signing_key, pairs, progress, trusted_keys, verb
from firmware_pipeline.cli.storing import attach_callback, report
from firmware_pipeline.opening import locate
from firmware_pipeline.pushing import index


@verb
def command(
    reference: Annotated[str, Argument(help="The joined artifact: HOST/REPOSITORY:TAG or oci:DIRECTORY:TAG.")],
    children: Annotated[
        list[str], Argument(help="Artifacts of one release, each for one chip or more: references or layouts.")
    ],
    login: Login,
    attachments: Attachments,
    sign: Sign = None,
    key: Keys = None,
    threshold: Threshold = 1,
    also_tag: AlsoTag = None,
    annotation: Annotation = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Join artifacts of one release into one; copy what is elsewhere; sign; set the tags last. Prints REF@sha256:..."""
    if threshold != 1 and not key:
        raise BadParameter("--threshold needs --key")
    trusted = trusted_keys(key) if key else None
    signer = load_signing_key(sign)
    where = locate(reference)
    if signer is None:
        err("warning: not signed (--sign): no FlashJob will accept it.")
    with progress(quiet) as update:
        pushed = index(
            [locate(child) for child in children],
            where,
            signer=signer,
            keys=trusted,
            threshold=threshold,
            options=client_options(login, where),
            also_tags=also_tag or (),
            annotations=pairs(annotation, "--annotation"),
            progress=update,
            attach=attach_callback(attachments, signer),
        )
    report(pushed, digest_file, as_json, quiet)
