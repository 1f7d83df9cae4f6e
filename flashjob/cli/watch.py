# SPDX-License-Identifier: Apache-2.0
"""`flashjob watch`: a FlashJob as it goes on: device, phase, per cent, what and why; then the closing table.

Rules (tests name them):

1. Job, tasks and Devices are watched, not polled; per cent comes from the gateway, once a second, and nothing is missed
   but per cent where the gateway cannot be asked.
2. A terminal gets a live table. Anything else gets one line for each change of a device's phase, reason or quarter of
   the stage, as text or, with --json, as JSON.
3. It ends when the job is finished. What it then says is read back from the API server, not from what it saw go by.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live

from flashjob import terminal
from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask
from flashjob.cluster.kubeapi import KubeApi, list_all
from flashjob.cluster.login import connect
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import DEVICES, FLASHJOBS, FLASHTASKS, Obj
from flashjob.planning.names import job_label
from flashjob.wire.pod import LABEL_JOB

from .percent import Percent
from .view import WIDTH, Row, closing_json, closing_table, exit_code, live_table, plain, row_json, rows, summary
from .wait import NOT_IN_TIME, JobWatch, follow

_REDRAW_SECONDS: Final = 0.1
_QUARTER: Final = 25

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class ReadBack:
    """A job and what belongs to it, as the API server has it now.

    Args:
        tasks: of this job and not of an earlier namesake.
        devices: those the tasks name, by name.
    """

    job: FlashJob
    tasks: tuple[FlashTask, ...]
    devices: dict[str, Device]

    @property
    def exit_code(self) -> int:
        """0 every device proven, 1 finished otherwise, 2 not finished."""
        code = exit_code(self.job)
        return NOT_IN_TIME if code is None else int(code)


async def read_back(api: KubeApi, namespace: str, job: str) -> ReadBack:
    """Read a job, its tasks and their Devices. Raises ApiError."""
    found = FlashJob.parse(await api.get(FLASHJOBS, namespace, job))
    listed = await list_all(api, FLASHTASKS, namespace, label_selector=_of(job))
    tasks = tuple(task for task in map(FlashTask.parse, listed) if task.spec.job.uid == found.metadata.uid)
    wanted = {task.spec.device.name for task in tasks}
    devices = [Device.parse(obj) for obj in await list_all(api, DEVICES, namespace) if _name(obj) in wanted]
    return ReadBack(found, tasks, {device.metadata.name: device for device in devices})


async def watch(
    api: KubeApi, namespace: str, job: str, console: Console, *, gateway: str = "", as_json: bool = False
) -> ReadBack:
    """Show a job on `console` until it is finished; what the API server then says of it.

    Args:
        api: as whoever watches; needs to read our kinds and, for per cent, ConfigMaps and a token of flashjob-viewer.
        namespace, job: which one.
        console: a terminal gets a live table, anything else lines.
        gateway: its URL, where the ConfigMap's does not fit.
        as_json: lines of JSON instead of text, on a terminal too.

    Raises:
        FlashJobError: JobNotFound, JobDeleted, or the API server's own refusal.
    """
    changed = asyncio.Event()

    def on_change(*_: object) -> None:
        changed.set()

    tasks = Reflector(api, FLASHTASKS, namespace, project=FlashTask.parse, label_selector=_of(job), on_change=on_change)
    devices = Reflector(api, DEVICES, namespace, project=Device.parse, on_change=on_change)
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    with live or nullcontext():
        async with follow(api, namespace, job, on_change) as seen:
            percent = Percent(api, namespace, job, on_change, _teller(console, as_json), gateway)
            show = _Screen(live) if live else _Lines(console, as_json)
            running = [asyncio.create_task(part.run()) for part in (tasks, devices, percent)]
            for part in running:
                part.add_done_callback(on_change)
            try:
                while not seen.over:
                    await changed.wait()
                    changed.clear()
                    for part in running:
                        if part.done():
                            part.result()  # it never ends by itself: what ended it is raised here
                    show(seen.job, _rows(seen, tasks, devices, percent))
                    await asyncio.sleep(_REDRAW_SECONDS)
                await seen.end()
            finally:
                for part in running:
                    part.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        final = await read_back(api, namespace, job)
        show(final.job, rows(final.tasks, final.devices, {}))
    return final


def _rows(seen: JobWatch, tasks: Reflector[FlashTask], devices: Reflector[Device], percent: Percent) -> list[Row]:
    mine = [task for task in tasks.values() if task.spec.job.uid == seen.job.metadata.uid]
    return rows(mine, {name: device for (_, name), device in devices.items()}, percent.found)


class _Screen:
    """Rule 2, on a terminal."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def __call__(self, job: FlashJob, found: list[Row]) -> None:
        # Two lines for each device, and some for title, head and caption.
        title = summary(job)
        fits = max(1, (self._live.console.height - 4 - len(title) // WIDTH) // 2)
        self._live.update(live_table(found, title, fits), refresh=True)


class _Lines:
    """Rule 2, anywhere else."""

    def __init__(self, console: Console, as_json: bool) -> None:
        self._console, self._json = console, as_json
        self._job = ""
        self._said: dict[str, tuple[object, ...]] = {}

    def __call__(self, job: FlashJob, found: list[Row]) -> None:
        if (line := summary(job)) != self._job:
            self._job = line
            self._say({"event": "job", "job": job.metadata.name, "phase": job.status.phase, "message": line}, line)
        for row in found:
            key = (row.phase, row.attempt, row.reason, row.message, (row.percent or 0) // _QUARTER)
            if self._said.get(row.task) != key:
                self._said[row.task] = key
                self._say({"event": "device", **row_json(row)}, _text(row))

    def _say(self, event: dict[str, Any], text: str) -> None:
        at = datetime.now(UTC)
        if self._json:
            text = json.dumps({"at": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), **event})
        else:
            text = f"{at:%H:%M:%S}  {text}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True, emoji=False)


def _text(row: Row) -> str:
    where = f"{row.phase.value:<13}" + (f" {row.percent:>3} %" if row.percent is not None else "")
    why = f"  {row.reason}: {row.message}" if row.message else ""
    return f"{row.device:<20} {where}{why}".rstrip()


def _teller(console: Console, as_json: bool) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if as_json:
            text = json.dumps({"event": "note", "message": text})
        console.print(
            plain(text), highlight=False, markup=False, soft_wrap=True, emoji=False, style=None if as_json else "dim"
        )

    return tell


def _of(job: str) -> str:
    return f"{LABEL_JOB}={job_label(job)}"


def _name(obj: Obj) -> str:
    return str(obj["metadata"]["name"])


@app.command("watch")
def command(
    job: Annotated[str, typer.Argument(help="Name of the FlashJob.")],
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Its namespace.")] = "default",
    kubeconfig: Annotated[Path | None, typer.Option(help="The cluster's kubeconfig.")] = None,
    context: Annotated[str | None, typer.Option(help="Context in the kubeconfig.")] = None,
    gateway: Annotated[
        str, typer.Option(help="URL of the gateway; default: the one in ConfigMap flashjob-gateway.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for each change, the last one of all.")
    ] = False,
) -> None:
    """Watch a FlashJob to its end: device, phase, per cent, what and why.

    Exit codes: 0 finished, every device proven; 1 finished otherwise.
    """
    console = terminal.console()

    async def run() -> ReadBack:
        api = await connect(kubeconfig, context)
        try:
            return await watch(api, namespace, job, console, gateway=gateway, as_json=as_json)
        finally:
            await api.close()

    final = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps({"event": "end", **closing_json(final.job, final.tasks, final.devices)}))
    else:
        console.print(closing_table(final.job, final.tasks, final.devices), highlight=False)
    raise typer.Exit(final.exit_code)
