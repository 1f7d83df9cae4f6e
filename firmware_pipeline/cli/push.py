# SPDX-License-Identifier: Apache-2.0
"""`push`: builds into a registry."""

from typing import Annotated

from typer import Option

from firmware_pipeline import api
from firmware_pipeline.cli.options import Annotation, AsJson, Build, DigestFile, Inputs, Login, Quiet, Ref, Signing
from firmware_pipeline.cli.running import client_options, verb
from firmware_pipeline.cli.storing import store_builds


@verb
def command(
    inputs: Inputs,
    reference: Ref,
    build: Build,
    signing: Signing,
    login: Login,
    also_tag: Annotated[list[str] | None, Option(help="Further tag; repeatable.")] = None,
    annotation: Annotation = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Push one release for one or several chips; sign it; set the tag last. Prints REF@sha256:..."""
    where = api.locate(reference)
    store_builds(
        inputs,
        where,
        build=build,
        signing=signing,
        options=client_options(login, where),
        also_tags=also_tag or (),
        annotations=annotation,
        digest_file=digest_file,
        as_json=as_json,
        quiet=quiet,
    )
