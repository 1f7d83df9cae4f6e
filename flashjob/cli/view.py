# SPDX-License-Identifier: Apache-2.0
"""What people see of a FlashJob: rows of a live table, and the closing table. Pure.

1. A final phase is the operator's word, and the only one: no verdict, stage or per cent changes it.
2. A task whose verdict is Proven is Rediscovering until the operator ends it, one with another good verdict Confirming:
   nothing looks like success before it is.
3. Else the gateway's live progress says where an attempt is, if that attempt is not over yet; then the report's stage,
   if it began after the last attempt ended; then a permit of such an attempt, which means Writing or later. Else the
   phase is the operator's.
4. Per cent is that of the stage the live progress names, at most 99: the stage's end is the next stage.
5. Why: a final task's own reason and message; else what it waits for; else how the attempt before ended.
6. What a device was before is what the task says, which is what it proved before its first byte; until then what
   Device.status says, unless that is already this task's doing.
7. "Runs" is only what a verdict measured, never what was intended; without a verdict it is left open.
8. Text of devices, people and servers loses its control characters: nothing drives the terminal.
9. The job's end: 0 if the condition Succeeded is True at Finished, else 1. Before Finished there is none.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flashjob.api.conditions import find_condition, is_true
from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask, Phase, Verdict
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import Outcome, TaskProgress
from flashjob.wire.reasons import Reason, known

WIDTH: Final = 100
"""Columns that every table of this module fits into."""
_LIVE: Final = (18, 15, 20, 13, 16, 13)
_CLOSING: Final = (17, 19, 22, 20, 18)
"""Widths of columns; with a space between them, WIDTH at most."""
_LIVE_ROWS: Final = 16
_MEASURED: Final = 12
_GOOD: Final = frozenset({Phase.SUCCEEDED, Phase.SKIPPED})
_STYLES: Final = {
    Phase.SUCCEEDED: "green",
    Phase.SKIPPED: "green",
    Phase.UNPROVEN: "yellow",
    Phase.ROLLED_BACK: "yellow",
    Phase.UNKNOWN: "yellow",
    Phase.FAILED: "red",
    Phase.REJECTED: "red",
    Phase.QUARANTINED: "red",
    Phase.PENDING: "dim",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One device of a job as it is now.

    Args:
        was, becomes: application and version; "" where unknown.
        stage: as the gateway reported it live; "" where it did not.
        percent: of the stage; None where unknown.
        since: RFC 3339; "" where unknown.
        root_of_trust: of the verdict, else of the Device.
    """

    device: str
    task: str
    chip: str
    transport: str
    was: str
    becomes: str
    phase: Phase
    stage: str
    percent: int | None
    attempt: int
    reason: str
    message: str
    since: str
    root_of_trust: str


@dataclass(frozen=True, slots=True)
class Closed:
    """One device at the end, as the API server has it.

    Args:
        application, version, measured: of the verdict; measured in hex.
        unproven: what the evidence left open.
        seconds: by stage.
        total_seconds: from the task's creation to its end; None while it has none.
    """

    device: str
    task: str
    phase: Phase
    reason: str
    message: str
    application: str
    version: str
    measured: str
    root_of_trust: str
    unproven: tuple[str, ...]
    attempts: int
    bytes_written: int | None
    seconds: Mapping[str, float]
    total_seconds: float | None


def plain(text: str) -> str:
    """Rule 8."""
    return "".join(character if character.isprintable() else " " for character in text)


def exit_code(job: FlashJob) -> ExitCode | None:
    """Rule 9; None before the end."""
    if not is_true(job.status.conditions, "Finished"):
        return None
    return ExitCode.DONE if is_true(job.status.conditions, "Succeeded") else ExitCode.FAILED


def summary(job: FlashJob) -> str:
    """One line: the job, its phase, how many devices are at their end, and why."""
    status = job.status
    kinds = ("Finished",) if is_true(status.conditions, "Finished") else ("Progressing", "Validated")
    of = next((c for kind in kinds if (c := find_condition(status.conditions, kind))), None)
    why = f": {of.message or of.reason}" if of is not None else ": not seen by the operator yet"
    done = f", {status.progress} done" if status.counts.total else ""
    return plain(f"{job.metadata.name}: {status.phase}{done}{why}")


