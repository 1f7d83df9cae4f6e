# SPDX-License-Identifier: Apache-2.0
"""`flashjob gateway`: composes keys, caches and the HTTP door."""

import asyncio
import contextlib
import logging
import signal
import ssl
from pathlib import Path
from typing import Annotated

import typer
from aiohttp import web

from attestation.errors import Reject
from attestation.keys import private_from_pem
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.login import connect, own_namespace
from flashjob.errors import FlashJobError
from flashjob.gateway.book import CaseBook
from flashjob.gateway.door import Door
from flashjob.gateway.evidence_sink import DirectorySink
from flashjob.gateway.keyfiles import load_keys
from flashjob.gateway.progress import ProgressBoard
from flashjob.gateway.service import Clock, Service
from flashjob.wire.pod import TOKEN_AUDIENCE
from flashjob.wire.reasons import Reason

app = typer.Typer(add_completion=False)
log = logging.getLogger("flashjob.gateway")


@app.command()
def gateway(
    tls_cert: Annotated[Path, typer.Option(help="PEM certificate of the gateway's name.")],
    tls_key: Annotated[Path, typer.Option(help="PEM key of that certificate.")],
    grant_key: Annotated[Path, typer.Option(help="PEM private key that signs grants.")],
    nonce_keys: Annotated[Path, typer.Option(help="Directory of nonce keys: files named 0 to 255.")],
    listen: Annotated[str, typer.Option(help="Address and port to serve on.")] = "0.0.0.0:8443",
    issuer: Annotated[
        str, typer.Option(help="Issuer of ServiceAccount tokens; asked from the API server if empty.")
    ] = "",
    kubeconfig: Annotated[Path | None, typer.Option(help="Outside a cluster: the kubeconfig to use.")] = None,
    operator_namespace: Annotated[str, typer.Option(help="Where the device Leases are; default: this pod's.")] = "",
    namespace: Annotated[str, typer.Option(help="Serve one namespace only.")] = "",
    evidence_dir: Annotated[
        Path | None,
        typer.Option(envvar="FLASHJOB_EVIDENCE_DIR", help="Keep the evidence of every verdict here, signed."),
    ] = None,
    evidence_key: Annotated[
        Path | None,
        typer.Option(envvar="FLASHJOB_EVIDENCE_KEY", help="PEM private key that signs evidence records."),
    ] = None,
) -> None:
    """Serve flashing pods: nonces, permits, evidence, verdicts."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"--listen {listen} is not ADDRESS:PORT")
    keys = load_keys(grant_key, nonce_keys)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        tls.load_cert_chain(tls_cert, tls_key)
    except (OSError, ssl.SSLError) as error:
        raise FlashJobError(Reason.KEY_UNREADABLE, f"{tls_cert}, {tls_key}: {error}", "check both files") from error

    sink = _sink(evidence_dir, evidence_key)

    async def serve() -> None:
        api = await connect(kubeconfig)
        try:
            found = issuer or await _issuer(api)
            clock = Clock()
            book = CaseBook(api, operator_namespace or own_namespace(), found, TOKEN_AUDIENCE, clock, namespace)
            door = Door(Service(book, keys, clock, sink), book, ProgressBoard(), book)
            runner = web.AppRunner(door.application(), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, host, int(port), ssl_context=tls).start()
            log.info("listening on %s, issuer %s", listen, found)
            try:
                await _until_stopped(book)
            finally:
                await runner.cleanup()
        finally:
            await api.close()

    asyncio.run(serve())


def _sink(folder: Path | None, key: Path | None) -> DirectorySink | None:
    if folder is None and key is None:
        return None
    if folder is None or key is None:
        raise typer.BadParameter("--evidence-dir and --evidence-key go together")
    try:
        return DirectorySink(folder, private_from_pem(key.read_bytes()))
    except OSError as error:
        raise FlashJobError(Reason.KEY_UNREADABLE, f"{key}: {error.strerror}", "check the file") from error
    except Reject as reject:
        raise FlashJobError(Reason.KEY_UNREADABLE, f"{folder}, {key}: {reject}", "check both") from reject


async def _issuer(api: KubeApi) -> str:
    try:
        return str((await api.get_raw("/.well-known/openid-configuration"))["issuer"])
    except (ApiError, KeyError, TypeError) as error:
        raise FlashJobError(
            Reason.GATEWAY_UNAVAILABLE,
            f"the API server does not say who issues its tokens: {error}",
            "check that it runs and that the gateway may GET /.well-known/openid-configuration, or give --issuer",
        ) from error


async def _until_stopped(book: CaseBook) -> None:
    loop, caches = asyncio.get_running_loop(), asyncio.create_task(book.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caches.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await caches
