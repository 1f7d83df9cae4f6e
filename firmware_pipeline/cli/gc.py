# SPDX-License-Identifier: Apache-2.0
"""`gc`: make room in a node cache."""

import json
import re
import time
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cache_gc import Limits, collect
from firmware_pipeline.cli.options import AsJson, CacheDir, Quiet
from firmware_pipeline.cli.running import err, verb
from firmware_pipeline.layout import LayoutStore

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


@verb
def command(
    cache: CacheDir,
    max_size: Annotated[str, Option(help="Bytes that the cache may hold; K, M, G are powers of 1024.")] = "2G",
    max_disk: Annotated[float, Option(help="Share of its disk that may be in use, in per cent.", min=1, max=100)] = 80,
    forget: Annotated[
        list[str] | None, Option(help="Tag whose artifact need not be kept any longer; repeatable.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only tell.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove what was not used for longest until the cache fits. Tagged artifacts and the last hour's stay."""
    LayoutStore(cache)  # a mistyped path is refused, not made
    limits = Limits(max_bytes=_bytes(max_size), max_disk=max_disk / 100)
    done = collect(BlobCache(cache), limits, time.time(), forget=forget or (), dry_run=dry_run)
    if not quiet and not done.satisfied:
        err("warning: still above a limit: the rest is tagged, was used within the last hour, or is not the cache's.")
    if as_json:
        report = {
            "removed": done.removed,
            "freedBytes": done.freed_bytes,
            "unfinished": done.swept,
            "bytes": done.bytes_after,
            "satisfied": done.satisfied,
            "dryRun": dry_run,
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    for digest in done.removed:
        typer.echo(digest)
    if not quiet:
        what = "would be removed" if dry_run else "removed"
        err(
            f"{len(done.removed)} blobs and {len(done.swept)} unfinished downloads {what}, {done.freed_bytes} bytes; "
            f"{done.bytes_after} bytes stay."
        )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise typer.BadParameter(f"--max-size needs a number of bytes like 2G, not {text!r}")
    return int(match[1]) * _UNITS[match[2]]
