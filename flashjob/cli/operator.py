# SPDX-License-Identifier: Apache-2.0
"""`flashjob operator`: composes credentials, registries, caches, leader and controller."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from flashjob.cluster.leader import LeadershipLost
from flashjob.cluster.login import configuration, connect, own_namespace
from flashjob.errors import FlashJobError
from flashjob.operator.artifacts import PipelineArtifacts
from flashjob.operator.run import Operator, Options
from flashjob.workloads.pod import PodSettings

app = typer.Typer(add_completion=False)
log = logging.getLogger("flashjob.operator")


@app.command()
def operator(
    gateway_url: Annotated[str, typer.Option(help="Where flashing pods reach the gateway.")],
    image: Annotated[str, typer.Option(help="Container image of the flashing pods.")],
    gateway_ca: Annotated[
        Path | None, typer.Option(help="PEM of the CA of the gateway's certificate; default: the system's.")
    ] = None,
    registry_ca: Annotated[Path | None, typer.Option(help="PEM of CAs to trust for registries.")] = None,
    namespace: Annotated[str, typer.Option(help="The operator's own namespace, for Leases; default: this pod's.")] = "",
    watch_namespace: Annotated[str, typer.Option(help="Serve FlashJobs of one namespace only.")] = "",
    listen: Annotated[str, typer.Option(help="Address and port of /healthz, /readyz, /metrics.")] = "0.0.0.0:8080",
    identity: Annotated[
        str, typer.Option(envvar="POD_UID", help="Name in the leader's Lease; should outlive a restarted container.")
    ] = "",
    cache_claim: Annotated[
        str, typer.Option(help="PersistentVolumeClaim in the jobs' namespaces with a node cache; default: none.")
    ] = "",
    mirror: Annotated[
        str,
        typer.Option(help="URL of a mirror by digest; $(FLASHJOB_NODE_IP) is the pod's node. Default: none."),
    ] = "",
    kubeconfig: Annotated[Path | None, typer.Option(help="Outside a cluster: the kubeconfig to use.")] = None,
) -> None:
    """Run FlashJobs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    host, _, port = listen.rpartition(":")
    if not port.isdecimal():
        raise FlashJobError("InvalidOption", f"--listen {listen}", "give ADDRESS:PORT")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise FlashJobError("InvalidOption", f"--mirror {mirror}", "give http://HOST:PORT or https://HOST:PORT")
    pods = PodSettings(
        image=image,
        gateway_url=gateway_url,
        cache_claim=cache_claim or None,
        mirror=mirror or None,
    )
    options = Options(
        namespace=namespace or own_namespace(),
        watch_namespace=watch_namespace,
        identity=identity or f"{os.uname().nodename}-{os.getpid()}",
        pods=pods,
        gateway_ca=gateway_ca,
        listen=(host or "0.0.0.0", int(port)),
    )
    asyncio.run(_serve(kubeconfig, registry_ca, options))


async def _serve(kubeconfig: Path | None, registry_ca: Path | None, options: Options) -> None:
    api = await connect(kubeconfig)
    try:
        process = Operator(api, lambda: configuration(kubeconfig), PipelineArtifacts(registry_ca), options, time.time)

        def take_signals() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, running.cancel)

        running = asyncio.create_task(process.run(take_signals))
        take_signals()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        except BaseExceptionGroup as group:
            lost = group.subgroup(LeadershipLost)
            if lost is None:
                raise
            raise FlashJobError("LeadershipLost", str(lost.exceptions[0]), "nothing: it is started again") from group
    finally:
        await api.close()
