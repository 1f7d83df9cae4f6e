# SPDX-License-Identifier: Apache-2.0
"""`flashjob demo`: the whole loop on the embedded default, with its enemies. Exit 0 only if every outcome is right."""

import asyncio
import contextlib
import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask
from flashjob.cli.view import closing_json, closing_table
from flashjob.cli.watch import watch as watch_job
from flashjob.cluster.kubeapi import KubeApi, list_all
from flashjob.cluster.resources import DEVICES, FLASHJOBS, FLASHTASKS
from flashjob.demo.act2 import NAMESPACE, Stage
from flashjob.demo.play import Options, Report, choose, play
from flashjob.errors import FlashJobError
from flashjob.wire.exit_codes import ExitCode

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    scenario: Annotated[str, typer.Option(help="update, repurpose, adversary or all.")] = "all",
    devices: Annotated[
        int, typer.Option(min=4, max=64, help="Virtual devices; five on serial lines for three on the network.")
    ] = 8,
    firmware: Annotated[
        Path | None,
        typer.Option(
            help="Directory with real application images (*-app.bin) for version 2.0.", envvar="FLASHJOB_FIRMWARE_DIR"
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running at the end, until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end; the story goes to stderr.")
    ] = False,
) -> None:
    """Play FlashJob end to end: push, apply, flash, reboot, attest, confirm, re-discover; then the enemies."""
    console, report = Console(stderr=as_json), Report()
    directory = Path(tempfile.mkdtemp(prefix="flashjob-demo-"))
    options = Options(directory, choose(scenario), devices, firmware)
    try:
        asyncio.run(_play(options, console, report, keep, as_json))
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        raise typer.Exit(130) from None
    except FlashJobError as error:
        console.print(f"[dim]logs: {directory / 'sandbox' / 'logs'}[/]", highlight=False)
        raise error
    shutil.rmtree(directory, ignore_errors=True)
    if not report.holds:
        raise typer.Exit(int(ExitCode.FAILED))


async def _play(options: Options, console: Console, report: Report, keep: bool, as_json: bool) -> None:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    if this is not None:
        loop.add_signal_handler(signal.SIGTERM, this.cancel)

    async def watch(api: KubeApi, job: str) -> None:
        await watch_job(api, NAMESPACE, job, console)

    async with contextlib.aclosing(play(options, console, watch, report)) as played:
        async for stage, api in played:
            await _close(stage, api, console, report, as_json)
            if keep:
                await _stay(stage, console)


async def _close(stage: Stage, api: KubeApi, console: Console, report: Report, as_json: bool) -> None:
    """The closing tables, read back from the API server."""
    jobs = [FlashJob.parse(obj) for obj in await list_all(api, FLASHJOBS, NAMESPACE)]
    jobs.sort(key=lambda job: job.metadata.creation_timestamp)
    tasks = [FlashTask.parse(obj) for obj in await list_all(api, FLASHTASKS, NAMESPACE)]
    devices = {obj["metadata"]["name"]: Device.parse(obj) for obj in await list_all(api, DEVICES, NAMESPACE)}
    console.rule("[bold]What the API server says")
    for job in jobs:
        console.print(closing_table(job, _of(job, tasks), devices))
    seconds = Table(title="time per step", box=None, show_header=False)
    for name, value in report.seconds.items():
        seconds.add_row(name, f"{value:6.1f} s")
    console.print(seconds)
    for outcome in report.outcomes:
        if not outcome.holds:
            console.print(
                f"[bold red]unexpected[/] {outcome.scenario}, {outcome.what}: {outcome.found}, not {outcome.expected}"
            )
    right = sum(outcome.holds for outcome in report.outcomes)
    style = "green" if report.holds else "red"
    console.print(f"[bold {style}]{right} of {len(report.outcomes)} outcomes are as expected[/]")
    if as_json:
        body = {
            "ok": report.holds,
            "seconds": report.seconds,
            "outcomes": [
                {"scenario": o.scenario, "what": o.what, "expected": o.expected, "found": o.found}
                for o in report.outcomes
            ],
            "jobs": [closing_json(job, _of(job, tasks), devices) for job in jobs],
        }
        typer.echo(json.dumps(body, indent=2, sort_keys=True))


def _of(job: FlashJob, tasks: list[FlashTask]) -> list[FlashTask]:
    return [task for task in tasks if task.spec.job.uid == job.metadata.uid]


async def _stay(stage: Stage, console: Console) -> None:
    plane = stage.sandbox.plane
    console.print(
        f"\nIt keeps running until Ctrl-C. Look around:\n  export KUBECONFIG={plane.kubeconfig}", highlight=False
    )
    console.print(f"  {plane.binary} kubectl get fj,ft,dev,instances", highlight=False)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    await stopped.wait()
