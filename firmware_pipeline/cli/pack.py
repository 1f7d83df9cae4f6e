# SPDX-License-Identifier: Apache-2.0
"""`pack`: builds into an OCI layout directory."""

from pathlib import Path
from typing import Annotated

from typer import Option

from firmware_pipeline.cli.options import Attachments, Build, Describe, Inputs, Output, Signing
from firmware_pipeline.cli.running import verb
from firmware_pipeline.cli.storing import store_builds
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.reference import layout_reference


@verb
def command(
    inputs: Inputs,
    layout: Annotated[Path, Option("--output", "-o", help="The OCI layout directory.")],
    build: Build,
    describe: Describe,
    signing: Signing,
    attachments: Attachments,
    output: Output,
    tag: Annotated[str, Option(help="Tag inside the layout.")] = "latest",
) -> None:
    """Like push, into an OCI layout directory: no registry needed."""
    store_builds(
        inputs,
        layout_reference(f"{layout}:{tag}"),
        build=build,
        describe=describe,
        signing=signing,
        attachments=attachments,
        output=output,
        options=ClientOptions(),
    )
