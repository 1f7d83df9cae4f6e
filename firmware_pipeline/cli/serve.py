# SPDX-License-Identifier: Apache-2.0
"""`serve`: a node cache over HTTP, by digest, read-only."""

import contextlib
import logging
import signal
import threading
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cli.options import CacheDir
from firmware_pipeline.cli.running import err, verb
from firmware_pipeline.serving import DEFAULT_PORT, MAX_CONNECTIONS, CacheServer


@verb
def command(
    cache: CacheDir,
    listen: Annotated[str, Option(help="ADDRESS:PORT; port 0 takes a free one.")] = f"127.0.0.1:{DEFAULT_PORT}",
    max_connections: Annotated[int, Option(help="Served at once; more are answered 503.", min=1, max=4096)] = (
        MAX_CONNECTIONS
    ),
) -> None:
    """Offer a cache to the pods of a node: GET and HEAD by digest, nothing else. Prints the URL; ends with SIGTERM."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"--listen needs ADDRESS:PORT, not {listen!r}")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    address = (host.strip("[]") or "127.0.0.1", int(port))
    store = BlobCache(cache)
    try:
        server = CacheServer(store, address, max_connections=max_connections)
    except OSError as error:  # also a host name that does not resolve
        raise typer.BadParameter(f"--listen {listen}: {error.strerror or error}") from None
    with server:

        def stop(_number: int, _frame: object) -> None:
            threading.Thread(target=server.shutdown).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        typer.echo(server.url)
        err(f"Serving {cache}, read-only and by digest. Whoever can reach this address can read what it knows to name.")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)
