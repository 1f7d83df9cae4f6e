# SPDX-License-Identifier: Apache-2.0
"""`pull`: one chip's firmware into a folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from firmware_pipeline.cli.chip_report import describe_chip
from firmware_pipeline.cli.options import AsJson, DigestFile, Keys, Login, Quiet, Ref, Threshold
from firmware_pipeline.cli.running import client_options, err, progress, trusted_keys, verb, write_digest
from firmware_pipeline.features import facts_of
from firmware_pipeline.opening import locate, open_store
from firmware_pipeline.pulling import pull

if TYPE_CHECKING:
    from firmware_pipeline.cached_store import CachedStore
    from firmware_pipeline.store import ArtifactStore


@verb
def command(
    reference: Ref,
    login: Login,
    chip: Annotated[str, Option("--chip", help="The chip.")],
    output: Annotated[Path, Option("--output", "-o", help="Directory for the files.")],
    platform_feature: Annotated[
        list[str] | None,
        Option(help="Hardware that the device has, psram>=8M: the most specific build that fits is taken; repeatable."),
    ] = None,
    key: Keys = None,
    threshold: Threshold = 1,
    unverified: Annotated[bool, Option("--unverified", help="Do not ask who signed it.")] = False,
    cache: Annotated[
        Path | None, Option(help="Node cache: what it holds is not fetched, what is fetched it keeps.", file_okay=False)
    ] = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch one chip's files, config and release statement, each checked. Prints the pinned reference."""
    if unverified and key:
        raise typer.BadParameter("--unverified and --key exclude each other")
    trusted = None if unverified else trusted_keys(key)
    where = locate(reference)
    options = client_options(login, where)
    facts = facts_of(platform_feature) if platform_feature else None
    store = _cached(open_store(where, options), cache) if cache else None
    with progress(quiet) as update:
        pulled = pull(
            where,
            chip,
            output,
            keys=trusted,
            threshold=threshold,
            options=options,
            store=store,
            facts=facts,
            progress=update,
        )
    write_digest(digest_file, pulled.reference)
    pinned = str(pulled.reference)
    if as_json:
        report: dict[str, object] = {"reference": pinned, "digest": pulled.reference.digest, "signers": pulled.signers}
        if store is not None:
            report["traffic"] = store.traffic.dump()
        typer.echo(json.dumps({**report, **describe_chip(pulled.chip)}, sort_keys=True))
        return
    if unverified and not quiet:
        err("warning: nobody was asked who signed it (--unverified).")
    typer.echo(pinned)


def _cached(store: "ArtifactStore", cache: Path) -> "CachedStore":
    from firmware_pipeline.cache import BlobCache
    from firmware_pipeline.cached_store import CachedStore

    return CachedStore(store, BlobCache(cache), note=err)
