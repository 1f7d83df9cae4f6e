# SPDX-License-Identifier: Apache-2.0
"""`flashjob discovery-handler`: composes trust, scanner and the Akri discovery handler."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated

import typer

from attestation.discovery.details import Transport
from attestation.discovery.handler import DiscoveryHandler
from attestation.discovery.registration import Unusable
from attestation.discovery.scanner import Scanner
from attestation.errors import Reject
from attestation.keys import Alg, PrivateKey, alg_of, private_from_pem
from flashjob.cluster.kubeapi import KubeApi
from flashjob.cluster.login import connect
from flashjob.errors import FlashJobError
from flashjob.trust.cluster_store import ClusterTrust
from flashjob.trust.discovery import ClusterEnrolment, Configurations, DeviceReports
from flashjob.wire.reasons import Reason

app = typer.Typer(add_completion=False)
log = logging.getLogger("flashjob.discovery")


@app.command()
def discovery_handler(
    role: Annotated[Transport, typer.Option(help="network: one per cluster; serial: one per node.")],
    directory: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Where the Akri agent's registration socket is.")
    ],
    listing_key: Annotated[Path, typer.Option(help="PEM private key (P-256) that signs listing tokens.")],
    kubeconfig: Annotated[Path | None, typer.Option(help="Outside a cluster: the kubeconfig to use.")] = None,
    namespace: Annotated[str, typer.Option(help="Devices of one namespace only.")] = "",
    node: Annotated[str, typer.Option(envvar="NODE_NAME", help="This node; default: the host's name.")] = "",
) -> None:
    """List serial ports, and devices that prove what they run, to the Akri agent of this node."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    key = load_listing_key(listing_key)

    name = node or socket.gethostname()

    async def connected() -> None:
        api = await connect(kubeconfig)
        try:
            await serve(api, role, directory.resolve(), key, namespace=namespace, node=name)
        finally:
            await api.close()

    try:
        asyncio.run(_until_stopped(connected()))
    except ExceptionGroup as errors:
        error, other = errors.split(Unusable)
        if error is None or other is not None:
            raise
        unusable: Exception = error
        while isinstance(unusable, ExceptionGroup):
            unusable = unusable.exceptions[0]
        step = "name the directory of the Akri agent's socket, as /var/lib/akri; sockets must be possible there"
        raise FlashJobError("DirectoryUnusable", str(unusable), step) from errors


async def serve(
    api: KubeApi, role: Transport, directory: Path, key: PrivateKey, *, namespace: str = "", node: str = ""
) -> None:
    """Be the handler until cancelled.

    Args:
        api: the API server.
        role: which handler.
        directory: where the Akri agent's registration socket is, absolute.
        key: signs listing tokens, P-256.
        namespace: Devices of one namespace only; "" for all.
        node: name of this node.
    """
    trust = ClusterTrust(api, namespace)
    configurations = Configurations(api, role, node)
    async with asyncio.TaskGroup() as group:
        group.create_task(trust.run())
        group.create_task(configurations.reflector.run())
        await trust.wait_ready()
        await configurations.reflector.synced.wait()
        log.info("%s: %d devices known", role.handler_name, len(trust.devices))
        reports = DeviceReports(api, trust, configurations, time.time)
        scanner = Scanner(role, ClusterEnrolment(trust, time.time), reports, key)
        handler = DiscoveryHandler(scanner, directory, configurations.wake, configurations.wanted)
        group.create_task(reports.run())
        group.create_task(handler.run())


def load_listing_key(path: Path) -> PrivateKey:
    """Read the key. Raises FlashJobError KeyUnreadable."""
    try:
        key = private_from_pem(path.read_bytes())
    except (OSError, Reject) as error:
        raise FlashJobError(
            Reason.KEY_UNREADABLE, f"listing key {path}: {error}", "give a PEM private key that this program may read"
        ) from error
    if alg_of(key) is not Alg.ES256:
        raise FlashJobError(
            Reason.KEY_UNREADABLE,
            f"listing key {path}: a key for {alg_of(key).name}",
            "make a P-256 key: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        )
    return key


async def _until_stopped(work: Coroutine[None, None, None]) -> None:
    loop, running = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
