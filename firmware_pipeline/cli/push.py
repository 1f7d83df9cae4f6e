# SPDX-License-Identifier: Apache-2.0
"""`push`: builds into a registry."""

from firmware_pipeline.cli.options import AlsoTag, Attachments, Build, Describe, Inputs, Login, Output, Ref, Signing
from firmware_pipeline.cli.running import client_options, verb
from firmware_pipeline.cli.storing import store_builds
from firmware_pipeline.opening import locate


@verb
def command(
    inputs: Inputs,
    reference: Ref,
    build: Build,
    describe: Describe,
    signing: Signing,
    attachments: Attachments,
    output: Output,
    login: Login,
    also_tag: AlsoTag = None,
) -> None:
    """Push one release for one or several chips; sign it; set the tags last. Prints REF@sha256:..."""
    where = locate(reference)
    store_builds(
        inputs,
        where,
        build=build,
        describe=describe,
        signing=signing,
        attachments=attachments,
        output=output,
        options=client_options(login, where),
        also_tags=also_tag or (),
    )
