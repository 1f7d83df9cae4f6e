# SPDX-License-Identifier: Apache-2.0
"""`verify`: may this artifact be flashed?"""

import json
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline import api
from firmware_pipeline.artifact import chips
from firmware_pipeline.cli.options import AsJson, Keys, Login, Ref, Threshold
from firmware_pipeline.cli.running import client_options, err, trusted_keys, verb


@verb
def command(
    reference: Ref,
    login: Login,
    key: Keys = None,
    threshold: Threshold = 1,
    layers: Annotated[bool, Option("--layers", help="Fetch and check every image too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check signatures, index, every chip's manifest, config and release statement. Prints the pinned reference."""
    trusted = trusted_keys(key)
    where = api.locate(reference)
    store = api.open_store(where, client_options(login, where))
    digest = api.resolve(store, where)
    verified = api.verify(store, digest, trusted, threshold)
    found = [api.open_chip(store, digest, chip) for chip in chips(verified.index)]
    for chip in found if layers else []:
        for layer in chip.layers:
            api.read_layer(store, layer)
    pinned = str(where.at(digest))
    if as_json:
        report = {
            "reference": pinned,
            "digest": digest,
            "signers": verified.signers,
            "chips": [c.target for c in found],
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    err(f"Signed by {', '.join(verified.signers)}; chips: {', '.join(c.target for c in found)}.")
    typer.echo(pinned)
