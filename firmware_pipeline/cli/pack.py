# SPDX-License-Identifier: Apache-2.0
"""`pack`: builds into an OCI layout directory."""

from pathlib import Path
from typing import Annotated

from typer import Option

from firmware_pipeline.cli.options import Annotation, AsJson, Build, DigestFile, Inputs, Quiet, Signing
from firmware_pipeline.cli.running import verb
from firmware_pipeline.cli.storing import store_builds
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.reference import layout_reference


@verb
def command(
    inputs: Inputs,
    build: Build,
    signing: Signing,
    output: Annotated[Path, Option("--output", "-o", help="The OCI layout directory.")],
    tag: Annotated[str, Option(help="Tag inside the layout.")] = "latest",
    annotation: Annotation = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Like push, into an OCI layout directory: no registry needed."""
    store_builds(
        inputs,
        layout_reference(f"{output}:{tag}"),
        build=build,
        signing=signing,
        options=ClientOptions(),
        also_tags=(),
        annotations=annotation,
        digest_file=digest_file,
        as_json=as_json,
        quiet=quiet,
    )
