# SPDX-License-Identifier: Apache-2.0
"""`serve`: a node cache over HTTP, by digest, read-only; with `--from` one that fills itself."""

import contextlib
import logging
import signal
import threading
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cli.options import CacheDir, Login
from firmware_pipeline.cli.running import client_options, err, verb
from firmware_pipeline.pull_through import PullThrough, Source
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.serving import DEFAULT_PORT, MAX_CONNECTIONS, CacheServer


@verb
def command(
    cache: CacheDir,
    login: Login,
    listen: Annotated[str, Option(help="ADDRESS:PORT; port 0 takes a free one.")] = f"127.0.0.1:{DEFAULT_PORT}",
    max_connections: Annotated[int, Option(help="Served at once; more are answered 503.", min=1, max=4096)] = (
        MAX_CONNECTIONS
    ),
    origins: Annotated[
        list[str] | None,
        Option(
            "--from", help="HOST/REPOSITORY to fetch from what the cache does not hold; no other is served; repeatable."
        ),
    ] = None,
) -> None:
    """Offer a cache to the pods of a node: GET and HEAD by digest, nothing else. Prints the URL; ends with SIGTERM.

    With --from it is a mirror that fills itself, by this process's own credentials; whoever reaches it needs none.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"--listen needs ADDRESS:PORT, not {listen!r}")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    address = (host.strip("[]") or "127.0.0.1", int(port))
    store, origin = BlobCache(cache), _origin(origins, login)
    try:
        server = CacheServer(store, address, max_connections=max_connections, origin=origin)
    except OSError as error:  # also a host name that does not resolve
        raise typer.BadParameter(f"--listen {listen}: {error.strerror or error}") from None
    with server:

        def stop(_number: int, _frame: object) -> None:
            threading.Thread(target=server.shutdown).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        typer.echo(server.url)
        filled = f", filled from {', '.join(origins)}" if origins else ""
        err(
            f"Serving {cache}, read-only and by digest{filled}. Whoever can reach this address can read what it knows to name."
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)


def _origin(names: list[str] | None, login: Login) -> PullThrough | None:
    """The repositories of `--from`, each reached with its own credentials.

    Raises:
        PipelineError: ReferenceMalformed, CredentialsMalformed.
    """
    if not names:
        return None
    from firmware_pipeline.registry import RegistryStore

    sources: dict[str, Source] = {}
    logins = {}
    for text in names:
        where = parse_reference(text)
        if where.is_layout or where.selector:
            raise typer.BadParameter(f"--from needs HOST/REPOSITORY without tag and digest, not {text!r}")
        if where.path in sources:
            raise typer.BadParameter(
                f"--from names the repository {where.path} twice; clients could not tell them apart"
            )
        if where.host not in logins:  # a password on standard input can be read once
            logins[where.host] = client_options(login, where)
        sources[where.path] = RegistryStore(where, logins[where.host])
    return PullThrough(sources)
