# SPDX-License-Identifier: Apache-2.0
"""`import`: artifacts out of an archive, into a registry, a layout directory or a node cache."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from firmware_pipeline.archive import load
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cli.options import AsJson, Login, Quiet
from firmware_pipeline.cli.running import client_options, progress, verb
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.opening import locate, open_store
from firmware_pipeline.store import ArtifactStore


@verb
def command(
    source: Annotated[Path, Argument(help="Archive made by `export`, or an OCI layout directory.", exists=True)],
    login: Login,
    destination: Annotated[
        str | None, Argument(help="HOST/REPOSITORY, or oci:DIRECTORY for a layout, which is made if need be.")
    ] = None,
    cache: Annotated[Path | None, Option(help="Into this node cache instead; its tags keep it from `gc`.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check an archive to its last byte and store its artifacts, signatures and tags included."""
    if (destination is None) == (cache is None):
        raise typer.BadParameter("name one place to import to: a destination, or --cache DIR")
    target: ArtifactStore
    if cache is not None:
        target = LayoutStore(BlobCache(cache).root)
    else:
        where = locate(str(destination))
        if where.tag or where.digest:
            raise typer.BadParameter(f"the archive's own tags are kept: leave tag and digest out of {destination!r}")
        target = open_store(where, client_options(login, where), push=True, create=True)
    with progress(quiet) as update:
        found = load(source, target, update)
    if as_json:
        artifacts = [{"digest": one.digest, "tag": one.tag} for one in found]
        typer.echo(json.dumps({"artifacts": artifacts, "destination": target.name}, sort_keys=True))
        return
    for one in found:
        typer.echo(f"{target.name}@{one.digest}")
