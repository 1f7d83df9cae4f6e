# SPDX-License-Identifier: Apache-2.0
"""`diff`: what differs between two artifacts."""

import json
from itertools import groupby
from typing import Annotated

import typer
from typer import Argument

from firmware_pipeline.cli.options import AsJson, Login, Ref
from firmware_pipeline.cli.running import client_options, verb
from firmware_pipeline.inspection import diff
from firmware_pipeline.opening import locate

DIFFERENT = 1


@verb
def command(
    reference: Ref,
    other: Annotated[str, Argument(help="The artifact to compare it with.")],
    login: Login,
    as_json: AsJson = False,
) -> None:
    """Show what differs: versions, images, sizes, measurements, partitions, release sequence. Exit 0 same, 1 different.

    Digests are checked, signatures neither judged nor compared. --username names the user at the second registry.
    """
    old, new = locate(reference), locate(other)
    changes = diff(old, new, options=client_options(login, new))
    if as_json:
        rows = [
            {"chip": change.chip, "path": change.path, "kind": change.kind, "old": change.old, "new": change.new}
            for change in changes
        ]
        typer.echo(json.dumps({"old": str(old), "new": str(new), "changes": rows}, sort_keys=True))
    for chip, found in groupby(() if as_json else changes, key=lambda change: change.chip):
        typer.echo(chip)
        for change in found:
            mark = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
            shown = [str(value) for value in (change.old, change.new) if value is not None]
            typer.echo(f"  {mark} {change.path}: {' -> '.join(shown)}")
    if changes:
        raise typer.Exit(DIFFERENT)
