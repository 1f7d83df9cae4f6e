# SPDX-License-Identifier: Apache-2.0
"""`flashjob demo`: the whole loop on the embedded default, with its enemies. Exit 0 only if every outcome is right."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from attestation.errors import Reject
from firmware_pipeline.errors import PipelineError
from flashjob import terminal
from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask
from flashjob.cli.interruption import Interruption
from flashjob.cli.view import closing_json, closing_table
from flashjob.cli.watch import watch as watch_job
from flashjob.cluster.kubeapi import KubeApi, list_all
from flashjob.cluster.resources import DEVICES, FLASHJOBS, FLASHTASKS
from flashjob.demo.act2 import NAMESPACE, Stage
from flashjob.demo.play import Options, Report, choose, play
from flashjob.demo.workplace import Workplace
from flashjob.errors import FlashJobError
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.reasons import Reason

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    scenario: Annotated[str, typer.Option(help="update, repurpose, adversary or all.")] = "all",
    devices: Annotated[
        int, typer.Option(min=4, max=64, help="Virtual devices, five on serial lines for three on the network.")
    ] = 8,
    firmware: Annotated[
        Path | None,
        typer.Option(
            help="Directory with real application images (*-app.bin) for version 2.0; chips without one keep ours.",
            envvar="FLASHJOB_FIRMWARE_DIR",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running at the end, until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end; the story goes to stderr.")
    ] = False,
) -> None:
    """Play FlashJob end to end: push, apply, flash, reboot, attest, confirm, re-discover; then the enemies."""
    console, report, scenarios = terminal.console(stderr=as_json), Report(), choose(scenario)
    with Workplace() as workplace, Interruption() as interruption:
        options = Options(workplace.directory, scenarios, devices, firmware)
        try:
            asyncio.run(_play(options, console, report, keep, as_json, interruption))
        except (Exception, asyncio.CancelledError) as error:
            if interruption.number:  # what a program says that got the same Ctrl-C is no failure
                console.print("stopped; nothing is left running")
                raise typer.Exit(128 + interruption.number) from None
            _logs(workplace, console)
            if isinstance(error, PipelineError):
                raise FlashJobError(str(error.reason), error.message, error.next_step) from error
            if isinstance(error, Reject):
                raise FlashJobError(Reason.EVIDENCE_INVALID, str(error), "read the logs") from error
            raise
        if not report.holds:
            _logs(workplace, console)
            raise typer.Exit(int(ExitCode.FAILED))


def _logs(workplace: Workplace, console: Console) -> None:
    kept = workplace.keep_logs()
    if kept:
        console.print(f"[dim]logs are kept in {kept}[/]", highlight=False, soft_wrap=True)


async def _play(
    options: Options, console: Console, report: Report, keep: bool, as_json: bool, interruption: Interruption
) -> None:
    interruption.watch()

    async def watch(api: KubeApi, job: str) -> None:
        await watch_job(api, NAMESPACE, job, console)

    async with contextlib.aclosing(play(options, console, watch, report)) as played:
        async for stage, api in played:
            await _close(stage, api, console, report, as_json)
            if keep:
                await _stay(stage, console, interruption)


async def _close(stage: Stage, api: KubeApi, console: Console, report: Report, as_json: bool) -> None:
    """The closing tables, read back from the API server."""
    jobs = [FlashJob.parse(obj) for obj in await list_all(api, FLASHJOBS, NAMESPACE)]
    jobs.sort(key=lambda job: job.metadata.creation_timestamp)
    tasks = [FlashTask.parse(obj) for obj in await list_all(api, FLASHTASKS, NAMESPACE)]
    devices = {obj["metadata"]["name"]: Device.parse(obj) for obj in await list_all(api, DEVICES, NAMESPACE)}
    terminal.heading(console, "What the API server says")
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


async def _stay(stage: Stage, console: Console, interruption: Interruption) -> None:
    plane = stage.sandbox.plane
    console.print(
        f"\nIt keeps running until Ctrl-C. Look around:\n  export KUBECONFIG={plane.kubeconfig}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"  {plane.binary} kubectl get fj,ft,dev,instances", highlight=False, soft_wrap=True)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    interruption.was_asked_for()