# Rows


def rows(tasks: Iterable[FlashTask], devices: Mapping[str, Device], progress: Mapping[str, TaskProgress]) -> list[Row]:
    """One row per task, by name of the device (rules 1 to 6).

    Args:
        tasks: of one job.
        devices: of its namespace, by name; a missing one leaves its facts open.
        progress: the gateway's, by name of the task.
    """
    made = [_row(task, devices.get(task.spec.device.name), progress.get(task.metadata.name)) for task in tasks]
    return sorted(made, key=lambda row: (row.device, row.task))


def _row(task: FlashTask, device: Device | None, live: TaskProgress | None) -> Row:
    status, target = task.status, task.spec.target
    verdict = _verdict(task)
    phase, since, live = _where(task, live)
    reason, message = _why(task, phase)
    return Row(
        device=plain(task.spec.device.name),
        task=task.metadata.name,
        chip=_chip(task, device),
        transport=task.spec.transport.value,
        was=_was(task, device),
        becomes=plain(f"{target.application} {target.version}") if target else "",
        phase=phase,
        stage=live.stage.value if live else "",
        percent=min(99, 100 * live.done // live.total) if live and live.total else None,
        attempt=max(live.attempt if live else 0, status.attempt, *(p.attempt for p in _permits(task)), 0),
        reason=reason,
        message=plain(message),
        since=since,
        root_of_trust=_tier(verdict, device),
    )


def _where(task: FlashTask, live: TaskProgress | None) -> tuple[Phase, str, TaskProgress | None]:
    """Rules 1 to 3: phase, since when, and the live progress if it still says something."""
    status = task.status
    if status.phase.final:
        return status.phase, status.finished_at or "", None
    verdict = _verdict(task)
    if verdict is not None and verdict.outcome is not Outcome.REJECTED:
        waits = verdict.outcome is Outcome.PROVEN and task.spec.rediscovery == "Required"
        return Phase.REDISCOVERING if waits else Phase.CONFIRMING, verdict.at, None
    over = status.last_attempt
    last, ended = (over.attempt, over.ended_at) if over else (0, "")
    stage = status.report.stage if status.report else None
    if stage is not None and ended and _seconds(stage.since) < _seconds(ended):
        stage = None
    if status.phase is not Phase.UNKNOWN:
        if live is not None and live.attempt > last:
            since = stage.since if stage and stage.name is live.stage else ""
            return Phase(live.stage.value), since, live
        if stage is not None:
            return Phase(stage.name.value), stage.since, None
        permit = next((p for p in reversed(_permits(task)) if p.attempt > last), None)
        if permit is not None:
            return Phase.WRITING, permit.at, None
    since = status.waiting.since if status.waiting else ended or task.metadata.creation_timestamp
    return status.phase, since, None


def _why(task: FlashTask, phase: Phase) -> tuple[str, str]:
    """Rule 5."""
    status = task.status
    if phase.final:
        return status.reason, status.message
    if phase is Phase.REDISCOVERING:
        waiting = status.waiting
        message = waiting.message if waiting and waiting.reason == Reason.REDISCOVERING else ""
        return Reason.REDISCOVERING.value, message or Reason.REDISCOVERING.meaning
    idle = phase in (Phase.PENDING, Phase.UNKNOWN)
    if idle and status.waiting is not None:
        return status.waiting.reason, status.waiting.message
    if not idle and status.last_attempt is not None:
        last = status.last_attempt
        return last.reason, f"attempt {last.attempt} ended: {last.message}"
    if not idle:
        return Reason.IN_PROGRESS.value, ""
    meant = known(status.reason)
    return status.reason, status.message or (meant.meaning if meant else "")


def _was(task: FlashTask, device: Device | None) -> str:
    """Rule 6."""
    before = task.status.from_ or (task.status.report.before if task.status.report else None)
    if before is not None:
        return plain(f"{before.application} {before.version}".strip())
    firmware = device.status.firmware if device else None
    if firmware is None or firmware.boot_id in {p.grant_id for p in _permits(task)}:
        return ""
    return plain(f"{firmware.application} {firmware.version}".strip())


def _chip(task: FlashTask, device: Device | None) -> str:
    if task.spec.target is not None:
        return task.spec.target.chip
    hardware = (device.status.hardware or device.spec.hardware) if device else None
    return hardware.chip if hardware else ""


def _tier(verdict: Verdict | None, device: Device | None) -> str:
    return plain((verdict.root_of_trust if verdict else "") or (device.spec.root_of_trust if device else ""))


def _verdict(task: FlashTask) -> Verdict | None:
    return task.status.report.verdict if task.status.report else None


def _permits(task: FlashTask) -> tuple[Any, ...]:
    return task.status.report.permits if task.status.report else ()


# The live table


def live_table(found: Sequence[Row], title: str = "", limit: int = _LIVE_ROWS) -> Table:
    """A table of at most `limit` devices, those at work first; the others are counted in its caption."""
    shown = sorted(found, key=_urgency)[:limit]
    shown.sort(key=lambda row: (row.device, row.task))
    outer = Table.grid()
    outer.add_column(max_width=WIDTH)
    if title:
        outer.add_row(Text(title, style="bold"))
    names = ("device", "chip", "from → to", "phase", "", "root of trust")
    if shown:
        outer.add_row(_line(_LIVE, [Text(name, style="dim") for name in names]))
    for row in shown:
        outer.add_row(_live_line(row))
        if row.message and (row.phase not in _GOOD):
            when = f" since {_clock(row.since)}" if row.since and not row.phase.final else ""
            said = f"  {row.reason}{when}: {row.message}"
            outer.add_row(Text(said, style=_STYLES.get(row.phase, "dim"), no_wrap=True, overflow="ellipsis"))
    if len(shown) < len(found):
        hidden = Counter(row.phase for row in found) - Counter(row.phase for row in shown)
        more = ", ".join(f"{number} {phase}" for phase, number in sorted(hidden.items()))
        outer.add_row(Text(f"and {len(found) - len(shown)} more: {more}", style="dim"))
    return outer


def _urgency(row: Row) -> int:
    if row.phase.final:
        return 3 if row.phase in _GOOD else 1
    return 2 if row.phase is Phase.PENDING else 0


def _live_line(row: Row) -> Table:
    was, becomes = row.was, row.becomes
    if was.rpartition(" ")[0] == becomes.rpartition(" ")[0]:
        was, becomes = was.rpartition(" ")[2], becomes.rpartition(" ")[2]
    progress: Text | Table = Text(f"since {_clock(row.since)}" if row.since else "", style="dim")
    if row.percent is not None:
        progress = Table.grid(padding=(0, 1))
        progress.add_row(ProgressBar(100, row.percent, width=10), Text(f"{row.percent:>3} %"))
    phase = Text(row.phase.value, style=_STYLES.get(row.phase, "cyan"))
    change = Text(f"{was or '?'} → {becomes or '?'}")
    chip = Text(f"{row.chip} {row.transport.lower()}")
    return _line(_LIVE, [Text(row.device, style="bold"), chip, change, phase, progress, Text(row.root_of_trust)])


def _line(widths: Sequence[int], cells: Iterable[Text | Table], *, fold: bool = False) -> Table:
    """Cells in columns of fixed width, so that lines above and below each other align."""
    line = Table.grid(padding=(0, 1))
    for width in widths:
        line.add_column(width=width, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
    line.add_row(*cells)
    return line


def row_json(row: Row) -> dict[str, Any]:
    """The row for scripts, with camelCase names."""
    return _camel(asdict(row) | {"phase": row.phase.value})


# The closing table


def closed(tasks: Iterable[FlashTask], devices: Mapping[str, Device]) -> list[Closed]:
    """One entry per task, by name of the device (rule 7)."""
    made = [_closed(task, devices.get(task.spec.device.name)) for task in tasks]
    return sorted(made, key=lambda entry: (entry.device, entry.task))


def _closed(task: FlashTask, device: Device | None) -> Closed:
    status, verdict = task.status, _verdict(task)
    seconds = dict(status.seconds or {})
    waited = verdict is not None and verdict.outcome is Outcome.PROVEN and task.spec.rediscovery == "Required"
    if waited and verdict is not None and status.finished_at:
        seconds[Phase.REDISCOVERING.value] = max(0.0, round(_seconds(status.finished_at) - _seconds(verdict.at), 1))
    born, ended = task.metadata.creation_timestamp, status.finished_at
    return Closed(
        device=plain(task.spec.device.name),
        task=task.metadata.name,
        phase=status.phase,
        reason=status.reason,
        message=plain(status.message),
        application=plain(verdict.application) if verdict else "",
        version=plain(verdict.version) if verdict else "",
        measured=verdict.measurement.value if verdict and verdict.measurement else "",
        root_of_trust=_tier(verdict, device),
        unproven=tuple(map(plain, verdict.unproven)) if verdict else (),
        attempts=status.attempt,
        bytes_written=status.bytes_written,
        seconds=seconds,
        total_seconds=max(0.0, _seconds(ended) - _seconds(born)) if born and ended else None,
    )


def closing_table(job: FlashJob, tasks: Iterable[FlashTask], devices: Mapping[str, Device]) -> Table:
    """What became of every device, as read back from the API server; and why where it is no success."""
    outer = Table.grid()
    outer.add_column(max_width=WIDTH)
    outer.add_row(Text(summary(job), style="bold"))
    names = ("device", "outcome", "runs, measured", "root of trust", "seconds")
    outer.add_row(_line(_CLOSING, [Text(name, style="dim") for name in names]))
    for entry in closed(tasks, devices):
        outer.add_row(Text("─" * WIDTH, style="dim"))
        style = _STYLES.get(entry.phase, "cyan")
        outcome = Text(entry.phase.value, style=f"bold {style}").append(f"\n{entry.reason}", style=f"not bold {style}")
        cells = [Text(entry.device, style="bold"), outcome, _runs(entry), _trust(entry), _times(entry)]
        outer.add_row(_line(_CLOSING, cells, fold=True))
        if entry.phase not in _GOOD and entry.message:
            outer.add_row(Text(entry.message, style=style))
    return outer


def _runs(entry: Closed) -> Text:
    if not entry.measured:
        return Text("not measured", style="dim")
    runs = Text(f"{entry.application} {entry.version}".strip() or "unnamed")
    return runs.append(f"\n{entry.measured[:_MEASURED]}", style="cyan")


def _trust(entry: Closed) -> Text:
    trust = Text(entry.root_of_trust or "unknown")
    if entry.unproven:
        trust.append(f"\nnot proven: {'; '.join(entry.unproven)}", style="dim")
    elif entry.phase in _GOOD:
        trust.append("\nnothing left open", style="dim")
    return trust


def _times(entry: Closed) -> Text:
    total = "?" if entry.total_seconds is None else f"{entry.total_seconds:.0f}"
    text = Text(f"total {total}")
    for name, value in entry.seconds.items():
        text.append(f"\n{plain(name):<13}{value:>5.1f}", style="dim")
    return text


def closing_json(job: FlashJob, tasks: Iterable[FlashTask], devices: Mapping[str, Device]) -> dict[str, Any]:
    """The closing table for scripts, with camelCase names."""
    code = exit_code(job)
    pinned = job.status.firmware
    return {
        "job": job.metadata.name,
        "namespace": job.metadata.namespace,
        "phase": job.status.phase,
        "exitCode": None if code is None else int(code),
        "firmware": pinned.dump() if pinned else None,
        "counts": job.status.counts.dump(),
        "devices": [_camel(asdict(entry) | {"phase": entry.phase.value}) for entry in closed(tasks, devices)],
    }


def _camel(fields: dict[str, Any]) -> dict[str, Any]:
    def name(snake: str) -> str:
        first, *rest = snake.split("_")
        return first + "".join(map(str.title, rest))

    return {name(key): value for key, value in fields.items()}


def _clock(stamp: str) -> str:
    return f"{datetime.fromisoformat(stamp):%H:%M:%S}"


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


__all__ = [
    "WIDTH", "Closed", "Row", "closed", "closing_json", "closing_table", "exit_code", "live_table", "plain",
    "row_json", "rows", "summary",
]  # fmt: skip
