# SPDX-License-Identifier: Apache-2.0
"""`export`: artifacts in one file for a site without a network, or one artifact as other tools want it."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from firmware_pipeline.archive import Chosen, export
from firmware_pipeline.cli.options import AsJson, Login, Quiet
from firmware_pipeline.cli.running import client_options, err, progress, verb
from firmware_pipeline.layout import SIGNATURE_TAG, LayoutStore
from firmware_pipeline.opening import locate, open_store, resolve
from firmware_pipeline.store import ArtifactStore
from firmware_pipeline.tool_files import write_esp_web_tools, write_flash_args


@verb
def command(
    references: Annotated[list[str], Argument(help="HOST/REPOSITORY:TAG (or @sha256:...), or layout directories.")],
    login: Login,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The archive: an OCI layout as a tar file, for `import`.")
    ] = None,
    tag: Annotated[
        str | None,
        Option(help="Tag in the archive, for a reference without one (default: the layout's own, else latest)."),
    ] = None,
    esp_web_tools: Annotated[
        Path | None, Option(metavar="DIR", help="Write manifest.json and images for ESP Web Tools.")
    ] = None,
    flash_args: Annotated[
        Path | None, Option(metavar="DIR", help="Write images and a flash_args file for esptool, per chip.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write artifacts with their signatures and all that refers to them into one reproducible archive."""
    folders = [folder for folder in (esp_web_tools, flash_args) if folder]
    if (output is None) == (not folders):
        raise typer.BadParameter("name what to write: --output FILE, or --esp-web-tools DIR, --flash-args DIR")
    if folders and len(references) != 1:
        raise typer.BadParameter("--esp-web-tools and --flash-args take one reference")
    chosen, pinned, logins = [], [], {}
    for text in references:
        where = locate(text)
        if where.host not in logins:  # a password on standard input can be read once
            logins[where.host] = client_options(login, where)
        store = open_store(where, logins[where.host])
        digest = resolve(store, where)
        chosen.append(Chosen(store, digest, where.tag or tag or _own_tag(store, digest)))
        pinned.append(str(where.at(digest)))
    report: dict[str, object] = {"references": pinned}
    with progress(quiet) as update:
        if output is not None:
            report |= {"file": str(output), "size": export(chosen, output, update)}
        if esp_web_tools is not None:
            report["espWebTools"] = str(write_esp_web_tools(chosen[0].store, chosen[0].digest, esp_web_tools))
        if flash_args is not None:
            written = write_flash_args(chosen[0].store, chosen[0].digest, flash_args)
            report["flashArgs"] = [str(path) for path in written]
    if as_json:
        typer.echo(json.dumps(report, sort_keys=True))
        return
    if output is not None and not quiet:
        err(f"{output}: {report['size']} bytes")
    typer.echo("\n".join(pinned))


def _own_tag(store: ArtifactStore, digest: str) -> str:
    """The tag that a layout has for it, where that is one; else `latest`."""
    if isinstance(store, LayoutStore):
        found = [name for name, named in store.tags().items() if named == digest and not SIGNATURE_TAG.match(name)]
        if len(found) == 1:
            return found[0]
    return "latest"
