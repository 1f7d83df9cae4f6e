# SPDX-License-Identifier: Apache-2.0
"""`inspect`: what an artifact holds."""

import json

import typer

from firmware_pipeline import api
from firmware_pipeline.artifact import chips
from firmware_pipeline.cli.chip_report import describe_chip
from firmware_pipeline.cli.options import AsJson, Login, Ref
from firmware_pipeline.cli.running import client_options, verb
from firmware_pipeline.signing.release import read_sequence
from firmware_pipeline.signing.verify import gather


@verb
def command(reference: Ref, login: Login, as_json: AsJson = False) -> None:
    """Show what an artifact holds. Digests are checked, signatures only counted: `verify` judges them."""
    where = api.locate(reference)
    store = api.open_store(where, client_options(login, where))
    digest = api.resolve(store, where)
    index = api.open_index(store, digest)
    found = [api.open_chip(store, digest, chip) for chip in chips(index)]
    report = {
        "reference": str(where.at(digest)),
        "digest": digest,
        "annotations": index.annotations,
        "signatures": len(gather(store, digest)),
        "chips": [describe_chip(chip) for chip in found],
    }
    if as_json:
        typer.echo(json.dumps(report, sort_keys=True))
        return
    typer.echo(f"{report['reference']}\n  signatures: {report['signatures']} (not judged)")
    for chip in found:
        app = chip.config.app
        sequence = read_sequence(chip.release_statement, chip.config) if chip.release_statement else "none"
        typer.echo(f"  {chip.target}: {app.project_name} {app.version}, release sequence {sequence}")
        for layer in chip.layers:
            size = f"{layer.image.size:>9}"
            typer.echo(f"    {layer.image.offset:#010x} {size} {layer.image.role.value:<16} {layer.descriptor.digest}")
        for entry in chip.config.measurements:
            typer.echo(f"    measurement {entry.scheme} {entry.alg}: {entry.value}")
