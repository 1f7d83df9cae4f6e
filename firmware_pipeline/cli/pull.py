# SPDX-License-Identifier: Apache-2.0
"""`pull`: one chip's firmware into a folder."""

import functools
import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline import api
from firmware_pipeline.cli.chip_report import describe_chip
from firmware_pipeline.cli.options import AsJson, Keys, Login, Quiet, Ref, Threshold
from firmware_pipeline.cli.running import client_options, progress, trusted_keys, verb
from firmware_pipeline.config import dumps
from firmware_pipeline.store import atomic_file


@verb
def command(
    reference: Ref,
    login: Login,
    chip: Annotated[str, Option("--chip", help="The chip.")],
    output: Annotated[Path, Option("--output", "-o", help="Directory for the files.")],
    key: Keys = None,
    threshold: Threshold = 1,
    unverified: Annotated[bool, Option("--unverified", help="Do not ask who signed it.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch one chip's files, config and release statement, each checked."""
    if unverified and key:
        raise typer.BadParameter("--unverified and --key exclude each other")
    trusted = [] if unverified else trusted_keys(key)
    where = api.locate(reference)
    store = api.open_store(where, client_options(login, where))
    digest = api.resolve(store, where)
    if not unverified:
        api.verify(store, digest, trusted, threshold)
    found = api.open_chip(store, digest, chip)
    with progress(quiet) as update:
        for layer in found.layers:
            api.fetch_layer(store, layer, output / layer.title, functools.partial(update, layer.title))
    folder = output / found.target
    extra = {"config.json": dumps(found.config)}
    if found.release_statement:
        extra["release.cose"] = found.release_statement
    for file_name, data in extra.items():
        with atomic_file(folder / file_name) as sink:
            sink.write(data)
    pinned = str(where.at(digest))
    typer.echo(json.dumps({"reference": pinned, "digest": digest, **describe_chip(found)}) if as_json else pinned)
